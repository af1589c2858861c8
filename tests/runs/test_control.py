"""Start, resume, rename, delete and annotate runs, with real trainers in the tests of processes."""

from __future__ import annotations

import io
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from ppo_unified import __version__, load_preset
from ppo_unified.cli.main import main
from ppo_unified.errors import UsageError
from ppo_unified.runs import background, control, log_tee, notes, preparation, processes, signals
from ppo_unified.runs.folder import Run, Status
from tui.notices import Notices
from tui.runs.entries import Entry
from tui.runs.run_head import format_head

QUICK = ("--total-steps", "500", "--no-stop-when-solved", "--eval.every-steps", "0", "--eval.episodes", "4")
LONG = ("--total-steps", "100000000", "--no-stop-when-solved", "--eval.every-steps", "0")


def wait_for(condition: Callable[[], object], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "timeout"
        time.sleep(0.02)


def make_run(runs: Path, name: str = "a", **changes: object) -> Run:
    """Create the run folder of a finished run."""
    run = Run(runs / name)
    run.path.mkdir(parents=True)
    status = Status(
        name=name, preset="cartpole", kind="gym", state="finished", step=1500, started=1e9, heartbeat=1e9 + 9
    )
    for key, value in changes.items():
        setattr(status, key, value)
    run.write_status(status)
    return run


@pytest.fixture
def live_run(tmp_path: Path) -> Iterator[Run]:
    """A run that a separate process trains."""
    run = control.start(["cartpole", "--name", "a", *LONG], tmp_path / "runs")
    yield run
    if run.is_locked():
        processes.stop(run, kill=True)


@pytest.fixture
def locked_run(tmp_path: Path) -> Iterator[Run]:
    """A run that another process has locked."""
    run = make_run(tmp_path, state="running", host=socket.gethostname())
    code = "import sys; from pathlib import Path; from ppo_unified.runs.folder import Run"
    code += "; run = Run(Path(sys.argv[1])); run.acquire(); input()"
    with subprocess.Popen([sys.executable, "-c", code, str(run.path)], stdin=subprocess.PIPE) as holder:
        wait_for(run.is_locked)
        yield run
        holder.kill()


def test_start_reports_run_early_and_returns_it_training(tmp_path: Path) -> None:
    seen: list[tuple[Run, str]] = []
    run = control.start(
        ["cartpole", *QUICK], tmp_path / "runs", on_created=lambda run: seen.append((run, run.read_status().state))
    )
    assert [found.path for found, _ in seen] == [run.path] == [tmp_path / "runs" / "cartpole-s1"]
    assert seen[0][1] == "starting"
    assert run.read_status().state in ("running", "finished")
    wait_for(lambda: run.read_status().state == "finished")
    assert run.command.read_text() == f"ppo-unified train cartpole {' '.join(QUICK)} --runs {run.path.parent}\n"


def kill_standby(standby: background.Standby | None) -> background.Standby:
    assert standby is not None
    os.kill(standby.child.pid, signal.SIGKILL)
    wait_for(lambda: not standby.is_waiting)
    return standby


def test_ended_standby_is_replaced_by_a_new_process(tmp_path: Path) -> None:
    standby_slot = background.StandbySlot()
    standby_slot.fill()
    first = kill_standby(standby_slot._standby)
    standby_slot.fill()
    assert first.errors.closed
    second = kill_standby(standby_slot.take())
    with pytest.raises(UsageError, match="did you mean 'cartpole'"):
        control.start(["cartpol"], tmp_path / "runs", standby=second)
    assert second.errors.closed
    standby_slot.fill()
    third = standby_slot.take()
    assert third is not None
    third.discard()
    assert third.child.wait(60) == -signal.SIGKILL
    assert not third.send(["--version"])


def test_failed_start_of_a_standby_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    files = [tempfile.TemporaryFile(), tempfile.TemporaryFile()]  # noqa: SIM115 - the code under test closes them
    monkeypatch.setattr(tempfile, "TemporaryFile", Mock(side_effect=[*files, FileNotFoundError]))
    monkeypatch.setattr(background, "subprocess", Mock(Popen=Mock(side_effect=BlockingIOError)))
    standby_slot = background.StandbySlot()
    standby_slot.fill()
    assert all(file.closed for file in files)
    standby_slot.fill()
    assert standby_slot.take() is None


VERSION = background.encode_arguments(["--version"])
INCOMPLETE = background.encode_arguments(["--version", "--runs"])[:-1]


@pytest.mark.parametrize(
    ("sent", "output"), [(VERSION, f"ppo-unified {__version__}\n"), (INCOMPLETE, ""), (b"", ""), (None, "")]
)
def test_standby_executes_the_command_that_it_receives(tmp_path: Path, sent: bytes | None, output: str) -> None:
    """A failed import is reported by the command. Without a complete command in time, nothing happens."""
    code = "import sys; from ppo_unified.cli import standby; standby.MODULES = ('missing_module',)"
    code += f"; standby.STANDBY_S = {60 if sent is not None else 0}; print('a warning', file=sys.stderr)"
    reading, writing = os.pipe()
    with open(reading, "rb") as stdin, open(writing, "wb") as pipe, (tmp_path / "errors").open("w+b") as errors:
        if sent is not None:
            pipe.write(sent)
            pipe.close()
        command = [sys.executable, "-c", f"{code}; sys.exit(standby.wait())"]
        found = subprocess.run(command, stdin=stdin, stdout=subprocess.PIPE, stderr=errors, check=True, timeout=60)
        errors.seek(0)
        assert (found.stdout.decode(), errors.read()) == (output, b"" if output else b"a warning\n")


def test_concurrent_starts_get_separate_folders(tmp_path: Path) -> None:
    """One of the runs is trained by a standby process."""
    found: list[Run] = []
    standby_slot = background.StandbySlot()
    standby_slot.fill()
    standby = standby_slot.take()
    assert standby is not None
    assert standby_slot.take() is None

    def start(standby: background.Standby | None) -> None:
        found.append(control.start(["cartpole", *QUICK], tmp_path, standby=standby))

    both = [threading.Thread(target=start, args=(each,)) for each in (standby, None)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert {run.name for run in found} == {"cartpole-s1", "cartpole-s1-2"}
    assert standby.child.pid in [run.read_status().pid for run in found]
    wait_for(lambda: all(run.read_status().state == "finished" for run in found))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["cartpol"], "did you mean 'cartpole'"),
        (["cartpole", "--ppo.clp", "1"], "did you mean --ppo.clip"),
        (["cartpole", "--name", "../out"], "start with a letter or digit"),
        (["cartpole", "--device", "cuda"], "torch cannot find a GPU"),  # rejected after the folder was created
    ],
)
def test_rejected_start_is_reported_and_leaves_no_folder(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(UsageError, match=message):
        control.start(arguments, tmp_path / "runs")
    assert not list(tmp_path.glob("runs/*"))


def test_environment_failing_at_start_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import gymnasium as gym\nclass Bad(gym.Env):\n"
    code += " observation_space = gym.spaces.Box(-1, 1, (2,))\n action_space = gym.spaces.Discrete(2)\n"
    code += " resets = 0\n def step(self, action): return self.observation_space.sample(), 0.0, False, False, {}\n"
    code += " def reset(self, *, seed=None, options=None):\n  Bad.resets += 1\n"
    code += "  if Bad.resets > 1: raise OverflowError('the bridge fell down')  # the first reset is a check\n"
    code += "  return self.observation_space.sample(), {}\n"
    (tmp_path / "bad.py").write_text(code + "gym.register('Bad-v0', entry_point=Bad)\n", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    with pytest.raises(UsageError, match=r"bad:Bad-v0: reset\(\): OverflowError: the bridge fell down, in bad.py"):
        control.start(["bad:Bad-v0", "--name", "a"], tmp_path / "runs")
    assert not list((tmp_path / "runs").iterdir())


def test_resume_continues_stopped_and_extends_finished_run(tmp_path: Path, live_run: Run) -> None:
    wait_for(lambda: live_run.read_status().step > 0)
    with pytest.raises(UsageError, match="another process is training in this folder"):
        control.resume(live_run)
    assert processes.stop(live_run, kill=False) == "stopped"
    step = live_run.read_status().step
    control.resume(live_run, f"--total-steps={step + 1000}")
    wait_for(lambda: live_run.read_status().state == "finished")
    assert live_run.read_status().step >= step + 1000
    with pytest.raises(UsageError, match="to train it further, add --total-steps"):
        control.resume(live_run)
    story = [(event.what, event.step) for event in control.list_events(live_run, live_run.read_status())]
    assert story[:2] == [("started", 0), ("resumed", step)]
    assert story[-1] == ("finished", live_run.read_status().step)


def test_dead_trainer_leaves_no_zombie(live_run: Run) -> None:
    pid = live_run.read_status().pid
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not Path("/proc", str(pid)).exists())


def test_rename_moves_folder_and_name(tmp_path: Path) -> None:
    renamed = control.rename(make_run(tmp_path), "b c")
    assert renamed.path == tmp_path / "b c"
    assert renamed.read_status().name == "b c"
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("../b", "start with a letter or digit"),
        ("latest", "the newest run"),
        ("taken", "already exists"),
        ("link", "already exists"),
    ],
)
def test_invalid_name_is_rejected(name: str, message: str, tmp_path: Path) -> None:
    run = make_run(tmp_path)
    (tmp_path / "taken").mkdir()  # an empty folder, which a rename could replace
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UsageError, match=message):
        control.rename(run, name)
    assert run.read_status().name == "a"


