"""Charts of curves with their axes: braille dots where the terminal has them, ASCII otherwise. No state, numpy only.

`draw` writes plain text for commands; the terminal UI uses the labels alone, and paints with `braille`.
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

MARKS = ascii_uppercase + ascii_lowercase + digits  # tell curves apart without colour
COLORS = ("36", "33", "35", "32", "34", "31")  # ANSI's own six: they follow the reader's theme
_GUTTER = 8  # columns of the labels on the left, at least: charts above each other line up
_DAY = 86400
_TIME_STEPS = (
    *(1, 2, 5, 10, 15, 30),
    *(60, 120, 300, 600, 900, 1800),
    *(3600, 7200, 10800, 21600, 43200),
    *(_DAY * days for days in (1, 2, 5, 10, 20, 50, 100)),
)
_LARGEST = 1e250  # drawn; what is larger is drawn as this


class Line(NamedTuple):
    """One curve: x and y [P], x ascending. A y that is NaN or infinite leaves a gap."""

    label: str
    x: np.ndarray
    y: np.ndarray


class Tick(NamedTuple):
    """A place on an axis and what stands there."""

    at: float
    label: str


def smooth(values: np.ndarray, weight: float, count: int = 0, last: float = 0.0) -> np.ndarray:
    """TensorBoard's exponential moving average [P], without its bias towards 0 at the start.

    `weight` in [0, 1): 0 changes nothing. What is not finite stays as it is and does not enter the average.
    It goes on from an average `last` of `count` finite values that came before.
    """
    smoothed = np.array(values, np.float64)
    if not weight:
        return smoothed
    finite = np.isfinite(smoothed)
    if not (whole := bool(finite.all())):
        smoothed, every = smoothed[finite], smoothed
    parts, decay = (1 - weight) * smoothed, math.log(weight)
    # after k values the average has taken up 1 - weight**k of its weight, soon 1 in floating point
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
    """s[t] = weight * s[t - 1] + values[t], the sums over the last 1, 2, 4, ... values after each other."""
    sums, span, decay = values.copy(), 1, weight
    while span < len(sums) and decay > 1e-20:  # what is further back weighs nothing
        sums[span:] += decay * sums[:-span]
        span, decay = 2 * span, decay * decay
    return sums


def nice_ticks(low: float, high: float, count: int) -> list[float]:
    """Round numbers inside [low, high], at most about `count`; [low] where there is no range."""
    if not math.isfinite(high - low) or high <= low:
        return [low]
    raw = (high - low) / max(1, count)
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(m * magnitude for m in (1, 2, 2.5, 5, 10) if m * magnitude >= raw * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [k * step for k in range(first, last + 1)]


def plain_ticks(low: float, high: float, count: int) -> list[Tick]:
    """`nice_ticks` with their labels."""
    return [Tick(at, format_number(at, (high - low) / 100)) for at in nice_ticks(low, high, count)]


def log_ticks(low: float, high: float, count: int) -> list[Tick]:
    """Ticks of a logarithmic axis, 10**low to 10**high: powers of ten; 1, 2, 5 or round numbers where few fit."""
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
    """Ticks of a time axis in seconds: time of day where `clock` (seconds since the epoch), else since a start."""
    raw = (high - low) / max(1, count)
    if raw < 0.5 or not math.isfinite(raw):
        return [Tick(at, _format_tick_time(at, 1) if clock else f"{at:.4g}s") for at in nice_ticks(low, high, count)]
    step = next((step for step in _TIME_STEPS if step >= raw), 0) or _DAY * 10 ** math.ceil(math.log10(raw / _DAY))
    zone = local_time(low).tm_gmtoff if clock else 0
    first, last = math.ceil((low + zone) / step), math.floor((high + zone) / step)
    places = [k * step - zone for k in range(first, last + 1)]
    return [Tick(at, _format_tick_time(at, step) if clock else span_label(at)) for at in places]


def local_time(at: float) -> time.struct_time:
    """A moment in seconds since the epoch; 1970 for what no calendar has, such as nanoseconds taken for seconds."""
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
    """A moment as local date and time."""
    return time.strftime("%m-%d %H:%M:%S", local_time(at))


def span_label(seconds: float) -> str:
    """A time since a start in its two largest units: '45s', '1h30m', '2d6h'."""
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
    """The window that shows all of some curves; None where there is no finite value. A lone value gets room around."""
    xs = [line.x for line in lines if len(line.x)]
    finite = [line.y[np.isfinite(line.y)] for line in lines]
    if not any(len(y) for y in finite):
        return None
    left, right = x_range or (float(min(x[0] for x in xs)), float(max(x[-1] for x in xs)))
    low, high = (float(f([f(y) for y in finite if len(y)])) for f in (np.min, np.max))
    return add_margins(View(left, right, low, high))


def add_margins(view: View) -> View:
    """A window in which a single place and a single value have room around them."""
    left, right, low, high = view.left, view.right, view.low, view.high
    if right <= left:
        left, right = left - (abs(left) / 2 or 1.0), right + (abs(right) / 2 or 1.0)
    if high - low <= 1e-6 * max(abs(low), abs(high)):  # float32 noise on a constant is not a shape
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
    """A chart of `height` rows (at least 4), each `width` columns (at least 20): title and last values, curves, axis.

    More than one line: each bears a letter, in the legend and along the curve, and with `color` a colour of its own.
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
    body = _curves(shown, view, width - gutter - 1, height - 3, glyphs, color)
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
    """A curve without the points that are nowhere on the x axis."""
    placed = np.isfinite(line.x)
    return line if placed.all() else line._replace(x=line.x[placed], y=line.y[placed])


