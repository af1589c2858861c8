"""What the app and its screens know of each other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol, runtime_checkable

from ppo_unified.runs.folder import Run
from tui.runs.entries import Entry
from tui.store import Changes
from tui.view_state import ViewState


class Services(Protocol):
    """What the app offers its screens."""

    runs: Path
    readonly: bool  # nothing may change a run or start one
    unicode: bool
    state: ViewState

    def save_state(self) -> None:
        """Write the view state to its file."""

    def read_now(self) -> None:
        """Read the runs folder at once and show what is new, because something has just changed there."""

    def attempt(self, work: Callable[[], object]) -> None:
        """Do something quick to a run folder; show the error if it fails."""

    def run_in_thread(self, work: Callable[[], str], on_error: Callable[[str], object] | None = None) -> None:
        """Do something slow to a run; show the text that it returns, or the error unless `on_error` does."""

    def run_external(self, command: str, run: Run) -> None:
        """Let another command of ppo-unified have the terminal until it ends."""

    def show_error(self, text: str) -> None: ...

    def open_picker(self) -> None: ...

    def open_rerun(self, entry: Entry) -> None:
        """Open the form for another run with the options of this one."""

    def on_run_renamed(self, key: str, run: Run) -> None:
        """Keep everything that is known of a run whose folder has another name now."""

    def on_run_deleted(self, key: str) -> None:
        """Drop everything that is known of a deleted run: another one may get its name."""


@runtime_checkable
class StoreListener(Protocol):
    """A screen that shows what is in the store."""

    def update_from_store(self, changes: Changes) -> None: ...
