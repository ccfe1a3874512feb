"""Drives a running server with the unmodified openai package.

Usage: openai_client.py BASE_URL SCENARIO [KEY]

A scenario is one function below; it fails by raising. What it prints is shown when the test fails.
"""

import array
import asyncio
import json
import sys
import urllib.request

import openai

CAPITAL = [{"role": "user", "content": "What is the capital of France? Answer in one short sentence."}]
COUNTING = "1, 2, 3, 4, 5, 6,"
# What llama.cpp gives for the same file, greedily.
CAPITAL_ANSWER = "The capital of France is Paris."
COUNTING_ANSWER = " 7, 8, 9, 10, 11, 12, 13, 14, 15"


def chat_answers_a_question(client):
    reply = client.chat.completions.create(model=model_of(client), messages=CAPITAL, temperature=0, max_tokens=32)
    choice = reply.choices[0]
    assert choice.message.content == CAPITAL_ANSWER and choice.finish_reason == "stop", choice
    assert choice.message.role == "assistant" and choice.index == 0
    assert reply.object == "chat.completion" and reply.id and reply.created > 0
    usage = reply.usage
    assert usage.prompt_tokens > 10 and 0 < usage.completion_tokens <= 32, usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens, usage


def stream_gives_the_same_text(client):
    request = dict(model=model_of(client), messages=CAPITAL, temperature=0, max_tokens=32)
    whole = client.chat.completions.create(**request)
    chunks = list(client.chat.completions.create(**request, stream=True, stream_options={"include_usage": True}))
    assert all(chunk.object == "chat.completion.chunk" and chunk.id == chunks[0].id for chunk in chunks)
    assert chunks[-1].choices == [] and chunks[-1].usage == whole.usage, (chunks[-1], whole.usage)
    choices = [chunk.choices[0] for chunk in chunks if chunk.choices]
    assert choices[0].delta.role == "assistant", choices[0]
    text = "".join(choice.delta.content or "" for choice in choices)
    assert text == whole.choices[0].message.content, (text, whole)
    reasons = [choice.finish_reason for choice in choices if choice.finish_reason]
    assert reasons == [whole.choices[0].finish_reason], reasons
    assert len(choices) > 3, "the text came in one piece"


def stream_without_options_has_no_usage(client):
    request = dict(model=model_of(client), messages=CAPITAL, temperature=0, max_tokens=4, stream=True)
    chunks = list(client.chat.completions.create(**request))
    assert all(chunk.usage is None and chunk.choices for chunk in chunks), chunks


def completions_continue_a_text(client):
    model = model_of(client)
    request = dict(model=model, prompt=COUNTING, temperature=0, max_tokens=32)
    reply = client.completions.create(**request)
    assert reply.object == "text_completion"
    assert reply.choices[0].text == COUNTING_ANSWER, reply
    assert reply.usage.completion_tokens == 32 and reply.choices[0].finish_reason == "length", reply
    streamed = "".join(c.choices[0].text for c in client.completions.create(**request, stream=True) if c.choices)
    assert streamed == reply.choices[0].text, (streamed, reply)
    echoed = client.completions.create(**request, echo=True)
    assert echoed.choices[0].text == COUNTING + reply.choices[0].text, echoed


def several_prompts_give_several_choices(client):
    model = model_of(client)
    prompts = [COUNTING, "The sky is"]
    together = client.completions.create(model=model, prompt=prompts, temperature=0, max_tokens=6)
    assert [choice.index for choice in together.choices] == [0, 1], together
    for prompt, choice in zip(prompts, together.choices):
        alone = client.completions.create(model=model, prompt=prompt, temperature=0, max_tokens=6)
        assert alone.choices[0].text == choice.text, (alone, choice)


def several_choices_differ_and_keep_their_index(client):
    request = dict(model=model_of(client), messages=CAPITAL, temperature=1.5, max_tokens=24, n=3, seed=7)
    reply = client.chat.completions.create(**request)
    texts = [choice.message.content for choice in reply.choices]
    assert [choice.index for choice in reply.choices] == [0, 1, 2], reply
    assert len(set(texts)) > 1, texts
    again = client.chat.completions.create(**request)
    assert [choice.message.content for choice in again.choices] == texts, "the seed did not reproduce all choices"
    streamed = {0: "", 1: "", 2: ""}
    for chunk in client.chat.completions.create(**request, stream=True):
        for choice in chunk.choices:
            streamed[choice.index] += choice.delta.content or ""
    assert list(streamed.values()) == texts, (streamed, texts)


