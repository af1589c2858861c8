"""Train a run in its folder, or load a trained run's policy."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from ppo_unified.config.estimate import Estimate
from ppo_unified.config.registry import find_adapter, load, resolve_device
from ppo_unified.config.schema import RunConfig
from ppo_unified.config.spec import WorkCounter
from ppo_unified.engine.ppo import make_learner
from ppo_unified.engine.rollout import Adapter
from ppo_unified.errors import ForeignCodeError, StartError, UsageError
from ppo_unified.runs import preparation
from ppo_unified.runs.folder import Run, Status
from ppo_unified.runs.heartbeat import Heartbeat
from ppo_unified.runs.signals import Interrupted, StopRequest
from ppo_unified.runs.source import find_reference
from ppo_unified.text import print_err
from ppo_unified.training import checkpoint
from ppo_unified.training.checkpointing import Checkpointer, restore, restore_policy
from ppo_unified.training.collection import Collector
from ppo_unified.training.estimation import estimate, estimate_new_run
from ppo_unified.training.health import Health
from ppo_unified.training.initialization import check_fit, initialize, open_source
from ppo_unified.training.out_of_memory import OutOfMemory, explain_out_of_memory, is_out_of_memory
from ppo_unified.training.reporting import Reporter
from ppo_unified.training.state import Evaluations, TrainingState
from ppo_unified.training.trainer import Listener, Trainer

ESTIMATING = "estimating memory and time"


@dataclass(frozen=True)
class Result:
    """The result of a run."""

    score: float | None
    """mean score of the last evaluation, which uses greedy actions; None if the run has not been evaluated"""
    best_score: float | None
    """best score of all evaluations; the checkpoint with this score is the run's best; None if no score was finite"""
    solved_step: int | None
    """step at which the task was solved for the first time, in environment steps or tokens; None if it was not"""
    state: str
    """'finished' or 'stopped'; a run that fails raises its error instead"""
    reason: str
    """why the run ended, such as 'solved', 'total_steps reached' or 'stopped by Ctrl-C'"""
    path: Path
    """the run folder"""


def run(
    config: RunConfig,
    runs: str | Path = "runs",
    name: str = "",
    init: str | Path = "",
    on_iteration: Callable[[int, dict[str, float]], object] | None = None,
) -> Result:
    """Train `config` in a new run folder under `runs` and return the result. Ctrl-C saves a checkpoint and stops.

    `init` is a run, or the folder of a checkpoint: training starts with its policy instead of random weights. If `name`
    is empty, the folder is named after the target, the options whose values differ from the target's, and the seed.

    `on_iteration` is called after each iteration with the number of steps so far (environment steps or tokens) and the
    iteration's metrics. If it returns True, the run saves a checkpoint and stops. Its errors end the run.

    Raises UsageError for an invalid configuration. Errors during training are recorded in run.json and raised.
    """
    source = open_source(find_reference(str(init), Path(runs))) if init else None
    default = preparation.default_name(config, source.run if source else "")
    config, note = preparation.complete(config)
    if source:
        check_fit(source, config)
    record = source.record() if source else None
    prepared = preparation.prepare(config, Path(runs), name, init=record, default=default)
    stop = StopRequest()

    def listen(status: Status, metrics: dict[str, float]) -> None:
        is_iteration = "time/update_s" in metrics  # otherwise, an evaluation between iterations
        if on_iteration is not None and is_iteration and on_iteration(status.step, metrics) is True:
            stop.cause = "stopped by on_iteration"

    main = threading.current_thread() is threading.main_thread()
    with stop.handle_signals() if main else nullcontext():
        status = train_in(prepared, config, stop, listen, note=note)
    return Result(status.score, status.best_score, status.solved_step, status.state, status.reason, prepared.path)


