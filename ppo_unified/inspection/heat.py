"""The quantities that can color the tokens or steps of a sample, and their scales."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from ppo_unified.inspection.formulas import Array
from ppo_unified.inspection.what_if import Recomputed
from ppo_unified.runs.stored_iteration import StoredIteration

LEVELS = 4  # levels on each side of the middle


@dataclass(frozen=True)
class Heat:
    """A quantity that can color steps."""

    name: str  # of a column
    label: str
    meaning: str  # completes the sentence "blue: ..."
    scale: Literal["signed", "ratio", "range"] = "signed"  # the middle is 0, 1 or the median


HEATS: tuple[Heat, ...] = (
    Heat("advantage", "A", "better than expected; orange: worse"),
    Heat("ratio", "ratio", "more likely than before; orange: less", "ratio"),
    Heat("kl", "KL", "more likely than in the reference; orange: less"),
    Heat("value", "V", "the critic expects more; orange: less", "range"),
    Heat("reward", "r", "positive reward; orange: negative"),
    Heat("delta", "delta", "better than V predicted; orange: worse"),
    Heat("entropy", "entropy", "less certain; orange: more certain", "range"),
)


@dataclass(frozen=True)
class Scale:
    """Maps a quantity to levels from -LEVELS to LEVELS."""

    low: float
    middle: float
    high: float
    is_log: bool = False

    def levels(self, x: Array) -> Array:
        """Return the level of each number, int8 of the same shape. Numbers that are not finite have level 0."""
        ends = np.array([self.low, self.middle, self.high])
        with np.errstate(divide="ignore", invalid="ignore"):
            place, (low, middle, high) = (np.log(x), np.log(ends)) if self.is_log else (x, ends)
            share = (place - middle) / np.where(place >= middle, max(high - middle, 1e-12), max(middle - low, 1e-12))
        share = np.clip(np.where(np.isfinite(share), share, 0), -1, 1)
        return np.asarray(np.round(share * LEVELS), np.int8)


def make_scale(heat: Heat, x: Array) -> Scale:
    """Return the scale for the valid numbers of an iteration. Its ends ignore the most extreme 2 %."""
    finite = x[np.isfinite(x)].astype(np.float64)
    if not finite.size:
        return Scale(-1, 0, 1)
    if heat.scale == "range":
        low, middle, high = np.percentile(finite, (2, 50, 98))
        return Scale(float(low), float(middle), float(high))
    if heat.scale == "ratio":
        largest = float(np.exp(max(np.percentile(np.abs(np.log(np.maximum(finite, 1e-9))), 98), 1e-3)))
        return Scale(1 / largest, 1.0, largest, True)
    limit = max(float(np.percentile(np.abs(finite), 98)), float(np.abs(finite).max()) / 10, 1e-9)
    return Scale(-limit, 0.0, limit)


def quantity(stored: StoredIteration, recomputed: Recomputed, name: str) -> Array | None:
    """Return a quantity [N, T], recomputed if possible, or None if it is unknown."""
    return recomputed.columns.get(name, stored.columns.get(name))
