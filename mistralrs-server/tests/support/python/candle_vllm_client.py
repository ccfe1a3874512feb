"""Behaves as candle-vllm's MCP client does: a strict little client that many gateways fail.

Usage: candle_vllm_client.py URL KEY [TOOL ARGUMENTS_JSON]...

It speaks 2024-11-05 without a version header, reads every body to its end before it looks at it, takes `data: ` with
the space, wants all tools on one page, lists them again and again, sends no `params` where it has none, and has one
deadline for request and body together. If its first request is refused it tries one GET, whose body it reads to the end
too. Prints a line for each call.
"""

import json
import sys
import time
import urllib.error
import urllib.request

TIMEOUT_SECONDS = 60
# It shows nothing to its user before the GET is answered.
AT_ONCE_SECONDS = 5
VERSION = "2024-11-05"


class Client:
    def __init__(self, url, key):
        self.url, self.authorization = url, f"Bearer {key}"
        self.session, self.last_id, self.received = None, 0, []

    def initialize(self):
        params = {"protocolVersion": VERSION, "capabilities": {}, "clientInfo": {"name": "vllm-rs", "version": "0.6.0"}}
        result = self.request("initialize", params)["result"]
        assert result["protocolVersion"] == VERSION and result["serverInfo"]["version"], result
        self.send({"jsonrpc": "2.0", "method": "notifications/initialized"})

    def list_tools(self):
        tools = self.request("tools/list")["result"]["tools"]
        assert all(isinstance(tool["name"], str) and isinstance(tool["inputSchema"], dict) for tool in tools), tools
        return [tool["name"] for tool in tools]

    def call_tool(self, name, arguments):
        return self.request("tools/call", {"name": name, "arguments": arguments})

    def request(self, method, params=None):
        self.last_id += 1
        message = {"jsonrpc": "2.0", "id": self.last_id, "method": method}
        self.send(message if params is None else message | {"params": params})
        while self.received:
            reply = json.loads(self.received.pop(0))
            if reply.get("id") == self.last_id:
                return reply
        sys.exit("connection closed")

    def send(self, message):
        headers = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
        if self.session is not None:
            headers["Mcp-Session-Id"] = self.session
        status, headers, body = self.exchange("POST", headers, json.dumps(message).encode())
        if 400 <= status < 500 and message.get("method") == "initialize":
            self.look_for_the_older_transport()
        if not 200 <= status < 300:
            sys.exit(f"HTTP error: {status}")
        self.session = headers.get("Mcp-Session-Id", self.session)
        if status == 202:
            return
        if "text/event-stream" in headers.get("Content-Type", ""):
            self.received += events(body)
        elif body:
            self.received.append(body)

    def look_for_the_older_transport(self):
        started = time.monotonic()
        status, _headers, _body = self.exchange("GET", {"Accept": "text/event-stream"}, None)
        seconds = time.monotonic() - started
        assert status >= 400 and seconds < AT_ONCE_SECONDS, f"the GET was answered with {status} after {seconds} s"

    def exchange(self, method, headers, body):
        headers = headers | {"Authorization": self.authorization}
        request = urllib.request.Request(self.url, body, headers, method=method)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        started = time.monotonic()
        try:
            with opener.open(request, timeout=TIMEOUT_SECONDS) as response:
                answer = response.status, response.headers, response.read().decode()
        except urllib.error.HTTPError as error:
            answer = error.code, error.headers, error.read().decode()
        assert time.monotonic() - started < TIMEOUT_SECONDS, "the body did not end in time"
        return answer


def events(body):
    """Messages of a stream; an event whose data is no object is skipped."""
    found, data = [], ""
    for line in [*body.splitlines(), ""]:
        if line.startswith("data: "):
            data += line[len("data: ") :]
        elif not line:
            found += [data] if data.strip().startswith("{") else []
            data = ""
    return found


def shown(reply):
    if "error" in reply:
        return f"error {reply['error']['code']}: {reply['error']['message']}"
    result = reply["result"]
    text = result["content"][0]["text"]
    return f"isError: {text}" if result.get("isError", False) else text


def main():
    url, key, *calls = sys.argv[1:]
    client = Client(url, key)
    client.initialize()
    names = client.list_tools()
    for name, arguments in zip(calls[::2], calls[1::2], strict=True):
        if name not in names:
            print(f"not listed: {name}")
        print(shown(client.call_tool(name, json.loads(arguments))))
    assert client.list_tools() == names


if __name__ == "__main__":
    main()
