"""`note`: write a line about a run, or print it."""

from __future__ import annotations

import argparse

from ppo_unified.cli.common import add_run, add_runs_folder
from ppo_unified.runs import control
from ppo_unified.runs.folder import find
from ppo_unified.text import clean_lines, print_out


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_run(parser)
    parser.add_argument("text", nargs="?", help="what to write; '' removes the note; without it the note is printed")
    add_runs_folder(parser)


def run(options: argparse.Namespace) -> int:
    """Write a run's note, or print it where no text is given; an empty text removes it."""
    run = find(options.run, options.folder)
    if options.text is not None:
        control.write_note(run, options.text)
    elif text := control.read_note(run):
        print_out(clean_lines(text))
    return 0
