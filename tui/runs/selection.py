"""The marked, pinned and drawn runs."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from ppo_unified.text import clean
from tui.charts.traces import Trace, series_colors
from tui.runs.entries import Entry, entry_threshold
from tui.runs.run_list import Marks
from tui.runs.seeds import mark_repeats, seed_group
from tui.store import Store
from tui.view_state import ViewState


class Selection:
    """Manages the marks and the pin. They stay in the view state even while a run is missing."""

    def __init__(self, store: Store, state: ViewState) -> None:
        self._store, self._state = store, state
        self.listed: Collection[str] = frozenset()  # the runs that match the filter

    def marked_keys(self) -> list[str]:
        """Return the marked runs that exist."""
        return [key for key in self._state.marked if key in self._store.entries]

    def listed_marks(self) -> list[str]:
        """Return the marked runs that are listed. The filter hides the other marked runs."""
        return [key for key in self.marked_keys() if key in self.listed]

    def drawn_keys(self, current: Entry | None) -> list[str]:
        """Return the listed marked runs, or the current run if there are none.

        The pinned run is last and drawn on top, even if it is not listed.
        """
        keys = self.listed_marks() or ([current.key] if current is not None else [])
        pinned = [self._state.pinned] if self._state.pinned in self._store.entries else []
        return [key for key in keys if key not in pinned] + pinned

    def marks(self, current: Entry | None, dark: bool) -> Marks:
        """Return the colors and marks for a dark or a light background."""
        colors = series_colors(self.drawn_keys(current), pinned=self._state.pinned, dark=dark)
        return Marks(colors, frozenset(self._state.marked), self._state.pinned)

    def traces(self, marks: Marks, tag: str, aggregate: bool) -> list[Trace]:
        """Return the curves of one metric, one per run in `marks` that has it, in drawing order."""
        drawn = []
        for key, color in marks.colors.items():
            if (curve := self._store.curve(key, tag)) is not None:
                group = seed_group(self._store, key) if aggregate else ""
                threshold = entry_threshold(self._store.entries.get(key), tag)
                drawn.append(Trace(key, clean(key), color, curve, key == marks.pinned, group, threshold=threshold))
        return mark_repeats(self._store, drawn)

    def toggle_mark(self, key: str) -> None:
        """Mark or unmark a run."""
        marked = self._state.marked
        marked.remove(key) if key in marked else marked.append(key)

    def toggle_all(self, keys: Sequence[str]) -> None:
        """Mark all of these runs, or unmark them if all are marked."""
        everything = set(keys) <= set(self._state.marked)
        others = [key for key in self.marked_keys() if key not in keys]
        self._state.marked = others + ([] if everything else list(keys))

    def toggle_pin(self, key: str) -> None:
        """Pin or unpin a run."""
        self._state.pinned = "" if self._state.pinned == key else key

    def rename(self, key: str, new: str) -> None:
        """Move a run's mark and pin to its new key."""
        state = self._state
        state.marked = [new if name == key else name for name in state.marked]
        state.pinned = new if state.pinned == key else state.pinned

    def forget(self, key: str) -> None:
        """Remove a run's mark and pin."""
        state = self._state
        state.marked = [name for name in state.marked if name != key]
        state.pinned = "" if state.pinned == key else state.pinned
