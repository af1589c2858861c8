"""Tests the UI's store with real folders, files and processes: states, speeds and curves of runs."""

from __future__ import annotations

import errno
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ppo_unified.runs import event_reader, folder
from ppo_unified.runs.event_format import PREFIX
from ppo_unified.runs.event_writer import EventWriter
from ppo_unified.runs.folder import STALLED_S, Run, Status
from ppo_unified.runs.metrics import AWAITED
from ppo_unified.runs.notes import write_note
from ppo_unified.runs.query import parse
from tui import folder_scanner, store
from tui.notices import Notices
from tui.runs.entries import Entry, select_entries, sort_entries
from tui.store import Store

HOLD = """
import sys
from pathlib import Path
from ppo_unified.runs.folder import Run
run = Run(Path(sys.argv[1]))
run.acquire()
print("held", flush=True)
sys.stdin.readline()
"""


class Clock:
    """A clock that tests control."""

    def __init__(self) -> None:
        self.now = time.time()

    def __call__(self) -> float:
        return self.now


def make(folder: Path, name: str, **fields: object) -> Run:
    """Create a run folder with a run.json; the run is finished by default."""
    run = Run(folder / name)
    run.path.mkdir(parents=True, exist_ok=True)
    status = Status(name=name, preset="cartpole", state="finished", step=100, total_steps=200, started=1e9)
    run.write_status(replace(status, **fields))  # type: ignore[arg-type]  # any fields
    return run


def log(folder: Path, steps: range = range(1, 11), tags: tuple[str, ...] = ("loss/value",)) -> None:
    """Create a folder with an event file, in which each value equals its step."""
    folder.mkdir(parents=True, exist_ok=True)
    writer = EventWriter(folder, steps.start)
    for step in steps:
        writer.scalars(step, dict.fromkeys(tags, float(step)))
    writer.close()


def read_all(it: Store) -> None:
    while it.update().pending:
        pass


