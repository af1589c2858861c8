"""Handle stop requests (SIGINT, SIGTERM and SIGHUP), define which work they may interrupt, and record who stops a run.

To keep startup fast, this module avoids torch.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from ppo_unified.errors import UsageError
from ppo_unified.parsing import read_bytes
from ppo_unified.runs.folder import Run, Status, write_atomically

SAME_REQUEST_S = 1.0  # a SIGTERM or SIGHUP this soon after the first signal is ignored
USER_STOP = ".stopped-by-user"  # the file that records which trainer the user has stopped or killed
UNRECORDED = "killed? (no reason was recorded)"  # or the process ran out of memory, or the machine lost power
REASONS = {
    signal.SIGINT: "stopped by Ctrl-C",
    signal.SIGTERM: "stopped by another program (SIGTERM)",
    signal.SIGHUP: "stopped because the terminal was closed (SIGHUP)",
}


def record_user_stop(run: Run, status: Status, kill: bool = False) -> None:
    """Record in a run's folder that the user stops or kills its trainer. Call this before sending the signal.

    The record is never removed. It names the trainer in `status`, so it does not apply to a later trainer.
    """
    with suppress(OSError):  # on a full disk, the trainer reports the signal instead
        write_atomically(run.path / USER_STOP, _user_stop(status, kill))


def is_stopped_by_user(run: Run, status: Status, kill: bool = False) -> bool:
    """Return True if `ppo-unified stop` or the terminal UI has stopped or killed the trainer in `status`."""
    with suppress(OSError, ValueError):
        return read_bytes(run.path / USER_STOP).decode() == _user_stop(status, kill)
    return False


def why_ended(run: Run, status: Status, state: str) -> str:
    """Return why a run in the displayed state `state` ended, or an empty string if it is active.

    A crashed run has recorded no reason, unless the status already contains the result of this function.
    """
    if state == "crashed" and not status.reason:
        return "killed by the user" if is_stopped_by_user(run, status, kill=True) else UNRECORDED
    return status.reason


def _user_stop(status: Status, kill: bool) -> str:
    """Return the record's text. A process ID alone is not unique: in a container, each trainer may have the same."""
    return f"{'kill' if kill else 'stop'} {status.pid} {status.pid_started}\n"


class Interrupted(BaseException):
    """Raised if a stop request arrives during work that may be abandoned. It is a BaseException, so that code of
    environments or reward functions does not catch it accidentally."""


class StopRequest:
    """A stop request, set by SIGINT, SIGTERM or SIGHUP, or by this process through `cause`.

    It is checked between iterations, and a signal also interrupts some blocks.

    A second signal ends the process immediately, unless it is a SIGTERM or SIGHUP within SAME_REQUEST_S of the first
    signal. Two programs may stop a run at the same time, and a closing session sends both signals.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self.cause = ""  # why the process itself ends the run, if it does
        self._first = 0.0  # monotonic time of the first signal
        self._interruptible = False
        self._run: Run | None = None

    def __bool__(self) -> bool:
        return self.signal is not None or bool(self.cause)

    @property
    def reason(self) -> str:
        with suppress(UsageError):  # if run.json cannot be read, the signal is reported
            run = self._run if self.signal == signal.SIGTERM else None
            if run is not None and is_stopped_by_user(run, run.read_status()):
                return "stopped by the user"
        return self.cause or "stopped" if self.signal is None else REASONS[self.signal]

    def show_in(self, run: Run) -> None:
        """After a signal, mark the run's folder as stopping, so that other programs do not send a second signal."""
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
            self._interruptible = False  # raise only once, so that the cleanup is not interrupted
            raise Interrupted

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Inside the block, a stop request raises Interrupted, even if it arrived before the block.

        After a request, any error also raises Interrupted, because the signal may have ended a child process. Blocks
        can be nested.
        """
        outer, self._interruptible = self._interruptible, True
        try:
            if self:
                raise Interrupted
            yield
        except Exception as error:
            if self:
                raise Interrupted from error
            raise
        finally:
            self._interruptible = outer and not self  # a request raises only once

    @contextmanager
    def handle_signals(self) -> Iterator[StopRequest]:
        """Handle the signals inside the block. SIGHUP remains ignored under nohup. Works only in the main thread."""
        ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        numbers = (signal.SIGINT, signal.SIGTERM, *(() if ignored else (signal.SIGHUP,)))
        before = [signal.signal(number, self.handle) for number in numbers]
        try:
            yield self
        finally:
            for number, handler in zip(numbers, before, strict=True):
                signal.signal(number, handler)