def test_running_run_is_neither_renamed_nor_deleted(locked_run: Run) -> None:
    for work in (lambda: control.rename(locked_run, "b"), lambda: control.delete(locked_run)):
        with pytest.raises(UsageError, match=r"a cannot be (renamed|deleted) while it is training; stop it first"):
            work()
    assert locked_run.read_status().name == "a"


def test_run_with_heartbeat_of_another_host_is_not_deleted(tmp_path: Path) -> None:
    run = make_run(tmp_path, state="running", host="elsewhere", heartbeat=time.time())
    with pytest.raises(UsageError, match="training on elsewhere"):
        control.delete(run)
    run.write_status(Status(name="a", state="running", host="elsewhere", heartbeat=time.time() - 1000))
    control.delete(run)
    assert not run.path.exists()


@pytest.mark.parametrize("status", ["", '{"name": 1', '{"state": "starting"}'])
def test_partly_written_run_can_be_deleted(status: str, tmp_path: Path) -> None:
    run = Run(tmp_path / "a")
    (run.path / "checkpoints" / ".half").mkdir(parents=True)
    (run.path / "run.json").write_text(status, encoding="utf-8")
    control.delete(run)
    assert not run.path.exists()


def test_delete_accepts_only_runs(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("words", encoding="utf-8")
    with pytest.raises(UsageError, match=r"not a run folder, because it contains no run\.json"):
        control.delete(Run(tmp_path / "thesis"))
    assert (tmp_path / "thesis" / "chapter.txt").exists()


def test_rename_and_delete_never_follow_links(tmp_path: Path) -> None:
    target = make_run(tmp_path / "elsewhere")
    link = Run(tmp_path / "link")
    link.path.symlink_to(target.path)
    renamed = control.rename(link, "other")
    assert renamed.path.is_symlink()
    assert target.read_status().name == "a"
    control.delete(renamed)
    assert not os.path.lexists(renamed.path)
    assert target.read_status().name == "a"
    outside = tmp_path / "kept.txt"
    outside.write_text("kept", encoding="utf-8")
    (target.path / "samples").symlink_to(tmp_path)
    (target.path / "log.txt").symlink_to(outside)
    control.delete(target)
    assert outside.read_text() == "kept"


def test_failed_delete_can_be_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path)
    (run.path / "checkpoints").mkdir()

    def fail(path: object) -> None:
        raise PermissionError(13, "Permission denied", "checkpoints")

    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", fail)
        with pytest.raises(UsageError, match="checkpoints: deletion failed"):
            control.delete(run)
    control.delete(run)
    assert not run.path.exists()


