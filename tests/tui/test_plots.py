"""Tests the charts of the terminal UI: the window of the x axis, the drawn curves, and every action by its key."""

from __future__ import annotations

import asyncio
import csv
import re
import xml.etree.ElementTree as ET
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from rich.style import Style
from textual.app import App, ComposeResult
from textual.binding import BindingType
from textual.events import MouseMove, MouseScrollDown, MouseScrollUp
from textual.pilot import Pilot
from textual.screen import Screen
from textual.widgets import Static

from ppo_unified.runs.metrics import Threshold, levels
from ppo_unified.terminal.braille import ASCII, BRAILLE, LEVEL, Columns, Layer, View, paint
from ppo_unified.terminal.chart import MARKS, smooth
from ppo_unified.terminal.ticks import GUTTER, Tick
from ppo_unified.text import display_width, format_number
from tui.action import Place
from tui.actions import actions_of, bindings
from tui.charts import traces as tui_traces
from tui.charts.chart_lines import Inks, title_line
from tui.charts.chart_picture import ChartPicture, Look, paint_chart
from tui.charts.colors import series_colors, series_letters
from tui.charts.export import PaperChart, describe_chart, write_svg
from tui.charts.metric_screen import MetricScreen, value_table
from tui.charts.plot import Plot
from tui.charts.plots import Plots, explanation
from tui.charts.settings import GRIDS, LEAST_HEIGHT, LEAST_WIDTH, NARROW, Settings, layout
from tui.charts.traces import (
    Averages,
    DrawnCurve,
    SeedStatistics,
    Trace,
    prepare_curves,
    quartiles_over,
    value_at,
    x_values,
)
from tui.charts.window import LEAST, Window, clamp, move_to_end, pan, touches_end, zoom
from tui.dialogs import PromptDialog

UNUSED: Any = None  # stands for the changes of the store, which the full-screen view ignores
SIZES = [(80, 24), *(pytest.param(size, marks=pytest.mark.exhaustive) for size in ((120, 40), (200, 60)))]
TAGS = [
    *("eval/score", "episode/return", "policy/kl", "policy/entropy", "value/explained_variance", "loss/value"),
    *("loss/policy", "time/steps_per_second", "system/cpu", "optim/lr"),
]


