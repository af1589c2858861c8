"""Writing into a run folder while it fills up, turns read-only or goes away: what training can do without, it does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedWriter, FileIO, TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from ppo_unified.runs.folder import Run
from ppo_unified.text import print_err

if TYPE_CHECKING:
    from typing_extensions import Buffer


class FolderLostError(Exception):
    """The run folder is gone, or another one has its name: there is nothing to write to any more."""


def check_folder(run: Run) -> None:
    """Raises FolderLost where the folder is no longer the one that this process locked."""
    if not run.holds_lock():
        raise FolderLostError(
            f"{run.path} was removed or replaced while it trained; what it held is lost, and nothing was written in "
            "its place"
        )


class BestEffort:
    """Writes that may fail without ending the run: a failure is reported once, and the next write tries again."""

    def __init__(self, run: Run) -> None:
        self.run, self.failing = run, set[str]()

    @contextmanager
    def attempt(self, what: str) -> Iterator[None]:
        """Continue where the block cannot write `what`. Raises FolderLost where the run folder is gone."""
        check_folder(self.run)
        try:
            yield
        except OSError as error:
            check_folder(self.run)
            if what not in self.failing:
                self.failing.add(what)
                why = error.strerror or error
                print_err(f"{self.run.path}: {what} cannot be written ({why}); training goes on, and tries again")
        else:
            if what in self.failing:
                self.failing.discard(what)
                print_err(f"{self.run.path}: {what} can be written again")


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
