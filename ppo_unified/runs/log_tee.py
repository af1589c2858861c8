"""Copy a run's output to log.txt."""

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
        except OSError:  # for example a full disk, which must not stop the run
            return memoryview(data).nbytes


def open_log(path: Path) -> TextIO:
    """Open a text file for appending. It is flushed after each line. Text that cannot be written is silently lost."""
    file = BufferedWriter(_LossyFile(path, "a"))
    return TextIOWrapper(file, encoding="utf-8", errors="backslashreplace", line_buffering=True)


class Tee:
    """A text stream that writes to both the screen and a log."""

    def __init__(self, screen: TextIO, log: IO[str]) -> None:
        self.screen, self._log = screen, log

    def write(self, text: str) -> int:
        self._log.write(text)
        try:
            return self.screen.write(text)
        except OSError:  # the terminal was closed; the log still works
            return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            self.screen.flush()

    def __getattr__(self, name: str) -> object:
        return getattr(self.screen, name)


@contextmanager
def log_output(run: Run) -> Iterator[TextIO]:
    """Inside the block, copy stdout and stderr to log.txt. Yield the log file, for text that is not printed.

    The output of a detached process and of its child processes is written only to log.txt.
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
