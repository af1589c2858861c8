"""How often the screen is drawn while runs write something new."""

from __future__ import annotations

import time
from collections import deque
from statistics import median

REFRESH_S = 0.5  # between two pictures of what the reader found
IDLE_SHARE, TYPING_SHARE = 10, 60  # pictures take at most this part of the time; while one types, few keys wait for one
TYPING_S = 2.0  # after a key or the mouse
EAGER_FOR_S = 3.0  # after the first point of a run


class Pacer:
    """Keeps pictures apart. All times are on the monotonic clock."""

    def __init__(self) -> None:
        self._began = 0.0  # when the last picture was
        self._took = deque((0.0, 0.0, 0.0), maxlen=3)  # seconds of the last pictures
        self._eager_until = 0.0  # while first curves grow
        self._touched = 0.0  # when a key was pressed or the mouse moved

    def wait_s(self) -> float:
        """Until the next picture may begin; 0 or less: at once."""
        return self._began + self.interval_s() - time.monotonic()

    def interval_s(self) -> float:
        """Between two pictures. A single long one, such as the first with other charts, tells little of the next."""
        now = time.monotonic()
        least = REFRESH_S / 4 if self.is_eager() else REFRESH_S
        if now - self._touched < TYPING_S:
            return max(least, TYPING_SHARE * self._took[-1])
        return max(least, IDLE_SHARE * median(self._took))

    def begin(self) -> float:
        """A picture begins; the time, for `end`."""
        self._began = time.monotonic()
        return self._began

    def end(self, began: float) -> None:
        """The picture that was begun at this time is on screen."""
        self._took.append(time.monotonic() - began)

    def hurry(self) -> None:
        """Let the next picture begin at once."""
        self._began = 0.0

    def be_eager(self) -> None:
        """Show the first points of a run at once, and the next ones soon."""
        self._began, self._eager_until = 0.0, time.monotonic() + EAGER_FOR_S

    def is_eager(self) -> bool:
        return time.monotonic() < self._eager_until

    def touch(self) -> None:
        """A key was pressed, or the mouse moved."""
        self._touched = time.monotonic()
