"""The line above the list of runs, and the line below the charts."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from textual.widgets import Static

from ppo_unified.runs.folder import ACTIVE
from ppo_unified.terminal.chat import wrap_text
from ppo_unified.text import clean, elide, pad
from tui.runs.entries import Entry

SHORTEST = 12  # columns that the path of the runs folder always gets


class TopLine(Static):
    """Shows the runs folder and the numbers of listed, running and marked runs."""

    def __init__(self, runs: Path, readonly: bool) -> None:
        super().__init__(id="top", markup=False)
        self._title, self._folder = "ppo-unified   read-only" if readonly else "ppo-unified", clean(runs)

    def show(self, entries: Collection[Entry], marked: int, hidden: int, hidden_sort: str) -> None:
        """Update the line.

        `hidden` is the number of marked runs that the filter hides. `hidden_sort` is the column that the list is sorted
        by, if that column is not visible.
        """
        total, active = len(entries), sum(entry.state in ACTIVE for entry in entries)
        parts = [f"{total} run{'s' * (total != 1)}", f"{active} running"]
        parts += [f"{marked} marked" + (f" ({hidden} hidden by the filter)" if hidden else "")] if marked else []
        parts += [f"sorted by {hidden_sort}"] if hidden_sort else []
        facts = "   ".join(parts)
        width = max(1, self.app.size.width - 2)  # known before the first layout, unlike the size of this widget
        folder = elide(self._folder, max(SHORTEST, width - len(f"{self._title}   folder    {facts}")))
        self.update(pad("   ".join([self._title, f"folder {folder}", facts]), width), layout=False)


class QueryLine(Static):
    """Shows an error in the query, the runs folder or the event files. If there is no error, shows the query."""

    def __init__(self) -> None:
        super().__init__(id="query", markup=False)

    def show(self, query: str, problem: str, listed: int, total: int) -> None:
        """Update the line."""
        self.display = bool(query or problem)
        self.set_class(bool(problem), "-problem")
        line = clean(problem) or f"filter: {clean(query)}   {listed} of {total} runs   / edit filter"
        width = max(1, self.app.size.width - 2)
        first, *others = wrap_text(line, width)
        line = "\n".join([first, *([pad(" ".join(others), width).rstrip()] if others else [])])
        if line != self.content:  # a new layout takes as long as drawing two charts
            self.update(line)