@contextmanager
def trainer(run: Run) -> Iterator[subprocess.Popen[str]]:
    """Start a process that holds the run's lock."""
    command = [sys.executable, "-c", HOLD, str(run.path)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


@pytest.fixture
def clock() -> Clock:
    return Clock()


# listing


def test_new_runs_appear_and_deleted_runs_disappear(tmp_path: Path, clock: Clock) -> None:
    runs = tmp_path / "runs"
    it = Store(runs, clock)
    assert not it.update().listed  # the runs folder may not exist yet
    assert not it.problem
    make(runs, "a")
    assert not it.update().listed  # the next scan is not due yet
    clock.now += 1
    assert it.update().listed
    entry = it.entries["a"]
    assert (entry.path, entry.foreign, entry.state, entry.status.step) == (runs / "a", False, "finished", 100)
    clock.now += 1
    assert not it.update().listed
    shutil.rmtree(runs / "a")
    clock.now += 1
    assert it.update().listed
    assert not it.entries


def test_options_are_read_after_the_runs_are_listed(tmp_path: Path, clock: Clock) -> None:
    for name in "ab":
        make(tmp_path, name).config.write_text("seed = 1\n[optim]\nlr = 0.5\n")
    make(tmp_path, "damaged").config.write_text("[")
    it = Store(tmp_path, clock)
    changes = it.update(0.0)
    assert (changes.listed, changes.pending, it.entries["a"].options) == (True, True, {})
    while it.update(0.0).pending:
        pass
    assert [dict(entry.options) for entry in it.entries.values()] == [{"seed": 1, "optim.lr": 0.5}] * 2 + [{}]
    before = it.entries["b"]
    make(tmp_path, "a", step=150).config.write_text("seed = 2\n")
    clock.now += 1
    read_all(it)
    assert (it.entries["a"].options, it.entries["a"].status.step) == ({"seed": 2}, 150)
    assert it.entries["b"] is before


def test_returned_entries_are_never_modified(tmp_path: Path, clock: Clock) -> None:
    make(tmp_path, "a")
    it = Store(tmp_path, clock)
    it.update()
    before = it.entries
    make(tmp_path, "a", step=150)
    make(tmp_path, "b")
    clock.now += 1
    it.update()
    assert (list(before), before["a"].status.step) == (["a"], 100)
    assert (list(it.entries), it.entries["a"].status.step) == (["a", "b"], 150)
    with pytest.raises(TypeError):
        it.entries["c"] = before["a"]  # type: ignore[index]  # the mapping must be read-only


def test_entry_shows_first_line_of_note(tmp_path: Path, clock: Clock) -> None:
    run = make(tmp_path, "a")
    it = Store(tmp_path, clock)
    for text, note in (("\nlr too high\nmore\n", "lr too high"), ("", ""), (None, "")):
        path = run.path / "note.txt"
        path.write_text(text) if text is not None else path.unlink()
        clock.now += 1
        it.update()
        assert it.entries["a"].note == note


def test_run_with_unreadable_status_is_listed_with_reason(tmp_path: Path, clock: Clock) -> None:
    make(tmp_path, "good")
    for name, text in {"torn": '{"step": 1', "wrong": '{"step": "many"}', "list": "[]", "binary": "\0"}.items():
        make(tmp_path, name).path.joinpath("run.json").write_text(text)
    make(tmp_path, "folder").path.joinpath("run.json").unlink()
    (tmp_path / "folder" / "run.json").mkdir()
    it = Store(tmp_path, clock)
    it.update()
    broken = {key: entry for key, entry in it.entries.items() if key != "good"}
    assert set(broken) == {"torn", "wrong", "list", "binary", "folder"}
    for key, entry in broken.items():
        assert entry.state == "unreadable"
        expected = "cannot read the file" if key == "folder" else "the file is damaged"
        assert entry.problem.startswith(f"{tmp_path / key / 'run.json'}: {expected} (")
        assert entry.status.started
    assert not it.entries["good"].problem
    make(tmp_path, "torn", step=7)
    clock.now += 1
    it.update()
    assert (it.entries["torn"].problem, it.entries["torn"].status.step) == ("", 7)


def test_unreadable_status_is_retried(tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **options: object) -> Any:  # simulates a missing permission, which root would not notice
        raise PermissionError(errno.EACCES, "Permission denied")

    write_note(make(tmp_path, "a"), "a note")
    it = Store(tmp_path, clock)
    with monkeypatch.context() as refusing:
        refusing.setattr(folder, "read_json", refuse)
        refusing.setattr(Path, "read_text", refuse)
        it.update()
        assert "Permission denied" in it.entries["a"].problem
    clock.now += 1
    it.update()
    assert (it.entries["a"].state, it.entries["a"].problem, it.entries["a"].note) == ("finished", "", "a note")


def test_foreign_logs_are_found_to_a_depth_outside_runs(tmp_path: Path, clock: Clock) -> None:
    run = make(tmp_path, "ours")
    log(run.path)
    log(run.path / "export" / "inside")
    make(tmp_path / "group", "deep")
    for name in ("cleanrl", "sb3/PPO_1", "a/b/c/d", "a/b/c/d/e", ".hidden/log"):
        log(tmp_path / name)
    (tmp_path / "empty" / "checkpoints").mkdir(parents=True)
    it = Store(tmp_path, clock)
    it.update()
    assert {key: entry.state for key, entry in it.entries.items()} == {
        "ours": "finished",
        "group/deep": "finished",
        "cleanrl": "log",
        "sb3/PPO_1": "log",
        "a/b/c/d": "log",
    }
    assert [entry.key for entry in it.entries.values() if entry.foreign] == ["a/b/c/d", "cleanrl", "sb3/PPO_1"]


def test_folder_that_is_itself_a_log_is_listed(tmp_path: Path) -> None:
    log(tmp_path)
    it = Store(tmp_path)
    it.watch(["."])
    it.update()
    assert it.entries["."].status.step == 10


def test_log_age_is_that_of_its_oldest_file(tmp_path: Path, clock: Clock) -> None:
    """The time is in the file's name if a TensorBoard writer created it, else it is the modification time."""
    for name, made in ((f"{PREFIX}.1600000000.host", 5e8), (f"{PREFIX}.1500000000.host", 6e8)):
        (tmp_path / "named").mkdir(exist_ok=True)
        (tmp_path / "named" / name).touch()
        os.utime(tmp_path / "named" / name, (made, made))
    (tmp_path / "plain").mkdir()
    for name, made in (("a", 5e8), ("b", 6e8)):
        (tmp_path / "plain" / f"{PREFIX}.{name}").touch()
        os.utime(tmp_path / "plain" / f"{PREFIX}.{name}", (made, made))
    it = Store(tmp_path, clock)
    it.update()
    assert {key: entry.status.started for key, entry in it.entries.items()} == {"named": 1.5e9, "plain": 5e8}


@pytest.mark.parametrize("tag", ["eval/score", "eval/mean_reward", "rollout/ep_rew_mean", "charts/episodic_return"])
def test_log_has_step_score_and_best(tmp_path: Path, clock: Clock, tag: str) -> None:
    folder = tmp_path / "log"
    folder.mkdir()
    writer = EventWriter(folder)
    for step, value in ((1, 1.0), (2, math.nan), (3, 9.0), (4, 2.0), (5, math.nan)):
        writer.scalars(step, {tag: value, "train/loss": 100.0})
    writer.scalars(8, {"train/loss": 100.0})
    it = Store(tmp_path, clock)
    assert it.update() == (True, frozenset(), False)
    status = it.entries["log"].status  # although its curves are not watched
    assert (status.step, status.score, status.best_score, status.best_step) == (8, 2.0, 9.0, 3)
    assert it.entries["log"].score_tag == tag
    it.watch(["log"])
    assert it.update() == (False, frozenset({"log"}), False)
    assert it.entries["log"].status == status
    it.watch([])
    writer.close()
    clock.now += 5
    it.update()
    assert it.entries["log"].status == status


def test_circular_links_terminate(tmp_path: Path) -> None:
    make(tmp_path, "a")
    log(tmp_path / "logs" / "one")
    (tmp_path / "logs" / "up").symlink_to(tmp_path)
    (tmp_path / "itself").symlink_to(tmp_path / "itself")
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    it = Store(tmp_path)
    it.update()
    assert set(it.entries) == {"a", "logs/one"}


def test_run_behind_a_link_is_listed(tmp_path: Path) -> None:
    make(tmp_path / "elsewhere", "a")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "linked").symlink_to(tmp_path / "elsewhere" / "a")
    it = Store(tmp_path / "runs")
    it.update()
    assert set(it.entries) == {"linked"}


