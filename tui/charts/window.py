"""The part of the x axis that charts show: pure functions on the axis as it is drawn (logarithms on a log axis)."""

from __future__ import annotations

from typing import NamedTuple

LEAST = 1e-5  # of the whole axis: no window is narrower


class Window(NamedTuple):
    """From `left` to `right`, left < right."""

    left: float
    right: float

    @property
    def width(self) -> float:
        return self.right - self.left


def clamp(window: Window, whole: Window) -> Window:
    """The window moved into the whole axis; the whole axis where it is as wide."""
    if window.width >= whole.width:
        return whole
    if window.left < whole.left:
        return Window(whole.left, whole.left + window.width)
    if window.right > whole.right:
        return Window(whole.right - window.width, whole.right)
    return window


def touches_end(window: Window, whole: Window) -> bool:
    """Whether it shows the newest data, and so is to follow them."""
    return window.right >= whole.right - 1e-9 * max(whole.width, abs(whole.right))


def move_to_end(window: Window, whole: Window) -> Window:
    """As wide as before, at the right end of the axis."""
    return clamp(Window(whole.right - window.width, whole.right), whole)


def zoom(window: Window, whole: Window, factor: float, at: float) -> Window:
    """`factor` times as wide; what is at `at` stays where it is on the screen, as far as the axis allows."""
    width = max(window.width * factor, LEAST * whole.width)
    if width >= whole.width:
        return whole
    share = (at - window.left) / window.width
    left = at - share * width
    return clamp(Window(left, left + width), whole)


def pan(window: Window, whole: Window, by: float) -> Window:
    """Moved by a share of its own width, to the right where positive."""
    return clamp(Window(window.left + by * window.width, window.right + by * window.width), whole)
