"""Becoming a run: its folder, lock, log and signal handlers, all before torch is imported. Also stopping one."""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import FrameType
from typing import IO, TextIO

import psutil

from ppo_unified.config import presets
from ppo_unified.config.schema import RunConfig
from ppo_unified.errors import UsageError
from ppo_unified.runs.best_effort import open_log
from ppo_unified.runs.folder import ACTIVE, Run, Status, create

DETACHED = "PPO_UNIFIED_DETACHED"  # in the environment of a process that `detach` started: where it tells its folder
LEAVING_S = 10.0  # that an ended trainer may take to leave its folder
SAME_REQUEST_S = 1.0  # in which a further SIGTERM or SIGHUP repeats the first and asks for nothing more
PACKAGES = ("ppo-unified", "torch", "gymnasium", "transformers", "numpy", "tensorboard")


def prepare(config: RunConfig, runs: Path, name: str = "", command: Sequence[str] = ()) -> Run:
    """A new run folder with config.toml, command.txt and run.json, locked by this process.

    Raises UsageError, leaving no folder behind, for what the adapter refuses and for names and folders that don't do.
    """
    told = detached()
    presets.check(config)

    def fill(run: Run, final_name: str) -> None:
        run.acquire()
        run.config.write_text(config.to_toml(), encoding="utf-8")
        if command:
            run.command.write_text(shlex.join(command) + "\n", encoding="utf-8", errors="surrogateescape")
        status = Status(name=final_name, preset=config.origin, kind=config.kind, seed=config.seed)
        run.write_status(claimed(status, config))

    run = create(runs, name, default_name(config), fill)
    if told is not None:
        os.write(told, os.fsencode(run.path) + b"\0")
    return run


@cache
def detached() -> int | None:
    """The file in which whoever started this process in the background looks for its folder; None where nobody did.

    Out of the environment it is taken at once: a process that this one starts would take the word for its own.
    """
    told = os.environ.pop(DETACHED, "")
    with suppress(OSError, ValueError, OverflowError):
        if (number := int(told)) > 2 and stat.S_ISREG(os.fstat(number).st_mode):
            return number
    return None


def default_name(config: RunConfig) -> str:
    return f"{config.origin}-s{config.seed}"


def reopen(run: Run) -> Status:
    """The status of an existing run, locked by this process for going on.

    Raises UsageError if another trains there, or where it would write through a symbolic link.

    A trainer that has written how it ended holds the lock for a moment more.
    """
    deadline = time.monotonic() + LEAVING_S
    while run.read_status().state not in ACTIVE and run.locked() and time.monotonic() < deadline:
        time.sleep(0.02)
    run.check_no_links()
    run.acquire()
    status = run.read_status()
    status.resumes.append({"time": time.time(), "step": status.step, "from_state": status.state})
    return status


def claimed(status: Status, config: RunConfig) -> Status:
    """`status` as that of this very process, about to start."""
    status.state, status.reason, status.traceback = "starting", "", ""
    status.total_steps, status.host, status.pid = config.total_steps, socket.gethostname(), os.getpid()
    status.pid_started = psutil.Process().create_time()
    status.started = status.started or time.time()
    status.heartbeat = time.time()
    status.versions = {"python": platform.python_version()} | _versions()
    return status


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def discard(run: Run) -> None:
    """Remove the folder of a run that was refused before it trained; one that holds a checkpoint stays.

    A detached process leaves that to whoever started it and has yet to read why.
    """
    if not run.checkpoints.exists() and detached() is None:
        shutil.rmtree(run.path, ignore_errors=True)
    run.release()


class Interrupted(BaseException):
    """A request to stop arrived where the work under way can be given up. No Exception: the code of an environment or a
    reward must not take it for a failure of its own."""


