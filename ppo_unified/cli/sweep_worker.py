"""A worker of a sweep: a process that trains one trial after the other. `ppo-unified sweep` starts it.

The worker stops, as after Ctrl-C, when its stdin is closed, because the process that started it has then ended.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path
from typing import NamedTuple

import optuna

from ppo_unified.cli.common import foreign_code
from ppo_unified.cli.run_training import run_training
from ppo_unified.config import presets
from ppo_unified.config.schema import RunConfig, typed_options
from ppo_unified.config.space import apply_values, drop_ignored
from ppo_unified.config.values import format_flag, read_value
from ppo_unified.errors import ForeignCodeError, UsageError
from ppo_unified.parsing import parse_toml
from ppo_unified.runs import preparation
from ppo_unified.runs.folder import Run, Status
from ppo_unified.runs.progress import fraction_done
from ppo_unified.runs.signals import Interrupted, StopRequest
from ppo_unified.runs.study import (
    Definition,
    TrialLocks,
    choose_trial,
    count_attempt,
    draw_values,
    find_definition,
    open_study,
    read_scores,
    record_outcome,
    report_score,
    undo_attempt,
)
from ppo_unified.runs.trials import PRUNED, WARMUP, Outcome, describe_trial, find_outcome, mean_score
from ppo_unified.text import format_number, print_err

ATTEMPTS = 3  # a trial whose process is killed this often has failed


class Work(NamedTuple):
    """What a worker needs to train trials."""

    study: optuna.Study
    locks: TrialLocks
    definition: Definition
    runs: Path

    def run_of(self, number: int) -> Run:
        return Run(self.runs / f"{self.study.study_name}-{number}")


def train_trials(work: Work, limit: int) -> int:
    """Train trials until the study has `limit` of them. Return the number of the signal that ended the loop, or 0."""
    seed = int(parse_toml(work.definition.config)["seed"])
    while True:
        stop = StopRequest()
        with stop.handle_signals():
            trial = choose_trial(work.study, work.locks, limit, lambda number: work.run_of(number).is_locked(), seed)
            if trial is None:
                return 0
            outcome = train_trial(work, trial, stop)
            if outcome is not None:
                record_outcome(work.study, trial, outcome)
            else:
                undo_attempt(trial)
            work.locks.release(trial.number)
        if outcome is None:
            return int(stop.signal or signal.SIGTERM)


def train_trial(work: Work, trial: optuna.Trial, stop: StopRequest) -> Outcome | None:
    """Train the run of a trial, or resume it. Return None if the run was interrupted, so that it can be resumed."""
    if count_attempt(trial) >= ATTEMPTS:
        return Outcome("failed", None, f"its process was killed {ATTEMPTS} times")
    run = work.run_of(trial.number)
    listener = TrialListener(work.definition, trial, stop)
    try:
        if (run.path / "run.json").exists():
            if (outcome := find_outcome(run, run.read_status())) is not None:
                return outcome
            _resume(run, stop, listener)
        elif read_scores(trial):
            return Outcome("failed", None, f"it was interrupted, and its run is not in {work.runs}")
        else:
            _start(work, trial, stop, listener)
    except Interrupted:
        return None
    except (UsageError, ForeignCodeError) as error:
        return Outcome("failed", None, str(error).partition("\n")[0])
    return find_outcome(run, run.read_status())


def _start(work: Work, trial: optuna.Trial, stop: StopRequest, listener: TrialListener) -> None:
    """Train the run of a new trial. Raises UsageError if the drawn options are invalid."""
    definition, name = work.definition, work.run_of(trial.number).name
    base = presets.from_table(parse_toml(definition.config), "the sweep")
    values, _ = drop_ignored(base, draw_values(trial, definition.read_space()))
    config = apply_values(base, values, "invalid combination")
    entry = describe_trial(work.study.study_name, trial.number, values, definition.objective)
    with foreign_code(), stop.interruptible():
        config, note = preparation.complete(config)
    command = trial_command(definition, values, config, work.runs)
    run = preparation.prepare(config, work.runs, name, command, sweep=entry)
    run_training(run, config, stop, lambda: preparation.discard(run), note, listener)


def trial_command(definition: Definition, values: dict[str, str], config: RunConfig, runs: Path) -> list[str]:
    """Return the command line that trains a run with the options of a trial."""
    declared = typed_options(type(config))
    own = [
        word
        for option, text in values.items()
        for word in format_flag(option, read_value(text, declared[option]), declared[option])
    ]
    folder = [] if runs == Path("runs") else ["--runs", str(runs)]
    return ["ppo-unified", "train", *definition.target, *definition.flags, *own, *folder]


def _resume(run: Run, stop: StopRequest, listener: TrialListener) -> None:
    """Resume the run of an interrupted trial, or restart it if it has no checkpoint."""
    before, config = run.read_status(), presets.from_file(run.config)
    with stop.interruptible():
        status = preparation.reopen(run)
    run.write_status(preparation.claim(status, config))
    run_training(run, config, stop, lambda: run.write_status(before), listener=listener)


class TrialListener:
    """Reports the scores of a trial's run to the study, and stops the run if its trial should be pruned."""

    def __init__(self, definition: Definition, trial: optuna.Trial, stop: StopRequest) -> None:
        self._definition, self._trial, self._stop = definition, trial, stop
        self._every = int(parse_toml(definition.config)["eval"]["every_steps"])

    def __call__(self, status: Status, metrics: dict[str, float]) -> None:
        score = metrics.get("eval/score")
        if score is None or score != score or abs(score) == float("inf"):
            return
        scores = report_score(self._trial, status.step, score, self._every)
        value = mean_score(scores, self._every, status.total_steps)
        status.sweep = status.sweep | {"value": value}  # as a whole, because the heartbeat's thread may read it
        done = fraction_done(status) or 0.0
        if self._definition.pruning and WARMUP <= done < 1 and not self._stop and self._trial.should_prune():
            self._stop.cause = f"{PRUNED} by the sweep: score {format_number(score)} at step {status.step:,}"


def _stop_with_parent() -> None:
    """Send SIGTERM to this process when its stdin is closed."""
    own = os.dup(0)
    with open(os.devnull, "rb") as null:
        os.dup2(null.fileno(), 0)

    def wait() -> None:
        with open(own, "rb") as stdin:
            stdin.read()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, name="parent", daemon=True).start()


def main(arguments: list[str]) -> int:
    """Train trials. `arguments`: the journal, the sweep's name, the runs folder, the number of trials."""
    journal, name, runs, limit = arguments
    _stop_with_parent()
    try:
        definition = find_definition(study := open_study(Path(journal), name))
        if definition is None:
            raise UsageError(f"{journal}: expected a sweep named {name!r}; start it with ppo-unified sweep")
        work = Work(study, TrialLocks(Path(journal)), definition, Path(runs))
        ended_by = train_trials(work, int(limit))
    except UsageError as error:
        print_err(str(error))
        return 2
    return 128 + ended_by if ended_by else 0


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    os._exit(code)  # threads of environments must not delay the exit
