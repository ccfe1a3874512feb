"""Drives /v1/responses of a running server with the unmodified openai package.

Usage: responses_client.py BASE_URL SCENARIO [KEY [OTHER_KEY]]

A scenario is one function below; it fails by raising. What it prints is shown when the test fails.
"""

import asyncio
import sys
import time

import openai

from openai_client import CAPITAL, CAPITAL_ANSWER, expect, model_of

QUESTION = CAPITAL[0]["content"]


def a_response_answers_a_question(client):
    response = ask(client, QUESTION, max_output_tokens=32, metadata={"team": "test"}, user="ann")
    assert response.output_text == CAPITAL_ANSWER and response.status == "completed", response
    assert response.object == "response" and response.id.startswith("resp_") and response.error is None, response
    assert response.metadata == {"team": "test"} and response.user == "ann", response
    (message,) = response.output
    assert message.role == "assistant" and message.status == "completed" and message.id.startswith("msg_"), message
    chat = client.chat.completions.create(model=model_of(client), messages=CAPITAL, temperature=0, max_tokens=32)
    usage = response.usage
    assert usage.input_tokens == chat.usage.prompt_tokens and usage.output_tokens == chat.usage.completion_tokens, usage
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens, usage
    assert usage.output_tokens_details.reasoning_tokens == 0 <= usage.input_tokens_details.cached_tokens, usage


def a_response_streams_its_stages_and_the_same_text(client):
    events = list(ask(client, QUESTION, max_output_tokens=32, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events))), events
    names = [event.type.removeprefix("response.") for event in events]
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert len(deltas) > 3 and "".join(deltas) == CAPITAL_ANSWER, deltas
    before = ["created", "in_progress", "output_item.added", "content_part.added"]
    after = ["output_text.done", "content_part.done", "output_item.done", "completed"]
    assert names == before + ["output_text.delta"] * len(deltas) + after, names
    assert events[-4].text == CAPITAL_ANSWER and events[-1].response.output_text == CAPITAL_ANSWER, events[-4:]
    assert client.responses.retrieve(events[-1].response.id).output_text == CAPITAL_ANSWER
    # The package's own accumulator checks that the events fit together.
    with client.responses.stream(model=model_of(client), input=QUESTION, temperature=0, max_output_tokens=4) as stream:
        final = [event for event in stream][-1].response
    assert final.status == "incomplete" and final.incomplete_details.reason == "max_output_tokens", final
    assert CAPITAL_ANSWER.startswith(final.output_text) and final.usage.output_tokens == 4, final


def a_response_is_retrieved_and_deleted(client):
    response = ask(client, QUESTION, max_output_tokens=16)
    assert client.responses.retrieve(response.id).to_dict() == response.to_dict()
    client.responses.delete(response.id)
    expect(openai.NotFoundError, lambda: client.responses.retrieve(response.id), response.id)
    expect(openai.NotFoundError, lambda: client.responses.delete(response.id), response.id)
    unstored = ask(client, QUESTION, max_output_tokens=4, store=False)
    expect(openai.NotFoundError, lambda: client.responses.retrieve(unstored.id), unstored.id)


def a_conversation_goes_on_by_the_id_of_its_last_response(client):
    first = ask(client, QUESTION, max_output_tokens=32, instructions="Answer like a geographer.")
    again = dict(max_output_tokens=24, instructions="Be brief.")
    second = ask(client, "And of Italy?", previous_response_id=first.id, **again)
    # Instructions are not carried over; everything else is.
    messages = [
        {"role": "system", "content": "Be brief."},
        CAPITAL[0],
        {"role": "assistant", "content": first.output_text},
        {"role": "user", "content": "And of Italy?"},
    ]
    chat = client.chat.completions.create(model=model_of(client), messages=messages, temperature=0, max_tokens=24)
    assert second.output_text == chat.choices[0].message.content, (second, chat)
    assert second.usage.input_tokens == chat.usage.prompt_tokens and second.previous_response_id == first.id, second
    # A response keeps what it continues: the first one may go.
    client.responses.delete(first.id)
    third = ask(client, "And of Spain?", previous_response_id=second.id, max_output_tokens=8)
    items = list(client.responses.input_items.list(third.id, order="asc", limit=2))
    texts = [item.content[0].text for item in items]
    expected = [QUESTION, first.output_text, "And of Italy?", second.output_text, "And of Spain?"]
    assert texts == expected and [item.role for item in items] == ["user", "assistant"] * 2 + ["user"], items
    gone = expect(openai.BadRequestError, lambda: ask(client, "And?", previous_response_id=first.id), first.id)
    assert gone.code == "previous_response_not_found" and gone.param == "previous_response_id", gone


