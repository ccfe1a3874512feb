#!/usr/bin/env python3
"""Measures this server and its peers on the same files, in turns, with the same instrument: `mistralrs-server bench`.

Each round starts one server after the other, waits until it is ready, puts each load on it, and stops it. One stream sends
one request after another; more streams send one request each, all at once. Figures are medians over rounds, ratios are those of
medians, against llama.cpp its server's or llama-bench's figure, whichever is better. Ours guesses no tokens: random prompts lead to
answers that repeat themselves, and what prompt lookup makes of them says nothing about the engine. Called by
scripts/bench_peers.sh. Needs nothing but Python.
"""

import argparse
import contextlib
import json
import mmap
import os
import pathlib
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

READY_SECONDS = 300
STOP_SECONDS = 30
# Of the load with one stream: enough for a mean that one hiccup does not move far.
SINGLE_REQUESTS = 4

OURS = "ours"
LLAMA_SERVER = "llama.cpp"
LLAMA_BENCH = "llama-bench"
MISTRALRS = "mistral.rs"
READY_PATHS = {OURS: "/ready", LLAMA_SERVER: "/health", MISTRALRS: "/health"}

# What ours divided by theirs shall be. The first line counts whose model is a part of the file's name and whose figure the
# beginning of the figure's: (model, figure, bound against llama.cpp, bound against mistral.rs).
TARGETS = [
    ("SmolLM2-135M-Instruct.Q4_1", "prefill", 4.0, 1.5),
    ("Llama-1B", "prefill", 1.5, 1.5),
    ("qwen2.5-coder-0.5b", "prefill", 1.5, 1.5),
    # What prefill says already; for peers that do not say how many tokens a prompt had.
    ("", "ttft_1_", None, None),
    ("", "decode_", 2.0, 2.0),
    ("Llama-1B", "decode", 1.4, 1.4),
    ("SmolLM2", "decode", 1.2, 1.5),
    ("", "ttft_", 0.6, 0.6),
    ("", "memory", 1.1, 1.0),
    ("", "load", 1.0, 1.0),
]


def main():
    options = parse_options()
    results = {}
    for model in options.models:
        rounds = {name: [] for name in runners(options)}
        read_once(model)
        for round_number in range(options.rounds):
            for name in rotated(list(rounds), round_number):
                rounds[name].append(measure(name, model, options))
                print(f"{model.name}, round {round_number + 1} of {options.rounds}: {name} done", file=sys.stderr)
        medians = {name: median_of(figures) for name, figures in rounds.items()}
        results[model.name] = {"medians": medians, "rounds": rounds}
        print(f"\n{title(model, options)}\n\n{table(model.name, medians)}", flush=True)
        # After each model: a night's figures shall not hang on its last hour.
        if options.output:
            options.output.write_text(json.dumps(results, indent=2) + "\n")


def read_once(model):
    """Brings the file into the page cache: whoever comes first shall not pay for the disk."""
    with model.open("rb") as file:
        while file.read(1 << 24):
            pass


def provide_memory(num_bytes):
    """Makes a virtual machine's host hand out memory that it took back when the last server left: a second for each GiB and thread
    on some, which says nothing about whoever starts next."""
    num_bytes = min(num_bytes, available_bytes() // 2)
    with mmap.mmap(-1, num_bytes) as memory:
        # A system without huge pages refuses.
        with contextlib.suppress(OSError):
            memory.madvise(mmap.MADV_HUGEPAGE)
        for page in range(0, num_bytes, mmap.PAGESIZE):
            memory[page] = 1


def available_bytes():
    lines = pathlib.Path("/proc/meminfo").read_text().splitlines()
    kibibytes = next(line.split()[1] for line in lines if line.startswith("MemAvailable:"))
    return int(kibibytes) * 1024


def parse_options():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ours", type=pathlib.Path, required=True, help="our binary")
    parser.add_argument("--llama", type=pathlib.Path, required=True, help="the folder of llama.cpp's binaries")
    parser.add_argument("--mistralrs", type=pathlib.Path, help="mistral.rs's binary; without it that is not measured")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--concurrency", default=[1, 8, 32], type=counts, help="streams at once, one load each")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompt-tokens", type=int, default=512)
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--load-seconds", type=int, default=1200, help="a peer that takes longer for a load has no figures for it")
    parser.add_argument("--output", type=pathlib.Path, help="all figures as JSON")
    parser.add_argument("models", nargs="+", type=pathlib.Path)
    return parser.parse_args()


def counts(text):
    return [int(count) for count in text.split(",")]


