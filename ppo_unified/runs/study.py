"""The study of a hyperparameter sweep, in Optuna's journal file. Several processes and machines can share it.

A process holds a lock on the trial that it works on. The kernel releases the lock when the process ends, even after
kill -9, so that another process can take over the trial. Only the commands for sweeps import this module, because it
needs the package optuna.
"""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import optuna
from optuna.storages.journal import JournalFileBackend, JournalStorage
from optuna.trial import FrozenTrial, Trial, TrialState

from ppo_unified.config.space import Choices, Range, Space
from ppo_unified.errors import UsageError
from ppo_unified.parsing import open_file
from ppo_unified.runs.trials import Outcome

STARTUP_TRIALS = 5  # number of random trials before the sampler learns from results, and before trials are pruned
STATES = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}
_LINE = b'{"op_code"'  # the start of each line of a journal
_DEFINITION, _REASON = "definition", "reason"  # names of attributes in the journal
_SCORE = "score at step "  # how the names of the attributes start that store the scores of a trial


class Definition(NamedTuple):
    """What a sweep searches. Every process that works on the sweep must have the same definition."""

    command: str  # the command line that created the sweep
    target: list[str]  # the words after `ppo-unified train` that name the target
    flags: list[str]  # the flags for the options that are equal in all trials
    config: str  # the options before those of a trial are applied, as TOML
    space: dict[str, dict[str, Any]]
    objective: str
    pruning: bool  # unpromising trials are stopped early

    def read_space(self) -> Space:
        return {
            option: Choices(**entry) if "values" in entry else Range(**entry) for option, entry in self.space.items()
        }


class JournalLock:
    """An exclusive lock on a journal file, which the kernel releases if the process that holds it is killed."""

    def __init__(self, journal: Path) -> None:
        self._journal, self._path = journal, journal.with_name(f"{journal.name}.lock")
        self._file: IO[str] | None = None

    def acquire(self) -> bool:
        """Wait for the lock. Then remove the incomplete last line that a killed process may have written."""
        self._file = open(self._path, "a")  # noqa: SIM115 - `release` closes it
        fcntl.lockf(self._file, fcntl.LOCK_EX)
        with open(self._journal, "r+b") as journal:
            size = journal.seek(0, os.SEEK_END)
            journal.seek(max(0, size - 1))
            if journal.read() not in (b"", b"\n"):
                journal.seek(0)
                journal.truncate(journal.read().rfind(b"\n") + 1)
        return True

    def release(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


class TrialLocks:
    """The locks of a study's trials: bytes of one file. Each process must create only one instance per study."""

    def __init__(self, journal: Path) -> None:
        path = journal.with_name(f"{journal.name}.trials")
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)  # never closed, because this would drop all locks

    @contextmanager
    def choosing(self) -> Iterator[None]:
        """Hold the lock for choosing a trial, so that only one process chooses at a time."""
        fcntl.lockf(self._file, fcntl.LOCK_EX, 1, 0)
        try:
            yield
        finally:
            fcntl.lockf(self._file, fcntl.LOCK_UN, 1, 0)

    def acquire(self, number: int) -> bool:
        """Lock a trial until this process ends or releases it. Return False if another process works on it."""
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, number + 1)
        except OSError:
            return False
        return True

    def release(self, number: int) -> None:
        fcntl.lockf(self._file, fcntl.LOCK_UN, 1, number + 1)


def open_study(journal: Path, name: str) -> optuna.Study:
    """Open a study or create it. Raises UsageError if the file cannot be written or is not a journal."""
    optuna.logging.set_verbosity(logging.ERROR)
    pruner = optuna.pruners.MedianPruner(n_startup_trials=STARTUP_TRIALS)
    try:
        if journal.exists():
            with open_file(journal) as file:
                if not _LINE.startswith(file.read(len(_LINE))):
                    raise ValueError("the first line is not a journal entry")
        journal.parent.mkdir(parents=True, exist_ok=True)
        backend = JournalFileBackend(str(journal), JournalLock(journal))  # type: ignore[arg-type]  # has its methods
        return optuna.create_study(
            storage=JournalStorage(backend),
            study_name=name,
            pruner=pruner,
            direction="maximize",
            load_if_exists=True,
        )
    except OSError as error:
        raise UsageError(f"{journal}: cannot write the study ({error.strerror}); choose another --study") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{journal}: expected the journal of a sweep ({error}); choose another --study") from None


def define(study: optuna.Study, definition: Definition, first: Mapping[str, str] | None) -> None:
    """Store the definition of a new sweep, or check that an existing sweep has the same definition.

    The first trial of a new sweep has the values `first`. Raises UsageError if the definitions differ.
    """
    known = find_definition(study)
    if known is None:
        study.set_user_attr(_DEFINITION, definition._asdict())
        if first is not None:
            space = definition.read_space()
            study.enqueue_trial({option: _to_optuna(space[option], text) for option, text in first.items()})
        return
    pairs = zip(known[1:], definition[1:], Definition._fields[1:], strict=True)
    if different := [field for before, now, field in pairs if before != now]:
        raise UsageError(
            f"the sweep {study.study_name!r} exists with a different definition ({different[0]}); to resume it, repeat "
            f"its command: {known.command}; to start a new sweep, choose another --name"
        )


