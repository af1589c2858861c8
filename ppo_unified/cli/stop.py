"""`stop`: stop a run after saving a checkpoint, or kill it."""

from __future__ import annotations

import argparse

from ppo_unified.cli.common import add_run, add_runs_folder
from ppo_unified.cli.run_training import format_command
from ppo_unified.runs import processes
from ppo_unified.runs.folder import find
from ppo_unified.text import print_err


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_run(parser)
    parser.add_argument("--kill", action="store_true", help="kill the run immediately, without saving a checkpoint")
    add_runs_folder(parser)


def run(options: argparse.Namespace) -> int:
    """Stop or kill a run and print how to resume it."""
    run = find(options.run, options.folder)
    state = processes.stop(run, options.kill)
    print_err(
        f"{run.name} {'was killed' if options.kill else f'is {state}'}; to resume: {format_command('resume', run)}"
    )
    return 0
