"""Write a run's checkpoints when they are due, and restore the run from one.

A resumed run reads its options from config.toml, which may have changed. It restores its state from the checkpoint and
not from run.json, which may already describe a later step.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ppo_unified.config.registry import find_adapter, load
from ppo_unified.config.schema import RunConfig
from ppo_unified.engine.ppo import Progress
from ppo_unified.engine.rollout import Adapter
from ppo_unified.errors import UsageError
from ppo_unified.runs.event_writer import EventWriter
from ppo_unified.runs.folder import Run, Status, check_folder
from ppo_unified.text import print_err
from ppo_unified.training import checkpoint
from ppo_unified.training.state import Evaluations, TrainingState

SLOW_UPDATE_S = 20.0  # after a longer update, a checkpoint is due, so that a stop request may interrupt the next one
SAVING_SHARE = 10  # checkpoints after slow updates take at most 1/10 of the time
OPTIONS = ("initial_lr", "lr", "betas", "eps")  # options of optimizer groups that config.toml overrides on resume
EVALUATION = ("step", "score", "best_score", "best_step", "solved_step")  # fields of Evaluations in a checkpoint


@dataclass(frozen=True)
class Contents:
    """The content of a checkpoint without the policy's weights."""

    optimizers: list[dict[str, Any]]
    progress: dict[str, Any]
    generator: Tensor
    adapter: dict[str, Any]
    elapsed_s: float
    evaluation_owed: bool
    evaluation: dict[str, Any]  # the fields in EVALUATION, and the threshold that solved_step refers to
    health: dict[str, Any]


class Checkpointer:
    """Writes a run's checkpoints. If a write fails, prints a warning and tries again after the next interval."""

    def __init__(
        self, run: Run, config: RunConfig, status: Status, state: TrainingState, events: EventWriter, resumed: bool
    ) -> None:
        self.run, self.config, self.status, self.state, self.events = run, config, status, state, events
        self.saved = self._position() if resumed else None  # position of the newest checkpoint
        self.failure = ""  # the last attempt's error, or "" if it succeeded
        self._attempted, self._save_s = time.monotonic(), 0.0  # time and duration of the last attempt

    def is_due(self, update_s: float) -> bool:
        """Return True if `checkpoint.every_s` seconds have passed, if the current step has the best score so far, or if
        the last update was slow: it took `update_s` seconds."""
        is_best = self.state.evaluations.is_best_at(self.state.learner.progress.steps)
        is_slow = update_s > max(SLOW_UPDATE_S, SAVING_SHARE * self._save_s)
        return is_best or is_slow or time.monotonic() - self._attempted >= self.config.checkpoint.every_s

    def can_repeat_iteration(self) -> bool:
        """Return True if resuming would repeat exactly the next iteration, either from the newest checkpoint or, if the
        run has none yet, from step 0."""
        first = self.saved is None and self.state.learner.progress.iteration == 0
        return first or self.saved == self._position()

    def save(self, adapter_state: dict[str, Any]) -> None:
        """Write a checkpoint unless the newest one already contains the current state. Raises FolderLostError."""
        check_folder(self.run)
        self._attempted, self.failure, position = time.monotonic(), "", self._position()
        if position == self.saved:
            return
        contents = vars(self._contents(adapter_state))
        try:
            self.events.sync()
            checkpoint.save(self.run, self.state.adapter.policy.state_dict(), contents, self._meta())
            self.saved = position
            checkpoint.prune(self.run, self.config.checkpoint.keep)
        except (OSError, checkpoint.DamagedCheckpointError) as error:
            self.failure = "" if self.saved == position else str(error)
            what = (
                "remove older checkpoints" if self.saved == position else f"write the checkpoint of step {position[0]}"
            )
            print_err(f"{self.run.checkpoints}: cannot {what} ({error}); training continues")
        self._save_s = time.monotonic() - self._attempted

    def _position(self) -> tuple[int, int]:
        """Return the current step and the step of the last evaluation, which identify a checkpoint's content."""
        return self.state.learner.progress.steps, self.state.evaluations.step

    def _contents(self, adapter_state: dict[str, Any]) -> Contents:
        learner, evaluations = self.state.learner, self.state.evaluations
        table = {name: getattr(evaluations, name) for name in EVALUATION} | {"threshold": self.config.eval.threshold}
        return Contents(
            optimizers=[optimizer.state_dict() for optimizer in learner.optimizers],
            progress=asdict(learner.progress),
            generator=learner.generator.get_state(),
            adapter=adapter_state,
            elapsed_s=self.status.elapsed_s,
            evaluation_owed=evaluations.pending,
            evaluation=table,
            health=self.state.health.state_dict(),
        )

    def _meta(self) -> checkpoint.Meta:
        progress, evaluations = self.state.learner.progress, self.state.evaluations
        score = evaluations.score if evaluations.step == progress.steps else None
        return checkpoint.Meta(
            step=progress.steps,
            iteration=progress.iteration,
            time=time.time(),
            score=score,
            best=evaluations.is_best_at(progress.steps),
            versions=self.status.versions,
        )


