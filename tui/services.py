"""The interfaces between the app and its screens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol, runtime_checkable

from ppo_unified.runs.folder import Run
from tui.runs.entries import Entry
from tui.store import Changes
from tui.view_state import ViewState


class Services(Protocol):
    """The services that the app provides to its screens."""

    runs: Path
    readonly: bool  # the user cannot change or start runs
    unicode: bool
    state: ViewState

    def save_state(self) -> None:
        """Write the view state to its file."""

    def read_now(self) -> None:
        """Read the runs folder immediately and show the changes."""

    def attempt(self, work: Callable[[], object]) -> None:
        """Call a fast function that changes a run folder, and show the error if it fails."""

    def run_in_thread(self, work: Callable[[], str], on_error: Callable[[str], object] | None = None) -> None:
        """Call a slow function in a thread and show the text that it returns.

        If it fails, pass the error message to `on_error`, which shows it by default.
        """

    def show_error(self, text: str) -> None: ...

    def open_picker(self) -> None: ...

    def open_rerun(self, entry: Entry) -> None:
        """Open the form of a new run with the options of this run."""

    def on_run_renamed(self, key: str, run: Run) -> None:
        """Update all stored references to a renamed run."""

    def on_run_deleted(self, key: str) -> None:
        """Drop all stored references to a deleted run, because a new run may get its name."""


@runtime_checkable
class StoreListener(Protocol):
    """A screen that is updated when the store changes."""

    def update_from_store(self, changes: Changes) -> None: ...
