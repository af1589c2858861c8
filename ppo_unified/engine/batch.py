"""Rows for the update: how a rollout is cut into minibatches (what one optimizer step sees) and micro-batches
(what one forward pass holds in memory)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from ppo_unified.engine.rollout import Observations, map_obs


@dataclass(frozen=True)
class Batch:
    """Rows of one update; first two axes [R, L]. `weights` is what each step counts: 0 where masked."""

    obs: Observations  # [R, L, ...]
    actions: Tensor  # [R, L, ...]
    logprobs: Tensor  # log pi_old
    values: Tensor  # V_old
    advantages: Tensor
    returns: Tensor  # what the value is regressed on
    mask: Tensor  # bool
    weights: Tensor

    def __getitem__(self, index: Tensor | slice | tuple[slice, slice]) -> Batch:
        """Rows by index tensor or slice; (rows, columns) by a pair of slices."""
        rest = (getattr(self, f.name)[index] for f in fields(self)[1:])
        return Batch(map_obs(lambda x: x[index], self.obs), *rest)

    def __len__(self) -> int:
        return len(self.mask)


def standardize(advantages: Tensor, mask: Tensor) -> Tensor:
    """Zero mean and unit variance over the valid steps; unchanged where fewer than two of them leave no variance.

    The variance has Bessel's correction, as in stable-baselines3 and TRL 0.11.4 (`masked_whiten`).
    """
    valid = advantages[mask]
    if len(valid) < 2:
        return advantages
    variance, mean = torch.var_mean(valid)
    return (advantages - mean) * torch.rsqrt(variance + 1e-8) * mask


def minibatches(batch: Batch, count: int, normalize: bool, generator: torch.Generator) -> Iterator[Batch]:
    """Deal all rows, shuffled, to `count` minibatches (no more than rows) of near-equal valid steps, none empty."""
    order = torch.randperm(len(batch), generator=generator).to(batch.mask.device)
    for rows in split_evenly(order, batch.mask.sum(1)[order], min(count, len(batch))):
        dealt = batch[rows]
        yield replace(dealt, advantages=standardize(dealt.advantages, dealt.mask)) if normalize else dealt


def split_evenly(order: Tensor, steps: Tensor, count: int) -> tuple[Tensor, ...]:
    """Cut `order` [R] into `count` consecutive groups of at least one row and near-equal sums of `steps` [R]."""
    spent = steps.cumsum(0).cpu()
    wanted = spent[-1] * torch.arange(1, count) / count
    cuts = torch.searchsorted(spent - steps.cpu() / 2, wanted)  # a row goes to the side that holds its middle
    number = torch.arange(1, count)
    cuts = torch.minimum(torch.maximum(cuts, number), len(order) - count + number)
    cuts = (cuts - number).cummax(0).values + number if count > 1 else cuts  # strictly increasing: no group is empty
    return order.tensor_split(cuts)


def microbatches(batch: Batch, columns: int) -> Iterator[Batch]:
    """Rows of like length together, at most `columns` columns at a time (a single longer row goes alone). Columns after
    a micro-batch's last valid one are cut off, which is sound because policies are causal."""
    width = batch.mask.shape[1]
    if width == 1:
        yield from (batch[start : start + columns] for start in range(0, len(batch), columns))
        return
    lengths = (batch.mask * torch.arange(1, width + 1, device=batch.mask.device)).amax(1)  # up to the last valid column
    yield from (batch[rows][:, :longest] for rows, longest in pack_rows(lengths, columns))


def pack_rows(lengths: Tensor, columns: int) -> Iterator[tuple[Tensor, int]]:
    """Row numbers in groups of like `lengths` [R] with the longest of each, rows x longest within `columns`."""
    order, start = lengths.argsort(descending=True, stable=True), 0
    while start < len(order):
        longest = int(lengths[order[start]])
        rows = order[start : start + max(1, columns // max(1, longest))]
        yield rows, longest
        start += len(rows)
