"""Draws scatter charts: one mark per point, against a linear, a logarithmic or a categorical x axis."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ppo_unified.terminal.braille import ASCII, BRAILLE, Glyphs, View
from ppo_unified.terminal.chart import add_margins, floor_row, label_row, place_ticks, y_labels
from ppo_unified.terminal.ticks import GUTTER, X_LABEL, Tick, log_ticks, plain_ticks
from ppo_unified.text import BOLD, DIM, apply_style, clean, elide, pad

LARGEST = 1e250  # larger values are drawn as this value, so that differences do not overflow
LOG_RANGE = 30.0  # positive values with at least this ratio have a logarithmic axis


class Point(NamedTuple):
    """A point. Its x value is text, because it may be a number or a category."""

    x: str
    y: float
    kind: str  # a key of the table of marks


class Mark(NamedTuple):
    """The sign of a kind of points."""

    sign: str
    plain: str  # the sign in ASCII
    style: str  # an ANSI code


class _Axis(NamedTuple):
    """An x axis, and the positions of the points on it."""

    ends: tuple[float, float]
    places: list[float]
    ticks: Sequence[Tick]


def scatter(
    points: Sequence[Point],
    marks: Mapping[str, Mark],
    title: str,
    width: int,
    height: int,
    *,
    unicode: bool = True,
    color: bool = False,
) -> list[str]:
    """Draw points in `height` rows (at least 5) of `width` columns (at least 20).

    Where points share a cell, the kind that comes last in `marks` is visible.
    """
    glyphs, room, rows = BRAILLE if unicode else ASCII, width - GUTTER - 1, height - 3
    head = pad(elide(title, width), width)
    lines = [apply_style(head, BOLD) if color else head]
    points = [point._replace(y=_clip(point.y)) for point in points if not math.isnan(point.y)]
    if not points:
        return [*lines, pad(" " * GUTTER + "no points yet", width), *[" " * width] * (height - 2)]
    axis = _make_axis([point.x for point in points], room)
    low, high = min(point.y for point in points), max(point.y for point in points)
    view = add_margins(View(*axis.ends, low, high))
    body = _place(points, axis.places, marks, view, room, rows, glyphs, color)
    labels = y_labels((low, high), view, rows, False, glyphs)
    for row, cells in enumerate(body):
        side = labels.get(row, "").rjust(GUTTER) + (glyphs.tick if row in labels else glyphs.side)
        lines.append((apply_style(side, DIM) if color else side) + "".join(cells))
    ticks = place_ticks(axis.ticks, view, room, GUTTER)
    floor = [" " * GUTTER + glyphs.corner + floor_row(ticks, room, glyphs), label_row(ticks, width, GUTTER)]
    return lines + [apply_style(row, DIM) if color else row for row in floor]


def _make_axis(texts: Sequence[str], room: int) -> _Axis:
    numbers = [_number(text) for text in texts]
    values = [number for number in numbers if number is not None]
    if len(values) < len(texts):
        texts = [clean(text) for text in texts]
        names = sorted(set(texts))
        ticks = [Tick(number, elide(name, max(3, room // len(names) - 2))) for number, name in enumerate(names)]
        return _Axis((-0.5, len(names) - 0.5), [float(names.index(text)) for text in texts], ticks)
    is_log = min(values) > 0 and max(values) / min(values) >= LOG_RANGE
    places = [math.log10(value) for value in values] if is_log else values
    view = add_margins(View(min(places), max(places), 0, 1))
    find_ticks = log_ticks if is_log else plain_ticks
    return _Axis((view.left, view.right), places, find_ticks(view.left, view.right, max(1, room // X_LABEL)))


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return _clip(value) if math.isfinite(value) else None


def _clip(value: float) -> float:
    return min(max(value, -LARGEST), LARGEST)


def _place(
    points: Sequence[Point],
    places: Sequence[float],
    marks: Mapping[str, Mark],
    view: View,
    room: int,
    rows: int,
    glyphs: Glyphs,
    color: bool,
) -> list[list[str]]:
    """Return the cells of the plot [rows, room]."""
    order, cells = list(marks), [[" "] * room for _ in range(rows)]
    dots = rows * glyphs.rows - 1
    for point, x in sorted(zip(points, places, strict=True), key=lambda pair: order.index(pair[0].kind)):
        column = round((x - view.left) / (view.right - view.left) * (room - 1))
        row = round((view.high - point.y) / (view.high - view.low) * dots) // glyphs.rows
        mark = marks[point.kind]
        sign = mark.sign if glyphs is BRAILLE else mark.plain
        cells[row][column] = apply_style(sign, mark.style) if color else sign
    return cells


def arrange(charts: Sequence[Sequence[str]], across: int, gap: int = 2) -> list[str]:
    """Place charts of equal height beside each other, `across` in each row of charts."""
    lines = []
    for start in range(0, len(charts), across):
        for parts in zip(*charts[start : start + across], strict=True):
            lines.append((" " * gap).join(parts).rstrip())
    return lines


def fit_across(count: int, width: int, least: int, most: int, gap: int = 2) -> tuple[int, int]:
    """Return how many of `count` charts fit beside each other in `width` columns, and the width of each chart."""
    across = max(1, min(count, (width + gap) // (least + gap)))
    return across, max(20, min(most, (width - gap * (across - 1)) // across))
