"""Sections of text with tables and small plots, for the terminal and for the screens of the terminal UI."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeAlias

from ppo_unified.inspection.sample_statistics import Interval, Mean
from ppo_unified.text import display_width, pad

Span: TypeAlias = tuple[str, str]  # a text and its style: "", "muted", "bold" or "accent"
Line: TypeAlias = list[Span]


class Section(NamedTuple):
    """A heading and the lines below it."""

    title: str
    lines: list[Line]


class Canvas(NamedTuple):
    """The room for sections."""

    width: int
    unicode: bool = True


def paragraph(text: str, canvas: Canvas, style: str = "muted") -> list[Line]:
    """Return a text wrapped to the width."""
    return [[(line, style)] for line in textwrap.wrap(text, canvas.width, break_on_hyphens=False)]


def table(
    rows: Sequence[Mapping[str, str]],
    canvas: Canvas,
    plots: Mapping[str, Sequence[str]] | None = None,
    accent: int = -1,
) -> list[Line]:
    """Return a header and one line per row, with numbers aligned to the right.

    `plots` maps the header of a last column to its cells. Columns that do not fit are omitted, the last ones first;
    the plot is omitted before them. The row `accent` is highlighted.
    """
    if not canvas.unicode:
        rows = [{key: cell.replace("±", "+-") for key, cell in row.items()} for row in rows]
    keys = list(rows[0])
    widths = {key: max(display_width(cell) for cell in [key, *(row[key] for row in rows)]) for key in keys}
    while len(keys) > 1 and sum(widths[key] for key in keys) + 2 * (len(keys) - 1) > canvas.width:
        keys.pop()
    cells = [
        "  ".join(pad(row[key], widths[key]) if key == keys[0] else row[key].rjust(widths[key]) for key in keys)
        for row in [dict(zip(keys, keys, strict=True)), *rows]
    ]
    lines: list[Line] = [[(cells[0], "muted")]]
    lines += [[(cell, "accent" if number == accent else "")] for number, cell in enumerate(cells[1:])]
    for header, plot in (plots or {}).items():
        if display_width(cells[0]) + 2 + max(map(display_width, [header, *plot])) <= canvas.width:
            for line, text in zip(lines, [header, *plot], strict=True):
                line.append(("  " + text, "muted" if text is header else "accent"))
    return lines


def plot_room(rows: Sequence[Mapping[str, str]], canvas: Canvas, most: int = 40) -> int:
    """Return the columns that a table leaves for a plot at its right."""
    widths = [max(display_width(cell) for cell in [key, *(row[key] for row in rows)]) for key in rows[0]]
    return min(most, canvas.width - sum(widths) - 2 * len(widths))


def interval_plots(
    intervals: Sequence[Interval], ends: tuple[float, float], width: int, unicode: bool, mark: float | None = None
) -> list[str]:
    """Return one line per interval: a point with its ends on a common axis, and a line at `mark`."""
    low, high = ends
    line, point, axis = ("─", "●", "│") if unicode else ("-", "o", "|")

    def place(x: float) -> int:
        return round(min(max((x - low) / max(high - low, 1e-12), 0.0), 1.0) * (width - 1))

    texts = []
    for value, first, last in ((x.value, x.low, x.high) for x in intervals):
        signs = [" "] * width
        if mark is not None:
            signs[place(mark)] = axis
        if first is not None and last is not None:
            signs[place(first) : place(last) + 1] = line * (place(last) - place(first) + 1)
        if value is not None:
            signs[place(value)] = point
        texts.append("".join(signs))
    return texts


def axis_label(ends: tuple[float, float], width: int) -> str:
    """Return the ends of an axis as a line of `width` columns."""
    low, high = (format_value(end) for end in ends)
    return low + high.rjust(max(1, width - len(low)))


def format_value(value: float | None) -> str:
    """Return a number with three significant digits."""
    if value is None:
        return "-"
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        digits = 3 if abs(value) < 10 else 2 if abs(value) < 100 else 1
        text = f"{value:z.{digits}f}"
        return f"{value:.4f}" if 0 < abs(value) < 0.01 else text
    return f"{value:.1e}"


def format_mean(mean: Mean) -> str:
    """Return a mean with its standard error, which has one digit, or two if the first is 1 or 2."""
    error = mean.error
    if not error or not 1e-4 < error < 1e3:
        return format_value(mean.value) + (f" ± {format_value(error)}" if error is not None else "")
    exponent = math.floor(math.log10(error))
    digits = max(0, -exponent + (error < 3 * 10**exponent))
    return f"{mean.value:z.{digits}f} ± {error:.{digits}f}"


def format_interval(interval: Interval) -> str:
    """Return the ends of an interval."""
    return "-" if interval.low is None else f"{format_value(interval.low)} .. {format_value(interval.high)}"


def format_sections(sections: Sequence[Section]) -> str:
    """Return sections as plain text."""
    return "\n\n".join(
        "\n".join([section.title, *("".join(text for text, _ in line).rstrip() for line in section.lines)])
        for section in sections
    )
