"""What a run says of its own health: the critic's foresight, and invariants checked live."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ppo_unified.engine.batch import Batch
from ppo_unified.engine.rollout import Rollout


class Totals(NamedTuple):
    """Loss terms and diagnostics of many steps, scalar tensors by name. They stay tensors until an epoch ends, because
    reading one waits for the device."""

    sums: dict[str, Tensor]  # over steps, each times its weight; "weight" is the sum of the weights
    maxima: dict[str, Tensor]  # over steps

    def add(self, other: Totals) -> None:
        for name, x in other.sums.items():
            self.sums[name] = self.sums[name] + x if name in self.sums else x
        for name, x in other.maxima.items():
            self.maxima[name] = torch.maximum(self.maxima[name], x) if name in self.maxima else x


def loss_metrics(totals: Totals) -> dict[str, float]:
    """An epoch's loss terms and diagnostics: weighted means over its steps, and the largest ratio."""
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
    """`norms`: of the gradient at every optimizer step, NaN where the step was skipped."""
    skipped = int((~torch.stack(norms).isfinite()).sum()) if norms else 0
    return {
        "optim/grad_norm": float(torch.stack(norms).nanmean()) if norms else 0.0,
        "optim/steps": len(norms) - skipped,
        "optim/skipped": skipped,
    }


def mean_metrics(tables: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each metric over several tables of the same metrics; empty without a table."""
    return {name: sum(x[name] for x in tables) / len(tables) for name in (tables[0] if tables else ())}


def explained_variance(batch: Batch) -> float:
    """1 - Var(target - V_old) / Var(target) over valid steps; 0 where the targets are all alike."""
    returns, values = batch.returns[batch.mask], batch.values[batch.mask]
    variance = returns.var(correction=0)
    return float(1 - (returns - values).var(correction=0) / variance) if variance > 0 else 0.0


def gae_error(advantages: Tensor, rollout: Rollout, gamma: float, lam: float) -> float:
    """The largest difference, on the first row of `advantages` [N, T], to the double sum that defines GAE."""
    valid = rollout.mask[0]
    if not valid.any():
        return 0.0
    columns = (rollout.rewards, rollout.next_values, rollout.values, advantages)
    rewards, after, values, shown = (x[0][valid].double() for x in columns)
    ends = (~rollout.continues[0][valid]).long()
    episode = ends.cumsum(0) - ends
    number = torch.arange(len(ends), device=ends.device)
    distance = number[None, :] - number[:, None]
    same = (episode[None, :] == episode[:, None]) & (distance >= 0)
    weights = torch.where(same, (gamma * lam) ** distance.clamp(min=0).double(), 0.0)
    return float((weights @ (rewards + gamma * after - values) - shown).abs().max())
