"""Runs are killed at any moment and resumed: is anything lost, and does the end differ from that of a run left alone?

    python benchmarks/torture.py [--kills 200] [--crowd 50] [--stops 20] [--only CASE] [--seed 0] [--out FILE]

Kills: a run is started, killed by SIGKILL, resumed, killed again, ..., and at last resumed to its end. Half of the
kills come at a random moment, the others at a file operation that was chosen by chance: making, writing, syncing,
renaming or removing something in checkpoints/, samples/, run.json, the event file, the log or the folder itself;
before it, after it, or when half of the bytes are written. After each kill every file must be readable. In the end
all metrics but time/ and system/, all samples, the weights, the optimizer and run.json must equal, bit for bit, those
of a run of the same seed that nobody touched.

Crowd: so many runs of one name and seed start at once, each in an interpreter of its own; half of them are killed at
random moments, and all of those resumed at once. All must end alike.

Stops: from SIGTERM at a random moment until the run's folder is free; it must say stopped and hold a checkpoint that
loads. The same run is then resumed and stopped again.
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
    """The lines of the table of kills, each with whether nothing was lost."""
    yield (
        "| runs | killed | of these at work on " + " | ".join(["file", "lost", "unreadable", "different"]) + " |",
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
            print(f"{case.name}: {len(outcome.kills)} kills, {len(outcome.problems)} complaints", file=sys.stderr)
            for complaint in one.problems:
                print(f"  {complaint}", file=sys.stderr)
        total.add(outcome)
        yield _row(f"{outcome.runs} x {case.name}", outcome), not outcome.problems
    yield _row(f"{total.runs} in all", total), not total.problems


def _row(name: str, outcome: Outcome) -> str:
    at_work = Counter(outcome.kills)
    told = ", ".join(f"{kind} {at_work[kind]}" for kind in KINDS)
    figures = [len(outcome.lost), len(outcome.unreadable), len(outcome.different)]
    return f"| {name} | {len(outcome.kills)} | {told} | {' | '.join(map(str, figures))} |"


def concurrent_rows(size: int, seed: int, folder: Path) -> Iterator[tuple[str, bool]]:
    """The lines about a crowd, each with whether it tells of nothing bad."""
    found = run_many(size, seed, folder)
    for complaint in found.complaints:
        print(f"  {complaint}", file=sys.stderr)
    states = ", ".join(f"{count} {state}" for state, count in sorted(found.states.items()))
    yield (
        f"{size} cartpole runs of {STEPS:,} steps started at once: {found.killed} killed; shown as {states}; "
        f"{found.resumed} resumed to their end; {len(found.complaints)} complaints; {found.seconds:.0f} s in all.",
        not found.complaints,
    )


def stop_rows(count: int, seed: int, folder: Path) -> Iterator[tuple[str, bool]]:
    """The lines of the table of stops, each with whether it tells of nothing bad."""
    yield "| run | stops | median, s | longest, s | at most, s | not stopped, or without a checkpoint |", True
    yield "|---|---|---|---|---|---|", True
    for number, case in enumerate(STOP_CASES):
        seconds, complaints = stop_repeatedly(case, count, seed, folder / f"stops-{number}")
        for complaint in complaints:
            print(f"  {complaint}", file=sys.stderr)
        figures = f"{count} | {statistics.median(seconds):.2f} | {max(seconds):.2f} | {case.limit_s:g}"
        good = not complaints and max(seconds) < case.limit_s
        yield f"| {case.name} | {figures} | {len(complaints)} |", good


def sections(options: argparse.Namespace, cases: Sequence[Case], folder: Path) -> Iterator[tuple[str, bool]]:
    """The lines of the report, each with whether it tells of nothing bad."""
    if options.kills:
        yield "\n## Kills\n", True
        yield from kill_rows(cases, options.kills, options.seed, options.processes, folder)
    if options.crowd:
        yield "\n## Crowd\n", True
        yield from concurrent_rows(options.crowd, options.seed, folder / "crowd")
    if options.stops:
        yield "\n## Stops\n", True
        yield from stop_rows(options.stops, options.seed, folder)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=200, help="how often to kill (default: 200)")
    parser.add_argument("--crowd", type=int, default=50, help="how many runs to start at once (default: 50)")
    parser.add_argument("--stops", type=int, default=20, help="how often to stop each kind of run (default: 20)")
    parser.add_argument("--only", default="", help="kill only runs whose name has this in it")
    parser.add_argument("--seed", type=int, default=0, help="of everything that is drawn by chance (default: 0)")
    parser.add_argument("--processes", type=int, default=2, help="runs at a time that are killed (default: 2)")
    parser.add_argument("--keep", type=Path, help="work in this folder, where what went wrong stays")
    parser.add_argument("--out", type=Path, help="write the report here too")
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
    told = (__doc__ or "").split("\n", 4)[4]
    return (
        f"# Reliability\n\n{told}\nCommand: `python benchmarks/torture.py {' '.join(sys.argv[1:])}`; "
        f"{date.today()}; {machine}, {packages}; load average {os.getloadavg()[2]:.1f}.\n"
    )


if __name__ == "__main__":
    sys.exit(main())
