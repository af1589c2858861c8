"""The command `sweep`: wrong usage, workers that are killed or interrupted, and the runs of trials."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import optuna
import psutil
import pytest
from optuna.trial import TrialState

from ppo_unified.cli import sweep_worker
from ppo_unified.cli.sweep import Sweep
from ppo_unified.cli.sweep_worker import TrialListener, Work, train_trials
from ppo_unified.config.presets import load_preset
from ppo_unified.config.space import parse_space
from ppo_unified.runs.folder import Run, Status
from ppo_unified.runs.study import (
    Definition,
    TrialLocks,
    choose_trial,
    define,
    open_study,
    read_scores,
    reason_of,
    report_score,
)
from ppo_unified.runs.trials import mean_score
from tests.cli.commands import Call, wait_for

LR = ("--space", "optim.lr=1e-4..1e-2 log")
TINY: dict[str, Any] = {
    "total_steps": 1500,
    "stop_when_solved": False,
    "ppo": {"epochs": 1},
    "eval": {"every_steps": 500, "episodes": 2},
    "log": {"samples_every": 0},
}


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--space", "optim.lr=1e-4..1e-2", "ppo.epochs=4..9", "cartpole"], "ppo-unified sweep: missing TARGET; write"),
        (["--space", "optim.lrr=1e-4..1e-2"], "--space: unknown option 'optim.lrr'; did you mean 'optim.lr'?"),
        ([*LR, "--optim.lr", "1e-3"], "optim.lr is set and also searched; remove it from --space or remove its flag"),
        ([*LR, "--ppo.clipp", "0.1"], "unknown option --ppo.clipp; did you mean --ppo.clip?"),
        ([*LR, "--trials", "0"], "--trials: expected an integer >= 1, got 0"),
        ([*LR, "--name", "a/b"], "run name 'a/b': use at most 100 characters"),
    ],
)
def test_wrong_usage_is_one_line_and_creates_nothing(
    tmp_path: Path, call: Call, words: list[str], problem: str
) -> None:
    code, out, err = call("sweep", *(() if "cartpole" in words else ("cartpole",)), *words)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(problem)
    assert not list(tmp_path.iterdir())


# A worker whose objective is a formula. The process that trains trial 1 first kills itself, and trial 4 never ends.
WORKER = """
import os, signal, sys, time
from pathlib import Path
from ppo_unified.runs.study import TrialLocks, choose_trial, draw_values, find_definition, open_study, record_outcome
from ppo_unified.runs.trials import Outcome
journal, name, runs, limit = sys.argv[1:]
signal.signal(signal.SIGINT, lambda *_: os._exit(130))
study, locks = open_study(Path(journal), name), TrialLocks(Path(journal))
while (trial := choose_trial(study, locks, int(limit), lambda number: False, 1)) is not None:
    values = draw_values(trial, find_definition(study).read_space())
    if trial.number == 1 and not Path("killed").exists():
        Path("killed").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if trial.number == 4:
        Path("waiting").touch()
        time.sleep(60)
    failed = trial.number == 2
    outcome = Outcome("failed", None, "boom") if failed else Outcome("complete", -abs(float(values["optim.lr"])), "")
    record_outcome(study, trial, outcome)
    locks.release(trial.number)
