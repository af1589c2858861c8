"""Paints the curves of one chart in terminal cells, and converts between columns and x values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ppo_unified.terminal import braille, chart, ticks
from ppo_unified.terminal.braille import Glyphs, Layer, Picture, View
from ppo_unified.terminal.ticks import GUTTER, Tick
from tui.charts.export import WIDTH, PaperChart
from tui.charts.traces import DrawnCurve
from tui.charts.window import Window

TALL = 12  # a chart with at least this many rows has a separate line for the x axis


class Look(NamedTuple):
    """The drawing options of a chart. All charts of a page share them, except for `log_y`."""

    axis: str = "step"
    log_x: bool = False
    log_y: bool = False
    smoothing: float = 0.0
    aggregate: bool = False
    window: Window | None = None  # in drawn coordinates (logarithms on a log axis); None without data

    def x_label(self, x: float) -> str:
        """Format an x value."""
        if self.axis == "relative":
            return ticks.span_label(x)
        return ticks.format_local_time(x) if self.axis == "time" else f"{round(x):,}"

    def x_ticks(self, view: View, room: int) -> Sequence[Tick]:
        """Return the ticks of an x axis of `room` columns."""
        count = max(2, room // (7 if self.axis == "step" else 10))
        if self.log_x:
            placed = ticks.log_ticks(view.left, view.right, count)
            if self.axis != "relative":
                return placed
            return [Tick(at, ticks.span_label(10.0**at) if at >= 0 else label) for at, label in placed]
        if self.axis == "step":
            return ticks.plain_ticks(view.left, view.right, count)
        return ticks.time_ticks(view.left, view.right, count, self.axis == "time")


@dataclass(frozen=True)
class ChartPicture:
    """A chart without title, crosshair and colors. Columns are counted from the left edge of the widget."""

    picture: Picture
    view: View
    log_x: bool
    log_y: bool
    dots: int  # horizontal dots per cell
    room: int  # columns of the plot, without the gutter and the axis line
    labels: dict[int, str]  # row -> y label
    ticks: list[tuple[int, int, str]]
    levels: list[Tick]  # the values that dashed lines mark, in drawn coordinates
    hidden: int  # number of visible points that a logarithmic y axis cannot show
    noun: str  # what these points are: values of runs, or also points of medians

    def column_of(self, x: float) -> int | None:
        """Return the plot's column, from 0, for an x value, or None if it is outside the window."""
        if self.log_x and x <= 0:
            return None
        at, view = float(np.log10(x)) if self.log_x else x, self.view
        column = round((at - view.left) / (view.right - view.left) * (self.room * self.dots - 1)) // self.dots
        return column if 0 <= column < self.room else None

    def share_at(self, column: float) -> float:
        """Return the position of a column's centre in the plot, from 0 at the left end to 1 at the right end."""
        return ((column - GUTTER - 1) * self.dots + (self.dots - 1) / 2) / max(1, self.room * self.dots - 1)

    def place_at(self, column: float) -> float | None:
        """Return the drawn x coordinate of a column (a logarithm on a log axis), or None outside the plot."""
        share = self.share_at(column)
        return self.view.left + share * (self.view.right - self.view.left) if 0 <= share <= 1 else None

    def x_at(self, column: float) -> float | None:
        """Return the x value of a column, or None outside the plot."""
        at = self.place_at(column)
        return 10.0**at if at is not None and self.log_x else at

    def x_beside(self, x: float | None, by: int) -> float | None:
        """Return the x value `by` columns away from `x`, or from the right end if `x` is not visible."""
        column = None if x is None else self.column_of(x)
        column = (self.room if by < 0 else self.room - 1) if column is None else column
        return self.x_at(GUTTER + 1 + min(self.room - 1, max(0, column + by)))

    @property
    def column_width(self) -> float:
        """The width of a column in drawn x coordinates."""
        return (self.view.right - self.view.left) / self.room


