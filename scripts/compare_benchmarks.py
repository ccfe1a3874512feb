#!/usr/bin/env python3
"""Compares two runs of the benches.

    cargo bench --features prometheus-locks           # writes target/criterion
    cp -r target/criterion /tmp/old                   # or: compare_benchmarks.py --save old.json target/criterion
    ... change something, run again ...
    scripts/compare_benchmarks.py /tmp/old target/criterion --fail-above 5

OLD and NEW are directories of Criterion output or files written by --save. Compared are medians; a change counts when
the 95 % confidence intervals of the two medians do not overlap. That interval knows the noise within a run, not the
difference between a busy machine and a quiet one.

Exit status: 0, or 1 if --fail-above found a slowdown, or 2 if there was nothing to compare or an argument was wrong.
"""

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

SAVED_FORMAT = "mistralrs-benchmarks-1"


class UserError(Exception):
    """What the caller can put right; shown without a traceback."""


@dataclass(frozen=True)
class Estimate:
    """A median and its 95 % confidence interval, in nanoseconds per iteration."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Change:
    name: str
    old: Estimate
    new: Estimate

    @property
    def ratio(self) -> float:
        return self.new.median / self.old.median

    @property
    def is_beyond_noise(self) -> bool:
        return self.new.low > self.old.high or self.new.high < self.old.low

    def is_slower_by(self, percent: float) -> bool:
        return self.is_beyond_noise and self.ratio > 1 + percent / 100

    @property
    def verdict(self) -> str:
        if not self.is_beyond_noise:
            return ""
        return "slower" if self.ratio > 1 else "faster"


def read_run(path: Path) -> dict[str, Estimate]:
    """The estimates of one run by the full name of the benchmark."""
    if path.is_dir():
        run = read_criterion(path)
        hint = "run `cargo bench` first, and give its `target/criterion`"
    elif path.is_file():
        run = read_saved(path)
        hint = "it was saved from an empty run"
    else:
        raise UserError(f"{path}: no such file or directory")
    if not run:
        raise UserError(f"{path}: no benchmark results in there; {hint}")
    return run


def read_criterion(directory: Path) -> dict[str, Estimate]:
    """Criterion keeps the latest run under `new`, and the one before under `base`."""
    latest = sorted(directory.rglob("new/estimates.json"))
    files = latest or sorted(directory.rglob("base/estimates.json"))
    return dict(read_criterion_benchmark(directory, file) for file in files)


def read_criterion_benchmark(directory: Path, file: Path) -> tuple[str, Estimate]:
    description = file.with_name("benchmark.json")
    if description.is_file():
        name = field(description, read_json(description), "full_id")
    else:
        name = file.parent.parent.relative_to(directory).as_posix()
    median = field(file, read_json(file), "median")
    interval = field(file, median, "confidence_interval")
    return name, estimate(
        file,
        field(file, median, "point_estimate"),
        field(file, interval, "lower_bound"),
        field(file, interval, "upper_bound"),
    )


def read_saved(file: Path) -> dict[str, Estimate]:
    content = read_json(file)
    if field(file, content, "format") != SAVED_FORMAT:
        raise UserError(f"{file}: not a file that --save of this version wrote")
    benchmarks = field(file, content, "benchmarks")
    return {
        name: estimate(file, *(field(file, benchmarks[name], key) for key in ("median", "low", "high")))
        for name in benchmarks
    }


def save_run(run: dict[str, Estimate], file: Path) -> None:
    benchmarks = {name: asdict(run[name]) for name in sorted(run)}
    text = json.dumps({"format": SAVED_FORMAT, "unit": "ns", "benchmarks": benchmarks}, indent=1)
    try:
        file.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}") from error


def read_json(file: Path):
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{file}: not JSON ({error})") from error


def field(file: Path, content, key: str):
    if not isinstance(content, dict) or key not in content:
        raise UserError(f"{file}: `{key}` is missing; is it the output of Criterion or of --save?")
    return content[key]


def estimate(file: Path, *values) -> Estimate:
    if not all(isinstance(value, (int, float)) and value > 0 for value in values):
        raise UserError(f"{file}: a time that is not a positive number")
    return Estimate(*(float(value) for value in values))


def compare(old: dict[str, Estimate], new: dict[str, Estimate]) -> list[Change]:
    return [Change(name, old[name], new[name]) for name in sorted(old.keys() & new.keys())]


def format_time(nanoseconds: float) -> str:
    for unit, size in (("s", 1e9), ("ms", 1e6), ("µs", 1e3)):
        if nanoseconds >= size:
            return f"{nanoseconds / size:.3g} {unit}"
    return f"{nanoseconds:.3g} ns"


def format_table(changes: list[Change]) -> str:
    rows = [("benchmark", "old", "new", "new/old", "")]
    rows += [
        (change.name, format_time(change.old.median), format_time(change.new.median), f"{change.ratio:.3f}", change.verdict)
        for change in changes
    ]
    name_width, *widths = (max(len(row[column]) for row in rows) for column in range(4))
    lines = []
    for name, *numbers, verdict in rows:
        cells = [name.ljust(name_width), *(number.rjust(width) for number, width in zip(numbers, widths)), verdict]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def report(old: dict[str, Estimate], new: dict[str, Estimate], fail_above: float | None) -> int:
    """Prints the comparison and returns the exit status."""
    changes = compare(old, new)
    if not changes:
        raise UserError("the two runs have no benchmark in common")
    print(format_table(changes))
    for title, names in (("only in OLD", old.keys() - new.keys()), ("only in NEW", new.keys() - old.keys())):
        if names:
            print(f"\n{title}: {', '.join(sorted(names))}")
    if fail_above is None:
        return 0
    slower = [change for change in changes if change.is_slower_by(fail_above)]
    if slower:
        print(f"\nslower by more than {fail_above:g} %: {', '.join(change.name for change in slower)}")
    return 1 if slower else 0


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    description, _, details = __doc__.partition("\n")
    parser = argparse.ArgumentParser(
        description=description, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="OLD and NEW; one RUN with --save")
    parser.add_argument("--fail-above", type=float, metavar="PCT", help="exit 1 if one got slower by more than PCT %%")
    parser.add_argument("--save", type=Path, metavar="FILE", help="write RUN to FILE, to compare with later")
    parsed = parser.parse_args(arguments)
    num_expected = 1 if parsed.save else 2
    if len(parsed.runs) != num_expected:
        parser.error("--save takes one run" if parsed.save else "give two runs, OLD and NEW")
    if parsed.fail_above is not None and not parsed.fail_above >= 0:
        parser.error("--fail-above takes a percentage of 0 or more")
    return parsed


def main(arguments: list[str] | None = None) -> int:
    parsed = parse_arguments(arguments)
    try:
        runs = [read_run(path) for path in parsed.runs]
        if parsed.save:
            save_run(runs[0], parsed.save)
            return 0
        return report(runs[0], runs[1], parsed.fail_above)
    except UserError as error:
        print(f"compare_benchmarks: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
