"""The columns of the list of runs that show options: those that the user chose, or those that differ between runs."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from ppo_unified.errors import UsageError, did_you_mean
from ppo_unified.terminal.option_diff import format_option
from ppo_unified.text import clean, display_width, elide
from tui.runs.entries import Entry
from tui.runs.run_list import OPTIONAL, Column

MOST = 8  # maximum number of columns if the user chose none
WIDEST = 16  # maximum width of a column


class OptionColumns:
    """Computes the columns. The result is kept until other runs are listed or an option changes."""

    def __init__(self) -> None:
        self._seen: object = None
        self._options: Mapping[str, Mapping[str, object]] = {}  # of the runs when the columns were computed
        self._columns: Mapping[str, Column] = {}

    def update(self, entries: Sequence[Entry], chosen: Sequence[str]) -> Mapping[str, Column]:
        """Return the columns for these runs, by option. If `chosen` is empty, show options that differ."""
        seen = (tuple(chosen), {entry.key: entry.status.preset for entry in entries})
        options = {entry.key: entry.options for entry in entries}
        if seen != self._seen or any(options[key] is not self._options[key] for key in options):
            names = chosen or rank_differences(entries)[:MOST]
            self._columns = {
                name: _make_column(name, head, entries, 1 if chosen else OPTIONAL + rank)
                for rank, (name, head) in enumerate(zip(names, _short_names(names), strict=True))
            }
            self._seen, self._options = seen, options
        return self._columns


def rank_differences(entries: Sequence[Entry]) -> list[str]:
    """Return the options that differ between runs of the same preset, the most useful first.

    The first option distinguishes the most runs; each further option distinguishes the most runs not yet distinguished
    by the previous options. The seed and then the remaining options come last. Options that are missing from a run
    because an older version wrote it do not count as differences.
    """
    tables: dict[str, list[Mapping[str, object]]] = {}
    for entry in entries:
        tables.setdefault(entry.status.preset, []).append(entry.options)
    differing = dict.fromkeys(name for group in tables.values() for name in _differing(group))
    cells = {name: [format_option(entry.options.get(name)) for entry in entries] for name in differing}
    seed = ["seed"] if cells.pop("seed", None) else []
    ranked: list[str] = []
    parts: list[object] = [entry.status.preset for entry in entries]  # equal for runs that are not separated yet
    while cells and len(ranked) < MOST:
        best = max(cells, key=lambda name: len(set(zip(parts, cells[name], strict=True))))
        pairs = list(zip(parts, cells.pop(best), strict=True))
        if len(set(pairs)) == len(set(parts)):
            return [*ranked, *seed, best, *cells]
        numbers = {pair: number for number, pair in enumerate(dict.fromkeys(pairs))}
        parts = [numbers[pair] for pair in pairs]
        ranked.append(best)
    return [*ranked, *seed, *cells]


def _differing(tables: Iterable[Mapping[str, object]]) -> list[str]:
    first: dict[str, object] = {}
    found: dict[str, None] = {}
    for table in tables:
        for name, value in table.items():
            if first.setdefault(name, value) != value:
                found[name] = None
    return list(found)


def read_names(text: str, known: Collection[str]) -> list[str]:
    """Return the options that a user typed, separated by spaces or commas. The last part of a name is sufficient.

    Raises UsageError unless each word names one option in `known`.
    """
    found: dict[str, None] = {}
    for word in text.replace(",", " ").split():
        name = word.replace("-", "_").lower()
        options = [name] if name in known else [option for option in known if option.rpartition(".")[2] == name]
        if len(options) > 1:
            raise UsageError(f"{word!r} is the name of several options; use {' or '.join(sorted(options))}")
        if not options:
            raise UsageError(f"no run has the option {word!r}{did_you_mean(name, sorted(known))}")
        found[options[0]] = None
    return list(found)


def _short_names(names: Sequence[str]) -> list[str]:
    """Return the last part of each name, or the complete name if another option has the same last part."""
    last = [name.rpartition(".")[2] for name in names]
    return [clean(short if last.count(short) == 1 else name) for name, short in zip(names, last, strict=True)]


def _make_column(name: str, head: str, entries: Sequence[Entry], drop: int) -> Column:
    values = [entry.options[name] for entry in entries if name in entry.options]
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    widest = max((display_width(format_option(value)) for value in values), default=0)

    def cell(entry: Entry, now: float) -> str:
        return format_option(entry.options.get(name))

    help_text = f"the option {clean(name)}"
    return Column(elide(head, WIDEST - 1), min(WIDEST, widest), drop, numbers, cell, help_text, WIDEST)
