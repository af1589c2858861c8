"""The run folder with real processes: locks, valid names, creation, and atomic writes."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import IO

import pytest

from ppo_unified.errors import UsageError
from ppo_unified.runs import processes
from ppo_unified.runs.folder import (
    STALLED_S,
    Run,
    Status,
    all_runs,
    check_name,
    create,
    find,
    free_name,
)
from ppo_unified.runs.progress import format_percent, format_phase, steps_left

HOLD = """
import sys
from pathlib import Path
from ppo_unified.runs.folder import Run
run = Run(Path(sys.argv[1]))
run.acquire()
print("held", flush=True)
sys.stdin.readline()
"""
HOLD_WITH_WORKER = """
import os, signal, sys
from pathlib import Path
from ppo_unified.runs.folder import Run
run = Run(Path(sys.argv[1]))
run.acquire()
worker = os.fork()
if worker == 0:
    signal.pause()
print(worker, flush=True)
sys.stdin.readline()
"""
ACQUIRE_OFTEN = """
import sys
from pathlib import Path
from ppo_unified.runs.folder import Run
run = Run(Path(sys.argv[1]))
print("go", flush=True)
for _ in range(10_000):
    run.acquire()
    run.release()
"""
CREATE_OFTEN = """
import json, sys
from pathlib import Path
from ppo_unified.runs.folder import create
print("ready", flush=True)
sys.stdin.readline()
print(json.dumps([create(Path(sys.argv[1]), "", f"s{number}").name for number in range(150)]))
"""
WRITE_OFTEN = """
import sys
from pathlib import Path
from ppo_unified.runs.folder import Run, Status
run = Run(Path(sys.argv[1]))
for number in range(600):
    run.write_status(Status(step=number, reason="x" * (number % 2 * 20_000)))
    if number == 0:
        print("go", flush=True)
"""


@contextmanager
def process(code: str, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Run `code` with `folder` as its argument in a Python process, which is killed at the end of the block."""
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        yield child
    finally:
        child.kill()
        child.communicate()


def line_from(child: subprocess.Popen[str]) -> str:
    stream: IO[str] | None = child.stdout
    assert stream is not None
    return stream.readline().strip()


@pytest.fixture
def run(tmp_path: Path) -> Run:
    made = create(tmp_path, "a", "")
    made.write_status(Status(name="a", state="running", heartbeat=time.time()))
    return made


def test_lock_excludes_other_processes(run: Run) -> None:
    assert not run.is_locked()
    with process(HOLD, run.path) as child:
        assert line_from(child) == "held"
        assert run.is_locked()
        with pytest.raises(UsageError, match="another process is training in this folder; stop it first"):
            run.acquire()
        assert run.is_locked()  # the failed attempt has not released the lock
        child.communicate("\n")
        assert child.returncode == 0
    assert not run.is_locked()
    run.acquire()
    command = [sys.executable, "-c", HOLD, str(run.path)]
    second = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "another process is training" in second.stderr
    run.release()
    subprocess.run(command, input="\n", text=True, check=True, stdout=subprocess.DEVNULL)


def test_signals_reach_only_the_lock_holder(run: Run) -> None:
    """Start times in run.json are not used, because the clock may have been changed since."""
    with process(HOLD, run.path) as child, process("input()", run.path) as bystander:
        assert line_from(child) == "held"
        assert run.holder() == child.pid
        named = Status(name="a", state="running", host=socket.gethostname(), pid=bystander.pid, heartbeat=time.time())
        for pid in (bystander.pid, -1, 1 << 40):
            run.write_status(replace(named, pid=pid))
            with pytest.raises(UsageError, match=f"names process {pid}, but process {child.pid} has the lock"):
                processes.stop(run, kill=True)
        assert (child.poll(), bystander.poll()) == (None, None)
        run.write_status(replace(named, pid=child.pid, pid_started=time.time() + 3600))
        assert processes.stop(run, kill=True) == "crashed"
        assert child.wait() == -signal.SIGKILL
        assert bystander.poll() is None
    assert run.holder() is None


