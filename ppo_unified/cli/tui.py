"""`tui`: the terminal UI."""

from __future__ import annotations

import argparse
import os
import sys

from ppo_unified.cli.common import add_runs_folder, preload
from ppo_unified.errors import UsageError
from ppo_unified.text import is_drawable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--readonly", action="store_true", help="only show runs; disable starting, stopping and changing them"
    )
    parser.add_argument(
        "--no-bell",
        action="store_true",
        help="do not ring or send desktop notifications when a run ends or a health check warns",
    )
    add_runs_folder(parser)


def run(options: argparse.Namespace) -> int:
    """Open the terminal UI for a runs folder until the user quits it."""
    if not (sys.stdin.isatty() and is_drawable(sys.stdout)):
        found = f"TERM={os.environ.get('TERM', '')}" if sys.stdout.isatty() else "stdin or stdout is not a terminal"
        raise UsageError(
            f"ppo-unified tui requires a terminal ({found}); without one, use ppo-unified runs and ppo-unified show"
        )
    code: int = preload("tui.app").run(options.folder, options.readonly, not options.no_bell)
    return code
