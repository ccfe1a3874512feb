"""Finds what real servers offer behind the gateway, with clients that no one here wrote.

Usage: gateway_clients.py CLIENT[,CLIENT...] URL KEY [BRIDGE...]

CLIENT is `legacy`, `auto` or a protocol version (modes of the mcp package from version 2 on), `mcp1` (the package before
it, in its own environment), `fastmcp`, or `bridge`: the mcp package over stdio to BRIDGE, a command that connects to URL.
Behind URL are `everything` and `fixture` (scripts/conformance/fixture.py). Fails by raising.
"""

import asyncio
import contextlib
import os
import sys

PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8DwHwAFBQIAX8jx0gAAAABJRU5ErkJggg=="
CONTENT = [
    {"type": "text", "text": "Multiple content types test:"},
    {"type": "image", "data": PNG, "mimeType": "image/png"},
    {
        "type": "resource",
        "resource": {
            "uri": "test://mixed-content-resource",
            "mimeType": "application/json",
            "text": '{"test":"data","value":123}',
        },
    },
]
LOGGED = ["Tool execution started", "Tool processing data", "Tool execution completed"]
WATCHED = "mcp://fixture/test://watched-resource"
FAILURE = "This tool intentionally returns an error for testing"


async def check(client):
    tools = {tool["name"]: tool for tool in await client.tools()}
    schema = tools["everything::get-structured-content"]["outputSchema"]
    assert schema["$schema"] == "http://json-schema.org/draft-07/schema#", schema
    schema = tools["fixture::json_schema_2020_12_tool"]["inputSchema"]
    assert schema["$defs"]["address"]["$anchor"] == "addressDef" and schema["else"] == {"required": ["email"]}, schema

    steps = []
    arguments = {"duration": 0.3, "steps": 3}
    result = await client.call("everything::trigger-long-running-operation", arguments, steps)
    assert "completed" in result["content"][0]["text"] and steps == [(1, 3), (2, 3), (3, 3)], (result, steps)

    result = await client.call("fixture::test_tool_with_logging", {})
    assert result["content"] == [{"type": "text", "text": "logged"}], result
    await client.hears(LOGGED)

    result = await client.call("everything::get-structured-content", {"location": "Chicago"})
    expected = {"temperature": 36, "conditions": "Light rain / drizzle", "humidity": 82}
    assert result["structuredContent"] == expected, result
    result = await client.call("fixture::test_multiple_content_types", {})
    assert result["content"] == CONTENT, result

    result = await client.call("fixture::test_error_handling", {})
    assert result["isError"] and result["content"] == [{"type": "text", "text": FAILURE}], result
    try:
        result = await client.call("everything::no_such_tool", {})
    except client.refusal as refusal:
        assert "everything::no_such_tool" in str(refusal), refusal
    else:
        raise AssertionError(f"answered: {result}")


class Client:
    """What all of them have; results are as on the wire."""

    def __init__(self):
        self.session, self.logged = None, []

    async def on_log(self, message):
        self.logged.append(message.data)

    async def hears(self, words):
        """Messages may come on another stream than the answer."""
        for _ in range(500):
            if self.logged == words:
                return
            await asyncio.sleep(0.01)
        raise AssertionError(f"logged: {self.logged}")

    async def tools(self):
        return [on_the_wire(tool) for tool in (await self.session.list_tools()).tools]

    async def call(self, name, arguments, steps=None):
        async def on_progress(progress, total, _message):
            steps.append((progress, total))

        progress = {} if steps is None else {"progress_callback": on_progress}
        return on_the_wire(await self.session.call_tool(name, arguments, **progress))


