"""The line above the list of runs, and the line below the charts."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from textual.widgets import Static

from ppo_unified.runs.folder import ACTIVE
from ppo_unified.terminal.chat import wrap_text
from ppo_unified.text import clean, display_width, elide, pad
from tui.runs.entries import Entry

SHORTEST = 12  # minimum columns for the path of the runs folder, if it is shown


class TopLine(Static):
    """Shows the runs folder and the numbers of listed, running and marked runs."""

    def __init__(self, runs: Path, readonly: bool) -> None:
        super().__init__(id="top", markup=False)
        self._mode, self._folder = ["read-only"] if readonly else [], clean(runs)

    def show(self, entries: Collection[Entry], marked: int, hidden: int, order: str) -> None:
        """Update the line. If there is not enough space, it omits the title and then the folder.

        `hidden` is the number of marked runs that the filter hides. `order` describes the order of the list, or is "".
        """
        total, active = len(entries), sum(entry.state in ACTIVE for entry in entries)
        parts = [f"{total} run{'s' * (total != 1)}", f"{active} running"]
        parts += [f"{marked} marked" + (f", {hidden} hidden" if hidden else "")] if marked else []
        parts += [order] if order else []
        facts = "   ".join(parts)
        width = max(1, self.app.size.width - 2)  # known before the first layout, unlike the size of this widget
        least = min(SHORTEST, display_width(self._folder))
        for first in (["ppo-unified", *self._mode], self._mode):
            room = width - display_width("   ".join([*first, "folder ", facts]))
            if room >= least:
                break
        folder = [f"folder {elide(self._folder, room)}"] if room >= least else []
        self.update(pad("   ".join([*first, *folder, facts]), width), layout=False)


class QueryLine(Static):
    """Shows the query, or an error in the query, the runs folder or the event files."""

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
