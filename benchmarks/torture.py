"""Kill and resume runs at random moments, and check that nothing is lost and that the results do not change.

    python benchmarks/torture.py [--kills 200] [--crowd 50] [--stops 20] [--only CASE] [--seed 0] [--out FILE]

Kills: a run is started, killed with SIGKILL, resumed, killed again and so on, and finally resumed to its end. Half of
the kills happen at a random time. The other half happen at a random file operation (create, write, sync, rename or
remove) in checkpoints/, samples/, run.json, the event file, the log or the run folder: before the operation, after it,
or after half of the bytes are written. After each kill, every file must be readable. At the end, all metrics outside
time/ and system/, all samples, the weights, the optimizer state and the results in run.json must be bit-for-bit equal
to those of an uninterrupted run with the same seed.

Concurrent runs: many runs with the same name and seed are started at the same time, each in a new interpreter. Half of
them are killed at random times, and all killed runs are resumed at the same time. All runs must have equal results.

Stops: the benchmark measures the time from SIGTERM at a random moment until the run's folder is unlocked. The run must
have the state stopped and, after its first iteration, a checkpoint that can be loaded. The same run is then resumed and
stopped again.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path

from kill_resume.commands import KINDS, import_for
from kill_resume.kills import CASES, Case, Outcome, kill_runs
from kill_resume.many_runs import STEPS, run_many
from kill_resume.stops import STOP_CASES, stop_repeatedly


def kill_rows(cases: Sequence[Case], count: int, seed: int, processes: int, folder: Path) -> Iterator[tuple[str, bool]]:
    """Yield the rows of the table of kills, each with True if there was no problem."""
    yield (
        "| runs | kills | kills at operations on | lost runs | unreadable files | different results |",
        True,
    )
    yield "|---|---|---|---|---|---|", True
    shares = sum(case.share for case in cases)
    total = Outcome()
    for number, case in enumerate(cases):
        outcome = Outcome()
        for one in kill_runs(
            case, -(-count * case.share // shares), seed + 10_000 * number, processes, folder / f"case-{number}"
        ):
            outcome.add(one)
            print(f"{case.name}: {len(outcome.kills)} kills, {len(outcome.problems)} problems", file=sys.stderr)
            for problem in one.problems:
                print(f"  {problem}", file=sys.stderr)
        total.add(outcome)
        yield _row(f"{outcome.runs} x {case.name}", outcome), not outcome.problems
    yield _row(f"{total.runs} in total", total), not total.problems


def _row(name: str, outcome: Outcome) -> str:
    counts = Counter(outcome.kills)
    by_kind = ", ".join(f"{kind} {counts[kind]}" for kind in KINDS)
    figures = [len(outcome.lost), len(outcome.unreadable), len(outcome.different)]
    return f"| {name} | {len(outcome.kills)} | {by_kind} | {' | '.join(map(str, figures))} |"


def concurrent_rows(size: int, seed: int, folder: Path) -> Iterator[tuple[str, bool]]:
    """Yield a summary of the concurrent runs, with True if there was no problem."""
    found = run_many(size, seed, folder)
    for problem in found.problems:
        print(f"  {problem}", file=sys.stderr)
    states = ", ".join(f"{count} {state}" for state, count in sorted(found.states.items()))
    yield (
        f"{size} cartpole runs of {STEPS:,} steps were started at the same time. {found.killed} of them were killed. "
        f"The states shown after the kills were {states}. {found.resumed} runs were resumed to their end. "
        f"{len(found.problems)} problems were found. The test took {found.seconds:.0f} s.",
        not found.problems,
    )


def stop_rows(count: int, seed: int, folder: Path) -> Iterator[tuple[str, bool]]:
    """Yield the rows of the table of stops, each with True if there was no problem."""
    yield "| run | stops | median (s) | longest (s) | limit (s) | problems |", True
    yield "|---|---|---|---|---|---|", True
    for number, case in enumerate(STOP_CASES):
        seconds, problems = stop_repeatedly(case, count, seed, folder / f"stops-{number}")
        for problem in problems:
            print(f"  {problem}", file=sys.stderr)
        figures = f"{count} | {statistics.median(seconds):.2f} | {max(seconds):.2f} | {case.limit_s:g}"
        good = not problems and max(seconds) < case.limit_s
        yield f"| {case.name} | {figures} | {len(problems)} |", good


def sections(options: argparse.Namespace, cases: Sequence[Case], folder: Path) -> Iterator[tuple[str, bool]]:
    """Yield the lines of the report, each with True if there was no problem."""
    if options.kills:
        yield "\n## Kills\n", True
        yield from kill_rows(cases, options.kills, options.seed, options.processes, folder)
    if options.crowd:
        yield "\n## Concurrent runs\n", True
        yield from concurrent_rows(options.crowd, options.seed, folder / "crowd")
    if options.stops:
        yield "\n## Stops\n", True
        yield from stop_rows(options.stops, options.seed, folder)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=200, help="number of kills (default: 200)")
    parser.add_argument(
        "--crowd", type=int, default=50, help="number of runs that start at the same time (default: 50)"
    )
    parser.add_argument("--stops", type=int, default=20, help="number of stops per kind of run (default: 20)")
    parser.add_argument("--only", default="", help="kill only the cases whose name contains this text")
    parser.add_argument("--seed", type=int, default=0, help="random seed (default: 0)")
    parser.add_argument(
        "--processes", type=int, default=2, help="number of runs that are killed at the same time (default: 2)"
    )
    parser.add_argument("--keep", type=Path, help="work in this folder, and keep the run folders with problems")
    parser.add_argument("--out", type=Path, help="also write the report to this file")
    options = parser.parse_args()
    cases = [case for case in CASES if options.only in case.name]
    import_for(
        ["gym"] if not options.stops and all("arithmetic" not in case.name for case in cases) else ["gym", "llm"]
    )
    lines, good = [], True
    with tempfile.TemporaryDirectory() as folder:
        for line, fine in sections(options, cases, options.keep or Path(folder)):
            print(line, flush=True)
            lines.append(line)
            good &= fine
    if options.out:
        options.out.write_text(report_head() + "\n".join(lines) + "\n", encoding="utf-8")
    return 0 if good else 1


def report_head() -> str:
    packages = ", ".join(f"{package} {version(package)}" for package in ("torch", "gymnasium", "transformers", "numpy"))
    machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    text = (__doc__ or "").split("\n", 4)[4]
    return (
        f"# Reliability\n\n{text}\nCommand: `python benchmarks/torture.py {' '.join(sys.argv[1:])}`; "
        f"{date.today()}; {machine}, {packages}; load average {os.getloadavg()[2]:.1f}.\n"
    )


if __name__ == "__main__":
    sys.exit(main())
