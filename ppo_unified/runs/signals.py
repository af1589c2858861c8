"""Handle requests to stop (SIGINT, SIGTERM and SIGHUP) and define which work they may interrupt."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from ppo_unified.runs.folder import Run

SAME_REQUEST_S = 1.0  # a SIGTERM or SIGHUP this soon after the first signal is ignored


class Interrupted(BaseException):
    """A request to stop arrived during work that may be abandoned. It is a BaseException, so that the code of an
    environment or a reward function does not catch it by accident."""


class StopRequest:
    """Set by SIGINT, SIGTERM or SIGHUP; checked between iterations, and raised in blocks that may be interrupted.

    A second signal ends the process immediately, except a SIGTERM or SIGHUP within SAME_REQUEST_S of the first.
    Two programs may stop a run at the same moment, and a closing session sends both signals.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._first = 0.0  # monotonic time of the first signal
        self._interruptible = False
        self._run: Run | None = None

    def __bool__(self) -> bool:
        return self.signal is not None

    @property
    def reason(self) -> str:
        return f"stopped by {self.signal.name}" if self.signal is not None else "stopped"

    def show_in(self, run: Run) -> None:
        """From now on, mark the run's folder as stopping after a signal, so that other programs send no second one."""
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
            self._interruptible = False  # only once, so that the cleanup is not interrupted
            raise Interrupted

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Inside the block, a request to stop raises Interrupted, even if it arrived before the block.

        An error after the request also raises Interrupted, because the signal may have ended a child process.
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
        """Handle the signals inside the block; SIGHUP stays ignored under nohup. Works only in the main thread."""
        ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        numbers = (signal.SIGINT, signal.SIGTERM, *(() if ignored else (signal.SIGHUP,)))
        before = [signal.signal(number, self.handle) for number in numbers]
        try:
            yield self
        finally:
            for number, handler in zip(numbers, before, strict=True):
                signal.signal(number, handler)
