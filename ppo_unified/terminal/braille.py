"""Draws curves as dots in character cells, with pure functions of numpy arrays.

In each column of dots, a curve is reduced to the interval from its lowest to its highest value. So a spike of a single
point stays visible even if many points share its column, and the cost does not depend on the zoom.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any, NamedTuple, TypeAlias

import numpy as np

NOTHING, CROSS, LEVEL = -1, -2, -3  # styles of empty cells, the crosshair and levels; layers have the other styles
MARKED = 10  # a curve with fewer visible points shows a marker at each of them
_BETWEEN_MARKS = 10  # minimum number of columns between two letters on a curve


class Layer(NamedTuple):
    """A part of a plot in one style. Each column of dots is filled from `low` to `high`, or empty if they are NaN."""

    low: np.ndarray  # [columns]
    high: np.ndarray  # [columns]
    style: int
    mark: str  # the layer's character in ASCII, and its letter along the curve if curves have letters
    sparse: bool = False  # draws every other dot, for a band behind its curve
    points: tuple[np.ndarray, np.ndarray] | None = None  # x and y of the points that get a marker
    lettered: bool = True  # shows its letter if curves have letters, unlike bands and raw values behind a curve


class Picture(NamedTuple):
    """A plot as code points and styles, both [rows, columns]."""

    codes: np.ndarray
    styles: np.ndarray


Span: TypeAlias = tuple[str, int]  # (text, style)


class Glyphs(NamedTuple):
    """The characters of a chart, and the layout of the dots in a character cell."""

    dots: tuple[tuple[int, ...], ...]  # for each column of dots, the bit of each dot in a cell's number
    point: str  # marks a single point of a curve
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


BRAILLE = Glyphs(((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80)), "●", "│", "┤", "└", "─", "┴")
ASCII = Glyphs(((1,),), "o", "|", "+", "+", "-", "+")


@dataclass(frozen=True)
class View:
    """The window of the data that a chart shows."""

    left: float
    right: float
    low: float
    high: float


class Columns:
    """Assigns the points on an x axis to columns of equal width. Curves with the same x axis can share an instance.

    x [P] is ascending and may be integer or float. The cost depends mainly on the number of columns, not of points.
    """

    def __init__(self, x: np.ndarray, view: View, columns: int) -> None:
        borders, rounded = _column_edges(view.left, view.right, columns, x.dtype)
        after = x.searchsorted(rounded)  # the first point at or right of each border
        start, stop = (
            max(0, int(after[0]) - 1),
            min(len(x), int(after[-1]) + 1),
        )  # one point beyond each edge: the curve continues there
        self._part, self._size, self._points = slice(start, stop), columns, stop - start
        self._x, self._visible = x, slice(int(after[0]), int(after[-1]))
        x, after = x[start:stop], after - start
        self._inside = (after[1:] > after[:-1]).nonzero()[0]
        self._starts, self._end = after[self._inside], int(after[-1])
        first, last = after.searchsorted((1, self._points)).tolist()  # the borders with a point on either side
        self._crossed, self._right = slice(first, last), after[first:last]
        before = x[self._right - 1]
        self._share = (borders[first:last] - before) / (x[self._right] - before)

    def minmax(self, y: np.ndarray, log_y: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """Return the lowest and the highest value of the curve y [P] in each column, as two arrays [columns].

        They include the points where the curve crosses the column's two borders, so that neighbouring columns connect.
        Columns without the curve contain NaN. If `log_y` is True, the result contains logarithms.
        """
        ends = np.full((3, self._size + 1), np.nan)
        low, high, crossing = ends[0, 1:], ends[1, 1:], ends[2]
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
        for border in (crossing[:-1], crossing[1:]):
            np.fmin(low, border, out=low)
            np.fmax(high, border, out=high)
        return low, high

    def few_points(self, y: np.ndarray, log_y: bool = False) -> tuple[np.ndarray, np.ndarray] | None:
        """Return x and y of the curve's visible, finite points if there are fewer than MARKED, otherwise None."""
        y = y[self._visible]
        first = y[:MARKED].tolist()  # usually these are enough, and no other points need to be counted
        if len(first) == MARKED and math.isfinite(sum(first)) and not (log_y and min(first) <= 0):
            return None
        x, y = self._x[self._visible], log10(y) if log_y else y
        finite = np.isfinite(y)
        return None if np.count_nonzero(finite) >= MARKED else (x[finite], y[finite])


@lru_cache(maxsize=8)  # the curves of a page share their window
def _column_edges(left: float, right: float, columns: int, dtype: np.dtype[Any]) -> tuple[np.ndarray, np.ndarray]:
    """Return the edges [columns + 1] of columns whose centres range from `left` to `right`.

    The second array has the dtype of x values, so that searching in these does not copy them. It is rounded up if they
    are integers.
    """
    half = (right - left) / (columns - 1) / 2 if columns > 1 else 0.0
    borders = np.linspace(left - half, right + half, columns + 1)
    if columns == 1:
        borders[1] = np.nextafter(right, np.inf)
    return borders, np.ceil(borders).astype(dtype) if dtype.kind in "iu" else borders


