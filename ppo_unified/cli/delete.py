"""`delete`: delete run folders permanently."""

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
    parser.add_argument("--yes", action="store_true", help="delete without asking for confirmation")
    add_runs_folder(parser)


def run(options: argparse.Namespace) -> int:
    """Delete run folders, asking for confirmation before each one unless --yes is given."""
    for run in [find(name, options.folder) for name in options.run]:
        if not options.yes:
            if not sys.stdin.isatty():
                raise UsageError(f"{run.path}: cannot ask for confirmation, because stdin is not a terminal; add --yes")
            print(f"Delete {clean(run.path)} permanently? [y/N] ", end="", file=sys.stderr, flush=True)
            if sys.stdin.readline().strip().lower() not in ("y", "yes"):
                continue
        control.delete(run)
        print(f"deleted {clean(run.path)}", file=sys.stderr)
    return 0
