"""Prepares curves for the charts by computing x values, moving averages, and medians over seeds."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import takewhile
from typing import NamedTuple, TypeAlias

import numpy as np

from ppo_unified.runs.metrics import Threshold
from ppo_unified.terminal.chart import smooth

Curve: TypeAlias = tuple[np.ndarray, np.ndarray, np.ndarray]  # steps, wall times in s since the epoch, values; all [P]

AXES = ("step", "relative", "time")  # steps, seconds since the run's first value, seconds since the epoch
_PART = 1 << 14  # number of values smoothed at once, which fits into the processor's cache
GRID = 1000  # maximum number of x values at which grouped seeds are compared


class Trace(NamedTuple):
    """One run's values of one metric, steps ascending."""

    key: str  # of the run
    label: str
    color: str
    curve: Curve
    pinned: bool = False  # drawn on top
    group: str = ""  # runs of one group differ only in the seed
    repeat: bool = False  # another run of the group represents the same seed
    threshold: Threshold | None = None  # of the run's task, if the metric is the score
    letter: str = ""  # distinguishes the curve if colors do not
    foreign: bool = False  # another program wrote the values, so our health limits do not apply


class SeedStatistics(NamedTuple):
    """The values of a group of seeds at each x value of its curve."""

    keys: tuple[str, ...]  # of the runs, one per seed
    counts: np.ndarray  # [P] number of seeds that have a value
    quartiles: np.ndarray  # [3, P] of the raw values

    @property
    def partial(self) -> np.ndarray:
        """True at the points where some seeds have no value [P]."""
        return self.counts < len(self.keys)

    def after(self, start: int) -> SeedStatistics:
        """Return the statistics without the first `start` points."""
        return self._replace(counts=self.counts[start:], quartiles=self.quartiles[:, start:])


class DrawnCurve(NamedTuple):
    """A curve ready for drawing. The x values are ascending, and all arrays have the shape [P]."""

    label: str
    color: str
    pinned: bool
    x: np.ndarray
    raw: np.ndarray
    curve: np.ndarray  # the moving average, or `raw` itself without smoothing
    band: tuple[np.ndarray, np.ndarray] | None = None  # lower and upper quartile, NaN where there is only one seed
    seeds: SeedStatistics | None = None  # of a curve that combines several seeds
    letter: str = ""

    def split(self) -> tuple[np.ndarray, np.ndarray | None]:
        """Return the part of `curve` where all seeds have values, and the part where some have none, or None.

        Both contain NaN outside of their part. The second part also includes the adjacent points of the first part, so
        that the lines connect.
        """
        if self.seeds is None or not (partial := self.seeds.partial).any():
            return self.curve, None
        near = partial.copy()
        near[1:] |= partial[:-1]
        near[:-1] |= partial[1:]
        return np.where(partial, np.nan, self.curve), np.where(near, self.curve, np.nan)


def x_values(curve: Curve, axis: str) -> np.ndarray:
    """Return the x values of a curve for one of AXES, in non-descending order. Steps are returned without a copy."""
    steps, walls, _ = curve
    if axis == "step" or not len(walls):
        return steps
    ascending = np.maximum.accumulate(np.asarray(walls, np.float64))  # the clock may have been set back
    return ascending - ascending[0] if axis == "relative" else ascending


def x_ends(traces: Iterable[Trace], axis: str, log: bool) -> tuple[float, float] | None:
    """Return the smallest and largest x value of the curves. If `log`, return logarithms and ignore values <= 0."""
    ends: list[float] = []
    for trace in traces:
        if not len(trace.curve[0]):
            continue
        if not log and axis != "relative":
            x: np.ndarray = trace.curve[0 if axis == "step" else 1]
            ends += (float(x[0]), float(x[-1]))
            continue
        x = x_values(trace.curve, axis)
        above = int(np.searchsorted(x, 0.0, "right")) if log else 0
        if above < len(x):
            ends += (float(x[above]), float(x[-1]))
    if not ends:
        return None
    low, high = min(ends), max(ends)
    return (float(np.log10(low)), float(np.log10(high))) if log else (low, high)