def log10(values: np.ndarray) -> np.ndarray:
    """Return the logarithms [P] of values, with NaN for values that are not above 0."""
    values = np.asarray(values)
    if values.dtype.kind != "f":
        values = values.astype(np.float64)
    logs = np.full(len(values), np.nan, values.dtype)
    np.log10(values, out=logs, where=values > 0)
    return logs


def paint(
    layers: Sequence[Layer],
    view: View,
    width: int,
    height: int,
    glyphs: Glyphs,
    *,
    covering: bool,
    letters: bool,
    levels: Sequence[tuple[float, str]] = (),
) -> Picture:
    """Paint layers on top of each other, the first one at the bottom, and behind them a dashed line at each level.

    If `covering` is True, a cell shows only the dots of its top layer, because it has only one colour. Otherwise it
    shows the dots of all layers. If `letters` is True, each lettered layer shows its mark at intervals. A curve that
    covers only one cell always shows a mark there. A level consists of its y value and its name.
    """
    bits = np.zeros((height, width), np.uint8)
    owner = np.full((height, width), NOTHING, np.int16)
    below: list[tuple[np.ndarray, str, int]] = []
    marks: list[tuple[np.ndarray, str, int]] = []
    free = np.ones((height, width), bool)  # cells without a letter
    curves = [number for number, layer in enumerate(layers) if layer.lettered]
    for number, (layer, own) in enumerate(zip(layers, _bits(layers, view, width, height, glyphs), strict=True)):
        hit = own > 0
        np.copyto(bits, own if covering else bits | own, where=hit)
        np.copyto(owner, number, where=hit)
        if layer.sparse:
            continue
        lettered = letters and layer.lettered
        places = _mark_places(hit, free, curves.index(number), len(curves)) if lettered else _single_cell(hit)
        names = [(place, layer.mark if letters else glyphs.point, number) for place in places]
        points = [(place, glyphs.point, number) for place in _point_cells(layer, view, hit.shape, glyphs)]
        if not letters:
            marks += [*points, *names]
        elif glyphs is BRAILLE:  # no point covers a letter of another curve
            below, marks = [*below, *points], [*marks, *names]
        else:  # in ASCII, all cells of a curve show its letter, unless its points cover all of them
            marks += [*names, *(points if np.count_nonzero(hit) > len(points) else [])]
    if glyphs is BRAILLE:
        codes = np.where(owner >= 0, bits + np.uint32(0x2800), np.uint32(32))
    else:
        codes = np.array([*(ord(layer.mark) for layer in layers), 32], np.uint32)[owner]
    for place, mark, number in [*below, *marks]:
        codes[tuple(place)], owner[tuple(place)] = ord(mark), number
    picture = Picture(codes, np.array([*(layer.style for layer in layers), NOTHING], np.int16)[owner])
    for at, name in levels:
        _add_level(picture, int(_dot_rows(np.array(at), view, height * glyphs.rows)), name, glyphs)
    return picture


def _bits(layers: Sequence[Layer], view: View, width: int, height: int, glyphs: Glyphs) -> np.ndarray:
    """Return the dots that each layer covers in each cell, as a number per cell [layers, height, width]."""
    size, rows = glyphs.rows, height * glyphs.rows
    ends = np.array([(layer.high, layer.low) for layer in layers]).reshape(-1, 2, width * glyphs.columns)
    ends = _dot_rows(ends, view, rows)
    ends[:, 1] += 1  # the row below the last covered row
    ends = np.where(np.isnan(ends).any(axis=1, keepdims=True), 0, np.clip(ends, 0, rows)).astype(np.int16)
    cells = np.arange(0, rows, size, dtype=np.int16)[:, None]
    first, free = (np.minimum(np.maximum(ends[:, k, None] - cells, 0), size) for k in (0, 1))
    kinds = first * np.int16(size + 1) + free
    bits = np.zeros((len(layers), height, width), np.uint8)
    for column, numbers in enumerate(_interval_bits(glyphs)):
        bits |= numbers.take(kinds[..., column :: glyphs.columns])
    for number, layer in enumerate(layers):
        if layer.sparse:
            bits[number] &= _checkerboard(width, height, glyphs)
    return bits


def _dot_rows(values: np.ndarray, view: View, rows: int) -> np.ndarray:
    """Return the row of dots, as a float, in which each value lies. Row 0 is at the top."""
    half = 0.5 + 1e-9  # rounds a tie between two dots down in spite of rounding errors
    return np.floor((view.high - values) * ((rows - 1) / (view.high - view.low)) + half)


