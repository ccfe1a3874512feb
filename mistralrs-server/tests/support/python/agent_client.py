"""Drives a running server with agents of the unmodified pydantic-ai package, over both of OpenAI's APIs.

Usage: agent_client.py BASE_URL SCENARIO

A scenario is one function below; it fails by raising. What it prints is shown when the test fails.
"""

import asyncio
import sys

from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider

from openai_client import CAPITAL, CAPITAL_ANSWER

QUESTION = CAPITAL[0]["content"]
GREEDY = {"temperature": 0, "max_tokens": 32}


def an_agent_talks_over_chat_completions(base_url):
    asyncio.run(talk(OpenAIChatModel("default", provider=provider(base_url))))


def an_agent_talks_over_responses(base_url):
    asyncio.run(talk(OpenAIResponsesModel("default", provider=provider(base_url))))


async def talk(model):
    agent = Agent(model, model_settings=GREEDY)
    first = await agent.run(QUESTION)
    assert first.output == CAPITAL_ANSWER, first
    assert first.usage.input_tokens > 10 and first.usage.output_tokens > 3, first.usage
    # The second turn has the first one before it, so its prompt is longer.
    second = await agent.run("And of Italy?", message_history=first.all_messages())
    assert second.output and second.usage.input_tokens > first.usage.input_tokens, second
    assert len(second.all_messages()) == 4, second.all_messages()
    async with agent.run_stream(QUESTION) as stream:
        texts = [text async for text in stream.stream_text(delta=True, debounce_by=None)]
    assert "".join(texts) == CAPITAL_ANSWER and len(texts) > 3, texts
    brief = Agent(model, instructions="Answer in French.", model_settings={"temperature": 0, "max_tokens": 8})
    assert (await brief.run(QUESTION)).output


def provider(base_url):
    return OpenAIProvider(base_url=base_url, api_key="unused")


def main():
    base_url, scenario = sys.argv[1:]
    globals()[scenario](base_url)
    print(f"{scenario}: ok")


if __name__ == "__main__":
    main()
