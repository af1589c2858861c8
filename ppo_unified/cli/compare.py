"""`compare`: print the results of runs and the options in which they differ."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ppo_unified.cli.common import add_json, add_run, add_runs_folder
from ppo_unified.cli.run_table import PAINT, Snapshot, json_state, label_runs, output_width, take_snapshot
from ppo_unified.errors import UsageError
from ppo_unified.runs.folder import to_json
from ppo_unified.runs.query import compared_options, read_options
from ppo_unified.runs.seeds import one_run_per_seed, seed_of
from ppo_unified.terminal.chat import wrap_text
from ppo_unified.terminal.comparison import ComparedRun, Group, Statistics, compare, group_runs
from ppo_unified.terminal.option_diff import find_differences, format_option
from ppo_unified.text import BOLD, apply_style, can_color, clean, format_number, format_table, print_out


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_run(parser, many="+")
    parser.add_argument(
        "--seeds",
        action="store_true",
        help="group runs that differ only in the seed, and print the mean and standard deviation of each group",
    )
    add_json(parser)
    add_runs_folder(parser)


def run(options: argparse.Namespace) -> int:
    """Print the results of runs and the options in which they differ, or statistics over seeds."""
    chosen = {label: take_snapshot(run) for label, run in label_runs(options).items()}
    runs = [_compared_run(label, seen) for label, seen in chosen.items()]
    if options.seeds:
        groups = _seed_groups(chosen, group_runs(runs, one_run_per_seed))
        print(to_json({"groups": groups})) if options.json else print_out("\n".join(_seed_table(groups)))
        return 0
    if len(runs) < 2:
        raise UsageError("ppo-unified compare: expected at least two different runs (with --seeds, one run is enough)")
    if options.json:
        different = find_differences([run.options for run in runs])
        by_option = {key: {run.name: run.options.get(key) for run in runs} for key in different}
        print(to_json({"options": by_option, "runs": {label: _scores(seen) for label, seen in chosen.items()}}))
        return 0
    color = can_color(sys.stdout)
    parts = []
    for title, lines in compare(group_runs(runs, one_run_per_seed), output_width(), color, PAINT):
        heading = [apply_style(line, BOLD if color else "") for line in wrap_text(title, output_width())]
        parts.append("\n".join([*heading, *lines]))
    print_out("\n\n".join(parts))
    return 0


def _compared_run(label: str, seen: Snapshot) -> ComparedRun:
    options = compared_options(seen.status, read_options(seen.run))
    return ComparedRun(label, seen.state, seed_of(seen.status, options), options, seen.status)


def _scores(seen: Snapshot) -> dict[str, Any]:
    status = seen.status
    keys = ("step", "score", "best_score", "solved_step", "elapsed_s")
    return {"state": json_state(seen)} | {key: getattr(status, key) for key in keys} | {"greedy": True}


def _seed_groups(chosen: Mapping[str, Snapshot], groups: Sequence[Group]) -> list[dict[str, Any]]:
    """Return the statistics of each group as a dict.

    The options of a group are those in which it differs from the other groups with the same preset.
    """
    presets = [chosen[group.runs[0].name].status.preset for group in groups]
    found = []
    for preset, group in zip(presets, groups, strict=True):
        rivals = [other.runs[0].options for other, name in zip(groups, presets, strict=True) if name == preset]
        used = [run.name for run in group.counted]
        found.append(
            {
                "preset": preset,
                "options": {key: group.runs[0].options.get(key) for key in find_differences(rivals) if key != "seed"},
                "runs": used,
                "repeated_runs": [run.name for run in group.runs if run.name not in used],
                "seeds": sorted(run.seed for run in group.counted),
                "greedy": True,
            }
            | {key: _describe(group.statistics(key)) for key in ("score", "best_score", "solved_step")}
        )
    return found


def _describe(statistics: Statistics) -> dict[str, Any]:
    average, spread, values = statistics
    ends = {"min": min(values, default=None), "max": max(values, default=None)}
    return {"mean": average, "std": spread, **ends, "runs": len(values)}


def _seed_table(groups: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = format_table([_group_cells(group) for group in groups], can_color(sys.stdout))
    lines += ["", "score, best: the last and the best greedy evaluation of each run"]
    lines += ["mean +- standard deviation (n = number of seeds that have a value; one run per seed)"]
    for group in groups:
        if repeated := group["repeated_runs"]:
            lines.append(f"not counted, because another run has the same options and seed: {', '.join(repeated)}")
    return lines


def _group_cells(group: Mapping[str, Any]) -> dict[str, str]:
    solved = group["solved_step"]
    name = " ".join([group["preset"], *(f"{key}={format_option(value)}" for key, value in group["options"].items())])
    return {
        "group": clean(name),
        "seeds": str(len(group["seeds"])),
        "score (greedy)": _format_statistics(group["score"], format_number),
        "best (greedy)": _format_statistics(group["best_score"], format_number),
        "solved": f"{solved['runs']} of {len(group['runs'])}",
        "solved step": _format_statistics(solved, "{:,.0f}".format),
    }


def _format_statistics(statistics: Mapping[str, Any], format_one: Callable[[float], str]) -> str:
    """Format a mean and the number of values, with the standard deviation if there are several."""
    if not statistics["runs"]:
        return "-"
    spread = "" if statistics["std"] is None else f" +- {format_one(statistics['std'])}"
    return f"{format_one(statistics['mean'])}{spread} (n={statistics['runs']})"