def test_kill_9_frees_lock_despite_surviving_worker(run: Run) -> None:
    with process(HOLD_WITH_WORKER, run.path) as child:
        worker = int(line_from(child))
        try:
            assert run.is_locked()
            child.send_signal(signal.SIGKILL)
            child.wait()
            os.kill(worker, 0)  # the worker is still alive
            assert not run.is_locked()
            run.acquire()
            run.release()
        finally:
            os.kill(worker, signal.SIGKILL)


def test_querying_the_lock_never_acquires_it(run: Run) -> None:
    """Another process acquires the lock 10,000 times without an error while this process queries it."""
    with process(ACQUIRE_OFTEN, run.path) as child:
        assert line_from(child) == "go"
        while child.poll() is None:
            run.is_locked()
        assert child.returncode == 0


def test_unreadable_lock_file_is_a_usage_error(run: Run) -> None:
    (run.path / "run.lock").unlink()
    (run.path / "run.lock").mkdir()
    with pytest.raises(UsageError, match=r"run\.lock: cannot lock the file \(Is a directory\)"):
        run.acquire()


def test_shown_state_depends_on_lock_and_heartbeat(run: Run) -> None:
    fresh, old = time.time(), time.time() - STALLED_S - 1
    for state in ("starting", "running", "stopping"):
        assert run.state(Status(state=state, heartbeat=fresh)) == "crashed"
    with process(HOLD, run.path) as child:
        line_from(child)
        for state in ("starting", "running", "stopping"):
            assert run.state(Status(state=state, heartbeat=fresh)) == state
            assert run.state(Status(state=state, heartbeat=old)) == "stalled"
    for state in ("stopped", "finished", "failed"):
        assert run.state(Status(state=state, heartbeat=old)) == state


def test_readers_never_see_partial_status(run: Run) -> None:
    with process(WRITE_OFTEN, run.path) as child:
        assert line_from(child) == "go"
        while child.poll() is None:
            status = run.read_status()
            assert len(status.reason) == status.step % 2 * 20_000
        assert child.returncode == 0
    assert {path.name for path in run.path.iterdir()} == {"run.json", "run.lock"}


def test_status_round_trips(run: Run) -> None:
    status = Status(name="é\n\x1b[31m", score=-1.5, resumes=[{"step": 3}], versions={"torch": "2"}, reason="\ud7ff")
    run.write_status(status)
    assert run.read_status() == status


def test_nan_score_is_written_as_none(run: Run) -> None:
    """A run that fails with a NaN score can still record its failure."""
    run.write_status(Status(state="failed", score=float("nan"), best_score=float("inf"), resumes=[{"x": float("nan")}]))
    status = run.read_status()
    assert (status.state, status.score, status.best_score, status.resumes) == ("failed", None, None, [{"x": None}])
    json.loads((run.path / "run.json").read_text(), parse_constant=pytest.fail)


def test_unknown_status_keys_are_ignored(run: Run) -> None:
    (run.path / "run.json").write_text('{"state": "finished", "of_a_later_version": [1]}')
    assert run.read_status() == Status(state="finished")


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "3", '{"state": 3}', '{"started": "yesterday"}', '{"step": 1.5}', '{"step": true}',
     '{"name": null}', '{"resumes": {}}', '{"versions": []}', '{"score": "high"}', "\ud800"],
)  # fmt: skip
def test_invalid_status_is_one_line_and_hides_no_other_run(run: Run, text: str) -> None:
    (run.path / "run.json").write_bytes(text.encode(errors="surrogatepass"))
    with pytest.raises(UsageError, match=r"run\.json: the file is damaged \(.*; restore the file") as caught:
        run.read_status()
    assert "\n" not in str(caught.value)
    other = create(run.path.parent, "other", "")
    other.write_status(Status(name="other", started=1.0))
    assert [found.name for found, _ in all_runs(run.path.parent)] == ["other"]


def test_status_accepts_its_own_defaults(run: Run) -> None:
    for key in fields(Status):
        (run.path / "run.json").write_text(json.dumps({key.name: asdict(Status())[key.name]}))
        assert run.read_status() == Status()


