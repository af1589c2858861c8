"""Trains a run in this process and shows its progress. This is the last step of `train` and `resume`."""

from __future__ import annotations

import shlex
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import TextIO

from ppo_unified.cli.common import foreign_code, preload
from ppo_unified.config.estimate import compare
from ppo_unified.config.registry import find_adapter
from ppo_unified.config.schema import RunConfig
from ppo_unified.errors import ForeignCodeError, StartError, UsageError
from ppo_unified.runs import log_tee
from ppo_unified.runs.control import describe_end
from ppo_unified.runs.folder import ACTIVE, Run, Status, ended_state, has_stalled, read_warnings
from ppo_unified.runs.heartbeat import Heartbeat
from ppo_unified.runs.progress import format_percent, format_phase, steps_left
from ppo_unified.runs.signals import StopRequest
from ppo_unified.text import can_unicode, clean, clean_lines, format_duration, is_drawable, print_err, print_out

EXIT = {"finished": 0, "stopped": 130, "failed": 1}


def run_training(
    run: Run,
    config: RunConfig,
    stop: StopRequest,
    undo: Callable[[], object],
    note: str = "",
    listener: Callable[[Status, dict[str, float]], object] | None = None,
) -> int:
    """Train in a locked run folder, print how the run ended, and return the exit code.

    The `note` is printed before training. The `listener` is called with the status and the metrics of each iteration,
    and of each evaluation between iterations. Raises StartError, after calling `undo`, if training cannot start.
    """
    stop.show_in(run)
    with log_tee.log_output(run) as log:
        checkpoints = run.checkpoint_folders()
        newest = f" (newest checkpoint: step {checkpoints[-1][0]:,})" if checkpoints else ""
        print_err(f"preparing {run.path}{newest}")  # training may still turn out to be impossible
        heartbeat = Heartbeat(run, run.read_status())
        progress = Progress(log, heartbeat.lock, listener)
        heartbeat.listener = progress.show
        with heartbeat:
            preload("ppo_unified.training.session")  # slow (torch); the signal handlers already exist
        from ppo_unified.training.session import train_in

        try:
            with foreign_code():
                status = train_in(run, config, stop, progress, undo, heartbeat, note)
        except Exception as error:
            progress.finish()
            if isinstance(error, StartError):
                raise
            kind = "" if isinstance(error, UsageError | ForeignCodeError) else f"{type(error).__name__}: "
            print_err(f"{run.name} failed: {kind}{error}")
            resume = f"; to resume: {format_command('resume', run)}" if run.checkpoints.is_dir() else ""
            if run.log.exists():
                print_err(f"the traceback is in {run.log}{resume}")
            return EXIT["failed"]
        progress.finish()
        print_out(clean_lines(summary(run, status)))
        print_out(clean(_next_step(run, config, status)))
    return EXIT[status.state]


def _next_step(run: Run, config: RunConfig, status: Status) -> str:
    spec = find_adapter(config.kind)
    verb, purpose = "eval", "evaluate the policy"
    if status.state == "stopped":
        verb, purpose = "resume", "resume"
    elif spec.play or spec.chat:
        verb, purpose = "play", "watch the agent" if spec.play else "talk to the model"
    return f"To {purpose}: {format_command(verb, run)}"


def format_command(verb: str, run: Run) -> str:
    """Format the command line that applies the command `verb` to a run, with --runs if necessary."""
    folder = run.path.parent
    return shlex.join(["ppo-unified", verb, run.name, *([] if folder == Path("runs") else ["--runs", str(folder)])])


def describe_background(run: Run) -> str:
    """Describe a run that was started in the background. A short run may already have ended."""
    status = run.read_status()
    if status.state not in ACTIVE:
        return f"{run.name}: {describe_end(run, status, ended_state(status))}"
    return f"training in the background as process {status.pid}; to stop it: {format_command('stop', run)}"


LIVE_S, PLAIN_S = 0.1, 5.0  # seconds between two progress lines on a terminal, and in other output


