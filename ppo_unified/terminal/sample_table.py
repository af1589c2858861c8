"""Formats samples of a rollout as tables of every PPO quantity at every step. This module does not import torch."""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from ppo_unified.text import clean, display_width, format_table, pad

NUMBER = "#"  # the table's first column
WANTED = (  # the columns after the text, most important first; those that do not fit are omitted
    *("advantage_used", "reward", "value", "advantage", "ratio", "clipped", "score", "action", "return", "kl", "delta"),
    *("next_value", "logprob_new", "logprob_old", "logprob_ref", "kl_full", "token"),
)
WIDEST_TEXT = 20
DIGITS = 4  # significant digits of the largest number in a column

ColumnHeading: TypeAlias = tuple[
    str, str, bool
]  # header, meaning, and whether its sum is shown, such as a `Quantity` of runs/samples
Steps: TypeAlias = Sequence[Mapping[str, Any]]  # the quantities of each step by name, and its "column" in the rollout


def format_samples(
    samples: Sequence[Mapping[str, Any]],
    count: int,
    quantities: Mapping[str, ColumnHeading],
    width: int,
    color: bool = False,
) -> tuple[list[str], list[str]]:
    """Return the meanings of the columns and a table for each sample, as lines of at most `width` columns if possible.

    Each sample has the same keys as in `inspect --json`: sample, row, steps and, for text, before. `count` is the
    number of all samples in the iteration.
    """
    about = {NUMBER: (NUMBER, "column of the rollout", False), **quantities}
    columns = _format_columns([step for sample in samples for step in sample["steps"]])
    sums = [{name: _sum(sample["steps"], name, about[name]) for name in columns} for sample in samples]
    headers = {name: about[name][0] for name in columns}
    shown = _choose_columns(
        {name: [headers[name], *cells, *(x[name] for x in sums)] for name, cells in columns.items()}, width
    )
    tables, start = list[str](), 0
    for sample, last in zip(samples, sums, strict=True):
        end = start + len(sample["steps"])
        rows = [{name: columns[name][i] for name in shown} for i in range(start, end)] + [last]
        start = end
        tables += ["", *textwrap.wrap(_title(sample, count), width)]
        if before := sample.get("before"):
            line = f"After {clean(json.dumps(before, ensure_ascii=False))}:"
            tables.append(pad(line, min(width, display_width(line))))
        tables += format_table([{headers[name]: row[name] for name in shown} for row in rows], color)
    hidden = [headers[name] for name in columns if name not in shown]
    return _meanings([about[name] for name in shown], hidden, width), tables


def _meanings(shown: Sequence[ColumnHeading], hidden: Sequence[str], width: int) -> list[str]:
    indent = " " * (4 + max(len(header) for header, _, _ in shown))
    lines: list[str] = []
    for header, meaning, _ in shown:
        lines += textwrap.wrap(f"  {header}".ljust(len(indent)) + meaning, width, subsequent_indent=indent)
    if hidden:
        names = ", ".join(hidden)
        lines += textwrap.wrap(f"Columns that do not fit: {names}. Use a wider terminal or --json to see them.", width)
    return lines


def _title(sample: Mapping[str, Any], count: int) -> str:
    steps = sample["steps"]
    end = "continues" if steps[-1]["continues"] else "ends"
    length = f"{len(steps)} step{'s' if len(steps) > 1 else ''}, then the episode {end}"
    return f"Sample {sample['sample']} (available: 0 to {count - 1}), row {sample['row']} of the rollout: {length}"


def _format_columns(steps: Steps) -> dict[str, list[str]]:
    """Format every quantity except `continues` as a column of cells. All cells of a column have the same precision."""
    names = [name for name in steps[0] if name not in ("column", "continues")]
    return {NUMBER: [str(step["column"]) for step in steps]} | {
        name: _format_cells([step[name] for step in steps]) for name in names
    }


def _format_cells(values: Sequence[Any]) -> list[str]:
    if isinstance(values[0], str):
        return [_format_text(value) for value in values]
    if isinstance(values[0], bool):
        return ["*" if value else "" for value in values]
    if isinstance(values[0], int):
        return [str(value) for value in values]
    largest = max((abs(value) for value in values if math.isfinite(value)), default=0.0)
    if 0 < largest < 1e-3:
        return [f"{value:.1e}" for value in values]
    if all(value == round(value) for value in values if math.isfinite(value)):
        return [f"{value:.0f}" for value in values]
    digits = min(DIGITS, max(0, DIGITS - 1 - math.floor(math.log10(largest))))
    return [f"{value:z.{digits}f}" for value in values]  # z: no minus before a zero


def _format_text(value: str) -> str:
    """Format a text for a narrow cell. If sanitizing would change the text, format it as a JSON string."""
    shown = clean(value) if clean(value) == value else clean(json.dumps(value, ensure_ascii=False))
    return pad(shown, min(WIDEST_TEXT, display_width(shown)))


def _choose_columns(columns: Mapping[str, Sequence[str]], width: int) -> list[str]:
    """Return the names of the most important columns that fit into `width`. The first column is always included."""
    widths = {name: max(map(display_width, cells)) + 2 for name, cells in columns.items()}
    texts = [name for name in columns if name not in (NUMBER, *WANTED)]
    order = [NUMBER, *dict.fromkeys(["text", *WANTED, *texts])]
    taken: list[str] = []
    for name in order:
        if name in columns and (not taken or sum(widths[x] for x in taken) + widths[name] - 2 <= width):
            taken.append(name)
    return [name for name in columns if name in taken]


def _sum(steps: Steps, name: str, about: ColumnHeading) -> str:
    """Return the sum of a column as text, or "" if a sum is meaningless for this quantity."""
    if name == NUMBER:
        return "sum"
    _, _, adds_up = about
    if not adds_up:
        return ""
    total = sum(step[name] for step in steps)
    return str(total) if isinstance(total, int) else f"{total:z.4g}"