def test_run_being_deleted_is_hidden_and_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path, state="stopped")
    run.checkpoints.mkdir()
    seen: list[str] = []
    real = shutil.rmtree
    look = "import sys; from pathlib import Path; from ppo_unified.runs.folder import Run, all_runs"
    look += "; found = next(Path(sys.argv[1]).iterdir())"
    look += "; print(found.name, Run(found).is_locked(), *all_runs(found.parent))"

    def list_then_remove(path: Any) -> None:
        seen.append(subprocess.check_output([sys.executable, "-c", look, str(tmp_path)], text=True))
        real(path)

    monkeypatch.setattr(shutil, "rmtree", list_then_remove)
    control.delete(run)
    assert not list(tmp_path.iterdir())
    name, locked = seen[0].split()
    assert name.startswith(".")
    assert locked == "True"


def test_note_that_is_not_utf8_is_rejected(tmp_path: Path) -> None:
    """The note contains surrogates, as Python decodes command-line bytes that are not UTF-8."""
    run = make_run(tmp_path)
    notes.write_note(run, "before")
    there = sorted(os.listdir(run.path))
    with pytest.raises(UsageError, match="not valid UTF-8"):
        notes.write_note(run, os.fsdecode(b"caf\xe9"))
    assert notes.read_note(run) == "before"
    assert sorted(os.listdir(run.path)) == there


