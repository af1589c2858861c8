"""Curves as plain text: braille dots where the terminal has them, ASCII otherwise. Pure functions over numpy.

Every curve is reduced to one interval per dot column, from its lowest to its highest value there, so a spike of a
single point survives however many points share its column. The cost does not depend on the zoom.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from string import ascii_lowercase, ascii_uppercase, digits
from typing import NamedTuple

import numpy as np

from ppo_unified.text import BOLD, DIM, columns_of, pad, painted, short

MARKS = ascii_uppercase + ascii_lowercase + digits  # tell curves apart without colour
COLORS = ("36", "33", "35", "32", "34", "31")  # ANSI's own six: they follow the reader's theme
_DOTS = np.array([[0x01, 0x08], [0x02, 0x10], [0x04, 0x20], [0x40, 0x80]], np.uint32)  # Unicode's braille bits
_GUTTER = 8  # columns of the labels on the left, at least: charts above each other line up
_BETWEEN_MARKS = 10  # columns from one letter on a curve to the next, at least


class Line(NamedTuple):
    """One curve: x and y [P], x ascending. A y that is NaN or infinite leaves a gap."""

    label: str
    x: np.ndarray
    y: np.ndarray


class Glyphs(NamedTuple):
    """The characters of a chart and the dots that one of them holds."""

    rows: int
    columns: int
    point: str
    side: str
    tick: str
    corner: str
    floor: str
    notch: str


BRAILLE = Glyphs(4, 2, "•", "│", "┤", "└", "─", "┴")
ASCII = Glyphs(1, 1, "*", "|", "+", "+", "-", "+")


@dataclass(frozen=True)
class View:
    """The window of the data that a chart shows."""

    left: float
    right: float
    low: float
    high: float


def smooth(values: np.ndarray, weight: float) -> np.ndarray:
    """TensorBoard's exponential moving average [P], without its bias towards 0 at the start.

    `weight` in [0, 1): 0 changes nothing. What is not finite stays as it is and does not enter the average.
    """
    smoothed = np.array(values, np.float64)
    last, unbias = 0.0, 1.0
    for index in np.flatnonzero(np.isfinite(smoothed)):
        last = weight * last + (1 - weight) * smoothed[index]
        unbias *= weight
        smoothed[index] = last / (1 - unbias)
    return smoothed


def nice_ticks(low: float, high: float, count: int) -> list[float]:
    """Round numbers inside [low, high], at most about `count`; [low] where there is no range."""
    if not math.isfinite(high - low) or high <= low:
        return [low]
    raw = (high - low) / max(1, count)
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(m * magnitude for m in (1, 2, 2.5, 5, 10) if m * magnitude >= raw * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [k * step for k in range(first, last + 1)]


def columns_minmax(x: np.ndarray, y: np.ndarray, view: View, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """The lowest and highest value of a curve in each of `columns` equal columns of the window, NaN where it is not.

    A curve in a column is its points there and its crossings of the column's two borders, so that neighbours join.
    x, y [P], x ascending -> two arrays [columns].
    """
    low, high = np.full(columns, np.nan), np.full(columns, np.nan)
    start = max(0, int(np.searchsorted(x, view.left, "left")) - 1)
    x, y = x[start:], np.where(np.isfinite(y), y, np.nan)[start:]
    stop = int(np.searchsorted(x, view.right, "right")) + 1  # one point beyond either edge: the curve goes there
    x, y = x[:stop], y[:stop]
    if not len(x):
        return low, high
    position = (x - view.left) * ((columns - 1) / (view.right - view.left))
    column = np.floor(position + 0.5).astype(np.int64)
    starts = np.flatnonzero(np.r_[True, column[1:] != column[:-1]])
    inside = (column[starts] >= 0) & (column[starts] < columns)
    filled = column[starts][inside]
    low[filled], high[filled] = np.fmin.reduceat(y, starts)[inside], np.fmax.reduceat(y, starts)[inside]

    border = np.arange(columns + 1) - 0.5
    before = np.searchsorted(position, border, "right") - 1  # the last point left of each border
    crossed = (before >= 0) & (before < len(x) - 1)
    before, border = before[crossed], border[crossed]
    share = (border - position[before]) / (position[before + 1] - position[before])
    crossing = np.full(columns + 1, np.nan)
    crossing[crossed] = y[before] + share * (y[before + 1] - y[before])
    low = np.fmin(low, np.fmin(crossing[:-1], crossing[1:]))
    high = np.fmax(high, np.fmax(crossing[:-1], crossing[1:]))
    return low, high


def find_view(lines: Sequence[Line], x_range: tuple[float, float] | None = None) -> View | None:
    """The window that shows all of some curves; None where there is no finite value. A lone value gets room around."""
    xs = [line.x for line in lines if len(line.x)]
    finite = [line.y[np.isfinite(line.y)] for line in lines]
    if not any(len(y) for y in finite):
        return None
    left, right = x_range or (float(min(x[0] for x in xs)), float(max(x[-1] for x in xs)))
    low, high = (float(f([f(y) for y in finite if len(y)])) for f in (np.min, np.max))
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
    shown = [Line(line.label, line.x, _scaled(line.y, log_y)) for line in lines]
    view = find_view(shown, x_range)
    head = _legend(lines, width, title, color)
    if view is None:
        points = any(len(line.x) for line in lines)
        why = ("no value above 0" if log_y else "no finite value") if points else "no points yet"
        return [head, *(pad(" " * _GUTTER + (why if row == 1 else ""), width) for row in range(1, height))]
    labels = _y_labels(shown, view, height - 3, log_y, glyphs)
    gutter = max(_GUTTER, *map(len, labels.values()))
    body = _curves(shown, view, width - gutter - 1, height - 3, glyphs, color)
    rows = [head]
    for row, text in enumerate(body):
        side = labels.get(row, "").rjust(gutter) + (glyphs.tick if row in labels else glyphs.side)
        rows.append((painted(side, DIM) if color else side) + text)
    return rows + [painted(row, DIM) if color else row for row in _x_axis(view, width, gutter, glyphs)]


def _scaled(y: np.ndarray, log_y: bool) -> np.ndarray:
    y = np.asarray(y, np.float64)
    if not log_y:
        return y
    logs = np.full(len(y), np.nan)
    np.log10(y, out=logs, where=y > 0)
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


def _y_labels(lines: Sequence[Line], view: View, rows: int, log_y: bool, glyphs: Glyphs) -> dict[int, str]:
    """Row -> label: the lowest and the highest value as they are, round numbers between them where there is room."""
    finite = np.concatenate([line.y[np.isfinite(line.y)] for line in lines])
    ends = [float(finite.min()), float(finite.max())]
    ticks = [t for t in nice_ticks(view.low, view.high, rows // 2) if not log_y or t == round(t)]
    constant = not view.low == ends[0] < ends[1] == view.high
    wanted = [ends[0]] if constant or rows == 1 else ends + ticks
    resolution = 0.0 if log_y or constant else (view.high - view.low) / 10
    labels: dict[int, str] = {}
    for value in wanted:
        row = round((view.high - value) / (view.high - view.low) * (rows * glyphs.rows - 1)) // glyphs.rows
        if value in ends or not {row - 1, row, row + 1} & labels.keys():
            labels[row] = short(10.0**value if log_y else value, resolution)
    return labels


def _curves(lines: Sequence[Line], view: View, width: int, height: int, glyphs: Glyphs, color: bool) -> list[str]:
    """The rows of the plot itself, each `width` columns."""
    cells = np.zeros((height, width), np.uint32)
    owner = np.full((height, width), -1)
    marks: dict[tuple[int, int], str] = {}
    for number, line in enumerate(lines):
        low, high = columns_minmax(line.x, line.y, view, width * glyphs.columns)
        dots = _dots(low, high, view, height * glyphs.rows)
        bits = dots.reshape(height, glyphs.rows, width, glyphs.columns)
        bits = (bits * _DOTS[None, : glyphs.rows, None, : glyphs.columns]).sum(axis=(1, 3), dtype=np.uint32)
        hit = bits > 0
        cells = np.where(hit, bits if color else cells | bits, cells)  # a colour fills its cell: the last drawn wins
        owner[hit] = number
        letter = MARKS[number % len(MARKS)] if len(lines) > 1 else ""
        for place in _mark_places(hit, number, len(lines)):
            marks[place] = letter or glyphs.point
            owner[place] = number
    return [_row(cells[r], owner[r], r, marks, len(lines), glyphs, color) for r in range(height)]


def _dots(low: np.ndarray, high: np.ndarray, view: View, rows: int) -> np.ndarray:
    """Which dots [rows, columns] the intervals cover; row 0 is the top."""
    scale = (rows - 1) / (view.high - view.low)
    with np.errstate(invalid="ignore"):
        top, bottom = np.rint((view.high - high) * scale), np.rint((view.high - low) * scale)
    grid = np.arange(rows)[:, None]
    return (grid >= top) & (grid <= bottom)  # NaN compares false: a gap


def _mark_places(hit: np.ndarray, number: int, count: int) -> list[tuple[int, int]]:
    """Cells of a curve that bear its letter: every so often, each curve at other columns; a lone cell always."""
    columns = np.flatnonzero(hit.any(axis=0))
    if not len(columns):
        return []
    if count > 1:
        every = max(_BETWEEN_MARKS, 3 * count)
        chosen = [int(c) for c in columns if c % every == (2 * number + 1) * every // (2 * count)]
        columns = np.array(chosen or [columns[-1]])
    elif len(columns) > 1 or hit.sum() > 1:
        return []
    middles = [np.flatnonzero(hit[:, c]) for c in columns]
    return [(int(rows[len(rows) // 2]), int(c)) for c, rows in zip(columns, middles, strict=True)]


def _row(
    cells: np.ndarray,
    owner: np.ndarray,
    row: int,
    marks: dict[tuple[int, int], str],
    count: int,
    glyphs: Glyphs,
    color: bool,
) -> str:
    characters = []
    for column, (bits, line) in enumerate(zip(cells.tolist(), owner.tolist(), strict=True)):
        braille, ascii_mark = chr(0x2800 + bits), MARKS[line % len(MARKS)] if count > 1 else glyphs.point
        plain = " " if line < 0 else braille if glyphs is BRAILLE else ascii_mark
        characters.append(marks.get((row, column), plain))
    if not color:
        return "".join(characters)
    cuts = [0, *(np.flatnonzero(owner[1:] != owner[:-1]) + 1).tolist(), len(owner)]
    return "".join(
        painted("".join(characters[a:b]), COLORS[owner[a] % len(COLORS)] if owner[a] >= 0 else "")
        for a, b in pairwise(cuts)
    )


def _x_axis(view: View, width: int, gutter: int, glyphs: Glyphs) -> list[str]:
    """The floor with its notches and the row of labels below, each `width` columns."""
    room = width - gutter - 1
    floor, below = [glyphs.floor] * room, [" "] * width
    span = view.right - view.left
    for tick in nice_ticks(view.left, view.right, max(1, room // 7)):
        label = short(tick, span / 100)
        column = round((tick - view.left) / span * (room - 1))
        start = min(max(gutter + 1 + column - len(label) // 2, gutter), width - len(label))
        if all(c == " " for c in below[max(0, start - 2) : start + len(label)]):
            below[start : start + len(label)] = label
            floor[column] = glyphs.notch
    return [" " * gutter + glyphs.corner + "".join(floor), "".join(below)]
