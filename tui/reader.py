"""The thread that reads what runs write, and holds what it found until there is time to draw it."""

from __future__ import annotations

import threading
from collections.abc import Callable

from textual.worker import get_current_worker

from tui.pacing import Pacer
from tui.store import Changes, Store

BUSY_S, QUIET_S = 0.02, 0.5  # between two reads: more to read at once, or nothing new
EAGER_S = 0.05  # while a run that trains has yet to write its first point, and shortly after it
LONGEST_PICTURE_S = 1.0  # that the thread waits for at most
NOTHING = Changes(False, frozenset(), False)


class Reader:
    """`run` is the thread's; everything else is called by the app."""

    def __init__(self, store: Store, pacer: Pacer, announce: Callable[[], object]) -> None:
        """`announce` is called in the thread when there is something new."""
        self.found = NOTHING  # since the last `take`
        self._store, self._pacer, self._announce = store, pacer, announce
        self._stopped, self._hurry = threading.Event(), threading.Event()
        self._undisturbed = threading.Event()  # nothing is being drawn: two threads at once would take twice as long
        self._undisturbed.set()
        self._lock = threading.Lock()

    def run(self) -> None:
        """Read until the app ends. Touches no widget."""
        worker = get_current_worker()
        while not (worker.is_cancelled or self._stopped.is_set()):
            self._undisturbed.wait(LONGEST_PICTURE_S)
            awaited = self._store.awaits_first_point()
            changes = self._store.update()
            if changes.is_news:
                if awaited and not self._store.awaits_first_point():
                    self._pacer.be_eager()
                with self._lock:
                    self.found = self.found.merge(changes)
                self._announce()
            eager = self._store.awaits_first_point() or self._pacer.is_eager()
            self._hurry.wait(BUSY_S if changes.pending else EAGER_S if eager else QUIET_S)
            self._hurry.clear()

    def take(self) -> Changes:
        """What was found since the last call."""
        with self._lock:
            changes, self.found = self.found, NOTHING
        return changes

    def hurry(self) -> None:
        """Read at once."""
        self._store.request_scan()
        self._hurry.set()

    def pause(self) -> None:
        """Let a picture be drawn undisturbed."""
        self._undisturbed.clear()

    def resume(self) -> None:
        self._undisturbed.set()

    def stop(self) -> None:
        self._stopped.set()
        self._hurry.set()
