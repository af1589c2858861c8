"""One line of the list of runs, and which lines are listed in what order."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeAlias

from ppo_unified.config import read_toml
from ppo_unified.errors import UsageError
from ppo_unified.query import Query, flatten
from ppo_unified.runs import Run, Status

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


def matching(entries: Iterable[Entry], query: Query) -> list[Entry]:
    """The entries that a query selects. One whose config.toml cannot be read has no options to match."""
    return [entry for entry in entries if query.matches(_lookup(entry))]


def _lookup(entry: Entry) -> Callable[[str], Any]:
    """An entry's value for each key of a query: of run.json with the shown state and name, or of config.toml."""

    def value(key: str) -> Any:
        if key == "name":
            return entry.key
        if key == "state":
            return entry.state
        return getattr(entry.status, key) if hasattr(entry.status, key) else _options(entry).get(key)

    return value


def _options(entry: Entry) -> dict[str, Any]:
    if entry.foreign:
        return {}
    path = Run(entry.path).config
    try:
        found = path.stat()
        return _read_options(path, (found.st_mtime_ns, found.st_ino, found.st_size))
    except (OSError, UsageError):
        return {}


@lru_cache(maxsize=4096)
def _read_options(path: Path, _stamp: tuple[int, int, int]) -> dict[str, Any]:
    """config.toml as dotted keys; read again when its stamp has changed, as a query is asked twice a second."""
    return flatten(read_toml(path))


def _percent(entry: Entry) -> float | None:
    return entry.status.step / entry.status.total_steps if entry.status.total_steps else None


def _natural(text: str) -> list[tuple[float, str]]:
    """'run-10' after 'run-9': digits compare as numbers, and stand before words."""
    return [
        (int(digits) if digits else math.inf, word) for digits, word in re.findall(r"(\d{1,18})|(\D+)", text.casefold())
    ]


Key: TypeAlias = Callable[[Entry], Any]

_KEYS: dict[str, tuple[Key, bool]] = {  # column -> value, and whether the largest comes first
    "name": (lambda entry: _natural(entry.key), False),
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


def sorted_entries(entries: Iterable[Entry], column: str, reverse: bool) -> list[Entry]:
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