def _point_cells(layer: Layer, view: View, shape: tuple[int, int], glyphs: Glyphs) -> list[np.ndarray]:
    """Return the cells of a layer's points."""
    if layer.points is None:
        return []
    (height, width), (x, y) = shape, layer.points
    y = y.astype(np.float64)  # as exact as the columns of the layer
    across = np.floor((x - view.left) / (view.right - view.left) * (width * glyphs.columns - 1) + 0.5)
    columns = np.clip(across // glyphs.columns, 0, width - 1)
    rows = np.clip(_dot_rows(y, view, height * glyphs.rows) // glyphs.rows, 0, height - 1)
    return list(np.stack((rows, columns), axis=1).astype(np.int16))


def _add_level(picture: Picture, dot: int, name: str, glyphs: Glyphs) -> None:
    """Draw a dashed line in the free cells of a row of dots, and its name beside the curves.

    If there is not enough space, the last word of the name, which is the value, is omitted. The name never touches a
    curve. A name with wide characters is not drawn.
    """
    (codes, styles), (row, part) = picture, divmod(dot, glyphs.rows)
    free = styles == NOTHING
    dashes = free[row] & (np.arange(codes.shape[1]) % 2 == 0)
    bits = sum(column[part] for column in glyphs.dots)
    codes[row, dashes], styles[row, dashes] = ord(glyphs.floor) if glyphs is ASCII else 0x2800 + bits, LEVEL
    for text in (f" {name} ", f" {name.rpartition(' ')[0]} "):
        for near in (row, row - 1, row + 1) if text.isascii() else ():
            cells = free[near].tobytes() + b"\1" if 0 <= near < len(free) else b""  # the right edge ends a name, too
            start = cells.rfind(b"\1" * len(text))
            if start >= 0:
                place = slice(start, start + len(text))
                codes[near, place], styles[near, place] = [*map(ord, text)][: codes.shape[1] - start], LEVEL
                return


@cache
def _interval_bits(glyphs: Glyphs) -> np.ndarray:
    """Return the numbers of all vertical intervals of dots in each column of a cell [columns, rows x rows]."""
    rows = range(glyphs.rows + 1)
    return np.array([[sum(column[a:b]) for a in rows for b in rows] for column in glyphs.dots], np.uint8)


def _checkerboard(width: int, height: int, glyphs: Glyphs) -> np.ndarray:
    """Return every other dot, in a checkerboard pattern, as a number per cell [height, width]."""
    dots = [(row + column, dot) for column, own in enumerate(glyphs.dots) for row, dot in enumerate(own)]
    numbers = np.array([sum(dot for place, dot in dots if place % 2 == odd) for odd in (0, 1)], np.uint8)
    odd = (glyphs.rows * np.arange(height)[:, None] + glyphs.columns * np.arange(width)) % 2
    return np.take(numbers, odd)


def _single_cell(hit: np.ndarray) -> list[np.ndarray]:
    """Return the only cell that a curve covers, because its dot would be easy to miss, or [] if there are more."""
    return list(np.argwhere(hit)) if np.count_nonzero(hit) == 1 else []


def _mark_places(hit: np.ndarray, free: np.ndarray, number: int, count: int) -> list[np.ndarray]:
    """Return the cells that show a curve's letter, and remove them from `free`.

    No two curves have letters in the same column, if possible. No letter covers another, unless all cells have one.
    """
    if not hit.any():
        return []
    hit = hit & free if (hit & free).any() else hit
    columns, width = np.flatnonzero(hit.any(axis=0)), hit.shape[1]
    repeats, share = max(1, width // max(_BETWEEN_MARKS, 3 * count)), (number + 0.5) / count
    wanted = (np.arange(repeats) + share) * (width / repeats)
    chosen = np.intersect1d(columns, wanted.astype(int))
    chosen = chosen if len(chosen) else columns[[int(share * len(columns))]]
    places = []
    for column in chosen:
        rows = np.flatnonzero(hit[:, column])
        places.append(np.array([rows[len(rows) // 2], column]))
        free[tuple(places[-1])] = False
    return places


def spans(picture: Picture, cross: int | None = None, line: str = BRAILLE.side) -> list[list[Span]]:
    """Split the rows of a picture into spans of one style. `cross` is a column that shows `line` behind the curves.

    A blank gets the style of the cell on its left, which saves spans and looks the same.
    """
    codes, styles = picture
    height, width = codes.shape
    if cross is not None and 0 <= cross < width:
        codes, styles = codes.copy(), styles.copy()
        free = styles[:, cross] == NOTHING
        codes[free, cross], styles[free, cross] = ord(line), CROSS
    cells = np.arange(height * width).reshape(height, width)
    visible = np.where(styles == NOTHING, cells[:, :1], cells)
    styles = styles.take(np.maximum.accumulate(visible, axis=1))
    begins = np.ones((height, width), bool)
    begins[:, 1:] = styles[:, 1:] != styles[:, :-1]
    text = codes.astype("<u4").tobytes().decode("utf-32-le")
    starts = np.flatnonzero(begins)
    rows: list[list[Span]] = [[] for _ in range(height)]
    ends = [*starts[1:].tolist(), height * width]
    for start, end, style in zip(starts.tolist(), ends, styles.reshape(-1)[starts].tolist(), strict=True):
        rows[start // width].append((text[start:end], style))
    return rows
