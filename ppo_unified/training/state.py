"""The part of a run's state that changes during training. A checkpoint contains all of it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ppo_unified.engine.ppo import Learner
from ppo_unified.engine.rollout import Adapter
from ppo_unified.training.health import Health


@dataclass
class Evaluations:
    """The results of a run's evaluations so far."""

    step: int = -1  # step of the last evaluation
    score: float | None = None  # score of the last evaluation
    best_score: float | None = None
    best_step: int | None = None
    solved_step: int | None = None
    pending: bool = False  # True if a stop interrupted the evaluation at the current step; resuming repeats it

    def add(self, step: int, score: float, solved: bool) -> None:
        """Record an evaluation. A score that is not finite never becomes the best: no later score could exceed NaN."""
        self.step, self.score, self.pending = step, score, False
        if solved or (math.isfinite(score) and (self.best_score is None or score > self.best_score)):
            self.best_score, self.best_step = score, step
        if solved:
            self.solved_step = step

    def is_best_at(self, step: int) -> bool:
        """Return True if the last evaluation was at `step` and its score is the best so far."""
        return self.step == self.best_step == step


@dataclass
class TrainingState:
    """The complete state that a run needs to continue training."""

    adapter: Adapter
    learner: Learner
    health: Health
    evaluations: Evaluations
