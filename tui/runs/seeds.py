"""Finds runs that differ only in the seed, and selects one run per seed."""

from __future__ import annotations

from collections.abc import Sequence

from ppo_unified.runs.seeds import one_run_per_seed, seed_of
from tui.charts.traces import Trace
from tui.runs.entries import entry_group, entry_options
from tui.store import Store


def seed_group(store: Store, key: str) -> str:
    """Return a key that runs share if they differ only in the seed. A run without options forms its own group."""
    entry = store.entries.get(key)  # None if the run was deleted in the meantime
    return (entry_group(entry) if entry is not None else "") or key


def siblings(store: Store, key: str) -> list[str]:
    """Return the other runs that differ from a run only in the seed. A repeated run with the same seed is not one."""
    if key not in store.entries:
        return []
    preset = store.entries[key].status.preset  # comparing presets first avoids reading the options of most runs
    others = [other for other, entry in store.entries.items() if other != key and entry.status.preset == preset]
    group, seed = seed_group(store, key), _seed(store, key)
    return [other for other in others if seed_group(store, other) == group and _seed(store, other) != seed]


def _seed(store: Store, key: str) -> int:
    entry = store.entries[key]
    return seed_of(entry.status, entry_options(entry))


def mark_repeats(store: Store, traces: Sequence[Trace]) -> list[Trace]:
    """Mark the runs whose seed another run of the group represents: the pinned run or that of `one_run_per_seed`."""
    groups: dict[str, list[Trace]] = {}
    for trace in traces:
        if trace.group and trace.key in store.entries and len(trace.curve[0]):
            groups.setdefault(trace.group, []).append(trace)
    repeats: set[str] = set()
    for members in groups.values():
        if len(members) == 1:
            continue
        entries = {trace.key: store.entries[trace.key] for trace in members}
        by_seed = one_run_per_seed({key: (entry.status, entry_options(entry)) for key, entry in entries.items()})
        by_seed |= {_seed(store, trace.key): trace.key for trace in members if trace.pinned}
        repeats |= entries.keys() - by_seed.values()
    return [trace._replace(repeat=True) if trace.key in repeats else trace for trace in traces]
