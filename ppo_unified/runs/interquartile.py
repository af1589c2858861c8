"""The interquartile mean over seeds, and its bootstrap interval.

Both are computed as in rliable (Agarwal et al. 2021, arXiv:2108.13264, section 4).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

CUT = 0.25  # fraction of the values that is left out at each end
LEVEL = 0.95
REPETITIONS = 10_000
_SEED = 20_210_830  # of the bootstrap; fixed, so that equal scores give equal intervals
_CHUNK = 1 << 22  # maximum number of values that are resampled at once


class IqmInterval(NamedTuple):
    """An interquartile mean and the ends of its interval. They are equal if there is only one value per task."""

    mean: float
    low: float
    high: float


def interquartile_mean(values: np.ndarray) -> np.ndarray:
    """Return the mean of the middle half of values [..., K]: the lowest and the highest int(K / 4) values do not count.

    With fewer than four values, this is their mean.
    """
    cut = int(CUT * values.shape[-1])
    middle: np.ndarray = np.sort(values, axis=-1)[..., cut : values.shape[-1] - cut].mean(axis=-1)
    return middle


def iqm_interval(scores: Sequence[Sequence[float]]) -> IqmInterval:
    """Return the interquartile mean of the scores of all runs of all tasks, and its stratified bootstrap interval.

    `scores` contains the scores of each task's runs, at least one per task. The bootstrap resamples the runs of each
    task separately, with replacement. The interval contains the middle 95 % of the resampled means (percentile method).
    """
    tasks, generator = [np.asarray(task, float) for task in scores], np.random.default_rng(_SEED)
    size = max(1, _CHUNK // sum(map(len, tasks)))
    means = []
    for start in range(0, REPETITIONS, size):
        count = min(size, REPETITIONS - start)
        drawn = [task[generator.integers(len(task), size=(count, len(task)))] for task in tasks]
        means.append(interquartile_mean(np.concatenate(drawn, axis=1)))
    ends = np.quantile(np.concatenate(means), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return IqmInterval(float(interquartile_mean(np.concatenate(tasks))), float(ends[0]), float(ends[1]))
