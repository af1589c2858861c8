"""Evaluate the policy: decide when an evaluation is due, compute the score, and check whether the task is solved."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ppo_unified.config.registry import find_adapter, load
from ppo_unified.config.schema import RunConfig
from ppo_unified.config.spec import Report
from ppo_unified.engine.ppo import Progress
from ppo_unified.engine.rollout import Adapter
from ppo_unified.text import print_err

CONFIRMATION_EPISODES = 100  # number of episodes in each of the two evaluations that confirm a solved task


class Outcome(NamedTuple):
    """The result of an evaluation of the greedy policy."""

    score: float
    solved: bool
    metrics: dict[str, float]  # the score and the adapter's own metrics, for the event file
    responses: list[dict[str, Any]]  # responses to log, for example those of a language model


def is_due(every_steps: int, progress: Progress, learned: int) -> bool:
    """Return True if an evaluation is due after an iteration of `learned` steps.

    An evaluation is due after the last iteration and whenever the total step count passes a multiple of `every_steps`.
    Resuming a run does not change the steps at which evaluations are due.
    """
    steps = progress.steps
    passed = bool(every_steps) and steps // every_steps > (steps - learned) // every_steps
    return passed or progress.remaining <= 0


def evaluate_run(adapter: Adapter, config: RunConfig, confirm: bool, where: str) -> Outcome:
    """Evaluate the greedy policy. If `confirm` is true and the score reaches the threshold, run two more evaluations.

    `where` is the prefix of warnings on stderr.
    """
    threshold, solved = config.eval.threshold, False
    score = _mean_score(adapter, config, config.eval.episodes, 1, where)
    measured = [_get_measured(adapter)]
    if confirm and threshold is not None and threshold <= score < math.inf:
        scores, measured = [], []
        for number in (2, 3):
            scores.append(_mean_score(adapter, config, CONFIRMATION_EPISODES, number, where))
            measured.append(_get_measured(adapter))
        score, solved = float(np.mean(scores)), all(threshold <= score < math.inf for score in scores)
    spec, report = find_adapter(config.kind), Report()
    if spec.report:
        report = load(spec.report)(adapter, config.eval.episodes, config.seed + 1)
    metrics = _average(measured) | dict(report.metrics) | dict.fromkeys(("eval/score", spec.score_tag), score)
    return Outcome(score, solved, metrics, report.responses)


def _get_measured(adapter: Adapter) -> dict[str, float]:
    """Return the metrics of the episodes that the adapter's last call of `score` played. An adapter may have none."""
    return dict(getattr(adapter, "evaluated", {}))


def _average(tables: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the mean of each metric over the tables that contain it."""
    tags = dict.fromkeys(tag for table in tables for tag in table)
    return {tag: float(np.mean([table[tag] for table in tables if tag in table])) for tag in tags}


def _mean_score(adapter: Adapter, config: RunConfig, episodes: int, number: int, where: str) -> float:
    """Return the mean score over new episodes with seed `config.seed + number`. Warn if a score is not finite."""
    scores = np.array(adapter.score(episodes, config.seed + number, True), dtype=float)
    wrong = np.flatnonzero(~np.isfinite(scores))
    if wrong.size:
        first = f"{wrong.size} of {len(scores)} episode scores are not finite; the first is in episode {wrong[0]}"
        effect = "this evaluation counts neither as the best nor as solved; training continues"
        print_err(f"{where}: {first} ({scores[wrong[0]]}); {effect}")
    with np.errstate(invalid="ignore"):  # the mean of inf and -inf is NaN
        return float(np.mean(scores))


def evaluate(adapter: Adapter, episodes: int, seed: int, greedy: bool) -> dict[str, Any]:
    """Return the mean score over new episodes, its standard deviation and the number of episodes.

    The adapter's metrics of these episodes have names without the area, such as "success".
    "cut" is the number of episodes that the adapter ended early, and is missing if there are none.
    """
    scores = np.array(adapter.score(episodes, seed, greedy))
    cut = getattr(adapter, "cut_episodes", 0)
    result = {"score": float(scores.mean()), "std": float(scores.std()), "episodes": len(scores)}
    metrics = {tag.removeprefix("eval/"): value for tag, value in _get_measured(adapter).items()}
    return metrics | result | ({"cut": cut} if cut else {})
