"""`compare`: print the results of runs and the options in which they differ."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from ppo_unified.cli.common import add_json, add_run, add_runs_folder
from ppo_unified.cli.run_table import PAINT, Snapshot, json_state, label_runs, output_width, take_snapshot
from ppo_unified.errors import UsageError
from ppo_unified.runs.folder import to_json
from ppo_unified.runs.query import compared_options, read_options
from ppo_unified.runs.seeds import one_run_per_seed, seed_of
from ppo_unified.terminal.chat import wrap_text
from ppo_unified.terminal.comparison import ComparedRun, compare, group_runs
from ppo_unified.terminal.option_diff import find_differences
from ppo_unified.text import BOLD, apply_style, can_color, print_out


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_run(parser, many="+")
    parser.add_argument(
        "--seeds",
        action="store_true",
        help="group runs that differ only in the seed, and print the mean, standard deviation and interquartile mean "
        "of each group",
    )
    parser.add_argument(
        "--scale",
        nargs="+",
        default=[],
        metavar="TASK=LOW..HIGH",
        help="with --seeds: scale the scores of each task (preset) so that LOW becomes 0 and HIGH becomes 1, and print "
        "the interquartile mean over all tasks",
    )
    add_json(parser)
    add_runs_folder(parser)


def run(options: argparse.Namespace) -> int:
    """Print the results of runs and the options in which they differ, or statistics over seeds."""
    chosen = {label: take_snapshot(run) for label, run in label_runs(options).items()}
    runs = [_compared_run(label, seen) for label, seen in chosen.items()]
    if options.scale and not options.seeds:
        raise UsageError("--scale has no effect without --seeds; add --seeds or remove --scale")
    if options.seeds:
        from ppo_unified.cli.seed_statistics import print_seeds

        print_seeds(chosen, group_runs(runs, one_run_per_seed), options.scale, options.json)
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
