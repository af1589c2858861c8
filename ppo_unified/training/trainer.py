"""The life of a run: collect, update, evaluate, report, save, until it ends or is asked to stop."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ppo_unified.config.schema import RunConfig
from ppo_unified.engine.optimizers import NonFiniteError
from ppo_unified.engine.ppo import Iteration, Progress, train
from ppo_unified.runs.folder import Run, Status
from ppo_unified.runs.signals import Interrupted, StopRequest
from ppo_unified.text import print_err
from ppo_unified.training.checkpointing import Checkpointer
from ppo_unified.training.collection import Collector
from ppo_unified.training.evaluation import evaluate_run, is_due
from ppo_unified.training.nonfinite import explain_nonfinite
from ppo_unified.training.out_of_memory import OutOfMemory, explain_out_of_memory, is_out_of_memory
from ppo_unified.training.reporting import Reporter
from ppo_unified.training.state import TrainingState

Listener = Callable[[Status, dict[str, float]], None]  # called after every iteration, with its metrics


@dataclass
class Trainer:
    """Trains one run from where its state stands."""

    run: Run
    config: RunConfig
    status: Status
    state: TrainingState
    stop: StopRequest
    collector: Collector
    reporter: Reporter
    checkpointer: Checkpointer
    listener: Listener

    def train(self) -> None:
        """Train until the run ends or a stop is requested, and save; run.json then holds the final state."""
        self.status.state = "running"
        self.reporter.write_status()
        end = self._train_until_stopped()
        if end is None:
            self.status.state = "stopping"
            self.reporter.write_status()
        self.status.reason = end or self.stop.reason
        self._save()
        if self.checkpointer.failure:
            raise RuntimeError(f"the last checkpoint could not be written: {self.checkpointer.failure}")
        self.reporter.finish("stopped" if end is None else "finished")

    def _train_until_stopped(self) -> str | None:
        """Why the run ended; None where a stop was requested first. Raises OutOfMemory and NonFiniteError."""
        try:
            return self._train()
        except Interrupted:
            return None
        except (MemoryError, RuntimeError) as error:
            if is_out_of_memory(error):
                raise self._explain_out_of_memory(error) from error
            raise

    def _train(self) -> str | None:
        """As `_train_until_stopped`; raises Interrupted where a stop interrupts a rollout or an evaluation."""
        if self.state.evaluations.owed or (self.config.eval.at_start and self._progress.steps == 0):
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
        """The engine's iterations. Raises NonFiniteError, naming the place and the file of the minibatch."""
        try:
            yield from train(self.collector, self.state.learner)
        except NonFiniteError as error:
            raise explain_nonfinite(error, self.run, self.state.learner, self.collector.rollout) from error

    def _finish_iteration(self, iteration: Iteration) -> None:
        """Everything that follows an update, each at its own interval.

        Saving comes last: everything logged up to a checkpoint's step is complete; resuming discards what was logged
        after it.
        """
        metrics = iteration.metrics | self.reporter.measure()
        try:
            if is_due(self.config.eval.every_steps, self._progress, int(iteration.batch.mask.sum())):
                metrics |= self._evaluate()
        finally:  # an interrupted evaluation costs the iteration nothing
            self.reporter.log_iteration(iteration, metrics, is_last=self._has_ended)
        self._check_first_ratio(metrics["invariant/first_ratio_error"])
        if self.checkpointer.is_due():
            self._save()
        self.reporter.write_heartbeat()
        self.listener(self.status, metrics)

    def _evaluate(self) -> dict[str, float]:
        """The metrics of an evaluation at the current step. Raises Interrupted; then the evaluation is owed."""
        evaluations, step = self.state.evaluations, self._progress.steps
        evaluations.owed = True
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
        """Evaluate, log and save, unless the current step has been evaluated already."""
        if self.state.evaluations.step != self._progress.steps:
            self.reporter.log_metrics(self._evaluate())
            self._save()
            self.reporter.write_status()

    def _save(self) -> None:
        self.checkpointer.save(self.collector.state)

    def _check_first_ratio(self, error: float) -> None:
        if error > self.config.ratio_tolerance:
            raise RuntimeError(
                f"the ratio to the old policy is off by {error:.3g} before any update, in iteration "
                f"{self._progress.iteration}: the adapter's collect() and its policy's evaluate() disagree"
            )

    def _explain_out_of_memory(self, error: BaseException) -> OutOfMemory:
        rollout, minibatches = self.collector.rollout, self.config.ppo.minibatches
        if self.state.evaluations.owed:
            return explain_out_of_memory(error, "evaluating", self.config)
        if rollout is None:
            return explain_out_of_memory(error, "collecting a rollout", self.config)
        return explain_out_of_memory(error, "updating", self.config, rollout.mask.numel() // minibatches)

    @property
    def _progress(self) -> Progress:
        return self.state.learner.progress

    @property
    def _is_solved(self) -> bool:
        return self.config.stop_when_solved and self.state.evaluations.solved_step is not None

    @property
    def _has_ended(self) -> bool:
        """Whether the run has reached its own end, stop request or not."""
        return self._is_solved or self._progress.remaining <= 0

    @property
    def _is_over(self) -> bool:
        """Whether no iteration follows."""
        return bool(self.stop) or self._has_ended

    def close(self) -> None:
        """Release everything; an environment that fails to close changes nothing about how the run ended."""
        try:
            self.state.adapter.close()
        except Exception as error:
            print_err(f"closing the environment failed: {type(error).__name__}: {error}")
        self.reporter.events.close()