def runners(options):
    """Who is measured, in the order of the first round."""
    names = [OURS, LLAMA_SERVER]
    # It has one stream only.
    if 1 in options.concurrency:
        names.append(LLAMA_BENCH)
    if options.mistralrs:
        names.append(MISTRALRS)
    return names


def rotated(names, round_number):
    """Another one first in each round, so that nobody always runs on a machine that somebody else has warmed."""
    first = round_number % len(names)
    return names[first:] + names[:first]


# --- One measurement --------------------------------------------------------------------------------------------


def measure(name, model, options):
    """Figure name → value; None where a peer did not answer."""
    if name == LLAMA_BENCH:
        return llama_bench(model, options)
    port = free_port()
    provide_memory(2 * model.stat().st_size)
    with tempfile.TemporaryFile() as log:
        started = time.monotonic()
        # mistral.rs has no flag for its threads.
        environment = os.environ | {"RAYON_NUM_THREADS": str(options.threads)} if name == MISTRALRS else None
        arguments = strings(command(name, model, port, options))
        process = subprocess.Popen(arguments, stdout=log, stderr=log, env=environment)
        try:
            wait_until_ready(port, process, log, READY_PATHS[name])
            figures = {"load": time.monotonic() - started}
            is_stuck = False
            for streams in options.concurrency:
                run, is_stuck = (None, True) if is_stuck else bench(name, port, streams, options)
                figures |= load_figures(name, run, streams)
            figures["memory"] = resident_mib(process.pid)
            return figures
        finally:
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()


def command(name, model, port, options):
    max_streams = max(options.concurrency)
    if name == OURS:
        return [
            options.ours, "--port", port, "--threads", options.threads, "--max-seqs", max_streams, "--log", "warn",
            "--max-draft-tokens", "0",
            "gguf", "-m", model.parent, "-f", model.name,
        ]  # fmt: skip
    if name == MISTRALRS:
        return [
            options.mistralrs, "serve", "--port", port, "--host", "127.0.0.1", "--cpu", "--max-seqs", max_streams,
            "--format", "gguf", "-m", model.parent, "-f", model.name,
        ]  # fmt: skip
    # A word of the prompts may be more than one token.
    context = options.prompt_tokens * 2 + options.max_tokens
    return [
        options.llama / "llama-server", "-m", model, "--port", port, "--threads", options.threads,
        "--parallel", max_streams, "--ctx-size", context * max_streams, "--flash-attn", "on", "--no-webui",
    ]  # fmt: skip


def bench(name, port, streams, options):
    """The report of one load, None if a peer answered nothing; and whether it was still busy when its time was over."""
    # Each load has prompts of its own: nobody's cache knows them from the load before.
    arguments = [
        options.ours, "--seed", streams, "bench", "--url", f"http://127.0.0.1:{port}", "--concurrency", streams, "--format", "json",
        "--requests", SINGLE_REQUESTS if streams == 1 else streams, "--warmup", 1,
        "--prompt-tokens", options.prompt_tokens, "--max-tokens", options.max_tokens,
    ]  # fmt: skip
    try:
        done = subprocess.run(strings(arguments), capture_output=True, text=True, timeout=options.load_seconds)
    except subprocess.TimeoutExpired:
        late = f"{name}, {streams} streams: not done after {options.load_seconds} s"
        if name == OURS:
            raise SystemExit(late) from None
        print(late, file=sys.stderr)
        return None, True
    if done.returncode == 0:
        return json.loads(done.stdout)["runs"][0], False
    if name == OURS:
        raise SystemExit(f"`bench` failed at {streams} streams:\n{done.stderr[-2000:]}")
    print(f"{name}, {streams} streams: {done.stderr[-300:].strip()}", file=sys.stderr)
    return None, False


def load_figures(name, run, streams):
    """What of a load's report goes into the table."""
    is_answered = run is not None and not (run["requests"]["failed"] or run["requests"]["refused"])
    if not is_answered and name == OURS:
        raise SystemExit(f"requests failed at {streams} streams: {run['requests']} {run['errors']}")
    if not is_answered:
        # A mean over the requests that a peer did answer would flatter it.
        if run is not None:
            print(f"{name}, {streams} streams: {run['requests']} {run['errors']}", file=sys.stderr)
        run = None
    # The same names whether there are figures or not: rounds must be comparable.
    paths = {
        "prefill": ("prefill_tokens_per_second", "per_request"),
        "decode": ("decode_tokens_per_second", "per_stream"),
        "ttft_1_p50": ("ttft_ms", "p50"),
    }  # fmt: skip
    if streams > 1:
        paths = {
            f"decode_{streams}": ("decode_tokens_per_second", "together"),
            f"total_{streams}": ("decode_tokens_per_second", "total"),
            f"ttft_{streams}_p50": ("ttft_ms", "p50"),
            f"ttft_{streams}_p95": ("ttft_ms", "p95"),
            f"itl_{streams}_p99": ("inter_token_ms", "p99"),
        }
    return {figure: run and (run[group] or {}).get(key) for figure, (group, key) in paths.items()}