def find_definition(study: optuna.Study) -> Definition | None:
    """Return the stored definition of a sweep, or None if it has none yet."""
    stored = study.user_attrs.get(_DEFINITION)
    return Definition(**stored) if stored else None


def choose_trial(
    study: optuna.Study, locks: TrialLocks, limit: int, is_training: Callable[[int], bool], seed: int
) -> Trial | None:
    """Return an abandoned trial. Without one, return a new trial, or None if the study already has `limit` trials.

    A trial is abandoned if it has no result, no process has its lock, and `is_training` is false for its number.
    Afterwards, this process has the lock of the returned trial. The values of a trial depend only on the `seed`, its
    number and the results so far, so a resumed sweep draws the same values as an uninterrupted one.
    """
    with locks.choosing():
        known = study.get_trials(deepcopy=False)
        trials = [trial for trial in known if trial.state != TrialState.WAITING]
        for trial in trials:
            is_free = trial.state == TrialState.RUNNING and not is_training(trial.number)
            if is_free and locks.acquire(trial.number):
                study.sampler = _make_sampler(seed, trial.number)
                return Trial(study, trial._trial_id)
        if len(trials) >= limit:
            return None
        waiting = [trial.number for trial in known if trial.state == TrialState.WAITING]
        study.sampler = _make_sampler(seed, min(waiting, default=len(known)))
        new = study.ask()
        locks.acquire(new.number)
        return new


def _make_sampler(seed: int, number: int) -> optuna.samplers.TPESampler:
    """Return the sampler of one trial. Optuna can store neither the state of a sampler nor set it."""
    return optuna.samplers.TPESampler(
        n_startup_trials=STARTUP_TRIALS, seed=int(np.random.SeedSequence((seed, number)).generate_state(1)[0])
    )


def draw_values(trial: Trial, space: Space) -> dict[str, str]:
    """Return the values of a trial's options, as text."""
    found = {}
    for option, values in space.items():
        if isinstance(values, Choices):
            found[option] = str(trial.suggest_categorical(option, list(values.values)))
        elif values.is_integer:
            found[option] = values.format(trial.suggest_int(option, int(values.low), int(values.high), log=values.log))
        else:
            found[option] = values.format(trial.suggest_float(option, values.low, values.high, log=values.log))
    return found


def _to_optuna(values: Range | Choices, text: str) -> str | int | float:
    if isinstance(values, Choices):
        return text
    return int(text) if values.is_integer else float(text)


def report_score(trial: Trial, step: int, score: float, every: int) -> dict[int, float]:
    """Store the score of an evaluation. Return all scores of the trial by step. A repeated report has no effect.

    Runs with different rollouts evaluate at slightly different steps. The pruner compares the first evaluations of
    trials after each multiple of `every` steps.
    """
    scores, compared = read_scores(trial), _find_stored(trial).intermediate_values
    if step not in scores:
        trial.set_user_attr(f"{_SCORE}{step}", score)
        scores[step] = score
    rounded = step // every * every if every else step
    if rounded not in compared:
        trial.report(score, rounded)
    return scores


def read_scores(trial: Trial) -> dict[int, float]:
    """Return the scores of a trial's evaluations by step."""
    attributes = _find_stored(trial).user_attrs.items()
    return {int(name.removeprefix(_SCORE)): score for name, score in attributes if name.startswith(_SCORE)}


def _find_stored(trial: Trial) -> FrozenTrial:
    return trial.study.get_trials(deepcopy=False)[trial.number]


def count_attempt(trial: Trial) -> int:
    """Record that a process starts to work on a trial. Return the number of earlier processes that were killed."""
    killed: int = trial.user_attrs.get("attempts", 0)
    trial.set_user_attr("attempts", killed + 1)
    return killed


def undo_attempt(trial: Trial) -> None:
    """Do not count the current attempt, because the process stopped without being killed."""
    trial.set_user_attr("attempts", trial.user_attrs.get("attempts", 1) - 1)


def record_outcome(study: optuna.Study, trial: Trial, outcome: Outcome) -> None:
    """Store the result of a trial."""
    if outcome.reason:
        trial.set_user_attr(_REASON, outcome.reason)
    study.tell(trial, outcome.value, STATES[outcome.result], skip_if_finished=True)


def reason_of(trial: FrozenTrial) -> str:
    """Return why a trial failed or was pruned, or ""."""
    return str(trial.user_attrs.get(_REASON, ""))


def finished_trials(study: optuna.Study) -> list[FrozenTrial]:
    """Return the trials that have a result, by number."""
    return [trial for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()]


def best_trial(study: optuna.Study) -> FrozenTrial | None:
    """Return the complete trial with the largest value, or None if no trial is complete."""
    complete = [trial for trial in finished_trials(study) if trial.state == TrialState.COMPLETE]
    return max(complete, key=lambda trial: (trial.value or 0.0, -trial.number), default=None)


def trial_values(trial: FrozenTrial, space: Space) -> dict[str, str]:
    """Return the values of a trial's options, as text. Options that have not been drawn are missing."""
    return {
        option: values.format(trial.params[option]) if isinstance(values, Range) else str(trial.params[option])
        for option, values in space.items()
        if option in trial.params
    }
