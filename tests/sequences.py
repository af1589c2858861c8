"""A toy adapter for sequences that implements all optional functions; a row of 12 columns contains two episodes."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import pytest
import torch
from pydantic import Field

from ppo_unified.config import registry
from ppo_unified.config.schema import RunConfig, Section
from ppo_unified.config.spec import AdapterSpec, Report
from ppo_unified.engine.rollout import Evaluation, Observations, Rollout
from ppo_unified.testing import BanditAdapter, BanditPolicy

ROWS, COLUMNS, HALF = 6, 12, 7  # the second episode of a row starts at column 7
EVIL = "\x1b[31m| <b>x</b>\n![i](http://a/b.png)"


class Toy(Section):
    off: float = Field(0.0, description="difference between evaluate() and collect() while learning")
    bad_column: str = Field("", description="an invalid column that `explain` returns")
    tolerance: float = Field(1e-2, description="allowed error of the first ratio")


class SequenceConfig(RunConfig):
    kind: Literal["sequences"] = "sequences"
    toy: Toy = Toy()

    @property
    def ratio_tolerance(self) -> float:
        return self.toy.tolerance


class SequencePolicy(BanditPolicy):
    off: float

    def evaluate(self, obs: Observations, actions: torch.Tensor) -> Evaluation:
        new = super().evaluate(obs, actions)
        return new._replace(logprobs=new.logprobs + (self.off if torch.is_grad_enabled() else 0.0))


class SequenceAdapter(BanditAdapter):
    def __init__(self, config: SequenceConfig) -> None:
        super().__init__(ROWS, COLUMNS, COLUMNS, config.seed)
        self.config = config
        self.policy = SequencePolicy(torch.Generator().manual_seed(config.seed))
        self.policy.off = config.toy.off

    def collect(self) -> Rollout:
        """Return two episodes in every row except the last, which has no valid step."""
        rollout = super().collect()
        mask = rollout.mask.clone()
        mask[-1] = False
        continues, next_values = torch.zeros_like(mask), torch.zeros_like(rollout.values)
        for row in range(ROWS):
            for t, after in pairwise(mask[row].nonzero().flatten().tolist()):
                continues[row, t] = t // HALF == after // HALF
                next_values[row, t] = rollout.values[row, after] * continues[row, t]
        return replace(rollout, mask=mask, continues=continues, next_values=next_values)


def build(config: SequenceConfig, device: torch.device) -> SequenceAdapter:
    return SequenceAdapter(config)


def explain(adapter: SequenceAdapter, rollout: Rollout) -> dict[str, Any]:
    words = np.array(["left", "\x1b[31m\u6e38\n"])
    columns: dict[str, Any] = {
        "text": words[rollout.actions.numpy()],
        "context": rollout.obs[..., 1].long(),  # type: ignore[index]
        "V": np.zeros(rollout.mask.shape),
    }
    wrong: dict[str, Any] = {
        "reward": np.zeros(rollout.mask.shape),
        "gamma": np.zeros(rollout.mask.shape),
        "no name": np.zeros(rollout.mask.shape),
        "flat": np.zeros(rollout.mask.numel()),
        "objects": np.full(rollout.mask.shape, None),
    }
    bad = adapter.config.toy.bad_column
    return columns | ({bad: wrong[bad]} if bad else {})


def report(adapter: SequenceAdapter, episodes: int, seed: int) -> Report:
    responses = [{"prompt": EVIL, "response": f"seed {seed}", "score": float("nan")}] * min(2, episodes)
    return Report({"eval/sampled_score": 0.25, "eval/score": -1.0}, responses)


@pytest.fixture
def sequences(monkeypatch: pytest.MonkeyPatch) -> None:
    """Register the adapter 'sequences' for the duration of a test."""
    here = "tests.sequences"
    spec = AdapterSpec(
        config=f"{here}:SequenceConfig", build=f"{here}:build", report=f"{here}:report", explain=f"{here}:explain"
    )
    monkeypatch.setitem(registry.BUILT_IN, "sequences", spec)


def make_config(**changes: Any) -> SequenceConfig:
    """Return a short configuration: 8 iterations, with samples of the first, every third and the last."""
    options: dict[str, Any] = {
        "total_steps": 0,
        "total_iterations": 8,
        "ppo": {"epochs": 2, "minibatches": 2},
        "optim": {"lr": 0.05},
        "log": {"samples_every": 3},
        "eval": {"every_steps": 0, "episodes": 5},
    }
    return SequenceConfig.model_validate(options | changes)