@pytest.mark.parametrize("value", ["x", "57", "-1", "1", "9" * 30])
def test_environment_variable_does_not_imply_detached(
    tmp_path: Path, value: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An invalid value of the environment variable is ignored, and child processes do not inherit it."""
    monkeypatch.setenv(background.DETACHED_VARIABLE, value)
    preparation.report_descriptor.cache_clear()
    run = preparation.prepare(load_preset("cartpole"), tmp_path)
    assert background.DETACHED_VARIABLE not in os.environ
    with log_tee.log_output(run):
        print("for people")
    assert capsys.readouterr().out == "for people\n"
    preparation.discard(run)
    assert not run.path.exists()


def test_command_with_any_bytes_is_recorded(tmp_path: Path) -> None:
    run = preparation.prepare(
        load_preset("cartpole"), tmp_path, "a", ["ppo-unified", "train", os.fsdecode(b"r\xe9sum\xe9.toml")]
    )
    assert run.command.read_bytes() == b"ppo-unified train 'r\xe9sum\xe9.toml'\n"
    run.release()


def test_note_is_saved_replaced_and_removed(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    assert notes.read_note(run) == ""
    notes.write_note(run, "  lr too high ✗ ")
    assert notes.read_note(run) == "lr too high ✗"
    notes.write_note(run, "")
    assert not run.note.exists()
    notes.write_note(run, " ")
    assert [path.name for path in run.path.iterdir()] == ["run.json"]


def test_run_events_are_in_order(tmp_path: Path) -> None:
    resumes: list[dict[str, Any]] = [{"time": 1e9 + 5, "step": 700, "from_state": "running"}, {"step": "x"}, {}]
    run = make_run(
        tmp_path, best_step=1200, best_score=400.0, solved_step=1200, resumes=resumes, reason="solved", seed=3
    )
    story = control.list_events(run, run.read_status())
    assert [event.what for event in story] == [
        "started",
        "crashed",
        "resumed",
        "resumed",
        "resumed",
        "best score",
        "solved",
        "finished",
    ]
    assert story[0][:2] == (1e9, 0)
    assert "seed 3" in story[0].text
    assert (story[-1].time, story[-1].step, story[-1].text) == (1e9 + 9, 1500, "solved")
    resumes = [{"step": 16_000, "checkpoint": 8000}, {"step": 10_000, "checkpoint": None}]
    later = make_run(tmp_path, "b", best_step=9000, solved_step=9500, resumes=resumes)
    story = control.list_events(later, later.read_status())  # at its end, the run has fewer steps than at a resume
    assert [event.step for event in story[:-1]] == [0, 16_000, 10_000, 9000, 9500]
    later.write_status(replace(later.read_status(), resumes=resumes[:1], best_step=8000))
    story = control.list_events(later, later.read_status())
    assert [event.step for event in story[:-1]] == [0, 8000, 16_000, 9500]


def test_failure_event_contains_whole_traceback(tmp_path: Path) -> None:
    traceback = "Traceback (most recent call last):\n  File x\nOverflowError: fell\n"
    run = make_run(tmp_path, state="failed", reason="OverflowError: fell", traceback=traceback)
    last = control.list_events(run, run.read_status())[-1]
    assert last.what == "failed"
    assert last.text == "OverflowError: fell\n" + traceback.rstrip()


def test_end_is_described_without_repetition(tmp_path: Path) -> None:
    ends = {
        "stopped by the user": "stopped by the user",
        "solved": "solved",
        "": "failed",
        "x": "failed (x)",
    }
    for reason, described in ends.items():
        state = described.split()[0]
        assert control.describe_end(Run(tmp_path), Status(reason=reason), state) == described
    run = make_run(tmp_path, state="stopped", reason="stopped by SIGTERM")  # a reason of version 0.2
    assert control.list_events(run, run.read_status())[-1][2:] == ("stopped", "by SIGTERM")


def test_kill_by_user_is_no_unexplained_crash(live_run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert processes.stop(live_run, kill=True) == "crashed"
    status = live_run.read_status()
    assert control.list_events(live_run, status)[-1][2:] == ("crashed", "killed by the user")
    entry = Entry("a", live_run.path, False, status, "crashed")
    assert format_head(entry, 80, 24).plain.split("\n")[1:] == ["killed by the user"]
    notices = Notices()
    notices.update({"a": replace(entry, state="running")})
    assert notices.update({"a": entry})[0].text.startswith("a: crashed (killed by the user) after ")
    for words in (["show", "a", "--once"], ["runs"]):
        assert main([*words, "--runs", str(live_run.path.parent)]) == 0
        assert "\n  killed by the user\n" in capsys.readouterr().out + "\n"
    live_run.write_status(replace(status, pid_started=status.pid_started + 60))  # a later trainer with the same id
    later = live_run.read_status()
    assert "without recording a reason" in control.list_events(live_run, later)[-1].text
    assert control.describe_end(live_run, later, "crashed") == "crashed (killed?)"
    assert "without recording a reason" in format_head(replace(entry, status=later), 80, 24).plain


def test_history_of_a_resumed_run_contains_its_crash(tmp_path: Path) -> None:
    run = make_run(tmp_path, state="running", step=700)
    (run.path / "run.lock").touch()
    status = preparation.reopen(run)
    run.release()
    status.state, status.resumes[-1]["checkpoint"] = "stopped", None
    assert status.resumes[-1]["ended"] == 1e9 + 9
    crash, resume = control.list_events(run, status)[1:3]
    assert crash == (1e9 + 9, 700, "crashed", "killed? (no reason was recorded)")
    assert resume[1:3] == (700, "resumed")
    assert resume.text == "after a crash; restarted at step 0, because there was no checkpoint"
    status.resumes = [{"from_state": "running", "step": 700}]  # an entry of an older version
    assert control.list_events(run, status)[1] == (None, 700, "crashed", "killed? (no reason was recorded)")
    status = replace(status, pid=7, pid_started=8.0)
    signals.record_user_stop(run, status, kill=True)
    assert signals.why_ended(run, status, "crashed") == "killed by the user"


def test_crash_event_contains_end_of_log(tmp_path: Path) -> None:
    run = make_run(tmp_path, state="running", host=socket.gethostname())
    run.log.write_text("".join(f"line {i}\n" for i in range(5000)), encoding="utf-8")
    last = control.list_events(run, run.read_status())[-1]
    assert last.what == "crashed"
    assert last.text.splitlines()[-1] == "line 4999"
    assert len(last.text.splitlines()) < 30


def test_run_management_commands_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run(tmp_path)
    where = ["--runs", str(tmp_path)]
    assert main(["rename", "a", "b", *where]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'b'}\n"
    assert main(["note", "b", "good\x1b[2J", *where]) == main(["note", "b", *where]) == 0
    assert capsys.readouterr().out == "good\n"
    monkeypatch.setattr("sys.stdin", io.StringIO("n\n"))
    assert main(["delete", "b", *where]) == 2
    assert "cannot ask for confirmation, because stdin is not a terminal; add --yes" in capsys.readouterr().err
    assert main(["delete", "b", "--yes", *where]) == 0
    assert not (tmp_path / "b").exists()


def test_resume_waits_for_exiting_trainer(tmp_path: Path) -> None:
    """A stopping trainer writes its final state shortly before it releases the lock."""
    run = Run(tmp_path / "a")
    run.path.mkdir()
    run.write_status(Status(name="a", state="stopped", step=7))
    holder = f"""
import sys, time
from pathlib import Path
from ppo_unified.runs.folder import Run
Run(Path({str(run.path)!r})).acquire()
print("held", flush=True)
time.sleep(0.5)
"""
    with subprocess.Popen([sys.executable, "-c", holder], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        assert preparation.reopen(run).step == 7
    run.release()


def test_resume_event_lists_changes_and_inexact_parts(tmp_path: Path) -> None:
    entries = [
        {"time": 1.0, "step": 10, "from_state": "stopped", "restored": "exact"},
        {"time": 2.0, "step": 20, "from_state": "running", "restored": "episodes restarted: why"},
        {"time": 3.0, "step": 30, "from_state": "stopped", "restored": "exact", "changed": {"optim.lr": [0.1, 0.2]}},
    ]
    run = Run(tmp_path / "a")
    status = Status(name="a", state="stopped", resumes=entries)
    texts = [event.text for event in control.list_events(run, status) if event.what == "resumed"]
    assert texts[0] == "previous state: stopped"
    assert texts[1] == "after a crash\nnot restored exactly: episodes restarted: why"
    assert texts[2] == "previous state: stopped\noptim.lr: 0.1 -> 0.2"
