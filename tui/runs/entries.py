"""One line of the list of runs, and which lines are listed in what order."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, TypeAlias

from ppo_unified.errors import UsageError
from ppo_unified.runs.folder import Run, Status
from ppo_unified.runs.query import Lookup, Query, lookup, read_options
from ppo_unified.terminal.option_diff import seedless_key
from tui.folder_scanner import Stamp, stamp_if_any

LOG, UNREADABLE = "log", "unreadable"  # states beside those of run.json and what `Run.state` makes of them

_STATES = ("running", "starting", "stopping", "stalled", "crashed", "failed", "stopped", "finished", LOG, UNREADABLE)


@dataclass(frozen=True)
class Entry:
    """A run, or a folder of another program's event files, as it was when it was last looked at."""

    key: str  # the path from the runs folder
    path: Path
    foreign: bool  # written by another program: event files without a run.json
    status: Status
    state: str  # the shown one: 'crashed', 'stalled', 'log' and 'unreadable' included
    note: str = ""
    speed: float | None = None  # steps/s: of the last seconds while it runs, of the whole run when it has ended
    eta_s: float | None = None
    problem: str = ""  # why there is nothing to say about it


def select_entries(entries: Iterable[Entry], query: Query) -> list[Entry]:
    """The entries that a query selects. One whose config.toml cannot be read has no options to match."""
    return [entry for entry in entries if query.matches(_lookup(entry))]


def _lookup(entry: Entry) -> Lookup:
    """Of an entry under the name that the list shows."""
    return lookup(replace(entry.status, name=entry.key), entry.state, partial(entry_options, entry))


def entry_options(entry: Entry) -> dict[str, Any]:
    """An entry's config.toml as dotted keys; empty where it cannot be read or another program wrote the folder."""
    if entry.foreign:
        return {}
    try:
        return _read_options(entry.path, stamp_if_any(Run(entry.path).config))
    except UsageError:
        return {}


def entry_group(entry: Entry) -> str:
    """What an entry has in common with those that differ from it in the seed only; empty where it has no options."""
    if entry.foreign:
        return ""
    try:
        return _read_common(entry.path, stamp_if_any(Run(entry.path).config))
    except UsageError:
        return ""


@lru_cache(maxsize=4096)
def _read_common(path: Path, stamp: Stamp | None) -> str:
    return seedless_key(_read_options(path, stamp))


@lru_cache(maxsize=4096)
def _read_options(path: Path, _stamp: Stamp | None) -> dict[str, Any]:
    """Read again when the file's stamp has changed, as a query is asked twice a second."""
    return read_options(Run(path))


def _percent(entry: Entry) -> float | None:
    return entry.status.step / entry.status.total_steps if entry.status.total_steps else None


def _natural_key(text: str) -> list[tuple[float, str]]:
    """'run-10' after 'run-9': digits compare as numbers, and stand before words."""
    return [
        (int(digits) if digits else math.inf, word) for digits, word in re.findall(r"(\d{1,18})|(\D+)", text.casefold())
    ]


Key: TypeAlias = Callable[[Entry], Any]

_KEYS: dict[str, tuple[Key, bool]] = {  # column -> value, and whether the largest comes first
    "name": (lambda entry: _natural_key(entry.key), False),
    "state": (lambda entry: _STATES.index(entry.state) if entry.state in _STATES else len(_STATES), False),
    "preset": (lambda entry: entry.status.preset.casefold() or None, False),
    "step": (lambda entry: entry.status.step, True),
    "percent": (_percent, True),
    "score": (lambda entry: entry.status.score, True),
    "best": (lambda entry: entry.status.best_score, True),
    "speed": (lambda entry: entry.speed, True),
    "eta": (lambda entry: entry.eta_s, False),
    "age": (lambda entry: entry.status.started or None, True),
}


def sort_entries(entries: Iterable[Entry], column: str, reverse: bool) -> list[Entry]:
    """Entries by a column, in the direction that one wants first or the other one; those without a value last."""
    value, largest_first = _KEYS[column]
    there, missing = [], []
    for entry in entries:
        found = value(entry)
        if found is None or (isinstance(found, float) and math.isnan(found)):
            missing.append(entry)
        else:
            there.append(entry)
    return sorted(there, key=value, reverse=largest_first != reverse) + missing
