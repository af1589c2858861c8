"""The screen that compares the results and the options of several runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import VerticalScroll
from textual.content import Content
from textual.screen import Screen
from textual.widgets import Static

from ppo_unified.runs.folder import Run
from ppo_unified.runs.query import compared_options
from ppo_unified.runs.seeds import one_run_per_seed
from ppo_unified.terminal.comparison import ComparedRun, compare, group_runs
from ppo_unified.text import clean
from tui.actions import Place, bindings
from tui.runs.entries import Entry
from tui.status_row import StatusRow
from tui.store import Changes, Store

MARGIN = 3  # columns of the padding and the scrollbar


class CompareScreen(Screen[None]):
    """Shows the results of runs and the options in which they differ. The results of active runs are updated.

    Raises UsageError if the options of a run cannot be read.
    """

    DEFAULT_CSS = """
    CompareScreen #top { height: auto; padding: 0 1; background: $primary; color: $text; text-style: bold; }
    CompareScreen VerticalScroll {
        height: 1fr; padding: 0 1; background: $background; scrollbar-size-vertical: 1; scrollbar-gutter: stable;
    }
    CompareScreen VerticalScroll > Static { width: 1fr; height: auto; }
    """
    BINDINGS: ClassVar[list[BindingType]] = bindings("compare")
    places: tuple[Place, ...] = ("compare",)

    def __init__(self, store: Store, compared: Sequence[Entry], skipped: Sequence[Entry]) -> None:
        """`skipped` contains the logs of other programs, which have no options."""
        super().__init__()
        self.store = store
        self._entries = {entry.key: entry for entry in compared}
        self._options: Mapping[str, Mapping[str, Any]] = {
            entry.key: compared_options(Run(entry.path), entry.status) for entry in compared
        }
        self._skipped = ", ".join(clean(entry.key) for entry in skipped)
        self._show_equal = False

    def compose(self) -> ComposeResult:
        yield Static(id="top", markup=False)
        with VerticalScroll():
            yield Static(id="comparison", markup=False)
        yield StatusRow()

    def on_mount(self) -> None:
        self.query_one(VerticalScroll).focus()

    def on_resize(self) -> None:
        self._show()

    def update_from_store(self, changes: Changes) -> None:
        """Update the results. A run that has been deleted or renamed keeps its last results."""
        current = {key: self.store.entries.get(key, entry) for key, entry in self._entries.items()}
        if current != self._entries:
            self._entries = current
            self._show()

    def _show(self) -> None:
        runs = [ComparedRun(key, e.state, self._options[key], e.status) for key, e in self._entries.items()]
        groups, width = group_runs(runs, one_run_per_seed), max(20, self.size.width - MARGIN)
        first, *others = compare(groups, width, color=True, show_equal=self._show_equal)
        lines = [f"Not compared, because another program wrote them: {self._skipped}", ""] if self._skipped else []
        lines += [*first.lines, ""] if first.lines else []
        for title, own in others:
            lines += [f"\x1b[1;4m{title}\x1b[0m", *own, ""]
        self.query_one("#top", Static).update(Content(first.title))
        text = Text.from_ansi("\n".join(lines[:-1]), no_wrap=False)
        self.query_one("#comparison", Static).update(Content.from_rich_text(text))

    def action_equal(self) -> None:
        self._show_equal = not self._show_equal
        self._show()

    def action_back(self) -> None:
        self.app.pop_screen()
