"""The full-screen view of one metric with its meaning, its curves, and a table of each run's values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container, VerticalScroll
from textual.content import Content
from textual.screen import Screen
from textual.widgets import Static

from ppo_unified.runs.metrics import describe
from ppo_unified.terminal.chart import smooth
from ppo_unified.text import clean, display_width, format_number, pad
from tui.actions import Place, actions_of, bindings
from tui.charts.pages import Page
from tui.charts.plots import Plots, explanation, forward_actions
from tui.charts.settings import Settings
from tui.charts.traces import Trace, value_at, x_values
from tui.status_row import StatusRow
from tui.store import Changes

FORGOTTEN = 40.0  # values with a weight below exp(-40) do not affect a moving average

# chart actions that have a different meaning, or no meaning, for a single metric
OTHERWISE = {"enlarge", "page_next", "page_previous", "grid", "grid_less", "group"}


class OnePlot(Plots):
    """Shows one metric of another `Plots` widget and shares its settings."""

    def __init__(self, source: Plots, tag: str) -> None:
        super().__init__(source.settings, source.unicode, source.exports)
        self.source = source
        self.turn_to(tag)

    def turn_to(self, tag: str) -> None:
        """Show another metric."""
        self.show([tag], self.source.traces)

    def matching_tags(self) -> list[str]:
        return self.tags

    def _page(self) -> Page:
        others = self.source.matching_tags()
        tag = self.tags[0]
        return Page(self.tags, 1, 1, f"{others.index(tag) + 1} of {len(others)}" if tag in others else "")


class MetricScreen(Screen[None]):
    """The full-screen view of one metric."""

    CSS = """
    MetricScreen { layout: vertical; }
    MetricScreen #meaning { height: auto; max-height: 3; padding: 0 1; background: $panel; }
    MetricScreen #both { height: 1fr; layout: vertical; }
    MetricScreen OnePlot { width: 1fr; height: 1fr; }
    MetricScreen #values { width: 1fr; height: auto; max-height: 40%; padding: 0 1; scrollbar-size-vertical: 1; }
    MetricScreen #values Static { width: auto; }
    MetricScreen.-beside #both { layout: horizontal; }
    MetricScreen.-beside #values { width: auto; max-width: 45%; height: 1fr; max-height: 100%; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        *bindings("metric"),
        *(b for b in bindings("charts") if isinstance(b, Binding) and b.action not in OTHERWISE),
    ]
    HORIZONTAL_BREAKPOINTS = [(0, "-below"), (150, "-beside")]  # noqa: RUF012 - as Textual declares it
    places: tuple[Place, ...] = ("metric", "charts")
    conditions = frozenset({"curves"})

    def __init__(self, source: Plots, tag: str) -> None:
        """Create a view of the metric `tag` that shares the settings and curves of `source`."""
        super().__init__()
        self.source, self.tag = source, tag
        self._table_size = (0, 0)

    def compose(self) -> ComposeResult:
        yield Static(id="meaning", markup=False)
        with Container(id="both"):
            yield OnePlot(self.source, self.tag)
            with VerticalScroll(id="values", can_focus=False):
                yield Static(id="table")
        yield StatusRow()

    def on_mount(self) -> None:
        self.source.renewed.subscribe(self, lambda _: self.redraw())
        self._turn_to(self.tag)

    def on_unmount(self) -> None:
        self.source.renewed.unsubscribe(self)

    @property
    def plots(self) -> OnePlot:
        """The chart."""
        return self.query_one(OnePlot)

    def update_from_store(self, changes: Changes) -> None:
        """Draw the new values of the runs."""
        self.redraw()

    def redraw(self) -> None:
        """Draw the current curves of the source."""
        self.plots.turn_to(self.tag)

    def _turn_to(self, tag: str) -> None:
        self.tag = tag
        self.query_one("#meaning", Static).update(describe(tag) or explanation(tag))
        self.redraw()

    def on_plots_updated(self) -> None:
        traces, settings = list(self.source.traces(self.tag)), self.source.settings
        table = value_table(traces, settings, self.plots.cross)
        size = (table.cell_length, table.plain.count("\n"))
        self.query_one("#table", Static).update(table, layout=size != self._table_size)
        self._table_size = size

    def on_plots_changed(self) -> None:
        self.source.apply_settings()

    def on_plots_enlarged(self, message: Plots.Enlarged) -> None:
        message.stop()
        self.action_back()

    def explain(self) -> str | None:
        """Return the description of the metric for the help dialog."""
        return explanation(self.tag)

    def action_back(self) -> None:
        self.source.choose(self.tag)
        self.dismiss()

    def action_next(self) -> None:
        self._turn(1)

    def action_previous(self) -> None:
        self._turn(-1)

    action_enlarge, action_page_next, action_page_previous = action_back, action_next, action_previous

    def _turn(self, by: int) -> None:
        tags = self.source.matching_tags()
        if tags:
            here = tags.index(self.tag) if self.tag in tags else -by
            self._turn_to(tags[(here + by) % len(tags)])


forward_actions(MetricScreen, (action.name for action in actions_of("charts") if action.name not in OTHERWISE))


def value_table(traces: Sequence[Trace], settings: Settings, cross: float | None) -> Content:
    """Format a table with each run's last value, smoothed value, extremes, and value at the crosshair."""
    heads = ["last", "smoothed", "min", "max", "max at", "cursor"]
    rows = [(clean(trace.label), trace.color, _numbers(trace, settings, cross)) for trace in traces]
    shown = [0, *([1] if settings.smoothing else []), 2, 3, 4, *([5] if cross is not None else [])]
    name = min(28, max(3, *(display_width(label) for label, _, _ in rows)) if rows else 3)
    widths = [max(len(heads[k]), *(len(numbers[k]) for _, _, numbers in rows), 0) for k in shown]

    def line(cells: Sequence[str]) -> str:
        return "".join("  " + cells[k].rjust(width) for k, width in zip(shown, widths, strict=True))

    parts = [Content.styled(pad("run", name) + line(heads), "bold")]
    parts += [Content.assemble("\n", (pad(label, name), color), line(numbers)) for label, color, numbers in rows]
    return Content.assemble(*parts)


def _numbers(trace: Trace, settings: Settings, cross: float | None) -> list[str]:
    """Return the cells of a run's row, for all columns of the table."""
    steps, _, values = trace.curve
    finite = np.isfinite(values)
    if not finite.any():
        return [format_number(float(values[-1])) if len(values) else "-", *["-"] * 5]
    weight = settings.smoothing
    reach = math.ceil(-FORGOTTEN / math.log(weight)) if weight else 1
    average = smooth(values[finite][-reach:], weight)[-1] if weight else values[-1]
    lowest = float(np.fmin.reduce(values[finite]))
    best = int(np.argmax(np.where(finite, values, -np.inf)))
    here = None if cross is None else value_at(x_values(trace.curve, settings.x_axis), values, cross)
    numbers = [format_number(float(x)) for x in (values[-1], average, lowest, values[best])]
    return [*numbers, f"{int(steps[best]):,}", format_number(here)]
