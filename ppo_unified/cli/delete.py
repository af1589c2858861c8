"""`delete`: delete run folders permanently."""

from __future__ import annotations

import argparse
import sys

from ppo_unified.cli.common import add_run, add_runs_folder, add_yes, confirm
from ppo_unified.runs import control
from ppo_unified.runs.folder import find
from ppo_unified.text import clean


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_run(parser, many="+")
    add_yes(parser, "before deleting a run")
    add_runs_folder(parser)


def run(options: argparse.Namespace) -> int:
    """Delete run folders, asking for confirmation before each one unless --yes is given."""
    for run in [find(name, options.folder) for name in options.run]:
        if not options.yes and not confirm(f"Delete {clean(run.path)} permanently?", str(run.path)):
            continue
        control.delete(run)
        print(f"deleted {clean(run.path)}", file=sys.stderr)
    return 0
