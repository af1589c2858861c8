"""The widget of one chart. It caches its rendered lines and posts messages for mouse events."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from rich.segment import Segment
from textual import events
from textual.geometry import Region
from textual.message import Message
from textual.strip import Strip
from textual.widget import Widget

from ppo_unified.runs import metrics
from ppo_unified.terminal.braille import ASCII, BRAILLE
from ppo_unified.terminal.ticks import GUTTER, Tick
from ppo_unified.text import format_number, pad
from tui.charts.chart_lines import Inks, axis_lines, curve_lines, curve_styles, title_line
from tui.charts.chart_picture import ChartPicture, Look, paint_chart, paper_chart
from tui.charts.export import PaperChart
from tui.charts.traces import Averages, DrawnCurve, Trace, describe_seeds, drawn_traces, prepare_curves, value_at

WHEEL = 0.8  # one step of the mouse wheel multiplies the window's width by this factor
TAIL = 0.9  # zooming to the right of this share of the plot keeps the newest data visible


class Plot(Widget, can_focus=True):
    """A chart with the curves of one metric."""

    DEFAULT_CSS = """
    Plot { width: 1fr; height: 1fr; }
    Plot > .plot--title { text-style: bold; color: $foreground; }
    Plot > .plot--current { text-style: bold; color: $text; background: $primary; }
    Plot > .plot--axis { color: $foreground 60%; }
    Plot > .plot--cross { color: $foreground; text-style: bold; }
    """
    COMPONENT_CLASSES: ClassVar[set[str]] = {"plot--title", "plot--current", "plot--axis", "plot--cross"}

    class About(Message):
        """Base class of the messages about a chart."""

        def __init__(self, plot: Plot) -> None:
            super().__init__()
            self.plot = plot

    class Chosen(About):
        """The chart got the focus."""

    class Opened(About):
        """The chart was double-clicked."""

    class Crossed(About):
        """The mouse points at the x value `x`, or at no x value if `x` is None."""

        def __init__(self, plot: Plot, x: float | None) -> None:
            super().__init__(plot)
            self.x = x

        def can_replace(self, message: Message) -> bool:
            return isinstance(message, Plot.Crossed)

    class Zoomed(About):
        """The mouse wheel was turned at the drawn x coordinate `at`, or near the newest data if `at` is None."""

        def __init__(self, plot: Plot, factor: float, at: float | None) -> None:
            super().__init__(plot)
            self.factor, self.at = factor, at

    class Dragged(About):
        """The mouse dragged the x coordinate `grabbed` to the position `share` (0 to 1) of the plot's width."""

        def __init__(self, plot: Plot, grabbed: float, share: float) -> None:
            super().__init__(plot)
            self.grabbed, self.share = grabbed, share

        def can_replace(self, message: Message) -> bool:
            return isinstance(message, Plot.Dragged)

    def __init__(self, unicode: bool = True) -> None:
        super().__init__()
        self.tag, self.current = "", False
        self.cross: float | None = None  # x value of the crosshair, never a logarithm
        self.drawings = 0  # number of times that curves were painted, for tests and benchmarks
        self._glyphs = BRAILLE if unicode else ASCII
        self._traces: Sequence[Trace] = ()
        self._look = Look()
        self._data: tuple[object, ...] = ()
        self._drawn: list[DrawnCurve] | None = None
        self._averages = Averages()
        self._painted: ChartPicture | str | None = None  # a chart, or a message in its place
        self._strips: list[Strip] | None = None
        self._own_inks: Inks | None = None
        self._colors: list[tuple[str, bool]] = []  # colors for which the inks were created
        self._grabbed: float | None = None

    # content

    def show(self, tag: str, traces: Sequence[Trace], look: Look) -> None:
        """Draw these curves at the next refresh, unless nothing has changed."""
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
        """Show the values at an x value, or the last values if `x` is None."""
        if x != self.cross:
            self.cross, self._strips = x, None
            self.refresh()

    def set_current(self, current: bool) -> None:
        """Highlight the chart as the one to which actions apply."""
        if current != self.current:
            self.current, self._strips, self._own_inks = current, None, None
            self.refresh()

    def notify_style_update(self) -> None:
        """Discard the cached lines when the theme changes."""
        self._strips = self._own_inks = None
        super().notify_style_update()

    def on_resize(self) -> None:
        self._repaint()

    def _repaint(self) -> None:
        self._painted = self._strips = None
        self.refresh()

    @property
    def traces(self) -> Sequence[Trace]:
        """The curves of the runs, before they are prepared for drawing."""
        return self._traces

    @property
    def curves(self) -> list[DrawnCurve]:
        """The curves as they are drawn."""
        if self._drawn is None:
            look = self._look
            self._drawn = prepare_curves(self._traces, look.axis, look.smoothing, look.aggregate, self._averages)
            colors = [(one.color, one.band is None) for one in self._drawn]
            if colors != self._colors:
                self._colors, self._own_inks = colors, None
        return self._drawn

    @property
    def picture(self) -> ChartPicture | None:
        """The chart as last painted, or None if it has no curves."""
        return self._painted if isinstance(self._painted, ChartPicture) else None

    def values(self) -> list[float | None]:
        """Return the raw value of each curve at the crosshair or, without a crosshair, its last raw value."""
        if self.cross is None:
            return [float(one.raw[-1]) for one in self.curves]
        slack = self.slack
        return [value_at(one.x, one.raw, self.cross, slack) for one in self.curves]

    def numbers(self) -> list[str]:
        """Format the values; each value of a group is followed by the number of seeds that have a value there. If other
        runs are shown too, the pinned run is marked.
        """
        numbers, several = [], len(self.curves) > 1
        for one, value in zip(self.curves, self.values(), strict=True):
            number = format_number(value)
            if one.seeds is not None and (seeds := describe_seeds(one, self.cross, self.slack)):
                number += f" {seeds}"
            numbers.append(f"{number} pin" if one.pinned and several else number)
        return numbers

    @property
    def slack(self) -> float:
        """The largest distance from the crosshair at which a curve's value is still shown."""
        return 0.0 if self.picture is None or self._look.log_x else self.picture.column_width

    def x_beside_cross(self, by: int) -> float | None:
        """Return the x value `by` columns away from the crosshair or, without a crosshair, from the right end."""
        return self.picture.x_beside(self.cross, by) if self.picture is not None else None

    def export_picture(self) -> PaperChart | None:
        """Return the current chart for export, or None if it is empty."""
        self._paint_if_due()
        return None if self.picture is None else paper_chart(self.picture, self.curves, self._look)

    # drawing

    def render_lines(self, crop: Region) -> list[Strip]:
        """Return the lines directly, because a chart has no border or padding and its styles are already filtered."""
        strips = [self.render_line(y) for y in crop.line_range]
        first, end = crop.column_span
        return strips if (first, end) == (0, self.size.width) else [strip.crop(first, end) for strip in strips]

    def render_line(self, y: int) -> Strip:
        if self._strips is None:
            self._strips = self._draw()
        return self._strips[y] if y < len(self._strips) else Strip.blank(self.size.width, self.rich_style)

    def _draw(self) -> list[Strip]:
        (width, height), glyphs = self.size, self._glyphs
        painted = self._paint_if_due()
        inks = self._own_inks = self._own_inks or self._inks()
        title = title_line(self.tag, self._look.log_y, self.curves, self.numbers(), width, inks)
        if isinstance(painted, str):
            why = Strip([Segment(pad(" " * GUTTER + painted, width), inks.axis)], width)
            return [title, why, *[Strip.blank(width, inks.base)] * (height - 2)]
        column = None if self.cross is None else painted.column_of(self.cross)
        cross = None if self.cross is None or column is None else (column, self._look.x_label(self.cross))
        curves = curve_lines(painted, column, glyphs, width, inks)
        return [title, *curves, *axis_lines(painted, cross, glyphs, (width, height), inks)]

    def _paint_if_due(self) -> ChartPicture | str:
        if self._painted is None:
            self.drawings += 1
            drawn = drawn_traces(self._traces, self._look.aggregate)
            limits = not all(trace.foreign for trace in drawn)
            found = metrics.levels(self.tag, (trace.threshold for trace in drawn), limits)
            marked = [Tick(*level) for level in found]
            self._painted = paint_chart(self.curves, self._look, self.size, self._glyphs, marked)
        return self._painted

    def _inks(self) -> Inks:
        background, base = self.background_colors[1], self.rich_style
        bright, faint, dim = curve_styles(self.curves, base, background)
        title = self.get_component_rich_style("plot--current" if self.current else "plot--title")
        axis, cross = (self.get_component_rich_style(f"plot--{name}") for name in ("axis", "cross"))
        inks = Inks(base, title, axis, cross, bright, faint, dim)
        return inks.apply_filters(self.get_line_filters(), background)

    # the mouse

    def on_focus(self) -> None:
        self.post_message(self.Chosen(self))

    def on_click(self, event: events.Click) -> None:
        if event.chain == 2:
            self.post_message(self.Opened(self))

    def on_mouse_down(self, event: events.MouseDown) -> None:
        self._grabbed = self.picture.place_at(event.x) if self.picture is not None else None
        if self._grabbed is not None:
            self.capture_mouse()

    def on_mouse_up(self) -> None:
        self._grabbed = None
        self.release_mouse()

    def on_mouse_move(self, event: events.MouseMove) -> None:
        picture = self.picture
        if self._grabbed is not None and picture is not None:
            if event.delta_x:
                self.post_message(self.Dragged(self, self._grabbed, picture.share_at(event.x)))
        else:
            self.post_message(self.Crossed(self, None if picture is None else picture.x_at(event.x)))

    def on_leave(self) -> None:
        self.post_message(self.Crossed(self, None))

    def on_mouse_scroll_up(self, event: events.MouseScrollUp) -> None:
        self._zoom(event, WHEEL)

    def on_mouse_scroll_down(self, event: events.MouseScrollDown) -> None:
        self._zoom(event, 1 / WHEEL)

    def _zoom(self, event: events.MouseEvent, factor: float) -> None:
        if self.picture is not None:
            event.stop()
            near_end = self.picture.share_at(event.x) >= TAIL
            self.post_message(self.Zoomed(self, factor, None if near_end else self.picture.place_at(event.x)))


def _identity(trace: Trace) -> tuple[object, ...]:
    """Return values that change whenever the curve changes. Curves only grow at the end or are replaced."""
    steps, walls, values = trace.curve
    last = (steps[-1:].tobytes(), walls[-1:].tobytes(), values[-1:].tobytes())
    return (*trace[:3], *trace[4:], len(steps), values.__array_interface__["data"][0], *last)
