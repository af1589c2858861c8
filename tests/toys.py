"""Random rollouts and small policies for tests of properties that must hold for all inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ppo_unified.config.schema import PPO, Optim
from ppo_unified.engine.ppo import Progress, backward, make_learner, train
from ppo_unified.engine.rollout import ActorCritic, Adapter, Observations, Rollout
from ppo_unified.testing import BanditPolicy


def random_rollout(
    n: int = 5,
    t: int = 12,
    row_len: int = 1,
    seed: int = 0,
    holes: float = 0.2,
    ragged: bool = False,
    dtype: torch.dtype = torch.float64,
) -> Rollout:
    """Return a random rollout; a fraction `holes` of the steps is masked, with `ragged` also the ends of rows."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=dtype)

    mask = torch.rand(n, t, generator=g) >= holes
    if ragged:
        mask &= torch.arange(t) < torch.randint(1, t + 1, (n, 1), generator=g)
    mask[0, 0] = True
    return Rollout(
        obs=normal(n, t, 2),
        actions=torch.randint(0, 2, (n, t), generator=g),
        logprobs=-normal(n, t).abs(),
        values=normal(n, t),
        rewards=normal(n, t),
        next_values=normal(n, t),
        continues=torch.rand(n, t, generator=g) > 0.2,
        mask=mask,
        row_len=row_len,
    )


def with_next_values(rollout: Rollout) -> Rollout:
    """Return the rollout with next_values = V at the next valid column if the episode continues, as in adapters."""
    next_values = rollout.next_values.clone()
    for i in range(len(rollout.mask)):
        own = rollout.mask[i].nonzero().flatten().tolist()
        for t, after in pairwise(own):
            if rollout.continues[i, t]:
                next_values[i, t] = rollout.values[i, after]
    return replace(rollout, next_values=next_values)


class MarkovPolicy(BanditPolicy):
    """A policy that reads only the current column, so rows of any length give the same outputs."""

    def logprobs_and_values(self, obs: Observations) -> tuple[Tensor, Tensor]:
        assert isinstance(obs, Tensor)
        features = torch.cat([obs, obs.square()], -1)
        return self.actor(features).log_softmax(-1), self.critic(features).squeeze(-1)


def make_policy(policy: Callable[[torch.Generator], BanditPolicy], seed: int = 0) -> BanditPolicy:
    return policy(torch.Generator().manual_seed(seed)).double()


def gradients(policy: ActorCritic) -> Tensor:
    """Return all gradients in one vector; parameters without a gradient count as zeros."""
    return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in policy.parameters()])


def weights(policy: ActorCritic) -> Tensor:
    return torch.cat([p.detach().clone().flatten() for p in policy.parameters()])


def engine_gradient(
    policy: ActorCritic, batch: Any, ppo: PPO, progress: Progress | None = None, **optim: Any
) -> Tensor:
    """Return the gradient that the engine computes for one minibatch."""
    learner = make_learner(policy, ppo, Optim(**optim))
    learner.progress = progress or learner.progress
    policy.zero_grad()
    backward(learner, batch, critic_only=False)
    return gradients(policy)


def run_engine(
    adapter: Adapter, iterations: int, ppo: PPO | None = None, optim: Optim | None = None, seed: int = 0
) -> list[dict[str, float]]:
    """Train for `iterations` iterations and return the metrics of each."""
    learner = make_learner(adapter.policy, ppo or PPO(), optim or Optim(), total_iterations=iterations, seed=seed)
    return [iteration.metrics for iteration in train(adapter, learner)]
