"""The widget with a page of charts. It selects the visible metrics and implements all chart actions."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from textual import work
from textual.app import ComposeResult
from textual.message import Message
from textual.screen import Screen
from textual.signal import Signal
from textual.widget import Widget
from textual.widgets import Static

from ppo_unified.runs.metrics import LIMITS, find_metric
from ppo_unified.text import clean, pad
from tui.charts.export import PaperChart, export_chart
from tui.charts.pages import Page, Pages, divide, matching_tags, next_group
from tui.charts.plot import Plot
from tui.charts.plot_grid import PlotGrid
from tui.charts.settings import GRIDS, Settings, layout
from tui.charts.traces import Trace, describe_repeats, drawn_traces
from tui.charts.x_axis import XAxis
from tui.dialogs import PromptDialog

SMOOTHING = (0.0, 0.6, 0.9, 0.97, 0.99, 0.997)
NO_MATCH = "No metric matches. Press m to change the words, v to change the group."
NO_CLOCK = "Grouped seeds are compared at equal steps, so the x axis shows steps."
SEEDS_SHOWN = (
    "In the title, n is the number of seeds in the median. 'n=2 of 3' means that one of three seeds has no value "
    "there; the curve is dim and dotted in this part. With 'n=1 of 3', it shows the values of the only run left."
)
PARTIAL = {True: "dotted: not all seeds", False: "- or lowercase: not all seeds"}  # by whether Unicode is available
ZOOM, PAN = 0.7, 0.25  # share of the window's width per key press


class Plots(Widget):
    """Shows one page of charts. Only the visible metrics are read and drawn."""

    DEFAULT_CSS = """
    Plots { layout: vertical; }
    Plots > .empty { height: 1fr; padding: 1 2; color: $text-muted; display: none; }
    Plots > .page { height: 1; color: $text-muted; }
    """

    class Changed(Message):
        """The settings have changed."""

    class Enlarged(Message):
        """The user wants to see a metric full screen."""

        def __init__(self, plots: Plots, tag: str) -> None:
            super().__init__()
            self.plots, self.tag = plots, tag

    class Exported(Message):
        """Files were written."""

        def __init__(self, paths: Sequence[Path]) -> None:
            super().__init__()
            self.paths = paths

    class Updated(Message):
        """The displayed curves, crosshair or settings have changed."""

        def can_replace(self, message: Message) -> bool:
            return isinstance(message, Plots.Updated)

    def __init__(self, settings: Settings, unicode: bool = True, exports: Path = Path("exports")) -> None:
        super().__init__()
        self.settings, self.unicode, self.exports = settings, unicode, exports
        self.tags: list[str] = []
        self.traces: Callable[[str], Sequence[Trace]] = lambda tag: ()
        self.why_ungrouped: Callable[[], str] = lambda: ""  # returns why seeds cannot be grouped, or ""
        self.legend = ""  # names a curve that the titles of narrow charts may not name
        self.cross: float | None = None  # x value of the crosshair in all charts
        self.renewed: Signal[None] = Signal(self, "renewed")  # published after `show`, for the full-screen view
        self._cross_axis = settings.axis  # the axis to which `cross` belongs
        self._chosen = ""  # the tag of the current chart
        self._pointed = False  # the mouse controls the crosshair
        self._axis = XAxis(settings)
        self._grid = PlotGrid(unicode)
        self._empty, self._line = (Static(classes=name, markup=False) for name in ("empty", "page"))
        self._line_text = ""

    def compose(self) -> ComposeResult:
        yield from (self._grid, self._empty, self._line)

    def show(self, tags: list[str], traces: Callable[[str], Sequence[Trace]]) -> None:
        """Draw charts of these metrics. `traces` returns the curves of a metric and is called for visible ones only."""
        self.tags, self.traces = tags, traces
        self._arrange()
        self.renewed.publish(None)

    # visible charts

    def matching_tags(self) -> list[str]:
        """Return the metrics that match the selected group and words."""
        return matching_tags(self.tags, self.settings)

    def _shape(self, grid: int) -> tuple[int, int]:
        """Return the columns and rows of a page with up to `grid` charts."""
        return layout(self.size.width, self.size.height - 1, max(1, grid))

    def _pages(self) -> Pages:
        return divide(self.matching_tags(), self.settings.grid, self.size.width, self.size.height - 1)

    def _page(self) -> Page:
        """Return the current page."""
        return self._pages().page(self.settings.page)

    @property
    def plots(self) -> list[Plot]:
        """The visible charts."""
        return self._grid.plots

    @property
    def current(self) -> Plot | None:
        """The chart to which actions apply: the last focused chart or, if it is hidden, the first visible one."""
        plots = self.plots
        return next((plot for plot in plots if plot.tag == self._chosen), plots[0] if plots else None)

    def choose(self, tag: str) -> None:
        """Make a metric's chart the current one and show its page."""
        self._chosen = tag
        pages = self._pages()
        if tag in pages.tags:
            self.settings.page = pages.tags.index(tag) // pages.size
        self._arrange()

    def _arrange(self) -> None:
        """Update the screen. Unchanged charts are not redrawn."""
        if not self.is_mounted:
            return
        if self.settings.axis != self._cross_axis:  # the full-screen view may have changed the shared settings
            self._cross_axis, self.cross = self.settings.axis, None
        page = self._page()
        traces = {tag: list(self.traces(tag)) for tag in page.tags}
        self._axis.fit([trace for some in traces.values() for trace in some])
        self._grid.show(page, traces, self._axis.look, self.cross)
        self._grid.set_current(self.current)
        self._show_line(page)
        self.post_message(self.Updated())

    def _show_line(self, page: Page) -> None:
        """Update the line below the charts, and the message on a page without charts."""
        self._empty.display = not page.tags
        if not page.tags:
            self._empty.update(NO_MATCH if any(map(self.traces, self.tags)) else "No curves yet.")
        missing = _describe_missing(self.plots, self.unicode) if self.settings.aggregate else []
        parts = filter(None, (page.position, self.legend, *self.settings.describe(), *missing))
        text = pad("  ".join(parts), max(1, self.size.width))
        if text != self._line_text:
            self._line_text = text
            self._line.update(text, layout=False)

    def on_mount(self) -> None:
        self.call_after_refresh(self._arrange)

    def on_resize(self) -> None:
        self.call_after_refresh(self._arrange)

    def apply_settings(self) -> None:
        """Redraw with the changed settings and post `Changed`."""
        self._arrange()
        self.post_message(self.Changed())

    def explain(self) -> str | None:
        """Return the description of the current chart's metric, or None on a page without charts."""
        return explanation(self.current.tag, self.settings.aggregate) if self.current else None

    # messages from the charts

    def on_plot_chosen(self, message: Plot.Chosen) -> None:
        self._chosen = message.plot.tag
        self._grid.set_current(message.plot)

    def on_plot_opened(self, message: Plot.Opened) -> None:
        self.post_message(self.Enlarged(self, message.plot.tag))

    def on_plot_crossed(self, message: Plot.Crossed) -> None:
        if message.x is not None or self._pointed:
            self._set_cross(message.x, message.x is not None)

    def on_plot_zoomed(self, message: Plot.Zoomed) -> None:
        self._zoom(message.factor, message.at)

    def on_plot_dragged(self, message: Plot.Dragged) -> None:
        self._axis.drag(message.grabbed, message.share)
        self.apply_settings()

    def _set_cross(self, x: float | None, pointed: bool) -> None:
        self.cross, self._pointed = x, pointed
        self._grid.set_cross(x)
        self.post_message(self.Updated())

    # actions, with the names from `tui.actions`

    def action_metrics(self) -> None:
        def preview(text: str) -> None:
            self.settings.words, self.settings.page = text, 0
            self._arrange()

        ask = PromptDialog(
            "Show only metrics whose name contains any of these words",
            self.settings.words,
            "kl loss return",
            preview=preview,
        )
        self.app.push_screen(ask, lambda _: self.apply_settings())

    def action_enlarge(self) -> None:
        if self.current is not None:
            self.post_message(self.Enlarged(self, self.current.tag))

    def action_grid(self) -> None:
        columns, rows = self._shape(self.settings.grid)
        larger = next((grid for grid in GRIDS if grid > columns * rows), self.settings.grid)
        if math.prod(self._shape(larger)) <= columns * rows:
            self.notify("There is not enough space for more charts.", markup=False)
            return
        self._set_grid(larger)

    def action_grid_less(self) -> None:
        columns, rows = self._shape(self.settings.grid)
        self._set_grid(max((grid for grid in GRIDS if grid < columns * rows), default=1))

    def _set_grid(self, grid: int) -> None:
        """Change the number of charts per page. The current chart stays visible."""
        tag = self.current.tag if self.current else ""
        self.settings.grid = grid
        self.choose(tag)
        self.apply_settings()

    def action_page_next(self) -> None:
        self._turn_page(1)

    def action_page_previous(self) -> None:
        self._turn_page(-1)

    def _turn_page(self, by: int) -> None:
        pages = self._pages()
        self.settings.page = (min(self.settings.page, pages.page_count - 1) + by) % pages.page_count
        self.apply_settings()

    def action_group(self) -> None:
        self.settings.group, self.settings.page = next_group(self.tags, self.settings.group), 0
        self.apply_settings()

    def action_x_axis(self) -> None:
        if self.settings.aggregate:
            self.notify(f"{NO_CLOCK} To select another x axis, ungroup the seeds with A.", markup=False)
            return
        self.settings.switch_axis()
        self.apply_settings()

    def action_log_y(self) -> None:
        if self.current is not None:
            self.settings.toggle_log_y(self.current.tag)
            self.apply_settings()

    def action_log_x(self) -> None:
        self.settings.log_x = not self.settings.log_x
        self.apply_settings()

    def action_smoother(self) -> None:
        self.settings.smoothing = next((w for w in SMOOTHING if w > self.settings.smoothing), SMOOTHING[-1])
        self.apply_settings()

    def action_rougher(self) -> None:
        self.settings.smoothing = max((w for w in SMOOTHING if w < self.settings.smoothing), default=0.0)
        self.apply_settings()

    def action_zoom_in(self) -> None:
        self._zoom(ZOOM, self._axis.position_of(self.cross))

    def action_zoom_out(self) -> None:
        self._zoom(1 / ZOOM, self._axis.position_of(self.cross))

    def _zoom(self, factor: float, at: float | None) -> None:
        self._axis.zoom(factor, at)
        self.apply_settings()

    def action_pan_left(self) -> None:
        self._pan(-PAN)

    def action_pan_right(self) -> None:
        self._pan(PAN)

    def _pan(self, by: float) -> None:
        self._axis.pan(by)
        self.apply_settings()

    def action_zoom_reset(self) -> None:
        self._axis.reset()
        self._set_cross(None, False)
        self.apply_settings()

    def action_cross_left(self) -> None:
        self._step(-1)

    def action_cross_right(self) -> None:
        self._step(1)

    def _step(self, by: int) -> None:
        if self.current is not None:
            self._set_cross(self.current.x_beside_cross(by), False)

    def action_aggregate(self) -> None:
        if not self.settings.aggregate and (why := self.why_ungrouped()):
            self.notify(why, markup=False)
            return
        other_axis = self.settings.switch_aggregate()
        if other_axis and self.settings.aggregate:
            self.notify(f"{NO_CLOCK} The x axis returns to {other_axis} when you ungroup the seeds.", markup=False)
        self.apply_settings()

    def action_export(self) -> None:
        plot = self.current
        if plot is None:
            return
        if traces := drawn_traces(self.traces(plot.tag), self.settings.aggregate):
            self._export(plot.tag, traces, plot.export_picture(), replace(self.settings))
        else:
            self.notify(f"Cannot export {clean(plot.tag)}: it has no points yet.", markup=False)

    @work(thread=True, group="export")
    def _export(self, tag: str, traces: Sequence[Trace], picture: PaperChart | None, settings: Settings) -> None:
        try:
            paths = export_chart(self.exports, tag, traces, picture, settings)
        except OSError as error:
            self.app.call_from_thread(self.notify, f"Export failed: {error}", severity="error", markup=False)
            return
        text = f"Exported the raw values to {paths[0]}" + (f", the chart to {paths[1]}" if paths[1:] else "")
        self.app.call_from_thread(self.notify, text, markup=False)
        self.post_message(self.Exported(paths))