class Averages:
    """A cache of the moving averages of one metric's curves. When a curve grows, only the new part is computed."""

    def __init__(self) -> None:
        self._cache: dict[str, _Average] = {}

    def average(self, trace: Trace, weight: float) -> np.ndarray:
        """Return `smooth` of the trace's values [P]. Arrays returned earlier do not change."""
        cached = self._cache.get(trace.key)
        values = np.asarray(trace.curve[2])
        if cached is None or not cached.is_extended_by(values, weight):
            cached = self._cache[trace.key] = _Average(weight)
        return cached.extend(values)

    def keep_only(self, traces: Sequence[Trace]) -> None:
        """Remove all curves except these from the cache."""
        keys = {trace.key for trace in traces}
        self._cache = {key: cached for key, cached in self._cache.items() if key in keys}


class _Average:
    """The moving average of the known part of one curve."""

    def __init__(self, weight: float) -> None:
        self._weight = weight
        self._values = np.empty(0, np.float32)  # [P]
        self._averages = np.empty(0)  # at least [P]
        self._count, self._last = 0, 0.0  # number of finite values, and their average

    def is_extended_by(self, values: np.ndarray, weight: float) -> bool:
        """Return True if `values` starts with exactly the known values and the weight is the same."""
        known = len(self._values)
        same = weight == self._weight and values.dtype == self._values.dtype and len(values) >= known
        return same and np.array_equal(values[:known].view(np.int32), self._values.view(np.int32))

    def extend(self, values: np.ndarray) -> np.ndarray:
        """Return the averages [P] of values that start with the known ones."""
        known, size = len(self._values), len(values)
        if size > len(self._averages):
            larger = np.empty(2 * size)
            larger[:known] = self._averages[:known]
            self._averages = larger
        for start in range(known, size, _PART):
            part = slice(start, min(start + _PART, size))
            self._averages[part] = averages = smooth(values[part], self._weight, self._count, self._last)
            there = np.flatnonzero(np.isfinite(averages))
            if len(there):
                self._count, self._last = self._count + len(there), float(averages[there[-1]])
        self._values = values
        return self._averages[:size]


def prepare_curves(
    traces: Sequence[Trace], axis: str, smoothing: float, aggregate: bool, averages: Averages | None = None
) -> list[DrawnCurve]:
    """Return the curves to draw, the first one on top. If `aggregate` is True, each group of seeds is one curve.

    A repeated run is not part of the curve of its group. `averages` is the cache of moving averages for this metric.
    """
    averages = averages or Averages()
    averages.keep_only(traces)
    groups: dict[str, list[Trace]] = {}
    for number, trace in enumerate(traces):
        if len(trace.curve[0]):
            groups.setdefault(trace.group if aggregate and trace.group else f"\0{number}", []).append(trace)
    drawn = []
    for traces_of_group in groups.values():
        members = drawn_traces(traces_of_group, aggregate)
        label = group_label([trace.label for trace in members], len(traces_of_group) - len(members))
        if len(members) > 1:
            drawn.append(_median_of_seeds(members, label, axis, smoothing))  # with the color of its first run
        else:
            drawn.append(_single_run(members[0], label, axis, smoothing, averages))
    return drawn


def drawn_traces(traces: Iterable[Trace], aggregate: bool) -> list[Trace]:
    """Return the traces that charts draw. If seeds are grouped, repeated runs are not drawn."""
    return [trace for trace in traces if not (aggregate and trace.repeat)]


def describe_repeats(repeats: int) -> str:
    """Return the number of runs that are hidden because another run has the same options and seed, as text."""
    return f"{repeats} repeat{'s' if repeats > 1 else ''} hidden"


def group_label(labels: Sequence[str], repeats: int) -> str:
    """Return the label of a group of seeds from the labels of its runs and the number of repeated runs."""
    facts = [f"{len(labels)} seeds"] if len(labels) > 1 else []
    facts += [describe_repeats(repeats)] if repeats else []
    name = (len(labels) > 1 and _common_start(labels)) or labels[0]
    return f"{name} ({', '.join(facts)})" if facts else name


def _common_start(labels: Sequence[str]) -> str:
    """Return the words with which all labels start, or ''."""
    words = zip(*(re.split("([-_. ])", label) for label in labels), strict=False)
    return "".join(word[0] for word in takewhile(lambda word: len(set(word)) == 1, words)).rstrip("-_. ")