def seeds_reproduce_and_differ(client):
    def ask(seed):
        request = dict(model=model_of(client), prompt="Once upon a time", temperature=1.0, max_tokens=24, seed=seed)
        return client.completions.create(**request).choices[0].text

    first = ask(1)
    assert ask(1) == first, "the same seed gave another text"
    assert any(ask(seed) != first for seed in (2, 3, 4)), "four seeds gave one text"


def logprobs_describe_the_text(client):
    model = model_of(client)
    request = dict(model=model, messages=CAPITAL, temperature=0, max_tokens=8, logprobs=True, top_logprobs=3)
    reply = client.chat.completions.create(**request)
    content = reply.choices[0].logprobs.content
    assert len(content) in (reply.usage.completion_tokens, reply.usage.completion_tokens - 1), (content, reply.usage)
    assert bytes(b for token in content for b in token.bytes).decode() == reply.choices[0].message.content, content
    for token in content:
        assert len(token.top_logprobs) == 3 and token.logprob <= 0, token
        likeliest = token.top_logprobs[0]
        assert likeliest.logprob == max(top.logprob for top in token.top_logprobs), token
        assert likeliest.token == token.token, ("greedy picks the likeliest", token)
    streamed = []
    for chunk in client.chat.completions.create(**request, stream=True):
        for choice in chunk.choices:
            streamed += choice.logprobs.content if choice.logprobs and choice.logprobs.content else []
    assert [token.token for token in streamed] == [token.token for token in content], streamed
    plain = client.completions.create(model=model, prompt=COUNTING, temperature=0, max_tokens=4, logprobs=2)
    logprobs = plain.choices[0].logprobs
    assert "".join(logprobs.tokens) == plain.choices[0].text, plain
    assert len(logprobs.token_logprobs) == len(logprobs.top_logprobs) == len(logprobs.text_offset) == 4, plain
    assert all(len(top) >= 2 for top in logprobs.top_logprobs), plain


