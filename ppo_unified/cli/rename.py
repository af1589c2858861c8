"""`rename`: rename a run."""

from __future__ import annotations

import argparse

from ppo_unified.cli.common import add_run, add_runs_folder
from ppo_unified.runs import control
from ppo_unified.runs.folder import find
from ppo_unified.text import clean, print_out


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_run(parser)
    parser.add_argument("name", metavar="NAME", help="new name of the run and its folder")
    add_runs_folder(parser)


def run(options: argparse.Namespace) -> int:
    print_out(clean(control.rename(find(options.run, options.folder), options.name).path))
    return 0
