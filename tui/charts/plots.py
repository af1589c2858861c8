"""The charts of a page: which metrics, how many, what part of the axis."""

from __future__ import annotations

import math
import re
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from textual import work
from textual.app import ComposeResult
from textual.containers import Container
from textual.message import Message
from textual.screen import Screen
from textual.signal import Signal
from textual.widget import Widget
from textual.widgets import Static

from ppo_unified.runs.metrics import METRICS
from ppo_unified.terminal import chart
from ppo_unified.terminal.braille import View
from ppo_unified.text import clean, pad
from tui.charts.export import PaperChart, new_files, write_csv, write_svg
from tui.charts.plot import Look, Plot
from tui.charts.settings import GRIDS, Settings, layout
from tui.charts.traces import AXES, Trace, series_colors, x_ends
from tui.charts.window import Window, followed, inside, panned, touches_end, zoomed
from tui.dialogs import Ask

__all__ = ["Plots", "Settings", "Trace", "series_colors"]

SMOOTHING = (0.0, 0.6, 0.9, 0.97, 0.99, 0.997)
ZOOM, PAN = 0.7, 0.25  # of the window, at a key press


class Plots(Widget):
    """A page of charts over metrics; those in sight alone are read and drawn. Has an action for each of "charts"."""

    DEFAULT_CSS = """
    Plots { layout: vertical; }
    Plots > .charts { layout: grid; grid-gutter: 0 1; height: 1fr; }
    Plots > .empty { height: 1fr; padding: 1 2; color: $text-muted; display: none; }
    Plots > .page { height: 1; color: $text-muted; }
    """

    class Changed(Message):
        """Something in `settings` is different now."""

    class Enlarged(Message):
        """A metric is to fill the screen."""

        def __init__(self, plots: Plots, tag: str) -> None:
            super().__init__()
            self.plots, self.tag = plots, tag

    class Exported(Message):
        """Files were written."""

        def __init__(self, paths: Sequence[Path]) -> None:
            super().__init__()
            self.paths = paths

    class Updated(Message):
        """Other curves, another place of the crosshair, or other settings are on screen."""

        def can_replace(self, message: Message) -> bool:
            return isinstance(message, Plots.Updated)

    def __init__(self, settings: Settings, unicode: bool = True, exports: Path = Path("exports")) -> None:
        super().__init__()
        self.settings, self.unicode, self.exports = settings, unicode, exports
        self.tags: list[str] = []
        self.traces: Callable[[str], Sequence[Trace]] = lambda tag: ()
        self.cross: float | None = None  # on the x axis of all charts
        self.renewed: Signal[None] = Signal(self, "renewed")  # `show` was called: for the page of one metric
        self._pool: list[Plot] = []
        self._crossed = settings.x_axis  # the axis that `cross` is on
        self._chosen = ""  # the tag of the current chart
        self._pointed = False  # the mouse holds the crosshair
        self._whole: Window | None = None  # the x axis of the charts in sight
        self._charts = Container(classes="charts")
        self._empty, self._line = (Static(classes=name, markup=False) for name in ("empty", "page"))
        self._said = ""  # on the line below the charts

    def compose(self) -> ComposeResult:
        yield from (self._charts, self._empty, self._line)

    def show(self, tags: list[str], traces: Callable[[str], Sequence[Trace]]) -> None:
        """Chart these metrics; `traces` is asked for those in sight."""
        self.tags, self.traces = tags, traces
        self._arrange()
        self.renewed.publish(None)

    # which charts

    def matching(self) -> list[str]:
        """The metrics that group and words leave."""
        words, group = re.split(r"[\s,|]+", self.settings.words.strip().lower()), self.settings.group
        return [
            tag
            for tag in self.tags
            if (not group or _group(tag) == group) and any(word in tag.lower() for word in words)
        ]

    def _shape(self, grid: int) -> tuple[int, int]:
        """Columns and rows of a page of up to `grid` charts."""
        return layout(self.size.width, self.size.height - 1, max(1, grid))

    def _page(self) -> tuple[list[str], tuple[int, int], str]:
        """The metrics in sight, the page's columns and rows, and the line that tells where one is."""
        matching, settings = self.matching(), self.settings
        columns, rows = self._shape(min(settings.grid, len(matching)))
        size = columns * rows
        pages = max(1, -(-len(matching) // size))
        first = min(settings.page, pages - 1) * size
        sight = matching[first : first + size]
        line = f"{first + 1}-{first + len(sight)} of {len(matching)}" if sight else "no charts"
        return sight, (columns, rows), line + ("  [ ] pages" if pages > 1 else "")

    @property
    def plots(self) -> list[Plot]:
        """The charts in sight."""
        return [plot for plot in self._pool if plot.display]

    @property
    def current(self) -> Plot | None:
        """The chart that actions are about: the one with the focus last, else the first in sight."""
        plots = self.plots
        return next((plot for plot in plots if plot.tag == self._chosen), plots[0] if plots else None)

    def choose(self, tag: str) -> None:
        """Make a metric's chart the current one, on whatever page it is."""
        self._chosen = tag
        matching = self.matching()
        if tag in matching:
            columns, rows = self._shape(min(self.settings.grid, len(matching)))
            self.settings.page = matching.index(tag) // (columns * rows)
        self._arrange()

    def _arrange(self) -> None:
        """Bring what is on screen up to date. Charts that stay the same are not drawn again."""
        if not self.is_mounted:
            return
        if self.settings.x_axis != self._crossed:  # the page of one metric shares the settings
            self._crossed, self.cross = self.settings.x_axis, None
        sight, (columns, rows), line = self._page()
        self._charts.styles.grid_size_columns, self._charts.styles.grid_size_rows = columns, rows
        if len(sight) > len(self._pool):
            fresh = [Plot(self.unicode) for _ in range(len(sight) - len(self._pool))]
            self._pool += fresh
            self._charts.mount(*fresh)
        traces = {tag: list(self.traces(tag)) for tag in sight}
        look = self._look([trace for some in traces.values() for trace in some])
        for number, plot in enumerate(self._pool):
            plot.display = number < len(sight)
        for plot, tag in zip(self._pool, sight, strict=False):
            plot.show(tag, traces[tag], look)
            plot.set_cross(self.cross)
        for plot in self.plots:
            plot.set_current(plot is self.current)
        self._say(bool(sight), line)
        self.post_message(self.Updated())

    def _look(self, traces: Sequence[Trace]) -> Look:
        settings = self.settings
        log_x = settings.log_x and settings.x_axis != "time"
        ends = x_ends(traces, settings.x_axis, log_x)
        view = None if ends is None else chart.add_margins(View(*ends, 0, 1))
        self._whole = None if view is None else Window(view.left, view.right)
        window = None if self._whole is None else self._window(self._whole)
        return Look(settings.x_axis, log_x, settings.log_y, settings.smoothing, settings.aggregate, window)

    def _say(self, some: bool, line: str) -> None:
        settings = self.settings
        self._charts.display, self._empty.display = some, not some
        if not some:
            there = any(map(self.traces, self.tags))
            why = "No metric matches: m changes the words, v the group." if there else "No curves yet."
            self._empty.update(why)
        parts = [line, f"x: {settings.x_axis}{' log' if settings.log_x and settings.x_axis != 'time' else ''}"]
        parts += [f"smoothing {settings.smoothing:g}"] if settings.smoothing else []
        parts += ["log y"] if settings.log_y else []
        parts += ["seeds as one"] if settings.aggregate else []
        parts += [f"group {clean(settings.group)}/"] if settings.group else []
        parts += [f"words: {clean(settings.words)}"] if settings.words else []
        if settings.window is not None:
            parts.append("zoomed, following" if settings.follow else "zoomed")
        said = pad("  ".join(parts), max(1, self.size.width))
        if said != self._said:
            self._said = said
            self._line.update(said, layout=False)

    def on_mount(self) -> None:
        self.call_after_refresh(self._arrange)

    def on_resize(self) -> None:
        self.call_after_refresh(self._arrange)

    def settings_changed(self) -> None:
        """Show what `settings` say now, and tell."""
        self._arrange()
        self.post_message(self.Changed())

    def explain(self) -> str | None:
        """What the current chart's metric means; None where there is no chart."""
        return explanation(self.current.tag) if self.current else None

    # from the charts

    def on_plot_chosen(self, message: Plot.Chosen) -> None:
        self._chosen = message.plot.tag
        for plot in self.plots:
            plot.set_current(plot is message.plot)

    def on_plot_opened(self, message: Plot.Opened) -> None:
        self.post_message(self.Enlarged(self, message.plot.tag))

    def on_plot_crossed(self, message: Plot.Crossed) -> None:
        if message.x is not None or self._pointed:
            self._set_cross(message.x, message.x is not None)

    def on_plot_zoomed(self, message: Plot.Zoomed) -> None:
        self._zoom(message.factor, message.at)

    def on_plot_dragged(self, message: Plot.Dragged) -> None:
        if self._whole is not None:
            window = self._window(self._whole)
            left = message.grabbed - message.share * window.width
            self._set_window(inside(Window(left, left + window.width), self._whole))

    def _set_cross(self, x: float | None, pointed: bool) -> None:
        self.cross, self._pointed = x, pointed
        for plot in self.plots:
            plot.set_cross(x)
        self.post_message(self.Updated())

    # the window

    def _window(self, whole: Window) -> Window:
        """What is shown of the whole axis, both as drawn."""
        settings = self.settings
        if settings.window is None:
            return whole
        left, right = settings.window
        if settings.log_x and settings.x_axis != "time":
            left = math.log10(left) if left > 0 else whole.left
            right = math.log10(right) if right > 0 else left
        if left >= right:
            return whole
        return (followed if settings.follow else inside)(Window(left, right), whole)

    def _set_window(self, window: Window) -> None:
        whole, settings = self._whole, self.settings
        if whole is None:
            return
        ends = (window.left, window.right)
        if settings.log_x and settings.x_axis != "time":
            ends = (10.0**window.left, 10.0**window.right)
        settings.window = None if window.width >= whole.width * (1 - 1e-9) else ends
        settings.follow = touches_end(window, whole)
        self.settings_changed()

    def _zoom(self, factor: float, at: float | None) -> None:
        """Around a place of the axis as drawn; None: the right end where the newest data are in sight."""
        if self._whole is not None:
            window = self._window(self._whole)
            if at is None:
                at = window.right if touches_end(window, self._whole) else (window.left + window.right) / 2
            self._set_window(zoomed(window, self._whole, factor, at))

    # actions, by their names in the table

    def action_metrics(self) -> None:
        def live(text: str) -> None:
            self.settings.words, self.settings.page = text, 0
            self._arrange()

        ask = Ask(
            "Show only metrics whose name has one of these words", self.settings.words, "kl loss return", live=live
        )
        self.app.push_screen(ask, lambda _: self.settings_changed())

    def action_enlarge(self) -> None:
        if self.current is not None:
            self.post_message(self.Enlarged(self, self.current.tag))

    def action_grid(self) -> None:
        columns, rows = self._shape(self.settings.grid)
        larger = next((grid for grid in GRIDS if grid > columns * rows), self.settings.grid)
        if math.prod(self._shape(larger)) <= columns * rows:
            self.notify("There is no room for more charts here.", markup=False)
            return
        self._regrid(larger)

    def action_grid_less(self) -> None:
        columns, rows = self._shape(self.settings.grid)
        self._regrid(max((grid for grid in GRIDS if grid < columns * rows), default=1))

    def _regrid(self, grid: int) -> None:
        """Another number of charts on a page; the current one stays in sight."""
        tag = self.current.tag if self.current else ""
        self.settings.grid = grid
        self.choose(tag)
        self.settings_changed()

    def action_page_next(self) -> None:
        self._turn(1)

    def action_page_previous(self) -> None:
        self._turn(-1)

    def _turn(self, by: int) -> None:
        matching = self.matching()
        columns, rows = self._shape(min(self.settings.grid, len(matching)))
        pages = max(1, -(-len(matching) // (columns * rows)))
        self.settings.page = (min(self.settings.page, pages - 1) + by) % pages
        self.settings_changed()

    def action_group(self) -> None:
        groups = ["", *dict.fromkeys(map(_group, self.tags))]
        at = groups.index(self.settings.group) if self.settings.group in groups else -1
        self.settings.group, self.settings.page = groups[(at + 1) % len(groups)], 0
        self.settings_changed()

    def action_x_axis(self) -> None:
        settings = self.settings
        settings.x_axis = AXES[(AXES.index(settings.x_axis) + 1) % len(AXES)]
        settings.window = None  # of another axis
        self.settings_changed()

    def action_log_y(self) -> None:
        self.settings.log_y = not self.settings.log_y
        self.settings_changed()

    def action_log_x(self) -> None:
        self.settings.log_x = not self.settings.log_x
        self.settings_changed()

    def action_smoother(self) -> None:
        self.settings.smoothing = next((w for w in SMOOTHING if w > self.settings.smoothing), SMOOTHING[-1])
        self.settings_changed()

    def action_rougher(self) -> None:
        self.settings.smoothing = max((w for w in SMOOTHING if w < self.settings.smoothing), default=0.0)
        self.settings_changed()

    def action_zoom_in(self) -> None:
        self._zoom(ZOOM, self._cross_drawn())

    def action_zoom_out(self) -> None:
        self._zoom(1 / ZOOM, self._cross_drawn())

    def _cross_drawn(self) -> float | None:
        if self.cross is None or self._whole is None:
            return None
        log = self.settings.log_x and self.settings.x_axis != "time"
        at = math.log10(self.cross) if log and self.cross > 0 else self.cross
        window = self._window(self._whole)
        return at if window.left <= at <= window.right else None

    def action_pan_left(self) -> None:
        self._pan(-PAN)

    def action_pan_right(self) -> None:
        self._pan(PAN)

    def _pan(self, by: float) -> None:
        if self._whole is not None:
            self._set_window(panned(self._window(self._whole), self._whole, by))

    def action_zoom_reset(self) -> None:
        self.settings.window, self.settings.follow = None, True
        self._set_cross(None, False)
        self.settings_changed()

    def action_cross_left(self) -> None:
        self._step(-1)

    def action_cross_right(self) -> None:
        self._step(1)

    def _step(self, by: int) -> None:
        if self.current is not None:
            self._set_cross(self.current.stepped(by), False)

    def action_aggregate(self) -> None:
        self.settings.aggregate = not self.settings.aggregate
        self.settings_changed()

    def action_export(self) -> None:
        plot = self.current
        if plot is None:
            return
        if traces := list(self.traces(plot.tag)):
            self._export(plot.tag, traces, plot.for_paper())
        else:
            self.notify(f"{clean(plot.tag)} has no points yet.", markup=False)

    @work(thread=True, group="export")
    def _export(self, tag: str, traces: Sequence[Trace], picture: PaperChart | None) -> None:
        try:
            self.exports.mkdir(parents=True, exist_ok=True)
            table, svg = new_files(self.exports, tag)
            write_csv(table, traces)
            paths = [table]
            if picture is not None:
                write_svg(svg, tag, picture)
                paths.append(svg)
        except OSError as error:
            self.app.call_from_thread(self.notify, f"Not exported: {error}", severity="error", markup=False)
            return
        text = "Written: " + ", ".join(str(path) for path in paths)
        self.app.call_from_thread(self.notify, text, markup=False)
        self.post_message(self.Exported(paths))


def _group(tag: str) -> str:
    return tag.split("/")[0]


def explanation(tag: str) -> str:
    """A metric's name, meaning, unit and healthy range."""
    metric = METRICS.get(tag)
    if metric is None:
        return f"{clean(tag)}: not one of this program's metrics; the run's adapter or another program wrote it"
    lines = [f"{tag}: {metric.meaning}"]
    lines += [f"Unit: {metric.unit}"] if metric.unit else []
    lines += [f"Healthy: {metric.healthy}"] if metric.healthy else []
    return "\n".join(lines)


def forward(screen: type[Screen[Any]], names: Iterable[str]) -> None:
    """Give a screen these actions of charts; its `plots` does them, whatever has the focus."""

    def made(name: str) -> Callable[[Any], Awaitable[None]]:
        async def action(self: Any) -> None:
            await self.plots.run_action(name)

        return action

    for name in names:
        setattr(screen, f"action_{name}", made(name))
