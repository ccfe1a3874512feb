"""Many clients of every kind against one running server, then the question whether it holds anything or has grown.

Exits with 1 if a stream ends without a terminal event, a status is not the one that was earned (503 with Retry-After is:
the queue has a limit), a request hangs, a limit is passed, memory grows, or the server holds anything when all have gone.
Called by scripts/stress_test.sh.
"""

import argparse
import collections
import http.client
import random
import sys
import threading
import time

from clients import KINDS
from server import Server
from watch import Watch


class Report:
    """What all clients saw; their threads write, the main thread reads at the end."""

    def __init__(self):
        self.lock = threading.Lock()
        self.counts = collections.Counter()
        self.first_token_seconds = []
        self.longest = collections.Counter()
        self.faults = []
        self.notes = []

    def count(self, kind):
        with self.lock:
            self.counts[kind] += 1

    def took(self, kind, seconds):
        with self.lock:
            self.longest[kind] = max(self.longest[kind], seconds)

    def first_token(self, seconds):
        with self.lock:
            self.first_token_seconds.append(seconds)

    def fault(self, text):
        with self.lock:
            self.faults.append(text)

    def note(self, text):
        self.notes.append(text)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=1234)
    parser.add_argument("--duration", type=float, default=30)
    parser.add_argument("--concurrency", type=int, default=16)
    options = parser.parse_args()
    report = Report()
    server = Server(options.port, report)
    watch = Watch(server)
    watch.start()
    end = time.monotonic() + options.duration
    threads = [
        threading.Thread(target=keep_asking, args=(server, end, random.Random(seed)))
        for seed in range(options.concurrency)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    watch.finish()
    ask_once_more(server)
    print_report(report, options)
    sys.exit(1 if report.faults else 0)


def keep_asking(server, end, dice):
    kinds, weights = list(KINDS), list(KINDS.values())
    while time.monotonic() < end:
        kind = dice.choices(kinds, weights)[0]
        name = kind.__name__.replace("_", " ")
        started = time.monotonic()
        try:
            kind(server, dice)
        except (OSError, http.client.HTTPException, ValueError, LookupError) as error:
            server.report.fault(f"{name}: {type(error).__name__}: {error}")
            time.sleep(0.1)
        server.report.count(name)
        server.report.took(name, time.monotonic() - started)


def ask_once_more(server):
    with server.post("/v1/completions", {"model": "default", "prompt": "1, 2,", "max_tokens": 4, "temperature": 0}) as response:
        if response.status != 200:
            server.report.fault(f"after all that a plain request is answered with {response.status}")


def print_report(report, options):
    print(f"{options.concurrency} clients, {options.duration:g} s")
    for kind, count in sorted(report.counts.items()):
        longest = f", longest {report.longest[kind]:.1f} s" if kind in report.longest else ""
        print(f"  {kind}: {count}{longest}")
    times = sorted(report.first_token_seconds)
    if times:
        half, most = times[len(times) // 2], times[len(times) * 95 // 100]
        print(f"  time to first token: p50 {half:.3f} s, p95 {most:.3f} s over {len(times)} streams")
    for text in report.notes:
        print(f"  {text}")
    for text, count in collections.Counter(report.faults).most_common(20):
        print(f"  FAULT ({count} times): {text}")


if __name__ == "__main__":
    main()
