"""Several processes that use the same runs: the second one gets an error, and no run is damaged."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

from ppo_unified.errors import UsageError
from ppo_unified.runs import control, processes, signals
from ppo_unified.runs.event_reader import EventReader
from ppo_unified.runs.folder import Run, Status, all_runs
from tests import fork_server

LONG = ("--total-steps", "100000000", "--no-stop-when-solved", "--eval.every-steps", "0")
SHORT = ("--total-steps", "1000", "--no-stop-when-solved", "--eval.every-steps", "0", "--eval.episodes", "1")


def start_command(*arguments: str, folder: Path) -> fork_server.Popen:
    whole = [sys.executable, "-P", "-m", "ppo_unified", *arguments]
    return fork_server.Popen(whole, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(condition: Callable[[], object], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "timeout"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def live_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """A run that a separate process trains during all tests of this file."""
    run = control.start(["cartpole", "--name", "a", *LONG], tmp_path_factory.mktemp("concurrency") / "runs")
    wait_for(lambda: run.read_status().step > 0)
    yield run
    if run.is_locked():
        processes.stop(run, kill=True)


def steps_grow(run: Run) -> None:
    """Wait until the trainer has made progress and check that it is still running."""
    step = run.read_status().step
    wait_for(lambda: run.read_status().step > step)
    assert run.state(run.read_status()) == "running"


def test_second_trainer_is_rejected_and_first_continues(live_run: Run) -> None:
    pid = live_run.read_status().pid
    with start_command("resume", "a", folder=live_run.path.parents[1]) as second:
        errors = second.communicate()[1]
    assert second.returncode == 2
    assert errors.startswith("runs/a: another process is training in this folder; stop it first")
    assert len(errors.splitlines()) == 1
    assert live_run.read_status().pid == pid
    assert live_run.read_status().resumes == []
    steps_grow(live_run)


def test_concurrent_rename_and_delete_of_running_run_fail(live_run: Run) -> None:
    folder = live_run.path.parents[1]
    attempts = [
        start_command(*command, folder=folder)
        for command in (("rename", "a", "b"), ("delete", "a", "--yes"))
        for _ in "12"
    ]
    errors = [attempt.communicate()[1] for attempt in attempts]
    assert [attempt.returncode for attempt in attempts] == [2] * 4
    assert all("while it is training; stop it first" in text for text in errors)
    assert [run.name for run, _ in all_runs(live_run.path.parent)] == ["a"]
    steps_grow(live_run)


def test_future_heartbeat_is_not_stalled(live_run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the reader's clock is set back, the heartbeat is in the future, but the trainer is alive."""
    status = live_run.read_status()
    now = time.time()
    monkeypatch.setattr("time.time", lambda: now - 86_400)
    assert live_run.state(status) == "running"
    with pytest.raises(UsageError, match="a cannot be renamed while it is training"):
        control.rename(live_run, "b")


def test_concurrent_stops_both_succeed(live_run: Run) -> None:
    folder = live_run.path.parents[1]
    both = [start_command("stop", "a", folder=folder) for _ in range(2)]
    errors = [one.communicate()[1] for one in both]
    codes = sorted(one.returncode or 0 for one in both)
    assert codes in ([0, 0], [0, 2]), errors  # the second command may find that the run has already stopped
    assert live_run.read_status().state == "stopped"
    assert list(live_run.checkpoints.iterdir())


UPDATING = """
import sys, time
from pathlib import Path
from ppo_unified.runs.signals import StopRequest
from ppo_unified.runs.folder import Run
run, stop = Run(Path(sys.argv[1])), StopRequest()
run.acquire()
while not (run.path / "run.json").exists():
    time.sleep(0.02)
status = run.read_status()
with stop.handle_signals():
    stop.show_in(run)
    print("updating", flush=True)
    while not (run.path / "updated").exists():  # run.json contains the state `running` during this time
        time.sleep(0.02)
    status.state = "stopped" if stop else "running"
    run.write_status(status)
"""


def test_repeated_stop_during_an_update_is_harmless(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A trainer may handle a stop only after its update; a second SIGTERM would end it without a checkpoint."""
    run, waiting = Run(tmp_path / "a"), threading.Event()
    run.path.mkdir()

    def sleep(seconds: float) -> None:
        waiting.set()
        time.sleep(seconds)

    with fork_server.Popen([sys.executable, "-c", UPDATING, str(run.path)], stdout=subprocess.PIPE) as trainer:
        run.write_status(Status(state="running", host=socket.gethostname(), pid=trainer.pid, heartbeat=time.time()))
        assert trainer.stdout is not None
        assert trainer.stdout.readline()
        assert not run.is_stopping()
        with pytest.raises(UsageError, match="has not stopped within 0 s"):
            processes.stop(run, kill=False, patience_s=0.0)
        wait_for(run.is_stopping)
        time.sleep(signals.SAME_REQUEST_S + 0.1)
        assert run.read_status().state == "running"
        monkeypatch.setattr(processes, "time", SimpleNamespace(monotonic=time.monotonic, sleep=sleep))
        with ThreadPoolExecutor() as pool:
            again = pool.submit(processes.stop, run, kill=False)
            assert waiting.wait(60)
            (run.path / "updated").touch()
            assert again.result() == "stopped"
    assert trainer.returncode == 0
    assert not run.is_stopping()


def test_concurrent_resumes_start_one_trainer(live_run: Run) -> None:
    step = live_run.read_status().step
    both = [
        start_command("resume", "a", "--total-steps", str(step + 1500), folder=live_run.path.parents[1])
        for _ in range(2)
    ]
    errors = [one.communicate()[1] for one in both]
    assert sorted(one.returncode or 0 for one in both) == [0, 2], errors
    status = live_run.read_status()
    assert status.state == "finished"
    assert len(status.resumes) == 1
    reader = EventReader(live_run.path)
    reader.poll()
    steps = reader.series["policy/kl"].steps.tolist()
    assert steps == sorted(set(steps))


def test_concurrent_starts_get_separate_folders_despite_a_kill(tmp_path: Path) -> None:
    both = [start_command("train", "cartpole", *SHORT, folder=tmp_path) for _ in range(2)]
    wait_for(lambda: len(list(all_runs(tmp_path / "runs"))) == 2)
    both[0].send_signal(signal.SIGKILL)
    errors = [one.communicate()[1] for one in both]
    assert both[1].returncode == 0, errors
    with start_command("runs", "--json", folder=tmp_path) as listing:
        rows = json.loads(listing.communicate()[0])
    assert {row["name"] for row in rows} == {"cartpole-s1", "cartpole-s1-2"}
    states = {row["pid"]: row["shown_state"] for row in rows}
    assert states == {both[0].pid: "crashed", both[1].pid: "finished"}
