"""An adapter as a run hands it to the engine: its rollouts can be given up when a stop is asked for, and what is not
finite is refused before anything is learned from it. The engine knows of neither."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ppo_unified.engine.rollout import ActorCritic, Adapter, Rollout
from ppo_unified.runs.launch import Interrupted, StopRequest
from ppo_unified.training.nonfinite import check_rollout


class Guarded:
    """See `ppo_unified.engine.rollout.Adapter`; everything but `collect` is the adapter's own.

    A rollout that is given up leaves the run where its iteration began: collecting changes nothing of the policy but
    buffers (statistics of observations, say), which are put back, and `state` is the adapter's of that moment.
    """

    def __init__(self, adapter: Adapter, stop: StopRequest) -> None:
        self.adapter, self.stop = adapter, stop
        self.state = copy.deepcopy(adapter.state_dict())  # after the last whole rollout: workers may be gone by a stop
        self.is_collecting = False
        self.rollout: Rollout | None = None  # the last whole one

    @property
    def policy(self) -> ActorCritic:
        return self.adapter.policy

    def collect(self) -> Rollout:
        """Raises Interrupted where a stop is asked for, NonFiniteError for a rollout that nothing can learn from."""
        self.rollout, self.is_collecting = None, True
        buffers = {name: buffer.clone() for name, buffer in self.policy.named_buffers()}
        try:
            with self.stop.interruptible():
                rollout = self.adapter.collect()
                state = copy.deepcopy(self.adapter.state_dict())
        except Interrupted:
            with torch.no_grad():
                for name, buffer in self.policy.named_buffers():
                    buffer.copy_(buffers[name])
            raise
        self.rollout = rollout
        check_rollout(rollout)
        self.state, self.is_collecting = state, False
        return rollout

    def extra_loss(self, generator: torch.Generator) -> tuple[Tensor, Mapping[str, float]] | None:
        return self.adapter.extra_loss(generator)

    def score(self, episodes: int, seed: int, greedy: bool) -> list[float]:
        return self.adapter.score(episodes, seed, greedy)

    def state_dict(self) -> dict[str, Any]:
        return self.adapter.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> str | None:
        return self.adapter.load_state_dict(state)

    def close(self) -> None:
        self.adapter.close()
