"""Measure the CPU time that the terminal UI needs to redraw a page of charts.

    python benchmarks/charts.py [--repeats 50]

The page has six charts of three series each, in a headless Textual application of 120 x 40 cells. The time is the
median of `time.process_time`, from passing the arrays to the finished lines of the screen; the terminal's own work is
not included. In "all new" all data are replaced, in "grown" every curve has ten more points, and in "nothing new" the
data are the same, so that no curve may be painted again.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from collections.abc import Sequence

import numpy as np
from textual.app import App, ComposeResult

from tui.charts.colors import series_colors
from tui.charts.plots import Plots
from tui.charts.settings import Settings
from tui.charts.traces import Trace

CHARTS, SERIES, SIZE = 6, 3, (120, 40)
TAGS = [f"group/metric_{number}" for number in range(CHARTS)]


class Charts(App[None]):
    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.plots = Plots(settings)

    def compose(self) -> ComposeResult:
        yield self.plots


def make_traces(points: int, seed: int) -> dict[str, list[Trace]]:
    """Create random walks with noise, in the form in which a reader returns them."""
    rng = np.random.default_rng(seed)
    colors = series_colors([f"run-{k}" for k in range(SERIES)])
    found: dict[str, list[Trace]] = {}
    for tag in TAGS:
        for key, color in colors.items():
            steps = np.arange(points, dtype=np.int64) * 256
            walls = 1.8e9 + np.arange(points) * 0.5
            values = (np.cumsum(rng.normal(size=points)) / 20 + rng.normal(size=points)).astype(np.float32)
            found.setdefault(tag, []).append(Trace(key, key, color, (steps, walls, values)))
    return found


def truncate_traces(data: dict[str, list[Trace]], points: int) -> dict[str, list[Trace]]:
    """Cut the curves to their first `points` points."""

    def truncate(trace: Trace) -> Trace:
        steps, walls, values = trace.curve
        return trace._replace(curve=(steps[:points], walls[:points], values[:points]))

    return {tag: [truncate(trace) for trace in traces] for tag, traces in data.items()}


async def measure(points: int, settings: Settings, repeats: int) -> tuple[float, float, float]:
    """Return the median CPU milliseconds of a redraw with new data, with grown data and with the same data."""
    app = Charts(settings)
    async with app.run_test(size=SIZE) as pilot:
        await pilot.pause()

        async def redraw(data: dict[str, list[Trace]]) -> float:
            drawn = asyncio.Event()
            begun = time.process_time()
            app.plots.show(TAGS, lambda tag: data[tag])
            app.screen.call_after_refresh(drawn.set)
            await drawn.wait()
            return 1000 * (time.process_time() - begun)

        replaced: Sequence[float] = [await redraw(make_traces(points, seed)) for seed in range(repeats + 3)][3:]
        longer = make_traces(points + 10 * (repeats + 1), repeats + 3)
        await redraw(truncate_traces(longer, points))
        growing = [await redraw(truncate_traces(longer, points + 10 * (k + 1))) for k in range(repeats)]
        drawings = [plot.drawings for plot in app.plots.plots]
        assert drawings == [2 * repeats + 4] * CHARTS, "a redraw was measured before it ended"
        data = make_traces(points, repeats + 2)
        await redraw(data)
        same = [await redraw(data) for _ in range(repeats)]
        assert [plot.drawings for plot in app.plots.plots] == [count + 1 for count in drawings]
    return statistics.median(replaced), statistics.median(growing), statistics.median(same)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=50, help="number of redraws of each kind (default: 50)")
    repeats = parser.parse_args().repeats
    print(f"{CHARTS} charts x {SERIES} series, {SIZE[0]} x {SIZE[1]}, median of {repeats}, CPU ms")
    print(f"{'points/series':>16} {'smoothing':>10} {'all new':>9} {'grown':>7} {'nothing new':>12}")
    for points in (2_000, 100_000):
        for smoothing in (0.0, 0.9):
            new, more, same = asyncio.run(measure(points, Settings(smoothing=smoothing), repeats))
            print(f"{points:>16,} {smoothing:>10} {new:>9.1f} {more:>7.1f} {same:>12.1f}")


if __name__ == "__main__":
    main()
