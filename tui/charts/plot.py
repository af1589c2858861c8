"""One chart in the terminal: cached lines of the drawing core, and the mouse on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.color import Color
from textual.filter import LineFilter
from textual.geometry import Region
from textual.message import Message
from textual.strip import Strip
from textual.widget import Widget

from ppo_unified.terminal import braille, chart
from ppo_unified.terminal.braille import ASCII, BRAILLE, CROSS, NOTHING, Layer, Picture, View
from ppo_unified.terminal.chart import MARKS, Tick
from ppo_unified.text import clean, columns_of, pad, short
from tui.charts.export import PaperChart
from tui.charts.traces import Averages, Drawn, Trace, prepared, value_at
from tui.charts.window import Window

GUTTER = 8  # columns of the y labels: charts above each other line up
TALL = 12  # rows from which on the x axis gets a line of its own
FAINT, BAND = 0.6, 0.7  # how far raw curves and bands fade into the background
WHEEL = 0.8  # how much narrower the window gets with one turn of the wheel
TAIL = 0.9  # share of the plot right of which zooming holds on to the newest data


class Look(NamedTuple):
    """How the charts of a page are drawn."""

    axis: str = "step"
    log_x: bool = False
    log_y: bool = False
    smoothing: float = 0.0
    aggregate: bool = False
    window: Window | None = None  # on the axis as it is drawn; None: there is no data


@dataclass(frozen=True)
class Painted:
    """A chart but for its title, its crosshair and its colours."""

    picture: Picture
    view: View
    log_y: bool
    gutter: int
    room: int
    labels: dict[int, str]
    ticks: list[tuple[int, int, str]]


class Inks(NamedTuple):
    """The styles of a chart's parts, on its background."""

    base: Style
    title: Style
    axis: Style
    cross: Style
    bright: list[Style]  # of each curve
    faint: list[Style]

    def through(self, filters: Sequence[LineFilter], background: Color) -> Inks:
        """The inks as the program's filters let them through; to filter every line costs a fifth of a redraw."""
        several = [self.base, self.title, self.axis, self.cross, *self.bright, *self.faint]
        segments = [Segment("", style) for style in several]
        for line_filter in filters:
            segments = line_filter.apply(segments, background)
        seen = [segment.style or self.base for segment in segments]
        base, title, axis, cross, *curves = seen
        return Inks(base, title, axis, cross, curves[: len(self.bright)], curves[len(self.bright) :])


