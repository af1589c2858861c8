"""Training processes seen from outside: start one in the background, find it, stop it."""

from __future__ import annotations

import os
import shlex
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from ppo_unified.errors import UsageError
from ppo_unified.runs.folder import ACTIVE, Run, Status
from ppo_unified.runs.preparation import DETACHED_VARIABLE, discard, read_reported_folder


def detach(
    arguments: Sequence[str],
    resumed: Run | None = None,
    on_created: Callable[[Run], object] | None = None,
    patience_s: float = 60.0,
) -> tuple[Run, Status]:
    """Start `ppo-unified ARGUMENTS` as a process of its own session and wait until it trains.

    The process resumes `resumed`; without it, it makes a new folder, and `on_created` is called with that before the
    process imports torch. Raises UsageError with the message of a process that refuses.
    """
    run, deadline = resumed, time.monotonic() + patience_s
    # files and not pipes: the child may write after this process is gone
    with tempfile.TemporaryFile() as errors, tempfile.TemporaryFile() as report:
        child = subprocess.Popen(
            [sys.executable, "-P", "-m", "ppo_unified", *arguments],  # -P: no module of this folder shadows ours
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            start_new_session=True,
            pass_fds=[report.fileno()],
            env=os.environ | {DETACHED_VARIABLE: str(report.fileno())},
        )
        # a process that lives as long as a terminal UI must not keep its dead children
        threading.Thread(target=child.wait, name=f"wait for {child.pid}", daemon=True).start()
        while time.monotonic() < deadline:
            ended = child.returncode is not None  # checked first: what it wrote before its end is read afterwards
            if run is None and (folder := read_reported_folder(report)):
                run = Run(folder)
                if on_created is not None:
                    on_created(run)
            status = run.read_status() if run is not None and (run.path / "run.json").exists() else Status()
            if run is not None and status.pid == child.pid and status.state not in ("starting", "failed"):
                return run, status
            if ended:
                errors.seek(0)
                raise _refusal(child.returncode, errors.read().decode(errors="replace").strip(), run, resumed is None)
            time.sleep(0.02)
    where = run.path if run is not None else "ppo-unified " + shlex.join(arguments)
    raise UsageError(f"{where}: the training process {child.pid} has not started within {patience_s:.0f} s")


def _refusal(code: int, message: str, run: Run | None, new: bool) -> UsageError:
    """Why a detached process ended at once. The folder of a new run that was refused goes; one that failed stays."""
    if run is None:
        return UsageError(message or f"the training process ended at once with code {code}")
    if code == 1:
        reason = run.read_status().reason if (run.path / "run.json").exists() else ""
        return UsageError(f"{run.name} failed: {reason or message}; the traceback is in {run.log}")
    message = message or _last_line(run.log)  # once it has its log, its errors go there
    if new:
        discard(run)
    return UsageError(message or f"the training process ended at once with code {code}")


def _last_line(path: Path) -> str:
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n") if path.exists() else []
    return next((line for line in reversed(lines) if line.strip()), "")


def trainer_process(run: Run, status: Status) -> psutil.Process:
    """The run's trainer: on this host, named by run.json and holding the lock. Raises UsageError otherwise.

    Start times are not compared: both are reckoned from the system's clock, which may have been set meanwhile.
    """
    if status.host != socket.gethostname():
        raise UsageError(f"{run.name} runs on {status.host!r}, not on this machine; stop it there")
    holder = run.holder()
    if status.state not in ACTIVE or holder is None:
        raise UsageError(f"{run.name} is not running (it is {run.state(status)})")
    if holder == status.pid:
        with suppress(psutil.NoSuchProcess):
            return psutil.Process(holder)
    raise UsageError(
        f"{run.name}: run.json names process {status.pid}, but {holder} trains there; nothing was signalled"
    )


def stop(run: Run, kill: bool, patience_s: float = 30.0) -> str:
    """End a run's trainer, with a checkpoint or (`kill`) at once; the state it ended in.

    One that is stopping already is not asked again: a second signal would cost it its checkpoint.
    Raises UsageError where there is no such trainer, or it does not end in time.
    """
    status = run.read_status()
    process = trainer_process(run, status)
    try:
        if kill:
            for child in process.children(recursive=True):
                with suppress(psutil.NoSuchProcess):
                    child.kill()
            process.kill()
        elif not run.is_stopping():
            process.terminate()
    except psutil.NoSuchProcess:
        pass  # it has ended meanwhile
    except psutil.AccessDenied:
        raise UsageError(f"{run.name}: process {process.pid} belongs to another user; nothing was signalled") from None
    deadline = time.monotonic() + patience_s
    while run.is_locked():
        if time.monotonic() > deadline:
            raise UsageError(f"{run.name} has not stopped within {patience_s:.0f} s; end it at once with --kill")
        time.sleep(0.02)
    return run.state(run.read_status())
