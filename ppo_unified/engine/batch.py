"""The update batch, its minibatches (one per optimizer step) and micro-batches (one per forward pass)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor

from ppo_unified.engine.rollout import Observations, map_obs


@dataclass(frozen=True)
class Batch:
    """The training data of one update; the first two axes of every tensor are [R, L]."""

    obs: Observations  # [R, L, ...]
    actions: Tensor  # [R, L, ...]
    logprobs: Tensor  # log pi_old
    values: Tensor  # V_old
    advantages: Tensor
    returns: Tensor  # regression targets of the critic
    mask: Tensor  # bool: True = valid step
    weights: Tensor  # weight of each step in the loss; 0 where masked
    places: Tensor  # int64: index of each step in the flattened rollout [N * T]

    def __getitem__(self, index: Tensor | slice | tuple[slice, slice]) -> Batch:
        """Select rows with a tensor of row numbers or a slice; a pair of slices selects rows and columns."""

        def select(x: Tensor) -> Tensor:
            if not isinstance(index, Tensor):
                return x[index]
            return x.squeeze(1).index_select(0, index).view(len(index), *x.shape[1:])  # faster than x[index]

        return Batch(map_obs(select, self.obs), *(select(getattr(self, f.name)) for f in fields(self)[1:]))

    def __len__(self) -> int:
        return len(self.mask)

    @cached_property
    def normalized(self) -> Batch:
        """This batch with standardized advantages."""
        return replace(self, advantages=standardize(self.advantages, self.mask))


def standardize(advantages: Tensor, mask: Tensor) -> Tensor:
    """Return advantages with zero mean and unit variance over the valid steps, and 0 at masked steps.

    If there are fewer than two valid steps, the advantages are returned unchanged. The variance uses Bessel's
    correction, as in stable-baselines3 and TRL 0.11.4 (`masked_whiten`)."""
    valid = advantages.flatten() if mask.all() else advantages[mask]  # indexing takes longer than the check
    if len(valid) < 2:
        return advantages
    variance, mean = torch.var_mean(valid)
    return (advantages - mean) * torch.rsqrt(variance + 1e-8) * mask


def minibatches(batch: Batch, count: int, normalize: bool, generator: torch.Generator) -> Iterator[Batch]:
    """Shuffle the rows and split them into `count` minibatches with nearly equal numbers of valid steps. If there are
    fewer than `count` rows, each row becomes its own minibatch. A single minibatch needs no shuffling."""
    parts, count = [batch], min(count, len(batch))
    if count > 1:
        batch = batch[torch.randperm(len(batch), generator=generator).to(batch.mask.device)]
        ends = [(2 * len(batch) * n + count - 1) // (2 * count) for n in range(1, count + 1)]  # for rows of one step
        ends = split_evenly(batch.mask.sum(1), count) if batch.mask.shape[1] > 1 else ends
        parts = [batch[i:j] for i, j in pairwise([0, *ends])]
    yield from (part.normalized if normalize else part for part in parts)


def split_evenly(steps: Tensor, count: int) -> list[int]:
    """Return the ends of `count` consecutive, non-empty groups of rows with nearly equal sums of `steps` [R]."""
    ends, number = steps.cumsum(0).cpu(), torch.arange(1, count)
    cuts = torch.searchsorted(ends - steps.cpu() / 2, ends[-1] * number / count)  # a row's middle decides its group
    spare = (cuts - number).clamp(0, len(steps) - count).cummax(0).values  # never decreases, so no group is empty
    return [*map(int, number + spare), len(steps)]


def microbatches(batch: Batch, columns: int) -> Iterator[Batch]:
    """Divide the rows into micro-batches as `pack_rows` does. Columns after the last valid one of a micro-batch are
    dropped. Policies are causal, so this changes no output at a valid column."""
    width = batch.mask.shape[1]
    if width == 1:
        # larger micro-batches do not fit into the CPU's cache
        columns = min(columns, 1 << 11) if batch.mask.is_cpu else columns
        yield from [batch] if len(batch) <= columns else (batch[i : i + columns] for i in range(0, len(batch), columns))
        return
    lengths = (batch.mask * torch.arange(1, width + 1, device=batch.mask.device)).amax(1)  # up to the last valid column
    yield from (batch[rows][:, :longest] for rows, longest in pack_rows(lengths, columns))


def pack_rows(lengths: Tensor, columns: int) -> Iterator[tuple[Tensor, int]]:
    """Group row indices by similar `lengths` [R], and yield each group with its longest length, longest rows first.

    In each group, the number of rows times the longest length is at most `columns`, unless the group has only one row.
    The sum of these products, plus a fixed cost of each group, is as small as possible."""
    widths, order = lengths.clamp(min=1).sort(stable=True)
    kinds = [*{width: n for n, width in enumerate(widths.tolist(), start=1)}.items()]  # each width, and where it ends
    fixed = max(128, columns // 64)  # overhead of a pass, in columns; larger on fast GPUs, which have a higher limit
    best = {0: (0, 0)}  # for the n shortest rows: the lowest cost, and the start of their last group
    for start in (n for n in range(len(order)) if n in best):
        kinds, last = [kind for kind in kinds if kind[1] > start], start
        for width, end in kinds:  # in a best division, each group is full or contains all rows of its largest width
            if (stop := min(end, start + max(1, columns // width))) <= last:
                break
            cost, last = (best[start][0] + width * (stop - start) + fixed, start), stop
            best[stop] = min(best.get(stop, cost), cost)
    while len(order):
        start = best[len(order)][1]
        yield order[start:], int(widths[len(order) - 1])
        order = order[:start]