def train_in(
    run: Run,
    config: RunConfig,
    stop: StopRequest,
    listener: Listener | None = None,
    undo: Callable[[], object] | None = None,
    heartbeat: Heartbeat | None = None,
    note: str = "",
) -> Status:
    """Train in a run folder that this process has locked. Continue from the newest checkpoint if there is one.

    If there is none and run.json has the entry `init`, start with the policy of the checkpoint that it names.
    When this function returns or raises, run.json and log.txt contain the reason why the run ended. Raises StartError
    if training cannot start. In that case, `undo` is called while the folder is still locked. Otherwise, the `note` is
    printed before training.
    """
    heartbeat = heartbeat or Heartbeat(run, run.read_status())
    status = heartbeat.status
    stop.show_in(run)
    heartbeat.stop_request = stop
    try:
        with heartbeat:
            trainer = _make_trainer(config, stop, heartbeat, listener or (lambda status, metrics: None))
            if note:
                print_err(note)
            try:
                trainer.train()
            finally:
                trainer.close()
    except Interrupted:  # the stop came during startup, so there is nothing to save
        status.state, status.reason = "stopped", f"{stop.reason} before training began"
        run.write_status(status)
    except BaseException as error:
        kind = "" if isinstance(error, UsageError | ForeignCodeError) else f"{type(error).__name__}: "
        status.state, status.reason, status.traceback = "failed", f"{kind}{error}", traceback.format_exc()
        with suppress(OSError):  # a write error here must not hide the error that ended the run
            if run.holds_lock():
                run.write_status(status)
                with open(run.log, "a", encoding="utf-8") as log:
                    log.write(status.traceback)
        if undo is not None and isinstance(error, StartError):
            with suppress(OSError):
                undo()
        raise
    finally:
        run.release()
    return status


def _make_trainer(config: RunConfig, stop: StopRequest, heartbeat: Heartbeat, listener: Listener) -> Trainer:
    """Create the trainer and its models. Loading them may be slow, so a stop request interrupts it.

    Raises StartError, OutOfMemory or Interrupted.
    """
    try:
        with stop.interruptible(), _recognize_out_of_memory("creating the models", config):
            return _assemble(config, stop, heartbeat, listener)
    except (UsageError, ForeignCodeError) as error:
        raise StartError(*error.args) from error


@contextmanager
def _recognize_out_of_memory(doing: str, config: RunConfig) -> Iterator[None]:
    """Raise OutOfMemory instead of the errors that mean that memory has run out. `doing` is a key of OPTIONS."""
    try:
        yield
    except (UsageError, ForeignCodeError, MemoryError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise explain_out_of_memory(error, doing, config) from error
        raise


def _assemble(config: RunConfig, stop: StopRequest, heartbeat: Heartbeat, listener: Listener) -> Trainer:
    run, status = heartbeat.run, heartbeat.status
    device, work = resolve_device(config), WorkCounter()
    heartbeat.enter("starting", work)
    work.begin(find_adapter(config.kind).build_text)
    adapter = build_adapter(config, device)
    if find_adapter(config.kind).estimate and not run.checkpoint_folders():
        work.begin(ESTIMATING)
        with _recognize_out_of_memory(ESTIMATING, config):
            config = estimate_new_run(adapter, config, run, status)
    if run.checkpoints.is_dir() or status.init:
        work.begin("loading the checkpoint")
    totals = config.total_steps, config.total_iterations
    learner = make_learner(adapter.policy, config.ppo, config.optim, *totals, config.seed)
    has_critic = any(True for _ in adapter.policy.critic_parameters())
    health = Health(has_critic, config.eval.threshold, config.watched_scores)
    state = TrainingState(adapter, learner, health, Evaluations())
    resumed = restore(run, config, status, state, device)
    if status.init and not resumed:
        initialize(adapter, status.init, device)
    reporter = Reporter(config, heartbeat, state, device, resumed)
    checkpointer = Checkpointer(run, config, status, state, reporter.events, resumed)
    collector = Collector(adapter, stop, heartbeat, learner.counter, reporter.recorder.begin)
    return Trainer(run, config, status, state, stop, collector, reporter, checkpointer, listener)


def plan(config: RunConfig) -> Estimate:
    """Estimate what a run with this configuration needs, without training it. Raises UsageError if it cannot start."""
    try:
        with _recognize_out_of_memory("creating the models", config):
            adapter = build_adapter(config, resolve_device(config))
        with closing(adapter), _recognize_out_of_memory(ESTIMATING, config):
            return estimate(adapter, config)
    except OutOfMemory as error:
        raise UsageError(str(error)) from error


def build_adapter(config: RunConfig, device: torch.device) -> Adapter:
    """Create the adapter for a configuration, in its initial state."""
    if config.threads:  # otherwise, the adapter chooses the number
        torch.set_num_threads(config.threads)
    adapter: Adapter = load(find_adapter(config.kind).build)(config, device)
    return adapter


def load_adapter(run: Run, config: RunConfig, which: str) -> tuple[Adapter, int]:
    """Load the policy of a checkpoint ('best', 'latest' or a step) into a new adapter.

    Returns the adapter and the checkpoint's step.
    """
    step, device = checkpoint.choose(run, which), resolve_device(config)
    adapter = build_adapter(config.beside_training(), device)
    restore_policy(adapter, run, config, step, checkpoint.load_policy(run, step, device))
    return adapter, step
