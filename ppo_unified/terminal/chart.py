"""Draws charts of curves with axes, in braille dots or in ASCII characters. This module uses only numpy.

`draw` returns plain text for commands. The terminal UI uses only the ticks and labels, and paints with `braille`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate
from string import ascii_lowercase, ascii_uppercase, digits
from typing import NamedTuple

import numpy as np

from ppo_unified.terminal.braille import ASCII, BRAILLE, NOTHING, Columns, Glyphs, Layer, View, log10, paint, spans
from ppo_unified.terminal.ticks import GUTTER, Tick, axis_labels, log_places, nice_ticks, plain_ticks
from ppo_unified.text import BOLD, DIM, apply_style, display_width, elide, format_number, pad

MARKS = ascii_uppercase + ascii_lowercase + digits  # distinguish curves without colour
COLORS = ("36", "33", "35", "32", "34", "31")  # the basic ANSI colours, which follow the theme of the terminal
LEAST_TITLE = 12  # a title is not shortened below this width to make room for more than one value
_NEAR = 1 / 3  # a level is drawn up to this share of the curves' range away from them
_LARGEST = 1e250  # larger values are drawn as this value


class Line(NamedTuple):
    """A curve through the points x and y [P], with x ascending. The curve has a gap if y is NaN or infinite."""

    label: str
    x: np.ndarray
    y: np.ndarray


def smooth(values: np.ndarray, weight: float, count: int = 0, last: float = 0.0) -> np.ndarray:
    """Return TensorBoard's exponential moving average [P], corrected for its bias towards 0 at the start.

    `weight` is in [0, 1); with 0 the values do not change. Values that are not finite are kept and do not affect the
    average. To continue an average, pass its `last` value and `count`, the number of finite values so far.
    """
    smoothed = np.array(values, np.float64)
    if not weight:
        return smoothed
    finite = np.isfinite(smoothed)
    if not (whole := bool(finite.all())):
        smoothed, every = smoothed[finite], smoothed
    parts, decay = (1 - weight) * smoothed, math.log(weight)
    # after k values the weights sum to 1 - weight**k, which soon rounds to 1
    if len(parts) and count:
        parts[0] -= weight * last * math.expm1(count * decay)
    averages = _decaying_sums(parts, weight)
    biased = max(0, min(len(averages), math.ceil(-40 / decay) - count))
    averages[:biased] /= -np.expm1(np.arange(count + 1, count + biased + 1) * decay)
    if whole:
        return averages
    every[finite] = averages
    return every


def _decaying_sums(values: np.ndarray, weight: float) -> np.ndarray:
    """Compute s[t] = weight * s[t - 1] + values[t]. Each pass doubles the number of values in a sum."""
    sums, span, decay = values.copy(), 1, weight
    while span < len(sums) and decay > 1e-20:  # the weight of older values is negligible
        sums[span:] += decay * sums[:-span]
        span, decay = 2 * span, decay * decay
    return sums


def find_view(lines: Sequence[Line], x_range: tuple[float, float] | None = None) -> View | None:
    """Return the window that shows all curves, or None if they have no finite value."""
    xs = [line.x for line in lines if len(line.x)]
    finite = [line.y[np.isfinite(line.y)] for line in lines]
    if not any(len(y) for y in finite):
        return None
    left, right = x_range or (float(min(x[0] for x in xs)), float(max(x[-1] for x in xs)))
    low, high = (float(f([f(y) for y in finite if len(y)])) for f in (np.min, np.max))
    return add_margins(View(left, right, low, high))


def add_margins(view: View) -> View:
    """Widen a window of zero width or height, so that a single point or a constant is in its centre."""
    left, right, low, high = view.left, view.right, view.low, view.high
    if right <= left:
        left, right = left - (abs(left) / 2 or 1.0), right + (abs(right) / 2 or 1.0)
    if _is_constant(low, high):
        middle = (low + high) / 2
        low, high = middle - (abs(middle) / 10 or 1.0), middle + (abs(middle) / 10 or 1.0)
    return View(left, right, low, high)


def _is_constant(low: float, high: float) -> bool:
    """Return True if a range has no height, except for the rounding noise of float32."""
    return high - low <= 1e-6 * max(abs(low), abs(high))


def draw(
    lines: Sequence[Line],
    width: int,
    height: int,
    title: str = "",
    *,
    unicode: bool = True,
    color: bool = False,
    log_y: bool = False,
    x_range: tuple[float, float] | None = None,
    levels: Sequence[Tick] = (),
) -> list[str]:
    """Draw a chart with a title, the last values, curves and axes.

    The chart has `height` rows (at least 4) of `width` columns (at least 20). If there are several lines, each has a
    letter in the legend and along its curve, and with `color` also a colour. A level, such as a limit, is a dashed
    line with a name.
    """
    width, height = max(20, width), max(4, height)
    glyphs = BRAILLE if unicode else ASCII
    bounded = [_drop_nonfinite_x(line._replace(x=_clip_values(line.x), y=_clip_values(line.y))) for line in lines]
    shown = [line._replace(y=log10(line.y)) for line in bounded] if log_y else bounded
    view = find_view(shown, x_range)
    head = _legend(lines, width, title, color)
    if view is None:
        points = any(len(line.x) for line in lines)
        why = ("no value above 0" if log_y else "no finite value") if points else "no points yet"
        return [head, *(pad(" " * GUTTER + (why if row == 1 else ""), width) for row in range(1, height))]
    finite = np.concatenate([line.y[np.isfinite(line.y)] for line in shown])
    view, levels = fit_levels(view, levels, log_y)
    labels = y_labels((float(finite.min()), float(finite.max())), view, height - 3, log_y, glyphs)
    room = width - GUTTER - 1
    body = _draw_curves(shown, view, room, height - 3, glyphs, color, levels)
    rows = [head]
    for row, text in enumerate(body):
        side = labels.get(row, "").rjust(GUTTER) + (glyphs.tick if row in labels else glyphs.side)
        rows.append((apply_style(side, DIM) if color else side) + text)
    ticks = place_ticks(plain_ticks(view.left, view.right, max(1, room // 7)), view, room, GUTTER)
    hidden = sum(int(np.count_nonzero(line.y <= 0)) for line in bounded) if log_y else 0
    floor = floor_row(ticks, room, glyphs, nonpositive_note(hidden, room))
    axis = [" " * GUTTER + glyphs.corner + floor, label_row(ticks, width, GUTTER)]
    return rows + [apply_style(row, DIM) if color else row for row in axis]


def _drop_nonfinite_x(line: Line) -> Line:
    """Remove the points of a curve whose x is not finite."""
    placed = np.isfinite(line.x)
    return line if placed.all() else line._replace(x=line.x[placed], y=line.y[placed])


def _clip_values(values: np.ndarray) -> np.ndarray:
    """Clip float values [P] so that their differences do not overflow. NaN and infinities are kept."""
    values = np.asarray(values)
    if values.dtype.kind != "f":
        return values
    values = values.astype(np.float64)
    return np.where(np.isfinite(values), np.clip(values, -_LARGEST, _LARGEST), values)


def _legend(lines: Sequence[Line], width: int, title: str, color: bool) -> str:
    """Return the first row of a chart: the title, then the letter, label and last value of each curve that fits."""
    marks = [MARKS[number % len(MARKS)] if len(lines) > 1 else "" for number in range(len(lines))]
    entries = []
    for mark, line in zip(marks, lines, strict=True):
        last = format_number(float(line.y[-1])) if len(line.y) else "-"
        label = line.label if len(lines) > 1 or not title else ""  # the title names a single curve
        entries.append(" ".join(part for part in (mark, label, last) if part))
    titles = [title, title.partition(" [")[0], title.partition(" (")[0]]  # without the unit, without the decoding
    title, shown = fit_title(titles, [f"  {entry}" for entry in entries], width)
    parts = [title] if title else []
    styled = [apply_style(title, BOLD) if color else title] if title else []
    for number, entry in enumerate(entries[:shown]):
        parts.append(entry)
        styled.append(apply_style(entry, COLORS[number % len(COLORS)]) if color and len(lines) > 1 else entry)
    more = [f"+{len(entries) - shown}"] if shown < len(entries) else []
    return "  ".join([*styled, *more]) + " " * (width - display_width("  ".join([*parts, *more])))


def fit_title(titles: Sequence[str], entries: Sequence[str], width: int) -> tuple[str, int]:
    """Return the title and the number of entries that fit into a heading of `width` columns.

    `titles` are alternatives from the longest to the shortest; the last one is cut in the middle if necessary. The
    first entry is kept even if no space is left for the title; the others are kept as long as at least LEAST_TITLE
    columns of the title remain. If some entries do not fit, space is reserved for ' +N', where N is the number of
    hidden entries.
    """
    ends, total = [0, *accumulate(map(display_width, entries))], len(entries)

    def used(shown: int) -> int:
        return ends[shown] + (len(f"  +{total - shown}") if shown < total else 0)

    least = min(LEAST_TITLE, display_width(titles[-1]))
    shown = next((n for n in range(total, 1, -1) if least + used(n) <= width), 0)
    shown = shown or (1 if total and used(1) <= width else 0)
    room = width - used(shown)
    title = next((title for title in titles if display_width(title) <= room), None)
    return elide(titles[-1], max(0, room)) if title is None else title, shown


def y_labels(ends: tuple[float, float], view: View, rows: int, log_y: bool, glyphs: Glyphs) -> dict[int, str]:
    """Return the labels of a y axis by row. They are the exact minimum and maximum, and round numbers if they fit.

    On a logarithmic axis, the ends and the view are logarithms. The labels are at most GUTTER columns wide.
    """
    constant = rows == 1 or _is_constant(*ends)
    ticks = log_places(view.low, view.high, rows // 2) if log_y and not constant else []
    ticks = sorted(ticks, key=lambda at: at != round(at)) if log_y else nice_ticks(view.low, view.high, rows // 2)
    low, high = sorted(ends)
    ticks = [at for at in ticks if low < at < high]  # a level can extend the view beyond the curves
    places: dict[int, float] = {}
    for at in ends[:1] if constant else (*ends, *ticks):
        row = round((view.high - at) / (view.high - view.low) * (rows * glyphs.rows - 1)) // glyphs.rows
        if at in ends or not {row - 1, row, row + 1} & places.keys():
            places[row] = at
    labels = axis_labels([10.0**at if log_y else at for at in places.values()], log_y)
    kept: dict[int, str] = {}
    for (row, at), label in zip(places.items(), labels, strict=True):
        if at in ends or label not in kept.values():
            kept[row] = label
    return kept


def fit_levels(view: View, levels: Sequence[Tick], log_y: bool) -> tuple[View, list[Tick]]:
    """Return a view that includes the nearby levels, and these levels with their values in their labels.

    The curves keep at least 60% of the height, because levels farther away than a third of their range are omitted.
    """
    if not levels:
        return view, []
    reach = _NEAR * (view.high - view.low)
    placed = [(math.log10(at), at, name) for at, name in levels if at > 0] if log_y else [(a, a, n) for a, n in levels]
    near = [
        Tick(at, f"{name} {axis_labels([value])[0]}")
        for at, value, name in placed
        if view.low - reach <= at <= view.high + reach
    ]
    low, high = min([view.low, *(tick.at for tick in near)]), max([view.high, *(tick.at for tick in near)])
    return View(view.left, view.right, low, high), near


def nonpositive_note(count: int, width: int, noun: str = "value") -> str:
    """Say how many values a logarithmic axis cannot show, in at most half of `width` columns, or return ''."""
    if not count:
        return ""
    text = f"{count} {noun}{'s' if count > 1 else ''} <= 0 not shown"
    return text if 2 * len(text) <= width else f"{count} <= 0 not shown"


def _draw_curves(
    lines: Sequence[Line], view: View, width: int, height: int, glyphs: Glyphs, color: bool, levels: Sequence[Tick]
) -> list[str]:
    """Return the rows of the plot without its axes, each `width` columns wide."""
    layers = []
    for number, line in enumerate(lines):
        columns = Columns(line.x, view, width * glyphs.columns)
        mark = MARKS[number % len(MARKS)] if len(lines) > 1 else "*"
        layers.append(Layer(*columns.minmax(line.y), number, mark, points=columns.few_points(line.y)))
    several = len(lines) > 1
    picture = paint(layers, view, width, height, glyphs, covering=color, letters=several, levels=levels)
    if not color:
        return ["".join(map(chr, row)) for row in picture.codes.tolist()]
    codes = [*COLORS[: len(lines)], ""]  # index -1, the last one, is NOTHING
    return [
        "".join(apply_style(text, codes[style % len(COLORS) if style >= 0 else NOTHING]) for text, style in row)
        for row in spans(picture)
    ]


def place_ticks(ticks: Sequence[Tick], view: View, room: int, gutter: int) -> list[tuple[int, int, str]]:
    """Return the ticks whose labels do not touch, as (column of the plot, first column of the label, label).

    The plot is `room` columns wide and starts one column to the right of the gutter.
    """
    placed, free = [], 0
    for at, label in ticks:
        column = round((at - view.left) / (view.right - view.left) * (room - 1))
        start = min(max(gutter + 1 + column - len(label) // 2, gutter), gutter + 1 + room - len(label))
        if 0 <= column < room and start >= max(free, 0):
            placed.append((column, start, label))
            free = start + len(label) + 2
    return placed


def floor_row(placed: Sequence[tuple[int, int, str]], room: int, glyphs: Glyphs, note: str = "") -> str:
    """Return the line below a plot, with a notch at each tick and a note at its right end if it fits."""
    floor = [glyphs.floor] * room
    for column, _, _ in placed:
        floor[column] = glyphs.notch
    if note and len(note) + 3 <= room:
        floor[-len(note) - 3 : -1] = f" {note} "
    return "".join(floor)


def label_row(placed: Sequence[tuple[int, int, str]], width: int, gutter: int) -> str:
    """Return the row of x axis labels, `width` columns wide."""
    row = " " * gutter
    for _, start, label in placed:
        row = row[:start].ljust(start) + label
    return row.ljust(width)
