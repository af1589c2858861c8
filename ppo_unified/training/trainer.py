"""Training inside a run folder: the engine's loop with events, evaluations, checkpoints and a truthful run.json."""

from __future__ import annotations

import math
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from ppo_unified.config import spec
from ppo_unified.config.registry import adapter as adapter_spec
from ppo_unified.config.registry import load
from ppo_unified.config.schema import RunConfig
from ppo_unified.engine.optimizers import NonFiniteError
from ppo_unified.engine.ppo import Iteration, make_learner, train
from ppo_unified.engine.rollout import Adapter
from ppo_unified.errors import Refused, UsageError
from ppo_unified.runs import launch, samples
from ppo_unified.runs.best_effort import Keeping
from ppo_unified.runs.events import EventWriter, as_table
from ppo_unified.runs.folder import Run, Status
from ppo_unified.text import tell
from ppo_unified.training import checkpoint, nonfinite, resume
from ppo_unified.training.health import Health
from ppo_unified.training.interruptible import Guarded
from ppo_unified.training.out_of_memory import OutOfMemory, is_out_of_memory, out_of_memory
from ppo_unified.training.step_table import clip_range_of, look_back, to_arrays

HEARTBEAT_S = 1.0
CONFIRMATION_EPISODES = 100  # of each of two evaluations that must both reach the threshold
RESPONSES = "eval/responses"  # tag of the texts that an evaluation reports
HEALTH = "health/events"  # tag of the texts that say which checks fire and heal

Report = Callable[[Status, dict[str, float]], None]


@dataclass(frozen=True)
class Result:
    """How a run ended."""

    score: float | None  # of the last evaluation
    best_score: float | None
    solved_step: int | None
    state: str
    reason: str
    path: Path


def run(config: RunConfig, runs: str | Path = "runs", name: str = "") -> Result:
    """Train `config` in a new folder under `runs` and return how it ended. Ctrl-C checkpoints and stops.

    Raises UsageError for what cannot run; whatever ends the training itself is recorded in run.json and raised.
    """
    prepared = launch.prepare(config, Path(runs), name)
    stop = launch.StopRequest()
    main = threading.current_thread() is threading.main_thread()
    with stop.installed() if main else nullcontext():
        status = train_in(prepared, config, stop)
    return Result(status.score, status.best_score, status.solved_step, status.state, status.reason, prepared.path)


def train_in(
    run: Run,
    config: RunConfig,
    stop: launch.StopRequest,
    report: Report | None = None,
    undo: Callable[[], object] | None = None,
) -> Status:
    """Train in a folder that this process holds the lock of, from its newest checkpoint if it has one.

    Whatever ends the training is in run.json and log.txt when this returns or raises.
    Raises Refused for what cannot even begin; then `undo` has been called, with the lock still held.
    """
    status = run.read_status()
    stop.shown_in(run)
    try:
        trainer = _made(run, config, status, stop, report or (lambda status, metrics: None))
        try:
            trainer.loop(stop)
        finally:
            trainer.close()
    except launch.Interrupted:  # nothing was trained since the newest checkpoint, or at all
        status.state, status.reason = "stopped", f"{stop.reason} before it trained"
        run.write_status(status)
    except BaseException as error:
        kind = "" if isinstance(error, UsageError) else f"{type(error).__name__}: "
        status.state, status.reason, status.traceback = "failed", f"{kind}{error}", traceback.format_exc()
        with suppress(OSError):  # the error itself is what to tell, though nothing can be written any more
            if run.holds_lock():
                run.write_status(status)
                with open(run.log, "a", encoding="utf-8") as log:
                    log.write(status.traceback)
        if undo is not None and isinstance(error, Refused):
            with suppress(OSError):
                undo()
        raise
    finally:
        run.release()
    return status


