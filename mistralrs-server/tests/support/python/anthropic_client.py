"""Drives /v1/messages of a running server with the unmodified anthropic package.

Usage: anthropic_client.py BASE_URL SCENARIO [KEY]

A scenario is one function below; it fails by raising. What it prints is shown when the test fails.
"""

import asyncio
import sys

import anthropic

from openai_client import CAPITAL, CAPITAL_ANSWER, expect

# The package has dropped `temperature`, which the newest hosted models do not take; local ones do.
GREEDY = dict(model="default", messages=CAPITAL, max_tokens=32, extra_body={"temperature": 0})


def a_message_answers_a_question(client):
    message = client.messages.create(**GREEDY, metadata={"user_id": "ann"})
    assert message.content[0].text == CAPITAL_ANSWER and len(message.content) == 1, message
    assert message.role == "assistant" and message.type == "message" and message.id.startswith("msg_"), message
    assert message.stop_reason == "end_turn" and message.stop_sequence is None, message
    counted = client.messages.count_tokens(model="default", messages=CAPITAL).input_tokens
    assert prompt_tokens(message.usage) == counted > 10, (message.usage, counted)
    assert 0 < message.usage.output_tokens <= 32, message.usage
    assert message._request_id, "there is no request-id header"


def a_message_ends_at_its_limit_or_at_a_stop_sequence(client):
    short = client.messages.create(**{**GREEDY, "max_tokens": 3})
    assert short.stop_reason == "max_tokens" and CAPITAL_ANSWER.startswith(short.content[0].text), short
    stopped = client.messages.create(**GREEDY, stop_sequences=["nowhere", " of France"])
    assert stopped.stop_reason == "stop_sequence" and stopped.stop_sequence == " of France", stopped
    assert stopped.content[0].text == "The capital", stopped


def a_message_streams_the_same_text(client):
    with client.messages.stream(**GREEDY) as stream:
        texts = list(stream.text_stream)
        message = stream.get_final_message()
    assert len(texts) > 3 and "".join(texts) == CAPITAL_ANSWER == message.content[0].text, (texts, message)
    assert message.stop_reason == "end_turn", message
    counted = client.messages.count_tokens(model="default", messages=CAPITAL).input_tokens
    assert prompt_tokens(message.usage) == counted and message.usage.output_tokens > 3, message.usage
    events = [event.type for event in client.messages.create(**GREEDY, stream=True)]
    deltas = events.count("content_block_delta")
    block = ["content_block_start"] + ["content_block_delta"] * deltas + ["content_block_stop"]
    assert events == ["message_start"] + block + ["message_delta", "message_stop"], events


def the_system_and_earlier_turns_are_heard(client):
    turns = CAPITAL + [{"role": "assistant", "content": CAPITAL_ANSWER}, {"role": "user", "content": "And of Italy?"}]
    blocks = [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}]
    count = client.messages.count_tokens
    alone = count(model="default", messages=CAPITAL).input_tokens
    together = count(model="default", messages=turns, system=blocks).input_tokens
    assert together > alone and count(model="default", messages=turns, system="Be brief.").input_tokens == together
    message = client.messages.create(**{**GREEDY, "messages": turns, "system": blocks})
    assert prompt_tokens(message.usage) == together and message.content[0].text, message


def errors_of_messages_arrive_as_the_right_exceptions(client):
    create = client.messages.create
    unknown = expect(anthropic.NotFoundError, lambda: create(**{**GREEDY, "model": "claude"}), "claude")
    assert unknown.body["type"] == "error" and unknown.body["error"]["type"] == "not_found_error", unknown.body
    assert unknown.body["request_id"] == unknown.request_id, unknown.body
    wrong = expect(anthropic.BadRequestError, lambda: create(**{**GREEDY, "extra_body": {"temperature": -1}}), "temperature")
    assert wrong.body["error"]["type"] == "invalid_request_error", wrong.body
    expect(anthropic.BadRequestError, lambda: create(**{**GREEDY, "messages": []}), "messages")
    expect(anthropic.BadRequestError, lambda: create(**{**GREEDY, "max_tokens": 100_000}), "100000")
    tool = {"name": "get_weather", "input_schema": {"type": "object"}}
    expect(anthropic.BadRequestError, lambda: create(**GREEDY, tools=[tool]), "tools")
    thinking = {"type": "enabled", "budget_tokens": 1024}
    expect(anthropic.BadRequestError, lambda: create(**GREEDY, thinking=thinking), "thinking")
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AA=="}}
    messages = [{"role": "user", "content": [image]}]
    expect(anthropic.BadRequestError, lambda: create(**{**GREEDY, "messages": messages}), "messages[0].content[0]")
    assert create(**GREEDY).content[0].text == CAPITAL_ANSWER


def both_headers_carry_the_key(client):
    assert client.messages.create(**{**GREEDY, "max_tokens": 2}).content
    bearer = anthropic.Anthropic(base_url=client.base_url, auth_token=client.api_key, max_retries=0)
    assert bearer.messages.create(**{**GREEDY, "max_tokens": 2}).content
    stranger = client.with_options(api_key="sk-wrong")
    wrong = expect(anthropic.AuthenticationError, lambda: stranger.messages.create(**GREEDY), "key")
    assert wrong.body["error"]["type"] == "authentication_error", wrong.body


def a_full_queue_is_waited_out(client):
    """The server has one sequence and one place to wait; ten clients come at once and all are served."""
    patient = anthropic.AsyncAnthropic(base_url=client.base_url, api_key="unused", max_retries=60)

    async def all_at_once():
        request = {**GREEDY, "max_tokens": 4}
        return await asyncio.gather(*(patient.messages.create(**request) for _ in range(10)))

    messages = asyncio.run(all_at_once())
    assert all(message.usage.output_tokens for message in messages), messages


def prompt_tokens(usage):
    return usage.input_tokens + usage.cache_read_input_tokens + usage.cache_creation_input_tokens


def main():
    base_url, scenario, *key = sys.argv[1:]
    # The package adds /v1 itself.
    base_url = base_url.removesuffix("/v1")
    client = anthropic.Anthropic(base_url=base_url, api_key=key[0] if key else "unused", max_retries=0, timeout=180)
    globals()[scenario](client)
    print(f"{scenario}: ok")


if __name__ == "__main__":
    main()
