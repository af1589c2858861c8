"""Repeat the update of a stored iteration: from its rollout and the checkpoint before it, without new samples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ppo_unified.config import presets
from ppo_unified.config.registry import resolve_device
from ppo_unified.config.schema import RunConfig
from ppo_unified.engine.batch import minibatches
from ppo_unified.engine.ppo import ExtraLoss, Learner, backward, make_batch, make_learner, train
from ppo_unified.engine.rollout import ActorCritic, Adapter, Rollout
from ppo_unified.errors import UsageError
from ppo_unified.runs import samples
from ppo_unified.runs.folder import Run
from ppo_unified.runs.stored_iteration import StoredIteration
from ppo_unified.training import checkpoint
from ppo_unified.training.checkpointing import restore_state
from ppo_unified.training.health import Health
from ppo_unified.training.initialization import initialize
from ppo_unified.training.session import build_adapter
from ppo_unified.training.state import Evaluations, TrainingState
from ppo_unified.training.step_table import make_step_table


@dataclass(frozen=True)
class Update:
    """The result of an update."""

    metrics: dict[str, float]  # as logged, including those after the update
    logprobs: np.ndarray  # [N, T], after the update; 0 at masked steps
    gradient: Tensor  # [P], of the policy's own parameters in the first minibatch, before clipping
    change: Tensor  # [P], of the policy's own parameters in the whole update
    has_critic: bool


@dataclass(frozen=True)
class StoredRollout:
    """Gives the engine a stored rollout instead of collecting one."""

    rollout: Rollout
    extra_loss: ExtraLoss

    def collect(self) -> Rollout:
        return self.rollout


def repeat_update(learner: Learner, rollout: Rollout, extra_loss: ExtraLoss) -> Update:
    """Perform one iteration of the engine on a stored rollout, and return the update. Changes only the learner."""
    gradient = _first_gradient(learner, rollout)
    before = _flatten(learner.policy)
    iteration = next(train(StoredRollout(rollout, extra_loss), learner))
    table = make_step_table(learner, iteration)
    return Update(
        metrics=iteration.metrics | table.metrics,
        logprobs=table.columns["logprob_new"].float().cpu().numpy(),
        gradient=gradient,
        change=_flatten(learner.policy) - before,
        has_critic=any(True for _ in learner.policy.critic_parameters()),
    )


def _first_gradient(learner: Learner, rollout: Rollout) -> Tensor:
    """Return the gradient of the first minibatch [P]. The learner's random state and weights remain unchanged."""
    ppo, random_state = learner.ppo, learner.generator.get_state()
    per_minibatch = ppo.normalize_advantages == "minibatch"
    first = next(minibatches(make_batch(rollout, ppo), ppo.minibatches, per_minibatch, learner.generator))
    backward(learner, first, learner.trains_critic_only)
    learner.generator.set_state(random_state)
    return _flatten(learner.policy, gradients=True)


def _flatten(policy: ActorCritic, gradients: bool = False) -> Tensor:
    """Return the weights, or the gradients, of all trained parameters except the critic's own, as a vector [P]."""
    critic = {id(parameter) for parameter in policy.critic_parameters()}
    own = [p for p in policy.parameters() if p.requires_grad and id(p) not in critic]
    parts = [(torch.zeros_like(p) if p.grad is None else p.grad) if gradients else p.detach() for p in own]
    return torch.cat([part.flatten().float().cpu() for part in parts])


def cosine(one: Tensor, other: Tensor) -> float | None:
    """Return the cosine of the angle between two vectors, or None if one of them is zero."""
    one, other = one.double(), other.double()
    norms = float(one.norm() * other.norm())
    return min(1.0, max(-1.0, float(one @ other) / norms)) if norms else None


def check_completeness(stored: StoredIteration) -> None:
    """Raise UsageError if a stored iteration does not contain its whole rollout."""
    if stored.actions is None or not stored.observations or "row_len" not in stored.state:
        raise UsageError(
            f"{stored.where}: the file contains no observations and actions, because an older version wrote it or "
            "because one row of them is too large"
        )
    held = int(stored.columns["mask"].sum())
    if held != stored.steps:
        raise UsageError(
            f"{stored.where}: the file contains only {held:,} of the iteration's {stored.steps:,} steps, and the "
            "update needs all of them"
        )


