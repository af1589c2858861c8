"""Select one run per seed from runs with equal options, for statistics over seeds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ppo_unified.runs.folder import Status


def seed_of(status: Status, options: Mapping[str, Any]) -> int:
    """Return a run's seed from its options or, if they have none, from run.json."""
    seed = options.get("seed")
    return seed if type(seed) is int else status.seed


def one_run_per_seed(runs: Mapping[str, tuple[Status, Mapping[str, Any]]]) -> dict[int, str]:
    """Return the run that represents each seed: the newest run that has a score or, if none has, the newest run.

    `runs` contains the status and the options of each run.
    """
    by_age = sorted(runs, key=lambda run: (runs[run][0].score is not None, runs[run][0].started))
    return {seed_of(*runs[run]): run for run in by_age}  # a later run replaces an earlier one