"""


def test_sweep_restarts_killed_workers_and_can_be_resumed(
    tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(sweep: Sweep, number: int) -> subprocess.Popen[bytes]:
        words = map(str, (sweep.journal, sweep.name, sweep.options.folder, sweep.options.trials))
        return subprocess.Popen([sys.executable, "-c", WORKER, *words], start_new_session=True)

    monkeypatch.setattr(Sweep, "_start", start)
    words = ["sweep", "cartpole", *LR, "--ppo.clip", "0.1"]
    code, out, err = call(*words, "--trials", "4", "--workers", "2")
    assert code == 0, err
    assert "was killed (signal 9); it is restarted and resumes its trial" in err
    assert "trial 2 failed: boom" in err
    lines = out.splitlines()
    assert lines[0] == "cartpole-sweep: 3 complete, 0 pruned, 1 failed"
    assert lines[1].split() == ["trial", "run", "score", "optim.lr"]
    number, run, _, best = lines[2].split()
    assert run == f"cartpole-sweep-{number}"
    command = f"ppo-unified train cartpole --ppo.clip 0.1 --optim.lr {best}"
    assert lines[-1] == f"to train with the options of trial {number}: {command}"

    def interrupt() -> None:
        wait_for((tmp_path / "waiting").exists)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    code, _, err = call(*words, "--trials", "5")
    thread.join()
    assert code == 130
    assert err.startswith("cartpole-sweep: resuming after 4 trials; 5 trials")
    assert err.splitlines()[-1] == "to resume the sweep, repeat the command"
    new = (*words, "--study", "runs/cartpole-sweep/study.journal", "--name", "new", "--trials", "1")
    assert call(*new)[2].startswith("new: starting; 1 trials")
    code, _, err = call(*words, "--objective", "best_score")
    assert (code, err.count("\n")) == (2, 1)
    assert (
        "the sweep 'cartpole-sweep' exists with a different definition (objective); to resume it, repeat its command: "
        "ppo-unified sweep" in err
    )


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Work:
    """A sweep over two options, of which some combinations are invalid. Its runs are tiny."""
    monkeypatch.chdir(tmp_path)
    config = load_preset("cartpole", **TINY)
    space = parse_space(["ppo.objective=clip,penalty", "ppo.penalty_coef=1,2", "ppo.dual_clip=0,0.5"], config)
    entries = {option: values._asdict() for option, values in space.items()}
    definition = Definition("ppo-unified sweep", ["cartpole"], [], config.to_toml(), entries, "mean_score", True)
    journal = tmp_path / "study.journal"
    study = open_study(journal, "try")
    define(study, definition, {"ppo.objective": "clip", "ppo.penalty_coef": "2", "ppo.dual_clip": "0"})
    return Work(study, TrialLocks(journal), definition, Path("runs"))


def states(work: Work) -> list[TrialState]:
    return [trial.state for trial in work.study.trials]


def test_trials_are_runs_and_invalid_ones_have_a_reason(work: Work) -> None:
    work.study.enqueue_trial({"ppo.objective": "clip", "ppo.penalty_coef": "2", "ppo.dual_clip": "0.5"})
    assert train_trials(work, 2) == 0
    assert states(work) == [TrialState.COMPLETE, TrialState.FAIL]
    reason = reason_of(work.study.trials[1])
    assert reason.startswith("invalid combination: ppo.dual_clip: expected 0 (off) or a number > 1, got 0.5")
    assert [path.name for path in work.runs.iterdir()] == ["try-0"]
    status, trial = work.run_of(0).read_status(), work.study.trials[0]
    assert status.state == "finished"
    assert status.sweep["options"] == {"ppo.objective": "clip", "ppo.dual_clip": "0"}  # penalty_coef has no effect
    assert len(trial.intermediate_values) > 1
    assert all(step % 500 == 0 for step in trial.intermediate_values)
    scores = read_scores(optuna.Trial(work.study, trial._trial_id))
    assert max(scores) == status.step
    assert status.sweep["value"] == trial.value == mean_score(scores, 500, 1500)
    words = work.run_of(0).command.read_text().split()
    assert words == ["ppo-unified", "train", "cartpole", "--ppo.objective", "clip", "--ppo.dual-clip", "0.0"]


def test_interrupted_trial_is_resumed_in_its_folder(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupting(TrialListener):
        def __call__(self, status: Status, metrics: dict[str, float]) -> None:
            super().__call__(status, metrics)
            if not status.resumes:
                os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(sweep_worker, "TrialListener", Interrupting)
    assert train_trials(work, 1) == signal.SIGINT
    assert (work.run_of(0).read_status().state, states(work)) == ("stopped", [TrialState.RUNNING])
    assert train_trials(work, 1) == 0
    assert (work.run_of(0).read_status().state, states(work)) == ("finished", [TrialState.COMPLETE])
    assert len(work.run_of(0).read_status().resumes) == 1


def test_trial_with_scores_of_a_run_elsewhere_fails(work: Work) -> None:
    trial = choose_trial(work.study, work.locks, 1, lambda number: False, 1)
    assert trial is not None
    report_score(trial, 500, 3.0, 500)
    work.locks.release(trial.number)
    assert train_trials(work, 1) == 0
    assert reason_of(work.study.trials[0]) == "it was interrupted, and its run is not in runs"


def test_pruned_trial_stops_its_run(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optuna.Trial, "should_prune", lambda trial: True)
    assert train_trials(work, 1) == 0
    assert states(work) == [TrialState.PRUNED]
    status = work.run_of(0).read_status()
    assert status.state == "stopped"
    assert 500 <= status.step < 1000
    assert status.reason.startswith("pruned by the sweep: score ")
    assert train_trials(work, 1) == 0  # nothing is left


def test_trial_whose_process_is_killed_repeatedly_fails(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    def kill(*_: object) -> None:
        raise KeyboardInterrupt  # leaves the trial as if the process had been killed

    monkeypatch.setattr(sweep_worker, "_start", kill)
    for _ in range(sweep_worker.ATTEMPTS):
        with pytest.raises(KeyboardInterrupt):
            train_trials(work, 1)
    assert train_trials(work, 1) == 0
    assert reason_of(work.study.trials[0]) == "its process was killed 3 times"


@pytest.mark.exhaustive
def test_sweep_survives_kill_of_a_training_worker(tmp_path: Path) -> None:
    words = ["sweep", "cartpole", *LR, "--trials", "4", "--workers", "2", "--total-steps", "20000", "--no-prune"]
    words += ["--no-stop-when-solved", "--eval.episodes", "5"]
    run = Run(tmp_path / "runs" / "cartpole-sweep-1")
    with subprocess.Popen([sys.executable, "-m", "ppo_unified", *words], cwd=tmp_path) as process:
        wait_for(lambda: (run.path / "run.json").exists() and run.read_status().step > 0)
        worker = psutil.Process(run.holder())
        assert worker.ppid() == process.pid
        worker.kill()
        assert process.wait(timeout=240) == 0
    trials = open_study(tmp_path / "runs" / "cartpole-sweep" / "study.journal", "cartpole-sweep").trials
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 4
    assert len(run.read_status().resumes) == 1
