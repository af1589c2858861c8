"""Code that the commands share: one-line errors, common arguments, foreign code, and faster imports."""

from __future__ import annotations

import argparse
import gc
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn, TextIO

from ppo_unified.errors import UsageError


@contextmanager
def foreign_code() -> Iterator[TextIO]:
    """Send to stderr what code of environments or reward functions writes to stdout inside the block.

    Yield a stream that writes to the real stdout. File descriptor 1 is redirected too, because C code and worker
    processes write to it. In the block, sys.argv contains no arguments, so that such code cannot parse ours.
    """
    stdout, argv = sys.stdout, sys.argv
    stdout.flush()
    saved = os.dup(1)
    os.dup2(2, 1)
    sys.stdout, sys.argv = sys.stderr, argv[:1]
    try:
        with open(saved, "w", encoding=stdout.encoding, errors=stdout.errors, closefd=False) as real:
            yield real if _descriptor(stdout) == 1 else stdout
    finally:
        _flush_c_streams()
        os.dup2(saved, 1)
        os.close(saved)
        sys.stdout, sys.argv = stdout, argv


def _descriptor(stream: TextIO) -> int | None:
    """Return the file descriptor that `stream` writes to, or None if it has none."""
    try:
        return stream.fileno()
    except (OSError, ValueError):
        return None


def _flush_c_streams() -> None:
    """Write the output that C code has printed, because it would otherwise be written later to the real stdout."""
    import ctypes  # only needed if foreign code has run

    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).fflush(None)


class Parser(argparse.ArgumentParser):
    """An argument parser that accepts no abbreviated options and raises each error as a one-line UsageError."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{"formatter_class": _HelpFormatter} | settings | {"allow_abbrev": False})

    @property
    def flags(self) -> list[str]:
        return [flag for action in self._actions for flag in action.option_strings]

    @property
    def switches(self) -> list[str]:
        """The flags that accept no value."""
        return [flag for action in self._actions if action.nargs == 0 for flag in action.option_strings]

    def error(self, message: str) -> NoReturn:
        message = message.removeprefix("argument ")
        plural = "s" if "," in message else ""
        message = message.replace("the following arguments are required:", f"missing required argument{plural}")
        message = message.replace("expected one argument", "expected a value")
        message = re.sub(r"invalid choice: (.+) \(choose from (.+)\)", r"expected one of \2, got \1", message)
        raise UsageError(f"{self.prog}: {message}; see {self.prog} --help")


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """A help formatter with enough room for the longest flag or command, so that its help is on the same line."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=28)

    def add_argument(self, action: argparse.Action) -> None:
        before = self._action_max_length
        super().add_argument(action)
        if self._action_max_length > before:
            self._action_max_length += 2  # argparse does not count the indentation of commands


def add_run(parser: argparse.ArgumentParser, many: str = "") -> None:
    about = "name of a run, path of its folder, or 'latest'"
    if many == "*":
        about = "name of a run, path of its folder, or 'latest' (default: all runs)"
    if many:
        parser.add_argument("run", nargs=many, metavar="RUN", help=about)
    else:
        parser.add_argument("run", metavar="RUN", help=about)


def add_runs_folder(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--runs",
        dest="folder",
        type=Path,
        default=Path("runs"),
        metavar="DIR",
        help="folder that contains the runs (default: ./runs)",
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print the result as one JSON document")


def add_detach(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--detach", action="store_true", help="train in the background and return immediately")


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--checkpoint",
        default="best",
        metavar="WHICH",
        help="checkpoint to load: best, latest, or a step number (default: best, or latest if the run has no score)",
    )


def add_yes(parser: argparse.ArgumentParser, when: str) -> None:
    """Add the flag --yes. `when` says when the command would ask for confirmation."""
    parser.add_argument("--yes", action="store_true", help=f"do not ask for confirmation {when}")


def confirm(question: str, about: str) -> bool:
    """Ask a yes/no question on the terminal and return the answer.

    Raises UsageError, with a message that starts with `about`, if stdin is not a terminal.
    """
    if not sys.stdin.isatty():
        raise UsageError(f"{about}: cannot ask for confirmation, because stdin is not a terminal; add --yes")
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def integer(text: str) -> int:
    """Parse an argument that must be an integer."""
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected an integer, got {text!r}") from None


def number(text: str) -> float:
    """Parse an argument that must be a number."""
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a number, got {text!r}") from None


def check_episodes(options: argparse.Namespace) -> None:
    """Raise UsageError if --episodes or --seed is out of range."""
    if options.episodes is not None and options.episodes < 1:
        raise UsageError(f"--episodes: expected an integer >= 1, got {options.episodes}")
    if options.seed < 0:
        raise UsageError(f"--seed: expected an integer >= 0, got {options.seed}")


def preload(name: str) -> ModuleType:
    """Import a module while garbage collection is paused, and return the module.

    The objects that an import creates live until the process ends, so collecting garbage during the import only takes
    time: 10 to 20 % of the time to import torch. Afterwards, all existing objects, including the caller's, are frozen,
    so later collections ignore them. Therefore only the command line may call this function.
    """
    if name in sys.modules or not gc.isenabled():
        return import_module(name)
    gc.disable()
    try:
        return import_module(name)
    finally:
        gc.freeze()
        gc.enable()