class Plot(Widget, can_focus=True):
    """The curves of one metric."""

    DEFAULT_CSS = """
    Plot { width: 1fr; height: 1fr; }
    Plot > .plot--title { text-style: bold; color: $foreground; }
    Plot > .plot--current { text-style: bold; color: $text; background: $primary; }
    Plot > .plot--axis { color: $foreground 60%; }
    Plot > .plot--cross { color: $foreground; text-style: bold; }
    """
    COMPONENT_CLASSES: ClassVar[set[str]] = {"plot--title", "plot--current", "plot--axis", "plot--cross"}

    class About(Message):
        """Something happened on a chart."""

        def __init__(self, plot: Plot) -> None:
            super().__init__()
            self.plot = plot

    class Chosen(About):
        """It got the focus."""

    class Opened(About):
        """It was clicked twice."""

    class Crossed(About):
        """The mouse points at a place of the x axis, or no longer at any."""

        def __init__(self, plot: Plot, x: float | None) -> None:
            super().__init__(plot)
            self.x = x

        def can_replace(self, message: Message) -> bool:
            return isinstance(message, Plot.Crossed)

    class Zoomed(About):
        """The wheel turned at a place of the axis as it is drawn; None: near the newest data."""

        def __init__(self, plot: Plot, factor: float, at: float | None) -> None:
            super().__init__(plot)
            self.factor, self.at = factor, at

    class Dragged(About):
        """The mouse pulls what was at `grabbed` to a share of the plot's width."""

        def __init__(self, plot: Plot, grabbed: float, share: float) -> None:
            super().__init__(plot)
            self.grabbed, self.share = grabbed, share

        def can_replace(self, message: Message) -> bool:
            return isinstance(message, Plot.Dragged)

    def __init__(self, unicode: bool = True) -> None:
        super().__init__()
        self.tag, self.current = "", False
        self.cross: float | None = None  # on the x axis, not its logarithm
        self.drawings = 0  # how often curves were painted, for tests and benchmarks
        self._glyphs = BRAILLE if unicode else ASCII
        self._traces: Sequence[Trace] = ()
        self._look = Look()
        self._data: tuple[object, ...] = ()
        self._drawn: list[Drawn] | None = None
        self._averages = Averages()
        self._painted: Painted | str | None = None  # a chart, or why there is none
        self._strips: list[Strip] | None = None
        self._own_inks: Inks | None = None
        self._colors: list[tuple[str, bool]] = []  # that the inks were made for
        self._grabbed: float | None = None

    # what is shown

    def show(self, tag: str, traces: Sequence[Trace], look: Look) -> None:
        """Draw these curves at the next refresh, unless they are the same as before."""
        data = (tag, look.axis, look.log_x, look.smoothing, look.aggregate, [_identity(trace) for trace in traces])
        if data == self._data and look == self._look:
            return
        if data != self._data:
            self._drawn = None
        if tag != self.tag:
            self._averages = Averages()
        self.tag, self._traces, self._look, self._data = tag, traces, look, data
        self._repaint()

    def set_cross(self, x: float | None) -> None:
        """Show the values at a place of the x axis; None: the last ones."""
        if x != self.cross:
            self.cross, self._strips = x, None
            self.refresh()

    def set_current(self, current: bool) -> None:
        """Mark it as the chart that actions are about."""
        if current != self.current:
            self.current, self._strips, self._own_inks = current, None, None
            self.refresh()

    def notify_style_update(self) -> None:
        self._strips = self._own_inks = None
        super().notify_style_update()

    def on_resize(self) -> None:
        self._repaint()

    def _repaint(self) -> None:
        self._painted = self._strips = None
        self.refresh()

    @property
    def drawn(self) -> list[Drawn]:
        """The curves as they are drawn."""
        if self._drawn is None:
            look = self._look
            self._drawn = prepared(self._traces, look.axis, look.smoothing, look.aggregate, self._averages)
            colors = [(one.color, one.band is None) for one in self._drawn]
            if colors != self._colors:
                self._colors, self._own_inks = colors, None
        return self._drawn

    # drawing

    def render_lines(self, crop: Region) -> list[Strip]:
        """The lines as they are: around a chart is neither border nor padding, and its inks are filtered already."""
        strips = [self.render_line(y) for y in crop.line_range]
        first, end = crop.column_span
        return strips if (first, end) == (0, self.size.width) else [strip.crop(first, end) for strip in strips]

    def render_line(self, y: int) -> Strip:
        if self._strips is None:
            self._strips = self._draw()
        return self._strips[y] if y < len(self._strips) else Strip.blank(self.size.width, self.rich_style)

    def _draw(self) -> list[Strip]:
        width, height = self.size
        if self._painted is None:
            self._painted = self._paint()
        inks = self._own_inks = self._own_inks or self._inks()
        if isinstance(self._painted, str):
            why = Strip([Segment(pad(" " * GUTTER + self._painted, width), inks.axis)], width)
            return [self._title(width, False, inks), why, *[Strip.blank(width, inks.base)] * (height - 2)]
        head, foot = self._title(width, self._painted.log_y, inks), self._foot(self._painted, height, inks)
        return [head, *self._body(self._painted, inks), *foot]

    def _paint(self) -> Painted | str:
        """The curves inside the window, and the axes around them."""
        self.drawings += 1
        (width, height), look, glyphs = self.size, self._look, self._glyphs
        rows = height - 1 - (2 if height >= TALL else 1)
        if look.window is None or not self.drawn:
            return "no points yet"
        if rows < 1 or width < GUTTER + 4:
            return ""
        lines = [_logged(one) for one in self.drawn] if look.log_x else self.drawn
        span, room = View(*look.window, 0, 1), width - GUTTER - 1
        log_y = look.log_y
        layers = self._layers(lines, span, room * glyphs.columns, log_y)
        if log_y and not any(np.isfinite(layer.low).any() for layer in layers):
            log_y, layers = False, self._layers(lines, span, room * glyphs.columns, False)
        low = float(np.fmin.reduce([np.fmin.reduce(layer.low) for layer in layers]))
        high = float(np.fmax.reduce([np.fmax.reduce(layer.high) for layer in layers]))
        if not np.isfinite(high - low):
            return "no finite value here"
        view = chart.add_margins(View(*look.window, low, high))
        labels = chart.y_labels((low, high), view, rows, log_y, glyphs, GUTTER)
        letters = len(lines) > 1 and (not self._glyphs.columns > 1 or self.app.no_color)
        picture = braille.paint(layers, view, room, rows, glyphs, covering=True, letters=letters)
        ticks = chart.place_ticks(self._x_ticks(view, room), view, room, GUTTER)
        return Painted(picture, view, log_y, GUTTER, room, labels, ticks)

    def _layers(self, lines: Sequence[Drawn], span: View, columns: int, log_y: bool) -> list[Layer]:
        """Bands at the bottom, then raw curves, then the bright ones; styles are 2 k, and 2 k + 1 where faint."""
        bands, raws, curves = [], [], []
        for k, one in enumerate(lines):
            places = braille.Columns(one.x, span, columns)
            if one.band is not None:
                lower, upper = places.minmax(one.band[0], log_y)[0], places.minmax(one.band[1], log_y)[1]
                bands.append(Layer(lower, upper, 2 * k + 1, ":", sparse=True))
            elif one.curve is not one.raw:
                raws.append(Layer(*places.minmax(one.raw, log_y), 2 * k + 1, "."))
            mark = MARKS[k % len(MARKS)] if len(lines) > 1 else "*"
            curves.append(Layer(*places.minmax(one.curve, log_y), 2 * k, mark))
        return [*bands, *reversed(raws), *curves]  # the raw curve of the reference, dense and grey, at the bottom

    def for_paper(self) -> PaperChart | None:
        """The chart as it is, for a file; None where there is nothing to see."""
        if self._painted is None:
            self._painted = self._paint()
        painted = self._painted
        if isinstance(painted, str):
            return None
        drawn = [_logged(one) for one in self.drawn] if self._look.log_x else self.drawn
        if painted.log_y:
            drawn = [_log_y(one) for one in drawn]
        return PaperChart(drawn, painted.view, painted.log_y, self._x_ticks(painted.view, 100))

    def _x_ticks(self, view: View, room: int) -> list[Tick]:
        look, count = self._look, max(2, room // (7 if self._look.axis == "step" else 10))
        if look.log_x:
            ticks = chart.log_ticks(view.left, view.right, count)
            if look.axis == "relative":
                ticks = [Tick(at, chart.span_label(10.0**at) if at >= 0 else label) for at, label in ticks]
            return ticks
        if look.axis == "step":
            return chart.plain_ticks(view.left, view.right, count)
        return chart.time_ticks(view.left, view.right, count, look.axis == "time")

    def _inks(self) -> Inks:
        background, base = self.background_colors[1], self.rich_style
        bright, faint = [], []
        for one in self.drawn:
            color = Color.parse(one.color)
            faded = color.blend(background, BAND if one.band is not None else FAINT)
            bright.append(base + Style(color=color.rich_color))
            faint.append(base + Style(color=faded.rich_color))
        title = self.get_component_rich_style("plot--current" if self.current else "plot--title")
        axis, cross = (self.get_component_rich_style(f"plot--{name}") for name in ("axis", "cross"))
        inks = Inks(base, title, axis, cross, bright, faint)
        return inks.through(self.get_line_filters(), background)

    def _body(self, painted: Painted, inks: Inks) -> list[Strip]:
        glyphs, width = self._glyphs, self.size.width
        styles = {CROSS: inks.axis, NOTHING: inks.base}
        styles |= {2 * k: style for k, style in enumerate(inks.bright)}
        styles |= {2 * k + 1: style for k, style in enumerate(inks.faint)}
        strips = []
        for row, runs in enumerate(braille.spans(painted.picture, self._cross_column(painted), glyphs.side)):
            label = painted.labels.get(row)
            side = (label or "").rjust(painted.gutter)
            segments = [Segment(side + (glyphs.side if label is None else glyphs.tick), inks.axis)]
            segments += [Segment(text, styles[style]) for text, style in runs]
            strips.append(Strip(segments, width))
        return strips

    def _foot(self, painted: Painted, height: int, inks: Inks) -> list[Strip]:
        """The x axis; at the crosshair, where it stands."""
        width, glyphs, gutter = self.size.width, self._glyphs, painted.gutter
        axis, strips = inks.axis, []
        if height >= TALL:
            floor = chart.floor_row(painted.ticks, painted.room, glyphs)
            strips.append(Strip([Segment(" " * gutter + glyphs.corner + floor, axis)], width))
        column = self._cross_column(painted)
        if column is None or self.cross is None:
            return [*strips, Strip([Segment(chart.label_row(painted.ticks, width, gutter)[:width], axis)], width)]
        text = f" {self.place(self.cross)} "[:width]
        start = max(0, min(gutter + 1 + column - len(text) // 2, width - len(text)))
        free = [tick for tick in painted.ticks if tick[1] >= start + len(text) or tick[1] + len(tick[2]) <= start]
        labels = chart.label_row(free, width, gutter)[:width]
        parts = [Segment(labels[:start], axis), Segment(text, inks.cross), Segment(labels[start + len(text) :], axis)]
        return [*strips, Strip(parts, width)]

    def place(self, x: float) -> str:
        """A place of the x axis in words."""
        axis = self._look.axis
        if axis == "relative":
            return chart.span_label(x)
        return chart.format_local_time(x) if axis == "time" else f"{round(x):,}"

    def _title(self, width: int, log_y: bool, inks: Inks) -> Strip:
        """The tag, then the curves' values in their colours: with their names, or without, as room allows."""
        tag = pad(clean(self.tag), min(columns_of(clean(self.tag)), max(0, width - 1)))
        head = [Segment(tag, inks.title), Segment(" log" if log_y and columns_of(tag) + 5 < width else "", inks.axis)]
        left = width - sum(columns_of(segment.text) for segment in head)
        drawn = self.drawn
        letters = not self._glyphs.columns > 1 or self.app.no_color
        marks = [f"{MARKS[k % len(MARKS)]} " if letters and len(drawn) > 1 else "" for k in range(len(drawn))]
        values = [short(value) for value in self.values()]
        named = [f"  {m}{one.label} {v}" for m, one, v in zip(marks, drawn, values, strict=True)]
        bare = [f"  {m}{v}" for m, v in zip(marks, values, strict=True)]
        worth = len(drawn) > 1 or any(one.band is not None for one in drawn)  # a lone run is what one looks at anyway
        entries = named if worth and sum(map(columns_of, named)) <= left else bare
        for number, entry in reversed(list(enumerate(entries))):
            more = f"  +{number + 1}"
            if columns_of(entry) + (len(more) if number else 0) > left:
                head.append(Segment(more[: max(0, left)], inks.axis))
                left -= len(head[-1].text)
                break
            head.append(Segment(entry, inks.bright[number]))
            left -= columns_of(entry)
        return Strip([*head, Segment(" " * left, inks.base)], width)

    def values(self) -> list[float | None]:
        """Each curve's value at the crosshair, or its last one; as it was logged, not smoothed."""
        if self.cross is None:
            return [float(one.raw[-1]) for one in self.drawn]
        slack = 0.0
        if isinstance(self._painted, Painted) and not self._look.log_x:
            slack = (self._painted.view.right - self._painted.view.left) / self._painted.room
        return [value_at(one.x, one.raw, self.cross, slack) for one in self.drawn]

    # places

    def _cross_column(self, painted: Painted) -> int | None:
        if self.cross is None or (self._look.log_x and self.cross <= 0):
            return None
        at = float(np.log10(self.cross)) if self._look.log_x else self.cross
        view, columns = painted.view, self._glyphs.columns
        column = round((at - view.left) / (view.right - view.left) * (painted.room * columns - 1)) // columns
        return column if 0 <= column < painted.room else None

    def _at(self, column: float) -> float | None:
        """The place under a column of the widget, on the axis as it is drawn; None outside the plot."""
        painted = self._painted
        if not isinstance(painted, Painted) or not 0 <= (share := self._share(painted, column)) <= 1:
            return None
        return painted.view.left + share * (painted.view.right - painted.view.left)

    def _share(self, painted: Painted, column: float) -> float:
        columns = self._glyphs.columns  # of dots in a cell
        inside = column - painted.gutter - 1
        return (inside * columns + (columns - 1) / 2) / max(1, painted.room * columns - 1)

    def stepped(self, by: int) -> float | None:
        """The place some columns beside the crosshair; beside the right end where there is none."""
        painted = self._painted
        if not isinstance(painted, Painted):
            return None
        column = self._cross_column(painted)
        column = (painted.room if by < 0 else painted.room - 1) if column is None else column
        at = self._at(painted.gutter + 1 + min(painted.room - 1, max(0, column + by)))
        return 10.0**at if at is not None and self._look.log_x else at

    # the mouse

    def on_focus(self) -> None:
        self.post_message(self.Chosen(self))

    def on_click(self, event: events.Click) -> None:
        if event.chain == 2:
            self.post_message(self.Opened(self))

    def on_mouse_down(self, event: events.MouseDown) -> None:
        self._grabbed = self._at(event.x)
        if self._grabbed is not None:
            self.capture_mouse()

    def on_mouse_up(self) -> None:
        self._grabbed = None
        self.release_mouse()

    def on_mouse_move(self, event: events.MouseMove) -> None:
        painted = self._painted
        if self._grabbed is not None and isinstance(painted, Painted):
            if event.delta_x:
                self.post_message(self.Dragged(self, self._grabbed, self._share(painted, event.x)))
            return
        at = self._at(event.x)
        self.post_message(self.Crossed(self, 10.0**at if at is not None and self._look.log_x else at))

    def on_leave(self) -> None:
        self.post_message(self.Crossed(self, None))

    def on_mouse_scroll_up(self, event: events.MouseScrollUp) -> None:
        self._wheel(event, WHEEL)

    def on_mouse_scroll_down(self, event: events.MouseScrollDown) -> None:
        self._wheel(event, 1 / WHEEL)

    def _wheel(self, event: events.MouseEvent, factor: float) -> None:
        painted = self._painted
        if isinstance(painted, Painted):
            event.stop()
            near_end = self._share(painted, event.x) >= TAIL
            self.post_message(self.Zoomed(self, factor, None if near_end else self._at(event.x)))


def _identity(trace: Trace) -> tuple[object, ...]:
    """What changes when a curve does: curves grow at their end, or are replaced."""
    steps, walls, values = trace.curve
    last = (steps[-1:].tobytes(), walls[-1:].tobytes(), values[-1:].tobytes())
    return (*trace[:3], *trace[4:], len(steps), values.__array_interface__["data"][0], *last)


def _logged(one: Drawn) -> Drawn:
    """The part of a curve that a logarithmic x axis has."""
    above = int(np.searchsorted(one.x, 0.0, "right"))
    x, raw, curve = np.log10(one.x[above:]), one.raw[above:], one.curve[above:]
    band = None if one.band is None else (one.band[0][above:], one.band[1][above:])
    return one._replace(x=x, raw=raw, curve=raw if one.curve is one.raw else curve, band=band)


def _log_y(one: Drawn) -> Drawn:
    raw = braille.log10(one.raw)
    band = None if one.band is None else (braille.log10(one.band[0]), braille.log10(one.band[1]))
    return one._replace(raw=raw, curve=raw if one.curve is one.raw else braille.log10(one.curve), band=band)
