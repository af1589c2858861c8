"""The path of one step's probability during an iteration."""

from __future__ import annotations

import numpy as np

from ppo_unified.inspection.formulas import Array
from ppo_unified.inspection.settings import Moment, count_epochs
from ppo_unified.runs.stored_iteration import StoredIteration


def epoch_ratios(stored: StoredIteration, row: int, columns: Array) -> Array:
    """Return the ratio of steps of a row [C] in each epoch, [E, C]; NaN if the update did not reach the step.

    The ratio of an epoch is the one that the minibatch with the step saw, just before its optimizer step.
    """
    count = count_epochs(stored)
    if not count:
        return np.empty((0, len(columns)))
    logprobs, numbers = (stored.epochs[name][:count, row, columns] for name in ("logprob", "minibatch"))
    log_ratios = logprobs.astype(np.float64) - stored.columns["logprob_old"][row, columns]
    return np.where(numbers < 0, np.nan, np.exp(np.minimum(log_ratios, 700)))


def ratio_path(stored: StoredIteration, row: int, column: int) -> dict[Moment, float]:
    """Return the ratio of a step in each epoch that reached it, and after the update."""
    ratios = epoch_ratios(stored, row, np.array([column]))[:, 0].tolist()
    path: dict[Moment, float] = {epoch: ratio for epoch, ratio in enumerate(ratios, 1) if not np.isnan(ratio)}
    return path | {"after": float(stored.columns["ratio"][row, column])}
