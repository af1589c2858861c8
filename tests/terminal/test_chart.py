"""Tests of charts: extremes stay visible, missing values leave gaps, ticks are round and sizes are exact."""

from __future__ import annotations

import re
import time

import numpy as np
import pytest

from ppo_unified.terminal.braille import ASCII, BRAILLE, CROSS, NOTHING, Columns, Glyphs, Layer, View, paint, spans
from ppo_unified.terminal.chart import (
    MARKS,
    Line,
    draw,
    find_view,
    fit_levels,
    fit_title,
    label_row,
    nonpositive_note,
    place_ticks,
    smooth,
    y_labels,
)
from ppo_unified.terminal.ticks import Tick, axis_labels, log_ticks, nice_ticks, plain_ticks, span_label, time_ticks
from ppo_unified.text import display_width

SGR = re.compile(r"\x1b\[[0-9;]*m")


def noise(points: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return a random walk with random, ascending x."""
    rng = np.random.default_rng(seed)
    return np.cumsum(rng.uniform(0.1, 3, points)), np.cumsum(rng.normal(size=points))


def cells(chart: list[str]) -> str:
    """Return the part of a chart between the y axis and the x axis."""
    return "\n".join(re.split("[│┤|+]", row, maxsplit=1)[1] for row in chart[1:-2])


@pytest.mark.parametrize("points", [2, 7, 50, 1000])
@pytest.mark.parametrize("columns", [1, 2, 13, 160])
def test_columns_hold_curve_extremes(points: int, columns: int) -> None:
    """The result equals brute force: sample the piecewise linear curve densely and sort the samples into columns."""
    x, y = noise(points, seed=points)
    view = View(x[0], x[-1], 0, 0)
    low, high = Columns(x, view, columns).minmax(y)
    dense = np.unique(np.r_[np.linspace(x[0], x[-1], 200_000), x])
    values = np.interp(dense, x, y)
    column = np.floor((dense - x[0]) / (x[-1] - x[0]) * (columns - 1) + 0.5).astype(int)
    for k in range(columns):
        assert low[k] == pytest.approx(values[column == k].min(), abs=0.05)
        assert high[k] == pytest.approx(values[column == k].max(), abs=0.05)


def test_window_needs_only_one_point_beyond_each_edge() -> None:
    x, y = noise(500)
    view = View(x[100], x[300], 0, 0)
    everything, cut = (Columns(x[s], view, 80).minmax(y[s]) for s in (slice(None), slice(99, 302)))
    np.testing.assert_array_equal(everything, cut)
    sparse = np.arange(0.0, 100, 10)
    low, high = Columns(sparse, View(14, 36, 0, 0), 23).minmax(sparse)  # both edges between two points
    np.testing.assert_allclose(low, np.arange(13.5, 36))
    np.testing.assert_allclose(high, np.arange(14.5, 37))


@pytest.mark.parametrize("where", [0, 1, 777, 9_999])
def test_single_point_spike_stays_visible(where: int) -> None:
    y = np.zeros(10_000)
    y[where] = 700.0
    _, high = Columns(np.arange(10_000.0), View(0, 9_999, 0, 700), 60).minmax(y)
    assert np.nanmax(high) == 700.0
    top_row = draw([Line("", np.arange(10_000), y)], 60, 10)[1]
    assert top_row.startswith("     700┤")
    assert top_row.split("┤")[1].strip()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nonfinite_values_leave_a_gap(bad: float) -> None:
    x, y = np.arange(101.0), np.ones(101)
    y[40:61] = bad
    low, high = Columns(x, View(0, 100, 0, 2), 101).minmax(y)
    empty = np.isnan(low)
    np.testing.assert_array_equal(empty, np.isnan(high))
    assert set(np.flatnonzero(empty)) == set(range(40, 61))


def test_single_point_between_gaps_stays_visible() -> None:
    y = np.full(50, np.nan)
    y[20] = 3.0
    assert cells(draw([Line("", np.arange(50), y)], 60, 8)).count("●") == 1


def test_log_axis_straightens_decay_and_skips_nonpositive() -> None:
    x = np.arange(1000.0)
    straight = draw([Line("", x, -x)], 60, 12, x_range=(0, 999))
    decay = draw([Line("", x, 10 ** (-x / 100))], 60, 12, log_y=True, x_range=(0, 999))
    assert cells(straight) == cells(decay)
    assert decay[1].startswith("     1e0┤")
    holes = np.where(x % 500 < 250, np.exp(-x), -1.0)
    lows = np.isnan(
        Columns(x, View(0, 999, 0, 1), 50).minmax(np.log10(holes, out=np.full(1000, np.nan), where=holes > 0))[0]
    )
    drawn = cells(draw([Line("", x, holes)], 59, 12, log_y=True, unicode=False)).split("\n")
    columns = np.array([[c != " " for c in row] for row in drawn]).any(axis=0)
    np.testing.assert_array_equal(columns, ~lows)


@pytest.mark.parametrize("unicode", [True, False])
@pytest.mark.parametrize("color", [True, False])
@pytest.mark.parametrize("width", [20, 31, 120])
@pytest.mark.parametrize("height", [4, 6, 25])
def test_chart_has_the_exact_size_for_any_data(width: int, height: int, color: bool, unicode: bool) -> None:
    x, y = noise(300)
    empty = np.empty(0)
    kinds: dict[str, list[Line]] = {
        "nothing": [],
        "no points": [Line("a", empty, empty)],
        "one point": [Line("a", np.array([14742]), np.array([500.0]))],
        "two equal steps": [Line("a", np.array([5, 5]), np.array([1.0, 2.0]))],
        "constant": [Line("a", x, np.full(300, 0.1, np.float32))],
        "zero": [Line("a", x, np.zeros(300))],
        "nan": [Line("a", x, np.full(300, np.nan))],
        "huge": [Line("a", x * 1e12, y * 1e200)],
        "tiny": [Line("a", x, y * 1e-30)],
        "narrow": [Line("a", x, 500 + y * 1e-4)],
        "many": [Line(f"a rather long label {k}", x, y + k) for k in range(30)],
        "some missing": [Line("a", x, y), Line("b", empty, empty)],
        "wide characters": [Line("学習", x, y), Line("b", x, -y)],
    }
    for kind, lines in kinds.items():
        for log_y in (False, True):
            chart = draw(lines, width, height, "a/metric", unicode=unicode, color=color, log_y=log_y)
            assert len(chart) == height, kind
            for row in chart:
                assert display_width(SGR.sub("", row)) == width, (kind, row)
            if not color:
                assert "\x1b" not in "".join(chart)
            if not unicode and kind != "wide characters":
                assert "".join(chart).isascii(), kind


def test_single_point_is_centred_and_labelled() -> None:
    chart = draw([Line("", np.array([2000]), np.array([21.5]))], 40, 6, "eval/score")
    assert chart[0].split() == ["eval/score", "21.5"]
    assert cells(chart).count("●") == 1
    assert any(row.lstrip().startswith("21.5┤") for row in chart)
    middle = chart[2].index("●")
    assert "2000" in chart[-1][middle - 2 : middle + 3]


def test_constant_curve_is_one_row_with_one_label() -> None:
    chart = draw([Line("", np.arange(100), np.full(100, 0.1, np.float32))], 50, 9)
    assert [row.strip("│ ") != "" for row in chart[1:-2]].count(True) == 1
    assert [row.split("┤")[0].strip() for row in chart[1:-2] if "┤" in row] == ["0.1"]


def test_empty_chart_explains_why() -> None:
    x = np.arange(5.0)
    assert "no points yet" in draw([], 40, 6)[1]
    assert "no finite value" in draw([Line("", x, x * np.nan)], 40, 6)[1]
    assert "no value above 0" in draw([Line("", x, -x)], 40, 6, log_y=True)[1]


def test_y_axis_ends_are_minimum_and_maximum() -> None:
    x, y = noise(200)
    chart = draw([Line("", x, y)], 80, 15)
    labels = [row.split("┤")[0].strip() for row in chart[1:-2] if "┤" in row]
    assert float(labels[0]) == pytest.approx(y.max(), rel=1e-3)
    assert float(labels[-1]) == pytest.approx(y.min(), rel=1e-3)
    values = [float(label) for label in labels]
    assert values == sorted(values, reverse=True)


def test_narrow_range_labels_differ() -> None:
    chart = draw([Line("", np.arange(100), np.linspace(500.01, 500.02, 100))], 60, 11)
    labels = [row.split("┤")[0].strip() for row in chart[1:-2] if "┤" in row]
    assert len(labels) == len(set(labels)) > 2


@pytest.mark.parametrize("seed", range(20))
def test_short_labels_keep_sign_and_magnitude(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for exponent in range(-30, 31, 3):
        low = float(rng.uniform(-1, 1) * 10.0**exponent)
        high = low + abs(low) * float(rng.choice([1, 1e-1, 1e-2, 1e-4]) * rng.uniform(0.1, 1))
        view = View(0, 1, low, high)
        labels = y_labels((low, high), view, 10, False, BRAILLE)
        assert max(map(len, labels.values())) <= 8
        for at, label in ((low, labels[9]), (high, labels[0])):
            assert at_label(label) == pytest.approx(at, rel=0.06)
        if high - low >= 0.05 * abs(low):
            assert at_label(labels[9]) < at_label(labels[0])
    assert y_labels((-0.001234, -0.0052), View(0, 1, -0.0052, -0.001234), 2, False, BRAILLE)[0] == "-0.00123"
    near = View(0, 1, -1234.57, -1234.56)
    assert set(y_labels((near.low, near.high), near, 2, False, BRAILLE).values()) == {"-1234.57", "-1234.56"}


@pytest.mark.parametrize(
    ("values", "log", "expected"),
    [
        ((0.0003, 0.005, 0.02), False, "0.0003 0.005 0.02"),
        ((0.0003, 0.001, 0.02), True, "0.0003 0.001 0.02"),
        ((1e-6, 1e-3, 1, 1e3), True, "1e-6 1e-3 1e0 1e3"),
        ((0, 2.5e-5, 1e-4), False, "0 2.5e-5 1e-4"),
        ((12_000, 500_000, 1.3e6), False, "12k 500k 1.3M"),
        ((-500, 0, 500), False, "-500 0 500"),
        ((90, 1000, 1600), False, "90 1000 1600"),
        ((3e-9, 2, 5.1), False, "~0 2 5.1"),
        ((3e-9, 1e-3, 5.1), True, "3e-9 1e-3 5.1e0"),
        ((1e5, 100_010), True, "100k 100.01k"),
        ((499.25, 500.75), False, "499.2 500.8"),
        ((499.25, 499.75), False, "499.25 499.75"),
        ((92.538, 95, 100.31), False, "92.54 95 100.3"),
        ((0.1,), False, "0.1"),
        ((0.0, 0.0), False, "0 0"),
        ((-1e300, 1e300), False, "-1e300 1e300"),
    ],
)
def test_axis_has_one_number_style(values: tuple[float, ...], log: bool, expected: str) -> None:
    assert axis_labels(values, log) == expected.split()


def test_log_axis_labels_are_one_two_five() -> None:
    def labels(low: float, high: float, rows: int) -> list[str]:
        ends = (np.log10(low), np.log10(high))
        found = y_labels(ends, View(0, 1, *ends), rows, True, BRAILLE)
        return [found[row] for row in sorted(found)]

    assert labels(0.0003, 0.02, 16) == ["0.02", "0.01", "0.005", "0.002", "0.001", "0.0005", "0.0003"]
    assert labels(22, 487.3, 16) == ["487.3", "200", "100", "50", "22"]
    assert labels(22, 487.3, 4) == ["487.3", "22"]
    assert labels(1e-6, 1e3, 9) == ["1e3", "1e0", "1e-3", "1e-6"]


@pytest.mark.parametrize("unicode", [True, False])
@pytest.mark.parametrize("points", [1, 2, 3, 9, 10, 50])
def test_few_points_are_marked(points: int, unicode: bool) -> None:
    line = Line("a", np.arange(points) * 10, np.arange(points) % 3 * 1.0)
    alone, both = (cells(draw([line] * runs, 80, 12, unicode=unicode)) for runs in (1, 2))
    marker = "●" if unicode else "o"
    assert alone.count(marker) == (points if points < 10 else 0)
    assert (marker in both) == (1 < points < 10)  # the letter marks a single point
    assert {"A", "B"} & set(both)


def test_y_labels_stay_within_the_curves() -> None:
    curves, (view, _) = (15.0, 400.0), fit_levels(View(0, 1, 15, 400), [Tick(500.0, "solved")], False)
    labels = y_labels(curves, view, 20, False, BRAILLE)
    assert view.high == 500
    assert {labels[min(labels)], labels[max(labels)]} == {"400", "15"}


def test_few_finite_points_are_marked() -> None:
    y = np.full(60, np.nan)
    y[[10, 30, 50]] = [1, 2, 3]
    assert cells(draw([Line("", np.arange(60), y)], 60, 10)).count("●") == 3


def test_level_has_no_name_that_touches_a_curve() -> None:
    def name_between(blanks: int) -> str:
        """Return the name of a level in a row with this number of free cells between two curves."""
        high = np.where((np.arange(40) < 15) | (np.arange(40) >= 15 + blanks), 1.0, np.nan)
        layer = Layer(np.zeros(40), high, 0, "*")
        picture = paint(
            [layer], View(0, 39, 0, 1), 40, 1, ASCII, covering=True, letters=False, levels=[(0.5, "goal 490")]
        )
        return "".join(map(chr, picture.codes[0])).strip("* -")

    assert [name_between(blanks) for blanks in (5, 6, 9, 10)] == ["", "goal", "goal", "goal 490"]


def test_draw_marks_levels_and_counts_hidden_values() -> None:
    x = np.arange(100.0)
    for unicode in (True, False):
        chart = draw([Line("", x, x)], 60, 12, unicode=unicode, levels=[Tick(110.0, "solved"), Tick(900.0, "limit")])
        assert "solved 110" in chart[1]
        assert "limit" not in "".join(chart)
        assert "".join(chart).isascii() != unicode
    assert " 1 value <= 0 not shown " in draw([Line("", x, x)], 60, 12, log_y=True)[-2]
    assert " 1 <= 0 not shown " in draw([Line("", x, x)], 40, 12, log_y=True)[-2]
    assert nonpositive_note(2, 60, "point") == "2 points <= 0 not shown"
    assert "<= 0" not in draw([Line("", x, x + 1)], 60, 12, log_y=True)[-2]


def test_heading_keeps_values_before_the_name() -> None:
    assert fit_title(["eval/score (greedy)", "eval/score"], ["  487"], 36) == ("eval/score (greedy)", 1)
    assert fit_title(["eval/score (greedy)", "eval/score"], ["  487"], 16) == ("eval/score", 1)
    assert fit_title(["value/explained_variance"], ["  487", "  486", "  485"], 28) == ("value/~riance", 3)
    assert fit_title(["value/explained_variance"], ["  487", "  486", "  485"], 25) == ("value/e~variance", 1)
    assert fit_title(["a"], [], 5) == ("a", 0)
    line = Line("", np.arange(5), np.full(5, 0.987))
    heads = [draw([line], width, 6, "eval/score (greedy) [reward]")[0] for width in (40, 30, 24, 20, 14)]
    titles = ["eval/score (greedy) [reward]", "eval/score (greedy)", "eval/score", "eval/score", "eval/score"]
    assert [head.rstrip() for head in heads] == [f"{title}  0.987" for title in titles]
    assert draw([line], 24, 6, "value/explained_variance")[0] == "value/ex~variance  0.987"


def at_label(label: str) -> float:
    """Parse the number in a label."""
    units = {"k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
    return float(label.rstrip("kMGT")) * units.get(label[-1], 1)


@pytest.mark.parametrize("unicode", [True, False])
def test_curve_letters_appear_in_legend_and_plot(unicode: bool) -> None:
    x, y = noise(300)
    lines = [Line(f"run-{k}", x, y + 8 * k) for k in range(4)]
    chart = draw(lines, 100, 16, unicode=unicode)
    for k, line in enumerate(lines):
        assert f"{MARKS[k]} {line.label}" in chart[0]
        assert MARKS[k] in cells(chart)


def test_equal_curves_show_both_letters() -> None:
    x = np.arange(200)
    plot = cells(draw([Line(label, x, np.ones(200)) for label in "ab"], 80, 8))
    assert set(re.findall("[A-Z]", plot)) == {"A", "B"}


@pytest.mark.parametrize("width", [24, 60])
def test_letters_of_many_curves_do_not_cover_each_other(width: int) -> None:
    x = np.arange(200)
    short = [Line("", x[:9], np.full(9, y)) for y in (0, 0, 2)]
    plot = cells(draw([*(Line("", x, np.ones(200)) for _ in range(14)), *short], 9 + width, 8))
    assert set(re.findall("[A-Z]", plot)) == {*MARKS[:17]}


def test_colours_do_not_change_the_characters() -> None:
    x, y = noise(300)
    plain, colored = (draw([Line("", x, y)], 80, 12, "t", color=color) for color in (False, True))
    assert "".join(colored) != "".join(plain)
    assert [SGR.sub("", row) for row in colored] == plain


def test_ascii_and_braille_charts_agree() -> None:
    y = np.r_[np.zeros(50), np.full(50, np.nan), np.ones(50)]
    for unicode in (True, False):
        rows = cells(draw([Line("", np.arange(150), y)], 69, 7, unicode=unicode)).split("\n")
        top, bottom = rows[0], rows[-1]
        assert not top[:38].strip()
        assert top[42:].strip()
        assert bottom[:18].strip()
        assert not bottom[22:].strip()


def test_smoothing_matches_tensorboard() -> None:
    """Smoothing equals the loop in TensorBoard's line chart (`resmoothDataset`), which removes the bias towards 0."""
    _, y = noise(200)
    y[[3, 50, 51]] = np.nan
    for weight in (0.0, 0.3, 0.6, 0.99):
        expected, last, count = [], 0.0, 0
        for value in y:
            if not np.isfinite(value):
                expected.append(value)
                continue
            last = last * weight + (1 - weight) * value
            count += 1
            expected.append(last / (1 - weight**count))
        np.testing.assert_allclose(smooth(y, weight), expected, rtol=1e-9)
    np.testing.assert_allclose(smooth(np.full(50, 7.0), 0.9), 7.0)
    np.testing.assert_array_equal(smooth(y, 0.0), y)


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-3, 17), (0.0021, 0.0199), (1e6, 5e6), (-1e-9, 1e-9), (499, 501)])
@pytest.mark.parametrize("count", [1, 2, 5, 12])
def test_ticks_are_round_and_inside_the_axis(low: float, high: float, count: int) -> None:
    ticks = nice_ticks(low, high, count)
    assert len(ticks) <= count + 1
    assert ticks == sorted(ticks)
    assert all(low - 1e-9 * (high - low) <= tick <= high + 1e-9 * (high - low) for tick in ticks)
    if len(ticks) > 1:
        step = ticks[1] - ticks[0]
        mantissa = step / 10 ** np.floor(np.log10(step * 1.0000001))
        assert any(mantissa == pytest.approx(round_number) for round_number in (1, 2, 2.5, 5))
        assert all(tick / step == pytest.approx(round(tick / step), abs=1e-6) for tick in ticks)


