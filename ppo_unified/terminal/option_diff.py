"""Finds and formats the options in which runs differ. This module does not import torch."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ppo_unified.terminal.chat import wrap_text
from ppo_unified.text import BOLD, apply_style, clean, display_width, format_table, max_display_width

GAP = "   "  # between two values in one line
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

    The result is a table with one column per run. If this table is too wide, each option is followed by its values and,
    after each value, the runs that have it.
    """
    if not find_differences(list(tables.values())):
        return ["the options are the same"]
    lines = options_by_run(tables, color)
    return lines if max_display_width(options_by_run(tables)) <= width else _runs_by_value(tables, width, color)


def options_by_run(tables: Mapping[str, Options], color: bool = False) -> list[str]:
    """Return a table with one line per option in which the runs differ, and one column per run."""
    option_head, *runs = _make_distinct(["option", *map(clean, tables)])
    rows = []
    for key in find_differences(list(tables.values())):
        values = [format_option(options.get(key)) for options in tables.values()]
        rows.append({option_head: clean(key)} | dict(zip(runs, values, strict=True)))
    return format_table(rows, color, align_numbers=False) if rows else []


def _runs_by_value(tables: Mapping[str, Options], width: int, color: bool) -> list[str]:
    """Return the options in which runs differ. Each value is followed by the runs that have it."""
    chosen = find_differences(list(tables.values()))
    indent = max(display_width(clean(key)) for key in chosen) + 2
    indent = indent if indent <= width // 2 else 2  # if the names are too wide, the values are below them
    lines = []
    for key in chosen:
        runs: dict[str, list[str]] = {}
        for run, options in tables.items():
            runs.setdefault(format_option(options.get(key)), []).append(clean(run))
        texts = [f"{'not set' if value == '-' else value}: {', '.join(names)}" for value, names in runs.items()]
        rows = [" " * indent + line for line in _pack(texts, max(1, width - indent))]
        name = apply_style(clean(key), BOLD if color else "")
        lines += [name, *rows] if indent == 2 else [name + rows[0][display_width(clean(key)) :], *rows[1:]]
    return lines


def _pack(texts: Iterable[str], width: int) -> list[str]:
    """Place as many texts on each line as fit. A text that is too wide is wrapped."""
    lines: list[str] = []
    for text in texts:
        if lines and display_width(lines[-1] + GAP + text) <= width:
            lines[-1] += GAP + text
        else:
            lines += wrap_text(text, width)
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
