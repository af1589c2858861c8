"""`rename`, `note` and `delete`: what one does to runs that are not being trained."""

from __future__ import annotations

import argparse
import sys

from ppo_unified.errors import UsageError
from ppo_unified.runs import control
from ppo_unified.runs.folder import find
from ppo_unified.text import clean, clean_lines, say


def rename(options: argparse.Namespace) -> int:
    say(clean(control.rename(find(options.run, options.folder), options.name).path))
    return 0


def note(options: argparse.Namespace) -> int:
    """Write a run's note, or print it where no text is given; an empty text removes it."""
    run = find(options.run, options.folder)
    if options.text is not None:
        control.write_note(run, options.text)
    elif text := control.read_note(run):
        say(clean_lines(text))
    return 0


def delete(options: argparse.Namespace) -> int:
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
