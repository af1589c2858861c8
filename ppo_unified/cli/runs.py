"""`runs`: list runs, filtered by a query."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict, replace
from functools import partial
from typing import Any

from ppo_unified.cli.common import add_json, add_runs_folder
from ppo_unified.cli.run_table import (
    Snapshot,
    health_names,
    interleave,
    json_state,
    make_remarks,
    output_width,
    run_table,
)
from ppo_unified.errors import UsageError
from ppo_unified.runs.folder import all_runs, to_json
from ppo_unified.runs.notes import read_note_line
from ppo_unified.runs.query import Lookup, lookup, parse, read_options
from ppo_unified.runs.signals import why_ended
from ppo_unified.text import can_color, clean, print_err, print_out


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "query", nargs="*", metavar="QUERY", help="list only runs that match all terms (default: all runs)"
    )
    parser.epilog = (
        "A term is a word, key:value, or a comparison (> >= < <= =) such as score>400.\n"
        "The term !x excludes the runs that match x. The term x|y matches x or y.\n"
        "Put double quotes around a value with spaces: ppo-unified runs 'reason:\"no GPU\"'"
    )
    add_json(parser)
    add_runs_folder(parser)


def _lookup(seen: Snapshot) -> Lookup:
    status = replace(seen.status, reason=why_ended(*seen))  # the reason that is displayed
    return lookup(status, seen.state, partial(read_options, seen.run), partial(read_note_line, seen.run))


def run(options: argparse.Namespace) -> int:
    """List the runs that match a query, the newest first."""
    query = parse(" ".join(options.query))
    damaged: list[str] = []
    everything = [Snapshot(run, status, run.state(status)) for run, status in all_runs(options.folder, damaged)]
    for text in damaged:
        print(f"skipped: {clean(text)}", file=sys.stderr)
    chosen = []
    for seen in everything:
        try:
            if query.matches(_lookup(seen)):
                chosen.append(seen)
        except UsageError as error:  # an unreadable config.toml must hide only its own run
            print(f"skipped: {clean(error)}", file=sys.stderr)
    if options.json:
        print(to_json([_document(seen) for seen in chosen]))
    elif chosen:
        color = can_color(sys.stdout)
        print_out(
            "\n".join(interleave(run_table(chosen, output_width(), color), make_remarks(chosen, color, health_names)))
        )
    elif everything:
        print_err(f"0 of {len(everything)} runs in {options.folder} match the query")
    else:
        print_err(f"no runs in the folder {options.folder} yet; start one with: ppo-unified train cartpole")
    return 0


def _document(seen: Snapshot) -> dict[str, Any]:
    """Return run.json, the displayed state and the path of a run."""
    return asdict(seen.status) | {"shown_state": json_state(seen), "path": str(seen.run.path.absolute())}