def llama_bench(model, options):
    """llama.cpp without a server: prefill of one sequence, and decode after it, flash attention on or off, whichever is faster."""
    runs = []
    for work in (["-p", options.prompt_tokens, "-n", 0], ["-p", 0, "-n", options.max_tokens, "-d", options.prompt_tokens]):
        arguments = [
            options.llama / "llama-bench", "-m", model, "-t", options.threads, *work, "-fa", "on,off", "-r", 1, "-o", "json",
        ]  # fmt: skip
        done = subprocess.run(strings(arguments), capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"llama-bench failed:\n{done.stderr[-2000:]}")
        runs += json.loads(done.stdout)
    return fastest(runs)


def fastest(runs):
    speeds = {"prefill": [], "decode": []}
    for run in runs:
        speeds["prefill" if run["n_gen"] == 0 else "decode"].append(run["avg_ts"])
    return {figure: max(values) for figure, values in speeds.items()}


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


# --- The table --------------------------------------------------------------------------------------------------


def median_of(rounds):
    """Of each figure, over the rounds that have it."""
    values = {figure: [figures[figure] for figures in rounds if figures[figure] is not None] for figure in rounds[0]}
    return {figure: statistics.median(found) if found else None for figure, found in values.items()}


def is_more_better(figure):
    return figure.startswith(("prefill", "decode", "total"))


def better(figure, values):
    """The best of what is there."""
    values = [value for value in values if value is not None]
    if not values:
        return None
    return max(values) if is_more_better(figure) else min(values)


def target(model_name, figure, peer):
    for model, beginning, against_llama, against_mistralrs in TARGETS:
        if model in model_name and figure.startswith(beginning):
            return against_llama if peer == LLAMA_SERVER else against_mistralrs
    return None


def verdict(model_name, figure, peer, ratio):
    """The bound, and whether the ratio keeps it."""
    bound = target(model_name, figure, peer)
    if bound is None:
        return ""
    text = f"{'≥' if is_more_better(figure) else '≤'} {bound:g}"
    if ratio is None:
        return text
    is_met = ratio >= bound if is_more_better(figure) else ratio <= bound
    return text + (", met" if is_met else ", missed")


def label(figure):
    kind, *rest = figure.split("_")
    streams = f"{rest[0]} at once: " if rest and rest[0] != "1" else ""
    quantile = f" {rest[1]}" if len(rest) > 1 else ""
    text = {
        "prefill": "prefill, tokens/s",
        "decode": "decode, tokens/s",
        "total": "generated over the whole load, tokens/s",
        "ttft": f"first token{quantile}, ms",
        "itl": f"between tokens{quantile}, ms",
        "load": "load to ready, s",
        "memory": "resident memory after the loads, MiB",
    }
    return streams + text[kind]


def title(model, options):
    processor = platform.processor() or platform.machine()
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        processor = names[0] if names else processor
    return (
        f"{model.name}: {os.cpu_count()} cores of {processor}, {options.threads} threads, prompts of {options.prompt_tokens} tokens, "
        f"answers of {options.max_tokens}, medians of {options.rounds} rounds"
    )


def table(model_name, medians):
    ours = medians[OURS]
    peers = [name for name in medians if name not in (OURS, LLAMA_BENCH)]
    header = ["", OURS]
    for peer in peers:
        header += [f"{peer}'s server", LLAMA_BENCH] if peer == LLAMA_SERVER and LLAMA_BENCH in medians else [peer]
        header += ["ratio", "target"]
    lines = [header, ["---"] * len(header)]
    for figure, value in ours.items():
        line = [label(figure), short(value)]
        for peer in peers:
            theirs = [medians[peer].get(figure)]
            if peer == LLAMA_SERVER and LLAMA_BENCH in medians:
                theirs.append(medians[LLAMA_BENCH].get(figure))
            best = better(figure, theirs)
            ratio = value / best if value is not None and best else None
            line += [*map(short, theirs), short(ratio), verdict(model_name, figure, peer, ratio)]
        lines.append(line)
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def short(value):
    if value is None:
        return "–"
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def strings(arguments):
    return [str(argument) for argument in arguments]


if __name__ == "__main__":
    main()
