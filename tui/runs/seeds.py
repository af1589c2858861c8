"""Finds runs that differ only in the seed, and selects one run per seed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import NamedTuple

from ppo_unified.runs.seeds import one_run_per_seed, seed_of
from tui.runs.entries import known_options
from tui.store import Store


class SeedGroups(NamedTuple):
    """The drawn runs that are combined into one curve per group."""

    groups: Mapping[str, str]  # key of a run -> a text that runs share if they differ only in the seed
    repeats: frozenset[str]  # the runs whose seed another run represents, so that they are not drawn


UNGROUPED = SeedGroups(MappingProxyType({}), frozenset())


def seed_group(store: Store, key: str) -> str:
    """Return a text that runs share if they differ only in the seed. A run without options forms its own group."""
    entry = store.entries.get(key)  # None if the run was deleted in the meantime
    return (entry.group if entry is not None else "") or key


def siblings(store: Store, key: str) -> list[str]:
    """Return the other runs that differ from a run only in the seed. Repeated runs with the same
    seed are not siblings.
    """
    if key not in store.entries:
        return []
    preset = store.entries[key].status.preset  # comparing presets first avoids reading the options of most runs
    others = [other for other, entry in store.entries.items() if other != key and entry.status.preset == preset]
    group, seed = seed_group(store, key), _seed(store, key)
    return [other for other in others if seed_group(store, other) == group and _seed(store, other) != seed]


def _seed(store: Store, key: str) -> int:
    entry = store.entries[key]
    return seed_of(entry.status, known_options(entry))


def group_seeds(store: Store, keys: Iterable[str], pinned: str) -> SeedGroups:
    """Group runs that differ only in the seed. Each seed is represented by the run of `one_run_per_seed`.

    The pinned run is in no group, because it has its own curve. Other runs with its options and seed are repeats.
    """
    groups = {key: seed_group(store, key) for key in keys if key != pinned}
    members: dict[str, list[str]] = {}
    for key, group in groups.items():
        if key in store.entries and store.tags(key):  # a run without points cannot represent a seed
            members.setdefault(group, []).append(key)
    repeats: set[str] = set()
    for group, some in members.items():
        entries = {key: store.entries[key] for key in some}
        by_seed = one_run_per_seed({key: (entry.status, known_options(entry)) for key, entry in entries.items()})
        if pinned in store.entries and store.tags(pinned) and seed_group(store, pinned) == group:
            by_seed.pop(_seed(store, pinned), None)
        repeats |= entries.keys() - by_seed.values()
    return SeedGroups(groups, frozenset(repeats))
