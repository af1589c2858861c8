"""Which runs differ in nothing but the seed."""

from __future__ import annotations

from tui.runs.entries import entry_group
from tui.store import Store


def seed_group(store: Store, key: str) -> str:
    """What a run has in common with those that differ from it in the seed only; a run without options is alone."""
    entry = store.entries.get(key)  # None: gone meanwhile
    return (entry_group(entry) if entry is not None else "") or key


def siblings(store: Store, key: str) -> list[str]:
    """The other runs of a run's group."""
    if key not in store.entries:
        return []
    preset = store.entries[key].status.preset  # spares reading most of the others' options
    others = [other for other, entry in store.entries.items() if other != key and entry.status.preset == preset]
    return [other for other in others if seed_group(store, other) == seed_group(store, key)]
