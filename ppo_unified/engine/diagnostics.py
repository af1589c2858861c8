"""Metrics of an update: loss terms, gradient norms, explained variance, and a check of GAE against its definition."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ppo_unified.engine.batch import Batch
from ppo_unified.engine.rollout import Rollout


class Totals(NamedTuple):
    """Loss terms and diagnostics summed over steps. They remain tensors, as float() would wait for the device."""

    sums: dict[str, Tensor]  # weighted sums over steps; "weight" is the sum of the weights
    maxima: dict[str, Tensor]  # maxima over steps

    def add(self, other: Totals) -> None:
        for name, x in other.sums.items():
            self.sums[name] = self.sums[name] + x if name in self.sums else x
        for name, x in other.maxima.items():
            self.maxima[name] = torch.maximum(self.maxima[name], x) if name in self.maxima else x


def loss_metrics(totals: Totals) -> dict[str, float]:
    """Return an epoch's loss terms and diagnostics as weighted means over its steps, and the largest ratio."""
    means = {name: float(x / totals.sums["weight"]) for name, x in totals.sums.items()}
    return {
        "loss/policy": means["policy"],
        "loss/value": means["value"],
        "loss/entropy": -means["entropy"],
        "policy/entropy": means["entropy"],
        "policy/kl": means["kl"],
        "policy/clip_fraction": means["clip_fraction"],
        "policy/ratio_max": float(totals.maxima["ratio"]),
    }


def step_metrics(norms: list[Tensor]) -> dict[str, float]:
    """Return the mean gradient norm and the numbers of completed and skipped steps. A skipped step's norm is NaN."""
    skipped = int((~torch.stack(norms).isfinite()).sum()) if norms else 0
    return {
        "optim/grad_norm": float(torch.stack(norms).nanmean()) if norms else 0.0,
        "optim/steps": len(norms) - skipped,
        "optim/skipped": skipped,
    }


def mean_metrics(tables: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the mean of each metric over `tables`, which must all have the same keys, or {} if there are no tables."""
    return {name: sum(x[name] for x in tables) / len(tables) for name in (tables[0] if tables else ())}


def explained_variance(batch: Batch) -> float:
    """Return 1 - Var(target - V_old) / Var(target) over the valid steps, or 0 if all targets are equal."""
    returns, values = batch.returns[batch.mask], batch.values[batch.mask]
    variance = returns.var(correction=0)
    return float(1 - (returns - values).var(correction=0) / variance) if variance > 0 else 0.0


def gae_error(advantages: Tensor, rollout: Rollout, gamma: float, lam: float) -> float:
    """Return the largest difference in row 0 between `advantages` [N, T] and GAE computed from its definition."""
    valid = rollout.mask[0]
    if not valid.any():
        return 0.0
    columns = (rollout.rewards, rollout.next_values, rollout.values, advantages)
    rewards, next_values, values, computed = (x[0][valid].double() for x in columns)
    ends = (~rollout.continues[0][valid]).long()
    episode = ends.cumsum(0) - ends
    number = torch.arange(len(ends), device=ends.device)
    distance = number[None, :] - number[:, None]
    same = (episode[None, :] == episode[:, None]) & (distance >= 0)
    weights = torch.where(same, (gamma * lam) ** distance.clamp(min=0).double(), 0.0)
    return float((weights @ (rewards + gamma * next_values - values) - computed).abs().max())
