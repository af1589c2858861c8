"""Which runs differ in nothing but the seed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from tui.entries import options_of_entry

if TYPE_CHECKING:
    from tui.store import Store


class Seeds:
    """Groups the runs of a store by their options. A run's options are read once: they stay what it began with."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._known: dict[tuple[Path, float], str] = {}  # folder and start of a run -> its options but for the seed

    def group(self, key: str) -> str:
        """What a run has in common with those that differ from it in the seed only; a run without options is alone."""
        entry = self._store.entries.get(key)
        if entry is None:  # gone meanwhile
            return key
        known = entry.path, entry.status.started
        if known not in self._known:
            options = options_of_entry(entry)
            options = {option: value for option, value in options.items() if option != "seed"} or {"": key}
            self._known[known] = json.dumps(options, sort_keys=True, default=str)
        return self._known[known]

    def siblings(self, key: str) -> list[str]:
        """The other runs of its group."""
        entries = self._store.entries
        if key not in entries:
            return []
        preset = entries[key].status.preset  # spares reading most of the others' options
        others = [other for other, entry in entries.items() if other != key and entry.status.preset == preset]
        return [other for other in others if self.group(other) == self.group(key)]