class Mcp(Client):
    def __init__(self, mode):
        super().__init__()
        import mcp

        self.mode, self.refusal = mode, mcp.MCPError
        self.updates = asyncio.Queue()

    @contextlib.asynccontextmanager
    async def connect(self, url, key):
        import httpx2
        from mcp.client.streamable_http import streamable_http_client

        async with httpx2.AsyncClient(headers={"Authorization": f"Bearer {key}"}, timeout=60) as http:
            async with self.over(streamable_http_client(url, http_client=http)):
                yield

    @contextlib.asynccontextmanager
    async def over(self, transport):
        import mcp

        callbacks = {"logging_callback": self.on_log, "message_handler": self.on_message}
        async with mcp.Client(transport, mode=self.mode, log_level="info", **callbacks) as self.session:
            print(f"protocol {self.session.protocol_version}")
            yield
            await self.watch()

    async def on_message(self, message):
        if getattr(message, "method", None) == "notifications/resources/updated":
            await self.updates.put(message.params.uri)

    async def watch(self):
        """Hears that a resource changed, in the way of its revision."""
        if self.session.protocol_version < "2026-07-28":
            await self.session.subscribe_resource(WATCHED)
            await self.call("fixture::test_trigger_resource_update", {})
            assert await asyncio.wait_for(self.updates.get(), 10) == WATCHED
            return
        async with self.session.listen(resource_subscriptions=[WATCHED]) as changes:
            await self.call("fixture::test_trigger_resource_update", {})
            change = await asyncio.wait_for(anext(aiter(changes)), 10)
            assert change.uri == WATCHED, change


class Bridge(Mcp):
    def __init__(self, command):
        super().__init__("legacy")
        self.command = command

    @contextlib.asynccontextmanager
    async def connect(self, _url, _key):
        import mcp
        from mcp.client.stdio import stdio_client

        command, *arguments = self.command
        # By default it passes on no more than a few variables.
        bridge = mcp.StdioServerParameters(command=command, args=arguments, env=dict(os.environ))
        async with self.over(stdio_client(bridge)):
            yield


class Mcp1(Client):
    def __init__(self):
        super().__init__()
        import mcp

        self.refusal = mcp.McpError

    @contextlib.asynccontextmanager
    async def connect(self, url, key):
        import httpx
        import mcp
        from mcp.client.streamable_http import streamablehttp_client

        headers = {"Authorization": f"Bearer {key}"}
        async with streamablehttp_client(url, headers=headers) as (read, write, session_id):
            async with mcp.ClientSession(read, write, logging_callback=self.on_log) as self.session:
                await self.session.initialize()
                headers["Mcp-Session-Id"] = session_id()
                yield
        # It said goodbye.
        async with httpx.AsyncClient(headers=headers, trust_env=False) as http:
            late = await http.post(url, json={"jsonrpc": "2.0", "id": 1, "method": "ping"})
        assert late.status_code == 404, late


class FastMcp(Client):
    def __init__(self):
        super().__init__()
        import mcp

        self.refusal = mcp.MCPError

    @contextlib.asynccontextmanager
    async def connect(self, url, key):
        import fastmcp
        from fastmcp.client.transports import StreamableHttpTransport

        transport = StreamableHttpTransport(url, headers={"Authorization": f"Bearer {key}"})
        async with fastmcp.Client(transport, log_handler=self.on_log) as self.session:
            yield

    async def tools(self):
        return [on_the_wire(tool) for tool in await self.session.list_tools()]

    async def call(self, name, arguments, steps=None):
        async def on_progress(progress, total, _message):
            steps.append((progress, total))

        handler = on_progress if steps is not None else None
        # Its own `call_tool` makes an exception of `isError`.
        return on_the_wire(await self.session.call_tool_mcp(name, arguments, progress_handler=handler))


def on_the_wire(model):
    return model.model_dump(mode="json", by_alias=True, exclude_none=True)


async def main():
    names, url, key, *bridge = sys.argv[1:]
    kinds = {"mcp1": Mcp1, "fastmcp": FastMcp, "bridge": lambda: Bridge(bridge)}
    for name in names.split(","):
        client = kinds[name]() if name in kinds else Mcp(name)
        async with client.connect(url, key):
            await check(client)


if __name__ == "__main__":
    asyncio.run(main())
