"""The screen that shows the trials of a hyperparameter sweep: options against the value, and a table."""

from __future__ import annotations

from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import VerticalScroll
from textual.content import Content
from textual.screen import Screen
from textual.widgets import Static

from ppo_unified.runs.folder import ALIVE, Run
from ppo_unified.runs.trials import find_outcome, trial_options, trial_value
from ppo_unified.terminal.sweep_table import TrialRow, describe_sweep, sweep_charts, trial_table
from tui.action import Place
from tui.actions import bindings
from tui.runs.entries import Entry, sweep_name
from tui.status_row import StatusRow
from tui.store import Changes, Store

MARGIN = 3  # columns of the padding and the scrollbar
LEAST_HEIGHT, MOST_HEIGHT = 8, 14  # rows of a chart


class SweepScreen(Screen[None]):
    """Shows the trials of one sweep. Their values are updated."""

    DEFAULT_CSS = """
    SweepScreen #top { height: auto; padding: 0 1; background: $primary; color: $text; text-style: bold; }
    SweepScreen VerticalScroll {
        height: 1fr; padding: 0 1; background: $background; scrollbar-size-vertical: 1; scrollbar-gutter: stable;
    }
    SweepScreen VerticalScroll > Static { width: 1fr; height: auto; }
    """
    BINDINGS: ClassVar[list[BindingType]] = bindings("sweep")
    places: tuple[Place, ...] = ("sweep",)

    def __init__(self, store: Store, name: str, unicode: bool) -> None:
        super().__init__()
        self.store, self.sweep, self.unicode = store, name, unicode
        self._shown: list[TrialRow] = []

    def compose(self) -> ComposeResult:
        yield Static(id="top", markup=False)
        with VerticalScroll():
            yield Static(id="trials", markup=False)
        yield StatusRow()

    def on_mount(self) -> None:
        self.query_one(VerticalScroll).focus()

    def on_resize(self) -> None:
        self._show()

    def update_from_store(self, changes: Changes) -> None:
        """Update the trials."""
        if self._trials() != self._shown:
            self._show()

    def _entries(self) -> list[Entry]:
        return [entry for entry in self.store.entries.values() if sweep_name(entry) == self.sweep]

    def _trials(self) -> list[TrialRow]:
        return [_trial_row(entry) for entry in self._entries()]

    def _show(self) -> None:
        self._shown = trials = self._trials()
        if not trials:  # all of its runs have been deleted
            return
        objective = str(self._entries()[0].status.sweep.get("objective", ""))
        width, height = max(20, self.size.width - MARGIN), min(MOST_HEIGHT, max(LEAST_HEIGHT, self.size.height // 4))
        lines = sweep_charts(trials, width, height, unicode=self.unicode, color=True)
        lines += ["", *trial_table(trials, objective, width, color=True)]
        self.query_one("#top", Static).update(Content(describe_sweep(self.sweep, trials, objective)))
        text = Text.from_ansi("\n".join(lines), no_wrap=False)
        self.query_one("#trials", Static).update(Content.from_rich_text(text))

    def action_back(self) -> None:
        self.app.pop_screen()


def _trial_row(entry: Entry) -> TrialRow:
    status = entry.status
    number, outcome = status.sweep.get("trial"), find_outcome(Run(entry.path), status)
    result = outcome.result if outcome else "training" if entry.state in ALIVE else "interrupted"
    options = trial_options(status)
    return TrialRow(
        number if isinstance(number, int) else 0, entry.key, result, trial_value(status), status.step, options
    )
