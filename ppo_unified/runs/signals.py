"""Requests to stop: SIGINT, SIGTERM and SIGHUP, and where they may interrupt the work."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from ppo_unified.runs.folder import Run

SAME_REQUEST_S = 1.0  # in which a further SIGTERM or SIGHUP repeats the first and asks for nothing more


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

    def show_in(self, run: Run) -> None:
        """Show a request to stop in the folder of the run that this process trains: nobody repeats it unknowingly."""
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
    def handle_signals(self) -> Iterator[StopRequest]:
        """Handle the signals inside the block, SIGHUP unless it is ignored (nohup). Only a main thread can."""
        ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        numbers = (signal.SIGINT, signal.SIGTERM, *(() if ignored else (signal.SIGHUP,)))
        before = [signal.signal(number, self.handle) for number in numbers]
        try:
            yield self
        finally:
            for number, handler in zip(numbers, before, strict=True):
                signal.signal(number, handler)