def restore(run: Run, config: RunConfig, status: Status, state: TrainingState, device: torch.device) -> bool:
    """Restore `status` and `state` from the newest checkpoint. Return False if the run has no checkpoint.

    Raises DamagedCheckpointError if the content has an unknown structure, and UsageError if the checkpoint does not
    match the configuration.
    """
    found = None
    if run.checkpoints.exists():
        checkpoint.remove_leftovers(run)
        found = checkpoint.load_newest(run, device)
    if found is None:
        status.step, status.iteration, status.elapsed_s = 0, 0, 0.0
        status.score = status.best_score = status.best_step = status.solved_step = None
        _record_outcome(status, {"checkpoint": None})
        return False
    status.elapsed_s, restarted = restore_state(run, config, state, found)
    _record_outcome(status, {"restored": restarted or "exact", "checkpoint": found.meta.step})
    if restarted:
        print_err(f"resumed at step {found.meta.step}, but results may differ from an uninterrupted run: {restarted}")
    return True


def restore_state(
    run: Run, config: RunConfig, state: TrainingState, found: checkpoint.LoadedCheckpoint
) -> tuple[float, str | None]:
    """Restore `state` from a loaded checkpoint. Return the elapsed seconds, and the adapter's message about parts of
    its state that it could not restore, or None.

    Raises DamagedCheckpointError if the content has an unknown structure, and UsageError if the checkpoint does not
    match the configuration.
    """
    folder = checkpoint.checkpoint_folder(run, found.meta.step)
    restore_policy(state.adapter, run, config, found.meta.step, found.policy)
    try:
        contents = checkpoint.read_table(found.trainer, Contents)
        progress = checkpoint.read_table(contents.progress, Progress)
        evaluations = _read_evaluations(contents, config)
        _restore_optimizers(state.learner.optimizers, contents.optimizers)
    except ValueError as error:
        raise checkpoint.DamagedCheckpointError(
            f"{folder}: the checkpoint is from an incompatible version ({error}); resume with the versions listed "
            f"in its {checkpoint.META}, or move the folder away to resume from the previous checkpoint"
        ) from None
    restarted = state.adapter.load_state_dict(contents.adapter)
    learner = state.learner
    learner.generator.set_state(contents.generator)
    learner.progress = _apply_options(progress, config)
    state.health.load_state_dict(contents.health)
    state.evaluations = evaluations
    return contents.elapsed_s, restarted


def _record_outcome(status: Status, outcome: dict[str, Any]) -> None:
    """Add the outcome of restoring a run to the newest entry of `resumes`, if the run was resumed."""
    if status.resumes:  # replaced as a whole, because the heartbeat's thread may read it
        status.resumes = [*status.resumes[:-1], status.resumes[-1] | outcome]


def restore_policy(adapter: Adapter, run: Run, config: RunConfig, step: int, weights: dict[str, Any]) -> None:
    """Load a checkpoint's weights into the policy.

    Raises UsageError if the environment has changed or config.toml describes a different network.
    """
    try:
        adapter.policy.load_state_dict(weights)
    except RuntimeError as error:
        hook = find_adapter(config.kind).explain_mismatch
        if why := load(hook)(adapter, weights) if hook else "":
            raise UsageError(f"{run.path}: checkpoint of step {step}: {why}") from None
        first = str(error).splitlines()[-1].strip()
        raise UsageError(
            f"{run.config}: the network options do not match the checkpoint of step {step}; undo your changes ({first})"
        ) from None


def _restore_optimizers(optimizers: Sequence[Optimizer], saved: Sequence[dict[str, Any]]) -> None:
    """Restore the optimizers' moments and step counts, but keep their current options (see OPTIONS).

    Raises ValueError if the number of optimizers or their parameter groups differ from the saved ones.
    """
    for optimizer, state in zip(optimizers, saved, strict=True):
        made = [{name: group[name] for name in OPTIONS} for group in optimizer.param_groups]
        optimizer.load_state_dict(state)
        for group, options in zip(optimizer.param_groups, made, strict=True):
            group.update(options)


def _apply_options(progress: Progress, config: RunConfig) -> Progress:
    """Set the totals in `progress` from the configuration. Also set the penalty coefficient if it is not adaptive."""
    progress.total_steps, progress.total_iterations = config.total_steps, config.total_iterations
    if not config.ppo.penalty_target:
        progress.penalty_coef = config.ppo.penalty_coef
    return progress


def _read_evaluations(contents: Contents, config: RunConfig) -> Evaluations:
    """Read the evaluation results from a checkpoint. If the threshold has changed, the run no longer counts as solved.

    Raises ValueError if a field is missing or is not a number.
    """
    table = contents.evaluation
    if missing := [name for name in (*EVALUATION, "threshold") if name not in table]:
        raise ValueError(f"evaluation: missing {', '.join(missing)}")
    if wrong := [name for name, value in table.items() if not isinstance(value, int | float | None)]:
        raise ValueError(f"evaluation.{wrong[0]}: expected a number, got {str(table[wrong[0]])[:80]!r}")
    evaluations = Evaluations(**{name: table[name] for name in EVALUATION}, pending=contents.evaluation_owed)
    if table["threshold"] != config.eval.threshold:
        evaluations.solved_step = None
    return evaluations
