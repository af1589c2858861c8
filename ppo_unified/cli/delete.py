"""`delete`: delete runs for good."""

from __future__ import annotations

import argparse
import sys

from ppo_unified.cli.common import add_run, add_runs_folder
from ppo_unified.errors import UsageError
from ppo_unified.runs import control
from ppo_unified.runs.folder import find
from ppo_unified.text import clean


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_run(parser, many="+")
    parser.add_argument("--yes", action="store_true", help="do not ask")
    add_runs_folder(parser)


def run(options: argparse.Namespace) -> int:
    """Delete the folders of runs, each after a question unless --yes is given."""
    for run in [find(name, options.folder) for name in options.run]:
        if not options.yes:
            if not sys.stdin.isatty():
                raise UsageError(f"{run.path}: nobody can be asked here; add --yes to delete it for good")
            print(f"Delete {clean(run.path)} for good? [y/N] ", end="", file=sys.stderr, flush=True)
            if sys.stdin.readline().strip().lower() not in ("y", "yes"):
                continue
        control.delete(run)
        print(f"deleted {clean(run.path)}", file=sys.stderr)
    return 0