def curve(points: int, seed: int = 0, start: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return a noisy, positive curve with one value per 10 steps and 2 seconds."""
    rng = np.random.default_rng(seed)
    steps = (np.arange(points, dtype=np.int64) + 1) * 10 + start
    return steps, 1.79e9 + np.arange(points) * 2.0, (5 + rng.normal(size=points)).astype(np.float32)


class Source:
    """Provides runs with curves that a test can change."""

    def __init__(self, runs: int = 3, points: int = 300) -> None:
        self.keys = [f"run-{k}" for k in range(runs)]
        self.curves = {
            (key, tag): curve(points, 10 * k + t) for k, key in enumerate(self.keys) for t, tag in enumerate(TAGS)
        }
        self.asked: list[str] = []
        self.group = ""
        self.repeats: set[str] = set()  # the runs whose seed another run represents
        self.thresholds: list[Threshold | None] = [None] * runs
        self.letters: dict[str, str] = {}
        self.foreign = False

    def traces(self, tag: str) -> list[Trace]:
        self.asked.append(tag)
        letters, group, repeats = self.letters, self.group, self.repeats
        pinned = "" if group else self.keys[-1]  # the pinned run is in no group
        colors = series_colors(self.keys, pinned)
        scores = self.thresholds if tag == "eval/score" else [None] * len(self.keys)
        return [
            Trace(
                *(k, k, colors[k], self.curves[k, tag], k == pinned, group, k in repeats, score, letters.get(k, "")),
                self.foreign,
            )
            for k, score in zip(self.keys, scores, strict=True)
            if (k, tag) in self.curves
        ]

    def grow(self, tag: str, points: int) -> None:
        for k, key in enumerate(self.keys):
            self.curves[key, tag] = curve(points, k)


class Page(Screen[None]):
    """A screen with charts and their keys, as in the UI."""

    BINDINGS: ClassVar[list[BindingType]] = bindings("charts")

    def __init__(self, plots: Plots) -> None:
        super().__init__()
        self.plots, self.changes = plots, 0
        self.written: Sequence[Path] = ()

    def compose(self) -> ComposeResult:
        yield self.plots

    def on_plots_changed(self) -> None:
        self.changes += 1

    def on_plots_enlarged(self, message: Plots.Enlarged) -> None:
        self.app.push_screen(MetricScreen(self.plots, message.tag))

    def on_plots_exported(self, message: Plots.Exported) -> None:
        self.written = message.paths


def _forward(name: str) -> Callable[[Page], Awaitable[None]]:
    async def action(self: Page) -> None:
        await self.plots.run_action(name)

    return action


for _action in actions_of("charts"):
    setattr(Page, f"action_{_action.name}", _forward(_action.name))


class Charts(App[None]):
    def __init__(
        self, source: Source, settings: Settings | None = None, unicode: bool = True, exports: Path = Path()
    ) -> None:
        super().__init__()
        self.source = source
        self.page = Page(Plots(settings or Settings(), unicode, exports))

    def on_mount(self) -> None:
        self.push_screen(self.page)

    @property
    def plots(self) -> Plots:
        return self.page.plots

    def show(self, tags: Sequence[str] = TAGS) -> None:
        self.plots.show(list(tags), self.source.traces)


def drive(
    app: Charts, test: Callable[[Pilot[None]], Coroutine[Any, Any, None]], size: tuple[int, int] = (80, 24)
) -> None:
    async def main() -> None:
        async with app.run_test(size=size) as pilot:
            await pilot.pause()
            app.show()
            await pilot.pause()
            await test(pilot)

    asyncio.run(main())


async def act(pilot: Pilot[None], name: str, times: int = 1, place: Place = "charts") -> None:
    """Press the first key of an action."""
    key = next(action.keys.split(",")[0] for action in actions_of(place) if action.name == name)
    for _ in range(times):
        await pilot.press(key)
    await pilot.pause()


def lines_of(plot: Plot) -> list[str]:
    return [plot.render_line(y).text for y in range(plot.size.height)]


def shown_window(plots: Plots) -> Window:
    """Return the x range that the first chart shows."""
    painted = plots.plots[0].picture
    assert painted is not None
    return Window(painted.view.left, painted.view.right)


def page_line(plots: Plots) -> str:
    return str(plots.query_one(".page", Static).render())


# the window


@pytest.mark.parametrize("seed", range(200))
def test_window_always_lies_inside_the_axis(seed: int) -> None:
    rng = np.random.default_rng(seed)
    left = float(rng.normal() * 10 ** rng.uniform(-2, 9))
    whole = Window(left, left + 10 ** rng.uniform(-2, 9))
    window, slack = whole, 1e-9 * max(abs(whole.left), abs(whole.right), whole.width)
    for _ in range(30):
        spot = float(rng.uniform(window.left, window.right))
        before = window
        match int(rng.integers(3)):
            case 0:
                window = zoom(window, whole, float(rng.uniform(0.2, 3)), spot)
            case 1:
                window = pan(window, whole, float(rng.uniform(-2, 2)))
            case _:
                window = move_to_end(window, whole)
        assert whole.left - slack <= window.left < window.right <= whole.right + slack
        assert window.width >= LEAST * whole.width * (1 - 1e-3)
        assert clamp(window, whole) == pytest.approx(window, abs=slack)
        if window.width == pytest.approx(before.width) and window.left > whole.left and window.right < whole.right:
            assert before.width < whole.width


def test_zoom_keeps_the_value_under_the_pointer() -> None:
    whole = Window(0, 1000)
    window = Window(400, 600)
    for factor in (0.5, 0.9, 1.1, 1.5):
        after = zoom(window, whole, factor, 450)
        assert (450 - after.left) / after.width == pytest.approx((450 - window.left) / window.width)
        assert after.width == pytest.approx(window.width * factor)
    back = zoom(zoom(window, whole, 0.5, 450), whole, 2, 450)
    assert back == pytest.approx(window)
    assert zoom(window, whole, 100, 450) == whole


def test_window_at_the_end_follows_new_data() -> None:
    whole, later = Window(0, 100), Window(0, 150)
    assert touches_end(Window(60, 100), whole)
    assert not touches_end(Window(50, 90), whole)
    assert move_to_end(Window(60, 100), later) == Window(110, 150)
    assert clamp(Window(50, 90), later) == Window(50, 90)


# curves


def test_median_over_seeds_matches_numpy() -> None:
    rng = np.random.default_rng(0)
    x = np.sort(rng.uniform(0, 100, 60))
    ys = [rng.normal(size=60) for _ in range(7)]
    grid, quartiles, _ = quartiles_over([x] * 7, ys)
    np.testing.assert_array_equal(grid, x)
    np.testing.assert_allclose(quartiles, np.percentile(ys, (25, 50, 75), axis=0))


def test_seeds_of_different_lengths_count_where_present() -> None:
    """Compare with numpy at each x value, over the runs whose range contains it."""
    rng = np.random.default_rng(1)
    xs = [np.sort(rng.uniform(a, a + 50, 40)) for a in (0, 10, 30)]
    ys = [rng.normal(size=40) for _ in xs]
    ys[1][5] = np.nan
    grid, quartiles, _ = quartiles_over(xs, ys)
    for place, found in zip(grid, quartiles.T, strict=True):
        there = [np.interp(place, x, y) for x, y in zip(xs, ys, strict=True) if x[0] <= place <= x[-1]]
        there = [value for value in there if np.isfinite(value)]
        np.testing.assert_allclose(found, np.percentile(there, (25, 50, 75)) if there else [np.nan] * 3)


def test_long_x_axes_are_resampled_to_a_grid() -> None:
    x = np.arange(5000.0)
    grid, quartiles, _ = quartiles_over([x, x + 0.5], [x, x + 0.5])
    assert 1000 <= len(grid) <= 1002
    assert set(grid) <= set(x) | set(x + 0.5)
    np.testing.assert_allclose(quartiles[1][1:-1], grid[1:-1])


def test_last_remaining_run_keeps_all_its_points() -> None:
    long, short = curve(3000), curve(500, 1)
    long[2][1500] = 100.0
    traces = [Trace(key, key, "#123456", own, group="A") for key, own in (("a-1", short), ("a-2", long))]
    (one,) = prepare_curves(traces, "step", 0.0, True)
    assert one.seeds is not None
    alone = one.seeds.counts == 1
    np.testing.assert_array_equal(one.x[alone], long[0][500:])
    np.testing.assert_array_equal(one.raw[alone], long[2][500:])


def test_each_group_is_one_curve_in_the_order_of_the_runs() -> None:
    def trace(key: str, group: str = "", pinned: bool = False) -> Trace:
        return Trace(key, key, "#123456", curve(20, len(key)), pinned, group)

    traces = [trace("ref", pinned=True), trace("a-1", "A"), trace("b"), trace("a-2", "A"), trace("c-1", "C")]
    drawn = prepare_curves(traces, "step", 0.0, True)
    assert [one.label for one in drawn] == ["ref", "a (2 seeds)", "b", "c-1"]
    assert [one.band is not None for one in drawn] == [False, True, False, False]
    assert [one.label for one in prepare_curves(traces, "step", 0.0, False)] == ["ref", "a-1", "b", "a-2", "c-1"]
    traces = [trace("lr0.01_s1", "A"), trace("lr0.01_s2", "A"), trace("other")]
    assert [one.label for one in prepare_curves(traces, "step", 0.0, True)] == ["lr0.01 (2 seeds)", "other"]


def test_repeated_runs_are_not_seeds() -> None:
    def trace(key: str, seed: int, repeat: bool = False) -> Trace:
        return Trace(key, key, "#123456", curve(20, seed), False, "A", repeat)

    traces = [trace("a-1", 1), trace("a-2", 2, True), trace("a-2-2", 3), trace("a-3", 4)]
    (one,) = prepare_curves(traces, "step", 0.0, True)
    assert one.label == "a (3 seeds, 1 repeat hidden)"
    np.testing.assert_allclose(one.curve, np.median([curve(20, seed)[2] for seed in (1, 3, 4)], axis=0))
    assert len(prepare_curves(traces, "step", 0.0, False)) == 4
    (one,) = prepare_curves(traces[1:3], "step", 0.0, True)
    assert (one.label, one.band) == ("a-2-2 (1 repeat hidden)", None)
    np.testing.assert_array_equal(one.raw, traces[2].curve[2])


@pytest.mark.parametrize("smoothing", [0.0, 0.9])
def test_part_without_all_seeds_is_separate_from_the_median(smoothing: float) -> None:
    traces = [
        Trace(f"a-{k}", f"a-{k}", "#123456", curve(points, k), group="A") for k, points in enumerate((10, 20, 30))
    ]
    (one,) = prepare_curves(traces, "step", smoothing, True)
    assert one.seeds is not None
    np.testing.assert_array_equal(one.seeds.counts, np.repeat([3, 2, 1], 10))
    complete, partial = one.split()
    assert partial is not None
    np.testing.assert_array_equal(np.isfinite(complete), one.seeds.counts == 3)
    np.testing.assert_array_equal(np.isfinite(partial), np.arange(30) >= 9)  # connected to the last complete point
    raw, alone = traces[2].curve[2], smooth(traces[2].curve[2], smoothing)
    np.testing.assert_allclose(partial[20:], alone[20:])
    assert one.band is not None
    for side in one.band:
        np.testing.assert_array_equal(np.isfinite(side), one.seeds.counts > 1)
    np.testing.assert_allclose(one.raw[20:], raw[20:])  # titles and tables show raw values, as for a single run
    whole = prepare_curves([trace._replace(curve=curve(20)) for trace in traces], "step", 0.0, True)[0]
    assert whole.split() == (whole.curve, None)


def test_incremental_averages_equal_full_averages() -> None:
    rng, averages = np.random.default_rng(0), Averages()
    values = rng.normal(size=900).astype(np.float32)
    values[[0, 40, 41, 299, 300, 899]] = np.nan
    changed = values.copy()
    changed[200] += 1
    handed_out = []
    for now, weight in [
        *((values[:points], 0.9) for points in (1, 2, 41, 300, 301, 900, 900, 100)),
        *((array, 0.9) for array in (values.copy(), changed, changed[:0], values)),
        *((values, weight) for weight in (0.6, 0.99)),
    ]:
        found = averages.average(
            Trace("a", "a", "#ffffff", (np.arange(len(now)), np.arange(len(now)) * 1.0, now)), weight
        )
        np.testing.assert_allclose(found, smooth(now, weight), rtol=1e-9, atol=1e-12)
        handed_out.append((found, found.copy()))
    for found, then in handed_out:
        np.testing.assert_array_equal(found, then)


def test_chart_smooths_only_new_points(monkeypatch: pytest.MonkeyPatch) -> None:
    smoothed: list[int] = []

    def count_smoothed(values: np.ndarray, *rest: Any) -> np.ndarray:
        smoothed.append(len(values))
        return smooth(values, *rest)

    monkeypatch.setattr(tui_traces, "smooth", count_smoothed)
    averages = Averages()
    steps, walls, values = curve(500)
    for points in (400, 450, 450, 500):
        trace = Trace("a", "a", "#ffffff", (steps[:points], walls[:points], values[:points]))
        prepare_curves([trace], "step", 0.9, False, averages)
    assert smoothed == [400, 50, 50]
    prepare_curves([], "step", 0.9, False, averages)
    prepare_curves([trace], "step", 0.9, False, averages)
    assert smoothed[3:] == [500]


def test_x_axis_is_monotonic_despite_clock_changes() -> None:
    steps, walls, values = curve(50)
    walls[20:] -= 1000
    for axis in ("relative", "time"):
        x = x_values((steps, walls, values), axis)
        assert (np.diff(x) >= 0).all()
    assert x_values((steps, walls, values), "relative")[0] == 0
    np.testing.assert_array_equal(x_values((steps, walls, values), "step"), steps)


def test_crosshair_value_is_the_nearest_point() -> None:
    rng = np.random.default_rng(3)
    x, y = np.sort(rng.uniform(0, 10, 40)), rng.normal(size=40)
    for place in rng.uniform(x[0], x[-1], 200):
        assert value_at(x, y, place) == y[np.argmin(np.abs(x - place))]
    assert value_at(x, y, x[-1] + 1) is None
    assert value_at(x, y, x[-1] + 1, slack=2) == y[-1]
    assert value_at(x[:0], y[:0], 1.0) is None


# settings and layout


def test_settings_round_trip_and_invalid_ones_keep_defaults() -> None:
    settings = Settings(9, 2, "loss", "kl", "time", True, ["loss/value"], 0.9, True, (1.5, 7.0), False)
    assert Settings.from_dict(settings.to_dict()) == settings
    assert Settings.from_dict(Settings().to_dict()) == Settings()
    wrong = {"grid": "4", "page": None, "words": 3, "log_y": 1, "window": "x", "smoothing": "a"}
    nonsense: object
    for nonsense in (None, [], wrong):
        assert Settings.from_dict(nonsense) == Settings()
    odd = {"grid": 5, "page": -3, "x_axis": "moon", "smoothing": 1.5, "window": [3, 1], "unknown": 1}
    assert Settings.from_dict(odd) == Settings()
    assert Settings.from_dict({"window": [float("nan"), 1]}).window is None
    for older in (True, False):  # earlier versions stored one setting for all charts
        assert Settings.from_dict({"log_y": older, "grid": 9}) == Settings(grid=9)
    assert Settings.from_dict({"log_y": ["a/b", 3]}).log_y == ["a/b"]


@pytest.mark.parametrize("count", [1, 2, 3, *GRIDS])
@pytest.mark.parametrize("size", [(20, 4), (60, 11), (80, 24), (99, 60), (120, 40), (200, 60), (400, 100)])
def test_every_chart_has_minimum_size(size: tuple[int, int], count: int) -> None:
    columns, rows = layout(*size, count)
    assert columns == 1 or size[0] // columns >= LEAST_WIDTH
    assert rows == 1 or size[1] // rows >= LEAST_HEIGHT
    assert size[0] >= NARROW or columns <= 2
    assert (columns - 1) * rows < count
    assert (rows - 1) * columns < count


# on screen


@pytest.mark.parametrize("size", SIZES)
def test_only_visible_charts_are_requested(size: tuple[int, int]) -> None:
    app = Charts(Source())

    async def test(pilot: Pilot[None]) -> None:
        plots = app.plots.plots
        assert len(plots) == 6
        assert [plot.tag for plot in plots] == TAGS[:6]
        assert set(app.source.asked) == set(TAGS[:6])
        for plot in plots:
            assert plot.size.width >= LEAST_WIDTH
            assert plot.size.height >= LEAST_HEIGHT
            lines = lines_of(plot)
            values = [format_number(value) for value in plot.values()]
            assert lines[0].startswith(plot.tag[:6])
            assert [part for part in lines[0].split() if part in values] == values
            assert all(display_width(line) == plot.size.width for line in lines)
            assert any("⠀" < character <= "⣿" for character in "".join(lines))
        assert page_line(app.plots).startswith("1-6 of 10  [ ] turn page  x: step")

    drive(app, test, size)


def test_unchanged_charts_are_not_redrawn() -> None:
    app = Charts(Source())

    async def test(pilot: Pilot[None]) -> None:
        plots = app.plots.plots
        before = [plot.drawings for plot in plots]
        for _ in range(3):
            app.show()
            await pilot.pause()
        await act(pilot, "cross_left")
        assert [plot.drawings for plot in plots] == before
        app.source.curves["run-1", TAGS[2]] = curve(300, 99)
        app.show()
        await pilot.pause()
        assert [plot.drawings for plot in plots] == [n + (k == 2) for k, n in enumerate(before)]

    drive(app, test)


def test_table_average_equals_curve_average() -> None:
    trace = Trace("a", "a", "#ffffff", curve(30_000), True, "")
    values = trace.curve[2]
    values[[5, -3]] = np.nan
    for weight in (0.6, 0.997):
        table = value_table([trace], Settings(smoothing=weight), None)
        assert f"  {format_number(float(smooth(values, weight)[-1]))}  " in table.plain


def test_charts_are_ascii_with_letters_without_unicode() -> None:
    app = Charts(Source(), Settings(smoothing=0.9), unicode=False)
    app.source.letters = series_letters(app.source.keys, has_colors=False)

    async def test(pilot: Pilot[None]) -> None:
        await act(pilot, "cross_left", 10)
        text = "\n".join(line for plot in app.plots.plots for line in lines_of(plot))
        assert text.isascii()
        assert re.search(r"A \d.*B \d", text)
        assert "." in text

    drive(app, test)


@pytest.mark.parametrize("size", SIZES[:2])
def test_curves_have_the_same_letters_in_all_charts(size: tuple[int, int], tmp_path: Path) -> None:
    app = Charts(Source(9), Settings(smoothing=0.6), exports=tmp_path)
    app.source.letters = letters = series_letters(app.source.keys)
    del app.source.curves["run-2", TAGS[1]]  # the letter of the next run must not move up

    async def test(pilot: Pilot[None]) -> None:
        first, second = app.plots.plots[:2]
        for plot, missing in ((first, ""), (second, "C")):
            body = "".join(line[GUTTER + 1 :] for line in lines_of(plot)[1:-1])
            assert set(re.findall("[A-Za-z]", body)) == {*"ABCDEFGHI"} - {missing}
            assert set(body) & {*".*"} == set()  # raw values have no letters
        assert [one.letter for one in second.curves] == [*"ABDEFGHI"]
        values, rest = re.findall(r"  ([A-I]) \S", lines_of(first)[0]), re.search(r"  ?\+(\d)", lines_of(first)[0])
        assert rest
        assert values == [*"ABCDEFGHI"][: 9 - int(rest[1])]
        await act(pilot, "enlarge")
        table = str(app.screen.query_one("#table", Static).render())
        assert all(f"{letter} {key} " in table for key, letter in letters.items())
        await act(pilot, "back", place="metric")
        await act(pilot, "export")
        await app.workers.wait_for_complete()
        svg = (tmp_path / "eval-score.svg").read_text(encoding="utf-8")
        for key, letter in letters.items():
            assert f">{letter} {key}</text>" in svg
            assert len(re.findall(f"<text [^>]*stroke[^>]*>{letter}</text>", svg)) == 3

    drive(app, test, size)


def test_run_text_is_shown_literally() -> None:
    source = Source(2)
    app = Charts(source, Settings(words="[b]x"))
    tag = "[b]x[/b]/\x1b[31mred"

    async def test(pilot: Pilot[None]) -> None:
        source.curves |= {(key, tag): curve(10) for key in source.keys}
        app.show([tag])
        await pilot.pause()
        assert app.plots.plots[0].render_line(0).text.startswith("[b]x[/b]/red ")
        assert "words: [b]x" in page_line(app.plots)
        await act(pilot, "enlarge")
        assert "[b]x[/b]/red" in str(app.screen.query_one("#meaning", Static).render())

    drive(app, test)


def test_smoothing_draws_faint_raw_curve_below_average() -> None:
    app = Charts(Source(1), Settings(grid=1))

    async def test(pilot: Pilot[None]) -> None:
        plot = app.plots.plots[0]
        colors = [{s.style.color for s in plot.render_line(y) if s.style and s.style.color} for y in range(1, 15)]
        single = set().union(*colors)
        await act(pilot, "smoother", 2)
        assert app.plots.settings.smoothing == 0.9
        both = set().union(*({s.style.color for s in plot.render_line(y) if s.style} for y in range(1, 15)))
        assert len(both - single) == 1
        painted, average = plot.picture, plot.curves[0]
        assert painted is not None
        low, high = Columns(average.x, painted.view, 2 * painted.room).minmax(average.curve)
        height, width = painted.picture.codes.shape
        layer = Layer(low, high, 0, "*")
        alone = paint([layer], painted.view, width, height, BRAILLE, covering=True, letters=False)
        np.testing.assert_array_equal(
            painted.picture.styles == 0, alone.styles == 0
        )  # the smoothed curve is on top of the raw one
        assert "smoothing 0.9" in page_line(app.plots)
        value = app.source.curves["run-0", "eval/score"][2][-1]
        assert f"{value:.4g}" in plot.render_line(0).text
        await act(pilot, "rougher", 5)
        assert app.plots.settings.smoothing == 0

    drive(app, test)


@pytest.mark.parametrize("size", SIZES)
def test_keys_change_grid_and_page(size: tuple[int, int]) -> None:
    app = Charts(Source())

    async def test(pilot: Pilot[None]) -> None:
        plots = app.plots
        await act(pilot, "page_next")
        assert [plot.tag for plot in plots.plots] == TAGS[6:]
        assert page_line(plots).startswith("7-10 of 10")
        await act(pilot, "page_next")
        assert [plot.tag for plot in plots.plots] == TAGS[:6]
        await act(pilot, "page_previous")
        assert plots.settings.page == 1
        await act(pilot, "page_previous")
        await act(pilot, "grid_less")
        assert (plots.settings.grid, len(plots.plots)) == (4, 4)
        await act(pilot, "grid_less", 5)
        assert (plots.settings.grid, len(plots.plots)) == (1, 1)
        await act(pilot, "page_next", 3)
        await act(pilot, "grid", 3)
        assert plots.settings.grid == 6
        assert TAGS[3] in [plot.tag for plot in plots.plots]
        await act(pilot, "grid", 4)
        room = layout(size[0], size[1] - 1, 36)
        assert len(plots.plots) == min(len(TAGS), room[0] * room[1])
        assert app.page.changes > 10

    drive(app, test, size)


def test_groups_and_words_select_metrics() -> None:
    app = Charts(Source())

    async def test(pilot: Pilot[None]) -> None:
        plots = app.plots
        await act(pilot, "group", 3)
        assert [plot.tag for plot in plots.plots] == ["policy/kl", "policy/entropy"]
        assert "group policy/" in page_line(plots)
        await act(pilot, "group", 6)
        assert plots.settings.group == ""
        await act(pilot, "metrics")
        assert isinstance(app.screen, PromptDialog)
        await pilot.press(*"KL cpu")
        await pilot.pause()
        assert [plot.tag for plot in plots.plots] == ["policy/kl", "system/cpu"]
        await pilot.press("enter")
        await pilot.pause()
        assert plots.settings.words == "KL cpu"
        await act(pilot, "metrics")
        await pilot.press(*"xyz")
        await pilot.pause()
        assert plots.plots == [] or plots.matching_tags() == ["policy/kl"]
        await pilot.press("escape")
        await pilot.pause()
        assert [plot.tag for plot in plots.plots] == ["policy/kl", "system/cpu"]

    drive(app, test)


def test_no_matching_metric_shows_a_hint() -> None:
    app = Charts(Source(), Settings(words="nothing has this"))

    async def test(pilot: Pilot[None]) -> None:
        plots = app.plots
        empty = plots.query_one(".empty", Static)
        assert empty.display
        assert "m to change the words" in str(empty.render())
        assert plots.explain() is None
        for action in actions_of("charts"):
            if action.name != "metrics":
                await act(pilot, action.name)
        plots.settings.words, plots.settings.group = "", ""
        app.show([])
        await pilot.pause()
        assert "No curves yet" in str(empty.render())
        app.show()
        await pilot.pause()
        assert len(plots.plots) == plots.settings.grid
        assert not empty.display
        assert lines_of(plots.plots[0])[0].startswith("eval/score")

    drive(app, test)


def test_x_axis_key_cycles_through_axes() -> None:
    app = Charts(Source(), Settings(window=(100.0, 500.0), follow=False))

    async def test(pilot: Pilot[None]) -> None:
        plots = app.plots
        assert shown_window(plots) == Window(100, 500)
        await act(pilot, "x_axis")
        assert (plots.settings.x_axis, plots.settings.window) == ("relative", None)
        assert shown_window(plots) == Window(0, 598)
        assert "5m" in lines_of(plots.plots[0])[-1]
        await act(pilot, "x_axis")
        assert shown_window(plots) == Window(1.79e9, 1.79e9 + 598)
        assert re.search(r"\d\d:\d\d", lines_of(plots.plots[0])[-1])
        await act(pilot, "x_axis")
        assert plots.settings.x_axis == "step"

    drive(app, test)


def test_log_y_applies_to_the_current_chart_only() -> None:
    source = Source(1, 1000)
    steps, walls, _ = curve(1000)
    source.curves["run-0", "eval/score"] = (steps, walls, (1e-6 * steps.astype(float) ** 2).astype(np.float32))
    source.curves["run-0", "episode/return"] = (steps, walls, (-1.234e-7 * steps).astype(np.float32))
    app = Charts(source)

    async def test(pilot: Pilot[None]) -> None:
        plots = app.plots
        await act(pilot, "log_y")
        assert plots.settings.log_y == ["eval/score"]
        assert "log y: eval/score" in page_line(plots)
        heads = [lines_of(plot)[0] for plot in plots.plots]
        assert heads[0].startswith("eval/score (greedy) log ")
        assert not any(" log" in head for head in heads[1:])
        await pilot.press("tab", "tab")
        await act(pilot, "log_y")
        assert plots.settings.log_y == ["eval/score", "episode/return"]
        assert lines_of(plots.plots[1])[1].strip() == "no value above 0 (log y)"
        await act(pilot, "log_y")
        assert plots.settings.log_y == ["eval/score"]
        assert any(line.startswith("-0.00123┤") for line in lines_of(plots.plots[1]))
        await act(pilot, "log_x")
        assert shown_window(plots) == pytest.approx(Window(1, 4))
        body = [line[GUTTER + 1 :] for line in lines_of(plots.plots[0])[1:-1]]
        painted = plots.plots[0].picture
        assert painted is not None
        hit = painted.picture.styles >= 0  # a power law is straight on two log axes
        middles = [np.flatnonzero(column).mean() for column in hit.T]
        line = np.linspace(middles[0], middles[-1], len(middles))
        assert np.abs(middles - line).max() <= 1
        assert len(body) == hit.shape[0]
        await act(pilot, "zoom_in", 3)
        await act(pilot, "cross_left", 4)
        assert shown_window(plots).right == pytest.approx(4)
        assert plots.cross is not None
        assert 3000 < plots.cross < 10_000
        await act(pilot, "x_axis", 2)
        assert "x: time of day  zoomed" not in page_line(plots)  # the time of day is never logarithmic
        assert "x: time of day  log y: eval/score" in page_line(plots)

    drive(app, test)


@pytest.mark.parametrize(("size", "grid"), [((80, 24), 6), ((80, 24), 1)])
def test_log_chart_counts_the_values_it_cannot_show(size: tuple[int, int], grid: int) -> None:
    source = Source(2, 100)
    steps, walls, values = curve(100)
    source.curves["run-0", "eval/score"] = (steps, walls, np.where(np.arange(100) % 10 == 0, 0, values))
    source.curves["run-1", "eval/score"] = (steps, walls, np.where(np.arange(100) < 2, -values, values))
    app = Charts(source, Settings(grid=grid, log_y=["eval/score"]))

    async def test(pilot: Pilot[None]) -> None:
        plots = app.plots
        row, words = (-2, " values <= 0 not shown ") if grid == 1 else (-1, " <= 0 not shown")
        assert "12" + words in lines_of(plots.plots[0])[row]
        await act(pilot, "zoom_in")  # hides the first points
        assert "7" + words in lines_of(plots.plots[0])[row]
        source.group = "same"
        source.curves["run-1", "eval/score"] = source.curves["run-0", "eval/score"]
        await act(pilot, "aggregate")
        assert (" points <= 0 not shown " in lines_of(plots.plots[0])[row]) == (grid == 1)
        await act(pilot, "log_y")
        assert "<= 0" not in "\n".join(lines_of(plots.plots[0]))

    drive(app, test, size)


@pytest.mark.parametrize("unicode", [True, False])
def test_few_points_have_markers(unicode: bool, tmp_path: Path) -> None:
    source, glyph = Source(1), "●" if unicode else "o"
    for tag, points in zip(TAGS, (1, 2, 3, 9, 10, 300), strict=False):
        source.curves["run-0", tag] = curve(points)
    app = Charts(source, unicode=unicode, exports=tmp_path)

    async def test(pilot: Pilot[None]) -> None:
        counts = []
        for tag in TAGS[:6]:
            app.show([tag])
            await pilot.pause()
            counts.append("".join(line[GUTTER + 1 :] for line in lines_of(app.plots.plots[0])[1:-2]).count(glyph))
        assert counts == [1, 2, 3, 9, 0, 0]
        await act(pilot, "zoom_in", 12)  # only few of the 300 points remain visible
        assert glyph in "".join(line[GUTTER + 1 :] for line in lines_of(app.plots.plots[0])[1:-2])
        await act(pilot, "zoom_reset")
        app.show(["policy/kl"])
        await act(pilot, "export")
        await app.workers.wait_for_complete()

    drive(app, test)
    assert (tmp_path / "policy-kl.svg").read_text(encoding="utf-8").count("<circle") == 3


@pytest.mark.parametrize("log_y", [True, False])
@pytest.mark.parametrize("letters", [True, False])
@pytest.mark.parametrize("tag", ["eval/score", "value/explained_variance", "学習/損失の長い名前の測定", "a" * 90])
def test_values_take_precedence_over_names_in_titles(tag: str, letters: bool, log_y: bool) -> None:
    style, x = Style(), np.arange(3.0)
    for width in (36, 40, 66, 120):
        for runs in (1, 2, 4, 30):
            marks = MARKS[:runs] if letters else [""] * runs
            drawn = [DrawnCurve(f"a-run-{k}", "#E69F00", False, x, x, x, letter=mark) for k, mark in enumerate(marks)]
            numbers = [format_number(487.25 + k) for k in range(runs)]
            inks = Inks(style, style, style, style, *[[style] * runs] * 3)
            head = title_line(tag, log_y, drawn, numbers, width, inks).text
            assert display_width(head) == width
            assert head[:3] == tag[:3]
            parts = head.split()
            shown = [number for number in numbers if number in parts]
            assert shown == numbers[: len(shown)]
            hidden = runs - len(shown)
            assert (f"+{hidden}" in parts) == (hidden > 0)
            assert len(shown) >= min(runs, 1 if letters else 2)
            assert ("log" in parts) == log_y
            assert head.startswith(tag) or "~" in parts[0]
            if display_width(tag) + 20 <= width and runs == 1:
                assert head.startswith(tag)


def test_thresholds_name_their_preset_unless_all_runs_share_them() -> None:
    cart, moon = Threshold(490.0, "cartpole"), Threshold(200.0, "lunarlander")
    assert levels("eval/score", [cart, Threshold(490.0, "mine")]) == [(490.0, "solved")]
    assert levels("eval/score", [cart, None]) == [(490.0, "cartpole solved")]
    assert levels("eval/score", [cart, moon]) == [(200.0, "lunarlander solved"), (490.0, "cartpole solved")]
    assert levels("eval/score", [Threshold(1.0, ""), None]) == [(1.0, "solved")]
    assert levels("eval/score", [None]) == levels("eval/score", [Threshold(k, "") for k in range(4)]) == []
    assert levels("value/explained_variance", []) == [(-0.1, "at least")]
    assert levels("policy/kl", [], limits=False) == levels("loss/value", []) == []


@pytest.mark.parametrize("letter", ["", "A"])
def test_part_without_all_seeds_differs_without_colors(letter: str) -> None:
    steps, walls, values = curve(300)
    traces = [
        Trace(key, key, "#ffffff", (steps[:end], walls[:end], values[:end]), group="A", letter=letter)
        for key, end in (("a-1", 150), ("a-2", 300))
    ]
    drawn, look = prepare_curves(traces, "step", 0.0, True), Look(window=Window(10, 3000))
    codes = {}
    for glyphs in (BRAILLE, ASCII):
        picture = paint_chart(drawn, look, (90, 15), glyphs)
        assert isinstance(picture, ChartPicture)
        codes[glyphs] = picture.picture.codes
    text = ["".join(map(chr, row)) for row in codes[ASCII]]
    assert {*"".join(row[:38] for row in text)} == {" ", letter or "*"}
    assert {*"".join(row[42:] for row in text)} == {" ", letter.lower() or "-"}
    dots = codes[BRAILLE][:, 42:]
    right = sum(dot for column in BRAILLE.dots[1:] for dot in column)
    assert not (dots[(dots >= 0x2800) & (dots < 0x2900)] & right).any()


def test_levels_near_the_curves_are_dashed_lines() -> None:
    steps, walls, _ = curve(300)
    values = np.linspace(0, 300, 300)

    def painted(levels: Sequence[tuple[float, str]], log_y: bool = False) -> ChartPicture:
        drawn = prepare_curves([Trace("a", "a", "#ffffff", (steps, walls, values))], "step", 0.0, False)
        look = Look(window=Window(10, 3000), log_y=log_y)
        picture = paint_chart(drawn, look, (60, 15), BRAILLE, [Tick(*level) for level in levels])
        assert isinstance(picture, ChartPicture)
        return picture

    def rows_of(picture: ChartPicture) -> set[int]:
        dashed = (picture.picture.styles == LEVEL) & (picture.picture.codes >= 0x2800)
        return set(np.flatnonzero(dashed.any(axis=1)).tolist())

    plain, inside = painted([]), painted([(150.0, "limit")])
    assert rows_of(plain) == set()
    assert (inside.view, rows_of(inside)) == (plain.view, {6})
    text = "".join(map(chr, inside.picture.codes[6]))
    assert " limit 150" in text
    own = plain.picture.styles >= 0
    np.testing.assert_array_equal(inside.picture.codes[own], plain.picture.codes[own])  # the curve is on top
    above = painted([(399.0, "solved")])
    assert (above.view.high, rows_of(above)) == (399.0, {0})
    assert "300" in above.labels.values()  # the labels remain those of the curve
    assert painted([(401.0, "solved"), (-101.0, "limit")]).view == plain.view  # too far away
    assert painted([(475.0, "solved")], log_y=True).view.high == pytest.approx(np.log10(475))
    assert painted([(0.0, "limit")], log_y=True).levels == []


def test_chart_draws_thresholds_and_health_limits(tmp_path: Path) -> None:
    source = Source(2)
    source.thresholds = [Threshold(475.0, "cartpole")] * 2
    steps, walls, _ = curve(300)
    source.curves |= {(key, "eval/score"): (steps, walls, np.linspace(0, 450, 300)) for key in source.keys}
    source.curves |= {(key, "policy/kl"): (steps, walls, np.linspace(0, 0.25, 300)) for key in source.keys}
    source.curves |= {(key, "policy/entropy"): (steps, walls, np.linspace(0, 0.25, 300)) for key in source.keys}
    app = Charts(source, Settings(grid=4), exports=tmp_path)

    async def test(pilot: Pilot[None]) -> None:
        tags = ["eval/score", "policy/kl", "policy/entropy"]
        app.show(tags)
        await act(pilot, "export")
        texts = ["\n".join(lines_of(plot)) for plot in app.plots.plots]
        assert ["solved 475" in text for text in texts] == [True, False, False]
        assert ["at most 0.3" in text for text in texts] == [False, True, False]
        assert "Health limit: at most 0.3" in (explanation("policy/kl") or "")
        drawings = [plot.drawings for plot in app.plots.plots]
        source.thresholds = [Threshold(475.0, "cartpole"), Threshold(200.0, "lander")]
        app.show(tags)
        await pilot.pause()
        assert [plot.drawings for plot in app.plots.plots] == [drawings[0] + 1, *drawings[1:]]
        assert all(
            label in "\n".join(lines_of(app.plots.plots[0])) for label in ("cartpole solved 475", "lander solved 200")
        )
        await act(pilot, "enlarge")
        assert isinstance(app.screen, MetricScreen)
        assert "cartpole solved 475" in "\n".join(lines_of(app.screen.plots.plots[0]))
        source.foreign = True  # other programs know nothing of our health checks
        app.show()
        await act(pilot, "next", 2, place="metric")
        assert app.screen.tag == "policy/kl"
        assert "at most" not in "\n".join(lines_of(app.screen.plots.plots[0]))
        await app.workers.wait_for_complete()

    drive(app, test)
    svg = (tmp_path / "eval-score.svg").read_text(encoding="utf-8")
    assert ">solved 475<" in svg
    assert svg.count("stroke-dasharray") == 1


@pytest.mark.parametrize("size", SIZES)
def test_keys_zoom_and_pan_the_window(size: tuple[int, int]) -> None:
    app = Charts(Source())

    async def test(pilot: Pilot[None]) -> None:
        plots = app.plots
        assert shown_window(plots) == Window(10, 3000)
        await act(pilot, "zoom_in", 2)
        window = shown_window(plots)
        assert window.right == 3000
        assert plots.settings.follow
        assert "zoomed, following new data" in page_line(plots)
        app.source.grow("eval/score", 400)
        app.show()
        await pilot.pause()
        assert shown_window(plots) == pytest.approx(Window(4000 - window.width, 4000))
        await act(pilot, "pan_left")
        still = shown_window(plots)
        assert still.right < 4000
        assert not plots.settings.follow
        app.source.grow("eval/score", 500)
        app.show()
        await pilot.pause()
        assert shown_window(plots) == pytest.approx(still)
        await act(pilot, "pan_right", 9)
        assert shown_window(plots).right == pytest.approx(5000)
        assert plots.settings.follow
        await act(pilot, "zoom_out", 20)
        assert plots.settings.window is None
        assert shown_window(plots) == Window(10, 5000)
        await act(pilot, "zoom_in", 3)
        await act(pilot, "zoom_reset")
        assert shown_window(plots) == Window(10, 5000)

    drive(app, test, size)


def test_crosshair_reads_the_same_x_in_every_chart() -> None:
    app = Charts(Source(), Settings(grid=4))

    async def test(pilot: Pilot[None]) -> None:
        plots = app.plots
        await act(pilot, "cross_left")
        last = plots.cross
        assert last is not None
        await act(pilot, "cross_left", 5)
        assert plots.cross is not None
        assert plots.cross < last
        for plot in plots.plots:
            assert plot.cross == plots.cross
            own = [app.source.curves[key, plot.tag] for key in app.source.keys]
            assert plot.values() == [value_at(steps, values, plots.cross) for steps, _, values in own]
            assert any("│" in line[GUTTER + 1 :] for line in lines_of(plot)[1:-1])
            assert f"{round(plots.cross):,}" in lines_of(plot)[-1]
        await act(pilot, "cross_right", 3)
        at_zoom = plots.cross
        await act(pilot, "zoom_in")  # around the crosshair
        window = shown_window(plots)
        assert window.left < at_zoom < window.right
        await act(pilot, "zoom_reset")
        assert plots.cross is None

    drive(app, test)


async def move(plot: Plot, kind: type, column: float, delta: int = 0) -> None:
    """Send a mouse event to a chart, as Textual would."""
    plot.post_message(kind(plot, column, 2, delta, 0, 0, False, False, False))


def test_mouse_points_zooms_and_drags() -> None:
    app = Charts(Source(), Settings(grid=4))

    async def test(pilot: Pilot[None]) -> None:
        plots = app.plots
        first = plots.plots[0]
        middle = GUTTER + 1 + (first.size.width - GUTTER - 1) // 2
        await pilot.hover(first, (middle, 3))
        assert plots.cross == pytest.approx(1500, rel=0.05)
        assert {plot.cross for plot in plots.plots} == {plots.cross}
        await move(first, MouseScrollUp, middle)
        await pilot.pause()
        window = shown_window(plots)
        assert window.width == pytest.approx(2990 * 0.8)
        assert window.left < 1500 < window.right
        assert not plots.settings.follow
        await pilot.mouse_down(first, (middle, 3))
        await move(first, MouseMove, middle - 5, -5)
        await pilot.pause()
        assert shown_window(plots).left > window.left
        await pilot.mouse_up(first, (middle - 5, 3))
        await move(first, MouseScrollDown, middle)
        await move(first, MouseScrollDown, middle)
        await pilot.pause()
        assert plots.settings.window is None
        await move(first, MouseScrollUp, first.size.width - 1)  # near the right end, zooming follows the newest data
        await pilot.pause()
        assert plots.settings.follow
        assert shown_window(plots).right == 3000
        await pilot.hover(plots.query_one(".page"))
        assert plots.cross is None

    drive(app, test)


def test_tab_and_click_focus_a_chart() -> None:
    app = Charts(Source(), Settings(grid=4))

    async def test(pilot: Pilot[None]) -> None:
        plots = app.plots
        assert [plot.current for plot in plots.plots] == [True, False, False, False]
        await pilot.press("tab", "tab")
        await pilot.pause()
        assert [plot.current for plot in plots.plots] == [False, True, False, False]
        await pilot.click(plots.plots[3])
        await pilot.pause()
        assert [plot.current for plot in plots.plots] == [False, False, False, True]
        assert plots.explain() == explanation(TAGS[3])
        await pilot.click(plots.plots[2], times=2)
        await pilot.pause()
        assert isinstance(app.screen, MetricScreen)
        assert app.screen.tag == TAGS[2]

    drive(app, test)


def test_seeds_are_one_curve_with_a_band() -> None:
    app = Charts(Source())

    async def test(pilot: Pilot[None]) -> None:
        app.source.group = "same"
        app.show()
        await act(pilot, "aggregate")
        assert app.plots.settings.aggregate
        plot = app.plots.plots[0]
        assert [one.label for one in plot.curves] == ["run (3 seeds)"]
        assert "run (3 seeds)" in plot.render_line(0).text
        assert "not all seeds" not in page_line(app.plots)
        values = [app.source.curves[key, plot.tag][2] for key in app.source.keys]
        np.testing.assert_allclose(plot.curves[0].curve, np.median(values, axis=0), rtol=1e-6)
        app.source.curves |= {("run-0", tag): curve(200, 5) for tag in TAGS}
        app.show()
        await pilot.pause()
        assert "seeds grouped  dotted: not all seeds" in page_line(app.plots)
        await act(pilot, "aggregate")
        assert len(plot.curves) == 3
        assert "not all seeds" not in page_line(app.plots)

    drive(app, test)


def test_number_of_seeds_is_shown_at_the_crosshair() -> None:
    source = Source()
    source.group, source.repeats = "same", {"run-1"}
    source.curves |= {("run-0", tag): curve(200, 5) for tag in TAGS}
    app = Charts(source, Settings(grid=1, aggregate=True, smoothing=0.6))

    async def test(pilot: Pilot[None]) -> None:
        plot = app.plots.plots[0]
        first, last = (source.curves[key, plot.tag][2] for key in ("run-0", "run-2"))
        label = "run (2 seeds, 1 repeat hidden)"
        assert plot.render_line(0).text.rstrip().endswith(f"{label} {format_number(float(last[-1]))} n=1 of 2")
        assert "seeds grouped  1 repeat hid" in page_line(app.plots)
        styles = [{s.style.color for s in plot.render_line(y) if s.style} for y in range(1, plot.size.height)]
        assert len(set().union(*styles)) >= 5  # axis, text, median, band, and the part without all seeds
        await act(pilot, "enlarge")
        screen = app.screen
        assert isinstance(screen, MetricScreen)

        def table() -> list[str]:
            return str(screen.query_one("#table", Static).render()).split("\n")

        assert table()[0].split() == ["seeds", "at", "the", "end", "n", "median", "25%", "75%"]
        assert table()[1].removeprefix(label).split() == ["1", "of", "2", "-", "-", "-"]
        assert [line.split("  ")[0] for line in table()[3:]] == ["run", "run-0", "repeat: run-1", "run-2"]
        screen.plots._set_cross(1000.0, False)
        await pilot.pause()
        quartiles = np.percentile([first[99], last[99]], (50, 25, 75))
        assert table()[0].startswith("seeds at the cursor")
        assert table()[1].removeprefix(label).split() == ["2", "of", "2", *map(format_number, quartiles)]
        assert screen.plots.plots[0].render_line(0).text.rstrip().endswith(f" {format_number(quartiles[0])} n=2")

    drive(app, test)


def test_seeds_are_grouped_only_over_steps() -> None:
    app = Charts(Source(), Settings(x_axis="time"))

    async def test(pilot: Pilot[None]) -> None:
        app.source.group, plots = "same", app.plots
        app.show()
        await act(pilot, "zoom_in")
        await act(pilot, "aggregate")
        assert shown_window(plots) == Window(10, 3000)
        np.testing.assert_array_equal(plots.plots[0].curves[0].x, app.source.curves["run-0", "eval/score"][0])
        assert "x: step  seeds grouped" in page_line(plots)
        await act(pilot, "x_axis")
        assert shown_window(plots) == Window(10, 3000)
        await act(pilot, "zoom_in")
        notices = [notification.message for notification in app._notifications]
        assert ["compared at equal steps" in notice for notice in notices] == [True, True]
        assert "returns to time of day" in notices[0]
        assert "ungroup the seeds with A" in notices[1]
        await act(pilot, "aggregate")  # restores the axis that the user selected
        assert shown_window(plots) == Window(1.79e9, 1.79e9 + 598)
        assert "x: time of day" in page_line(plots)

    drive(app, test)


def test_export_writes_every_value_and_overwrites_nothing(tmp_path: Path) -> None:
    app = Charts(Source(), Settings(smoothing=0.9, log_y=["eval/score"]), exports=tmp_path / "exports")

    async def test(pilot: Pilot[None]) -> None:
        steps, walls, values = curve(300, 5)
        values[7:9] = (np.nan, np.inf)
        app.source.curves["run-1", "eval/score"] = (steps, walls, values)
        app.show()
        for _ in range(2):
            await act(pilot, "export")
            await app.workers.wait_for_complete()
            await pilot.pause()
        assert [path.name for path in app.page.written] == ["eval-score-2.csv", "eval-score-2.svg"]

    drive(app, test)
    table, picture = tmp_path / "exports/eval-score.csv", tmp_path / "exports/eval-score.svg"
    rows = list(csv.DictReader(table.read_text(encoding="utf-8").splitlines()))
    assert table.read_bytes() == table.with_name("eval-score-2.csv").read_bytes()
    for key in app.source.keys:
        steps, walls, values = app.source.curves[key, "eval/score"]
        own = [row for row in rows if row["run"] == key]
        np.testing.assert_array_equal(np.array([int(row["step"]) for row in own]), steps)
        np.testing.assert_array_equal(np.array([float(row["wall_time"]) for row in own]), walls)
        np.testing.assert_array_equal(np.array([float(row["value"]) for row in own], np.float32), values)
    svg = ET.parse(picture).getroot()
    texts = [element.text for element in svg.iter("{http://www.w3.org/2000/svg}text")]
    assert texts[0] == "eval/score (greedy) (log)"
    facts = "x axis: step; y axis: logarithmic; smoothed with a moving average of weight 0.9; "
    facts += "faint curves show the raw values"
    assert facts in texts
    title, description = (svg.findtext("{http://www.w3.org/2000/svg}" + name) for name in ("title", "desc"))
    assert title == texts[0]
    assert description is not None
    assert facts in description
    assert "greedy" in description.split("\n")[0]
    assert list(rows[0]) == ["run", "step", "wall_time", "value", "group"]
    assert {row["group"] for row in rows} == {""}
    assert set(app.source.keys) <= set(texts)
    paths = [element.get("d", "") for element in svg.iter("{http://www.w3.org/2000/svg}path")]
    long = [path for path in paths if path.count("L") > 100]
    assert len(long) == 6  # raw and smoothed curves of three runs
    assert "nan" not in picture.read_text(encoding="utf-8")


def test_exported_picture_of_seeds_has_a_band(tmp_path: Path) -> None:
    app = Charts(Source(), Settings(aggregate=True), exports=tmp_path)

    async def test(pilot: Pilot[None]) -> None:
        app.source.group, app.source.repeats = "same", {"run-2"}
        app.source.curves |= {("run-0", "eval/score"): curve(200), ("run-2", "eval/score"): curve(900)}
        app.show()
        await pilot.pause()
        assert shown_window(app.plots).right == 3000  # the hidden repeat does not extend the axis
        await pilot.pause()
        await act(pilot, "export")
        await app.workers.wait_for_complete()

    drive(app, test)
    text = (tmp_path / "eval-score.svg").read_text(encoding="utf-8")
    assert ">run (2 seeds, 1 repeat hidden)<" in text
    assert len(re.findall(r'<path d="M[^"]+Z" fill="#', text)) == 1
    assert text.count("stroke-dasharray") == 1  # the part without all seeds
    assert "dotted and paler where some seeds have no value" in text
    rows = list(csv.DictReader((tmp_path / "eval-score.csv").read_text(encoding="utf-8").splitlines()))
    label = "run (2 seeds, 1 repeat hidden)"
    assert {(row["run"], row["group"]) for row in rows} == {("run-0", label), ("run-1", label)}
    assert "median of the runs, in a band from the lower to the upper quartile" in text
    assert f">{label}: run-0, run-1<" in text


def test_exported_picture_shows_a_single_point_spike(tmp_path: Path) -> None:
    source = Source(1, 50_000)
    app = Charts(source, exports=tmp_path)

    async def test(pilot: Pilot[None]) -> None:
        steps, walls, values = curve(50_000, 5)
        values[31_234] = 1000.0
        source.curves["run-0", "eval/score"] = (steps, walls, values)
        app.show()
        await act(pilot, "export")
        await app.workers.wait_for_complete()

    drive(app, test)
    text = (tmp_path / "eval-score.svg").read_text(encoding="utf-8")
    curve_path = max(re.findall(r'd="([^"]+)"', text), key=len)
    assert min(float(pair.split()[1]) for pair in re.split("[ML]", curve_path)[1:]) == pytest.approx(0, abs=0.1)
    assert len(curve_path) < 50_000


@pytest.mark.parametrize("name", ["a rather long name", "一个相当长的名字"])
def test_long_names_in_exported_picture_wrap(name: str, tmp_path: Path) -> None:
    x = np.arange(3.0)
    drawn = [DrawnCurve(f"{name} {k}", "#E69F00", False, x, x, x) for k in range(12)]
    facts = [", ".join(one.label for one in drawn)]
    write_svg(tmp_path / "a.svg", "a/b", PaperChart(drawn, View(0, 2, 0, 2), False, []), facts)
    svg = ET.parse(tmp_path / "a.svg").getroot()
    _, _, width, height = map(float, svg.get("viewBox", "").split())
    texts = [text for text in svg.iter("{http://www.w3.org/2000/svg}text") if name in (text.text or "")]
    boxes = [(float(t.get("x", "")), float(t.get("y", "")), 7 * display_width(t.text or "")) for t in texts]
    assert all(left + size <= width for left, _, size in boxes)
    names = [box for box, text in zip(boxes, texts, strict=True) if text.get("fill") is None]
    assert len(names) == 12
    assert len(boxes) > 13  # the subtitle wraps
    assert all(left + size < right for (left, y, size), (right, same, _) in pairwise(names) if y == same)
    assert len({y for _, y, _ in names}) > 1
    top = next(g for g in svg.iter("{http://www.w3.org/2000/svg}g")).get("transform", "")
    assert max(y for _, y, _ in names) < float(top.rstrip(")").split()[1]) < height


def test_export_says_which_raw_curves_are_faint() -> None:
    x, settings = np.arange(3.0), Settings(smoothing=0.9)
    single = DrawnCurve("a", "#E69F00", False, x, x, x)
    group = single._replace(seeds=SeedStatistics(("b", "c"), np.full(3, 2), np.zeros((3, 3))))

    def axes(*drawn: DrawnCurve) -> str:
        (line,) = [
            line
            for line in describe_chart("loss/value", PaperChart(drawn, View(0, 2, 0, 2), False, []), settings)
            if line.startswith("x axis")
        ]
        return line.rpartition("; ")[2]

    assert axes(single) == "faint curves show the raw values"
    assert axes(single, group) == "faint curves show the raw values of single runs"
    assert axes(group) == "smoothed with a moving average of weight 0.9"


def test_failed_export_is_reported(tmp_path: Path) -> None:
    (tmp_path / "exports").write_text("a file, no folder")
    app = Charts(Source(), exports=tmp_path / "exports")

    async def test(pilot: Pilot[None]) -> None:
        await act(pilot, "export")
        await app.workers.wait_for_complete()
        await pilot.pause()
        assert any("Export failed" in notification.message for notification in app._notifications)

    drive(app, test)


# enlarged metric


@pytest.mark.parametrize("size", SIZES)
def test_metric_screen_shows_values_beside_or_below(size: tuple[int, int]) -> None:
    app = Charts(Source(), Settings(smoothing=0.9))

    async def test(pilot: Pilot[None]) -> None:
        await act(pilot, "enlarge")
        screen = app.screen
        assert isinstance(screen, MetricScreen)
        assert [plot.tag for plot in screen.plots.plots] == ["eval/score"]
        assert "mean return (Gymnasium) or mean score" in str(screen.query_one("#meaning", Static).render())
        assert screen.explain() == explanation("eval/score")
        table = str(screen.query_one("#table", Static).render())
        assert table.split("\n")[0].split() == ["run", "last", "smoothed", "min", "max", "max", "at", "(step)"]
        for key in app.source.keys:
            steps, _, values = app.source.curves[key, "eval/score"]
            row = next(line.split() for line in table.split("\n") if line.startswith(key))
            assert float(row[1]) == pytest.approx(values[-1], rel=1e-3)
            assert (float(row[3]), float(row[4])) == pytest.approx((values.min(), values.max()), rel=1e-3)
            assert int(row[5].replace(",", "")) == steps[np.argmax(values)]
        await act(pilot, "cross_left", 4)
        assert "cursor" in str(screen.query_one("#table", Static).render())
        values_pane, plot = screen.query_one("#values"), screen.plots.plots[0]
        assert (values_pane.region.x > plot.region.right - 1) == (size[0] >= 150)
        assert values_pane.region.bottom <= size[1]
        assert plot.size.height >= 8

    drive(app, test, size)


def test_metric_screen_actions_and_return() -> None:
    app = Charts(Source())

    async def test(pilot: Pilot[None]) -> None:
        await act(pilot, "cross_left", 3)
        assert app.plots.cross is not None
        await act(pilot, "enlarge")
        screen = app.screen
        assert isinstance(screen, MetricScreen)
        await act(pilot, "next", 7, place="metric")
        assert screen.tag == TAGS[7]
        assert screen.plots.plots[0].tag == TAGS[7]
        assert "8 of 10" in page_line(screen.plots)
        await act(pilot, "previous", place="metric")
        await pilot.press("left_square_bracket", "right_square_bracket")
        await pilot.pause()
        assert screen.tag == TAGS[6]
        for name in ("log_y", "smoother", "x_axis", "aggregate", "zoom_in", "pan_left"):
            await act(pilot, name)
        settings = app.plots.settings
        assert (settings.log_y, settings.smoothing, settings.x_axis, settings.aggregate) == (
            [TAGS[6]],
            0.6,
            "relative",
            True,
        )
        assert settings.window is not None
        assert app.page.changes >= 6
        await act(pilot, "back", place="metric")
        assert app.screen is app.page
        assert app.plots.current is not None
        assert app.plots.current.tag == TAGS[6]
        assert app.plots.cross is None  # it belonged to another axis
        assert settings.page == 1
        await act(pilot, "enlarge")
        await act(pilot, "enlarge")  # the same key returns
        assert app.screen is app.page

    drive(app, test)


def test_metric_screen_updates_live() -> None:
    app = Charts(Source())

    async def test(pilot: Pilot[None]) -> None:
        await act(pilot, "enlarge")
        screen = app.screen
        assert isinstance(screen, MetricScreen)
        app.source.grow("eval/score", 777)
        screen.update_from_store(UNUSED)
        await pilot.pause()
        assert shown_window(screen.plots) == Window(10, 7770)
        app.source.grow("eval/score", 888)
        app.show()  # the charts on the screen below get new curves or colors
        await pilot.pause()
        assert shown_window(screen.plots) == Window(10, 8880)
        plot = screen.plots.plots[0]
        before = plot.drawings
        app.show()
        screen.update_from_store(UNUSED)
        await pilot.pause()
        assert plot.drawings == before

    drive(app, test)


def test_every_declared_action_exists() -> None:
    assert all(hasattr(Plots, f"action_{action.name}") for action in actions_of("charts"))
    alone = [action for action in actions_of("charts") if action.name not in ("grid", "grid_less", "group")]
    assert all(hasattr(MetricScreen, f"action_{action.name}") for action in (*alone, *actions_of("metric")))


def test_unusual_curves_are_drawn() -> None:
    """Draw empty, NaN-only, constant, huge, tiny and equal-step curves with every smoothing and on every axis."""
    source = Source(1)
    steps, walls, values = curve(50)
    one = (steps[:1], walls[:1], values[:1])
    kinds = {
        "eval/score": (steps[:0], walls[:0], values[:0]),
        "episode/return": one,
        "policy/kl": (steps, walls, values * np.float32(np.nan)),
        "policy/entropy": (steps, walls, values * 0 + 7),
        "value/explained_variance": (steps, walls, values * np.float32(1e37)),
        "loss/value": (steps * 0, walls * 0, values * np.float32(1e-38)),
    }
    source.curves |= {("run-0", tag): kind for tag, kind in kinds.items()}
    app = Charts(source)

    async def test(pilot: Pilot[None]) -> None:
        for name in ("smoother", "log_y", "log_x", "x_axis", "zoom_in", "aggregate", "x_axis", "cross_left"):
            await act(pilot, name)
            text = [lines_of(plot) for plot in app.plots.plots]
            assert "no points yet" in text[0][1]
            assert "no finite values" in text[2][1] or "no points" in text[2][1]
        await act(pilot, "enlarge")
        for _ in TAGS:
            await act(pilot, "next", place="metric")

    drive(app, test)