def test_unreadable_folder_is_reported(tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "a")
    (tmp_path / "closed").mkdir()
    scan, closed = folder_scanner._read_folder, {str(tmp_path / "closed")}

    def refuse(
        path: str,
    ) -> tuple[list[str], list[str], float]:  # simulates a missing permission, which root would not notice
        if path in closed:
            raise PermissionError(13, "Permission denied")
        return scan(path)

    monkeypatch.setattr(folder_scanner, "_read_folder", refuse)
    it = Store(tmp_path, clock)
    it.update()
    assert it.entries["closed"].problem == f"{tmp_path / 'closed'}: cannot read the folder (Permission denied)"
    assert it.entries["a"].state == "finished"
    closed.add(str(tmp_path))
    clock.now += 1
    it.update()
    assert it.problem == f"{tmp_path}: cannot read the folder (Permission denied)"


def test_runs_folder_that_is_a_file_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    it = Store(tmp_path / "file")
    it.update()
    assert it.problem == f"{tmp_path / 'file'}: cannot read the folder (Not a directory)"
    assert not it.entries


def test_large_foreign_tree_is_scanned_partially(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_scanner, "_MOST", 10)
    for number in range(50):
        (tmp_path / f"{number:02}").mkdir()
    make(tmp_path, "run")
    it = Store(tmp_path)
    it.update()
    assert list(it.entries) == ["run"]  # the subfolders of a run are not scanned
    assert "more than 10 folders; only the first 10 were scanned" in it.problem


