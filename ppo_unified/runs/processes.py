"""Start, find and stop training processes from another process."""

from __future__ import annotations

import shlex
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from pathlib import Path

import psutil

from ppo_unified.errors import UsageError
from ppo_unified.runs.background import Background, Standby
from ppo_unified.runs.folder import ACTIVE, Run, Status
from ppo_unified.runs.preparation import discard, read_reported_folder
from ppo_unified.runs.signals import record_user_stop


def detach(
    arguments: Sequence[str],
    resumed: Run | None = None,
    on_created: Callable[[Run], object] | None = None,
    patience_s: float = 60.0,
    standby: Standby | None = None,
) -> tuple[Run, Status]:
    """Start `ppo-unified ARGUMENTS` in a new session and wait until training has started.

    `resumed` is the run to resume. If it is None, the process creates a new run, and `on_created` is called with that
    run as soon as its folder exists. If the process ends too early, raises UsageError with its error message. If
    `standby` still waits for a command, it executes this one; otherwise, a new process does.
    """
    run, deadline = resumed, time.monotonic() + patience_s
    is_taken = standby is not None and standby.send(arguments)
    with closing(standby if standby is not None and is_taken else Background(*arguments)) as process:
        child = process.child
        while time.monotonic() < deadline:
            ended = child.returncode is not None  # check this before reading, so that no output is missed
            if run is None and (folder := read_reported_folder(process.report)):
                run = Run(folder)
                if on_created is not None:
                    on_created(run)
            status = run.read_status() if run is not None and (run.path / "run.json").exists() else Status()
            if run is not None and status.pid == child.pid and status.state not in ("starting", "failed"):
                return run, status
            if ended:
                process.errors.seek(0)
                message = process.errors.read().decode(errors="replace").strip()
                raise _failure(child.returncode, message, run, resumed is None)
            time.sleep(0.02)
    where = run.path if run is not None else "ppo-unified " + shlex.join(arguments)
    raise UsageError(f"{where}: process {child.pid} has not started training within {patience_s:.0f} s")


def _failure(code: int, message: str, run: Run | None, new: bool) -> UsageError:
    """Return the error of a process that ended too early. The folder of a new run is kept only if the run failed."""
    if run is None:
        return UsageError(message or f"the training process exited immediately with code {code}")
    if code == 1:
        reason = run.read_status().reason if (run.path / "run.json").exists() else ""
        return UsageError(f"{run.name} failed: {reason or message}; the traceback is in {run.log}")
    message = message or _last_line(run.log)  # once log.txt exists, errors are written to it
    if new:
        discard(run)
    return UsageError(message or f"the training process exited immediately with code {code}")


def _last_line(path: Path) -> str:
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n") if path.exists() else []
    return next((line for line in reversed(lines) if line.strip()), "")


def trainer_process(run: Run, status: Status) -> psutil.Process:
    """Return the run's trainer. It must run on this host, have the process ID in run.json, and have the run's lock.

    Raises UsageError if there is no such process. Start times are not compared, because the clock may have been set.
    """
    if status.host != socket.gethostname():
        raise UsageError(f"{run.name} runs on {status.host!r}, not on this machine; stop it there")
    holder = run.holder()
    if status.state not in ACTIVE or holder is None:
        raise UsageError(f"{run.name} is not running (state: {run.state(status)})")
    if holder == status.pid:
        with suppress(psutil.NoSuchProcess):
            return psutil.Process(holder)
    raise UsageError(
        f"{run.name}: run.json names process {status.pid}, but process {holder} has the lock; no signal was sent"
    )


def stop(run: Run, kill: bool, patience_s: float = 30.0) -> str:
    """Stop a run's trainer and return the run's final state. If `kill` is true, end it at once, without a checkpoint.

    A trainer that is already stopping gets no second signal, because that would end it before it writes a checkpoint.
    Raises UsageError if the run has no trainer on this machine, or if the trainer does not stop in time.
    """
    status = run.read_status()
    process = trainer_process(run, status)
    try:
        if kill or not run.is_stopping():
            record_user_stop(run, status, kill)
        if kill:
            for child in process.children(recursive=True):
                with suppress(psutil.NoSuchProcess):
                    child.kill()
            process.kill()
        elif not run.is_stopping():
            process.terminate()
    except psutil.NoSuchProcess:
        pass  # it has already ended
    except psutil.AccessDenied:
        raise UsageError(f"{run.name}: process {process.pid} belongs to another user; no signal was sent") from None
    deadline = time.monotonic() + patience_s
    while run.is_locked():
        if time.monotonic() > deadline:
            raise UsageError(f"{run.name} has not stopped within {patience_s:.0f} s; use --kill to end it immediately")
        time.sleep(0.02)
    return run.state(run.read_status())
