"""What the commands share: one-line errors, common arguments, and importing heavy modules quickly."""

from __future__ import annotations

import argparse
import gc
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from ppo_unified.errors import UsageError


class Parser(argparse.ArgumentParser):
    """argparse without abbreviated options, whose errors are one line in a UsageError."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings | {"allow_abbrev": False})

    @property
    def flags(self) -> list[str]:
        return [flag for action in self._actions for flag in action.option_strings]

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{self.prog}: {message}; see {self.prog} --help")


def add_run(parser: argparse.ArgumentParser, many: str = "") -> None:
    if many:
        parser.add_argument("run", nargs=many, help="name under the runs folder, path, or 'latest'")
    else:
        parser.add_argument("run", help="name under the runs folder, path, or 'latest'")


def add_runs_folder(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--runs",
        dest="folder",
        type=Path,
        default=Path("runs"),
        metavar="DIR",
        help="runs folder (default: ./runs)",
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON document and nothing else")


def add_detach(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--detach", action="store_true", help="train in the background and return at once")


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", default="best", help="best, latest, or a step (default: best)")


def check_episodes(options: argparse.Namespace) -> None:
    """Raises UsageError for numbers that no episodes can have."""
    if options.episodes is not None and options.episodes < 1:
        raise UsageError(f"--episodes {options.episodes}: must be at least 1")
    if options.seed < 0:
        raise UsageError(f"--seed {options.seed}: must be at least 0")


def preload(name: str) -> ModuleType:
    """A module, imported with all that it imports if it isn't there yet.

    While it is imported nothing is collected: what modules make stays until the process ends, and the collector would
    look through it again and again, for a tenth to a fifth of the time that torch takes. It never will: all objects
    that are there by then, the caller's too, are left out of later collections. So only the command line does this.
    """
    if name in sys.modules or not gc.isenabled():
        return import_module(name)
    gc.disable()
    try:
        return import_module(name)
    finally:
        gc.freeze()
        gc.enable()