class StopRequest:
    """Set by SIGINT, SIGTERM or SIGHUP; looked at between iterations, and raised where work may be given up.

    A second signal ends the process at once. Only a SIGTERM or SIGHUP within SAME_REQUEST_S of the first does not:
    two programs may stop a run at the same moment, and a session that closes sends both.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._first = 0.0  # when the first one came, on the monotonic clock
        self._interruptible = False
        self._run: Run | None = None

    def __bool__(self) -> bool:
        return self.signal is not None

    @property
    def reason(self) -> str:
        return f"stopped by {self.signal.name}" if self.signal is not None else "stopped"

    def shown_in(self, run: Run) -> None:
        """Let the run that this process trains tell others of a request, so that nobody repeats it unknowingly."""
        self._run = run
        if self:
            run.mark_stopping()

    def handle(self, number: int, _frame: FrameType | None) -> None:
        if self.signal is None:
            self.signal, self._first = signal.Signals(number), time.monotonic()
            if self._run is not None:
                self._run.mark_stopping()
        elif number == signal.SIGINT or time.monotonic() - self._first >= SAME_REQUEST_S:
            os._exit(128 + number)
        if self._interruptible:
            self._interruptible = False  # once: what cleans up is not interrupted again
            raise Interrupted

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """In the block a request to stop, an earlier one included, raises Interrupted.

        So does an error that follows the request: the signal may have ended a child process of the work's, too.
        """
        self._interruptible = True
        try:
            if self:
                raise Interrupted
            yield
        except Exception as error:
            if self:
                raise Interrupted from error
            raise
        finally:
            self._interruptible = False

    @contextmanager
    def installed(self) -> Iterator[StopRequest]:
        """Handle the signals inside the block, SIGHUP unless it is ignored (nohup). Only a main thread can."""
        ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        numbers = (signal.SIGINT, signal.SIGTERM, *(() if ignored else (signal.SIGHUP,)))
        before = [signal.signal(number, self.handle) for number in numbers]
        try:
            yield self
        finally:
            for number, handler in zip(numbers, before, strict=True):
                signal.signal(number, handler)


class Tee:
    """A text stream that also writes what it is given to a log."""

    def __init__(self, screen: TextIO, log: IO[str]) -> None:
        self.screen, self._log = screen, log

    def write(self, text: str) -> int:
        self._log.write(text)
        try:
            return self.screen.write(text)
        except OSError:  # the terminal is gone; the log is not
            return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            self.screen.flush()

    def __getattr__(self, name: str) -> object:
        return getattr(self.screen, name)


@contextmanager
def logged(run: Run) -> Iterator[TextIO]:
    """Inside the block stdout and stderr go to log.txt too; yields the log for lines that belong only there.

    A detached process has no one to show them to: there they go to log.txt alone, whoever writes them.
    """
    before = sys.stdout, sys.stderr
    with open_log(run.log) as log:
        if detached() is not None:
            for stream in before:
                os.dup2(log.fileno(), stream.fileno())
            sys.stdout = sys.stderr = log
        else:
            sys.stdout, sys.stderr = Tee(before[0], log), Tee(before[1], log)
        try:
            yield log
        finally:
            sys.stdout, sys.stderr = before


def detach(
    arguments: Sequence[str],
    resumed: Run | None = None,
    begun: Callable[[Run], object] | None = None,
    patience_s: float = 60.0,
) -> tuple[Run, Status]:
    """Start `ppo-unified ARGUMENTS` as a process of its own session and wait until it trains.

    It goes on with `resumed`; without, it makes a folder, which `begun` hears of before torch is imported.
    Raises UsageError with what it said if it is refused.
    """
    run, deadline = resumed, time.monotonic() + patience_s
    # files and not pipes: the child may write after this process is gone
    with tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as told:
        child = subprocess.Popen(
            [sys.executable, "-P", "-m", "ppo_unified", *arguments],  # -P: no module of this folder shadows ours
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=said,
            start_new_session=True,
            pass_fds=[told.fileno()],
            env=os.environ | {DETACHED: str(told.fileno())},
        )
        # a process that lives as long as a terminal UI must not keep its dead children
        threading.Thread(target=child.wait, name=f"wait for {child.pid}", daemon=True).start()
        while time.monotonic() < deadline:
            ended = child.returncode is not None  # asked first: what it wrote before its end is read after
            if run is None and (run := _told(told)) and begun is not None:
                begun(run)
            status = run.read_status() if run is not None and (run.path / "run.json").exists() else Status()
            if run is not None and status.pid == child.pid and status.state not in ("starting", "failed"):
                return run, status
            if ended:
                said.seek(0)
                raise _refusal(child.returncode, said.read().decode(errors="replace").strip(), run, resumed is None)
            time.sleep(0.02)
    where = run.path if run is not None else "ppo-unified " + shlex.join(arguments)
    raise UsageError(f"{where}: the training process {child.pid} has not started within {patience_s:.0f} s")


def _told(file: IO[bytes]) -> Run | None:
    """The folder that a detached process has made, once it has."""
    path = os.pread(file.fileno(), 1 << 16, 0)  # the offset is the child's too: reading must not move it
    return Run(Path(os.fsdecode(path[:-1]))) if path.endswith(b"\0") else None


def _refusal(code: int, said: str, run: Run | None, new: bool) -> UsageError:
    """Why a detached process ended at once. The folder of a new run that was refused goes; one that failed stays."""
    if run is None:
        return UsageError(said or f"the training process ended at once with code {code}")
    if code == 1:
        reason = run.read_status().reason if (run.path / "run.json").exists() else ""
        return UsageError(f"{run.name} failed: {reason or said}; the traceback is in {run.log}")
    said = said or _last_line(run.log)  # once it has its log, it complains there
    if new:
        discard(run)
    return UsageError(said or f"the training process ended at once with code {code}")


def _last_line(path: Path) -> str:
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n") if path.exists() else []
    return next((line for line in reversed(lines) if line.strip()), "")


def verified_process(run: Run, status: Status) -> psutil.Process:
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
    process = verified_process(run, status)
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
    while run.locked():
        if time.monotonic() > deadline:
            raise UsageError(f"{run.name} has not stopped within {patience_s:.0f} s; end it at once with --kill")
        time.sleep(0.02)
    return run.state(run.read_status())
