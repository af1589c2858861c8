"""`note`: print, write or remove the note of a run."""

from __future__ import annotations

import argparse

from ppo_unified.cli.common import add_run, add_runs_folder
from ppo_unified.runs import notes
from ppo_unified.runs.folder import find
from ppo_unified.text import clean_lines, print_out


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_run(parser)
    parser.add_argument(
        "text", nargs="?", metavar="TEXT", help="text of the new note; '' removes the note (default: print the note)"
    )
    add_runs_folder(parser)


def run(options: argparse.Namespace) -> int:
    """Write the note of a run, or print it if no text is given. An empty text removes it."""
    run = find(options.run, options.folder)
    if options.text is not None:
        notes.write_note(run, options.text)
    elif text := notes.read_note(run):
        print_out(clean_lines(text))
    return 0