def _describe_missing(plots: Sequence[Plot], unicode: bool) -> list[str]:
    """Describe what the curves of grouped seeds do not contain: repeated runs, and seeds in some parts."""
    repeats = len({trace.key for plot in plots for trace in plot.traces if trace.repeat})
    partial = any(one.seeds.partial.any() for plot in plots for one in plot.curves if one.seeds is not None)
    return [*([describe_repeats(repeats)] if repeats else []), *([PARTIAL[unicode]] if partial else [])]


def explanation(tag: str, grouped: bool = False) -> str:
    """Return a metric's name, meaning, unit and healthy range, and how grouped seeds are shown."""
    metric = find_metric(tag)
    if metric is None:
        return f"{clean(tag)}: a metric without a description, logged by the run's adapter or another program"
    lines = [f"{tag}: {metric.meaning}"]
    lines += [f"Unit: {metric.unit}"] if metric.unit else []
    lines += [f"It {metric.healthy}."] if metric.healthy else []
    if limit := LIMITS.get(tag):
        lines.append(f"Health limit: {limit.name} {limit.value:g}, shown as a dashed line if the curves come near it.")
    lines += [SEEDS_SHOWN] if grouped else []
    return "\n".join(lines)


def forward_actions(screen: type[Screen[Any]], names: Iterable[str]) -> None:
    """Add chart actions to a screen. The screen's `plots` executes them, regardless of the focus."""

    def make_action(name: str) -> Callable[[Any], Awaitable[None]]:
        async def action(self: Any) -> None:
            await self.plots.run_action(name)

        return action

    for name in names:
        setattr(screen, f"action_{name}", make_action(name))
