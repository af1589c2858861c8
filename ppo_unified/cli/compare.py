"""`compare`: print the options in which runs differ, and their scores."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from statistics import mean
from typing import Any

from ppo_unified.cli.common import add_json, add_run, add_runs_folder
from ppo_unified.cli.run_table import PAINT, Snapshot, label_runs, output_width, take_snapshot
from ppo_unified.errors import UsageError
from ppo_unified.runs.folder import to_json
from ppo_unified.runs.query import read_options
from ppo_unified.terminal.option_diff import difference_lines, find_differences, format_option, seedless_key
from ppo_unified.text import can_color, clean, format_duration, format_number, format_table, print_out


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_run(parser, many="+")
    parser.add_argument("--seeds", action="store_true", help="group runs that differ only in the seed")
    add_json(parser)
    add_runs_folder(parser)


def run(options: argparse.Namespace) -> int:
    """Print the options in which runs differ and the runs' scores, or statistics over seeds."""
    chosen = {label: take_snapshot(run) for label, run in label_runs(options).items()}
    tables = {label: read_options(seen.run) for label, seen in chosen.items()}
    if options.seeds:
        groups = _seed_groups(chosen, tables)
        if options.json:
            print(to_json({"groups": groups}))
        else:
            print_out("\n".join(format_table([_group_cells(group) for group in groups], can_color(sys.stdout))))
        return 0
    if len(chosen) < 2:
        raise UsageError("ppo-unified compare: expected at least two different runs (with --seeds, one run is enough)")
    chosen_options = find_differences(list(tables.values()))
    if options.json:
        by_option = {key: {label: tables[label].get(key) for label in chosen} for key in chosen_options}
        print(to_json({"options": by_option, "runs": {label: _scores(seen) for label, seen in chosen.items()}}))
        return 0
    lines = difference_lines(tables, output_width(), can_color(sys.stdout))
    print_out("\n".join([*lines, "", *_score_table(chosen)]))
    return 0


def _scores(seen: Snapshot) -> dict[str, Any]:
    status = seen.status
    keys = ("step", "score", "best_score", "solved_step", "elapsed_s")
    return {"state": seen.state} | {key: getattr(status, key) for key in keys}


def _score_table(chosen: Mapping[str, Snapshot]) -> list[str]:
    rows = []
    for label, (_, status, state) in chosen.items():
        rows.append(
            {
                "run": label,
                "state": clean(state),
                "step": f"{status.step:,}",
                "score": format_number(status.score),
                "best": format_number(status.best_score),
                "solved at": "-" if status.solved_step is None else f"{status.solved_step:,}",
                "elapsed": format_duration(status.elapsed_s),
            }
        )
    return format_table(rows, can_color(sys.stdout), PAINT)


def _seed_groups(chosen: Mapping[str, Snapshot], tables: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Group the runs that differ only in the seed.

    The options of a group are those in which it differs from the other groups with the same preset.
    """
    by_options: dict[str, list[str]] = {}
    for label, options in tables.items():
        by_options.setdefault(seedless_key(options), []).append(label)
    groups = []
    for labels in by_options.values():
        preset = chosen[labels[0]].status.preset
        rivals = [tables[other[0]] for other in by_options.values() if chosen[other[0]].status.preset == preset]
        members = [chosen[label].status for label in labels]
        groups.append(
            {
                "preset": preset,
                "options": {key: tables[labels[0]].get(key) for key in find_differences(rivals) if key != "seed"},
                "runs": labels,
                "seeds": sorted({status.seed for status in members}),
                "best_score": _statistics([status.best_score for status in members]),
                "solved_step": _statistics([status.solved_step for status in members]),
            }
        )
    return groups


def _statistics(values: Sequence[float | None]) -> dict[str, Any]:
    """Return the mean, minimum, maximum and count of the finite values."""
    finite = [value for value in values if value is not None and math.isfinite(value)]
    if not finite:
        return {"mean": None, "min": None, "max": None, "runs": 0}
    return {"mean": mean(finite), "min": min(finite), "max": max(finite), "runs": len(finite)}


def _group_cells(group: Mapping[str, Any]) -> dict[str, str]:
    best, solved = group["best_score"], group["solved_step"]
    name = " ".join([group["preset"], *(f"{key}={format_option(value)}" for key, value in group["options"].items())])
    return {
        "group": clean(name),
        "seeds": str(len(group["seeds"])),
        "mean best score (range)": _format_spread(best, format_number),
        "solved runs": f"{solved['runs']} of {len(group['runs'])}",
        "mean solved step (range)": _format_spread(solved, "{:,.0f}".format),
    }


def _format_spread(statistics: Mapping[str, Any], format_one: Callable[[float], str]) -> str:
    """Format the mean and the range of some numbers."""
    if not statistics["runs"]:
        return "-"
    return "{} ({} .. {})".format(*(format_one(statistics[key]) for key in ("mean", "min", "max")))
