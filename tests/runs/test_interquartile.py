"""The interquartile mean and its interval, compared with rliable's numbers and with a hand-made enumeration."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from ppo_unified.runs.interquartile import interquartile_mean, iqm_interval


def test_interquartile_mean_cuts_a_quarter_at_each_end() -> None:
    assert interquartile_mean(np.array([9.0, -50.0, 1.0, 2.0, 3.0, 4.0, 100.0, 8.0])) == (2 + 3 + 4 + 8) / 4
    assert interquartile_mean(np.array([1.0, 2.0, 9.0])) == 4.0  # int(3 / 4) = 0 values are cut
    assert interquartile_mean(np.array([[1.0, 2, 3, 40], [4, 4, 6, 0]])).tolist() == [2.5, 4.0]


def test_interval_of_two_runs_equals_enumeration() -> None:
    """Two runs of each of two tasks have 16 resamples. The runs of a task are never replaced by those of another."""
    tasks = [[0.0, 1.0], [10.0, 14.0]]
    resampled = [
        float(interquartile_mean(np.array([*first, *second])))
        for first in itertools.product(tasks[0], repeat=2)
        for second in itertools.product(tasks[1], repeat=2)
    ]
    found = iqm_interval(tasks)
    assert found.mean == 5.5
    assert (found.low, found.high) == (min(resampled), max(resampled)) == (5.0, 7.5)
    assert iqm_interval([[3.0]]) == (3.0, 3.0, 3.0)


# rliable 1.2.0: get_interval_estimates with metrics.aggregate_iqm, reps=20000, on the scores that `make_scores` returns
RLIABLE = {
    "normal": (98.41462649, 93.64692326, 103.60300176),
    "exponential": (0.75502228, 0.46347318, 1.21777044),
    "one task": (-0.14183788, -0.94517151, 1.26923513),
}


def make_scores() -> dict[str, np.ndarray]:
    """Return scores [runs, tasks]."""
    rng = np.random.default_rng(0)
    return {
        "normal": rng.normal(100, 20, (10, 4)),
        "exponential": rng.exponential(1, (7, 3)),
        "one task": rng.normal(0, 1, (5, 1)),
    }


@pytest.mark.parametrize("name", RLIABLE)
def test_estimates_equal_those_of_rliable(name: str) -> None:
    """The means are equal; the ends of the intervals differ only by the noise of the resampling."""
    found, (mean, low, high) = iqm_interval(list(make_scores()[name].T)), RLIABLE[name]
    assert found.mean == pytest.approx(mean, rel=1e-7)
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.02 * (high - low))