def paint_chart(
    drawn: Sequence[DrawnCurve], look: Look, size: tuple[int, int], glyphs: Glyphs, levels: Sequence[Tick] = ()
) -> ChartPicture | str:
    """Paint the curves and axes in `size` (columns, rows), or return a message if no point is visible.

    `levels` are the values that dashed lines mark, with their names. Lines far away from the curves are omitted.
    """
    width, height = size
    rows = height - 1 - (2 if height >= TALL else 1)
    if look.window is None or not drawn:
        return "no points yet"
    if rows < 1 or width < GUTTER + 4:
        return ""
    lines = [_with_log_x(one) for one in drawn] if look.log_x else drawn
    room, log_y, letters = width - GUTTER - 1, look.log_y, any(one.letter for one in drawn)
    layers = _layers(lines, View(*look.window, 0, 1), room, glyphs, log_y)
    hidden = sum(_count_nonpositive(one, look.window) for one in lines) if log_y else 0
    low = float(np.fmin.reduce([np.fmin.reduce(layer.low) for layer in layers]))
    high = float(np.fmax.reduce([np.fmax.reduce(layer.high) for layer in layers]))
    if not np.isfinite(high - low):
        return "no value above 0 (log y)" if hidden else "no finite values here"
    view, levels = chart.fit_levels(chart.add_margins(View(*look.window, low, high)), levels, log_y)
    labels = chart.y_labels((low, high), view, rows, log_y, glyphs)
    picture = braille.paint(layers, view, room, rows, glyphs, covering=True, letters=letters, levels=levels)
    placed = chart.place_ticks(look.x_ticks(view, room), view, room, GUTTER)
    noun = "point" if any(one.seeds is not None for one in drawn) else "value"
    return ChartPicture(picture, view, look.log_x, log_y, glyphs.columns, room, labels, placed, levels, hidden, noun)


def paper_chart(picture: ChartPicture, drawn: Sequence[DrawnCurve], look: Look) -> PaperChart:
    """Return the same chart for export to a file."""
    curves = [_with_log_x(one) for one in drawn] if look.log_x else drawn
    if picture.log_y:
        curves = [_with_log_y(one) for one in curves]
    note = chart.nonpositive_note(picture.hidden, WIDTH, picture.noun)
    return PaperChart(curves, picture.view, picture.log_y, look.x_ticks(picture.view, 100), picture.levels, note)


def _layers(lines: Sequence[DrawnCurve], span: View, room: int, glyphs: Glyphs, log_y: bool) -> list[Layer]:
    """Return the bands, raw curves and curves, from bottom to top. The first curve is on top.

    Of n curves, curve k uses style 2k, its band or raw curve uses 2k + 1, and the part where some seeds are missing
    uses 2n + k.
    """
    bands, raws, curves = [], [], []
    for k, one in reversed(list(enumerate(lines))):
        places = braille.Columns(one.x, span, room * glyphs.columns)
        if one.band is not None:
            lower, upper = places.minmax(one.band[0], log_y)[0], places.minmax(one.band[1], log_y)[1]
            bands.append(Layer(lower, upper, 2 * k + 1, ":", sparse=True, lettered=False))
        elif one.curve is not one.raw:
            raws.append(Layer(*places.minmax(one.raw, log_y), 2 * k + 1, ".", lettered=False))
        mark = one.letter or "*"
        points = places.few_points(one.curve, log_y)
        complete, partial = one.split()
        if partial is not None:
            ends = _dotted(*places.minmax(partial, log_y), glyphs.columns)
            small = mark.lower() if mark.isalpha() else "-"
            dotted = None if points is None else places.few_points(partial, log_y)
            curves.append(Layer(*ends, 2 * len(lines) + k, small, points=dotted))
            points = None if points is None else places.few_points(complete, log_y)
        curves.append(Layer(*places.minmax(complete, log_y), 2 * k, mark, points=points))
    return [*bands, *reversed(raws), *curves]  # reversed: the pinned run's dense raw curve must not hide the others


def _dotted(low: np.ndarray, high: np.ndarray, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """Combine the intervals of each cell in its first column of dots, so that the curve is dotted without any color."""
    dotted = np.full((2, len(low) // columns, columns), np.nan)
    dotted[0, :, 0] = np.fmin.reduce(low.reshape(-1, columns), axis=1)
    dotted[1, :, 0] = np.fmax.reduce(high.reshape(-1, columns), axis=1)
    low, high = dotted.reshape(2, -1)
    return low, high


def _count_nonpositive(one: DrawnCurve, window: Window) -> int:
    """Return the number of a curve's visible points that are not above 0."""
    visible = slice(np.searchsorted(one.x, window.left), np.searchsorted(one.x, window.right, "right"))
    return int(np.count_nonzero(one.raw[visible] <= 0))


def _with_log_x(one: DrawnCurve) -> DrawnCurve:
    """Return the part of a curve with x > 0, with logarithmic x values."""
    above = int(np.searchsorted(one.x, 0.0, "right"))
    x, raw, curve = np.log10(one.x[above:]), one.raw[above:], one.curve[above:]
    band = None if one.band is None else (one.band[0][above:], one.band[1][above:])
    seeds = None if one.seeds is None else one.seeds.after(above)
    return one._replace(x=x, raw=raw, curve=raw if one.curve is one.raw else curve, band=band, seeds=seeds)


def _with_log_y(one: DrawnCurve) -> DrawnCurve:
    raw = braille.log10(one.raw)
    band = None if one.band is None else (braille.log10(one.band[0]), braille.log10(one.band[1]))
    return one._replace(raw=raw, curve=raw if one.curve is one.raw else braille.log10(one.curve), band=band)
