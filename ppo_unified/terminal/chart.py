"""Draws charts of curves with axes, in braille dots or in ASCII characters. This module uses only numpy.

`draw` returns plain text for commands. The terminal UI uses only the ticks and labels, and paints with `braille`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from string import ascii_lowercase, ascii_uppercase, digits
from typing import NamedTuple

import numpy as np

from ppo_unified.terminal.braille import ASCII, BRAILLE, NOTHING, Columns, Glyphs, Layer, View, log10, paint, spans
from ppo_unified.text import BOLD, DIM, apply_style, display_width, format_number, pad

MARKS = ascii_uppercase + ascii_lowercase + digits  # distinguish curves without colour
COLORS = ("36", "33", "35", "32", "34", "31")  # the basic ANSI colours, which follow the theme of the terminal
_GUTTER = 8  # minimum width of the labels on the left, so that stacked charts line up
_DAY = 86400
_TIME_STEPS = (
    *(1, 2, 5, 10, 15, 30),
    *(60, 120, 300, 600, 900, 1800),
    *(3600, 7200, 10800, 21600, 43200),
    *(_DAY * days for days in (1, 2, 5, 10, 20, 50, 100)),
)
_LARGEST = 1e250  # larger values are drawn as this value


class Line(NamedTuple):
    """A curve through the points x and y [P], with x ascending. The curve has a gap if y is NaN or infinite."""

    label: str
    x: np.ndarray
    y: np.ndarray


class Tick(NamedTuple):
    """A position on an axis and its label."""

    at: float
    label: str


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


def nice_ticks(low: float, high: float, count: int) -> list[float]:
    """Return about `count` round numbers inside [low, high], or [low] if the range is empty."""
    if not math.isfinite(high - low) or high <= low:
        return [low]
    raw = (high - low) / max(1, count)
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(m * magnitude for m in (1, 2, 2.5, 5, 10) if m * magnitude >= raw * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [k * step for k in range(first, last + 1)]


def plain_ticks(low: float, high: float, count: int) -> list[Tick]:
    """Return ticks with labels at round numbers."""
    return [Tick(at, format_number(at, (high - low) / 100)) for at in nice_ticks(low, high, count)]


def log_ticks(low: float, high: float, count: int) -> list[Tick]:
    """Return ticks for a logarithmic axis from 10**low to 10**high.

    They are at powers of ten if the axis contains at least three of them. Otherwise they are at 1, 2 and 5 times
    powers of ten, or at round numbers.
    """
    decades = range(math.ceil(low - 1e-9), math.floor(high + 1e-9) + 1)
    if len(decades) > 2:
        stride = math.ceil(len(decades) / max(1, count))
        return [Tick(k, format_number(10.0**k, 10.0**k)) for k in decades if k % stride == 0]
    exponents = range(math.floor(low), math.ceil(high) + 1)
    inside = [k + math.log10(m) for k in exponents for m in (1, 2, 5) if low - 1e-9 <= k + math.log10(m) <= high + 1e-9]
    if 2 <= len(inside) <= count + 1:
        return [Tick(at, format_number(10.0**at, 10.0 ** math.floor(at + 1e-9))) for at in inside]
    values = [value for value in nice_ticks(10.0**low, 10.0**high, count) if value > 0]
    return [Tick(math.log10(value), format_number(value, (10.0**high - 10.0**low) / 100)) for value in values]


def time_ticks(low: float, high: float, count: int, clock: bool) -> list[Tick]:
    """Return ticks for a time axis. It contains seconds since the epoch if `clock` is True, otherwise durations."""
    raw = (high - low) / max(1, count)
    if raw < 0.5 or not math.isfinite(raw):
        return [Tick(at, _format_tick_time(at, 1) if clock else f"{at:.4g}s") for at in nice_ticks(low, high, count)]
    step = next((step for step in _TIME_STEPS if step >= raw), 0) or _DAY * 10 ** math.ceil(math.log10(raw / _DAY))
    zone = local_time(low).tm_gmtoff if clock else 0
    first, last = math.ceil((low + zone) / step), math.floor((high + zone) / step)
    places = [k * step - zone for k in range(first, last + 1)]
    return [Tick(at, _format_tick_time(at, step) if clock else span_label(at)) for at in places]


def local_time(at: float) -> time.struct_time:
    """Convert seconds since the epoch to local time. Values out of range, such as nanoseconds, become 1970-01-01."""
    try:
        return time.localtime(at)
    except (ValueError, OverflowError, OSError):
        return time.gmtime(0)


def _format_tick_time(at: float, step: float) -> str:
    moment = local_time(at)
    midnight = moment.tm_hour == moment.tm_min == moment.tm_sec == 0
    return time.strftime(
        "%Y-%m" if step > 50 * _DAY else "%m-%d" if midnight else "%H:%M" if step >= 60 else "%H:%M:%S", moment
    )


def format_local_time(at: float) -> str:
    """Format seconds since the epoch as local date and time."""
    return time.strftime("%m-%d %H:%M:%S", local_time(at))


def span_label(seconds: float) -> str:
    """Format a duration in its two largest units, such as '45s', '1h30m' or '2d6h'."""
    left = round(seconds)
    parts = []
    for unit, sign in ((_DAY, "d"), (3600, "h"), (60, "m"), (1, "s")):
        amount, left = divmod(left, unit)
        if amount:
            parts.append(f"{amount}{sign}")
        elif parts:
            break
    return "".join(parts[:2]) or "0"


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
    if high - low <= 1e-6 * max(abs(low), abs(high)):  # treats a constant with float32 noise as a constant
        middle = (low + high) / 2
        low, high = middle - (abs(middle) / 10 or 1.0), middle + (abs(middle) / 10 or 1.0)
    return View(left, right, low, high)


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
) -> list[str]:
    """Draw a chart with a title, the last values, curves and axes.

    The chart has `height` rows (at least 4) of `width` columns (at least 20). If there are several lines, each has a
    letter in the legend and along its curve, and with `color` also a colour.
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
        return [head, *(pad(" " * _GUTTER + (why if row == 1 else ""), width) for row in range(1, height))]
    finite = np.concatenate([line.y[np.isfinite(line.y)] for line in shown])
    labels = y_labels((float(finite.min()), float(finite.max())), view, height - 3, log_y, glyphs)
    gutter = max(_GUTTER, *map(len, labels.values()))
    body = _draw_curves(shown, view, width - gutter - 1, height - 3, glyphs, color)
    rows = [head]
    for row, text in enumerate(body):
        side = labels.get(row, "").rjust(gutter) + (glyphs.tick if row in labels else glyphs.side)
        rows.append((apply_style(side, DIM) if color else side) + text)
    room = width - gutter - 1
    ticks = place_ticks(plain_ticks(view.left, view.right, max(1, room // 7)), view, room, gutter)
    floor, below = floor_row(ticks, room, glyphs), label_row(ticks, width, gutter)
    axis = [" " * gutter + glyphs.corner + floor, below]
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
    text, used = apply_style(pad(title, display_width(title)), BOLD) if color and title else title, display_width(title)
    if used > width:
        return pad(title, width)
    for number, line in enumerate(lines):
        mark = MARKS[number % len(MARKS)] if len(lines) > 1 else ""
        last = format_number(float(line.y[-1])) if len(line.y) else "-"
        label = line.label if len(lines) > 1 or not title else ""  # the title names a single curve
        entry = " ".join(part for part in (mark, label, last) if part)
        more = f"  +{len(lines) - number}" if number else ""
        if used + 2 + display_width(entry) + (6 if number + 1 < len(lines) else 0) > width:
            text, used = text + more, used + len(more)
            break
        text += ("  " if used else "") + (apply_style(entry, COLORS[number % len(COLORS)]) if color and mark else entry)
        used += display_width(entry) + (2 if used else 0)
    return text + " " * (width - used)


def y_labels(
    ends: tuple[float, float], view: View, rows: int, log_y: bool, glyphs: Glyphs, most: int = 0
) -> dict[int, str]:
    """Return the labels of a y axis by row. They are the exact minimum and maximum, and round numbers if they fit.

    `most` (at least 8) is the maximum width of a label. If the width allows it, different values get different labels.
    """
    ticks = [t for t in nice_ticks(view.low, view.high, rows // 2) if not log_y or t == round(t)]
    constant = not view.low == ends[0] < ends[1] == view.high
    wanted = [ends[0]] if constant or rows == 1 else [*ends, *ticks]
    resolution = 0.0 if log_y or constant else (view.high - view.low) / 10
    values: dict[int, float] = {}
    for value in wanted:
        row = round((view.high - value) / (view.high - view.low) * (rows * glyphs.rows - 1)) // glyphs.rows
        if value in ends or not {row - 1, row, row + 1} & values.keys():
            values[row] = 10.0**value if log_y else value
    labels = {row: format_number(value, resolution) for row, value in values.items()}
    if most and (max(map(len, labels.values())) > most or len(set(labels.values())) < len(labels)):
        return {row: _format_within(value, most) for row, value in values.items()}
    return labels


def _format_within(value: float, most: int) -> str:
    """Format a number with as many digits as fit into `most` columns. `most` must be at least 8."""
    for count in range(most, 0, -1):
        text = f"{value:.{count}g}"
        mantissa, _, exponent = text.partition("e")
        if exponent and 1e3 <= abs(value) < 1e15:
            text = format_number(value, abs(value) / 10.0 ** (count - 1))
        elif exponent:
            text = f"{mantissa}e{int(exponent)}"
        if len(text) <= most:
            return text
    return ""  # not reached: 8 columns are enough for every float, such as -1e-300


def _draw_curves(lines: Sequence[Line], view: View, width: int, height: int, glyphs: Glyphs, color: bool) -> list[str]:
    """Return the rows of the plot without its axes, each `width` columns wide."""
    layers = []
    for number, line in enumerate(lines):
        low, high = Columns(line.x, view, width * glyphs.columns).minmax(line.y)
        layers.append(Layer(low, high, number, MARKS[number % len(MARKS)] if len(lines) > 1 else glyphs.point))
    picture = paint(layers, view, width, height, glyphs, covering=color, letters=len(lines) > 1)
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


def floor_row(placed: Sequence[tuple[int, int, str]], room: int, glyphs: Glyphs) -> str:
    """Return the line below a plot, with a notch at each tick."""
    floor = [glyphs.floor] * room
    for column, _, _ in placed:
        floor[column] = glyphs.notch
    return "".join(floor)


def label_row(placed: Sequence[tuple[int, int, str]], width: int, gutter: int) -> str:
    """Return the row of x axis labels, `width` columns wide."""
    row = " " * gutter
    for _, start, label in placed:
        row = row[:start].ljust(start) + label
    return row.ljust(width)