def test_rescan_skips_unchanged_folders(tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(20):
        make(tmp_path, f"run-{number}")
        log(tmp_path / f"log-{number}")
    monkeypatch.setattr(folder_scanner, "_SETTLED_NS", -1)  # new folders are not settled yet
    it = Store(tmp_path, clock)
    while it.update().pending:  # one update reads only for a limited time
        pass
    monkeypatch.setattr(folder_scanner, "_read_folder", lambda path: pytest.fail(f"{path} is listed again"))
    monkeypatch.setattr(Run, "read_status", lambda run: pytest.fail(f"{run.path} is read again"))
    clock.now += 60  # a slow scan postpones the next one
    assert it.update() == (False, frozenset(), False)
    assert len(it.entries) == 40


def test_rescan_lists_changed_folders(tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_scanner, "_SETTLED_NS", -1)
    log(tmp_path / "group" / "one")
    it = Store(tmp_path, clock)
    it.update()
    for number in range(3):
        log(tmp_path / "group" / f"more-{number}")
        os.utime(tmp_path / "group", (number, number))  # file-system times are coarse
        clock.now += 1
        it.update()
        assert f"group/more-{number}" in it.entries


# states


def test_only_a_run_that_ended_at_its_threshold_is_solved(tmp_path: Path) -> None:
    make(tmp_path, "solved", reason="solved", solved_step=90)
    make(tmp_path, "further", reason="total_steps reached", solved_step=90)  # it was resumed with a larger limit
    make(tmp_path, "running", state="stopped", reason="stopped by Ctrl-C", solved_step=90)
    it, notices = Store(tmp_path), Notices()
    it.update()
    assert {key: one.state for key, one in it.entries.items()} == {
        "solved": "solved",
        "further": "finished",
        "running": "stopped",
    }
    assert keys_of(sort_entries(it.entries.values(), "state", False)) == ["running", "further", "solved"]
    assert keys_of(sort_entries(it.entries.values(), "percent", True)) == ["running", "further", "solved"]
    notices.update({key: replace(one, state="running") for key, one in it.entries.items()})
    texts = {notice.text: notice.severity for notice in notices.update(it.entries)}
    assert texts == {
        "solved: solved after 100 steps": "information",
        "further: finished (total_steps reached) after 100 steps": "information",
    }


def test_killed_run_is_crashed_after_two_seconds(tmp_path: Path, clock: Clock) -> None:
    """The store is updated twice a second, as in an idle UI."""
    run = make(tmp_path, "a", state="running", heartbeat=clock.now)
    it = Store(tmp_path, clock)
    with trainer(run) as process:
        it.update()
        assert it.entries["a"].state == "running"
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    turns = 0
    while it.entries["a"].state == "running":
        clock.now += 0.5
        it.update()
        turns += 1
        assert turns < 4
    assert it.entries["a"].state == "crashed"


@pytest.mark.parametrize("end", ["finished", "stopped", "failed"])
def test_run_ending_during_a_scan_is_not_crashed(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    """The trainer writes its final state and releases the lock just before the lock is checked."""
    make(tmp_path, "a", state="running", heartbeat=clock.now)
    monkeypatch.setattr(Run, "is_locked", lambda run: True)
    it = Store(tmp_path, clock)
    it.update()

    def end_now(run: Run) -> bool:
        run.write_status(replace(run.read_status(), state=end))
        return False

    monkeypatch.setattr(Run, "is_locked", end_now)
    clock.now += 1
    assert it.update().listed
    assert it.entries["a"].state == end


def test_run_starting_during_a_scan_is_not_crashed(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stopped run is resumed: its trainer acquires the lock and writes during the scan."""
    run = make(tmp_path, "a", state="stopped")
    it = Store(tmp_path, clock)
    it.update()
    read = Run.read_status
    taken: list[bool] = []

    def resume(run: Run) -> Status:
        taken.append(True)
        return read(run)

    monkeypatch.setattr(Run, "read_status", resume)
    monkeypatch.setattr(Run, "is_locked", lambda _: bool(taken))
    make(tmp_path, "a", state="starting", heartbeat=clock.now)
    clock.now += 1
    it.update()
    assert it.entries[run.name].state == "starting"


def test_run_found_dead_is_crashed_immediately(tmp_path: Path) -> None:
    """There is no notice, because the run was never seen alive."""
    make(tmp_path, "a", state="running", heartbeat=time.time())
    it = Store(tmp_path)
    it.update()
    assert it.entries["a"].state == "crashed"


def test_run_that_keeps_writing_is_alive(tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    def beat(run: Run) -> bool:
        clock.now += 0.001
        run.write_status(replace(run.read_status(), heartbeat=clock.now))
        return False

    make(tmp_path, "a", state="running", heartbeat=clock.now)
    monkeypatch.setattr(Run, "is_locked", beat)
    it = Store(tmp_path, clock)
    it.update()
    assert it.entries["a"].state == "running"


def test_silent_locked_run_is_stalled(tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Run, "is_locked", lambda run: True)
    make(tmp_path, "a", state="running", heartbeat=clock.now, elapsed_s=10.0)
    it = Store(tmp_path, clock)
    it.update()
    assert it.entries["a"].state == "running"
    clock.now += STALLED_S + 1
    it.update()
    entry = it.entries["a"]
    assert (entry.state, entry.speed, entry.eta_s) == ("stalled", None, None)


@pytest.mark.parametrize(("idle_s", "state"), [(STALLED_S - 1, "running"), (STALLED_S + 1, "stalled")])
def test_beating_run_is_stalled_only_without_progress(
    idle_s: float, state: str, tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Run, "is_locked", lambda run: True)
    make(tmp_path, "a", state="running", heartbeat=clock.now, progressed=clock.now - idle_s)
    it = Store(tmp_path, clock)
    it.update()
    assert it.entries["a"].state == state


@pytest.mark.parametrize("jump", [-1e6, -0.3, 1e6])
def test_clock_jump_does_not_stop_updates(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch, jump: float
) -> None:
    monkeypatch.setattr(Run, "is_locked", lambda run: True)
    make(tmp_path, "a", state="running", heartbeat=clock.now, step=100)
    it = Store(tmp_path, clock)
    it.update()
    clock.now += jump
    make(tmp_path, "a", state="running", heartbeat=clock.now, step=150)
    make(tmp_path, "b")
    it.update()
    assert it.entries["a"].status.step == 150
    assert "b" in it.entries
    clock.now += 1
    make(tmp_path, "a", state="running", heartbeat=clock.now, step=160)
    it.update()
    speed = it.entries["a"].speed
    assert speed is not None
    assert 0 <= speed <= 11


# speed


def test_speed_and_eta_use_recent_seconds(tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """After an hour at 1 step/s and ten seconds at 100 steps/s, the speed is 100 steps/s."""
    monkeypatch.setattr(Run, "is_locked", lambda run: True)
    it = Store(tmp_path, clock)
    step, elapsed_s = 3600, 3600.0
    fields = {"state": "running", "total_steps": 10_000}
    make(tmp_path, "a", step=step, elapsed_s=elapsed_s, heartbeat=clock.now, **fields)
    it.update()
    assert it.entries["a"].speed == 1.0  # there is only one heartbeat yet
    speeds = []
    for second in range(30):
        step, elapsed_s = step + (1 if second < 10 else 100), elapsed_s + 1
        clock.now += 1
        make(tmp_path, "a", step=step, elapsed_s=elapsed_s, heartbeat=clock.now, **fields)
        it.update()
        speeds.append(it.entries["a"].speed)
    assert speeds[:10] == pytest.approx([1.0] * 10)
    assert speeds[-10:] == pytest.approx([100.0] * 10)
    assert it.entries["a"].eta_s == pytest.approx((10_000 - step) / 100)


def test_slow_iterations_have_a_speed(tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Run, "is_locked", lambda run: True)
    it = Store(tmp_path, clock)
    for step in (100, 220, 400):
        make(tmp_path, "a", state="running", step=step, heartbeat=clock.now, total_steps=1000)
        it.update()
        clock.now += 50
    assert it.entries["a"].speed == pytest.approx(180 / 50)


def test_eta_counts_down_during_an_iteration(tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """An iteration takes 50 s and 100 steps. Heartbeats during an iteration change neither speed nor step."""
    monkeypatch.setattr(Run, "is_locked", lambda run: True)
    it = Store(tmp_path, clock)
    etas = []
    for second in range(0, 175, 25):
        step = 100 * (min(second, 100) // 50)  # the third iteration takes longer than 50 s
        make(tmp_path, "a", state="running", step=step, heartbeat=clock.now, total_steps=300)
        it.update()
        etas.append(it.entries["a"].eta_s)
        clock.now += 25
    assert etas == pytest.approx([None, None, 100.0, 75.0, 50.0, 25.0, None])
    assert it.entries["a"].speed == pytest.approx(2.0)


def test_resumed_run_discards_speed_before_its_pause(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Run, "is_locked", lambda run: True)
    it = Store(tmp_path, clock)
    for pid, step, seconds in ((1, 0, 1), (1, 10, 3600), (2, 20, 1), (2, 25, 1)):
        make(tmp_path, "a", state="running", pid=pid, step=step, heartbeat=clock.now)
        it.update()
        clock.now += seconds
    assert it.entries["a"].speed == pytest.approx(5.0)


def test_ended_run_has_mean_speed_and_no_eta(tmp_path: Path) -> None:
    make(tmp_path, "a", step=100, elapsed_s=4.0)
    make(tmp_path, "b", step=0)
    it = Store(tmp_path)
    it.update()
    assert [(entry.speed, entry.eta_s) for entry in it.entries.values()] == [(25.0, None), (None, None)]


# curves


def test_only_watched_runs_curves_are_read(tmp_path: Path, clock: Clock) -> None:
    for name in ("a", "b"):
        log(make(tmp_path, name).path, tags=("x", "y"))
    it = Store(tmp_path, clock)
    it.watch(["a", "not there"])
    assert it.update() == (True, frozenset({"a"}), True)  # the options are still to be read
    assert (it.tags("a"), it.tags("b"), it.tags("not there")) == (["x", "y"], [], [])
    curve = it.curve("a", "x")
    assert curve is not None
    assert [column.dtype.str[1:] for column in curve] == ["i8", "f8", "f4"]
    assert curve.steps.tolist() == curve.values.tolist() == list(range(1, 11))
    assert it.curve("a", "z") is it.curve("b", "x") is None
    log(tmp_path / "a", range(11, 13), tags=("x",))
    assert it.update() == (False, frozenset({"a"}), False)
    later = it.curve("a", "x")
    assert later is not None
    assert later.steps.tolist() == list(range(1, 13))
    assert curve.steps.tolist() == list(range(1, 11))


def test_run_watched_before_it_exists_is_read_later(tmp_path: Path, clock: Clock) -> None:
    it = Store(tmp_path, clock)
    it.watch(["new"])
    it.update()
    log(make(tmp_path, "new").path)
    clock.now += 1
    assert it.update().advanced == {"new"}


def test_short_turns_read_every_watched_run_eventually(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_reader, "_BLOCK", 2000)
    keys = [f"run-{number}" for number in range(5)]
    for key in keys:
        log(make(tmp_path, key).path, range(300))
    it = Store(tmp_path)
    it.watch(keys)
    turns, advanced = 0, list[str]()
    while (changes := it.update(0.0)).pending:
        turns += 1
        advanced += changes.advanced
    assert turns > 20
    assert set(advanced[:5]) == set(keys)  # no run waits until another one is read completely
    for key in keys:
        curve = it.curve(key, "loss/value")
        assert curve is not None
        assert len(curve.steps) == 300


def test_watched_runs_can_change_while_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_reader, "_BLOCK", 2000)
    keys = [f"run-{number}" for number in range(4)]
    for key in keys:
        log(make(tmp_path, key).path, range(100))
    for chosen in ([2, 3], [1], [3], []):
        it = Store(tmp_path)
        it.watch(keys[:3])
        it.update(0.0)
        it.update(0.0)
        it.watch(keys[number] for number in chosen)
        while it.update(0.0).pending:
            pass
        for number in chosen:
            curve = it.curve(keys[number], "loss/value")
            assert curve is not None
            assert len(curve.steps) == 100


def test_unwatched_curves_are_cached_up_to_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [f"run-{number}" for number in range(6)]
    for key in keys:
        log(make(tmp_path, key).path, range(1000))
    it = Store(tmp_path)
    it.watch(keys[:1])
    read_all(it)
    size = it._readers[keys[0]].nbytes
    monkeypatch.setattr(store, "CACHED", 2 * size)
    for key in keys:
        it.watch([key])
        read_all(it)
        idle = [reader.nbytes for other, reader in it._readers.items() if other != key]
        assert sum(idle) <= 2 * size
    assert [key for key in keys if it.tags(key)] == keys[-3:]  # the last two and the watched run
    for key in (keys[3], keys[0]):
        it.watch([key])
        read_all(it)
    assert [key for key in keys if it.tags(key)] == [keys[0], keys[3], keys[5]]  # the order of reading does not matter
    it.watch(keys)
    read_all(it)
    assert all(it.tags(key) for key in keys)  # watched curves stay in memory, regardless of their size


def test_run_deleted_while_reading_is_no_error(tmp_path: Path, clock: Clock) -> None:
    log(make(tmp_path, "a").path)
    it = Store(tmp_path, clock)
    it.watch(["a"])
    it.update()
    held = it.curve("a", "loss/value")
    shutil.rmtree(tmp_path / "a")
    it.update()  # the folder has not been scanned again yet
    clock.now += 1
    it.update()
    assert not it.entries
    assert it.curve("a", "loss/value") is None
    assert held is not None
    assert held.steps.tolist() == list(range(1, 11))


def test_new_run_with_a_deleted_runs_name_starts_fresh(tmp_path: Path, clock: Clock) -> None:
    log(make(tmp_path, "a").path, tags=("old",))
    it = Store(tmp_path, clock)
    it.watch(["a"])
    it.update()
    shutil.rmtree(tmp_path / "a")
    log(make(tmp_path, "a", step=1).path, range(2), tags=("new",))
    clock.now += 1
    it.update()
    curves = {tag: it.curve("a", tag) for tag in it.tags("a")}
    assert {tag: curve.steps.tolist() for tag, curve in curves.items() if curve is not None and len(curve.steps)} == {
        "new": [0, 1]
    }


def test_damaged_event_files_are_reported(tmp_path: Path) -> None:
    run = make(tmp_path, "a")
    (run.path / f"{PREFIX}.1").write_bytes(b"\xff" * 100)
    it = Store(tmp_path)
    it.update()
    it.watch(["a"])
    assert it.update().listed  # although no entry changes
    assert "damaged at byte 0" in it.damage["a"]
    assert not it.update().listed


def test_other_threads_see_complete_curves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Arrays have equal lengths, steps ascend, and published points never change."""
    monkeypatch.setattr(event_reader, "_BLOCK", 3000)
    run, done, problems = make(tmp_path, "a"), threading.Event(), []
    it = Store(tmp_path)
    it.watch(["a"])

    def poll_until_done() -> None:
        while not done.is_set():
            it.update(0.0)

    reader = threading.Thread(target=poll_until_done)
    reader.start()
    try:
        writer = EventWriter(run.path)
        held: list[tuple[store.Curve, int]] = []
        rng = random.Random(0)
        step = 0
        for number in range(2000):
            step = step + 1 if rng.random() < 0.99 else max(0, step - 50)
            writer.scalars(step, {"a": number, "b": number})
            if number % 20 == 0 and (curve := it.curve("a", "a")) is not None and len(curve.steps):
                held.append((curve, hash(curve.values.tobytes())))
                whole = len(curve.steps) == len(curve.walls) == len(curve.values)
                if not whole or np.diff(curve.steps).min(initial=0) < 0:
                    problems.append(number)
        writer.close()
    finally:
        done.set()
        reader.join()
    assert held
    assert not problems
    assert all(hash(curve.values.tobytes()) == seen for curve, seen in held)


# filtering and sorting


def entry(key: str, state: str = "finished", speed: float | None = None, **fields: object) -> Entry:
    status = replace(Status(name=key, state=state), **fields)  # type: ignore[arg-type]  # any fields
    return Entry(key, Path("/nowhere") / key, state == "log", status, state, speed=speed, eta_s=speed)


def keys_of(entries: list[Entry]) -> list[str]:
    return [one.key for one in entries]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", ["fast", "slow", "sb3/PPO_1"]),
        ("fast", ["fast"]),
        ("ppo_1", ["sb3/PPO_1"]),
        ("state:log", ["sb3/PPO_1"]),
        ("score>=400", ["fast"]),
        ("ppo.clip=0.3", ["fast"]),
        ("!ppo.clip=0.3", ["slow", "sb3/PPO_1"]),
        ("crashed|log", ["slow", "sb3/PPO_1"]),
    ],
)
def test_query_selects_by_shown_values_and_options(tmp_path: Path, query: str, expected: list[str]) -> None:
    """Logs of other programs, and runs with an invalid config.toml, match no query for options."""
    for name, text in (("fast", "[ppo]\nclip = 0.3\n"), ("slow", "[ppo\n")):
        make(tmp_path, name)
        (tmp_path / name / "config.toml").write_text(text)
    entries = [
        replace(entry("fast", score=450.0), path=tmp_path / "fast"),
        replace(entry("slow", score=1.0), path=tmp_path / "slow", state="crashed"),
        entry("sb3/PPO_1", state="log"),
    ]
    assert keys_of(select_entries(entries, parse(query))) == expected


def test_changed_options_file_is_reread(tmp_path: Path) -> None:
    run = make(tmp_path, "a")
    one = [replace(entry("a"), path=run.path)]
    for clip, found in ((0.2, []), (0.3, ["a"]), (0.25, [])):
        run.config.write_text(f"[ppo]\nclip = {clip}\n")
        assert keys_of(select_entries(one, parse("ppo.clip=0.3"))) == found


COLUMNS: dict[str, Callable[[float | None], Entry]] = {
    "step": lambda x: entry(str(x), step=x),
    "score": lambda x: entry(str(x), score=x),
    "best": lambda x: entry(str(x), best_score=x),
    "speed": lambda x: entry(str(x), speed=x),
    "percent": lambda x: entry(str(x), "stopped", step=25 * (x or 0), total_steps=100 if x else 0),
    "age": lambda x: entry(str(x), started=x or 0.0),
}


@pytest.mark.parametrize("column", COLUMNS)
@pytest.mark.parametrize("seed", range(5))
def test_numbers_sort_descending_with_missing_last(column: str, seed: int) -> None:
    present = [3.0, 1.0, 2.0]
    numbers: list[float | None] = list(present) if column == "step" else [*present, None]
    random.Random(seed).shuffle(numbers)
    entries = [COLUMNS[column](number) for number in numbers]
    missing = [] if column == "step" else ["None"]
    assert keys_of(sort_entries(entries, column, False)) == ["3.0", "2.0", "1.0", *missing]
    assert keys_of(sort_entries(entries, column, True)) == ["1.0", "2.0", "3.0", *missing]


def test_eta_sorts_ascending_with_missing_last() -> None:
    entries = [entry("a", speed=3.0), entry("b"), entry("c", speed=1.0), entry("d", speed=math.nan)]
    assert keys_of(sort_entries(entries, "eta", False)) == ["c", "a", "b", "d"]


def test_text_sorts_in_natural_order() -> None:
    names = ["run-10", "Run-9", "run-2", "run", "b/run", "7", "run-2b"]
    in_order = ["7", "b/run", "run", "run-2", "run-2b", "Run-9", "run-10"]
    assert keys_of(sort_entries(map(entry, names), "name", False)) == in_order
    assert keys_of(sort_entries(map(entry, names), "name", True)) == in_order[::-1]
    states = [entry("d", "finished"), entry("a", "crashed"), entry("c", "running"), entry("b", "log")]
    assert keys_of(sort_entries(states, "state", False)) == ["c", "a", "d", "b"]
    presets = [entry("x", preset=""), entry("y", preset="b"), entry("z", preset="A")]
    assert keys_of(sort_entries(presets, "preset", False)) == ["z", "y", "x"]


@pytest.mark.parametrize("reverse", [False, True])
def test_sorting_is_stable(reverse: bool) -> None:
    entries = [entry(key, score=1.0) for key in "cab"] + [entry(key) for key in "zxy"]
    for column in ("score", "best", "state", "preset", "eta"):
        assert keys_of(sort_entries(entries, column, reverse)) == list("cabzxy")


@pytest.mark.parametrize(("name", "tag"), [("sb3", "rollout/ep_rew_mean"), ("trl", "train/loss")])
def test_logs_of_other_writers_are_read_completely(tmp_path: Path, name: str, tag: str) -> None:
    """Compare files from stable-baselines3 and TRL with the results of TensorBoard's own reader."""
    shutil.copytree(Path(__file__).parents[1] / "golden" / "logs" / name, tmp_path / name)
    it = Store(tmp_path)
    it.watch([name])
    while it.update().pending:
        pass
    theirs = EventAccumulator(str(tmp_path / name), size_guidance={"scalars": 0})
    theirs.Reload()
    assert it.entries[name].state == "log"
    assert tag in it.tags(name)
    assert it.tags(name) == sorted(theirs.Tags()["scalars"])
    for known in it.tags(name):
        curve = it.curve(name, known)
        assert curve is not None
        points = [(point.step, point.wall_time, np.float32(point.value)) for point in theirs.Scalars(known)]
        assert list(zip(*(column.tolist() for column in curve), strict=True)) == points


def test_first_point_of_a_drawn_run_is_polled_often(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make(tmp_path, "a", state="running", heartbeat=time.time())
    alive = True
    monkeypatch.setattr(Run, "is_locked", lambda _: alive)
    shown = Store(tmp_path, clock := Clock())
    shown.update()
    assert not shown.awaits_first_point()  # not drawn
    shown.watch(["a"])
    shown.update()
    assert shown.awaits_first_point()
    alive = False
    clock.now += 10
    shown.update()
    assert not shown.awaits_first_point()  # crashed
    alive = True
    writer = EventWriter(run.path)
    writer.scalars(1, {"eval/score": 1.0})
    writer.close()
    clock.now += 10
    shown.update()
    assert shown.tags("a")
    assert not shown.awaits_first_point()
    opened = Store(tmp_path)
    opened.update()
    opened.watch(["a"])
    assert opened.awaits_first_point()  # its points have not been read
    opened.update()
    assert not opened.awaits_first_point()


def test_started_run_has_charts_for_its_first_metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "ended")
    run = make(tmp_path, "begun", state="starting", heartbeat=time.time())
    monkeypatch.setattr(Run, "is_locked", lambda _: True)
    shown = Store(tmp_path, clock := Clock())
    shown.update()
    assert shown.chart_tags(["begun"]) == []  # its curves have not been read
    shown.watch(["begun", "ended"])
    assert shown.update().advanced == {"begun", "ended"}
    assert not shown.update().advanced
    assert shown.chart_tags([]) == shown.chart_tags(["ended"]) == shown.chart_tags(["unknown"]) == []
    assert shown.chart_tags(["begun"]) == shown.chart_tags(["ended", "begun"]) == list(AWAITED)
    writer = EventWriter(run.path)
    writer.scalars(1, {"loss/value": 1.0, "zoo/animals": 2.0, "eval/score": 3.0})
    writer.close()
    clock.now += 10
    shown.update()
    assert shown.chart_tags(["ended", "begun"]) == ["eval/score", "loss/value", "zoo/animals"]
