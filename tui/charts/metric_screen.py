"""The full-screen view of one metric with its meaning, its curves, and a table of each run's values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import numpy as np
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container, VerticalScroll
from textual.content import Content
from textual.screen import Screen
from textual.widgets import Static

from ppo_unified.runs.metrics import describe
from ppo_unified.terminal.chart import smooth
from ppo_unified.text import clean, display_width, elide, format_number, pad
from tui.action import Place
from tui.actions import actions_of, bindings
from tui.charts.colors import with_letter
from tui.charts.pages import Page
from tui.charts.plots import Plots, explanation, forward_actions
from tui.charts.settings import Settings
from tui.charts.traces import DrawnCurve, Trace, index_at, value_at, x_values
from tui.status_row import StatusRow
from tui.store import Changes

REPEAT = "repeat: "  # precedes the name of a run whose seed another run represents
FORGOTTEN = 40.0  # values with a weight below exp(-40) do not affect a moving average

# chart actions that have a different meaning, or no meaning, for a single metric
OTHERWISE = {"enlarge", "page_next", "page_previous", "grid", "grid_less", "group"}


class OnePlot(Plots):
    """Shows one metric of another `Plots` widget and shares its settings."""

    def __init__(self, source: Plots, tag: str) -> None:
        super().__init__(source.settings, source.unicode, source.exports)
        self.source, self.why_ungrouped = source, source.why_ungrouped
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

    def __init__(self, source: Plots, tag: str) -> None:
        """Create a view of the metric `tag` that shares the settings and curves of `source`."""
        super().__init__()
        self.source, self.tag = source, tag
        self._table_size = (0, 0)
        self._seeds_grouped = source.settings.aggregate

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
    def conditions(self) -> frozenset[str]:
        """The action conditions that currently hold."""
        return self.source.settings.conditions | {"curves"}

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
        settings, plot = self.source.settings, self.plots.current
        traces = plot.traces if plot is not None else ()
        cross, slack = self.plots.cross, plot.slack if plot is not None else 0.0
        groups = [one for one in (plot.curves if plot is not None else ()) if one.seeds is not None]
        table = value_table(traces, settings, cross, slack, groups)
        if groups:
            table = Content("\n\n").join([seed_table(groups, cross, slack), table])
        size = (table.cell_length, table.plain.count("\n"))
        self.query_one("#table", Static).update(table, layout=size != self._table_size)
        self._table_size = size

    def on_plots_changed(self) -> None:
        self.source.apply_settings()
        if self._seeds_grouped != self.source.settings.aggregate:
            self._seeds_grouped = self.source.settings.aggregate
            self.refresh_bindings()

    def on_plots_enlarged(self, message: Plots.Enlarged) -> None:
        message.stop()
        self.action_back()

    def explain(self) -> str | None:
        """Return the description of the metric for the help dialog."""
        return self.plots.explain()

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


class Row(NamedTuple):
    """A row of a table of values."""

    name: str
    color: str
    cells: Sequence[str]


def value_table(
    traces: Sequence[Trace],
    settings: Settings,
    cross: float | None,
    slack: float = 0.0,
    groups: Sequence[DrawnCurve] = (),
) -> Content:
    """Format a table with each run's last value, smoothed value, extremes, and value at the crosshair.

    The runs of a group of seeds are listed together, in the color of the group's curve. A repeated run has no curve and
    no color.
    """
    heads = ["last", "smoothed", "min", "max", "max at (step)", "cursor"]
    shown = [0, *([1] if settings.smoothing else []), 2, 3, 4, *([5] if cross is not None else [])]
    colors = {key: one.color for one in groups if one.seeds is not None for key in one.seeds.keys}
    rows, order = [], dict[str, int]()
    if settings.aggregate:
        traces = sorted(traces, key=lambda trace: order.setdefault(trace.group or trace.key, len(order)))
    for trace in traces:
        numbers, repeat = _numbers(trace, settings, cross, slack), settings.aggregate and trace.repeat
        color = "" if repeat else colors.get(trace.key, trace.color)
        name = REPEAT + clean(trace.label) if repeat else with_letter(trace.letter, clean(trace.label))
        rows.append(Row(name, color, [numbers[k] for k in shown]))
    return _format_rows("run", [heads[k] for k in shown], rows, 28)


def seed_table(groups: Sequence[DrawnCurve], cross: float | None, slack: float) -> Content:
    """Format a table with the number of seeds, the median and the quartiles of each group, at the crosshair or the end.

    A single remaining run has neither a median nor quartiles.
    """
    rows = []
    for one in groups:
        if one.seeds is not None:
            index = index_at(one.x, cross, slack)
            count = 0 if index is None else int(one.seeds.counts[index])
            lower, median, upper = ["-"] * 3 if count < 2 else map(format_number, one.seeds.quartiles[:, index])
            name = with_letter(one.letter, clean(one.label))
            rows.append(Row(name, one.color, [f"{count} of {len(one.seeds.keys)}", median, lower, upper]))
    head = f"seeds at the {'end' if cross is None else 'cursor'}"
    return _format_rows(head, ["n", "median", "25%", "75%"], rows, 44)


def _format_rows(head: str, heads: Sequence[str], rows: Sequence[Row], most: int) -> Content:
    """Format rows below a header. The first column is at most `most` wide."""
    name = min(most, max(display_width(text) for text in (head, *(row.name for row in rows))))
    widths = [max(map(len, column)) for column in zip(heads, *(row.cells for row in rows), strict=True)]

    def line(cells: Sequence[str]) -> str:
        return "".join("  " + cell.rjust(width) for cell, width in zip(cells, widths, strict=True))

    parts = [Content.styled(pad(head, name) + line(heads), "bold")]
    parts += [Content.assemble("\n", (pad(elide(row.name, name), name), row.color), line(row.cells)) for row in rows]
    return Content.assemble(*parts)


def _numbers(trace: Trace, settings: Settings, cross: float | None, slack: float) -> list[str]:
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
    here = None if cross is None else value_at(x_values(trace.curve, settings.axis), values, cross, slack)
    numbers = [format_number(float(x)) for x in (values[-1], average, lowest, values[best])]
    return [*numbers, f"{int(steps[best]):,}", format_number(here)]
