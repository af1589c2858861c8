"""What a trainer takes from a checkpoint besides weights and adapter: rates, totals, and what evaluations found.

Options come from config.toml, which may have changed since; what happened comes from the checkpoint, because run.json
may be ahead of it.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch.optim import Optimizer

from ppo_unified.config.schema import RunConfig
from ppo_unified.engine.ppo import Progress
from ppo_unified.errors import UsageError
from ppo_unified.runs.folder import Run, Status
from ppo_unified.training import checkpoint
from ppo_unified.training.checkpoint import Loaded
from ppo_unified.training.out_of_memory import is_out_of_memory

_UNLIKE = (LookupError, TypeError, ValueError, AttributeError, RuntimeError)  # raised by what has another structure
OPTIONS = ("initial_lr", "lr", "betas", "eps")  # of an optimizer's groups: from config.toml


@contextmanager
def taking_up(run: Run, step: int) -> Iterator[None]:
    """Inside the block a checkpoint's state is taken up; UsageError where it is not what this version would write."""
    try:
        yield
    except _UNLIKE as error:
        if is_out_of_memory(error):
            raise
        place, found = traceback.extract_tb(error.__traceback__)[-1], f"{type(error).__name__}: {error}"
        raise UsageError(
            f"{checkpoint.folder_of(run, step)} is whole, but not what this version writes: {found} ({place.filename}:"
            f"{place.lineno}); resume it with the versions in its {checkpoint.META}, or move the folder away to go on "
            "from the one before"
        ) from error


def restore_optimizers(optimizers: Sequence[Optimizer], saved: Sequence[dict[str, Any]]) -> None:
    """Moments and step counts from a checkpoint; options stay as the optimizers were made."""
    for optimizer, state in zip(optimizers, saved, strict=True):
        made = [{name: group[name] for name in OPTIONS} for group in optimizer.param_groups]
        optimizer.load_state_dict(state)
        for group, options in zip(optimizer.param_groups, made, strict=True):
            group.update(options)


def progress_of(found: Loaded, config: RunConfig) -> Progress:
    """How far the checkpoint is, on the way to config's ends; an adapted penalty coefficient is kept."""
    changed: dict[str, Any] = {"total_steps": config.total_steps, "total_iterations": config.total_iterations}
    if not config.ppo.penalty_target:
        changed["penalty_coef"] = config.ppo.penalty_coef
    return Progress(**found.trainer["progress"] | changed)


def evaluation_of(status: Status, evaluated: int, config: RunConfig) -> dict[str, Any]:
    """What a checkpoint keeps of the evaluations so far; `evaluated` is the step of the last."""
    return {
        "step": evaluated,
        "score": status.score,
        "best_score": status.best_score,
        "best_step": status.best_step,
        "solved_step": status.solved_step,
        "threshold": config.eval.threshold,
    }


def restore_status(status: Status, found: Loaded, run: Run, config: RunConfig) -> int:
    """Put into run.json's status what had happened by the checkpoint; the step of the last evaluation by then.

    Solved by another threshold is not solved.
    """
    status.elapsed_s = found.trainer["elapsed_s"]
    if status.resumes:
        status.resumes[-1]["checkpoint"] = found.meta.step
    kept = found.trainer.get("evaluation")
    if kept is None:  # the first format left this to run.json
        status.best_step, status.best_score = checkpoint.best(run) or (None, None)
        if status.solved_step is not None and status.solved_step > found.meta.step:
            status.solved_step = None
        return found.meta.step if status.score is not None else -1
    status.score, status.best_score, status.best_step = kept["score"], kept["best_score"], kept["best_step"]
    status.solved_step = kept["solved_step"] if kept["threshold"] == config.eval.threshold else None
    return int(kept["step"])


def forget(status: Status) -> None:
    """A run without a checkpoint starts at step 0, whatever run.json says was reached."""
    status.score = status.best_score = status.best_step = status.solved_step = None
    status.elapsed_s = 0.0
