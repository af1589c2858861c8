"""The x axis that the charts of a page share, and its zoom and pan operations."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ppo_unified.terminal import chart
from ppo_unified.terminal.braille import View
from tui.charts.chart_picture import Look
from tui.charts.settings import Settings
from tui.charts.traces import Trace, drawn_traces, x_ends
from tui.charts.window import Window, clamp, move_to_end, pan, touches_end, zoom


class XAxis:
    """The shared x axis. Coordinates are as drawn (logarithms on a log axis), but `settings` stores plain x values."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.whole: Window | None = None  # the range of all visible curves, or None without curves

    def fit(self, traces: Sequence[Trace]) -> None:
        """Set the full range of the axis to the range of these curves."""
        ends = x_ends(drawn_traces(traces, self.settings.aggregate), self.settings.axis, self.settings.has_log_x)
        view = None if ends is None else chart.add_margins(View(*ends, 0, 1))
        self.whole = None if view is None else Window(view.left, view.right)

    def look(self, tag: str) -> Look:
        """Return the drawing options for the chart of a metric."""
        settings = self.settings
        return Look(
            settings.axis,
            settings.has_log_x,
            tag in settings.log_y,
            settings.smoothing,
            settings.aggregate,
            self.window,
        )

    @property
    def window(self) -> Window | None:
        """The visible part of the axis, or None without curves."""
        settings, whole = self.settings, self.whole
        if settings.window is None or whole is None:
            return whole
        left, right = settings.window
        if settings.has_log_x:
            left = math.log10(left) if left > 0 else whole.left
            right = math.log10(right) if right > 0 else left
        if left >= right:
            return whole
        return (move_to_end if settings.follow else clamp)(Window(left, right), whole)

    def position_of(self, x: float | None) -> float | None:
        """Convert an x value to a drawn coordinate, or return None if it is outside the window."""
        window = self.window
        if x is None or window is None:
            return None
        at = math.log10(x) if self.settings.has_log_x and x > 0 else x
        return at if window.left <= at <= window.right else None

    def zoom(self, factor: float, at: float | None) -> None:
        """Zoom around `at`. None means the right end if the newest data is visible, otherwise the middle."""
        window, whole = self.window, self.whole
        if window is not None and whole is not None:
            if at is None:
                at = window.right if touches_end(window, whole) else (window.left + window.right) / 2
            self._show(zoom(window, whole, factor, at), whole)

    def pan(self, by: float) -> None:
        """Move the window by a share of its own width."""
        if self.window is not None and self.whole is not None:
            self._show(pan(self.window, self.whole, by), self.whole)

    def drag(self, place: float, share: float) -> None:
        """Move the window so that the coordinate `place` is at the position `share` (0 to 1) of its width."""
        window, whole = self.window, self.whole
        if window is not None and whole is not None:
            left = place - share * window.width
            self._show(clamp(Window(left, left + window.width), whole), whole)

    def reset(self) -> None:
        """Show the full axis and follow the newest data."""
        self.settings.window, self.settings.follow = None, True

    def _show(self, window: Window, whole: Window) -> None:
        settings = self.settings
        ends = (window.left, window.right)
        if settings.has_log_x:
            ends = (10.0**window.left, 10.0**window.right)
        settings.window = None if window.width >= whole.width * (1 - 1e-9) else ends
        settings.follow = touches_end(window, whole)
