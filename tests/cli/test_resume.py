"""Tests of the commands `resume` and `stop`; those that depend on processes start real ones."""

from __future__ import annotations

import errno
import io
import os
import re
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from ppo_unified.cli import resume
from ppo_unified.cli.main import main
from ppo_unified.config.presets import load_preset
from ppo_unified.runs import preparation
from ppo_unified.runs.event_reader import EventReader
from ppo_unified.runs.folder import Run
from tests.cli.commands import LONG, QUICK, Call, command, wait_for


def test_stopped_run_resumes_with_one_continuous_curve(tmp_path: Path, call: Call) -> None:
    started = command("train", "cartpole", "--name", "a", "--detach", *LONG, cwd=tmp_path)
    assert started.returncode == 0, started.stderr
    run = Run(tmp_path / "runs" / "a")
    wait_for(lambda: run.read_status().step > 0)
    assert run.is_locked()
    code, _, error = call("resume", "a")
    assert code == 2
    assert "another process is training in this folder" in error
    assert call("stop", "a")[0] == 0
    status = run.read_status()
    assert (status.state, status.reason) == ("stopped", "stopped by the user")
    assert call("resume", "a", "--total-steps", str(status.step + 1000))[0] == 0
    after = run.read_status()
    assert after.state == "finished"
    assert after.step >= status.step + 1000
    assert len(after.resumes) == 1
    reader = EventReader(run.path)
    reader.poll()
    steps = list(reader.series["policy/kl"].steps)
    assert steps == sorted(set(steps))
    assert steps[-1] == after.step
    assert call("stop", "a")[0] == 2


def test_solved_run_resumes_only_with_higher_target(tmp_path: Path, call: Call) -> None:
    easy = ("--eval.threshold", "5", "--eval.every-steps", "500", "--eval.episodes", "4")
    assert "a: solved after" in call("train", "cartpole", "--name", "a", *easy)[1]
    run = Run(tmp_path / "runs" / "a")
    steps = run.read_status().step
    code, _, error = call("resume", "a")
    assert code == 2
    assert "was solved at" in error
    assert call("resume", "a", "--total-steps", str(steps + 1500))[0] == 0
    status = run.read_status()
    assert (status.reason, status.solved_step) == ("total_steps reached", steps)
    assert status.step >= steps + 1500


def test_solved_run_resumes_until_a_higher_threshold(tmp_path: Path, call: Call) -> None:
    easy = ("--eval.threshold", "5", "--eval.every-steps", "500", "--eval.episodes", "4")
    assert call("train", "cartpole", "--name", "a", *easy)[0] == 0
    _, output, error = call("resume", "a", "--total-steps", "90000", "--eval.threshold", "12")
    assert "a: solved after" in output, error
    assert Run(tmp_path / "runs" / "a").read_status().step < 90_000


def test_killed_run_without_checkpoint_restarts(tmp_path: Path, call: Call) -> None:
    assert call("train", "cartpole", "--name", "a", "--detach", *LONG)[0] == 0
    run = Run(tmp_path / "runs" / "a")
    wait_for(lambda: run.read_status().step > 0)
    os.kill(run.read_status().pid, signal.SIGKILL)
    wait_for(lambda: not run.is_locked())
    assert run.state(run.read_status()) == "crashed"
    error = call("resume", "a", "--yes", "--total-steps", "1")[2]
    assert "expected an integer above" in error  # run.json already records more steps
    assert call("resume", "a", "--detach")[0] == 2
    code, _, error = call("resume", "a", "--detach", "--yes")
    assert code == 0, error
    wait_for(lambda: run.read_status().state == "running")
    entry = run.read_status().resumes[-1]
    assert (entry["reason"], entry["checkpoint"]) == ("killed? (no reason was recorded)", None)
    assert call("stop", "a", "--kill")[0] == 0


def test_rejected_resume_leaves_run_unchanged(tmp_path: Path, call: Call) -> None:
    assert call("train", "cartpole", "--name", "a", *QUICK)[0] == 0
    run = Run(tmp_path / "runs" / "a")
    before = run.read_status()
    for path in run.checkpoints.glob("*/trainer.json"):
        path.write_bytes(b"torn")
    code, _, error = call("resume", "a", "--total-steps", "9000")
    assert code == 2
    assert re.search(r"trainer\.json: the file is damaged \(expected [0-9,]+ bytes, got 4\)", error)
    assert run.read_status() == before
    assert "total_steps = 1500" in run.config.read_text()
    assert not run.original_config.exists()
    code, _, error = call("resume", "a", "--total-steps", "9000", "--detach")
    assert code == 2
    assert re.search(r"trainer\.json: the file is damaged \(expected [0-9,]+ bytes, got 4\)", error)
    assert run.read_status() == before


@pytest.mark.parametrize(
    ("flags", "change"),
    [(("--policy.hidden", "8"), "policy.hidden cannot be changed from [64, 64] to [8]")]
    + [(("--seed", "4"), "seed cannot be changed from 1 to 4")],
)
def test_finished_run_reports_an_option_that_cannot_change(
    stopped: Run, capsys: pytest.CaptureFixture[str], flags: tuple[str, ...], change: str
) -> None:
    status = stopped.read_status()
    status.state, status.reason = "finished", "total_steps reached"
    stopped.write_status(status)
    assert main(["resume", "a", *flags, "--runs", str(stopped.path.parent)]) == 2
    why = "because a resumed run keeps its policy and training data"
    command = f"ppo-unified train {stopped.config} {' '.join(flags)}"
    assert capsys.readouterr().err == f"a: {change} on resume, {why}; start a new run: {command}\n"


