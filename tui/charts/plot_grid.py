"""A grid of charts. It reuses its widgets for each page, because creating a widget takes longer than drawing it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from textual.containers import Container

from tui.charts.chart_picture import Look
from tui.charts.pages import Page
from tui.charts.plot import Plot
from tui.charts.traces import Trace


class PlotGrid(Container):
    """Contains as many charts as the largest page so far. Charts without a metric are hidden."""

    DEFAULT_CSS = """
    PlotGrid { layout: grid; grid-gutter: 0 1; height: 1fr; }
    """

    def __init__(self, unicode: bool) -> None:
        super().__init__()
        self._unicode = unicode
        self._pool: list[Plot] = []

    @property
    def plots(self) -> list[Plot]:
        """The visible charts."""
        return [plot for plot in self._pool if plot.display]

    def show(
        self, page: Page, traces: Mapping[str, Sequence[Trace]], look: Callable[[str], Look], cross: float | None
    ) -> None:
        """Draw the metrics of a page. Unchanged charts are not redrawn. `look` returns the options of a metric."""
        self.display = bool(page.tags)
        self.styles.grid_size_columns, self.styles.grid_size_rows = page.columns, page.rows
        if len(page.tags) > len(self._pool):
            fresh = [Plot(self._unicode) for _ in range(len(page.tags) - len(self._pool))]
            self._pool += fresh
            self.mount(*fresh)
        for number, plot in enumerate(self._pool):
            plot.display = number < len(page.tags)
        for plot, tag in zip(self._pool, page.tags, strict=False):
            plot.show(tag, traces[tag], look(tag))
        self.set_cross(cross)

    def set_cross(self, x: float | None) -> None:
        """Move the crosshair of all charts to an x value."""
        for plot in self.plots:
            plot.set_cross(x)

    def set_current(self, current: Plot | None) -> None:
        """Highlight one of the charts as the current one."""
        for plot in self.plots:
            plot.set_current(plot is current)