@pytest.mark.parametrize(
    "name",
    ["..", ".", "../x", "a/b", "/etc/x", "a\\b", "", " a", "a ", "a.", ".hidden", "-x", "_x", "a\nb", "a\0b",
     "a\x1b[31m", "~", "$HOME", "a:b", "a*", "x" * 101, "latest"],
)  # fmt: skip
def test_unsafe_run_names_are_rejected(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="run name"):
        check_name(name)
    if name:
        with pytest.raises(UsageError, match="run name"):
            create(tmp_path / "runs", name, "default")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["a", "cartpole-s1", "lr=1e-3", "a b", "v1.2+x@y", "学習", "0", "x" * 100])
def test_safe_run_names_are_accepted(tmp_path: Path, name: str) -> None:
    assert create(tmp_path, name, "").path == tmp_path / name
    with pytest.raises(UsageError, match="already exists; resume it"):
        create(tmp_path, name, "")


def test_overlong_name_is_rejected(tmp_path: Path) -> None:
    """A name of 100 characters is valid, but here it has 300 bytes."""
    with pytest.raises(UsageError, match=r"is too long for this file system \(300 bytes\); choose a shorter --name"):
        create(tmp_path, "\u6f22" * 100, "")
    assert not list(tmp_path.iterdir())


def test_invalid_default_name_suggests_name_option(tmp_path: Path) -> None:
    """The default name may come from a file name."""
    with pytest.raises(UsageError, match=r"'_my-s1'.*choose another with --name"):
        create(tmp_path, "", "_my-s1")
    with pytest.raises(UsageError, match="'_my-s1'") as caught:
        create(tmp_path, "_my-s1", "a")
    assert "choose another with --name" not in str(caught.value)


