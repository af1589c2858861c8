"""The screen that shows the trials of a hyperparameter sweep: options against the value, and a table."""

from __future__ import annotations

from typing import ClassVar

from textual.binding import BindingType

from ppo_unified.runs.folder import ALIVE, Run
from ppo_unified.runs.trials import find_outcome, trial_options, trial_value
from ppo_unified.terminal.sweep_table import TrialRow, describe_sweep, sweep_charts, trial_table
from tui.action import Place
from tui.actions import bindings
from tui.runs.entries import Entry, sweep_name
from tui.runs.text_screen import TextScreen
from tui.store import Store

LEAST_HEIGHT, MOST_HEIGHT = 8, 14  # rows of a chart


class SweepScreen(TextScreen):
    """Shows the trials of one sweep. Their values are updated."""

    BINDINGS: ClassVar[list[BindingType]] = bindings("sweep")
    places: tuple[Place, ...] = ("sweep",)

    def __init__(self, store: Store, name: str, unicode: bool) -> None:
        super().__init__(store)
        self.sweep, self.unicode = name, unicode

    def _entries(self) -> list[Entry]:
        return [entry for entry in self.store.entries.values() if sweep_name(entry) == self.sweep]

    def read_values(self) -> list[TrialRow]:
        return [_trial_row(entry) for entry in self._entries()]

    def format_text(self, width: int) -> tuple[str, list[str]]:
        trials, objective = self.read_values(), str(self._entries()[0].status.sweep.get("objective", ""))
        height = min(MOST_HEIGHT, max(LEAST_HEIGHT, self.size.height // 4))
        lines = sweep_charts(trials, width, height, unicode=self.unicode, color=True)
        lines += ["", *trial_table(trials, objective, width, color=True)]
        return describe_sweep(self.sweep, trials, objective), lines


def _trial_row(entry: Entry) -> TrialRow:
    status = entry.status
    number, outcome = status.sweep.get("trial"), find_outcome(Run(entry.path), status)
    result = outcome.result if outcome else "training" if entry.state in ALIVE else "interrupted"
    options = trial_options(status)
    return TrialRow(
        number if isinstance(number, int) else 0, entry.key, result, trial_value(status), status.step, options
    )
