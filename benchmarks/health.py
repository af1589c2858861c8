"""Measure how close healthy runs come to the limits of the health checks, and whether faulty runs exceed them.

python benchmarks/health.py [PRESET=FIRST-LAST ...] [--runs DIR] [--out benchmarks/health.md]

The script trains presets for all their steps, even if they are solved earlier, and the runs of faulty_runs.py, all in
DIR. Existing runs are only read, so delete a run if its defect has changed. The exit code is 1 if a run has not
finished, a healthy run makes a check fire, or a check does not fire in any run.
"""

from __future__ import annotations

import argparse
import platform
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from faulty_runs import BRIEF, FAULTY_RUNS

from ppo_unified import load_preset, run
from ppo_unified.config.presets import from_file
from ppo_unified.config.schema import RunConfig
from ppo_unified.runs.event_reader import EventReader
from ppo_unified.runs.folder import Run
from ppo_unified.runs.query import flatten
from ppo_unified.training.health import CHECKS, Health
from ppo_unified.training.measures import EVALUATED

HEALTHY = (
    "cartpole=11-20",
    "lunarlander=11-12",
    "pendulum=11",
    "mountaincar-continuous=11",
    "arithmetic=11-14",
    "sentiment=11-12",
)  # the limits were not chosen on these seeds


class RunHealth(NamedTuple):
    """The results of the health checks for a run."""

    state: str  # state of the run; an unfinished run is checked up to its last iteration
    iterations: int
    nearest: Mapping[str, float]  # check -> the worst value: closest to the limit or farthest beyond it
    fired: Mapping[str, int]  # check -> the iteration at which it first fired, in this order


def history(folder: Path) -> Iterator[dict[str, float]]:
    """Yield the metrics that the checks read, iteration by iteration."""
    reader = EventReader(folder)
    reader.poll()
    read = {EVALUATED, *(tag for check in CHECKS for tag in check.reads)} & reader.series.keys()
    columns = {}
    for tag in read:
        steps, _, values = reader.series[tag].numpy()
        columns[tag] = dict(zip(steps.tolist(), values.tolist(), strict=True))
    for step in reader.series["policy/kl"].steps.tolist() if "policy/kl" in reader.series else ():
        yield {tag: values[step] for tag, values in columns.items() if step in values}


def check_run(folder: Path) -> RunHealth:
    """Apply the health checks to the event file of a run."""
    config = from_file(folder / "config.toml")
    health = Health(threshold=config.eval.threshold, watched=config.watched_scores)
    nearest, fired, number = dict[str, float](), dict[str, int](), 0
    for number, metrics in enumerate(history(folder), 1):
        health.update(number, metrics)
        for check in health.checks:
            value = health.value(check)
            if value is not None:
                worse = max if check.is_high else min
                nearest[check.name] = worse(value, nearest.get(check.name, value))
        for warning in health.active_warnings():
            fired.setdefault(warning["name"], number)
    return RunHealth(Run(folder).read_status().state, number, nearest, fired)


def train_or_read(folder: Path, config: RunConfig) -> RunHealth:
    """Train `config` in `folder`, or read the run that is there. Exit if that run has other options."""
    written = folder / "config.toml"
    if not written.exists():
        run(config, runs=folder.parent, name=folder.name)
    elif written.read_text(encoding="utf-8") != config.to_toml():
        sys.exit(f"{written} does not have the current options of the run {folder.name}; delete the folder")
    return check_run(folder)


def train_healthy(folder: Path, presets: Sequence[str]) -> dict[str, RunHealth]:
    """Train presets for all their steps. Each is given with its seeds as PRESET=FIRST or PRESET=FIRST-LAST."""
    judged = {}
    for given in presets:
        preset, _, seeds = given.partition("=")
        first, _, last = seeds.partition("-")
        for seed in range(int(first), int(last or first) + 1):
            config = load_preset(preset, seed=seed).model_copy(update={"stop_when_solved": False})
            judged[f"{preset}-{seed}"] = train_or_read(folder / f"{preset}-{seed}", config)
    return judged


def train_faulty(folder: Path) -> dict[str, RunHealth]:
    """Train the faulty runs."""
    judged = {}
    for name, faulty in FAULTY_RUNS.items():
        with faulty.defect():
            judged[name] = train_or_read(folder / name, faulty.config())
    return judged


