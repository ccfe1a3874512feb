"""python3 -m unittest discover scripts/tests"""

import contextlib
import io
import subprocess
import sys
import unittest
import unittest.mock
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import bench_peers  # noqa: E402  (found by the path above)

SMOLLM2 = "SmolLM2-135M-Instruct.Q4_1.gguf"
LLAMA_1B = "Llama-1B-random.Q8_0.gguf"
QWEN = "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf"


def run(failed=0, together=40.0):
    """The report of one load, as `bench --format json` writes it."""
    return {
        "requests": {"ok": 8 - failed, "failed": failed, "refused": 0},
        "errors": ["broke off"] if failed else [],
        "ttft_ms": {"p50": 10.0, "p95": 20.0, "p99": 30.0},
        "inter_token_ms": {"p50": 1.0, "p95": 2.0, "p99": 3.0},
        "prefill_tokens_per_second": {"total": 5.0, "per_request": 500.0},
        "decode_tokens_per_second": {"total": 25.0, "per_stream": 50.0, "together": together},
    }


class Figures(unittest.TestCase):
    def test_one_stream_says_how_fast_prefill_and_decode_are(self):
        self.assertEqual(bench_peers.load_figures("ours", run(), 1), {"prefill": 500.0, "decode": 50.0, "ttft_1_p50": 10.0})

    def test_more_streams_are_measured_together(self):
        expected = {"decode_8": 40.0, "total_8": 25.0, "ttft_8_p50": 10.0, "ttft_8_p95": 20.0, "itl_8_p99": 3.0}
        self.assertEqual(bench_peers.load_figures("ours", run(), 8), expected)

    def test_a_peer_that_fails_requests_has_no_figures_and_ours_ends_the_run(self):
        with contextlib.redirect_stderr(io.StringIO()) as errors:
            figures = bench_peers.load_figures("mistral.rs", run(failed=6), 8)
        self.assertEqual(set(figures.values()), {None})
        self.assertEqual(list(figures), list(bench_peers.load_figures("mistral.rs", run(), 8)))
        self.assertIn("mistral.rs, 8 streams: {'ok': 2, 'failed': 6, 'refused': 0} ['broke off']", errors.getvalue())
        with self.assertRaises(SystemExit):
            bench_peers.load_figures("ours", run(failed=1), 8)

    def test_a_peer_that_is_never_done_has_no_figures_and_ours_ends_the_run(self):
        arguments = ["bench_peers", "--ours", "o", "--llama", "l", "--load-seconds", "7", "model.gguf"]
        late = unittest.mock.patch("subprocess.run", side_effect=subprocess.TimeoutExpired("bench", 7))
        with unittest.mock.patch("sys.argv", arguments), late, contextlib.redirect_stderr(io.StringIO()) as errors:
            options = bench_peers.parse_options()
            self.assertEqual(bench_peers.bench("mistral.rs", 1, 8, options), (None, True))
            with self.assertRaisesRegex(SystemExit, "ours, 8 streams: not done after 7 s"):
                bench_peers.bench("ours", 1, 8, options)
        self.assertEqual(errors.getvalue(), "mistral.rs, 8 streams: not done after 7 s\n")

    def test_medians_are_over_the_rounds_that_have_a_figure(self):
        rounds = [{"a": 3.0, "b": None}, {"a": 1.0, "b": None}, {"a": None, "b": None}, {"a": 2.0, "b": None}]
        self.assertEqual(bench_peers.median_of(rounds), {"a": 2.0, "b": None})

    def test_llama_bench_counts_with_what_makes_it_faster(self):
        runs = [
            {"n_prompt": 512, "n_gen": 0, "flash_attn": True, "avg_ts": 100.0},
            {"n_prompt": 0, "n_gen": 128, "flash_attn": True, "avg_ts": 9.0},
            {"n_prompt": 512, "n_gen": 0, "flash_attn": False, "avg_ts": 90.0},
            {"n_prompt": 0, "n_gen": 128, "flash_attn": False, "avg_ts": 10.0},
        ]
        self.assertEqual(bench_peers.fastest(runs), {"prefill": 100.0, "decode": 10.0})

    def test_each_round_begins_with_another_one(self):
        orders = [bench_peers.rotated(["a", "b", "c"], number) for number in range(4)]
        self.assertEqual([order[0] for order in orders], ["a", "b", "c", "a"])
        self.assertTrue(all(sorted(order) == ["a", "b", "c"] for order in orders))