def restore_rollout(stored: StoredIteration, device: torch.device) -> Rollout:
    """Return the rollout of a complete stored iteration. Raises UsageError if it is invalid."""
    columns = stored.columns
    named = {name.removeprefix("obs."): torch.from_numpy(x).to(device) for name, x in stored.observations.items()}
    names = ("reward", "value", "next_value", "continues", "mask", "logprob_old")
    try:
        rewards, values, next_values, continues, mask, logprobs = (
            torch.from_numpy(columns[name]).to(device) for name in names
        )
        return Rollout(
            obs=named["obs"] if list(stored.observations) == ["obs"] else named,
            actions=torch.as_tensor(stored.actions).to(device),
            logprobs=logprobs,
            values=values,
            rewards=rewards,
            next_values=next_values,
            continues=continues,
            mask=mask,
            row_len=int(stored.state["row_len"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{stored.where}: the file contains no valid rollout ({error})") from None


def options_of(run: Run, stored: StoredIteration) -> RunConfig:
    """Return the run's options in a stored iteration. Since then, a resume may have changed some of them.

    Options that cannot change are read from config.toml, so that a sample file never names code to be imported.
    """
    names = ("ppo", "optim", "total_steps", "total_iterations", "threads")
    changes = {name: stored.options[name] for name in names if name in stored.options}
    return presets.apply_changes(presets.from_file(run.config), changes, f"{stored.where}: options")


def find_start(run: Run, stored: StoredIteration) -> Path | None:
    """Return the checkpoint before a stored iteration, or None if iteration 1 starts from the run's initial policy.

    Raises UsageError if there is no checkpoint.
    """
    found: dict[int, Path] = {}  # iteration after the checkpoint -> folder
    for _, _, folder in run.checkpoint_folders():
        try:
            found[checkpoint.read_meta(folder).iteration + 1] = folder
        except checkpoint.DamagedCheckpointError:
            continue
    if stored.iteration in found or stored.iteration == 1:
        return found.get(stored.iteration)
    usable = [number for number in samples.iterations(run) if number in found or number == 1]
    raise UsageError(
        f"{run.name} has no checkpoint from before iteration {stored.iteration}; iterations that can be repeated: "
        f"{', '.join(map(str, usable)) or 'none'}"
    )


@contextmanager
def _restore_learner(run: Run, config: RunConfig, start: Path | None) -> Iterator[tuple[Learner, Adapter]]:
    """Create the learner and the adapter as they were at a checkpoint or, without one, at the start of the run."""
    device = resolve_device(config)
    adapter = build_adapter(config.beside_training(), device)
    with closing(adapter):
        totals = config.total_steps, config.total_iterations
        learner = make_learner(adapter.policy, config.ppo, config.optim, *totals, config.seed)
        state = TrainingState(adapter, learner, Health(True), Evaluations())
        if start is not None:
            restore_state(run, config, state, _load(run, start, device))
        elif record := run.read_status().init:
            initialize(adapter, record, device)
        yield learner, adapter


def _load(run: Run, start: Path, device: torch.device) -> checkpoint.LoadedCheckpoint:
    """Load a checkpoint. Raises UsageError if the trainer of an active run has removed it in the meantime."""
    try:
        return checkpoint.load(start, device)
    except checkpoint.DamagedCheckpointError:
        if start.exists():
            raise
    raise UsageError(f"{run.name} has removed the checkpoint {start.name} meanwhile; choose a newer iteration")


def repeat_iteration(run: Run, config: RunConfig, stored: StoredIteration) -> Update:
    """Repeat a stored iteration's update with the options `config`, from the checkpoint before it.

    Raises UsageError if the file does not contain the whole rollout, if there is no checkpoint, or if the update fails,
    for example because a gradient is not finite.
    """
    check_completeness(stored)
    with _restore_learner(run, config, find_start(run, stored)) as (learner, adapter):
        rollout = restore_rollout(stored, next(adapter.policy.parameters()).device)
        try:
            return repeat_update(learner, rollout, adapter.extra_loss)
        except (RuntimeError, IndexError, FloatingPointError) as error:
            why = (str(error).splitlines() or [type(error).__name__])[0]
            raise UsageError(f"{run.name}: the update of iteration {stored.iteration} fails: {why}") from error


def find_errors(stored: StoredIteration, update: Update, names: Sequence[str]) -> dict[str, float]:
    """Return how far a repeated update differs from the logged one: the error of each metric in `names`, and the
    largest error of a log-prob after the update, as "logprob". Errors of metrics above 1 are relative."""
    mask, errors = stored.columns["mask"], dict[str, float]()
    for name in names:
        logged = stored.metrics.get(name)
        if logged is not None and name in update.metrics:
            errors[name] = abs(update.metrics[name] - logged) / max(1.0, abs(logged))
    return errors | {"logprob": float(np.abs(update.logprobs - stored.columns["logprob_new"])[mask].max())}
