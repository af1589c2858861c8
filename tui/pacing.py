"""Limits how often the screen is redrawn while runs write new data."""

from __future__ import annotations

import time
from collections import deque
from statistics import median

REFRESH_S = 0.5  # minimum time between two redraws
IDLE_SHARE, TYPING_SHARE = 10, 60  # redraws use at most 1/10 of the time, and 1/60 while the user types
EAGER_SHARE = 3  # and 1/3 shortly after the first point of a run
TYPING_S = 2.0  # the user counts as typing for this long after a key or a mouse event
EAGER_FOR_S = 3.0  # redraws are more frequent for this long after the first point of a run


class Pacer:
    """Decides when the next redraw may start. All times are on the monotonic clock."""

    def __init__(self) -> None:
        self._began = 0.0  # start of the last redraw
        self._took = deque((0.0, 0.0, 0.0), maxlen=3)  # durations of the last redraws in seconds
        self._eager_until = 0.0
        self._touched = 0.0  # time of the last key or mouse event

    def wait_s(self) -> float:
        """Return the seconds until the next redraw may start; 0 or less means now."""
        return self._began + self.interval_s() - time.monotonic()

    def interval_s(self) -> float:
        """Return the seconds between the starts of two redraws.

        The median ignores a single slow redraw, such as the first one after a change to other charts.
        """
        now = time.monotonic()
        least, share = (REFRESH_S / 4, EAGER_SHARE) if self.is_eager() else (REFRESH_S, IDLE_SHARE)
        if now - self._touched < TYPING_S:
            return max(least, TYPING_SHARE * self._took[-1])
        return max(least, share * median(self._took))

    def begin(self) -> float:
        """Record the start of a redraw and return its time for `end`."""
        self._began = time.monotonic()
        return self._began

    def end(self, began: float) -> None:
        """Record that the redraw that started at `began` is complete."""
        self._took.append(time.monotonic() - began)

    def hurry(self) -> None:
        """Let the next redraw start immediately."""
        self._began = 0.0

    def be_eager(self) -> None:
        """Redraw immediately, and more often during the next seconds, even if the user has just typed."""
        self._began, self._touched, self._eager_until = 0.0, 0.0, time.monotonic() + EAGER_FOR_S

    def is_eager(self) -> bool:
        """Return True shortly after the first point of a run."""
        return time.monotonic() < self._eager_until

    def touch(self) -> None:
        """Record a key or mouse event."""
        self._touched = time.monotonic()
