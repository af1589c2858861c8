"""How near healthy runs come to the limits of the health checks, and whether sick ones go beyond.

python benchmarks/health.py [PRESET=SEEDS ...] [--runs DIR] [--out benchmarks/health.md]

Trains presets as they stand and the provoking runs below into DIR, where runs that are there already are only read.
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

from ppo_unified import load_preset, run
from ppo_unified.events import EventReader
from ppo_unified.health import CHECKS, Health

HEALTHY = ("cartpole=5", "lunarlander=2", "arithmetic=2")
SICK: dict[str, tuple[str, dict[str, Any]]] = {  # name -> preset and the options that make it go wrong
    "hacking": ("sentiment", {"llm": {"kl_coef": 0.0}}),
    "high-lr": ("cartpole", {"optim": {"lr": 0.1}, "total_steps": 20_000}),
    "dead-critic": ("cartpole", {"optim": {"joint": False, "critic_lr": 1e-9}}),
}


class Judged(NamedTuple):
    """What the checks made of a run."""

    iterations: int
    nearest: Mapping[str, float]  # by check, the value nearest to the limit or farthest beyond
    fired: Sequence[str]  # check and iteration, in the order in which they began


def history(folder: Path) -> Iterator[dict[str, float]]:
    """The metrics of each iteration that the checks read."""
    reader = EventReader(folder)
    reader.poll()
    read = {tag for check in CHECKS for tag in check.reads} & reader.series.keys()
    columns = {}
    for tag in read:
        steps, _, values = reader.series[tag].numpy()
        columns[tag] = dict(zip(steps.tolist(), values.tolist(), strict=True))
    for step in reader.series["policy/kl"].steps.tolist():
        yield {tag: values[step] for tag, values in columns.items() if step in values}


def judge(folder: Path) -> Judged:
    health, nearest, fired, number = Health(), dict[str, float](), list[str](), 0
    before: set[str] = set()
    for number, metrics in enumerate(history(folder), 1):
        health.update(number, metrics)
        for check in health.checks:
            value = check.value(health.tracks)
            if value is not None:
                worse = max if check.is_high else min
                nearest[check.name] = worse(value, nearest.get(check.name, value))
        now = {warning["name"] for warning in health.firing()}
        fired += [f"{name} at {number}" for name in sorted(now - before)]
        before = now
    return Judged(number, nearest, fired)


def trained(folder: Path, name: str, preset: str, options: Mapping[str, Any]) -> Judged:
    if not (folder / name / "run.json").exists():
        run(load_preset(preset, **options), runs=folder, name=name)
    return judge(folder / name)


def report(healthy: Mapping[str, Judged], sick: Mapping[str, Judged]) -> list[str]:
    lines = ["| check | limit | nearest in healthy runs | in run |", "|---|---|---|---|"]
    for check in CHECKS:
        values = {name: judged.nearest[check.name] for name, judged in healthy.items() if check.name in judged.nearest}
        worst = (max if check.is_high else min)(values, key=values.__getitem__) if values else ""
        limit = f"{'above' if check.is_high else 'below'} {check.limit:g}"
        lines.append(f"| {check.name} | {limit} | {f'{values[worst]:.3g}' if worst else '-'} | {worst or '-'} |")
    lines += ["", "| run | meant to be | iterations | fired |", "|---|---|---|---|"]
    for kind, judged_runs in (("healthy", healthy), ("sick", sick)):
        for name, judged in judged_runs.items():
            lines.append(f"| {name} | {kind} | {judged.iterations} | {', '.join(judged.fired) or 'nothing'} |")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("presets", nargs="*", default=HEALTHY, metavar="PRESET=SEEDS")
    parser.add_argument("--runs", type=Path, default=Path("runs/health"))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    healthy = {}
    for given in options.presets:
        preset, _, seeds = given.partition("=")
        for seed in range(1, int(seeds or 1) + 1):
            name = f"{preset}-{seed}"
            healthy[name] = trained(options.runs, name, preset, {"seed": seed})
    sick = {name: trained(options.runs, name, preset, given) for name, (preset, given) in SICK.items()}
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "gymnasium", "transformers"))
    head = [
        "# Health checks: healthy and sick runs",
        "",
        f"`{shlex.join(['python', *sys.argv])}`, {date.today()}, {platform.machine()}, Python "
        f"{platform.python_version()}, {versions}",
        "",
    ]
    text = "\n".join([*head, *report(healthy, sick)]) + "\n"
    print(text)
    if options.out:
        options.out.write_text(text, encoding="utf-8")
    return 1 if any(judged.fired for judged in healthy.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