class Progress:
    """Prints the progress of a run.

    The trainer calls it after each iteration and each evaluation between iterations, and `finish` at the end, which
    clears the live line. The heartbeat's thread calls `show`, so that long iterations also print lines. It holds the
    heartbeat's `lock`, and so does the trainer's thread here, except while it calls the `listener`, which may be slow.
    """

    def __init__(
        self,
        log: TextIO,
        lock: AbstractContextManager[object],
        listener: Callable[[Status, dict[str, float]], object] | None = None,
    ) -> None:
        self.lock, self.listener = lock, listener
        self.terminal = is_drawable(sys.stderr)
        self.screen = getattr(sys.stderr, "screen", sys.stderr)  # bypasses the log, which contains no live lines
        self.log = log
        self.last_live, self.last_plain = 0.0, time.monotonic()  # times of the last line of each kind
        self.metrics: Mapping[str, float] = {}  # of the last iteration
        self.iterated = time.monotonic()  # time of the last iteration's end
        self.warned: frozenset[str] = frozenset()  # names of the health checks that were firing

    def __call__(self, status: Status, metrics: dict[str, float]) -> None:
        with self.lock:
            self._print_health(status)
            if "policy/kl" in metrics:
                self.metrics, self.iterated = metrics, time.monotonic()
            self.show(status)
        if self.listener is not None:
            self.listener(status, metrics)

    def show(self, status: Status) -> None:
        """Print a line if the last one is old enough."""
        now = time.monotonic()
        if self.terminal and now - self.last_live >= LIVE_S:
            self.last_live = now
            width = shutil.get_terminal_size().columns - 1
            self._show("\r\x1b[K" + self._line(status, now)[:width])
        if now - self.last_plain >= PLAIN_S:
            self.last_plain = now
            line = self._line(status, now) + "\n"
            self.log.write(line)
            if not self.terminal and self.screen is not self.log:
                self._show(line)

    def _print_health(self, status: Status) -> None:
        """Print a line when a health check starts to fire and when it recovers."""
        firing = {warning.name: warning.text for warning in read_warnings(status)}
        lines = [f"warning: {name}: {text}" for name, text in firing.items() if name not in self.warned]
        lines += [f"{name} recovered" for name in sorted(self.warned - firing.keys())]
        self.warned = frozenset(firing)
        for line in lines:
            self.finish()
            print(f"step {status.step:,}: {line}", file=sys.stderr, flush=True)

    def finish(self) -> None:
        if self.terminal:
            self._show("\r\x1b[K")

    def _show(self, text: str) -> None:
        with suppress(OSError):  # a closed terminal must not end the run before its checkpoint
            self.screen.write(text)
            self.screen.flush()

    def _line(self, status: Status, now: float) -> str:
        """Format the status and the metrics of the last iteration, if there is one."""
        metrics, left = self.metrics, steps_left(status)
        parts = [f"{status.step:,} steps ({format_percent(status)})"]
        if phase := format_phase(status, status.state):
            parts.append(phase)
        if has_stalled(status, time.time()):
            parts.append(f"no progress for {format_duration(time.time() - status.progressed)}")
        speed = metrics.get("time/steps_per_second", 0.0)
        if left is not None and speed > 0 and (eta_s := left / speed - (now - self.iterated)) > 0:
            parts.append(f"ETA {format_duration(eta_s)}")
        if "episode/return" in metrics:
            parts.append(f"return {metrics['episode/return']:.4g} (sampled)")
        if status.score is not None:
            parts.append(f"score {status.score:.4g} (greedy)")
        if metrics:
            parts += [f"KL {metrics['policy/kl']:.4f}", f"{speed:,.0f} steps/s"]
        return " · ".join(parts) if can_unicode(self.screen) else " | ".join(parts)


def summary(run: Run, status: Status) -> str:
    """Summarize how a run ended: a small curve, the reason, the time and the scores."""
    from ppo_unified.runs.event_reader import EventReader
    from ppo_unified.runs.metrics import title
    from ppo_unified.terminal.chart import Line, draw

    reader = EventReader(run.path)
    reader.poll()
    lines: list[str] = []
    for tag in ("eval/score", "episode/return"):
        series = reader.series.get(tag)
        if series is not None and len(series) > 1:
            steps, _, values = series.numpy()
            width = min(shutil.get_terminal_size().columns, 72)
            lines += draw([Line(tag, steps, values)], width, 8, title=title(tag), unicode=can_unicode(sys.stdout))
            break
    score = "" if status.score is None else f", greedy score {status.score:.4g}"
    best = "" if status.best_score is None or status.best_score == status.score else f" (best {status.best_score:.4g})"
    ended = describe_end(run, status, ended_state(status))
    took = f"after {status.step:,} steps in {format_duration(status.elapsed_s)}"
    lines.append(f"{run.name}: {ended} {took}{score}{best}")
    lines += [comparison] if (comparison := compare(status.estimate)) else []
    return "\n".join(lines)
