"""Behaves as candle-vllm's MCP client does: a strict little client that many gateways fail.

Usage: candle_vllm_client.py URL KEY TOOL ARGUMENTS_JSON

It speaks 2024-11-05 without a version header, reads every body to its end before it looks at it, takes `data: ` with
the space, wants all tools on one page, and has one deadline for request and body together.
"""

import json
import sys
import urllib.request

TIMEOUT_SECONDS = 60


def main():
    url, key, tool, arguments = sys.argv[1:]
    session = {}
    initialize = {
        "protocolVersion": "2024-11-05",
        "capabilities": {},
        "clientInfo": {"name": "candle-vllm", "version": "0.1.0"},
    }
    result = send(url, key, session, {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": initialize})
    assert result["protocolVersion"] == "2024-11-05", result
    notified = post(url, key, session, {"jsonrpc": "2.0", "method": "notifications/initialized"})
    assert 200 <= notified[0] < 300, notified
    listed = send(url, key, session, {"jsonrpc": "2.0", "id": 2, "method": "tools/list"})
    names = [entry["name"] for entry in listed["tools"]]
    assert tool in names, (tool, names)
    assert all("inputSchema" in entry for entry in listed["tools"])
    params = {"name": tool, "arguments": json.loads(arguments)}
    called = send(url, key, session, {"jsonrpc": "2.0", "id": 3, "method": "tools/call", "params": params})
    assert not called.get("isError"), called
    print(called["content"][0]["text"])


def send(url, key, session, message):
    status, content_type, body = post(url, key, session, message)
    assert status == 200, (status, body)
    if content_type.startswith("text/event-stream"):
        lines = [line[len("data: ") :] for line in body.splitlines() if line.startswith("data: ")]
        replies = [json.loads(line) for line in lines if line.strip()]
    else:
        replies = [json.loads(body)]
    reply = next(reply for reply in replies if reply.get("id") == message["id"])
    assert "error" not in reply, reply
    return reply["result"]


def post(url, key, session, message):
    headers = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
    headers["Authorization"] = f"Bearer {key}"
    if "id" in session:
        headers["Mcp-Session-Id"] = session["id"]
    request = urllib.request.Request(url, json.dumps(message).encode(), headers)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=TIMEOUT_SECONDS) as response:
        if response.headers.get("Mcp-Session-Id"):
            session["id"] = response.headers["Mcp-Session-Id"]
        return response.status, response.headers.get("Content-Type", ""), response.read().decode()


if __name__ == "__main__":
    main()
