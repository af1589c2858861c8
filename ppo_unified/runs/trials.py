"""The trials of a hyperparameter sweep: how the run of a trial ended, and its value, which the sweep maximizes.

A trial is a run whose run.json contains the entry `sweep`: the sweep's `name`, the number of the `trial`, the searched
`options` and their values, the `objective`, and the `value` so far. This module needs no optional package.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any, Literal, NamedTuple

from ppo_unified.runs.folder import Run, Status
from ppo_unified.runs.signals import is_stopped_by_user, why_ended

OBJECTIVES = {  # name -> help
    "score": "the last greedy score",
    "best_score": "the best greedy score",
    "mean_score": "the mean of all greedy scores, where a solved run keeps its last score until total_steps",
}
PRUNED = "pruned"  # how the reason of a run starts that its sweep has stopped early
WARMUP = 0.2  # fraction of a run that is trained before it can be pruned


class Outcome(NamedTuple):
    """How a trial ended."""

    result: Literal["complete", "pruned", "failed"]
    value: float | None  # of a complete trial
    reason: str  # of a failed or pruned trial


def trial_value(status: Status) -> float | None:
    """Return the value of a trial's run so far, or None if it has not been evaluated or its score is not finite."""
    objective = status.sweep.get("objective")
    value = status.sweep.get("value") if objective == "mean_score" else getattr(status, str(objective), None)
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def trial_options(status: Status) -> dict[str, str]:
    """Return the searched options of a trial's run and their values, as text."""
    options = status.sweep.get("options")
    return {str(option): str(text) for option, text in options.items()} if isinstance(options, dict) else {}


def mean_score(scores: Mapping[int, float], every: int, total: int) -> float:
    """Return the mean of the scores of evaluations at steps that are about `every` steps apart.

    Each score counts for the steps until the next evaluation, and the last one for the steps until `total`.
    """
    steps = sorted(scores)
    lengths = [later - earlier for earlier, later in pairwise(steps)]
    lengths.append(max(total - steps[-1], 0) + max(every, 1))
    return sum(length * scores[step] for length, step in zip(lengths, steps, strict=True)) / sum(lengths)


def find_outcome(run: Run, status: Status) -> Outcome | None:
    """Return how a trial ended, or None if its run was interrupted and can be resumed, or is training."""
    state = run.state(status)
    if status.state == "finished":
        value = trial_value(status)
        return Outcome("complete", value, "") if value is not None else Outcome("failed", None, "no finite score")
    if status.state == "stopped" and status.reason.startswith(PRUNED):
        return Outcome("pruned", None, status.reason)
    killed = state == "crashed" and is_stopped_by_user(run, status, kill=True)
    if status.state == "failed" or killed or (status.state == "stopped" and is_stopped_by_user(run, status)):
        return Outcome("failed", None, why_ended(run, status, state))
    return None


def describe_trial(name: str, number: int, options: Mapping[str, Any], objective: str) -> dict[str, Any]:
    """Return the entry `sweep` of the run.json of a new trial."""
    return {"name": name, "trial": number, "options": dict(options), "objective": objective, "value": None}
