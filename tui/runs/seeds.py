"""Finds runs that differ only in the seed."""

from __future__ import annotations

from tui.runs.entries import entry_group
from tui.store import Store


def seed_group(store: Store, key: str) -> str:
    """Return a key that runs share if they differ only in the seed. A run without options forms its own group."""
    entry = store.entries.get(key)  # None if the run was deleted in the meantime
    return (entry_group(entry) if entry is not None else "") or key


def siblings(store: Store, key: str) -> list[str]:
    """Return the other runs that differ from a run only in the seed."""
    if key not in store.entries:
        return []
    preset = store.entries[key].status.preset  # comparing presets first avoids reading the options of most runs
    others = [other for other, entry in store.entries.items() if other != key and entry.status.preset == preset]
    return [other for other in others if seed_group(store, other) == seed_group(store, key)]
