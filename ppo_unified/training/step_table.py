"""The table of an iteration's steps: every quantity of PPO at each of them, with the policy as the updates left it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ppo_unified.engine.batch import Batch, microbatches
from ppo_unified.engine.ppo import Iteration, Learner, clip_range, make_batch
from ppo_unified.engine.rollout import Rollout
from ppo_unified.runs import samples

RESERVED = {*samples.SINGLE, "advantage_used", "column", "file", "allow_pickle"}  # the last two are numpy.savez's


class StepTable(NamedTuple):
    """Every quantity of PPO at every step of an iteration."""

    columns: dict[str, Tensor]  # [N, T] each, the engine's own quantities; 0 where masked
    metrics: dict[str, float]  # means over all valid steps
    histograms: dict[str, np.ndarray]  # raw values at all valid steps
    clip: float  # how far the ratio could fall below 1 in this iteration
    clip_high: float  # and rise above it


@torch.no_grad()
def make_step_table(learner: Learner, iteration: Iteration) -> StepTable:
    """Evaluate the policy once on the iteration that the learner has just completed.

    `clipped` counts as policy/clip_fraction does: the ratio is outside the range. Its gradient is zero only where the
    advantage that the loss saw pushes it further out (and the objective clips at all).
    """
    rollout, batch, ppo = iteration.rollout, iteration.batch, learner.ppo
    low, high = _past_clip_range(learner, int(batch.mask.sum()))
    raw = batch
    if ppo.normalize_advantages == "batch":
        raw = make_batch(rollout, ppo.model_copy(update={"normalize_advantages": "none"}))
    places = _flat_indices(rollout)
    after = torch.where(rollout.mask, rollout.logprobs, 0.0)
    for part in microbatches(replace(batch, weights=places), ppo.microbatch_columns):
        new = learner.policy.evaluate(part.obs, part.actions)
        after.view(-1)[part.weights[part.mask]] = new.logprobs[part.mask].to(after)
    log_ratio = torch.where(rollout.mask, after - rollout.logprobs, 0.0)
    ratio = log_ratio.exp()
    clipped = (ratio < 1 - low) | (ratio > 1 + high)
    columns = {
        "continues": rollout.continues,
        "logprob_old": rollout.logprobs,
        "logprob_new": after,
        "ratio": ratio,
        "clipped": clipped,
        "reward": rollout.rewards,
        "value": rollout.values,
        "next_value": rollout.next_values,
        "delta": rollout.rewards + ppo.gamma * rollout.next_values - rollout.values,
        "advantage": _scatter(raw.advantages, raw, places, rollout),
        "return": _scatter(raw.returns, raw, places, rollout),
    }
    if ppo.normalize_advantages != "minibatch":
        columns["advantage_used"] = _scatter(batch.advantages, batch, places, rollout)
    columns = {name: torch.where(rollout.mask, x, torch.zeros_like(x)) for name, x in columns.items()}
    valid = ratio[rollout.mask]
    metrics = {
        "policy/clip_fraction_after": float(clipped[rollout.mask].float().mean()),
        "policy/kl_after": float((valid - 1 - log_ratio[rollout.mask]).mean()),
    }
    histograms = {"histogram/advantages": batch.advantages[batch.mask], "histogram/ratios": valid}
    arrays = {tag: x.float().cpu().numpy() for tag, x in histograms.items()}
    return StepTable({"mask": rollout.mask} | columns, metrics, arrays, low, high)


def _past_clip_range(learner: Learner, learned: int) -> tuple[float, float]:
    """The clip range of the iteration just completed, of `learned` steps, as annealed then."""
    progress = learner.progress
    before = replace(progress, steps=progress.steps - learned, iteration=progress.iteration - 1)
    return clip_range(learner.ppo, replace(learner, progress=before).clip_scale)


def _flat_indices(rollout: Rollout) -> Tensor:
    """Where in the flattened rollout each step of its batch is, int64 [R, L]: a batch leaves out rows without steps."""
    numbers = torch.arange(rollout.mask.numel(), device=rollout.mask.device).view(rollout.mask.shape)
    return rollout.rows(numbers)[rollout.rows(rollout.mask).any(1)]


def _scatter(x: Tensor, batch: Batch, places: Tensor, rollout: Rollout) -> Tensor:
    """A batch's numbers [R, L] back in the rollout's shape [N, T]."""
    spread = torch.zeros(rollout.mask.shape, dtype=x.dtype, device=x.device)
    spread.view(-1)[places[batch.mask]] = x[batch.mask]
    return spread


def convert_to_arrays(columns: Mapping[str, Tensor], own: Mapping[str, Any], hook: str) -> dict[str, np.ndarray]:
    """Columns as arrays of the first rows that samples keep; an adapter's `own`, from its `hook`, are checked first.

    Raises ValueError where the hook gave something else than numbers or strings [N, T] under a name of its own.
    """
    mask = columns["mask"]
    checked = {}
    for name, x in own.items():
        array = x.cpu().numpy() if isinstance(x, Tensor) else np.asarray(x)
        if name in RESERVED or name in columns or not name.isidentifier():
            raise ValueError(f"{hook}: a column cannot be named {name!r}")
        if array.shape != tuple(mask.shape) or array.dtype.kind not in "biufU":
            raise ValueError(
                f"{hook}: column {name!r} is {array.dtype} {list(array.shape)}; it must be numbers or strings [N, T] = "
                f"{list(mask.shape)}"
            )
        checked[name] = array
    rows = samples.rows_to_keep(mask.cpu().numpy())
    engine = {name: x[:rows] for name, x in columns.items()}
    engine = {name: x.float() if x.is_floating_point() else x for name, x in engine.items()}
    return {name: x.cpu().numpy() for name, x in engine.items()} | {name: x[:rows] for name, x in checked.items()}
