"""The marked, pinned and drawn runs."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from ppo_unified.runs.metrics import is_score, score_threshold
from ppo_unified.text import clean
from tui.charts.colors import series_colors, series_letters
from tui.charts.traces import Trace
from tui.runs.entries import Entry, known_options
from tui.runs.run_list import Marks
from tui.runs.seeds import UNGROUPED, SeedGroups, group_seeds
from tui.store import Store
from tui.view_state import ViewState


def make_marks(
    keys: Sequence[str], pinned: str, seeds: SeedGroups, dark: bool, has_colors: bool, marked: Collection[str] = ()
) -> Marks:
    """Return the colors and letters of the drawn runs `keys` for a dark or a light background."""
    colors = series_colors(keys, pinned, dark, seeds.groups)
    return Marks(colors, series_letters(keys, has_colors, seeds.groups), frozenset(marked), pinned, seeds)


def make_traces(store: Store, marks: Marks, tag: str) -> list[Trace]:
    """Return the curves of one metric, one per drawn run that has it, in the order of the drawn runs."""
    traces = []
    for key, color in marks.colors.items():
        if (curve := store.curve(key, tag)) is not None and (entry := store.entries.get(key)) is not None:
            trace = Trace(
                key=key,
                label=clean(key),
                color=color,
                curve=curve,
                pinned=key == marks.pinned,
                group=marks.seeds.groups.get(key, ""),
                repeat=key in marks.seeds.repeats,
                threshold=score_threshold(known_options(entry), entry.status.preset) if is_score(tag) else None,
                letter=marks.letters.get(key, ""),
                foreign=entry.foreign,
            )
            traces.append(trace)
    return traces


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
        """Return the listed marked runs or, without marks, the current run. The pinned run is always first.

        The charts show the curves in this order everywhere, and draw the first one on top.
        """
        keys = self.listed_marks() or ([current.key] if current is not None else [])
        pinned = [self._state.pinned] if self._state.pinned in self._store.entries else []
        return pinned + [key for key in keys if key not in pinned]

    def marks(self, current: Entry | None, dark: bool, has_colors: bool, aggregate: bool) -> Marks:
        """Return the colors, letters and marks for a dark or a light background."""
        keys, pinned = self.drawn_keys(current), self._state.pinned
        seeds = group_seeds(self._store, keys, pinned) if aggregate else UNGROUPED
        return make_marks(keys, pinned, seeds, dark, has_colors, self._state.marked)

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
