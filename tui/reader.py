"""The thread that reads new data of the runs and collects the changes until the screen is redrawn."""

from __future__ import annotations

import threading
from collections.abc import Callable

from textual.worker import get_current_worker

from tui.pacing import Pacer
from tui.store import Changes, Store

BUSY_S, QUIET_S = 0.02, 0.5  # pause between two reads while more data is pending, and otherwise
EAGER_S = 0.05  # pause while a running run has no point yet, and shortly after its first point
MAX_REDRAW_WAIT_S = 1.0  # the thread waits at most this long for a redraw to finish
NOTHING = Changes(False, frozenset(), False)


class Reader:
    """Reads the store in a thread. The thread executes `run`; the app calls all other methods."""

    def __init__(self, store: Store, pacer: Pacer, announce: Callable[[], object]) -> None:
        """Create a reader that calls `announce` in its thread when the store has changed."""
        self.found = NOTHING  # changes since the last `take`
        self._store, self._pacer, self._announce = store, pacer, announce
        self._stopped, self._hurry = threading.Event(), threading.Event()
        self._not_drawing = threading.Event()  # cleared during a redraw, which reading would slow down
        self._not_drawing.set()
        self._lock = threading.Lock()

    def run(self) -> None:
        """Read until the app ends. Does not access any widget."""
        worker = get_current_worker()
        while not (worker.is_cancelled or self._stopped.is_set()):
            self._not_drawing.wait(MAX_REDRAW_WAIT_S)
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
        """Return the changes since the last call."""
        with self._lock:
            changes, self.found = self.found, NOTHING
        return changes

    def hurry(self) -> None:
        """Read immediately."""
        self._store.request_scan()
        self._hurry.set()

    def pause(self) -> None:
        """Stop reading while the screen is redrawn."""
        self._not_drawing.clear()

    def resume(self) -> None:
        """Continue reading after a redraw."""
        self._not_drawing.set()

    def stop(self) -> None:
        """End the thread."""
        self._stopped.set()
        self._hurry.set()
