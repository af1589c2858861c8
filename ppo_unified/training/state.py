"""What changes while a run trains: a checkpoint holds all of it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ppo_unified.engine.ppo import Learner
from ppo_unified.engine.rollout import Adapter
from ppo_unified.training.health import Health


@dataclass
class Evaluations:
    """What the evaluations of a run have found so far."""

    step: int = -1  # of the last one
    score: float | None = None  # of the last one
    best_score: float | None = None
    best_step: int | None = None
    solved_step: int | None = None
    owed: bool = False  # a stop interrupted the one at the current step; whoever resumes repeats it

    def add(self, step: int, score: float, solved: bool) -> None:
        """A score that is not finite is never the best: nothing could beat a NaN, and it says nothing of the policy."""
        self.step, self.score, self.owed = step, score, False
        if solved or (math.isfinite(score) and (self.best_score is None or score > self.best_score)):
            self.best_score, self.best_step = score, step
        if solved:
            self.solved_step = step

    def is_best_at(self, step: int) -> bool:
        """Whether this very step was evaluated, and is the best so far."""
        return self.step == self.best_step == step


@dataclass
class TrainingState:
    """Everything that a run needs to continue from here."""

    adapter: Adapter
    learner: Learner
    health: Health
    evaluations: Evaluations
