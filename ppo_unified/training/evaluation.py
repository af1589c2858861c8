"""Evaluation: when one is due, what the policy scores, and whether that solves the task."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from ppo_unified.config.registry import find_adapter, load
from ppo_unified.config.schema import RunConfig
from ppo_unified.config.spec import Report
from ppo_unified.engine.ppo import Progress
from ppo_unified.engine.rollout import Adapter
from ppo_unified.text import print_err

CONFIRMATION_EPISODES = 100  # of each of two evaluations that must both reach the threshold


class Outcome(NamedTuple):
    """What an evaluation of the greedy policy found."""

    score: float
    solved: bool
    metrics: dict[str, float]  # to be logged: the score and what the adapter reports
    responses: list[dict[str, Any]]  # texts that the adapter reports


def is_due(every_steps: int, progress: Progress, learned: int) -> bool:
    """Whether the `learned` steps of an iteration passed a multiple of `every_steps`, resumed or not, or were the
    last."""
    steps = progress.steps
    passed = bool(every_steps) and steps // every_steps > (steps - learned) // every_steps
    return passed or progress.remaining <= 0


def evaluate_run(adapter: Adapter, config: RunConfig, confirm: bool, where: str) -> Outcome:
    """Score the greedy policy; with `confirm`, a score at the threshold is confirmed by two more evaluations.

    A warning on stderr begins with `where`.
    """
    threshold, solved = config.eval.threshold, False
    score = _mean_score(adapter, config, config.eval.episodes, 1, where)
    if confirm and threshold is not None and threshold <= score < math.inf:
        scores = [_mean_score(adapter, config, CONFIRMATION_EPISODES, number, where) for number in (2, 3)]
        score, solved = float(np.mean(scores)), all(threshold <= score < math.inf for score in scores)
    spec, report = find_adapter(config.kind), Report()
    if spec.report:
        report = load(spec.report)(adapter, config.eval.episodes, config.seed + 1)
    metrics = dict(report.metrics) | dict.fromkeys(("eval/score", spec.score_tag), score)
    return Outcome(score, solved, metrics, report.responses)


def _mean_score(adapter: Adapter, config: RunConfig, episodes: int, number: int, where: str) -> float:
    """Of fresh episodes, the same for the same `number`; stderr says where one of them is not finite."""
    scores = np.array(adapter.score(episodes, config.seed + number, True), dtype=float)
    wrong = np.flatnonzero(~np.isfinite(scores))
    if wrong.size:
        first = f"the score of {wrong.size} of {len(scores)} episodes is not finite, first of episode {wrong[0]}"
        what = "it counts neither as best nor as solved; training goes on"
        print_err(f"{where}: {first} ({scores[wrong[0]]}); {what}")
    with np.errstate(invalid="ignore"):  # of inf and -inf
        return float(np.mean(scores))


def evaluate(adapter: Adapter, episodes: int, seed: int, greedy: bool) -> dict[str, Any]:
    """Mean, deviation and count of fresh scores."""
    scores = np.array(adapter.score(episodes, seed, greedy))
    return {"score": float(scores.mean()), "std": float(scores.std()), "episodes": len(scores)}
