"""Explain why an update produced NaN or infinity: find the quantity and the step, and save the minibatch to disk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ppo_unified.config.spec import WorkCounter
from ppo_unified.engine.batch import Batch, microbatches
from ppo_unified.engine.optimizers import NonFiniteError
from ppo_unified.engine.ppo import Learner, backward
from ppo_unified.engine.rollout import ActorCritic, Rollout
from ppo_unified.runs.folder import Run, to_json, write_atomically
from ppo_unified.training.collection import Place, find_nonfinite, name_observations


def diagnose(policy: ActorCritic, minibatch: Batch, columns: int) -> Place:
    """Find the first weight, minibatch tensor, policy output or gradient that is not finite.

    `columns` is the number of columns per micro-batch. Each parameter's `.grad` must still belong to this minibatch.
    """
    held = ("logprobs", "values", "advantages", "returns")
    batch = name_observations(minibatch.obs) | {name: getattr(minibatch, name) for name in held}
    for name, weight in policy.named_parameters():
        if not torch.isfinite(weight).all():
            return Place(f"weight {name}")
    place = find_nonfinite(batch, minibatch.mask)
    if place is not None:
        return place
    for micro in microbatches(minibatch, columns):
        new = policy.evaluate(micro.obs, micro.actions)
        ratio = (new.logprobs - micro.logprobs).exp()
        outputs = {"new logprobs": new.logprobs, "new values": new.values, "entropy": new.entropy, "ratio": ratio}
        found = find_nonfinite(outputs, micro.mask)
        if found is not None and found.row is not None:
            whole = minibatch[slice(None), slice(micro.mask.shape[1])]
            rows = _find_matching_rows(micro, found.row, whole.logprobs, whole.values, whole.mask)
            return Place(found.quantity, int(rows[0]) if len(rows) else None, found.column)
    for name, weight in policy.named_parameters():
        if weight.grad is not None and not torch.isfinite(weight.grad).all():
            return Place(f"gradient of {name}")
    return Place("loss")


def locate(rollout: Rollout, minibatch: Batch, place: Place) -> tuple[int, int] | None:
    """Return the rollout's row and column for a place in a minibatch, or None if the place has no row.

    Rows are identified by their old log-probs and values, which almost certainly differ between any two rows.
    """
    if place.row is None or place.column is None:
        return None
    columns = (rollout.rows(x) for x in (rollout.logprobs, rollout.values, rollout.mask))
    rows = _find_matching_rows(minibatch, place.row, *columns)
    if not len(rows):
        return None
    per_row = rollout.mask.shape[1] // rollout.row_len
    number = int(rows[0])
    return number // per_row, (number % per_row) * rollout.row_len + place.column


def _find_matching_rows(batch: Batch, row: int, logprobs: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """Return the indices of the rows of `logprobs`, `values` and `mask` [R, L] that equal the given row of `batch`."""
    same = (logprobs == batch.logprobs[row]) & (values == batch.values[row]) & mask | ~mask & ~batch.mask[row]
    return same.all(1).nonzero().flatten()


def dump(run: Run, iteration: int, minibatch: Batch, about: Mapping[str, Any]) -> Path:
    """Save a minibatch to `nonfinite/ITERATION.safetensors` and `about` to a JSON file next to it."""
    folder = run.path / "nonfinite"
    folder.mkdir(exist_ok=True)
    names = ("actions", "logprobs", "values", "advantages", "returns", "mask", "weights")
    tensors = name_observations(minibatch.obs) | {name: getattr(minibatch, name) for name in names}
    path = folder / f"{iteration:08d}.safetensors"
    save_file({name: x.detach().cpu().contiguous() for name, x in tensors.items()}, path)
    write_atomically(path.with_suffix(".json"), to_json(about))
    return path


def explain_nonfinite(error: NonFiniteError, run: Run, learner: Learner, rollout: Rollout | None) -> NonFiniteError:
    """Add the iteration and step to an error and, if it has a minibatch, the place and the saved file's path."""
    iteration, step = learner.progress.iteration + 1, learner.progress.steps
    where = f"in iteration {iteration}, after {step:,} steps"
    if error.minibatch is None:
        return NonFiniteError(f"{error}, {where}")
    columns = learner.ppo.microbatch_columns
    place = diagnose(learner.policy, error.minibatch, columns)
    at = locate(rollout, error.minibatch, place) if rollout is not None else None
    known: dict[str, Any] = {"iteration": iteration, "step": step, "microbatch_columns": columns} | place._asdict()
    known |= {"rollout_row": at[0] if at else None, "rollout_column": at[1] if at else None}
    again = replace(learner, observe=None, counter=WorkCounter())
    try:
        sums = backward(again, error.minibatch, learner.trains_critic_only).sums
        known["sums"] = {name: float(x) for name, x in sums.items()}
        losses = ", ".join(f"{name} {known['sums'][name]:.4g}" for name in ("policy", "value", "entropy"))
    except RuntimeError as failure:  # such as too little memory, which must not hide the original error
        losses = f"not computed, {failure}"
    try:
        kept = f"the minibatch was saved to {dump(run, iteration, error.minibatch, known)}"
    except (OSError, SafetensorError) as failure:  # a full disk must not hide the original error
        kept = f"the minibatch could not be saved ({failure})"
    what = place.quantity + (f" at row {at[0]}, column {at[1]} of the rollout" if at else "")
    return NonFiniteError(f"NaN or infinity in {what}, {where}: {error} (loss sums: {losses}); {kept}")
