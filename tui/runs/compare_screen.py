"""The screen that compares the results and the options of several runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from textual.binding import BindingType

from ppo_unified.errors import UsageError
from ppo_unified.runs.folder import Run
from ppo_unified.runs.query import compared_options, read_options
from ppo_unified.runs.seeds import one_run_per_seed, seed_of
from ppo_unified.terminal.comparison import RESULTS, ComparedRun, compare, group_runs
from ppo_unified.text import clean
from tui.action import Place
from tui.actions import bindings
from tui.runs.entries import Entry
from tui.runs.text_screen import TextScreen
from tui.store import Changes, Store


class CompareScreen(TextScreen):
    """Shows the results of runs and the options in which they differ. The results of active runs are updated."""

    BINDINGS: ClassVar[list[BindingType]] = bindings("compare")
    places: tuple[Place, ...] = ("compare",)

    def __init__(self, store: Store, drawn: Sequence[Entry]) -> None:
        """Compare those of the runs in `drawn` that have options."""
        super().__init__(store)
        self.not_compared: list[str] = []  # sentences about the other runs
        self._options: dict[str, Mapping[str, Any]] = {}
        for entry in drawn:
            if not entry.foreign:
                self._add(entry)
        self._entries = {entry.key: entry for entry in drawn if entry.key in self._options}
        if foreign := ", ".join(clean(entry.key) for entry in drawn if entry.foreign):
            self.not_compared.append(f"Not compared, because another program wrote them: {foreign}")
        self._show_equal = False

    def _add(self, entry: Entry) -> None:
        try:  # the reader thread has read the options, unless the run is new or its config.toml is unreadable
            options = entry.options or read_options(Run(entry.path))
        except UsageError as error:
            self.not_compared.append(f"Not compared: {clean(entry.key)}, because {clean(error)}")
        else:
            self._options[entry.key] = compared_options(entry.status, options)

    @property
    def count(self) -> int:
        """The number of compared runs."""
        return len(self._options)

    def update_from_store(self, changes: Changes) -> None:
        """Update the results. A run that has been deleted or renamed keeps its last results."""
        self._entries = {key: self.store.entries.get(key, entry) for key, entry in self._entries.items()}
        super().update_from_store(changes)

    def read_values(self) -> list[object]:
        return [(e.state, *(getattr(e.status, name) for name in RESULTS)) for e in self._entries.values()]

    def format_text(self, width: int) -> tuple[str, list[str]]:
        runs = [
            ComparedRun(key, e.state, seed_of(e.status, self._options[key]), self._options[key], e.status)
            for key, e in self._entries.items()
        ]
        groups = group_runs(runs, one_run_per_seed)
        first, *others = compare(groups, width, color=True, show_equal=self._show_equal)
        lines = [*self.not_compared, ""] if self.not_compared else []
        lines += [*first.lines, ""] if first.lines else []
        for title, own in others:
            lines += [f"\x1b[1;4m{title}\x1b[0m", *own, ""]
        return first.title, lines[:-1]

    def action_equal(self) -> None:
        self._show_equal = not self._show_equal
        self.show_text()