class Targets(unittest.TestCase):
    def check(self, model, figure, against_llama, against_mistralrs):
        found = [bench_peers.target(model, figure, peer) for peer in ("llama.cpp", "mistral.rs")]
        self.assertEqual(found, [against_llama, against_mistralrs], f"{model} {figure}")

    def test_each_model_has_its_own(self):
        self.check(SMOLLM2, "prefill", 4.0, 1.5)
        self.check("SmolLM2-135M-Instruct.Q8_0.gguf", "prefill", None, None)
        self.check(LLAMA_1B, "prefill", 1.5, 1.5)
        self.check(QWEN, "prefill", 1.5, 1.5)
        self.check(LLAMA_1B, "decode", 1.4, 1.4)
        self.check(SMOLLM2, "decode", 1.2, 1.5)
        self.check(QWEN, "decode", None, None)

    def test_those_of_the_server_hold_for_all(self):
        self.check(QWEN, "decode_8", 2.0, 2.0)
        self.check(LLAMA_1B, "decode_32", 2.0, 2.0)
        self.check(SMOLLM2, "ttft_32_p95", 0.6, 0.6)
        self.check(SMOLLM2, "memory", 1.1, 1.0)
        self.check(SMOLLM2, "load", 1.0, 1.0)
        self.check(SMOLLM2, "total_8", None, None)

    def test_more_is_better_of_speeds_and_less_of_times(self):
        self.assertEqual(bench_peers.verdict(LLAMA_1B, "decode", "llama.cpp", 1.4), "≥ 1.4, met")
        self.assertEqual(bench_peers.verdict(LLAMA_1B, "decode", "llama.cpp", 1.39), "≥ 1.4, missed")
        self.assertEqual(bench_peers.verdict(LLAMA_1B, "ttft_8_p50", "llama.cpp", 0.6), "≤ 0.6, met")
        self.assertEqual(bench_peers.verdict(LLAMA_1B, "ttft_8_p50", "llama.cpp", 0.61), "≤ 0.6, missed")
        self.assertEqual(bench_peers.verdict(LLAMA_1B, "ttft_8_p50", "mistral.rs", None), "≤ 0.6")


class Table(unittest.TestCase):
    def test_ratios_are_against_the_better_of_llama_cpp_s_figures(self):
        medians = {
            "ours": {"load": 0.2, "prefill": 450.0, "decode": 12.0, "ttft_8_p50": 100.0},
            "llama.cpp": {"load": 0.4, "prefill": 150.0, "decode": 10.0, "ttft_8_p50": 250.0},
            "llama-bench": {"prefill": 200.0, "decode": 6.0},
            "mistral.rs": {"load": 2.0, "prefill": 300.0, "decode": None, "ttft_8_p50": None},
        }
        expected = [
            "|  | ours | llama.cpp's server | llama-bench | ratio | target | mistral.rs | ratio | target |",
            "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
            "| load to ready, s | 0.2 | 0.4 | – | 0.5 | ≤ 1, met | 2 | 0.1 | ≤ 1, met |",
            "| prefill, tokens/s | 450 | 150 | 200 | 2.25 | ≥ 1.5, met | 300 | 1.5 | ≥ 1.5, met |",
            "| decode, tokens/s | 12 | 10 | 6 | 1.2 | ≥ 1.4, missed | – | – | ≥ 1.4 |",
            "| 8 at once: first token p50, ms | 100 | 250 | – | 0.4 | ≤ 0.6, met | – | – | ≤ 0.6 |",
        ]
        self.assertEqual(bench_peers.table(LLAMA_1B, medians).splitlines(), expected)


if __name__ == "__main__":
    unittest.main()
