"""Computes the quantities that health checks compare with their limits, from the history of a run's metrics."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from statistics import fmean, median

import numpy as np

START = 10  # number of first iterations, which are the baseline for later ones
WINDOW = 10  # number of latest iterations over which most checks average
LONG = 50  # number of latest iterations to store; those before the window define the usual gradient norm
SPIKES = 3  # number of spikes within the window that count as a problem
EXACT = 0.01  # a critic is accurate if its error is below this fraction of the mean value
NEAR = 0.8  # a score is near its best if it keeps at least this fraction of its largest improvement
EVALUATED = "eval/score"


@dataclass
class Track:
    """The stored history of one metric. Its size does not grow with the length of the run."""

    count: int = 0
    start: list[float] = field(default_factory=list)  # the first START values
    recent: list[float] = field(default_factory=list)  # the last LONG values
    peak: float = 0.0  # largest mean of WINDOW consecutive values so far; 0 until there are WINDOW values

    def add(self, value: float) -> None:
        self.count += 1
        if self.count <= START:
            self.start.append(value)
        self.recent = [*self.recent[1 - LONG :], value]
        if self.count >= WINDOW:
            self.peak = self.recent_mean if self.count == WINDOW else max(self.peak, self.recent_mean)

    @property
    def recent_mean(self) -> float:
        return fmean(self.recent[-WINDOW:])

    @property
    def start_mean(self) -> float:
        return fmean(self.start)


Tracks = Mapping[str, Track]
Measure = Callable[..., float | None]  # maps the tracks that a check reads to a number, or None if it does not apply


def mean(track: Track) -> float:
    return track.recent_mean


def peak(track: Track) -> float:
    return track.peak


def smallest_magnitude(track: Track) -> float:
    """Return the smallest absolute value in the window. It exceeds a limit only if every value does."""
    return min(map(abs, islice(reversed(track.recent), WINDOW)))


def largest(track: Track) -> float:
    return max(map(abs, islice(reversed(track.recent), WINDOW)))


def share_of_peak(track: Track) -> float | None:
    """Return the recent mean divided by the peak, or None if the metric is negative, like some continuous entropies."""
    return track.recent_mean / track.peak if min(track.recent) >= 0 and track.peak > 0 else None


def share_of_start(track: Track) -> float | None:
    return track.recent_mean / track.start_mean if track.start_mean > 0 else None


def log_share_of_start(track: Track) -> float | None:
    """Return the absolute base-2 logarithm of the recent mean divided by the start mean."""
    share = share_of_start(track)
    return abs(math.log2(share)) if share else None


def eos_share_of_start(track: Track) -> float | None:
    """Return the recent mean divided by the start mean, or None if few responses had an end token at the start."""
    return share_of_start(track) if track.start_mean >= 0.1 else None


def smaller_mean(track: Track) -> float:
    """Return the smaller of the start mean and the recent mean. It exceeds a limit only if both do."""
    return min(track.start_mean, track.recent_mean)


def increase(track: Track) -> float:
    return track.recent_mean - track.start_mean


def lost_gold_share(proxy: Track, *golds: Track) -> float | None:
    """Return the lost fraction of a gold score's improvement, or None unless the proxy score is near its best.

    The proxy is the trained score, and a gold score is that of a reward with weight 0. An improvement
    below 3 standard deviations of the gold score counts as 3 standard deviations. If there are several gold scores, the
    largest fraction is returned.
    """
    if not is_near_best(proxy):
        return None
    shares = []
    for gold in golds:
        noise = float(max(np.std(gold.start), np.std(gold.recent[-WINDOW:]))) + 1e-6
        shares.append((gold.peak - gold.recent_mean) / max(gold.peak - gold.start_mean, 3 * noise))
    return max(shares)


def is_near_best(score: Track) -> bool:
    """Return True if a score has improved and has kept at least the fraction NEAR of its largest improvement."""
    improvement = score.peak - score.start_mean
    return improvement > 0 and score.recent_mean >= score.start_mean + NEAR * improvement


def is_solved(tracks: Tracks, threshold: float | None) -> bool:
    """Return True if the score of the last evaluation reaches the threshold."""
    if threshold is None or EVALUATED not in tracks:
        return False
    return tracks[EVALUATED].recent[-1] >= float(np.float32(threshold))  # scores are rounded, too


def spike_ratio(track: Track) -> float | None:
    """Return the SPIKES-th largest value in the window divided by the usual value before the window."""
    before = track.recent[:-WINDOW]
    # once a task is solved, gradients are tiny, so the first ones are the better baseline
    usual = max(median(before), median(track.start)) if len(before) >= WINDOW else 0.0
    return sorted(track.recent[-WINDOW:])[-SPIKES] / usual if usual > 0 else None


def mean_explained_variance(explained: Track, loss: Track, values: Track) -> float | None:
    """Return the mean explained variance over the iterations in which the critic is not accurate.

    An accurate critic is ignored because explained variance is meaningless if all returns are equal, as in a solved
    task. Return None if the critic is accurate in at least half of the window.
    """
    recent = (track.recent[-WINDOW:] for track in (explained, loss, values))
    wrong = [
        share for share, cost, mean in zip(*recent, strict=False) if math.sqrt(2 * max(0.0, cost)) > EXACT * abs(mean)
    ]
    return fmean(wrong) if 2 * len(wrong) > WINDOW else None


def largest_explained_variance(explained: Track, loss: Track) -> float | None:
    """Return the largest absolute explained variance in the window, or None if the value loss fell or started at 0."""
    is_stuck = loss.start_mean > 1e-6 and loss.recent_mean > 0.9 * loss.start_mean
    return largest(explained) if is_stuck else None


def relative_error(error: Track, loss: Track) -> float:
    """Return the window's smallest error divided by the typical advantage, which is about sqrt(2 * value loss)."""
    return smallest_magnitude(error) / max(1.0, math.sqrt(2 * max(0.0, loss.recent_mean)))
