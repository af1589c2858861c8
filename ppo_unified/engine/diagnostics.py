"""What a run says of its own health: the critic's foresight, and invariants checked live."""

from __future__ import annotations

import torch
from torch import Tensor

from ppo_unified.engine.batch import Batch
from ppo_unified.engine.rollout import Rollout


def accumulate(totals: dict[str, Tensor], terms: dict[str, Tensor]) -> None:
    """Add `terms` to `totals` in place; keep the larger of those named *_max. All stay tensors: reading one waits
    for the device."""
    for name, x in terms.items():
        old = totals.get(name)
        totals[name] = x if old is None else torch.maximum(old, x) if name.endswith("_max") else old + x


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
