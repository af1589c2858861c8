"""log.txt receives what a run prints, besides the terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedWriter, FileIO, TextIOWrapper
from pathlib import Path
from typing import IO, TYPE_CHECKING, TextIO

from ppo_unified.runs.folder import Run
from ppo_unified.runs.preparation import is_detached

if TYPE_CHECKING:
    from typing_extensions import Buffer


class _LossyFile(FileIO):
    def write(self, data: Buffer) -> int:
        try:
            return super().write(data)
        except OSError:  # a full disk: the run matters more than its log
            return memoryview(data).nbytes


def open_log(path: Path) -> TextIO:
    """A text file that is appended to line by line; what cannot be written is lost and raises nothing."""
    file = BufferedWriter(_LossyFile(path, "a"))
    return TextIOWrapper(file, encoding="utf-8", errors="backslashreplace", line_buffering=True)


class Tee:
    """A text stream that also writes what it is given to a log."""

    def __init__(self, screen: TextIO, log: IO[str]) -> None:
        self.screen, self._log = screen, log

    def write(self, text: str) -> int:
        self._log.write(text)
        try:
            return self.screen.write(text)
        except OSError:  # the terminal is gone; the log is not
            return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            self.screen.flush()

    def __getattr__(self, name: str) -> object:
        return getattr(self.screen, name)


@contextmanager
def log_output(run: Run) -> Iterator[TextIO]:
    """Inside the block stdout and stderr go to log.txt too; yields the log for lines that belong only there.

    A detached process has no one to show them to: there they go to log.txt alone, whoever writes them.
    """
    before = sys.stdout, sys.stderr
    with open_log(run.log) as log:
        if is_detached():
            for stream in before:
                os.dup2(log.fileno(), stream.fileno())
            sys.stdout = sys.stderr = log
        else:
            sys.stdout, sys.stderr = Tee(before[0], log), Tee(before[1], log)
        try:
            yield log
        finally:
            sys.stdout, sys.stderr = before
