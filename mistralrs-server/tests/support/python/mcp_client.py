"""Drives a running MCP endpoint with the unmodified mcp package.

Usage: mcp_client.py URL MODE SCENARIO [KEY]

MODE is the package's own: `legacy` (initialize handshake), `auto` (probe, then what the server speaks) or a
protocol version such as `2026-07-28`. A scenario is one function below; it fails by raising.
"""

import asyncio
import json
import sys

import httpx2
import mcp
from mcp.client.streamable_http import streamable_http_client


async def native_tools_are_listed_with_schemas(client):
    tools = {tool.name: tool for tool in await list_all(client)}
    for name in ("generate", "chat", "embed", "tokenize", "list_models"):
        schema = tools[name].input_schema
        assert schema["type"] == "object" and tools[name].description, (name, schema)
    assert "prompt" in tools["generate"].input_schema["required"], tools["generate"].input_schema
    # A client that was told the revision does not ask who answers.
    assert client.server_info is None or client.server_info.name, client.server_info


async def native_tools_answer(client):
    models = await call(client, "list_models", {})
    assert "SmolLM2" in models or "smollm2" in models.lower(), models
    text = await call(client, "generate", {"prompt": "1, 2, 3, 4, 5, 6,", "temperature": 0, "max_tokens": 8})
    assert "7" in text, text
    messages = [{"role": "user", "content": "What is the capital of France? Answer in one short sentence."}]
    reply = await call(client, "chat", {"messages": messages, "temperature": 0, "max_tokens": 24})
    assert reply == "The capital of France is Paris.", reply
    tokens = await client.call_tool("tokenize", {"text": "Hello world"})
    assert not tokens.is_error and tokens.content, tokens
    vectors = await client.call_tool("embed", {"input": ["Hello world", "Goodbye"], "dimensions": 8})
    assert not vectors.is_error, vectors
    structured = json.loads(vectors.content[0].text)
    assert [len(vector) for vector in structured["embeddings"]] == [8, 8] and structured["dimensions"] == 8, vectors
    assert abs(sum(number**2 for number in structured["embeddings"][0]) - 1) < 1e-5, vectors


async def generate_reports_progress(client):
    pieces = []

    async def on_progress(progress, total, message):
        pieces.append((progress, message))

    arguments = {"prompt": "1, 2, 3, 4, 5, 6,", "temperature": 0, "max_tokens": 16}
    result = await client.call_tool("generate", arguments, progress_callback=on_progress)
    assert not result.is_error, result
    numbers = [progress for progress, _ in pieces]
    assert len(pieces) > 3 and numbers == sorted(set(numbers)), pieces
    joined = "".join(message or "" for _, message in pieces)
    assert joined == result.content[0].text, (joined, result)


async def native_resources_and_prompts_are_read(client):
    resources = {resource.uri: resource for resource in (await client.list_resources()).resources}
    status = json.loads((await client.read_resource("mistralrs://status")).contents[0].text)
    assert status["stage"] == "ready" and status["models"][0]["num_kv_blocks_total"] > 0, status
    model = status["models"][0]["id"]
    uri = f"mistralrs://models/{model}"
    assert {"mistralrs://status", "mistralrs://models", uri, f"{uri}/chat-template"} <= set(resources), resources
    described = json.loads((await client.read_resource(uri)).contents[0].text)
    assert described["architecture"] == "llama" and described["max_model_len"] > 1000, described
    template = (await client.read_resource(f"{uri}/chat-template")).contents[0].text
    assert "<|im_start|>" in template, template
    templates = [template.uri_template for template in (await client.list_resource_templates()).resource_templates]
    assert "mistralrs://models/{id}" in templates, templates
    reference = mcp.types.ResourceTemplateReference(type="ref/resource", uri="mistralrs://models/{id}")
    completed = await client.complete(reference, {"name": "id", "value": model[:3].lower()})
    assert completed.completion.values == [model], completed
    prompt = await client.get_prompt("render_chat", {"message": "Hi", "system": "Be brief."})
    text = prompt.messages[0].content.text
    start, end = "<|im_start|>", "<|im_end|>"
    assert text == f"{start}system\nBe brief.{end}\n{start}user\nHi{end}\n{start}assistant\n", text


async def mistakes_are_refused_with_a_code(client):
    await expect_error(-32602, "no_such_tool", client.call_tool("no_such_tool", {}))
    await expect_error(-32602, "prompt", client.call_tool("generate", {"prompt": 7}))
    await expect_error(-32602, "prompt", client.call_tool("generate", {}))


async def filesystem_file_is_read(client):
    names = [tool.name for tool in await list_all(client)]
    assert "filesystem::read_file" in names, names
    directory = (await call(client, "filesystem::list_allowed_directories", {})).splitlines()[-1].strip()
    text = await call(client, "filesystem::read_file", {"path": f"{directory}/greeting.txt"})
    assert text == "hello from the filesystem", text


async def a_long_call_reports_progress(client):
    async def on_progress(progress, total, message):
        print(f"progress {progress} of {total}")

    arguments = {"duration": 25, "steps": 250}
    await client.call_tool("everything::trigger-long-running-operation", arguments, progress_callback=on_progress)


async def expect_error(code, fragment, call):
    try:
        result = await call
    except mcp.MCPError as error:
        assert error.code == code and fragment in error.message, error
    else:
        raise AssertionError(f"answered: {result}")


async def list_all(client):
    tools, cursor = [], None
    while True:
        page = await client.list_tools(cursor=cursor)
        tools += page.tools
        cursor = page.next_cursor
        if cursor is None:
            return tools


async def call(client, name, arguments):
    result = await client.call_tool(name, arguments)
    assert not result.is_error, result
    return result.content[0].text


async def main():
    url, mode, scenario, *key = sys.argv[1:]
    headers = {"Authorization": f"Bearer {key[0]}"} if key else {}
    async with httpx2.AsyncClient(headers=headers, timeout=180) as http:
        transport = streamable_http_client(url, http_client=http)
        async with mcp.Client(transport, mode=mode, read_timeout_seconds=180) as client:
            print(f"protocol {client.protocol_version}")
            await globals()[scenario](client)
    print(f"{scenario}: ok")


if __name__ == "__main__":
    asyncio.run(main())
