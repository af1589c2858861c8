"""The training loop: collect, update, evaluate, report and save until the run ends or a stop is requested."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field, replace

from ppo_unified.config.schema import RunConfig
from ppo_unified.engine.optimizers import NonFiniteError
from ppo_unified.engine.ppo import Iteration, Progress, train
from ppo_unified.runs.folder import Run, Status
from ppo_unified.runs.signals import Interrupted, StopRequest
from ppo_unified.text import print_err
from ppo_unified.training.checkpointing import Checkpointer
from ppo_unified.training.collection import Collector, find_counter
from ppo_unified.training.estimation import add_real_values
from ppo_unified.training.evaluation import evaluate_run, is_due
from ppo_unified.training.nonfinite import explain_nonfinite
from ppo_unified.training.out_of_memory import OutOfMemory, explain_out_of_memory, is_out_of_memory
from ppo_unified.training.reporting import Reporter
from ppo_unified.training.state import TrainingState

# Called with the metrics of each iteration, and of each evaluation between iterations. It may be slow, so it is called
# without the heartbeat's lock.
Listener = Callable[[Status, dict[str, float]], None]


@dataclass
class Trainer:
    """Trains one run, starting from its current state."""

    run: Run
    config: RunConfig
    status: Status
    state: TrainingState
    stop: StopRequest
    collector: Collector
    reporter: Reporter
    checkpointer: Checkpointer
    listener: Listener
    iteration_s: list[float] = field(default_factory=list, init=False)  # duration of each iteration of this process
    discarded: bool = field(default=False, init=False)  # True if a stop request has interrupted an update

    def train(self) -> None:
        """Train until the run ends or a stop is requested. Then save a checkpoint and the final state of run.json.

        If a stop request has interrupted an update, no checkpoint is saved, because the weights are between two states.
        """
        self.status.state = "running"
        self.reporter.write_status()
        if self.status.init and self.checkpointer.saved is None:
            self._save_initial_policy()
        end = self._train_until_stopped()
        if end is None:
            self.status.state = "stopping"
            self.reporter.write_status()
        self.status.reason = end or self.stop.reason
        if not self.discarded:
            self._save()
            if self.checkpointer.failure:
                raise RuntimeError(f"cannot write the final checkpoint: {self.checkpointer.failure}")
        self.status.estimate = add_real_values(self.status.estimate, self.reporter.device, self.iteration_s)
        self.reporter.finish("stopped" if end is None else "finished")

    def _save_initial_policy(self) -> None:
        """Save a checkpoint with the policy of the run's source, so that the run no longer needs its source."""
        self._save()
        if self.checkpointer.failure:
            where = f"{self.run.name}: until it has written a checkpoint"
            print_err(f"{where}, resuming this run needs its source, {self.status.init.get('checkpoint')}")

    def _train_until_stopped(self) -> str | None:
        """Return why the run ended, or None if a stop was requested. Raises OutOfMemory or NonFiniteError."""
        try:
            return self._train()
        except Interrupted:
            return None
        except (MemoryError, RuntimeError) as error:
            if is_out_of_memory(error):
                raise self._explain_out_of_memory(error) from error
            raise

    def _train(self) -> str | None:
        """Return why the run ended, or None if a stop was requested. Raises Interrupted if a stop request interrupts a
        rollout, an update or an evaluation."""
        if self.state.evaluations.pending or (self.config.eval.at_start and self._progress.steps == 0):
            self._evaluate_between_iterations()
        if not self._is_over:
            for iteration in self._iterate():
                self._finish_iteration(iteration)
                if self._is_over:
                    break
        if not self._has_ended:
            return None
        if self._is_solved:
            return "solved"
        self._evaluate_between_iterations()
        reached = self.config.total_steps and self._progress.steps >= self.config.total_steps
        return "total_steps reached" if reached else "total_iterations reached"

    def _iterate(self) -> Iterator[Iteration]:
        """Yield the engine's iterations. If it raises NonFiniteError, the message names the quantity, step and file.

        A stop request always interrupts a rollout. It also interrupts an update if resuming repeats the iteration.
        """
        iterations, stop = train(self.collector, self.state.learner), self.stop
        while True:
            before, self.collector.rollout = replace(self._progress), None
            try:
                with stop.interruptible() if self.checkpointer.can_repeat_iteration() else nullcontext():
                    iteration = next(iterations, None)
            except Interrupted:
                if self.collector.rollout is not None:
                    self._discard_iteration(before)
                raise
            except NonFiniteError as error:
                raise explain_nonfinite(error, self.run, self.state.learner, self.collector.rollout) from error
            if iteration is None:
                return
            yield iteration

    def _discard_iteration(self, before: Progress) -> None:
        """Restore the progress at the start of an iteration whose update was interrupted."""
        self.state.learner.progress, self.discarded = before, True
        print_err(
            f"{self.run.name}: {self.stop.reason} during the update of iteration {before.iteration + 1}; the iteration "
            f"is discarded, and resume repeats it from step {before.steps:,}"
        )

    def _finish_iteration(self, iteration: Iteration) -> None:
        """Evaluate the policy, log the iteration and save a checkpoint if these are due.

        The checkpoint is written last, so the logs are complete up to its step. A resumed run discards later entries.
        """
        metrics = iteration.metrics | self.reporter.measure()
        self.iteration_s.append(metrics["time/collect_s"] + metrics["time/update_s"])
        self.reporter.heartbeat.enter("saving")
        try:
            if is_due(self.config.eval.every_steps, self._progress, int(iteration.batch.mask.sum())):
                metrics |= self._evaluate()
        finally:  # log the iteration even if a stop interrupts its evaluation
            self.reporter.log_iteration(iteration, metrics, is_last=self._has_ended)
        self._check_first_ratio(metrics["invariant/first_ratio_error"])
        self._save_if_due(metrics["time/update_s"])
        self.reporter.heartbeat.enter("collecting")  # the next iteration
        self.reporter.write_status_if_due()
        self.listener(self.status, metrics)

    def _evaluate(self) -> dict[str, float]:
        """Evaluate at the current step and return the metrics. If this is interrupted, the evaluation stays pending."""
        evaluations, step = self.state.evaluations, self._progress.steps
        evaluations.pending = True
        self.reporter.heartbeat.enter("evaluating", find_counter(self.state.adapter))
        with self.stop.interruptible():
            outcome = evaluate_run(
                self.state.adapter,
                self.config,
                confirm=evaluations.solved_step is None,
                where=f"{self.run.path}: evaluation at step {step}",
            )
        evaluations.add(step, outcome.score, outcome.solved)
        if outcome.responses:
            self.reporter.log_responses(outcome.responses)
        return outcome.metrics

    def _evaluate_between_iterations(self) -> None:
        """Evaluate, log and save, unless the current step has already been evaluated."""
        if self.state.evaluations.step != self._progress.steps:
            metrics = self._evaluate()
            self.reporter.log_metrics(metrics)
            self._save()
            if not self._is_over:
                self.reporter.heartbeat.enter("collecting")
            self.reporter.write_status()
            self.listener(self.status, metrics)

    def _save(self) -> None:
        self.reporter.heartbeat.enter("saving")
        self.checkpointer.save(self.collector.state)

    def _save_if_due(self, update_s: float) -> None:
        """Save a checkpoint if it is due, or if the next iteration is recorded: `what-if` starts from the checkpoint
        before a recorded iteration."""
        is_recorded, started = self.reporter.recorder.plan(), time.perf_counter()
        if self.checkpointer.is_due(update_s):
            self._save()
        elif is_recorded:
            self._save()
            self.reporter.recorder.seconds += time.perf_counter() - started

    def _check_first_ratio(self, error: float) -> None:
        if error > self.config.ratio_tolerance:
            raise RuntimeError(
                f"iteration {self._progress.iteration}: expected a ratio of 1 between new and old policy before the "
                f"first update, got an error of {error:.3g}: the log-probs of the adapter's collect() and of its "
                "policy's evaluate() differ"
            )

    def _explain_out_of_memory(self, error: BaseException) -> OutOfMemory:
        rollout, minibatches = self.collector.rollout, self.config.ppo.minibatches
        if self.state.evaluations.pending:
            return explain_out_of_memory(error, "evaluating the policy", self.config)
        if rollout is None:
            return explain_out_of_memory(error, "collecting a rollout", self.config)
        return explain_out_of_memory(error, "updating the policy", self.config, rollout.mask.numel() // minibatches)

    @property
    def _progress(self) -> Progress:
        return self.state.learner.progress

    @property
    def _is_solved(self) -> bool:
        return self.config.stop_when_solved and self.state.evaluations.solved_step is not None

    @property
    def _has_ended(self) -> bool:
        """True if the run is solved or has reached its total number of steps or iterations."""
        return self._is_solved or self._progress.remaining <= 0

    @property
    def _is_over(self) -> bool:
        """True if no more iterations follow, because the run has ended or a stop was requested."""
        return bool(self.stop) or self._has_ended

    def close(self) -> None:
        """Close the adapter and the event file. The adapter's errors are printed but do not change the run's result."""
        try:
            self.state.adapter.close()
        except Exception as error:
            print_err(f"cannot close the environment: {type(error).__name__}: {error}")
        self.reporter.events.close()
