"""python3 -m unittest discover scripts/tests"""

import contextlib
import io
import json
import sys
import tempfile
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import compare_benchmarks  # noqa: E402  (found by the path above)


class CompareBenchmarks(unittest.TestCase):
    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.directory = Path(directory.name)

    def write_run(self, name, medians, half_width=0.01, generation="new"):
        """A directory as Criterion writes it; half_width is relative to the median."""
        run = self.directory / name
        for benchmark, median in medians.items():
            place = run / benchmark.replace("/", "_") / generation
            place.mkdir(parents=True)
            (place / "benchmark.json").write_text(json.dumps({"full_id": benchmark}))
            interval = {"lower_bound": median * (1 - half_width), "upper_bound": median * (1 + half_width)}
            estimates = {"median": {"point_estimate": median, "confidence_interval": interval}}
            (place / "estimates.json").write_text(json.dumps(estimates))
        return str(run)

    def run_main(self, *arguments):
        """Exit status, standard output, standard error."""
        output, errors = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
            try:
                status = compare_benchmarks.main([str(argument) for argument in arguments])
            except SystemExit as exit_of_argparse:
                status = exit_of_argparse.code
        return status, output.getvalue(), errors.getvalue()

    def test_marks_only_changes_beyond_the_noise(self):
        old = self.write_run("old", {"same": 1500.0, "slow": 100.0, "fast": 2e6})
        new = self.write_run("new", {"same": 1510.0, "slow": 120.0, "fast": 1e6})
        status, output, _ = self.run_main(old, new)
        self.assertEqual(status, 0)
        self.assertEqual(
            output.splitlines(),
            [
                "benchmark     old      new  new/old",
                "fast         2 ms     1 ms    0.500  faster",
                "same       1.5 µs  1.51 µs    1.007",
                "slow       100 ns   120 ns    1.200  slower",
            ],
        )

    def test_fails_when_one_is_slower_by_more_than_allowed(self):
        old = self.write_run("old", {"a": 100.0, "b": 100.0})
        new = self.write_run("new", {"a": 104.0, "b": 112.0})
        for percent, expected in ((3, 1), (10, 1), (12.5, 0)):
            status, output, _ = self.run_main(old, new, "--fail-above", percent)
            self.assertEqual(status, expected, output)
        self.assertIn("slower by more than 10 %: b\n", self.run_main(old, new, "--fail-above", 10)[1])

    def test_does_not_fail_for_a_change_within_the_noise(self):
        old = self.write_run("old", {"a": 100.0}, half_width=0.2)
        new = self.write_run("new", {"a": 115.0}, half_width=0.2)
        self.assertEqual(self.run_main(old, new, "--fail-above", 5)[0], 0)

    def test_compares_saved_runs_as_it_does_directories(self):
        old = self.write_run("old", {"a/1": 100.0})
        new = self.write_run("new", {"a/1": 200.0})
        saved = self.directory / "old.json"
        self.assertEqual(self.run_main("--save", saved, old), (0, "", ""))
        self.assertEqual(self.run_main(saved, new), self.run_main(old, new))

    def test_prefers_the_latest_run_of_a_directory(self):
        old = self.write_run("old", {"a": 100.0})
        new = self.write_run("new", {"a": 300.0}, generation="base")
        self.assertIn("3.000", self.run_main(old, new)[1])
        self.write_run("new", {"a": 200.0})
        self.assertIn("2.000", self.run_main(old, new)[1])

    def test_names_what_only_one_run_has(self):
        old = self.write_run("old", {"a": 100.0, "gone": 1.0})
        new = self.write_run("new", {"a": 100.0, "added": 1.0})
        _, output, _ = self.run_main(old, new)
        self.assertIn("only in OLD: gone", output)
        self.assertIn("only in NEW: added", output)

    def test_says_what_is_wrong_with_its_input(self):
        run = self.write_run("run", {"a": 100.0})
        other = self.write_run("other", {"b": 100.0})
        empty = self.directory / "empty"
        empty.mkdir()
        broken = self.directory / "broken.json"
        broken.write_text("{")
        foreign = self.directory / "foreign.json"
        foreign.write_text("{}")
        negative = self.write_run("negative", {"a": -1.0})
        for arguments, expected in (
            ((run, self.directory / "missing"), "no such file or directory"),
            ((run, empty), "no benchmark results in there; run `cargo bench` first"),
            ((run, broken), "not JSON"),
            ((run, foreign), "`format` is missing"),
            ((run, negative), "a time that is not a positive number"),
            ((run, other), "no benchmark in common"),
            ((run,), "give two runs"),
            ((run, run, "--save", empty), "--save takes one run"),
            ((run, "--save", empty), "Is a directory"),
            ((run, run, "--fail-above", "-1"), "a percentage of 0 or more"),
        ):
            status, _, errors = self.run_main(*arguments)
            self.assertEqual(status, 2, arguments)
            self.assertIn(expected, errors)
            self.assertNotIn("Traceback", errors)


if __name__ == "__main__":
    unittest.main()
