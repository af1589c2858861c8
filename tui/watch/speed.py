"""Decides when the next frame is due and how many steps it advances the episode."""

from __future__ import annotations

import math

SPEEDS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, math.inf)  # relative to the environment's frame rate; inf has no limit
SHORTEST_S = 1 / 30  # time between two frames
UNLIMITED = 1_000_000  # steps per frame; the process stops earlier, when the time of a frame is over
END_S = 1.0  # the last frame of an episode is shown for this long at speed 1


def frame_interval_s(seconds: float, speed: float, ended: bool) -> float:
    """Return the time until the next frame is requested: a whole number of steps, and at least SHORTEST_S.

    `seconds` is the duration of one step at the environment's frame rate; `ended` is true if the episode has ended.
    """
    if ended:
        return max(SHORTEST_S, END_S / speed)
    step = seconds / speed
    return step * math.ceil(SHORTEST_S / step - 1e-9) if step > 0 else SHORTEST_S


def steps_due(elapsed_s: float, seconds: float, speed: float) -> int:
    """Return the steps that fit into the time since the last request, at least one.

    If the terminal or the environment is slow, more time has passed, so frames are skipped and the speed is kept.
    """
    if math.isinf(speed) or seconds <= 0:
        return UNLIMITED
    return max(1, round(elapsed_s * speed / seconds))


def format_speed(speed: float) -> str:
    """Format a speed, such as '0.25x' or 'max'."""
    return "max" if math.isinf(speed) else f"{speed:g}x"
