"""The path of one step's probability during an iteration."""

from __future__ import annotations

import math

from ppo_unified.inspection.settings import Moment, count_epochs
from ppo_unified.runs.stored_iteration import StoredIteration


def ratio_path(stored: StoredIteration, row: int, column: int) -> dict[Moment, float]:
    """Return the ratio of a step in each epoch that reached it, and after the update.

    The ratio of an epoch is the one that the minibatch with the step saw, just before its optimizer step.
    """
    path: dict[Moment, float] = {}
    old = float(stored.columns["logprob_old"][row, column])
    for epoch in range(1, count_epochs(stored) + 1):
        if stored.epochs["minibatch"][epoch - 1, row, column] >= 0:
            path[epoch] = math.exp(min(float(stored.epochs["logprob"][epoch - 1, row, column]) - old, 700.0))
    path["after"] = float(stored.columns["ratio"][row, column])
    return path