def failures(healthy: Mapping[str, RunHealth], faulty: Mapping[str, RunHealth]) -> list[str]:
    """Describe each unexpected result in one line."""
    provoked = {check for kind in FAULTY_RUNS.values() for check in kind.provokes}
    return [
        *(
            f"{name} has not finished: it is {one.state}"
            for name, one in [*healthy.items(), *faulty.items()]
            if one.state != "finished"
        ),
        *(f"{name} is healthy but fires {', '.join(judged.fired)}" for name, judged in healthy.items() if judged.fired),
        *(
            f"{name} does not fire {check}"
            for name in faulty
            for check in FAULTY_RUNS[name].provokes
            if check not in faulty[name].fired
        ),
        *(f"no faulty run is meant to fire {check.name}" for check in CHECKS if check.name not in provoked),
    ]


def checks_table(healthy: Mapping[str, RunHealth], faulty: Mapping[str, RunHealth]) -> list[str]:
    lines = [
        "| check | limit | worst healthy value | healthy run | faulty run | fires at iteration | worst faulty value |",
        "|---|---|---|---|---|---|---|",
    ]
    for check in CHECKS:
        values = {name: judged.nearest[check.name] for name, judged in healthy.items() if check.name in judged.nearest}
        worst = (max if check.is_high else min)(values, key=values.__getitem__) if values else ""
        limit = f"{'above' if check.is_high else 'below'} {check.limit:g}"
        nearest = f"{values[worst]:.3g} | {worst}" if worst else "- | -"
        provoking = [name for name in faulty if check.name in FAULTY_RUNS[name].provokes]
        fires = ", ".join(str(faulty[name].fired.get(check.name, "never")) for name in provoking)
        farthest = ", ".join(f"{faulty[name].nearest.get(check.name, float('nan')):.3g}" for name in provoking)
        lines.append(f"| {check.name} | {limit} | {nearest} | {', '.join(provoking)} | {fires} | {farthest} |")
    return lines


def runs_table(healthy: Mapping[str, RunHealth], faulty: Mapping[str, RunHealth]) -> list[str]:
    lines = ["| run | kind | preset | options | iterations | checks that fire |", "|---|---|---|---|---|---|"]
    for name, judged in [*healthy.items(), *faulty.items()]:
        kind = f"healthy | {name.rpartition('-')[0]} | "
        if name in faulty:
            run = FAULTY_RUNS[name]
            kind = f"faulty: {run.how} | {run.preset} | {_format_options(run.options)}"
        fired = ", ".join(f"{check} at {number}" for check, number in judged.fired.items())
        so_far = "" if judged.state == "finished" else f" ({judged.state})"
        lines.append(f"| {name} | {kind} | {judged.iterations}{so_far} | {fired or 'none'} |")
    return lines


def _format_options(options: Mapping[str, Any]) -> str:
    return " ".join(f"`{option}={value}`" for option, value in flatten(options).items())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "presets", nargs="*", default=HEALTHY, metavar="PRESET=FIRST-LAST", help="healthy runs and seeds"
    )
    parser.add_argument("--runs", type=Path, default=Path("runs/health"), help="runs folder (default: runs/health)")
    parser.add_argument("--out", type=Path, help="also write the tables to this file")
    options = parser.parse_args()
    healthy, faulty = train_healthy(options.runs, options.presets), train_faulty(options.runs)
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "gymnasium", "transformers"))
    head = [
        "# Health checks: healthy and faulty runs",
        "",
        f"`{shlex.join(['python', *sys.argv])}`, {date.today()}, {platform.machine()}, Python "
        f"{platform.python_version()}, {versions}",
        "",
        f"Every faulty run also has the options {_format_options(BRIEF)}, because only its metrics are needed.",
        "",
    ]
    text = "\n".join([*head, *checks_table(healthy, faulty), "", *runs_table(healthy, faulty)]) + "\n"
    print(text)
    if options.out:
        options.out.write_text(text, encoding="utf-8")
    unexpected = failures(healthy, faulty)
    print(*unexpected, sep="\n", end="\n" if unexpected else "", file=sys.stderr)
    return 1 if unexpected else 0


if __name__ == "__main__":
    sys.exit(main())
