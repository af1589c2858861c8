"""Curves in character cells: braille dots where the terminal has them, ASCII otherwise. Pure functions over numpy.

`draw` writes plain text for commands; the terminal UI uses the parts: `Columns`, `paint`, `spans`, labels.

Every curve is reduced to one interval per dot column, from its lowest to its highest value there, so a spike of a
single point survives however many points share its column. The cost does not depend on the zoom.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from string import ascii_lowercase, ascii_uppercase, digits
from typing import NamedTuple, TypeAlias

import numpy as np

from ppo_unified.text import BOLD, DIM, columns_of, pad, painted, short

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
NOTHING, CROSS = -1, -2  # styles that are no layer's
_LARGEST = 1e250  # drawn; what is larger is drawn as this
_BETWEEN_MARKS = 10  # columns from one letter on a curve to the next, at least


class Line(NamedTuple):
    """One curve: x and y [P], x ascending. A y that is NaN or infinite leaves a gap."""

    label: str
    x: np.ndarray
    y: np.ndarray


class Layer(NamedTuple):
    """What is drawn in one style: in each column of dots all from `low` to `high`, nothing where they are NaN."""

    low: np.ndarray  # [columns]
    high: np.ndarray  # [columns]
    style: int
    mark: str  # stands for the layer in ASCII, and along its curve where letters tell curves apart
    sparse: bool = False  # every other dot: a band behind its curve


class Picture(NamedTuple):
    """A painted plot: code points and styles [rows, columns]."""

    codes: np.ndarray
    styles: np.ndarray


class Tick(NamedTuple):
    """A place on an axis and what stands there."""

    at: float
    label: str


Span: TypeAlias = tuple[str, int]  # text and its style


class Glyphs(NamedTuple):
    """The characters of a chart and the dots that one of them holds."""

    dots: tuple[tuple[int, ...], ...]  # column by column, each dot's bit in the number of a cell
    point: str
    side: str
    tick: str
    corner: str
    floor: str
    notch: str

    @property
    def rows(self) -> int:
        return len(self.dots[0])

    @property
    def columns(self) -> int:
        return len(self.dots)


BRAILLE = Glyphs(((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80)), "•", "│", "┤", "└", "─", "┴")
ASCII = Glyphs(((1,),), "*", "|", "+", "+", "-", "+")


@dataclass(frozen=True)
class View:
    """The window of the data that a chart shows."""

    left: float
    right: float
    low: float
    high: float


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
    return [Tick(at, short(at, (high - low) / 100)) for at in nice_ticks(low, high, count)]


def log_ticks(low: float, high: float, count: int) -> list[Tick]:
    """Ticks of a logarithmic axis, 10**low to 10**high: powers of ten; 1, 2, 5 or round numbers where few fit."""
    decades = range(math.ceil(low - 1e-9), math.floor(high + 1e-9) + 1)
    if len(decades) > 2:
        stride = math.ceil(len(decades) / max(1, count))
        return [Tick(k, short(10.0**k, 10.0**k)) for k in decades if k % stride == 0]
    exponents = range(math.floor(low), math.ceil(high) + 1)
    inside = [k + math.log10(m) for k in exponents for m in (1, 2, 5) if low - 1e-9 <= k + math.log10(m) <= high + 1e-9]
    if 2 <= len(inside) <= count + 1:
        return [Tick(at, short(10.0**at, 10.0 ** math.floor(at + 1e-9))) for at in inside]
    values = [value for value in nice_ticks(10.0**low, 10.0**high, count) if value > 0]
    return [Tick(math.log10(value), short(value, (10.0**high - 10.0**low) / 100)) for value in values]


def time_ticks(low: float, high: float, count: int, clock: bool) -> list[Tick]:
    """Ticks of a time axis in seconds: time of day where `clock` (seconds since the epoch), else since a start."""
    raw = (high - low) / max(1, count)
    if raw < 0.5 or not math.isfinite(raw):
        return [Tick(at, _moment(at, 1) if clock else f"{at:.4g}s") for at in nice_ticks(low, high, count)]
    step = next((step for step in _TIME_STEPS if step >= raw), 0) or _DAY * 10 ** math.ceil(math.log10(raw / _DAY))
    zone = local_time(low).tm_gmtoff if clock else 0
    first, last = math.ceil((low + zone) / step), math.floor((high + zone) / step)
    places = [k * step - zone for k in range(first, last + 1)]
    return [Tick(at, _moment(at, step) if clock else span_label(at)) for at in places]


def local_time(at: float) -> time.struct_time:
    """A moment in seconds since the epoch; 1970 for what no calendar has, such as nanoseconds taken for seconds."""
    try:
        return time.localtime(at)
    except (ValueError, OverflowError, OSError):
        return time.gmtime(0)


def _moment(at: float, step: float) -> str:
    moment = local_time(at)
    midnight = moment.tm_hour == moment.tm_min == moment.tm_sec == 0
    return time.strftime(
        "%Y-%m" if step > 50 * _DAY else "%m-%d" if midnight else "%H:%M" if step >= 60 else "%H:%M:%S", moment
    )


def clock(at: float) -> str:
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


class Columns:
    """Where the points of an x axis fall in `columns` equal columns of a window; of use to every curve over it.

    x [P] ascending, whole or floating. The cost grows with the columns, and little with the points.
    """

    def __init__(self, x: np.ndarray, view: View, columns: int) -> None:
        borders = _borders(view.left, view.right, columns)
        # the first point at or right of each border; numpy would copy whole numbers to compare them with others
        after = np.searchsorted(x, np.ceil(borders).astype(x.dtype) if x.dtype.kind in "iu" else borders)
        start, stop = max(0, int(after[0]) - 1), min(len(x), int(after[-1]) + 1)  # one beyond: the curve goes there
        self._part, self._size, self._points = slice(start, stop), columns, stop - start
        x, after = x[start:stop], after - start
        self._inside = np.flatnonzero(after[1:] > after[:-1])
        self._starts, self._end = after[self._inside], int(after[-1])
        first, last = np.searchsorted(after, (1, self._points))  # the borders with a point on either side
        self._crossed, self._right = slice(int(first), int(last)), after[first:last]
        before = x[self._right - 1]
        self._share = (borders[first:last] - before) / (x[self._right] - before)

    def minmax(self, y: np.ndarray, log_y: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """The lowest and highest value of a curve in each column, NaN where it is not; of its logarithms if `log_y`.

        A curve in a column is its points there and its crossings of the column's two borders, so that neighbours join.
        y [P] -> two arrays [columns].
        """
        low, high, crossing = (np.full(self._size + more, np.nan) for more in (0, 0, 1))
        if not self._points:
            return low, high
        y = log10(y[self._part]) if log_y else y[self._part]
        if not (finite := np.isfinite(y)).all():
            y = np.where(finite, y, np.nan)
        if len(self._inside):
            points = y[: self._end]
            low[self._inside] = np.fmin.reduceat(points, self._starts)
            high[self._inside] = np.fmax.reduceat(points, self._starts)
        before = y[self._right - 1]
        crossing[self._crossed] = before + self._share * (y[self._right] - before)
        for ends in (crossing[:-1], crossing[1:]):
            low, high = np.fmin(low, ends, out=low), np.fmax(high, ends, out=high)
        return low, high


@lru_cache(maxsize=8)  # the curves of a page share their window
def _borders(left: float, right: float, columns: int) -> np.ndarray:
    """Where `columns` columns begin and end whose middles go from `left` to `right` [columns + 1]."""
    half = (right - left) / (columns - 1) / 2 if columns > 1 else 0.0
    borders = np.linspace(left - half, right + half, columns + 1)
    if columns == 1:
        borders[1] = np.nextafter(right, np.inf)
    return borders


def find_view(lines: Sequence[Line], x_range: tuple[float, float] | None = None) -> View | None:
    """The window that shows all of some curves; None where there is no finite value. A lone value gets room around."""
    xs = [line.x for line in lines if len(line.x)]
    finite = [line.y[np.isfinite(line.y)] for line in lines]
    if not any(len(y) for y in finite):
        return None
    left, right = x_range or (float(min(x[0] for x in xs)), float(max(x[-1] for x in xs)))
    low, high = (float(f([f(y) for y in finite if len(y)])) for f in (np.min, np.max))
    return with_room(View(left, right, low, high))


def with_room(view: View) -> View:
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
    bounded = [_placed(line._replace(x=_bounded(line.x), y=_bounded(line.y))) for line in lines]
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
        rows.append((painted(side, DIM) if color else side) + text)
    room = width - gutter - 1
    ticks = place_ticks(plain_ticks(view.left, view.right, max(1, room // 7)), view, room, gutter)
    floor, below = floor_row(ticks, room, glyphs), label_row(ticks, width, gutter)
    axis = [" " * gutter + glyphs.corner + floor, below]
    return rows + [painted(row, DIM) if color else row for row in axis]


def _placed(line: Line) -> Line:
    """A curve without the points that are nowhere on the x axis."""
    placed = np.isfinite(line.x)
    return line if placed.all() else line._replace(x=line.x[placed], y=line.y[placed])


def _bounded(values: np.ndarray) -> np.ndarray:
    """Values [P] whose differences can be computed; whole numbers, NaN and infinities as they are."""
    values = np.asarray(values)
    if values.dtype.kind != "f":
        return values
    values = values.astype(np.float64)
    return np.where(np.isfinite(values), np.clip(values, -_LARGEST, _LARGEST), values)


def log10(values: np.ndarray) -> np.ndarray:
    """Logarithms [P], NaN where a value is not above 0."""
    values = np.asarray(values)
    if values.dtype.kind != "f":
        values = values.astype(np.float64)
    logs = np.full(len(values), np.nan, values.dtype)
    np.log10(values, out=logs, where=values > 0)
    return logs


def _legend(lines: Sequence[Line], width: int, title: str, color: bool) -> str:
    """The first row: the title, then each curve's letter, label and last value, as many as fit."""
    text, used = painted(pad(title, columns_of(title)), BOLD) if color and title else title, columns_of(title)
    if used > width:
        return pad(title, width)
    for number, line in enumerate(lines):
        mark = MARKS[number % len(MARKS)] if len(lines) > 1 else ""
        last = short(float(line.y[-1])) if len(line.y) else "-"
        label = line.label if len(lines) > 1 or not title else ""  # a lone curve is what the title says
        entry = " ".join(part for part in (mark, label, last) if part)
        more = f"  +{len(lines) - number}" if number else ""
        if used + 2 + columns_of(entry) + (6 if number + 1 < len(lines) else 0) > width:
            text, used = text + more, used + len(more)
            break
        text += ("  " if used else "") + (painted(entry, COLORS[number % len(COLORS)]) if color and mark else entry)
        used += columns_of(entry) + (2 if used else 0)
    return text + " " * (width - used)


