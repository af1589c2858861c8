"""The study of a sweep: its trials, their locks, and processes that are killed. Each objective is a formula."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from ppo_unified.config.space import Choices, Range, Space
from ppo_unified.errors import UsageError
from ppo_unified.runs.folder import Run, Status
from ppo_unified.runs.study import (
    Definition,
    TrialLocks,
    best_trial,
    choose_trial,
    define,
    draw_values,
    finished_trials,
    open_study,
    record_outcome,
    report_score,
    trial_values,
)
from ppo_unified.runs.trials import Outcome, find_outcome, mean_score, trial_value

SPACE: Space = {
    "optim.lr": Range(1e-4, 1e-2, True, False),
    "ppo.epochs": Range(4, 20, False, True),
    "policy.activation": Choices(["tanh", "relu"]),
}
FIRST = {"optim.lr": "0.002", "ppo.epochs": "10", "policy.activation": "relu"}
DEFINITION = Definition(
    "ppo-unified sweep x", ["x"], [], "", {key: value._asdict() for key, value in SPACE.items()}, "score", True
)


def idle(_number: int) -> bool:
    """No run is training."""
    return False


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    """The journal of a new sweep."""
    path = tmp_path / "sweep" / "study.journal"
    define(open_study(path, "x"), DEFINITION, FIRST)
    return path


def work(journal: Path, limit: int, objective: Callable[[dict[str, str]], float]) -> optuna.Study:
    """Finish the trials of a study, as a worker does."""
    study, locks = open_study(journal, "x"), TrialLocks(journal)
    while (trial := choose_trial(study, locks, limit, idle, 1)) is not None:
        values = draw_values(trial, SPACE)
        record_outcome(study, trial, Outcome("complete", objective(values), ""))
        locks.release(trial.number)
    return study


def fork(function: Callable[[], object]) -> int:
    """Call a function in another process, and return the signal that killed the process, or 0."""
    child = os.fork()
    if not child:
        function()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


def test_first_trial_has_the_options_of_the_target(journal: Path) -> None:
    study = work(journal, 12, lambda values: -abs(float(values["optim.lr"]) - 1e-3))
    trials = finished_trials(study)
    assert [trial.number for trial in trials] == list(range(12))
    assert trial_values(trials[0], SPACE) == FIRST
    assert all(trial_values(trial, SPACE)["policy.activation"] in ("tanh", "relu") for trial in trials)
    best = best_trial(study)
    assert best is not None
    assert best.value == max(trial.value or 0.0 for trial in trials)
    assert choose_trial(study, TrialLocks(journal), 12, idle, 1) is None


def test_resumed_sweep_draws_the_same_values(tmp_path: Path) -> None:
    def values_after(name: str, limits: list[int]) -> list[dict[str, str]]:
        define(open_study(path := tmp_path / name, "x"), DEFINITION, FIRST)
        for limit in limits:
            study = work(path, limit, lambda values: float(values["ppo.epochs"]))
        return [trial_values(trial, SPACE) for trial in study.trials]

    values = values_after("uninterrupted", [8])
    assert values_after("resumed", [3, 3, 7, 8]) == values
    assert len({str(drawn) for drawn in values}) == 8


def test_trial_of_a_killed_process_is_taken_over(journal: Path) -> None:
    def die() -> None:
        trial = choose_trial(open_study(journal, "x"), TrialLocks(journal), 3, idle, 1)
        assert trial is not None
        draw_values(trial, SPACE)
        os.kill(os.getpid(), signal.SIGKILL)

    assert fork(die) == signal.SIGKILL
    with open(journal, "ab") as file:
        file.write(b'{"op_code": 6, "worker_')  # a line that the killed process could not complete
    study = open_study(journal, "x")
    assert study.trials[0].state == TrialState.RUNNING
    busy = choose_trial(study, TrialLocks(journal), 1, lambda number: number == 0, 1)
    assert busy is None  # someone has resumed its run by hand
    study = work(journal, 3, lambda values: float(values["ppo.epochs"]))
    assert [(trial.number, trial.state) for trial in finished_trials(study)] == [
        (number, TrialState.COMPLETE) for number in range(3)
    ]
    assert trial_values(study.trials[0], SPACE) == FIRST


def test_processes_never_work_on_the_same_trial(journal: Path) -> None:
    locks = TrialLocks(journal)
    mine = choose_trial(open_study(journal, "x"), locks, 2, idle, 1)
    assert mine is not None

    def work_on_others() -> None:
        study = work(journal, 2, lambda values: 1.0)
        os._exit(0 if [trial.number for trial in finished_trials(study)] == [1] else 1)

    child = os.fork()
    if not child:
        work_on_others()
    assert os.waitpid(child, 0)[1] == 0


def test_sweep_with_another_definition_is_rejected(journal: Path) -> None:
    study = open_study(journal, "x")
    define(study, DEFINITION._replace(command="written in another way"), FIRST)
    with pytest.raises(UsageError, match=r"definition \(objective\); .* its command: ppo-unified sweep x; to start"):
        define(study, DEFINITION._replace(objective="best_score"), FIRST)
    for text in ("not a journal\n", "one line"):
        (journal.parent / "text").write_text(text)
        with pytest.raises(UsageError, match="expected the journal of a sweep"):
            open_study(journal.parent / "text", "x")
        assert (journal.parent / "text").read_text() == text


def test_repeated_report_of_a_score_has_no_effect(journal: Path) -> None:
    """A resumed run evaluates again at steps after its checkpoint."""
    study = open_study(journal, "x")
    trial = choose_trial(study, TrialLocks(journal), 1, idle, 1)
    assert trial is not None
    assert report_score(trial, 1024, 3.0, 1000) == {1024: 3.0}
    assert report_score(trial, 1024, 4.0, 1000) == {1024: 3.0}
    assert report_score(trial, 1500, 5.0, 1000) == {1024: 3.0, 1500: 5.0}  # the last step of a run
    assert report_score(trial, 2048, 6.0, 1000) == {1024: 3.0, 1500: 5.0, 2048: 6.0}
    assert study.trials[0].intermediate_values == {1000: 3.0, 2000: 6.0}


def test_mean_score_holds_each_score_until_the_next() -> None:
    assert mean_score({0: 0.0, 1000: 100.0, 2000: 400.0}, 1000, 3000) == (0 + 100 + 2 * 400) / 4
    assert mean_score({0: 0.0, 2000: 400.0}, 1000, 3000) == (0 + 0 + 400 + 400) / 4
    assert mean_score({0: 7.0}, 0, 0) == 7.0


@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        ({"state": "finished", "score": 3.0}, Outcome("complete", 3.0, "")),
        ({"state": "finished"}, Outcome("failed", None, "no finite score")),
        ({"state": "failed", "reason": "boom"}, Outcome("failed", None, "boom")),
        (
            {"state": "stopped", "reason": "pruned by the sweep: score 1 at step 9"},
            Outcome("pruned", None, "pruned by the sweep: score 1 at step 9"),
        ),
        ({"state": "stopped", "reason": "stopped by Ctrl-C"}, None),
        ({"state": "running"}, None),  # crashed
    ],
)
def test_state_of_a_run_decides_the_result_of_its_trial(
    tmp_path: Path, status: dict[str, object], outcome: Outcome | None
) -> None:
    written = Status(**status, sweep={"objective": "score"})  # type: ignore[arg-type]  # values of various fields
    assert find_outcome(Run(tmp_path), written) == outcome
    written.sweep = {"objective": "mean_score", "value": 2.5}
    assert trial_value(written) == 2.5
