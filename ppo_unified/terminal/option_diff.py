"""Finds and formats the options in which runs differ. This module does not import torch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ppo_unified.text import BOLD, apply_style, clean, format_table, max_display_width

Options = Mapping[str, Any]  # dotted keys, as returned by `query.flatten`


def find_differences(tables: Sequence[Options]) -> list[str]:
    """Return the options that differ between tables. A missing option counts as equal to an empty string."""
    keys = dict.fromkeys(key for options in tables for key in options)
    return [key for key in keys if any(_value(options, key) != _value(tables[0], key) for options in tables)]


def _value(options: Options, key: str) -> Any:
    return None if (value := options.get(key)) == "" else value


def seedless_key(options: Options) -> str:
    """Return a key that is the same for all runs that differ only in the seed."""
    return json.dumps({key: value for key, value in options.items() if key != "seed"}, sort_keys=True, default=str)


def difference_lines(tables: Mapping[str, Options], width: int, color: bool = False) -> list[str]:
    """Format the options in which runs differ, in lines of at most `width` columns if possible.

    The result is a table with one line per option. If this table is too wide, the result is a table with one line per
    run. If that is also too wide, each value has its own line.
    """
    chosen = find_differences(list(tables.values()))
    if not chosen:
        return ["the options are the same"]
    option_head, *runs = _make_distinct(["option", *map(clean, tables)])
    run_head, *names = _make_distinct(["run", *map(clean, chosen)])
    values = [[format_option(options.get(key)) for key in chosen] for options in tables.values()]
    cells = {run: dict(zip(names, row, strict=True)) for run, row in zip(runs, values, strict=True)}
    by_option = [{option_head: key} | {run: row[key] for run, row in cells.items()} for key in names]
    by_run = [{run_head: run} | row for run, row in cells.items()]
    for rows in (by_option, by_run):
        if max_display_width(format_table(rows)) <= width:
            return format_table(rows, color)
    widest = max_display_width(list(cells))
    lines = []
    for key in names:
        lines.append(apply_style(key, BOLD if color else ""))
        lines += [f"  {run}{' ' * (widest - max_display_width([run]))}  {row[key]}" for run, row in cells.items()]
    return lines


def _make_distinct(heads: Sequence[str]) -> list[str]:
    """Make column headings unique by adding apostrophes, because a run can have the same name as another column."""
    taken: list[str] = []
    for head in heads:
        taken.append(next(name for k in range(len(heads)) if (name := head + "'" * k) not in taken))
    return taken


def format_option(value: Any) -> str:
    """Format an option's value as in TOML, but without quotes. Return '-' if the value is missing or empty."""
    if value is None or value == "":
        return "-"
    return str(value).lower() if isinstance(value, bool) else clean(value)