def y_labels(ends: tuple[float, float], view: View, rows: int, log_y: bool, glyphs: Glyphs) -> dict[int, str]:
    """Row -> label: the lowest and the highest value as they are, round numbers between them where there is room."""
    ticks = [t for t in nice_ticks(view.low, view.high, rows // 2) if not log_y or t == round(t)]
    constant = not view.low == ends[0] < ends[1] == view.high
    wanted = [ends[0]] if constant or rows == 1 else [*ends, *ticks]
    resolution = 0.0 if log_y or constant else (view.high - view.low) / 10
    labels: dict[int, str] = {}
    for value in wanted:
        row = round((view.high - value) / (view.high - view.low) * (rows * glyphs.rows - 1)) // glyphs.rows
        if value in ends or not {row - 1, row, row + 1} & labels.keys():
            labels[row] = short(10.0**value if log_y else value, resolution)
    return labels


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
        "".join(painted(text, codes[style % len(COLORS) if style >= 0 else NOTHING]) for text, style in row)
        for row in spans(picture)
    ]


def paint(
    layers: Sequence[Layer], view: View, width: int, height: int, glyphs: Glyphs, *, covering: bool, letters: bool
) -> Picture:
    """Layers over each other, the first one at the bottom.

    `covering`: the last one owns its cells alone, for a cell has one colour; else the dots of all are kept.
    `letters`: each layer that is not sparse bears its mark every so often. A curve of a single cell always does.
    """
    bits = np.zeros((height, width), np.uint8)
    owner = np.full((height, width), NOTHING, np.int16)
    marks: list[tuple[np.ndarray, str, int]] = []
    curves = [number for number, layer in enumerate(layers) if not layer.sparse]
    for number, (layer, own) in enumerate(zip(layers, _bits(layers, view, width, height, glyphs), strict=True)):
        hit = own > 0
        bits = np.where(hit, own if covering else bits | own, bits)
        owner[hit] = number
        if layer.sparse:
            continue
        places = _mark_places(hit, curves.index(number), len(curves)) if letters else _lone(hit)
        marks += [(place, layer.mark if letters else glyphs.point, number) for place in places]
    if glyphs is BRAILLE:
        codes = np.where(owner >= 0, bits + np.uint32(0x2800), np.uint32(32))
    else:
        codes = np.array([*(ord(layer.mark) for layer in layers), 32], np.uint32)[owner]
    for place, mark, number in marks:
        codes[tuple(place)], owner[tuple(place)] = ord(mark), number
    return Picture(codes, np.array([*(layer.style for layer in layers), NOTHING], np.int16)[owner])


def _bits(layers: Sequence[Layer], view: View, width: int, height: int, glyphs: Glyphs) -> np.ndarray:
    """Which dots of each cell the layers cover, as one number [layers, height, width]."""
    size, rows = glyphs.rows, height * glyphs.rows
    ends = np.array([(layer.high, layer.low) for layer in layers]).reshape(-1, 2, width * glyphs.columns)
    half = 0.5 + 1e-9  # what lies between two dots goes down, whatever the last bit says
    ends = np.floor((view.high - ends) * ((rows - 1) / (view.high - view.low)) + half)  # rows of dots, 0 is the top
    ends[:, 1] += 1  # the first one that is free again
    ends = np.where(np.isnan(ends).any(axis=1, keepdims=True), 0, np.clip(ends, 0, rows)).astype(np.int16)
    cells = np.arange(0, rows, size, dtype=np.int16)[:, None]
    first, free = (np.minimum(np.maximum(ends[:, k, None] - cells, 0), size) for k in (0, 1))
    kinds = first * np.int16(size + 1) + free
    bits = np.zeros((len(layers), height, width), np.uint8)
    for column, numbers in enumerate(_numbers(glyphs)):
        bits |= numbers.take(kinds[..., column :: glyphs.columns])
    for number, layer in enumerate(layers):
        if layer.sparse:
            bits[number] &= _every_other(width, height, glyphs)
    return bits


@cache
def _numbers(glyphs: Glyphs) -> np.ndarray:
    """By column of a cell's dots, the numbers of the dots from one row to before another [columns, rows x rows]."""
    rows = range(glyphs.rows + 1)
    return np.array([[sum(column[a:b]) for a in rows for b in rows] for column in glyphs.dots], np.uint8)


def _every_other(width: int, height: int, glyphs: Glyphs) -> np.ndarray:
    """Every other dot, like the fields of one colour on a chessboard, as numbers [height, width]."""
    dots = [(row + column, dot) for column, own in enumerate(glyphs.dots) for row, dot in enumerate(own)]
    numbers = np.array([sum(dot for place, dot in dots if place % 2 == odd) for odd in (0, 1)], np.uint8)
    odd = (glyphs.rows * np.arange(height)[:, None] + glyphs.columns * np.arange(width)) % 2
    return np.take(numbers, odd)


def _lone(hit: np.ndarray) -> list[np.ndarray]:
    """The cell of a curve that has but one: a dot alone is easily missed."""
    return list(np.argwhere(hit)) if np.count_nonzero(hit) == 1 else []


def _mark_places(hit: np.ndarray, number: int, count: int) -> list[np.ndarray]:
    """Cells of a curve that bear its letter: every so often, each curve at other columns; once at least."""
    columns = np.flatnonzero(hit.any(axis=0))
    if not len(columns):
        return []
    every = max(_BETWEEN_MARKS, 3 * count)
    chosen = [c for c in columns if c % every == (2 * number + 1) * every // (2 * count)] or [columns[-1]]
    rows = [np.flatnonzero(hit[:, c]) for c in chosen]
    return [np.array([own[len(own) // 2], c]) for c, own in zip(chosen, rows, strict=True)]


def spans(picture: Picture, cross: int | None = None, line: str = BRAILLE.side) -> list[list[Span]]:
    """The rows of a picture as runs of one style; `cross` is a column where `line` stands behind the curves.

    A blank has the style of what is left of it: fewer runs, the same look.
    """
    codes, styles = picture
    height, width = codes.shape
    if cross is not None and 0 <= cross < width:
        codes, styles = codes.copy(), styles.copy()
        free = styles[:, cross] == NOTHING
        codes[free, cross], styles[free, cross] = ord(line), CROSS
    column = np.where(styles == NOTHING, 0, np.arange(width))
    styles = np.take_along_axis(styles, np.maximum.accumulate(column, axis=1), axis=1)
    begins = np.ones((height, width), bool)
    begins[:, 1:] = styles[:, 1:] != styles[:, :-1]
    text = codes.astype("<u4").tobytes().decode("utf-32-le")
    starts = np.flatnonzero(begins)
    rows: list[list[Span]] = [[] for _ in range(height)]
    ends = [*starts[1:].tolist(), height * width]
    for start, end, style in zip(starts.tolist(), ends, styles.reshape(-1)[starts].tolist(), strict=True):
        rows[start // width].append((text[start:end], style))
    return rows


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