def _clip_values(values: np.ndarray) -> np.ndarray:
    """Values [P] whose differences can be computed; whole numbers, NaN and infinities as they are."""
    values = np.asarray(values)
    if values.dtype.kind != "f":
        return values
    values = values.astype(np.float64)
    return np.where(np.isfinite(values), np.clip(values, -_LARGEST, _LARGEST), values)


def _legend(lines: Sequence[Line], width: int, title: str, color: bool) -> str:
    """The first row: the title, then each curve's letter, label and last value, as many as fit."""
    text, used = apply_style(pad(title, display_width(title)), BOLD) if color and title else title, display_width(title)
    if used > width:
        return pad(title, width)
    for number, line in enumerate(lines):
        mark = MARKS[number % len(MARKS)] if len(lines) > 1 else ""
        last = format_number(float(line.y[-1])) if len(line.y) else "-"
        label = line.label if len(lines) > 1 or not title else ""  # a lone curve is what the title says
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
    """Row -> label: the lowest and the highest value as they are, round numbers between them where there is room.

    With `most` (at least 8) no label has more columns; different values then look different where that allows it.
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
    """A number with as many digits as fit into `most` columns, at least 8."""
    for count in range(most, 0, -1):
        text = f"{value:.{count}g}"
        mantissa, _, exponent = text.partition("e")
        if exponent and 1e3 <= abs(value) < 1e15:
            text = format_number(value, abs(value) / 10.0 ** (count - 1))
        elif exponent:
            text = f"{mantissa}e{int(exponent)}"
        if len(text) <= most:
            return text
    return ""  # no float needs more than 8 columns: -1e-300


def _curves(lines: Sequence[Line], view: View, width: int, height: int, glyphs: Glyphs, color: bool) -> list[str]:
    """The rows of the plot itself, each `width` columns."""
    layers = []
    for number, line in enumerate(lines):
        low, high = Columns(line.x, view, width * glyphs.columns).minmax(line.y)
        layers.append(Layer(low, high, number, MARKS[number % len(MARKS)] if len(lines) > 1 else glyphs.point))
    picture = paint(layers, view, width, height, glyphs, covering=color, letters=len(lines) > 1)
    if not color:
        return ["".join(map(chr, row)) for row in picture.codes.tolist()]
    codes = [*COLORS[: len(lines)], ""]  # NOTHING is the last one
    return [
        "".join(apply_style(text, codes[style % len(COLORS) if style >= 0 else NOTHING]) for text, style in row)
        for row in spans(picture)
    ]


def place_ticks(ticks: Sequence[Tick], view: View, room: int, gutter: int) -> list[tuple[int, int, str]]:
    """Those ticks whose labels do not touch: (column of the plot, column where the label starts, label).

    The plot is `room` columns wide and starts one right of the gutter.
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
    """The line under a plot, with a notch at each tick."""
    floor = [glyphs.floor] * room
    for column, _, _ in placed:
        floor[column] = glyphs.notch
    return "".join(floor)


def label_row(placed: Sequence[tuple[int, int, str]], width: int, gutter: int) -> str:
    """The labels of the x axis, `width` columns."""
    row = " " * gutter
    for _, start, label in placed:
        row = row[:start].ljust(start) + label
    return row.ljust(width)
