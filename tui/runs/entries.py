"""The entries of the list of runs, and how they are filtered and sorted."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any, TypeAlias

from ppo_unified.errors import UsageError
from ppo_unified.runs.folder import SOLVED, Run, Status
from ppo_unified.runs.progress import fraction_done
from ppo_unified.runs.query import Lookup, Query, lookup, read_options
from ppo_unified.runs.source import describe_source
from ppo_unified.terminal.option_diff import seedless_key
from tui.folder_scanner import Stamp, stamp_if_any

LOG, UNREADABLE = "log", "unreadable"  # additional states that neither run.json nor `Run.state` uses

_STATES = (
    *("running", "starting", "stopping", "stalled", "crashed", "failed", "stopped", "finished"),
    *(SOLVED, LOG, UNREADABLE),
)


@dataclass(frozen=True)
class Entry:
    """A run, or a folder with event files of another program, as of the last scan."""

    key: str  # path relative to the runs folder
    path: Path
    foreign: bool  # True for a folder of another program: event files without a run.json
    status: Status
    state: str  # the displayed state: that of `Run.state`, 'log' or 'unreadable'
    note: str = ""
    speed: float | None = None  # steps/s: over the last seconds of a running run, over all time of an ended one
    eta_s: float | None = None
    problem: str = ""  # why the run cannot be read
    partial: bool = False  # only the end of a log of another program has been read
    not_shown: str = ""  # data of another program that charts cannot show, such as '3 images, 12 histograms'
    has_checkpoint: bool = False
    score_tag: str = ""  # the metric of another program that is shown as the score
    options: Mapping[str, Any] = field(default_factory=dict)  # dotted names; empty until read, see `Store`

    @cached_property
    def group(self) -> str:
        """A key that entries share if they differ only in the seed, or "" if the entry has no options."""
        options = known_options(self)
        return describe_source(self.status) + seedless_key(options) if options else ""


def sweep_name(entry: Entry | None) -> str:
    """Return the name of the sweep that a run is a trial of, or ""."""
    return str(entry.status.sweep.get("name") or "") if entry is not None else ""


def describe_not_shown(entry: Entry) -> str:
    """Return a sentence about the data of another program that charts cannot show, or "" if they show all of it."""
    command = shlex.join(["ppo-unified", "tensorboard", "--runs", str(entry.path)])
    return f"Not shown: {entry.not_shown}. To see all data: {command}" if entry.not_shown else ""


def select_entries(entries: Iterable[Entry], query: Query) -> list[Entry]:
    """Return the entries that a query selects. An entry with an unreadable config.toml has no options to match."""
    if not query.groups:
        return list(entries)
    return [entry for entry in entries if query.matches(_lookup(entry))]


def _lookup(entry: Entry) -> Lookup:
    """Return the lookup that a query uses for an entry. The displayed key is the entry's name."""
    return lookup(replace(entry.status, name=entry.key), entry.state, partial(entry_options, entry), lambda: entry.note)


def entry_options(entry: Entry) -> dict[str, Any]:
    """Return an entry's config.toml with dotted keys, or an empty dict if it is foreign or cannot be read."""
    if entry.foreign:
        return {}
    try:
        return _read_options(entry.path, stamp_if_any(Run(entry.path).config))
    except UsageError:
        return {}


def known_options(entry: Entry) -> Mapping[str, Any]:
    """Return the options that the store has read or, if it has not read them yet, those in config.toml."""
    return entry.options or entry_options(entry)


@lru_cache(maxsize=4096)
def _read_options(path: Path, _stamp: Stamp | None) -> dict[str, Any]:
    """Read a run's options. The result is cached until the file's stamp changes."""
    return read_options(Run(path))


def _natural_key(text: str) -> list[tuple[float, str]]:
    """Return a sort key that compares digits as numbers ('run-10' after 'run-9') and puts them before words."""
    return [
        (int(digits) if digits else math.inf, word) for digits, word in re.findall(r"(\d{1,18})|(\D+)", text.casefold())
    ]


Key: TypeAlias = Callable[[Entry], Any]

_KEYS: dict[str, tuple[Key, bool]] = {  # column -> (value, True if the largest value comes first)
    "name": (lambda entry: _natural_key(entry.key), False),
    "state": (lambda entry: _STATES.index(entry.state) if entry.state in _STATES else len(_STATES), False),
    "preset": (lambda entry: entry.status.preset.casefold() or None, False),
    "step": (lambda entry: entry.status.step, True),
    "percent": (lambda entry: fraction_done(entry.status), True),
    "score": (lambda entry: entry.status.score, True),
    "best": (lambda entry: entry.status.best_score, True),
    "speed": (lambda entry: entry.speed, True),
    "eta": (lambda entry: entry.eta_s, False),
    "age": (lambda entry: -entry.status.started or None, False),
}


def _option_key(option: str) -> Key:
    """Return a key that sorts numbers by value and puts them before all other values, which it sorts as text."""

    def key(entry: Entry) -> Any:
        value = entry.options.get(option)
        if value is None or value == "":
            return None
        return (0, value, []) if isinstance(value, int | float) else (1, 0, _natural_key(str(value)))

    return key


def is_ascending(column: str, reverse: bool) -> bool:
    """Return True if `sort_entries` returns the entry with the smallest value first."""
    _, largest_first = _KEYS.get(column, (None, False))
    return largest_first == reverse


def sort_entries(entries: Iterable[Entry], column: str, reverse: bool) -> list[Entry]:
    """Sort entries by a column or an option, in the default direction or reversed. Entries without a value come last.

    The default direction of options is ascending.
    """
    value, largest_first = _KEYS.get(column) or (_option_key(column), False)
    there, missing = [], []
    for entry in entries:
        found = value(entry)
        if found is None or (isinstance(found, float) and math.isnan(found)):
            missing.append(entry)
        else:
            there.append(entry)
    return sorted(there, key=value, reverse=largest_first != reverse) + missing