@pytest.fixture
def stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A stopped run that `resume` prepares but does not train."""
    run = preparation.prepare(load_preset("cartpole"), tmp_path, "a")
    status = run.read_status()
    status.state, status.step = "stopped", 4000
    run.write_status(status)
    run.release()
    (run.checkpoints / "000000004000").mkdir(parents=True)
    monkeypatch.setattr(resume, "run_training", lambda run, *_: run.release() or 0)
    return run


FASTER = ("resume", "a", "--total-steps", "9000", "--optim.lr", "1e-5")


def test_resume_killed_before_its_change_can_be_repeated(stopped: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = [*FASTER, "--runs", str(stopped.path.parent)]
    status = stopped.read_status()
    status.estimate = {"steps": 1}  # of the options before the change
    stopped.write_status(status)

    class Killed(BaseException):
        pass

    def killed(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(resume, "write_atomically", killed)
        with pytest.raises(Killed):
            main(arguments)
    assert "lr = 1e-05" not in stopped.config.read_text()
    assert main(arguments) == 0
    first, second = stopped.read_status().resumes
    assert "changed" not in first
    assert stopped.read_status().estimate == {}
    assert second["changed"]["optim.lr"] == [0.002, 1e-5]
    assert "lr = 1e-05" in stopped.config.read_text()
    assert main(["resume", "a", "--runs", str(stopped.path.parent)]) == 0
    assert stopped.read_status().resumes[1]["changed"] == second["changed"]


def test_resume_on_full_disk_leaves_run_unchanged(
    stopped: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = stopped.read_status(), stopped.config.read_text()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(resume, "write_atomically", full)
    assert main([*FASTER, "--runs", str(stopped.path.parent)]) == 2
    assert "cannot write to the run folder (No space left on device)" in capsys.readouterr().err
    assert (stopped.read_status(), stopped.config.read_text()) == before


def test_resume_without_checkpoint_explains_start_at_step_0(stopped: Run, capsys: pytest.CaptureFixture[str]) -> None:
    again = ["resume", "a", "--yes", "--runs", str(stopped.path.parent)]
    shutil.rmtree(stopped.checkpoints)
    for names, message in (
        ((), "a has no checkpoint; training starts at step 0"),
        ((".000000004000.12.tmp",), "a has no checkpoint; training starts at step 0"),
        (("000000004000.bak",), "contains 000000004000.bak); training starts at step 0"),
        (("000000004000",), ""),
    ):
        for name in names:
            (stopped.checkpoints / name).mkdir(parents=True)
        assert main(again) == 0
        error = capsys.readouterr().err
        assert message in error
        assert bool(message) == ("step 0" in error)


def test_total_steps_beyond_int64_are_rejected(stopped: Run, capsys: pytest.CaptureFixture[str]) -> None:
    before = stopped.read_status()
    assert main(["resume", "a", "--total-steps", "9" * 25, "--runs", str(stopped.path.parent)]) == 2
    assert "total_steps" in capsys.readouterr().err.replace("-", "_")
    assert stopped.read_status() == before


def test_restart_at_step_0_needs_confirmation(
    stopped: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run was killed before its first checkpoint. Scripts need --yes, and users answer a question."""
    again = ["resume", "a", "--runs", str(stopped.path.parent)]
    shutil.rmtree(stopped.checkpoints)
    status = stopped.read_status()
    stopped.write_status(replace(status, state="running"))
    written = stopped.path.joinpath("run.json").read_bytes()
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    for flags in ([], ["--detach"]):
        assert main([*again, *flags]) == 2
        error = capsys.readouterr().err
        assert f"restarts the training at step 0 and discards the curves and samples of {status.step:,} steps" in error
        assert "cannot ask for confirmation, because stdin is not a terminal; add --yes" in error
    monkeypatch.setattr("sys.stdin", typed := io.StringIO("n\n"))
    monkeypatch.setattr(typed, "isatty", lambda: True)
    assert main(again) == 130
    assert "steps. Restart? [y/N] " in capsys.readouterr().err
    assert stopped.path.joinpath("run.json").read_bytes() == written
    for flags, message in ((["--optim.lrr", "1"], "optim.lr"), (["--total-steps", "1"], "expected an integer above")):
        assert main([*again, *flags]) == 2
        assert message in (error := capsys.readouterr().err)
        assert "Restart?" not in error  # an invalid option is reported before the question
    with monkeypatch.context() as patch:  # the last trainer is exiting
        patch.setattr(Run, "is_locked", lambda self: True)
        stopped.write_status(replace(status, state="failed"))
        assert main(again) == 130
        assert "Restart?" in capsys.readouterr().err
        stopped.write_status(replace(status, state="running"))
    assert main([*again, "--yes"]) == 0
    entry = stopped.read_status().resumes[-1]
    assert (entry["from_state"], entry["step"]) == ("running", status.step)
    assert (entry["reason"], entry["ended"]) == ("killed? (no reason was recorded)", status.heartbeat)


def test_restart_that_discards_nothing_needs_no_confirmation(stopped: Run) -> None:
    shutil.rmtree(stopped.checkpoints)
    stopped.write_status(replace(stopped.read_status(), step=0))
    assert main(["resume", "a", "--runs", str(stopped.path.parent)]) == 0
