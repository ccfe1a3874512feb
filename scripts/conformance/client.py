"""The gateway as the client of the conformance suite's own servers: client.py SERVER URL.

Starts SERVER with the suite's server (at URL) as its only upstream, then uses everything that it offers through the
gateway's endpoint: what the suite sees is how the gateway speaks to an upstream. Standard library only.
"""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

READY_SECONDS = 20
# Without a proxy: all of it is on this machine.
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Endpoint:
    def __init__(self, port):
        self.url = f"http://127.0.0.1:{port}/mcp/stream"

    def request(self, method, params=None):
        body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params or {}}).encode()
        request = urllib.request.Request(self.url, body, {"Content-Type": "application/json"})
        with OPENER.open(request, timeout=30) as response:
            answer = json.load(response)
        print(method, json.dumps(params), "->", json.dumps(answer)[:300], flush=True)
        return answer.get("result", {})


def wait_until_ready(server, endpoint):
    for _ in range(READY_SECONDS * 10):
        if server.poll() is not None:
            sys.exit(f"the server ended with status {server.returncode}")
        try:
            endpoint.request("ping")
            return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.1)
    sys.exit("the server does not answer")


def example(schema):
    """A value that fits, of the kinds that the suite's tools take."""
    if "enum" in schema:
        return schema["enum"][0]
    return {"number": 5, "integer": 5, "boolean": True, "array": [], "object": {}}.get(schema.get("type"), "text")


def use_everything(endpoint):
    tools = endpoint.request("tools/list").get("tools", [])
    schemas = {tool["name"]: tool["inputSchema"] for tool in tools}
    for name, schema in schemas.items():
        arguments = {key: example(value) for key, value in schema.get("properties", {}).items()}
        if name == "json_schema_echo":
            arguments = {"schema": schemas["json_schema_2020_12_tool"]}
        endpoint.request("tools/call", {"name": name, "arguments": arguments})
    for resource in endpoint.request("resources/list").get("resources", []):
        endpoint.request("resources/read", {"uri": resource["uri"]})
    for prompt in endpoint.request("prompts/list").get("prompts", []):
        arguments = {argument["name"]: "text" for argument in prompt.get("arguments", [])}
        endpoint.request("prompts/get", {"name": prompt["name"], "arguments": arguments})


def upstream(url):
    """The suite's server as the gateway's configuration, with what the suite tells its clients by environment."""
    era = "modern" if os.environ.get("MCP_CONFORMANCE_PROTOCOL_VERSION", "") >= "2026-07-28" else "legacy"
    lines = ["[[mcp_client.servers]]", 'name = "suite"', 'namespace = ""', f"url = {json.dumps(url)}", f'protocol = "{era}"']
    context = json.loads(os.environ.get("MCP_CONFORMANCE_CONTEXT", "{}"))
    if "client_secret" in context:
        client = ", ".join(f"{key} = {json.dumps(context[key])}" for key in ("client_id", "client_secret"))
        lines.append(f'auth = {{ type = "oauth", {client} }}')
    return "\n".join(lines) + "\n"


def main(program, url):
    port = free_port()
    with tempfile.TemporaryDirectory() as directory:
        config = os.path.join(directory, "gateway.toml")
        with open(config, "w", encoding="utf-8") as file:
            file.write(upstream(url))
        command = [program, "--port", "0", "--http-mcp-port", str(port), "--config", config, "--log", "info"]
        server = subprocess.Popen(command)
        try:
            endpoint = Endpoint(port)
            wait_until_ready(server, endpoint)
            use_everything(endpoint)
        finally:
            server.terminate()
            server.wait(timeout=20)


main(*sys.argv[1:])
