"""Numbers that are not finite: which quantity, at which step, and the minibatch on disk for who wants to know why."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ppo_unified.engine.batch import Batch, microbatches
from ppo_unified.engine.optimizers import NonFiniteError
from ppo_unified.engine.rollout import ActorCritic, Observations, Rollout
from ppo_unified.runs.atomic import write_atomically
from ppo_unified.runs.folder import Run, to_json

Named = Iterator[tuple[str, Tensor]]


class Place(NamedTuple):
    """A quantity that is not finite, and its first place; None where it has none, as a gradient."""

    quantity: str
    row: int | None = None
    column: int | None = None


def observations(obs: Observations) -> Named:
    if isinstance(obs, Tensor):
        yield "obs", obs
    else:
        yield from ((f"obs.{key}", x) for key, x in obs.items())


def first_place(quantities: Named, mask: Tensor) -> Place | None:
    """The first of the quantities, each [R, L, ...], that is not finite where `mask` [R, L] is True."""
    for name, x in quantities:
        if x.is_floating_point():
            bad = ~torch.isfinite(x).flatten(2).all(2) if x.ndim > 2 else ~torch.isfinite(x)
            if (bad & mask).any():  # the one read of the device that a healthy quantity costs
                row, column = (bad & mask).nonzero()[0].tolist()
                return Place(name, row, column)
    return None


def check_rollout(rollout: Rollout) -> None:
    """Raises NonFiniteError naming quantity, row and column; nothing was learned from the rollout yet."""
    names = ("rewards", "logprobs", "values", "next_values")
    total = sum((torch.where(rollout.mask, getattr(rollout, name), 0.0).sum() for name in names), torch.zeros(()))
    healthy = all(bool(torch.isfinite(x).all()) for _, x in observations(rollout.obs) if x.is_floating_point())
    if healthy and torch.isfinite(total):
        return
    place = first_place(_of_rollout(rollout), rollout.mask)
    if place is not None:
        raise NonFiniteError(f"the rollout's {place.quantity} is not finite in row {place.row}, column {place.column}")


def _of_rollout(rollout: Rollout) -> Named:
    yield from observations(rollout.obs)
    for name in ("rewards", "logprobs", "values", "next_values"):
        yield name, getattr(rollout, name)


def diagnose(policy: ActorCritic, minibatch: Batch, columns: int) -> Place:
    """What is not finite: something the minibatch holds, else what the policy says of it, else a gradient.

    `columns`: of a micro-batch. The gradients must still be those of the minibatch.
    """
    held = ("logprobs", "values", "advantages", "returns")
    batch: dict[str, Tensor] = {name: getattr(minibatch, name) for name in held}
    for name, weight in policy.named_parameters():
        if not torch.isfinite(weight).all():
            return Place(f"weight {name}")
    place = first_place(iter([*observations(minibatch.obs), *batch.items()]), minibatch.mask)
    if place is not None:
        return place
    for micro in microbatches(minibatch, columns):
        new = policy.evaluate(micro.obs, micro.actions)
        ratio = (new.logprobs - micro.logprobs).exp()
        said = {"new logprobs": new.logprobs, "new values": new.values, "entropy": new.entropy, "ratio": ratio}
        found = first_place(iter(said.items()), micro.mask)
        if found is not None and found.row is not None:
            whole = minibatch[slice(None), slice(micro.mask.shape[1])]
            rows = _rows_like(micro, found.row, whole.logprobs, whole.values, whole.mask)
            return Place(found.quantity, int(rows[0]) if len(rows) else None, found.column)
    for name, weight in policy.named_parameters():
        if weight.grad is not None and not torch.isfinite(weight.grad).all():
            return Place(f"gradient of {name}")
    return Place("loss")


def locate(rollout: Rollout, minibatch: Batch, place: Place) -> tuple[int, int] | None:
    """Row and column of the rollout that a place of a minibatch is; None where the place has no row.

    Rows are known again by their old log-probs and values, which no two share but by chance.
    """
    if place.row is None or place.column is None:
        return None
    columns = (rollout.rows(x) for x in (rollout.logprobs, rollout.values, rollout.mask))
    rows = _rows_like(minibatch, place.row, *columns)
    if not len(rows):
        return None
    per_row = rollout.mask.shape[1] // rollout.row_len
    number = int(rows[0])
    return number // per_row, (number % per_row) * rollout.row_len + place.column


def _rows_like(batch: Batch, row: int, logprobs: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """Numbers of the rows [R, L] that hold what a row of `batch` does."""
    same = (logprobs == batch.logprobs[row]) & (values == batch.values[row]) & mask | ~mask & ~batch.mask[row]
    return same.all(1).nonzero().flatten()


def dump(run: Run, iteration: int, minibatch: Batch, about: Mapping[str, Any]) -> Path:
    """Keep a minibatch as `nonfinite/ITERATION.safetensors`, and what is known of it as JSON beside it."""
    folder = run.path / "nonfinite"
    folder.mkdir(exist_ok=True)
    names = ("actions", "logprobs", "values", "advantages", "returns", "mask", "weights")
    tensors = dict(observations(minibatch.obs)) | {name: getattr(minibatch, name) for name in names}
    path = folder / f"{iteration:08d}.safetensors"
    save_file({name: x.detach().cpu().contiguous() for name, x in tensors.items()}, path)
    write_atomically(path.with_suffix(".json"), to_json(about))
    return path


def explained(
    error: NonFiniteError, run: Run, policy: ActorCritic, rollout: Rollout | None, about: dict[str, Any]
) -> NonFiniteError:
    """`error` with iteration and step, and for a minibatch the place and the file that it is kept in.

    `about`: iteration, step and microbatch_columns of the run.
    """
    where = f"in iteration {about['iteration']}, after {about['step']:,} steps"
    if error.minibatch is None:
        return NonFiniteError(f"{error}, {where}")
    place = diagnose(policy, error.minibatch, about["microbatch_columns"])
    at = locate(rollout, error.minibatch, place) if rollout is not None else None
    known = about | place._asdict() | {"rollout_row": at[0] if at else None, "rollout_column": at[1] if at else None}
    known["sums"] = {name: float(x) for name, x in error.sums.items()}
    try:
        kept = f"the minibatch is in {dump(run, about['iteration'], error.minibatch, known)}"
    except (OSError, SafetensorError) as failure:  # a full disk must not hide what happened
        kept = f"the minibatch could not be kept ({failure})"
    what = place.quantity + (f" of row {at[0]}, column {at[1]} of the rollout" if at else "")
    return NonFiniteError(f"{what} is not finite {where}: {error}; {kept}")
