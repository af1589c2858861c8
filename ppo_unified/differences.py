"""The options in which runs differ, as the command line and the terminal UI show them. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ppo_unified.text import BOLD, clean, painted, table, width_of

Options = Mapping[str, Any]  # dotted keys, as `query.flatten` makes them


def differing(tables: Sequence[Options]) -> list[str]:
    """The options that are not the same in all tables; one that a table lacks differs."""
    keys = dict.fromkeys(key for options in tables for key in options)
    return [key for key in keys if any(key not in t or t[key] != tables[0].get(key) for t in tables)]


def difference_lines(tables: Mapping[str, Options], width: int, color: bool = False) -> list[str]:
    """The differing options of some runs by name, in lines of at most `width` columns where words allow it.

    A line for each option; where that is too wide, one for each run; where both are, a line for each value.
    """
    chosen = differing(list(tables.values()))
    if not chosen:
        return ["the options are the same"]
    cells = {clean(run): {clean(key): spelled(options.get(key)) for key in chosen} for run, options in tables.items()}
    names = [clean(key) for key in chosen]
    by_option = [{"option": name} | {run: row[name] for run, row in cells.items()} for name in names]
    by_run = [{"run": run} | row for run, row in cells.items()]
    for rows in (by_option, by_run):
        if width_of(table(rows)) <= width:
            return table(rows, color)
    widest = width_of(list(cells))
    lines = []
    for name in names:
        lines.append(painted(name, BOLD if color else ""))
        lines += [f"  {run}{' ' * (widest - width_of([run]))}  {row[name]}" for run, row in cells.items()]
    return lines


def spelled(value: Any) -> str:
    """An option as TOML spells it, but for the quotes around a text; '-' where there is none."""
    if value is None or value == "":
        return "-"
    return str(value).lower() if isinstance(value, bool) else clean(value)