def _made(run: Run, config: RunConfig, status: Status, stop: launch.StopRequest, report: Report) -> Trainer:
    """A trainer with its models. Raises Refused, OutOfMemory, and Interrupted: a model may take its time."""
    try:
        with stop.interruptible():
            return Trainer(run, config, status, report)
    except UsageError as error:
        raise Refused(*error.args) from error
    except (MemoryError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise out_of_memory(error, "making the models", config) from error
        raise


def resolve_device(config: RunConfig) -> torch.device:
    """The device that `config.device` means here. Raises UsageError where a GPU is asked for and none is seen."""
    if config.device == "cuda" and not torch.cuda.is_available():
        raise UsageError("device = 'cuda': torch sees no GPU here; see what is wrong with: ppo-unified doctor")
    if config.device == "auto":
        return torch.device("cuda" if adapter_spec(config.kind).prefers_gpu and torch.cuda.is_available() else "cpu")
    return torch.device(config.device)


def load_adapter(run: Run, config: RunConfig, which: str) -> tuple[Adapter, int]:
    """A run's adapter with the policy of a checkpoint ('best', 'latest' or a step), and that checkpoint's step."""
    torch.set_num_threads(config.threads)
    step, device = checkpoint.choose(run, which), resolve_device(config)
    adapter: Adapter = load(adapter_spec(config.kind).build)(config, device)
    restore_policy(adapter, run, step, checkpoint.load_policy(run, step, device))
    return adapter, step


def restore_policy(adapter: Adapter, run: Run, step: int, weights: dict[str, Any]) -> None:
    """Put a checkpoint's weights into the policy. Raises UsageError where config.toml describes another network."""
    try:
        adapter.policy.load_state_dict(weights)
    except RuntimeError as error:
        first = str(error).splitlines()[-1].strip()
        raise UsageError(f"{run.config} does not fit checkpoint {step}; was it edited? ({first})") from None


class Trainer:
    """One process's training of one run."""

    def __init__(self, run: Run, config: RunConfig, status: Status, report: Report) -> None:
        torch.set_num_threads(config.threads)
        self.run, self.config, self.status, self.report = run, config, status, report
        self.device = resolve_device(config)
        self.spec = adapter_spec(config.kind)
        self.adapter: Adapter = load(self.spec.build)(config, self.device)
        self.learner = make_learner(
            self.adapter.policy, config.ppo, config.optim, config.total_steps, config.total_iterations, config.seed
        )
        self.evaluated = -1  # the step of the last evaluation
        self.owed = False  # an evaluation at this step was given up; whoever resumes makes up for it
        self.kept = (-1, -1)  # step and last evaluation of the newest checkpoint: what one of them holds
        self.unsaved = ""  # why the last checkpoint could not be written
        self.health = Health(has_critic=any(True for _ in self.adapter.policy.critic_parameters()))
        self.resumed = self._restore()
        status.health = self.health.firing()
        self.events = EventWriter(run.path, self.learner.progress.steps + 1 if self.resumed else 0)
        samples.cut(run, self.learner.progress.iteration, self.evaluated if self.resumed else -1)
        if not self.resumed:
            self.events.hyperparameters(config.flat())
        self.keeping = Keeping(run)
        self.process = psutil.Process()
        self.began, self.elapsed_before = time.monotonic(), status.elapsed_s
        self.steps_before = self.learner.progress.steps
        self.checkpointed = self.beaten = self.measured = time.monotonic()
        status.device = str(self.device)

    def _restore(self) -> bool:
        """Take up the newest checkpoint, if there is one, and forget what run.json knows of later."""
        checkpoint.remove_leftovers(self.run)
        found = checkpoint.load_newest(self.run, self.device)
        if found is None:
            resume.forget(self.status)
            return False
        restore_policy(self.adapter, self.run, found.meta.step, found.policy)
        with resume.taking_up(self.run, found.meta.step):
            self._take_up(found)
        return True

    def _take_up(self, found: checkpoint.Loaded) -> None:
        """Go on where a checkpoint was, its weights apart."""
        if restarted := self.adapter.load_state_dict(found.trainer["adapter"]):
            tell(f"resumed at step {found.meta.step}, not exactly: {restarted}")
        for entry in self.status.resumes[-1:]:
            entry["restored"] = restarted or "exact"
        resume.restore_optimizers(self.learner.optimizers, found.trainer["optimizers"])
        self.learner.generator.set_state(found.trainer["generator"])
        self.learner.progress = resume.progress_of(found, self.config)
        self.evaluated = resume.restore_status(self.status, found, self.run, self.config)
        if "health" in found.trainer:  # checkpoints of before there were checks have none
            self.health.load_state_dict(found.trainer["health"])
        self.owed = found.trainer.get("evaluation_owed", False)
        self.kept = self.learner.progress.steps, self.evaluated

    def loop(self, stop: launch.StopRequest) -> None:
        """Train until the end, the threshold, or a request to stop; leaves the final state in run.json."""
        status = self.status
        status.state = "running"
        self._write_status()
        self.guarded = Guarded(self.adapter, stop)
        try:
            end = self._train(stop)
        except launch.Interrupted:
            end = None
        except (MemoryError, RuntimeError) as error:
            if is_out_of_memory(error):
                raise self._out_of_memory(error) from error
            raise
        if end is None:
            status.state = "stopping"
            self._write_status()
        status.reason = end or stop.reason
        self._checkpoint()
        if self.unsaved:
            raise RuntimeError(f"the last checkpoint could not be written: {self.unsaved}")
        status.state = "stopped" if end is None else "finished"
        self._update_status()
        self.run.write_status(status)

    def _train(self, stop: launch.StopRequest) -> str | None:
        """Train until nothing is left to do; why that is, or None where a request to stop came first.

        Raises Interrupted for one that came in a rollout or an evaluation.
        """
        if self.owed or (self.config.eval.at_start and self.learner.progress.steps == 0):
            self._evaluate_apart(stop)
        if not self._is_over(stop):
            self._iterate(stop)
        if not self._has_ended():
            return None
        if self._has_solved():
            return "solved"
        self._evaluate_apart(stop)
        reached = self.config.total_steps and self.learner.progress.steps >= self.config.total_steps
        return "total_steps reached" if reached else "total_iterations reached"

    def _iterate(self, stop: launch.StopRequest) -> None:
        config, progress, guarded = self.config, self.learner.progress, self.guarded
        try:
            for iteration in train(guarded, self.learner):
                self._after(iteration, stop)
                if self._is_over(stop):
                    break
        except NonFiniteError as error:
            about = {"iteration": progress.iteration + 1, "step": progress.steps}
            about |= {"microbatch_columns": config.ppo.microbatch_columns}
            raise nonfinite.explained(error, self.run, self.adapter.policy, guarded.rollout, about) from error

    def _out_of_memory(self, error: BaseException) -> OutOfMemory:
        rollout, doing = self.guarded.rollout, "collecting a rollout" if self.guarded.is_collecting else "updating"
        columns = rollout.mask.numel() // self.config.ppo.minibatches if rollout is not None else 0
        return out_of_memory(error, "evaluating" if self.owed else doing, self.config, columns)

    def _is_over(self, stop: launch.StopRequest) -> bool:
        """Whether no iteration follows."""
        return bool(stop) or self._has_ended()

    def _has_ended(self) -> bool:
        """Whether the run has come to its own end, asked to stop or not."""
        return self._has_solved() or self.learner.progress.remaining <= 0

    def _has_solved(self) -> bool:
        return self.config.stop_when_solved and self.status.solved_step is not None

    def _after(self, iteration: Iteration, stop: launch.StopRequest) -> None:
        """Everything that follows an iteration, each at its own interval.

        The checkpoint comes last: what is logged of a step that it holds is complete, what comes after is cut by the
        run that goes on from it.
        """
        self._update_status()
        metrics = iteration.metrics | {"time/steps_per_second": self._speed()} | self._system_metrics()
        try:
            if self._evaluation_due(int(iteration.batch.mask.sum())):
                metrics |= self._evaluate(stop)
        finally:  # an evaluation that is given up costs the iteration nothing
            self._judge(metrics)
            self._log(metrics, iteration)
        if metrics["invariant/first_ratio_error"] > self.config.ratio_tolerance:
            error = metrics["invariant/first_ratio_error"]
            raise RuntimeError(
                f"the ratio to the old policy is off by {error:.3g} before any update, in iteration "
                f"{self.learner.progress.iteration}: the adapter's collect() and its policy's evaluate() disagree"
            )
        now = time.monotonic()
        if self._is_best() or now - self.checkpointed >= self.config.checkpoint.every_s:
            self._checkpoint()
        if now - self.beaten >= HEARTBEAT_S:
            self.beaten = now
            self._write_status()
        self.report(self.status, metrics)

    def _log(self, metrics: dict[str, float], iteration: Iteration) -> None:
        number, every, histograms = self.learner.progress.iteration, self.config.log.samples_every, None
        if every and (number == 1 or number % every == 0 or self._has_ended()):
            histograms = self._keep_sample(metrics, iteration)
        if number % self.config.log.every == 0 or "eval/score" in metrics or self.owed or histograms:
            with self.keeping.of("the event file"):
                self.events.scalars(self.learner.progress.steps, metrics, histograms)

    def _judge(self, metrics: dict[str, float]) -> None:
        """Put the iteration before the health checks; what changes goes into TensorBoard and run.json."""
        for line in self.health.update(self.learner.progress.steps, metrics):
            with self.keeping.of("the event file"):
                self.events.text(self.learner.progress.steps, HEALTH, line)
        self.status.health = self.health.firing()
        metrics["health/warnings"] = float(len(self.status.health))

    def _keep_sample(self, metrics: dict[str, float], iteration: Iteration) -> dict[str, np.ndarray]:
        """Store every quantity of the iteration's steps, add what its updates did to `metrics`; the histograms."""
        ppo, progress, learned = self.config.ppo, self.learner.progress, int(iteration.batch.mask.sum())
        low, high = clip_range_of(self.learner, learned)
        seen = look_back(self.adapter.policy, iteration, ppo, low, high)
        metrics.update(seen.metrics)
        hook = self.spec.explain
        explained = load(hook)(self.adapter, iteration.rollout) if hook else {}
        stored = samples.Stored(
            iteration=progress.iteration,
            step=progress.steps,
            steps=learned,
            gamma=ppo.gamma,
            lam=ppo.lam,
            clip=low,
            clip_high=high,
            advantage_kind=ppo.advantage,
            value_target=ppo.value_target,
            metrics=dict(metrics),
            columns=to_arrays(seen.columns, explained, hook),
        )
        with self.keeping.of("samples/"):
            samples.write(self.run, stored)
        return seen.histograms

    def _evaluation_due(self, learned: int) -> bool:
        """Whether the `learned` steps of an iteration passed a multiple of eval.every_steps, resumed or not, or were
        the last."""
        every, steps = self.config.eval.every_steps, self.learner.progress.steps
        passed = bool(every) and steps // every > (steps - learned) // every
        return passed or self.learner.progress.remaining <= 0

    def _evaluate_apart(self, stop: launch.StopRequest) -> None:
        """Evaluate where no iteration follows or went before; nothing if that was done at this step already."""
        if self.evaluated == self.learner.progress.steps:
            return
        metrics = self._evaluate(stop)
        with self.keeping.of("the event file"):
            self.events.scalars(self.learner.progress.steps, metrics)
        self._checkpoint()
        self._write_status()

    def _evaluate(self, stop: launch.StopRequest) -> dict[str, float]:
        """Score the greedy policy and see whether it is the best so far and whether the task is solved.

        A score that is not finite is neither: nothing could beat a NaN, and it says nothing of the policy.
        Raises Interrupted, with nothing changed but that an evaluation is owed, where a stop is asked for.
        """
        self.owed = True
        with stop.interruptible():
            score, solved = self._scored()
            report = self._reported()
        self.owed, self.evaluated = False, self.learner.progress.steps
        status = self.status
        status.score = score
        if solved or (math.isfinite(score) and (status.best_score is None or score > status.best_score)):
            status.best_score, status.best_step = score, self.learner.progress.steps
        if solved:
            status.solved_step = self.learner.progress.steps
        if report.responses:
            with self.keeping.of("samples/responses.jsonl"):
                samples.append_responses(
                    self.run, self.learner.progress.steps, self.learner.progress.iteration, report.responses
                )
            with self.keeping.of("the event file"):
                self.events.text(self.learner.progress.steps, RESPONSES, as_table(report.responses))
        return dict(report.metrics) | dict.fromkeys(("eval/score", self.spec.score_tag), score)

    def _scored(self) -> tuple[float, bool]:
        """The greedy policy's mean score, and whether it solves the task: then it is that of the confirmation."""
        threshold = self.config.eval.threshold
        score = self._mean_score(self.config.eval.episodes, 1)
        if threshold is None or self.status.solved_step is not None or not threshold <= score < math.inf:
            return score, False
        scores = [self._mean_score(CONFIRMATION_EPISODES, number) for number in (2, 3)]
        return float(np.mean(scores)), all(threshold <= score < math.inf for score in scores)

    def _mean_score(self, episodes: int, number: int) -> float:
        """Of fresh episodes, the same for the same `number`; stderr says where one of them is not finite."""
        scores = np.array(self.adapter.score(episodes, self.config.seed + number, True), dtype=float)
        wrong = np.flatnonzero(~np.isfinite(scores))
        if wrong.size:
            first = f"the score of {wrong.size} of {len(scores)} episodes is not finite, first of episode {wrong[0]}"
            what = "it counts neither as best nor as solved; training goes on"
            tell(
                f"{self.run.path}: evaluation at step {self.learner.progress.steps}: {first} "
                f"({scores[wrong[0]]}); {what}"
            )
        with np.errstate(invalid="ignore"):  # of inf and -inf
            return float(np.mean(scores))

    def _is_best(self) -> bool:
        """Whether this very step was evaluated, as the best so far."""
        return self.evaluated == self.status.best_step == self.learner.progress.steps

    def _reported(self) -> spec.Report:
        """What the adapter adds to an evaluation: metrics and texts."""
        if not self.spec.report:
            return spec.Report()
        report: spec.Report = load(self.spec.report)(self.adapter, self.config.eval.episodes, self.config.seed + 1)
        return report

    def _checkpoint(self) -> None:
        """Keep all that going on from here needs, unless it is kept already. One that can't be written costs the run a
        message: the next interval tries again."""
        self.keeping.check_folder()
        self.checkpointed = time.monotonic()
        holds, self.unsaved = (self.learner.progress.steps, self.evaluated), ""
        if holds == self.kept:
            return
        trainer = {
            "optimizers": [optimizer.state_dict() for optimizer in self.learner.optimizers],
            "progress": asdict(self.learner.progress),
            "generator": self.learner.generator.get_state(),
            "adapter": self.guarded.state,
            "elapsed_s": self.status.elapsed_s,
            "evaluation_owed": self.owed,
            "evaluation": resume.evaluation_of(self.status, self.evaluated, self.config),
            "health": self.health.state_dict(),
        }
        score = self.status.score if self.evaluated == self.learner.progress.steps else None
        progress, versions = self.learner.progress, self.status.versions
        meta = checkpoint.Meta(progress.steps, progress.iteration, time.time(), score, self._is_best(), versions)
        try:
            self.events.sync()
            checkpoint.save(self.run, self.adapter.policy.state_dict(), trainer, meta)
            self.kept = holds
            checkpoint.prune(self.run, self.config.checkpoint.keep)
        except (OSError, checkpoint.Damaged) as error:
            self.unsaved = "" if self.kept == holds else str(error)
            what = "older checkpoints could not be removed" if self.kept == holds else "was not written"
            message = f"checkpoint of step {holds[0]}: {what} ({error}); training goes on"
            tell(f"{self.run.checkpoints}: {message}")

    def _write_status(self) -> None:
        """Tell how far the run is, where run.json can be written."""
        self._update_status()
        with self.keeping.of("run.json"):
            self.run.write_status(self.status)

    def _update_status(self) -> None:
        status = self.status
        status.step, status.iteration = self.learner.progress.steps, self.learner.progress.iteration
        status.heartbeat = time.time()
        status.elapsed_s = self.elapsed_before + time.monotonic() - self.began

    def _speed(self) -> float:
        return (self.learner.progress.steps - self.steps_before) / max(1e-9, time.monotonic() - self.began)

    def _system_metrics(self) -> dict[str, float]:
        """At most once a second: asking the system costs more than a small iteration."""
        now = time.monotonic()
        if now - self.measured < HEARTBEAT_S:
            return {}
        self.measured = now
        metrics = {"system/cpu": self.process.cpu_percent(), "system/memory_gb": self.process.memory_info().rss / 1e9}
        if self.device.type == "cuda":
            metrics["system/gpu_memory_gb"] = torch.cuda.memory_reserved(self.device) / 1e9
            with suppress(ModuleNotFoundError, RuntimeError):  # torch asks a package of NVIDIA's, if it is installed
                metrics["system/gpu"] = float(torch.cuda.utilization(self.device))
        return metrics

    def close(self) -> None:
        """Let go of everything; a world that fails to close changes nothing about how the run ended."""
        try:
            self.adapter.close()
        except Exception as error:
            tell(f"closing the environment failed: {type(error).__name__}: {error}")
        self.events.close()


def evaluate(adapter: Adapter, episodes: int, seed: int, greedy: bool) -> dict[str, Any]:
    """Mean, deviation and count of fresh scores."""
    scores = np.array(adapter.score(episodes, seed, greedy))
    return {"score": float(scores.mean()), "std": float(scores.std()), "episodes": len(scores)}