def _single_run(trace: Trace, label: str, axis: str, smoothing: float, averages: Averages) -> DrawnCurve:
    raw = np.asarray(trace.curve[2])
    curve = averages.average(trace, smoothing) if smoothing else raw
    x = x_values(trace.curve, axis)
    return DrawnCurve(label, trace.color, trace.pinned, x, raw, curve, letter=trace.letter)


def _median_of_seeds(members: Sequence[Trace], label: str, axis: str, smoothing: float) -> DrawnCurve:
    """Return the median of a group of runs with its interquartile band. Where only one run remains, it is a plain
    curve.
    """
    xs = [x_values(trace.curve, axis) for trace in members]
    x, quartiles, count = quartiles_over(xs, [trace.curve[2] for trace in members])
    drawn = quartiles_over(xs, [smooth(trace.curve[2], smoothing) for trace in members])[1] if smoothing else quartiles
    lower, upper = np.where(count > 1, drawn[[0, 2]], np.nan)
    first = members[0]
    seeds = SeedStatistics(tuple(trace.key for trace in members), count, quartiles)
    return DrawnCurve(label, first.color, False, x, quartiles[1], drawn[1], (lower, upper), seeds, first.letter)


def quartiles_over(xs: Sequence[np.ndarray], ys: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (x values [G], quartiles [3, G], number of curves [G]). Each curve is interpolated inside its own range.

    The x values are those of the curves or, if there are more than GRID, every k-th of them. Beyond the second-longest
    curve, all values of the longest one are kept. The quartiles are NaN outside of all curves.
    """
    by_end = sorted(range(len(xs)), key=lambda k: xs[k][-1])
    second, longest = xs[by_end[-2]][-1], by_end[-1]
    rest = slice(int(np.searchsorted(xs[longest], second, "right")), None)
    alone = np.array(ys[longest][rest], np.float64)
    alone[~np.isfinite(alone)] = np.nan
    grid = np.unique(np.concatenate(xs))
    grid = grid[: np.searchsorted(grid, second, "right")]
    if len(grid) > GRID:
        grid = np.append(grid[: -1 : -(-len(grid) // GRID)], grid[-1])
    values = np.stack([np.interp(grid, x, y, left=np.nan, right=np.nan) for x, y in zip(xs, ys, strict=True)])
    values[~np.isfinite(values)] = np.nan
    values.sort(axis=0)  # NaN last
    count = np.count_nonzero(~np.isnan(values), axis=0)
    quartiles = np.empty((3, len(grid)))
    columns = np.arange(len(grid))
    for row, share in enumerate((0.25, 0.5, 0.75)):
        rank = share * np.maximum(count - 1, 0)
        below = rank.astype(np.int64)
        above = np.minimum(below + 1, np.maximum(count - 1, 0))
        low, high = values[below, columns], values[above, columns]
        quartiles[row] = low + (rank - below) * (high - low)
    counts = np.append(count, np.isfinite(alone).astype(count.dtype))
    return np.append(grid, xs[longest][rest]), np.hstack((quartiles, np.tile(alone, (3, 1)))), counts


def index_at(x: np.ndarray, at: float | None, slack: float = 0.0) -> int | None:
    """Return the index of the point nearest to the x value `at`, or of the last point if `at` is None.

    The result is None if `at` is more than `slack` outside the curve, or if the curve is empty.
    """
    if not len(x) or at is None:
        return len(x) - 1 if len(x) else None
    if not x[0] - slack <= at <= x[-1] + slack:
        return None
    index = min(len(x) - 1, int(np.searchsorted(x, at)))
    return index - 1 if index and at - x[index - 1] <= x[index] - at else index


def value_at(x: np.ndarray, y: np.ndarray, at: float | None, slack: float = 0.0) -> float | None:
    """Return the value of the point that `index_at` finds, or None."""
    index = index_at(x, at, slack)
    return None if index is None else float(y[index])


def describe_seeds(one: DrawnCurve, at: float | None, slack: float = 0.0) -> str:
    """Return the number of a group's seeds that have a value at `at`: 'n=3' if all have one, otherwise 'n=1 of 3'.

    The result is "" for the curve of one run and outside the curve.
    """
    index = None if one.seeds is None else index_at(one.x, at, slack)
    if one.seeds is None or index is None:
        return ""
    count, total = int(one.seeds.counts[index]), len(one.seeds.keys)
    return f"n={count}" if count == total else f"n={count} of {total}"
