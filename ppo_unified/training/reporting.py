"""Report on a run during training: write its metrics, samples and health warnings, and its progress in run.json."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import numpy as np
import psutil
import torch

from ppo_unified.config.schema import RunConfig
from ppo_unified.engine.ppo import Iteration
from ppo_unified.runs import samples
from ppo_unified.runs.event_writer import EventWriter, markdown_table
from ppo_unified.runs.heartbeat import Heartbeat
from ppo_unified.training.recorder import Recorder
from ppo_unified.training.state import TrainingState

REPORT_S = 1.0  # minimum time between two reports after iterations
RESPONSES = "eval/responses"  # tag of the responses of evaluations
HEALTH = "health/events"  # tag of the messages from health checks that start to warn or recover


class Reporter:
    """Writes a run's metrics, samples and status to its folder. A full disk delays the writes but not the training."""

    def __init__(
        self, config: RunConfig, heartbeat: Heartbeat, state: TrainingState, device: torch.device, resumed: bool
    ) -> None:
        self.run = run = heartbeat.run
        self.status = status = heartbeat.status
        self.config, self.heartbeat, self.state, self.device = config, heartbeat, state, device
        progress = state.learner.progress
        self.events = EventWriter(run.path, progress.steps + 1 if resumed else 0)
        if run.samples.is_dir():  # even without a checkpoint, an earlier trainer may have stored samples
            samples.truncate(run, progress.iteration, state.evaluations.step)
        if not resumed:
            self.events.hyperparameters(config.flatten())
        self.best_effort = heartbeat.best_effort
        self.recorder = Recorder(config, heartbeat, state)
        self._process = psutil.Process()
        self._began, self._elapsed_before = time.monotonic(), status.elapsed_s
        self._steps_before = progress.steps
        self._beaten = self._measured = time.monotonic()
        status.device, status.health = str(device), state.health.active_warnings()

    def log_iteration(self, iteration: Iteration, metrics: dict[str, float], is_last: bool) -> None:
        """Run the health checks, then log and sample the iteration if this is due. Adds entries to `metrics`."""
        self._update_status()
        self._check_health(metrics)
        number, log = self.state.learner.progress.iteration, self.config.log
        histograms = self.recorder.end(iteration, metrics, is_last)
        evaluated = "eval/score" in metrics or self.state.evaluations.pending
        if number % log.every == 0 or evaluated or histograms:
            self.log_metrics(metrics, histograms)

    def log_metrics(self, metrics: Mapping[str, float], histograms: Mapping[str, np.ndarray] | None = None) -> None:
        with self.best_effort.attempt("the event file"):
            self.events.scalars(self.state.learner.progress.steps, metrics, histograms)

    def log_responses(self, responses: list[dict[str, Any]]) -> None:
        """Log the responses of an evaluation at the current step."""
        progress = self.state.learner.progress
        with self.best_effort.attempt("samples/responses.jsonl"):
            samples.append_responses(self.run, progress.steps, progress.iteration, responses)
        with self.best_effort.attempt("the event file"):
            self.events.text(progress.steps, RESPONSES, markdown_table(responses))

    def write_status(self) -> None:
        """Update run.json. A failed write is reported and retried later."""
        with self.heartbeat.lock:
            self._update_status()
            self.heartbeat.write()

    def write_status_if_due(self) -> None:
        """Update run.json if at least REPORT_S seconds have passed since this method last did so."""
        if time.monotonic() - self._beaten >= REPORT_S:
            self._beaten = time.monotonic()
            self.write_status()

    def finish(self, state: str) -> None:
        """Write the final status to run.json. Raises OSError."""
        self.heartbeat.stop()
        self.status.state = state
        self._update_status()
        self.run.write_status(self.status)

    def measure(self) -> dict[str, float]:
        """Return the speed and, at most once in REPORT_S seconds, the system metrics.

        System metrics are not read in every iteration, because reading them can take longer than a small iteration.
        """
        now = time.monotonic()
        steps = self.state.learner.progress.steps - self._steps_before
        metrics = {"time/steps_per_second": steps / max(1e-9, now - self._began)}
        if now - self._measured < REPORT_S:
            return metrics
        self._measured = now
        metrics["system/cpu"] = self._process.cpu_percent()
        metrics["system/memory_gb"] = self._process.memory_info().rss / 1e9
        if self.device.type == "cuda":
            metrics["system/gpu_memory_gb"] = torch.cuda.memory_reserved(self.device) / 1e9
            with suppress(ModuleNotFoundError, RuntimeError):  # torch needs an optional NVIDIA package for this
                metrics["system/gpu"] = float(torch.cuda.utilization(self.device))
        return metrics

    def _update_status(self) -> None:
        status, progress, evaluations = self.status, self.state.learner.progress, self.state.evaluations
        status.step, status.iteration = progress.steps, progress.iteration
        status.score, status.solved_step = evaluations.score, evaluations.solved_step
        status.best_score, status.best_step = evaluations.best_score, evaluations.best_step
        status.heartbeat = time.time()
        status.elapsed_s = self._elapsed_before + time.monotonic() - self._began

    def _check_health(self, metrics: dict[str, float]) -> None:
        """Run the health checks. Write changes of their states to the event file, and active warnings to the status."""
        for line in self.state.health.update(self.state.learner.progress.steps, metrics):
            with self.best_effort.attempt("the event file"):
                self.events.text(self.state.learner.progress.steps, HEALTH, line)
        self.status.health = self.state.health.active_warnings()
        metrics["health/warnings"] = float(len(self.status.health))
