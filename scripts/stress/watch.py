"""Looks at `/metrics` every second while clients are at work: no limit is passed, and memory does not grow."""

import statistics
import threading
import time

INTERVAL_SECONDS = 1
SETTLE_SECONDS = 60

# A scrape reads counters; it never waits for a step of the model. Generous: the clients keep every core busy.
MAX_SCRAPE_SECONDS = 1.0

# Memory is compared between the second and the last quarter of the run: caches fill in the first one. Shorter runs end
# before their caches are full.
MIN_SECONDS_FOR_MEMORY = 120
MAX_GROWTH = 0.03
MIN_GROWTH_BYTES = 8 << 20

HELD = ("mistralrs_sequences_running", "mistralrs_sequences_waiting", "mistralrs_kv_cache_blocks_used")


class Watch(threading.Thread):
    """Samples until told to stop."""

    def __init__(self, server):
        super().__init__(daemon=True)
        self.server = server
        self.before = server.metrics()
        self.memory = []
        self.scrapes = []
        self.stopped = threading.Event()

    def run(self):
        while not self.stopped.wait(INTERVAL_SECONDS):
            started = time.monotonic()
            try:
                metrics = self.server.metrics()
            except OSError as error:
                self.server.report.fault(f"/metrics: {type(error).__name__}: {error}")
                continue
            self.scrapes.append(time.monotonic() - started)
            self.memory.append(metrics["process_resident_memory_bytes"])
            self.check_limits(metrics)

    def check_limits(self, metrics):
        used, total = metrics["mistralrs_kv_cache_blocks_used"], metrics["mistralrs_kv_cache_blocks_total"]
        running, capacity = metrics["mistralrs_sequences_running"], metrics["mistralrs_sequences_capacity"]
        if used > total or running > capacity:
            self.server.report.fault(f"{used} of {total} blocks, {running} of {capacity} sequences")
        if running == 0 and metrics["mistralrs_sequences_waiting"] == 0 and used > 0:
            self.server.report.fault(f"{used} blocks are held and nobody runs")

    def finish(self):
        """Stops, then waits for the server to let go of everything, and judges what was seen."""
        self.stopped.set()
        self.join()
        after = self.settle()
        for name in HELD:
            if after[name]:
                self.server.report.fault(f"{SETTLE_SECONDS} s after the last client left: {name} is {after[name]:g}")
        leaked_files = after["process_open_fds"] - self.before["process_open_fds"]
        if leaked_files > 8:
            self.server.report.fault(f"{leaked_files:g} more files are open than before")
        self.judge_memory()
        self.judge_scrapes()

    def settle(self):
        deadline = time.monotonic() + SETTLE_SECONDS
        while True:
            metrics = self.server.metrics()
            if not any(metrics[name] for name in HELD) or time.monotonic() > deadline:
                return metrics
            time.sleep(0.1)

    def judge_memory(self):
        if not self.memory:
            return
        quarter = len(self.memory) // 4
        note = f"resident memory: {mib(self.memory[0])} at the start, {mib(max(self.memory))} at most"
        if len(self.memory) * INTERVAL_SECONDS < MIN_SECONDS_FOR_MEMORY:
            self.server.report.note(f"{note}; too short a run to tell growth")
            return
        early, late = (statistics.median(part) for part in (self.memory[quarter : 2 * quarter], self.memory[-quarter:]))
        self.server.report.note(f"{note}; median of the second quarter {mib(early)}, of the last {mib(late)}")
        if late - early > max(MIN_GROWTH_BYTES, MAX_GROWTH * early):
            self.server.report.fault(f"resident memory grew from {mib(early)} to {mib(late)}")

    def judge_scrapes(self):
        if not self.scrapes:
            return
        times = sorted(self.scrapes)
        half, worst = times[len(times) // 2], times[-1]
        self.server.report.note(f"scrapes of /metrics: median {half * 1000:.1f} ms, slowest {worst * 1000:.0f} ms")
        if half > MAX_SCRAPE_SECONDS:
            self.server.report.fault(f"a scrape takes {half:.2f} s")


def mib(num_bytes):
    return f"{num_bytes / (1 << 20):.0f} MiB"
