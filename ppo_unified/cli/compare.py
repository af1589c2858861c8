"""`compare`: print the options in which runs differ, and their scores."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from statistics import mean, stdev
from typing import Any

from ppo_unified.cli.common import add_json, add_run, add_runs_folder
from ppo_unified.cli.run_table import PAINT, Snapshot, json_state, label_runs, output_width, take_snapshot
from ppo_unified.errors import UsageError
from ppo_unified.runs.folder import to_json
from ppo_unified.runs.query import compared_options
from ppo_unified.runs.seeds import one_run_per_seed
from ppo_unified.terminal.option_diff import difference_lines, find_differences, format_option, seedless_key
from ppo_unified.text import can_color, clean, format_duration, format_number, format_table, print_out


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
    """Print the options in which runs differ and the runs' scores, or statistics over seeds."""
    chosen = {label: take_snapshot(run) for label, run in label_runs(options).items()}
    tables = {label: compared_options(seen.run, seen.status) for label, seen in chosen.items()}
    if options.seeds:
        groups = _seed_groups(chosen, tables)
        if options.json:
            print(to_json({"groups": groups}))
        else:
            print_out("\n".join(_seed_table(groups)))
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
    return {"state": json_state(seen)} | {key: getattr(status, key) for key in keys} | {"greedy": True}


def _score_table(chosen: Mapping[str, Snapshot]) -> list[str]:
    rows = []
    for label, (_, status, state) in chosen.items():
        rows.append(
            {
                "run": label,
                "state": clean(state),
                "step": f"{status.step:,}",
                "score (greedy)": format_number(status.score),
                "best (greedy)": format_number(status.best_score),
                "solved at": "-" if status.solved_step is None else f"{status.solved_step:,}",
                "elapsed": format_duration(status.elapsed_s),
            }
        )
    return format_table(rows, can_color(sys.stdout), PAINT)


def _seed_groups(chosen: Mapping[str, Snapshot], tables: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Group the runs that differ only in the seed.

    Only one run per seed is counted. The options of a group are those in which it differs from the other groups with
    the same preset.
    """
    by_options: dict[str, list[str]] = {}
    for label, options in tables.items():
        by_options.setdefault(seedless_key(options), []).append(label)
    groups = []
    for labels in by_options.values():
        preset = chosen[labels[0]].status.preset
        rivals = [tables[other[0]] for other in by_options.values() if chosen[other[0]].status.preset == preset]
        by_seed = one_run_per_seed({label: (chosen[label].status, tables[label]) for label in labels})
        used = [label for label in labels if label in by_seed.values()]
        members = [chosen[label].status for label in used]
        groups.append(
            {
                "preset": preset,
                "options": {key: tables[labels[0]].get(key) for key in find_differences(rivals) if key != "seed"},
                "runs": used,
                "repeated_runs": [label for label in labels if label not in used],
                "seeds": sorted(by_seed),
                "greedy": True,
            }
            | {
                key: _statistics([getattr(one, key) for one in members])
                for key in ("score", "best_score", "solved_step")
            }
        )
    return groups


def _statistics(values: Sequence[float | None]) -> dict[str, Any]:
    """Return the mean, sample standard deviation, minimum, maximum and count of the finite values.

    A single value has no standard deviation.
    """
    finite = [value for value in values if value is not None and math.isfinite(value)]
    if not finite:
        return {"mean": None, "std": None, "min": None, "max": None, "runs": 0}
    spread = stdev(finite) if len(finite) > 1 else None
    return {"mean": mean(finite), "std": spread, "min": min(finite), "max": max(finite), "runs": len(finite)}


def _seed_table(groups: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = format_table([_group_cells(group) for group in groups], can_color(sys.stdout))
    lines += ["", "mean +- standard deviation (n = number of seeds that have a value; one run per seed)"]
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
    """Format a mean, its standard deviation if there is one, and the number of values."""
    if not statistics["runs"]:
        return "-"
    spread = "" if statistics["std"] is None else f" +- {format_one(statistics['std'])}"
    return f"{format_one(statistics['mean'])}{spread} (n={statistics['runs']})"