def stop_strings_end_the_text_before_them(client):
    model = model_of(client)
    request = dict(model=model, prompt=COUNTING, temperature=0, max_tokens=40)
    free = client.completions.create(**request).choices[0].text
    stop = free[len(free) // 3 : len(free) // 3 + 4]
    reply = client.completions.create(**request, stop=["never in there", stop]).choices[0]
    assert reply.finish_reason == "stop" and reply.text == free[: free.index(stop)], (free, stop, reply)
    streamed = "".join(c.choices[0].text for c in client.completions.create(**request, stop=stop, stream=True))
    assert streamed == reply.text, (streamed, reply.text)


def logit_bias_forbids_a_token(client):
    model = model_of(client)
    request = dict(model=model, prompt=COUNTING, temperature=0, max_tokens=6)
    free = client.completions.create(**request).choices[0].text
    ids = tokenize(client, free)
    biased = client.completions.create(**request, logit_bias={str(token): -100 for token in ids}).choices[0].text
    assert biased and biased != free, (free, biased)
    assert not any(character in biased for character in free.strip() if character.isdigit()), (free, biased)


TEXTS = ["The cat sat on the mat.", "Quarterly revenue grew by nine percent.", "one", "The cat sat on the mat."]


def embeddings_are_the_same_in_both_encodings_and_in_any_company(client):
    model = model_of(client)
    raw = client.embeddings.with_raw_response.create(model=model, input=TEXTS)
    assert isinstance(json.loads(raw.content)["data"][0]["embedding"], str), "the package asks for base64"
    packed = raw.parse()
    assert packed.object == "list" and [item.index for item in packed.data] == [0, 1, 2, 3], packed
    assert packed.usage.prompt_tokens == packed.usage.total_tokens == sum(len(tokenize(client, t)) for t in TEXTS)
    plain = client.embeddings.create(model=model, input=TEXTS, encoding_format="float")
    assert [as_f32(item) for item in plain.data] == [as_f32(item) for item in packed.data]
    vectors = [item.embedding for item in packed.data]
    assert vectors[0] == vectors[3] != vectors[1] and all(abs(dot(v, v) - 1) < 1e-5 for v in vectors), vectors
    for text, vector in zip(TEXTS, vectors):
        alone = client.embeddings.create(model=model, input=text).data
        assert len(alone) == 1 and alone[0].embedding == vector, text


def embeddings_take_tokens_and_can_be_cut(client):
    model = model_of(client)
    whole = client.embeddings.create(model=model, input=TEXTS[:2]).data
    tokens = [tokenize(client, text) for text in TEXTS[:2]]
    assert client.embeddings.create(model=model, input=tokens).data == whole
    assert client.embeddings.create(model=model, input=tokens[0]).data == whole[:1]
    short = client.embeddings.create(model=model, input=TEXTS[0], dimensions=64, user="u").data[0].embedding
    beginning = whole[0].embedding[:64]
    assert len(short) == 64 and abs(dot(short, short) - 1) < 1e-5
    assert abs(dot(short, beginning) - dot(beginning, beginning) ** 0.5) < 1e-5, "it points where the whole one does"


def errors_of_embeddings_arrive_as_the_right_exceptions(client):
    model = model_of(client)
    create = client.embeddings.create
    expect(openai.NotFoundError, lambda: create(model="gpt-unknown", input="a"), "gpt-unknown")
    expect(openai.BadRequestError, lambda: create(model=model, input=[]), "`input` has 0 texts")
    expect(openai.BadRequestError, lambda: create(model=model, input=["a"] * 2049), "2049 texts; expected 1 to 2048")
    expect(openai.BadRequestError, lambda: create(model=model, input=["a", ""]), "input[1]")
    long = expect(openai.BadRequestError, lambda: create(model=model, input=["a", "word " * 20_000]), "input[1]")
    assert long.code == "context_length_exceeded" and long.param == "input", (long.code, long.param)
    expect(openai.BadRequestError, lambda: create(model=model, input=[[1], [1_000_000]]), "token id 1000000")
    wide = expect(openai.BadRequestError, lambda: create(model=model, input="a", dimensions=100_000), "expected 1 to 576")
    assert wide.param == "dimensions", wide.param
    expect(openai.BadRequestError, lambda: create(model=model, input="a", encoding_format="int8"), "encoding_format")


def models_are_listed_and_retrieved(client):
    models = client.models.list().data
    assert len(models) >= 1 and models[0].object == "model" and models[0].id, models
    assert client.models.retrieve(models[0].id).id == models[0].id
    expect(openai.NotFoundError, lambda: client.models.retrieve("nobody"), "nobody")


def errors_arrive_as_the_right_exceptions(client):
    model = model_of(client)
    chat = client.chat.completions.create
    unknown = expect(openai.NotFoundError, lambda: chat(model="gpt-unknown", messages=CAPITAL), "gpt-unknown")
    assert unknown.code == "model_not_found", unknown.code
    expect(openai.BadRequestError, lambda: chat(model=model, messages=CAPITAL, temperature=-1), "temperature")
    expect(openai.BadRequestError, lambda: chat(model=model, messages=CAPITAL, top_p=2), "top_p")
    expect(openai.BadRequestError, lambda: chat(model=model, messages=CAPITAL, max_tokens=100_000), "")
    expect(openai.BadRequestError, lambda: chat(model=model, messages=[]), "messages")
    expect(openai.BadRequestError, lambda: chat(model=model, messages=CAPITAL, n=0), "n")
    assert "Paris" in chat(model=model, messages=CAPITAL, temperature=0, max_tokens=16).choices[0].message.content


def wrong_key_is_an_authentication_error(client):
    stranger = client.with_options(api_key="sk-wrong")
    expect(openai.AuthenticationError, lambda: stranger.models.list(), "")
    assert client.models.list().data


def full_queue_is_retried_until_served(client):
    """The server has one sequence and one place to wait; ten clients come at once and all are served."""
    model = model_of(client)
    patient = openai.AsyncOpenAI(base_url=client.base_url, api_key=client.api_key, max_retries=60)

    async def ask(number):
        request = dict(model=model, prompt=f"{number}, ", temperature=0, max_tokens=4)
        return (await patient.completions.create(**request)).usage.completion_tokens

    async def all_at_once():
        return await asyncio.gather(*(ask(number) for number in range(10)))

    counts = asyncio.run(all_at_once())
    assert len(counts) == 10 and all(counts), counts


def tokenize(client, text):
    url = str(client.base_url).removesuffix("v1/") + "tokenize"
    body = json.dumps({"model": model_of(client), "prompt": text, "add_special_tokens": False}).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    return json.load(opener.open(request, timeout=30))["tokens"]


def dot(one, other):
    return sum(a * b for a, b in zip(one, other))


def as_f32(item):
    """JSON has as many digits as tell one f32 from the next."""
    return array.array("f", item.embedding)


def model_of(client):
    return client.models.list().data[0].id


def expect(kind, call, fragment):
    try:
        call()
    except kind as error:
        assert fragment.lower() in error.message.lower(), (fragment, error.message)
        print(f"{kind.__name__}: {error.message}")
        return error
    raise AssertionError(f"no {kind.__name__}")


def main():
    base_url, scenario, *key = sys.argv[1:]
    client = openai.OpenAI(base_url=base_url, api_key=key[0] if key else "unused", max_retries=0, timeout=180)
    globals()[scenario](client)
    print(f"{scenario}: ok")


if __name__ == "__main__":
    main()
