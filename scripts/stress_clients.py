"""Many clients against one running server: some read to the end, some leave, some send nonsense.

Exits with 1 if a stream ends without a terminal event, a status is not the one that was earned, or if, when all have gone,
the server still runs or holds anything. Needs nothing but Python. Called by scripts/stress_test.sh.
"""

import argparse
import collections
import http.client
import json
import random
import socket
import sys
import threading
import time

WORDS = "the river was cold and old people say that it sings when nobody is there to hear".split()
SETTLE_SECONDS = 30
REQUEST_TIMEOUT_SECONDS = 300


class Report:
    """What all clients saw; their threads write, the main thread reads at the end."""

    def __init__(self):
        self.lock = threading.Lock()
        self.counts = collections.Counter()
        self.first_token_seconds = []
        self.faults = []

    def count(self, kind):
        with self.lock:
            self.counts[kind] += 1

    def first_token(self, seconds):
        with self.lock:
            self.first_token_seconds.append(seconds)

    def fault(self, text):
        with self.lock:
            self.faults.append(text)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=1234)
    parser.add_argument("--duration", type=float, default=30)
    parser.add_argument("--concurrency", type=int, default=16)
    options = parser.parse_args()
    report = Report()
    end = time.monotonic() + options.duration
    threads = [
        threading.Thread(target=client, args=(options.port, end, random.Random(seed), report))
        for seed in range(options.concurrency)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    check_nothing_is_held(options.port, report)
    finish(report, options)


def client(port, end, dice, report):
    kinds = [read_a_stream, leave_a_stream, leave_while_waiting, read_a_whole_answer, send_nonsense, ask_too_much]
    while time.monotonic() < end:
        kind = dice.choice(kinds)
        try:
            kind(port, dice, report)
        except (OSError, http.client.HTTPException, ValueError) as error:
            report.fault(f"{kind.__name__}: {type(error).__name__}: {error}")
            time.sleep(0.1)
        report.count(kind.__name__)


def read_a_stream(port, dice, report):
    started = time.monotonic()
    with answer(port, completion(dice, stream=True)) as response:
        if is_refused(response, report):
            return
        lines = []
        for line in response:
            if line.startswith(b"data: ") and not lines:
                report.first_token(time.monotonic() - started)
            lines.append(line.strip())
    events = [line for line in lines if line]
    if not events or events[-1] != b"data: [DONE]":
        report.fault(f"a stream ended with {events[-1:]}")


def leave_a_stream(port, dice, report):
    with answer(port, completion(dice, stream=True, max_tokens=400)) as response:
        if not is_refused(response, report):
            for _ in range(dice.randrange(6)):
                response.readline()


def leave_while_waiting(port, dice, _report):
    body = json.dumps(completion(dice, max_tokens=400)).encode()
    with socket.create_connection(("127.0.0.1", port), timeout=REQUEST_TIMEOUT_SECONDS) as connection:
        head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)
        time.sleep(dice.random())


def read_a_whole_answer(port, dice, report):
    with answer(port, completion(dice)) as response:
        if not is_refused(response, report):
            reply = json.load(response)
            if not reply["usage"]["completion_tokens"]:
                report.fault(f"an answer without tokens: {reply}")


def send_nonsense(port, dice, report):
    body = dice.choice([b"{", b"[]", b"null", b'{"model": "nobody", "prompt": "x"}', b"\xff\xfe"])
    with answer(port, body) as response:
        if response.status not in (400, 404):
            report.fault(f"{body!r} was answered with {response.status}")


def ask_too_much(port, dice, report):
    with answer(port, completion(dice, max_tokens=10_000_000)) as response:
        if response.status not in (400, 503):
            report.fault(f"ten million tokens were answered with {response.status}")


def completion(dice, **more):
    prompt = " ".join(dice.choices(WORDS, k=dice.randrange(1, 200)))
    sampling = dice.choice([{"temperature": 0}, {"temperature": 0.9, "seed": dice.randrange(1000)}])
    return {"model": "default", "prompt": prompt, "max_tokens": dice.randrange(1, 40), **sampling, **more}


class answer:
    """POSTs to /v1/completions; the response is open inside the `with`, and its connection is closed after it."""

    def __init__(self, port, body):
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=REQUEST_TIMEOUT_SECONDS)
        self.body = body if isinstance(body, bytes) else json.dumps(body).encode()

    def __enter__(self):
        self.connection.request("POST", "/v1/completions", self.body, {"Content-Type": "application/json"})
        return self.connection.getresponse()

    def __exit__(self, *_exception):
        self.connection.close()


def is_refused(response, report):
    """Whether the queue was full, which is an answer; anything but that and 200 is a fault."""
    if response.status == 503 and response.headers.get("Retry-After"):
        report.count("refused with Retry-After")
        return True
    if response.status != 200:
        report.fault(f"status {response.status}: {response.read(200)!r}")
        return True
    return False


def check_nothing_is_held(port, report):
    names = ("mistralrs_sequences_running", "mistralrs_sequences_waiting", "mistralrs_kv_cache_blocks_used")
    deadline = time.monotonic() + SETTLE_SECONDS
    while True:
        held = {name: value for name, value in gauges(port).items() if name in names and value}
        if not held:
            break
        if time.monotonic() > deadline:
            report.fault(f"{SETTLE_SECONDS} s after the last client left: {held}")
            break
        time.sleep(0.1)
    with answer(port, {"model": "default", "prompt": "1, 2,", "max_tokens": 4, "temperature": 0}) as response:
        if response.status != 200:
            report.fault(f"after all that a plain request is answered with {response.status}")


def gauges(port):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=REQUEST_TIMEOUT_SECONDS)
    connection.request("GET", "/metrics")
    lines = connection.getresponse().read().decode().splitlines()
    connection.close()
    samples = [line.rsplit(" ", 1) for line in lines if line and not line.startswith("#")]
    return {name.split("{")[0]: float(value) for name, value in samples}


def finish(report, options):
    print(f"{options.concurrency} clients, {options.duration:g} s")
    for kind, count in sorted(report.counts.items()):
        print(f"  {kind.replace('_', ' ')}: {count}")
    times = sorted(report.first_token_seconds)
    if times:
        half, most = times[len(times) // 2], times[len(times) * 95 // 100]
        print(f"  time to first token: p50 {half:.3f} s, p95 {most:.3f} s over {len(times)} streams")
    for text, count in collections.Counter(report.faults).most_common(20):
        print(f"  FAULT ({count} times): {text}")
    sys.exit(1 if report.faults else 0)


if __name__ == "__main__":
    main()
