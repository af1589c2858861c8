"""Write run.json during training: whenever the trainer reports, and every few seconds from a thread.

The thread shows that the process is alive and how far it is, even during a long rollout, update or evaluation.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Self

from ppo_unified.config.spec import WorkCounter
from ppo_unified.runs.folder import FolderLostError, Run, Status, check_folder
from ppo_unified.runs.signals import StopRequest
from ppo_unified.text import print_err

HEARTBEAT_S = 2.0


class BestEffort:
    """Lets writes fail without ending the run. A failure is reported once, and writing is retried the next time."""

    def __init__(self, run: Run) -> None:
        self.run, self.failing = run, set[str]()

    @contextmanager
    def attempt(self, what: str) -> Iterator[None]:
        """Run the block, which writes `what`, and report OSErrors. Raises FolderLostError if the run folder is gone."""
        check_folder(self.run)
        try:
            yield
        except OSError as error:
            check_folder(self.run)
            if what not in self.failing:
                self.failing.add(what)
                why = error.strerror or error
                print_err(f"{self.run.path}: cannot write {what} ({why}); training continues and will retry")
        else:
            if what in self.failing:
                self.failing.discard(what)
                print_err(f"{self.run.path}: writing {what} works again")


class Heartbeat:
    """Writes a status to run.json. Inside a `with` block, a thread also writes it every HEARTBEAT_S seconds.

    Whoever changes several fields of `status` that belong together holds `lock`. At least every HEARTBEAT_S seconds,
    the thread calls `listener`. It ends when the run folder is lost; the main thread reports this error at its next
    write. After a `stop_request`, the state is shown as 'stopping', even if the trainer is still busy.
    """

    def __init__(self, run: Run, status: Status) -> None:
        self.run, self.status = run, status
        self.listener: Callable[[Status], None] | None = None
        self.lock = threading.RLock()
        self.best_effort = BestEffort(run)
        self.stop_request = StopRequest()
        self._work: tuple[str, WorkCounter | None] = ("starting", None)  # the phase and its counter
        self._seen: tuple[object, ...] = ()  # the phase and the counter's values when they last changed
        self._moved = self._written = time.monotonic()
        self._ending = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self._ending.clear()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End the thread. After this, only the caller writes run.json."""
        self._ending.set()
        if self._thread is not None:
            self._thread.join()
        self.status.phase, self.status.phase_done, self.status.work = "", None, ""

    def enter(self, phase: str, counter: WorkCounter | None = None) -> None:
        """Record that a phase begins. If there is a counter, `work`, `phase_done` and `progressed` follow it."""
        if counter is not None:
            counter.begin("")  # unknown until the work sets it
        self._work = phase, counter

    def write(self) -> None:
        """Write run.json. A failed write is reported and retried later. Raises FolderLostError."""
        with self.lock:
            self._observe()
            self._written = time.monotonic()
            with self.best_effort.attempt("run.json"):
                self.run.write_status(self.status)

    def _observe(self) -> None:
        """Update the status from the phase and its counter.

        Without a counter, or when all counted work is done, progress cannot be observed, so it is assumed.
        """
        (phase, counter), now, status = self._work, time.monotonic(), self.status
        if self.stop_request and status.state == "running":
            status.state = "stopping"
        seen: tuple[object, ...] = (phase,)
        status.phase, status.phase_done, status.work = phase, None, ""
        if counter is not None:
            status.work = counter.describe()
            if (total := counter.total) > 0:  # read once, because the main thread changes it
                seen = (phase, counter.work, counter.done, total, counter.ticks)
                status.phase_done = min(1.0, counter.done / total)
        if seen != self._seen or status.phase_done in (None, 1.0):
            self._seen, self._moved = seen, now
        status.heartbeat = time.time()
        status.progressed = status.heartbeat - (now - self._moved)

    def _beat(self) -> None:
        while not self._ending.wait(self._written + HEARTBEAT_S - time.monotonic()):
            with self.lock:
                if time.monotonic() - self._written >= HEARTBEAT_S:
                    try:
                        self.write()
                    except FolderLostError:
                        return
                self._call_listener()

    def _call_listener(self) -> None:
        try:
            if self.listener is not None:
                self.listener(self.status)
        except Exception as error:
            self.listener = None
            print_err(
                f"{self.run.name}: cannot show the progress during iterations ({type(error).__name__}: {error}); "
                "training continues"
            )
