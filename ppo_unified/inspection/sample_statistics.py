"""Means and intervals over samples, which are the independent units: the steps of one sample depend on each other."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ppo_unified.errors import UsageError
from ppo_unified.inspection.formulas import Array
from ppo_unified.runs.stored_iteration import StoredIteration

RESAMPLES = 1000
MOST_NUMBERS = 1 << 28  # numbers that a bootstrap reads; with many samples, it uses fewer resamples
FEWEST = 200  # resamples


@dataclass(frozen=True)
class Mean:
    """A mean and its standard error over samples; the error is None if there are fewer than two samples."""

    value: float
    error: float | None


@dataclass(frozen=True)
class Interval:
    """An estimate with the ends of its 95 % interval. All are None if the estimate is undefined."""

    value: float | None
    low: float | None
    high: float | None


def valid_numbers(stored: StoredIteration, *names: str) -> list[Array]:
    """Return columns at the valid steps, float64 [n] each, row by row. Raises UsageError if one has other values than
    finite numbers."""
    found = []
    for name in names:
        x = stored.columns.get(name)
        if (
            x is None
            or x.dtype.kind not in "biuf"
            or not np.isfinite(own := x[stored.columns["mask"]].astype(np.float64)).all()
        ):
            raise UsageError(
                f"{stored.where}: column {name}: expected finite numbers, got others; choose another --iteration"
            )
        found.append(own)
    return found


def sample_of_steps(stored: StoredIteration) -> tuple[Array, Array]:
    """Return the number of each valid step's sample and the step's position in it, from 0, int [n] each, row by row."""
    ends = stored.sample_ends()
    lengths = np.diff(ends, prepend=0)
    return np.repeat(np.arange(len(ends)), lengths), np.arange(int(ends[-1])) - np.repeat(ends - lengths, lengths)


def sum_by_sample(x: Array, numbers: Array, count: int) -> Array:
    """Return the sums of `x` [n] over the steps of each of `count` samples, float64."""
    return np.asarray(np.bincount(numbers, x.astype(np.float64), count))


def mean_of(sums: Array, weights: Array) -> tuple[Mean, Array]:
    """Return sum(sums) / sum(weights) over samples [S], and the influence [S] of each sample on it.

    The standard error is that of a ratio of two sums over independent samples (linearization; Cochran, Sampling
    Techniques, section 6.4). The influence of a sample is its part of the error of the mean, multiplied by S.
    """
    count, total = len(sums), float(weights.sum())
    mean = float(sums.sum()) / total
    influence = (sums - mean * weights) * (count / total)
    return Mean(mean, error_of(influence)), influence


def error_of(influence: Array) -> float | None:
    """Return the standard error of an estimate from the influence [S] of each sample."""
    count = len(influence)
    return math.sqrt(float(np.square(influence).sum()) / (count - 1) / count) if count > 1 else None


def bootstrap(sums: Array, estimate: Callable[[Array], Array], seed: int = 0) -> list[Interval]:
    """Return 95 % intervals (percentile bootstrap over samples) of functions of sums over samples.

    `sums` [S, ...] contains the sums over each sample. `estimate` maps totals [B, ...] to B estimates [B, M]; NaN means
    that an estimate is undefined.
    """
    count, rng = len(sums), np.random.default_rng(seed)
    flat = sums.reshape(count, -1)
    values = estimate(flat.sum(0).reshape(1, *sums.shape[1:]))[0]
    repeats = min(RESAMPLES, max(FEWEST, MOST_NUMBERS // max(1, flat.size)))
    totals = np.stack([np.bincount(rng.integers(0, count, count), minlength=count) @ flat for _ in range(repeats)])
    found = estimate(totals.reshape(repeats, *sums.shape[1:]))
    intervals = []
    for value, column in zip(values.tolist(), found.T, strict=True):
        valid = column[np.isfinite(column)]
        if not math.isfinite(value) or len(valid) < repeats // 2 or count < 2:
            intervals.append(Interval(value if math.isfinite(value) else None, None, None))
        else:
            intervals.append(Interval(value, *(float(end) for end in np.percentile(valid, (2.5, 97.5)))))
    return intervals


def divide(x: Array, most: int) -> tuple[list[tuple[float, float]], Array]:
    """Divide numbers [n] into at most `most` groups of neighboring values with similar sizes.

    Returns the smallest and the largest number of each group, and the group of each number, int [n]. If there are few
    different values, each is a group.
    """
    distinct = np.unique(x)
    if len(distinct) > most:
        ends = np.unique(np.quantile(x, np.arange(1, most + 1) / most, method="inverted_cdf"))
    else:
        ends = distinct
    groups = np.searchsorted(ends, x)
    parts = [x[groups == number] for number in range(len(ends))]
    return [(float(part.min()), float(part.max())) for part in parts], groups


def sums_by_group(columns: Sequence[Array], numbers: Array, groups: Array, samples: int, count: int) -> Array:
    """Return the sums of each column [n] by sample and group, float64 [samples, count, columns]."""
    place = numbers * count + groups
    sums = [np.bincount(place, x, samples * count).reshape(samples, count) for x in columns]
    return np.stack(sums, -1)
