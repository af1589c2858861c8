"""The marked, pinned and drawn runs."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from ppo_unified.text import clean
from tui.charts.colors import series_colors, series_letters
from tui.charts.traces import Trace
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

    def marks(self, current: Entry | None, dark: bool, has_colors: bool, aggregate: bool) -> Marks:
        """Return the colors, letters and marks for a dark or a light background."""
        keys, pinned = self.drawn_keys(current), self._state.pinned
        groups = {key: seed_group(self._store, key) for key in keys} if aggregate else {}
        colors, letters = series_colors(keys, pinned, dark, groups), series_letters(keys, has_colors, groups)
        return Marks(colors, letters, frozenset(self._state.marked), pinned)

    def traces(self, marks: Marks, tag: str, aggregate: bool) -> list[Trace]:
        """Return the curves of one metric, one per run in `marks` that has it, in drawing order."""
        drawn = []
        for key, color in marks.colors.items():
            if (curve := self._store.curve(key, tag)) is not None:
                group = seed_group(self._store, key) if aggregate else ""
                pinned, letter = key == marks.pinned, marks.letters.get(key, "")
                threshold = entry_threshold(self._store.entries.get(key), tag)
                drawn.append(Trace(key, clean(key), color, curve, pinned, group, threshold=threshold, letter=letter))
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
