"""The visible window of the x axis. All coordinates are as drawn, that is, logarithms on a log axis."""

from __future__ import annotations

from typing import NamedTuple

LEAST = 1e-5  # minimum width of a window, as a share of the full axis


class Window(NamedTuple):
    """A range of the x axis, with left < right."""

    left: float
    right: float

    @property
    def width(self) -> float:
        """The difference between right and left."""
        return self.right - self.left


def clamp(window: Window, whole: Window) -> Window:
    """Move a window inside the full axis. A window that is too wide becomes the full axis."""
    if window.width >= whole.width:
        return whole
    if window.left < whole.left:
        return Window(whole.left, whole.left + window.width)
    if window.right > whole.right:
        return Window(whole.right - window.width, whole.right)
    return window


def touches_end(window: Window, whole: Window) -> bool:
    """Return True if the window shows the newest data and therefore follows new data."""
    return window.right >= whole.right - 1e-9 * max(whole.width, abs(whole.right))


def move_to_end(window: Window, whole: Window) -> Window:
    """Move a window to the right end of the axis."""
    return clamp(Window(whole.right - window.width, whole.right), whole)


def zoom(window: Window, whole: Window, factor: float, at: float) -> Window:
    """Multiply the window's width by `factor`. The coordinate `at` keeps its place on the screen if possible."""
    width = max(window.width * factor, LEAST * whole.width)
    if width >= whole.width:
        return whole
    share = (at - window.left) / window.width
    left = at - share * width
    return clamp(Window(left, left + width), whole)


def pan(window: Window, whole: Window, by: float) -> Window:
    """Move a window by a share of its own width; positive values move it to the right."""
    return clamp(Window(window.left + by * window.width, window.right + by * window.width), whole)
