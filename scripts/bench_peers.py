#!/usr/bin/env python3
"""Measures this server and llama.cpp's on the same files, in turns, with the same instrument: `mistralrs-server bench`.

Each round starts one server after the other, waits until it is ready, puts each load on it, and stops it. Figures are medians
over rounds, ratios are those of medians. Ours guesses no tokens: random prompts lead to answers that repeat themselves, and what
prompt lookup makes of them says nothing about the engine. Called by scripts/bench_peers.sh. Needs nothing but Python.
"""

import argparse
import json
import os
import pathlib
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

PROMPT_TOKENS = 512
MAX_TOKENS = 128
READY_SECONDS = 120
STOP_SECONDS = 30
# Requests of one load, per stream: enough for a median, few enough for a night.
REQUESTS_PER_STREAM = 2
MIN_REQUESTS = 6


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ours", type=pathlib.Path, required=True, help="our binary")
    parser.add_argument("--llama", type=pathlib.Path, required=True, help="the folder of llama.cpp's binaries")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--concurrency", default="1,8,32", help="streams at once, one load each")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=pathlib.Path, help="all figures as JSON")
    parser.add_argument("models", nargs="+", type=pathlib.Path)
    options = parser.parse_args()
    loads = [int(streams) for streams in options.concurrency.split(",")]
    results = {}
    for model in options.models:
        figures = {"ours": [], "llama.cpp": []}
        for round_number in range(options.rounds):
            names = list(figures) if round_number % 2 == 0 else list(reversed(figures))
            for name in names:
                figures[name].append(measure(name, model, loads, options))
                print(f"{model.name}, round {round_number + 1} of {options.rounds}: {name} done", file=sys.stderr)
        results[model.name] = {name: median_of(rounds) for name, rounds in figures.items()}
        print_table(model.name, results[model.name])
    if options.output:
        options.output.write_text(json.dumps(results, indent=2) + "\n")


def measure(name, model, loads, options):
    """One server's life: figure name → value."""
    port = free_port()
    with tempfile.TemporaryFile() as log:
        started = time.monotonic()
        process = subprocess.Popen(strings(command(name, model, port, max(loads), options)), stdout=log, stderr=log)
        try:
            wait_until_ready(port, process, log, "/ready" if name == "ours" else "/health")
            figures = {"load to ready, s": time.monotonic() - started}
            for streams in loads:
                figures |= load_figures(bench(port, streams, options), streams)
            figures["resident memory after, MiB"] = resident_mib(process.pid)
            return figures
        finally:
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()


def command(name, model, port, max_streams, options):
    context = PROMPT_TOKENS * 2 + MAX_TOKENS
    if name == "ours":
        return [
            options.ours, "--port", port, "--threads", options.threads, "--max-seqs", max_streams, "--log", "warn",
            "--max-draft-tokens", "0",
            "gguf", "-m", model.parent, "-f", model.name,
        ]
    return [
        options.llama / "llama-server", "-m", model, "--port", port, "--threads", options.threads,
        "--parallel", max_streams, "--ctx-size", context * max_streams, "--flash-attn", "on", "--no-webui",
    ]  # fmt: skip


def bench(port, streams, options):
    """The report of one load."""
    # Each load has prompts of its own: nobody's cache knows them from the load before.
    arguments = [
        options.ours, "--seed", streams, "bench", "--url", f"http://127.0.0.1:{port}", "--concurrency", streams, "--format", "json",
        "--requests", max(MIN_REQUESTS, REQUESTS_PER_STREAM * streams), "--warmup", 1,
        "--prompt-tokens", PROMPT_TOKENS, "--max-tokens", MAX_TOKENS,
    ]  # fmt: skip
    done = subprocess.run(strings(arguments), capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"`bench` failed at {streams} streams:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout)["runs"][0]


def load_figures(run, streams):
    if run["requests"]["failed"] or run["requests"]["refused"]:
        raise SystemExit(f"requests failed at {streams} streams: {run['requests']} {run['errors']}")
    if streams == 1:
        return {
            "prefill, tokens/s": run["prefill_tokens_per_second"]["per_request"],
            "decode, tokens/s": run["decode_tokens_per_second"]["per_stream"],
        }
    return {
        f"{streams} streams: tokens generated, /s": run["decode_tokens_per_second"]["total"],
        f"{streams} streams: time to first token p50, ms": run["ttft_ms"]["p50"],
        f"{streams} streams: time to first token p99, ms": run["ttft_ms"]["p99"],
        f"{streams} streams: between tokens p50, ms": run["inter_token_ms"]["p50"],
        f"{streams} streams: between tokens p99, ms": run["inter_token_ms"]["p99"],
    }


def wait_until_ready(port, process, log, path):
    deadline = time.monotonic() + READY_SECONDS
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while True:
        try:
            opener.open(f"http://127.0.0.1:{port}{path}", timeout=2).close()
            return
        except (urllib.error.URLError, OSError):
            if process.poll() is not None or time.monotonic() > deadline:
                log.seek(0)
                raise SystemExit(f"the server did not become ready:\n{log.read()[-2000:].decode(errors='replace')}")
            time.sleep(0.01)


def resident_mib(pid):
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) / 1024


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def median_of(rounds):
    return {name: statistics.median(figures[name] for figures in rounds) for name in rounds[0]}


def print_table(title, figures):
    ours, theirs = figures["ours"], figures["llama.cpp"]
    print(f"\n{title} ({os.cpu_count()} cores)\n\n| | ours | llama.cpp | ours / llama.cpp |\n|---|---|---|---|")
    for name, value in ours.items():
        print(f"| {name} | {short(value)} | {short(theirs[name])} | {value / theirs[name]:.2f} |")
    sys.stdout.flush()


def short(value):
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def strings(arguments):
    return [str(argument) for argument in arguments]


if __name__ == "__main__":
    main()