def a_background_response_runs_until_it_ends_or_is_cancelled(client):
    response = ask(client, QUESTION, max_output_tokens=32, background=True)
    assert response.status == "queued" and response.background and response.output == [], response
    expect(openai.BadRequestError, lambda: ask(client, "And?", background=True, store=False), "store")
    ended = wait_until_it_ends(client, response.id)
    assert ended.status == "completed" and ended.output_text == CAPITAL_ANSWER, ended
    assert client.responses.cancel(response.id).status == "completed", "cancelling afterwards changes nothing"
    endless = ask(client, QUESTION, max_output_tokens=4000, background=True, extra_body={"ignore_eos": True})
    expect(openai.BadRequestError, lambda: ask(client, "And?", previous_response_id=endless.id), "only an answer")
    assert client.responses.cancel(endless.id).status == "cancelled"
    assert client.responses.cancel(endless.id).status == "cancelled"
    assert client.responses.retrieve(endless.id).status == "cancelled"
    deleted = ask(client, QUESTION, max_output_tokens=4000, background=True, extra_body={"ignore_eos": True})
    client.responses.delete(deleted.id)
    whole = ask(client, QUESTION, max_output_tokens=4)
    expect(openai.BadRequestError, lambda: client.responses.cancel(whole.id), "background")


def errors_of_responses_arrive_as_the_right_exceptions(client):
    create = client.responses.create
    model = model_of(client)
    tool = {"type": "function", "name": "f", "parameters": {}, "strict": False}
    image = [{"role": "user", "content": [{"type": "input_image", "image_url": "data:image/png;base64,AA"}]}]
    expect(openai.NotFoundError, lambda: create(model="gpt-unknown", input="hi"), "gpt-unknown")
    expect(openai.BadRequestError, lambda: create(model=model, input="hi", tools=[tool]), "tools")
    expect(openai.BadRequestError, lambda: create(model=model, input="hi", temperature=-1), "temperature")
    expect(openai.BadRequestError, lambda: create(model=model, input="hi", max_output_tokens=100_000), "100000")
    expect(openai.BadRequestError, lambda: create(model=model, input="hi", reasoning={"effort": "high"}), "reasoning")
    expect(openai.BadRequestError, lambda: create(model=model, input=image), "input[0].content[0]")
    expect(openai.BadRequestError, lambda: create(model=model, input=[]), "input")
    expect(openai.NotFoundError, lambda: client.responses.cancel("resp_unknown"), "resp_unknown")
    expect(openai.NotFoundError, lambda: client.responses.input_items.list("resp_unknown"), "resp_unknown")


def another_key_sees_none_of_it(client, other_key):
    stranger = client.with_options(api_key=other_key)
    response = ask(client, QUESTION, max_output_tokens=4)
    assert stranger.models.list().data, "the other key is one"
    for call in (stranger.responses.retrieve, stranger.responses.delete, stranger.responses.cancel):
        expect(openai.NotFoundError, lambda: call(response.id), response.id)
    expect(openai.NotFoundError, lambda: stranger.responses.input_items.list(response.id), response.id)
    expect(openai.BadRequestError, lambda: ask(stranger, "And?", previous_response_id=response.id), response.id)
    assert client.responses.retrieve(response.id).to_dict() == response.to_dict()


def a_full_queue_is_waited_out(client):
    """The server has one sequence and one place to wait; ten clients come at once and all are served."""
    patient = openai.AsyncOpenAI(base_url=client.base_url, api_key=client.api_key, max_retries=60)

    async def all_at_once():
        asking = (ask(patient, f"Count from {number}.", max_output_tokens=4) for number in range(10))
        return await asyncio.gather(*asking)

    responses = asyncio.run(all_at_once())
    assert all(response.usage.output_tokens for response in responses), responses


def ask(client, text, **options):
    return client.responses.create(model="default", input=text, temperature=0, **options)


def wait_until_it_ends(client, id):
    deadline = time.monotonic() + 120
    while True:
        response = client.responses.retrieve(id)
        if response.status not in ("queued", "in_progress"):
            return response
        assert time.monotonic() < deadline, response
        time.sleep(0.05)


def main():
    base_url, scenario, *keys = sys.argv[1:]
    client = openai.OpenAI(base_url=base_url, api_key=keys[0] if keys else "unused", max_retries=0, timeout=180)
    globals()[scenario](client, *keys[1:])
    print(f"{scenario}: ok")


if __name__ == "__main__":
    main()
