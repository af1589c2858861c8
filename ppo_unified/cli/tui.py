"""`tui`: the terminal UI."""

from __future__ import annotations

import argparse
import os
import sys
from contextlib import suppress
from pathlib import Path

from ppo_unified.cli.common import add_runs_folder, preload
from ppo_unified.errors import UsageError
from ppo_unified.runs.background import StandbySlot
from ppo_unified.study.pages import LANGUAGES
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
    parser.add_argument(
        "--language",
        choices=LANGUAGES,
        help="language of the study text in the inspector: en (English) or zh (Chinese) (default: the last one used)",
    )
    add_runs_folder(parser)


def run(options: argparse.Namespace) -> int:
    """Open the terminal UI for a runs folder until the user quits it."""
    if not (sys.stdin.isatty() and is_drawable(sys.stdout)):
        found = f"TERM={os.environ.get('TERM', '')}" if sys.stdout.isatty() else "stdin or stdout is not a terminal"
        raise UsageError(
            f"ppo-unified tui requires a terminal ({found}); without one, use ppo-unified runs and ppo-unified show"
        )
    standby_slot = StandbySlot()
    if not options.readonly and _is_empty(options.folder):
        standby_slot.fill()  # the user can only start a run, and a run's imports take longer than those of the UI
    try:
        code: int = preload("tui.app").run(
            options.folder, options.readonly, not options.no_bell, standby_slot, options.language
        )
    finally:
        standby_slot.clear()
    return code


def _is_empty(folder: Path) -> bool:
    """Return True if a runs folder does not exist or contains only hidden files."""
    with suppress(OSError), os.scandir(folder) as entries:
        return all(entry.name.startswith(".") for entry in entries)
    return not folder.exists()
