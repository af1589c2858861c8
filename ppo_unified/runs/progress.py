"""A run's progress: the fraction of its steps or iterations that is done, and what its trainer is doing."""

from __future__ import annotations

import math
from typing import NamedTuple

from ppo_unified.runs.folder import ALIVE, PHASES, SOLVED, Status
from ppo_unified.text import clean, elide

LONGEST_WORK = 80  # columns for the name of the current work, which an adapter can choose freely


class Limit(NamedTuple):
    """The limit that a run will reach first, `total_steps` or `total_iterations`."""

    done: int  # at most `total`
    total: int
    unit: str  # "steps" or "iterations"

    @property
    def fraction(self) -> float:
        return self.done / self.total


def nearest_limit(status: Status) -> Limit | None:
    """Return the limit that a run will reach first, or None if run.json contains no limit."""
    counts = (status.step, status.total_steps, "steps"), (status.iteration, status.total_iterations, "iterations")
    limits = [Limit(min(done, total), total, unit) for done, total, unit in counts if total > 0]
    return max(limits, key=lambda limit: limit.fraction, default=None)


def steps_left(status: Status) -> float | None:
    """Return the estimated number of steps until a run reaches its limit, or None if this is unknown."""
    limit = nearest_limit(status)
    if limit is None or not limit.done:
        return None if limit is None or limit.unit == "iterations" else limit.total
    return status.step * (limit.total - limit.done) / limit.done


def fraction_done(status: Status) -> float | None:
    """Return the fraction of a run that is done, or None for a solved run, which ended before its limit, and for a run
    without a limit."""
    if status.state == "finished":
        return None if status.reason == SOLVED else 1.0
    limit = nearest_limit(status)
    return None if limit is None else limit.fraction


def format_percent(status: Status) -> str:
    """Return `fraction_done`, rounded down, such as '61%', or '-' if it is None."""
    fraction = fraction_done(status)
    return "-" if fraction is None else _percent(fraction)


def format_phase(status: Status, state: str) -> str:
    """Return what a run in the state `state` is doing and how much of it is done, such as 'update 3 of 16'.

    If the work has no name, return the phase, such as 'collecting 34%'. An evaluation does the same kinds of work as a
    rollout, so the text starts with the phase: 'evaluating: scoring'. Return "" if the trainer is not alive.
    """
    if state not in ALIVE or status.phase not in PHASES:
        return ""
    if work := elide(clean(status.work), LONGEST_WORK):
        return f"{status.phase}: {work}" if status.phase == "evaluating" else work
    if status.phase_done is None:
        return status.phase
    return f"{status.phase} {_percent(min(1.0, max(0.0, status.phase_done)))}"


def _percent(fraction: float) -> str:
    return f"{math.floor(100 * fraction + 1e-9)}%"  # the tolerance covers rounding errors: 100 * 0.29 is below 29
