"""Incomplete rollouts and rollouts with NaN or infinity are not used for training."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ppo_unified.config.spec import WorkCounter
from ppo_unified.engine.optimizers import NonFiniteError
from ppo_unified.engine.rollout import Rollout
from ppo_unified.runs.folder import Run, Status
from ppo_unified.runs.heartbeat import Heartbeat
from ppo_unified.runs.signals import Interrupted, StopRequest
from ppo_unified.testing import BanditAdapter
from ppo_unified.training.collection import Collector, check_rollout
from tests.toys import random_rollout


@pytest.mark.parametrize("name", ["obs", "rewards", "logprobs", "values", "next_values"])
@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_nonfinite_rollout_names_quantity_row_and_column(name: str, wrong: float) -> None:
    rollout = random_rollout()
    check_rollout(rollout)
    row, column = rollout.mask.nonzero()[7].tolist()
    x: Any = getattr(rollout, name).clone()
    x[row, column] = wrong
    with pytest.raises(NonFiniteError, match=f"{name} is not finite in row {row}, column {column}"):
        check_rollout(replace(rollout, **{name: x}))
    x = getattr(rollout, name).clone()
    x[~rollout.mask] = wrong
    check_rollout(replace(rollout, **{name: x}))  # masked entries are ignored


class StoppingBandit(BanditAdapter):
    """Updates a statistic in the policy during `collect`, then requests a stop."""

    def __init__(self, stop: StopRequest) -> None:
        super().__init__()
        self.policy.register_buffer("seen", torch.zeros(()))
        self.stop = stop

    def collect(self) -> Rollout:
        rollout = super().collect()
        self.policy.get_buffer("seen").add_(1)
        self.stop.handle(signal.SIGTERM, None)
        return rollout


def test_interrupted_rollout_leaves_policy_and_state_unchanged(tmp_path: Path) -> None:
    stop = StopRequest()
    adapter = StoppingBandit(stop)
    collector = Collector(adapter, stop, Heartbeat(Run(tmp_path), Status()), WorkCounter())
    before = adapter.state_dict()["generator"].clone()
    with pytest.raises(Interrupted):
        collector.collect()
    assert adapter.policy.get_buffer("seen") == 0
    assert torch.equal(collector.state["generator"], before)
    assert not torch.equal(adapter.state_dict()["generator"], before)