def test_concurrent_default_names_get_different_folders(tmp_path: Path) -> None:
    children = [
        subprocess.Popen(
            [sys.executable, "-c", CREATE_OFTEN, str(tmp_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    assert [line_from(child) for child in children] == ["ready"] * 4
    for child in children:
        assert child.stdin is not None
        child.stdin.write("\n")
        child.stdin.flush()
    names = [name for child in children for name in json.loads(child.communicate()[0])]
    expected = {f"s{number}{suffix}" for number in range(150) for suffix in ("", "-2", "-3", "-4")}
    assert len(names) == len(expected)
    assert set(names) == {path.name for path in tmp_path.iterdir()} == expected


def test_default_name_taken_meanwhile_is_left_to_the_rival(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lose_race(runs: Path, default: str) -> str:
        """Return the free name, but let another process take the first two names immediately."""
        name = free_name(runs, default)
        if name in ("a", "a-2"):
            (runs / name).mkdir()
            (runs / name / "run.lock").touch()
        return name

    monkeypatch.setattr("ppo_unified.runs.folder.free_name", lose_race)
    assert create(tmp_path, "", "a").name == "a-3"


def test_run_folder_is_complete_before_it_is_named(tmp_path: Path) -> None:
    """Until the folder is complete, it is not listed and does not occupy the name."""
    seen: list[tuple[str, list[str]]] = []

    def fill(run: Run, name: str) -> None:
        run.acquire()
        run.write_status(Status(name=name))
        seen.append((name, [found.name for found, _ in all_runs(tmp_path)]))
        if len(seen) == 1:  # another process is faster
            create(tmp_path, "a", "")

    made = create(tmp_path, "", "a", fill)
    assert (made.name, made.read_status().name) == ("a-2", "a-2")
    assert seen == [("a", []), ("a-2", [])]
    assert {path.name for path in tmp_path.iterdir()} == {"a", "a-2"}
    code = "from ppo_unified.runs.folder import *; import sys; print(Run(Path(sys.argv[1])).is_locked())"
    result = subprocess.run([sys.executable, "-c", code, str(made.path)], capture_output=True, text=True, check=True)
    assert result.stdout == "True\n"
    made.release()


def test_failed_creation_leaves_no_files(tmp_path: Path) -> None:
    def fill(run: Run, name: str) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(UsageError, match="the folder"):
        create(tmp_path, "a", "", fill)
    assert not list(tmp_path.iterdir())


def test_abandoned_partial_run_is_removed_after_a_day(tmp_path: Path) -> None:
    names = (f".{'a' * 16}.tmp", f".{'b' * 16}.tmp", f".{'c' * 16}.tmp", ".mine.tmp")
    young, old, held, foreign = (tmp_path / name for name in names)
    for folder in (young, old, held, foreign):
        folder.mkdir()
        (folder / "run.lock").touch()
    with process(HOLD, held) as child:
        assert line_from(child) == "held"
        for folder in (old, held, foreign):
            os.utime(folder, (0, 0))
        create(tmp_path, "a", "")
    assert {path.name for path in tmp_path.iterdir()} == {"a", young.name, held.name, foreign.name}


def test_dangling_link_reserves_its_name(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "nowhere")
    assert create(tmp_path, "", "a").name == "a-2"


def test_runs_folder_that_is_a_file_is_a_one_line_error(tmp_path: Path) -> None:
    (tmp_path / "runs").touch()
    with pytest.raises(UsageError, match=r"; choose another runs folder with --runs DIR"):
        create(tmp_path / "runs", "", "a")
    assert list(all_runs(tmp_path / "runs")) == []


def test_runs_are_found_by_name_path_and_latest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="no runs yet; start one with"):
        find("latest", tmp_path)
    for name, started in (("alpha", 1.0), ("beta", 3.0), ("gamma", 2.0)):
        create(tmp_path, name, "").write_status(Status(name=name, started=started))
    (tmp_path / "no run").mkdir()
    assert [run.name for run, _ in all_runs(tmp_path)] == ["beta", "gamma", "alpha"]
    assert find("latest", tmp_path).name == "beta"
    assert find("alpha", tmp_path).path == tmp_path / "alpha"
    assert find(str(tmp_path / "alpha"), tmp_path / "elsewhere").name == "alpha"
    assert find("alpha/", tmp_path).name == "alpha"
    with pytest.raises(UsageError, match=r"no run 'alhpa' in .*; did you mean 'alpha'\?"):
        find("alhpa", tmp_path)
    monkeypatch.chdir(tmp_path / "gamma")
    assert find(".", tmp_path).name == "gamma"


@pytest.mark.parametrize("reference", ["x" * 5000, "a\0b", "no run", "", "../../../../etc"])
def test_unknown_run_is_a_one_line_error(tmp_path: Path, reference: str) -> None:
    with pytest.raises(UsageError, match="no run"):
        find(reference, tmp_path)


@pytest.mark.parametrize(
    ("status", "percent", "left"),
    [
        (Status(step=250, total_steps=1000), "25%", 750),
        (Status(step=1024, total_steps=1000), "100%", 0),
        (Status(step=949, iteration=1, total_steps=500_000, total_iterations=5), "20%", 4 * 949),
        (Status(step=4000, iteration=5, total_iterations=5), "100%", 0),
        (Status(step=0, iteration=0, total_iterations=5), "0%", None),
        (Status(step=2950, iteration=29, total_iterations=100), "29%", pytest.approx(7222.4, abs=0.1)),
        (Status(step=900, iteration=9, total_steps=1000, total_iterations=100), "90%", 100),
        (Status(step=0, total_steps=1000), "0%", 1000),
        (Status(step=10), "-", None),
        (Status(state="finished", reason="total_iterations reached", step=8, total_steps=10**6), "100%", 10**6 - 8),
        (Status(state="finished", reason="total_steps reached", step=8), "100%", None),
        (Status(state="finished", reason="solved", step=200, total_steps=1000), "-", 800),
        (Status(state="stopped", reason="stopped by SIGTERM", step=200, total_steps=1000), "20%", 800),
    ],
)
def test_progress_is_towards_the_limit_that_is_reached_first(status: Status, percent: str, left: float | None) -> None:
    assert (format_percent(status), steps_left(status)) == (percent, left)


@pytest.mark.parametrize(
    ("state", "share", "text"),
    [
        ("running", 0.29, "updating 29%"),
        ("stalled", 0.999, "updating 99%"),
        ("stopping", 1.0, "updating 100%"),
        ("running", None, "updating"),
        ("crashed", 0.5, ""),
        ("finished", 0.5, ""),
    ],
)
def test_phase_is_shown_while_the_trainer_is_alive(state: str, share: float | None, text: str) -> None:
    assert format_phase(Status(state="running", phase="updating", phase_done=share), state) == text
