"""What clients do: some read to the end, some leave, some are slow, some send nonsense. Each function is one request."""

import json
import socket
import time

from server import events

WORDS = "the river was cold and old people say that it sings when nobody is there to hear".split()

# More tokens than any model here has context for, and more bytes than the server takes.
TOO_MANY_TOKENS = 10_000_000
TOO_MANY_BYTES = 64 << 20


def read_a_completion(server, dice):
    with server.post("/v1/completions", completion(dice)) as response:
        if server.accepted(response):
            expect_tokens(server, json.load(response)["usage"]["completion_tokens"])


def read_several_choices(server, dice):
    num_choices = dice.randrange(2, 5)
    with server.post("/v1/completions", completion(dice, n=num_choices, max_tokens=8)) as response:
        if server.accepted(response) and len(json.load(response)["choices"]) != num_choices:
            server.report.fault(f"{num_choices} choices were asked for")


def stream_a_completion(server, dice):
    started = time.monotonic()
    with server.post("/v1/completions", completion(dice, stream=True)) as response:
        if server.accepted(response):
            last = None
            for data in events(response):
                if last is None:
                    server.report.first_token(time.monotonic() - started)
                last = data
            expect_end(server, last, "[DONE]")


def stream_a_chat(server, dice):
    body = chat(dice, stream=True, stream_options={"include_usage": True})
    with server.post("/v1/chat/completions", body) as response:
        if server.accepted(response):
            received = list(events(response))
            expect_end(server, received[-1] if received else None, "[DONE]")
            reasons = [choice["finish_reason"] for data in received[:-1] for choice in json.loads(data)["choices"]]
            if not reasons or reasons[-1] not in ("stop", "length"):
                server.report.fault(f"a chat ended with finish_reason {reasons[-1:]}")


def stream_a_message(server, dice):
    with server.post("/v1/messages", chat(dice, stream=True)) as response:
        if server.accepted(response):
            kinds = [json.loads(data)["type"] for data in events(response)]
            expect_end(server, kinds[-1] if kinds else None, "message_stop")


def stream_a_response(server, dice):
    body = {"model": "default", "input": prompt(dice), "max_output_tokens": 24, "stream": True, "store": dice.random() < 0.5}
    with server.post("/v1/responses", body) as response:
        if server.accepted(response):
            kinds = [json.loads(data)["type"] for data in events(response) if data != "[DONE]"]
            if not kinds or kinds[-1] not in ("response.completed", "response.incomplete"):
                server.report.fault(f"a response ended with {kinds[-1:]}")


def read_slowly(server, dice):
    with server.post("/v1/completions", completion(dice, stream=True, max_tokens=60)) as response:
        if server.accepted(response):
            last = None
            for data in events(response):
                time.sleep(dice.random() / 10)
                last = data
            expect_end(server, last, "[DONE]")


def leave_a_stream(server, dice):
    with server.post("/v1/chat/completions", chat(dice, stream=True, max_tokens=400)) as response:
        if server.accepted(response):
            for _ in range(dice.randrange(6)):
                response.readline()


def leave_while_waiting(server, dice):
    body = json.dumps(completion(dice, max_tokens=400)).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(head.encode() + body)
        time.sleep(dice.random())


def embed_texts(server, dice):
    texts = [prompt(dice) for _ in range(dice.randrange(1, 6))]
    with server.post("/v1/embeddings", {"model": "default", "input": texts}) as response:
        if server.accepted(response) and len(json.load(response)["data"]) != len(texts):
            server.report.fault(f"{len(texts)} embeddings were asked for")


def ask_for_too_many_tokens(server, dice):
    with server.post("/v1/completions", completion(dice, max_tokens=TOO_MANY_TOKENS)) as response:
        server.expect(response, 400)


def send_too_long_a_prompt(server, dice):
    text = " ".join(dice.choices(WORDS, k=200_000))
    with server.post("/v1/completions", completion(dice, prompt=text)) as response:
        server.expect(response, 400)


def send_too_large_a_body(server, _dice):
    body = b'{"prompt": "' + b"x" * TOO_MANY_BYTES + b'"}'
    try:
        with server.post("/v1/completions", body) as response:
            server.expect(response, 413)
    except (BrokenPipeError, ConnectionResetError):
        # A server may hang up on what it will not read.
        server.report.count("hung up on too large a body")


def send_nonsense(server, dice):
    body = dice.choice([b"{", b"[]", b"null", b"\xff\xfe", b'{"model": "nobody", "prompt": "x"}', b'{"prompt": 7}'])
    path = dice.choice(["/v1/completions", "/v1/chat/completions", "/v1/responses", "/v1/messages", "/v1/nothing"])
    with server.post(path, body) as response:
        server.expect(response, 400, 404, 422)


# How often each is done: mostly plain work; the rude and the wrong are frequent enough to meet every state of the engine.
KINDS = {
    read_a_completion: 4,
    read_several_choices: 1,
    stream_a_completion: 6,
    stream_a_chat: 4,
    stream_a_message: 2,
    stream_a_response: 2,
    read_slowly: 1,
    leave_a_stream: 3,
    leave_while_waiting: 3,
    embed_texts: 2,
    ask_for_too_many_tokens: 1,
    send_too_long_a_prompt: 0.2,
    send_too_large_a_body: 0.1,
    send_nonsense: 1,
}


def completion(dice, **more):
    return {"model": "default", "prompt": prompt(dice), "max_tokens": dice.randrange(1, 40), **sampling(dice), **more}


def chat(dice, **more):
    messages = [{"role": "user", "content": prompt(dice)}]
    return {"model": "default", "messages": messages, "max_tokens": dice.randrange(1, 40), **sampling(dice), **more}


def sampling(dice):
    return dice.choice([{"temperature": 0}, {"temperature": 0.9, "top_p": 0.9}])


def prompt(dice):
    """Mostly short; one in ten is long enough to be prefilled over several steps."""
    return " ".join(dice.choices(WORDS, k=dice.randrange(1, 1000 if dice.random() < 0.1 else 150)))


def expect_tokens(server, num_tokens):
    if not num_tokens:
        server.report.fault("an answer without tokens")


def expect_end(server, last, terminal):
    if last != terminal:
        server.report.fault(f"a stream ended with {last!r} instead of {terminal}")
