"""The step table contains every PPO quantity at every step of an iteration, before and after the update."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ppo_unified.engine.batch import Batch, microbatches
from ppo_unified.engine.ppo import Iteration, Learner, clip_range, make_batch
from ppo_unified.runs import samples

RESERVED = {*samples.SINGLE, "advantage_used"}  # names in sample files, besides those in a step table


class StepTable(NamedTuple):
    """All PPO quantities at every step of an iteration."""

    columns: dict[str, Tensor]  # each [N, T], with 0 at masked steps
    metrics: dict[str, float]  # means over all valid steps
    histograms: dict[str, np.ndarray]  # raw values at all valid steps
    clip: float  # the lower end of the clip range in this iteration is 1 - clip
    clip_high: float  # the upper end of the clip range in this iteration is 1 + clip_high


@torch.no_grad()
def make_step_table(learner: Learner, iteration: Iteration, logprobs: Tensor | None = None) -> StepTable:
    """Create the step table for the iteration that the learner has just completed.

    `logprobs` [N, T] are the log-probs of the rollout's actions after the update. If it is None, the policy is
    evaluated once.

    As in policy/clip_fraction, `clipped` is True if the ratio is outside the clip range. Such a step has no gradient
    only if the objective uses clipping and the advantage would move the ratio further out of the range.
    """
    rollout, batch, ppo = iteration.rollout, iteration.batch, learner.ppo
    low, high = _used_clip_range(learner, int(batch.mask.sum()))
    raw = batch
    if ppo.normalize_advantages == "batch":
        raw = make_batch(rollout, ppo.model_copy(update={"normalize_advantages": "none"}))
    after = _evaluate(learner, iteration) if logprobs is None else logprobs.to(rollout.logprobs)
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
        "advantage": scatter(raw.advantages, batch, rollout.mask),
        "return": scatter(raw.returns, batch, rollout.mask),
        "weight": scatter(batch.weights, batch, rollout.mask),
    }
    if ppo.normalize_advantages != "minibatch":
        columns["advantage_used"] = scatter(batch.advantages, batch, rollout.mask)
    columns = {name: torch.where(rollout.mask, x, torch.zeros_like(x)) for name, x in columns.items()}
    valid = ratio[rollout.mask]
    metrics = {
        "policy/clip_fraction_after": float(clipped[rollout.mask].float().mean()),
        "policy/kl_after": float((valid - 1 - log_ratio[rollout.mask]).mean()),
    }
    histograms = {"histogram/advantages": batch.advantages[batch.mask], "histogram/ratios": valid}
    arrays = {tag: x.float().cpu().numpy() for tag, x in histograms.items()}
    return StepTable({"mask": rollout.mask} | columns, metrics, arrays, low, high)


def _evaluate(learner: Learner, iteration: Iteration) -> Tensor:
    """Return the current log-prob of each action of the rollout, [N, T]."""
    logprobs = torch.zeros_like(iteration.rollout.logprobs)
    for part in microbatches(iteration.batch, learner.ppo.microbatch_columns):
        new = learner.policy.evaluate(part.obs, part.actions)
        logprobs.view(-1)[part.places[part.mask]] = new.logprobs[part.mask].to(logprobs)
    return logprobs


def _used_clip_range(learner: Learner, learned: int) -> tuple[float, float]:
    """Return the annealed clip range that was used in the last iteration, which had `learned` valid steps."""
    progress = learner.progress
    before = replace(progress, steps=progress.steps - learned, iteration=progress.iteration - 1)
    return clip_range(learner.ppo, replace(learner, progress=before).scale(learner.ppo.anneal_clip))


def scatter(x: Tensor, batch: Batch, mask: Tensor) -> Tensor:
    """Move values from the shape of a batch [R, L] to that of its rollout's `mask` [N, T]; 0 at masked steps."""
    spread = torch.zeros(mask.shape, dtype=x.dtype, device=x.device)
    spread.view(-1)[batch.places[batch.mask]] = x[batch.mask]
    return spread


def convert_to_arrays(
    columns: Mapping[str, Tensor], own: Mapping[str, Any], hook: str, rows: int
) -> dict[str, np.ndarray]:
    """Convert the first `rows` rows of each column to arrays.

    `own` contains additional columns from the adapter's function `hook`. Raises ValueError unless each of them has an
    unused name and satisfies `samples.check_column`.
    """
    checked = {}
    for name, x in own.items():
        checked[name] = x.cpu().numpy() if isinstance(x, Tensor) else np.asarray(x)
        if name in RESERVED or name in columns:
            raise ValueError(
                f"{hook}: column {name!r}: expected another name, because each sample file has its own {name!r}"
            )
        try:
            samples.check_column(name, checked[name], tuple(columns["mask"].shape))
        except ValueError as error:
            raise ValueError(f"{hook}: {error}") from None
    engine = {name: x[:rows] for name, x in columns.items()}
    engine = {name: x.float() if x.is_floating_point() else x for name, x in engine.items()}
    return {name: x.cpu().numpy() for name, x in engine.items()} | {name: x[:rows] for name, x in checked.items()}