def test_shared_x_range_aligns_charts() -> None:
    early, late = (
        draw([Line("", np.arange(a, b), np.ones(b - a))], 68, 6, x_range=(0, 100)) for a, b in ((0, 50), (50, 101))
    )
    assert early[-1] == late[-1]
    assert cells(early).rstrip("\n ")[-1] != " "
    view = find_view([Line("", np.array([1.0]), np.array([2.0]))], (0, 100))
    assert view is not None
    assert (view.left, view.right) == (0, 100)


@pytest.mark.parametrize("weight", [0.001, 0.6, 0.9, 0.99, 0.997])
@pytest.mark.parametrize("points", [0, 1, 2, 33, 5000])
def test_long_moving_average_equals_the_recursion(points: int, weight: float) -> None:
    values = np.random.default_rng(points).normal(size=points).astype(np.float32)
    expected, last = [], 0.0
    for count, value in enumerate(values.tolist(), 1):
        last = last * weight + (1 - weight) * value
        expected.append(last / (1 - weight**count))
    np.testing.assert_allclose(smooth(values, weight), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("weight", [0.001, 0.6, 0.99, 0.997])
@pytest.mark.parametrize("parts", [(0, 5), (1, 1, 1), (33, 0, 500), (5000, 7)])
def test_moving_average_can_be_continued(parts: tuple[int, ...], weight: float) -> None:
    values = np.random.default_rng(1).normal(size=sum(parts)).astype(np.float32)
    found: list[np.ndarray] = []
    for part in np.split(values, np.cumsum(parts)[:-1]):
        count = sum(map(len, found))
        last = float(np.concatenate(found)[-1]) if count else 0.0
        found.append(smooth(part, weight, count, last))
    np.testing.assert_allclose(np.concatenate(found), smooth(values, weight), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("low", "high"), [(0, 6), (-3.2, 9.7), (0.3, 1.2), (2.0, 2.01), (4.9, 5.1)])
@pytest.mark.parametrize("count", [2, 5, 12])
def test_log_axis_ticks_are_inside_and_labelled(low: float, high: float, count: int) -> None:
    ticks = log_ticks(low, high, count)
    assert ticks
    assert len(ticks) <= count + 1
    assert [at for at, _ in ticks] == sorted(at for at, _ in ticks)
    for at, label in ticks:
        assert low - 1e-9 <= at <= high + 1e-9
        number = float(re.sub("[kMGT]", "", label)) * {"k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}.get(label[-1], 1)
        assert number == pytest.approx(10**at, rel=0.01)
    if high - low > 2:
        assert all(at == round(at) for at, _ in ticks)


@pytest.mark.parametrize("clock", [True, False])
@pytest.mark.parametrize("seconds", [0.4, 7, 100, 5000, 90_000, 3e6, 4e8])
def test_time_axis_ticks_are_round(seconds: float, clock: bool) -> None:
    start = 1.79e9 if clock else 0.0
    ticks = time_ticks(start, start + seconds, 6, clock)
    assert 1 <= len(ticks) <= 8
    assert all(start <= at <= start + seconds for at, _ in ticks)
    if clock and 7 <= seconds < 86400:
        assert all(label in time.strftime("%m-%d %H:%M:%S", time.localtime(at)) for at, label in ticks)
    if not clock:
        assert ticks[0].label.strip("0s") == ""


def test_elapsed_time_shows_two_largest_units() -> None:
    expected = {0: "0", 45: "45s", 90: "1m30s", 3600: "1h", 5400: "1h30m", 3605: "1h", 190_000: "2d4h"}
    assert {seconds: span_label(seconds) for seconds in expected} == expected


def test_x_axis_labels_never_touch() -> None:
    for seed in range(50):
        rng = np.random.default_rng(seed)
        left, room = float(rng.normal() * 10 ** rng.uniform(-3, 8)), int(rng.integers(4, 150))
        view = View(left, left + 10 ** rng.uniform(-3, 8), 0, 1)
        placed = place_ticks(plain_ticks(view.left, view.right, max(1, room // 7)), view, room, 8)
        row = label_row(placed, room + 9, 8)
        assert len(row) == room + 9
        assert re.split("  +", row.strip()) == [label for _, _, label in placed] or not placed
        assert all(0 <= column < room for column, _, _ in placed)


def layers_of(*curves: np.ndarray, sparse: bool = False) -> list[Layer]:
    return [Layer(y, y, 10 + k, "xyz"[k], sparse) for k, y in enumerate(curves)]


@pytest.mark.parametrize("glyphs", [BRAILLE, ASCII])
def test_last_curve_owns_its_cells(glyphs: Glyphs) -> None:
    columns = 30 * glyphs.columns
    rising, falling = np.linspace(0, 1, columns), np.linspace(1, 0, columns)
    view = View(0, 1, 0, 1)
    alone = paint(layers_of(rising, falling)[1:], view, 30, 8, glyphs, covering=True, letters=False)
    both = paint(layers_of(rising, falling), view, 30, 8, glyphs, covering=True, letters=False)
    own = alone.styles != NOTHING
    np.testing.assert_array_equal(both.styles[own], alone.styles[own])
    np.testing.assert_array_equal(both.codes[own], alone.codes[own])
    assert (both.styles == 10).any()


def test_sparse_layer_has_half_the_dots() -> None:
    low, high = np.zeros(60), np.ones(60)
    full, half = (
        paint([Layer(low, high, 0, ":", sparse)], View(0, 1, 0, 1), 30, 8, BRAILLE, covering=True, letters=False)
        for sparse in (False, True)
    )
    dots = [sum(int(code - 0x2800).bit_count() for code in picture.codes.flat) for picture in (full, half)]
    assert dots[0] == 60 * 32 == 2 * dots[1]


@pytest.mark.parametrize("cross", [None, 0, 17, 29, 30])
def test_style_spans_cover_the_chart_and_crosshair(cross: int | None) -> None:
    rng = np.random.default_rng(0)
    curves = [np.where(rng.random(60) < 0.7, rng.random(60), np.nan) for _ in range(3)]
    picture = paint(layers_of(*curves), View(0, 1, 0, 1), 30, 8, BRAILLE, covering=True, letters=False)
    for row, runs in enumerate(spans(picture, cross)):
        assert sum(len(text) for text, _ in runs) == 30
        column = 0
        for text, style in runs:
            for character in text:
                own = picture.styles[row, column]
                if own == NOTHING and column == cross:
                    assert (character, style) == ("│", CROSS)
                elif own == NOTHING:
                    assert character == " "
                else:
                    assert (ord(character), style) == (picture.codes[row, column], own)
                column += 1
