"""The quantities that color the tokens or steps of a sample, their scales, and the colors or letters of each level.

The scale is signed: blue is above the middle and orange is below it, which people with any type of color vision can
distinguish. Without colors, an uppercase letter is above the middle and a lowercase letter is below it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from rich.style import Style
from textual.color import BLACK, WHITE, Color

LEVELS = 4  # levels on each side of the middle
ABOVE, BELOW = ("#56B4E9", "#0072B2"), ("#E69F00", "#B35F00")  # blue and orange, each for a dark and a light theme
LETTERS = " ABCD"  # level -> letter above the middle; below it, the letter is lowercase


@dataclass(frozen=True)
class Heat:
    """A quantity that can color steps."""

    name: str  # of a column
    label: str
    meaning: str  # completes the sentence "blue: ..."
    scale: Literal["signed", "ratio", "range"] = "signed"  # the middle is 0, 1 or the median


HEATS: tuple[Heat, ...] = (
    Heat("advantage", "A", "better than expected; orange: worse"),
    Heat("ratio", "ratio", "more likely than before; orange: less", "ratio"),
    Heat("kl", "KL", "more likely than in the reference; orange: less"),
    Heat("value", "V", "the critic expects more; orange: less", "range"),
    Heat("reward", "r", "positive reward; orange: negative"),
    Heat("delta", "delta", "the outlook improved; orange: got worse"),
    Heat("entropy", "entropy", "less certain; orange: more certain", "range"),
)


@dataclass(frozen=True)
class Scale:
    """Maps a quantity to levels from -LEVELS to LEVELS."""

    low: float
    middle: float
    high: float
    is_log: bool = False

    def levels(self, x: np.ndarray) -> np.ndarray:
        """Return the level of each number, int8 of the same shape. Numbers that are not finite have level 0."""
        ends = np.array([self.low, self.middle, self.high])
        with np.errstate(divide="ignore", invalid="ignore"):
            place, (low, middle, high) = (np.log(x), np.log(ends)) if self.is_log else (x, ends)
            share = (place - middle) / np.where(place >= middle, max(high - middle, 1e-12), max(middle - low, 1e-12))
        share = np.clip(np.where(np.isfinite(share), share, 0), -1, 1)
        return np.asarray(np.round(share * LEVELS), np.int8)


def make_scale(heat: Heat, x: np.ndarray) -> Scale:
    """Return the scale for the valid numbers of an iteration. Its ends ignore the most extreme 2 %."""
    finite = x[np.isfinite(x)].astype(np.float64)
    if not finite.size:
        return Scale(-1, 0, 1)
    if heat.scale == "range":
        low, middle, high = np.percentile(finite, (2, 50, 98))
        return Scale(float(low), float(middle), float(high))
    if heat.scale == "ratio":
        largest = float(np.exp(max(np.percentile(np.abs(np.log(np.maximum(finite, 1e-9))), 98), 1e-3)))
        return Scale(1 / largest, 1.0, largest, True)
    limit = max(float(np.percentile(np.abs(finite), 98)), float(np.abs(finite).max()) / 10, 1e-9)
    return Scale(-limit, 0.0, limit)


@lru_cache(256)
def heat_style(level: int, dark: bool, background: str) -> Style:
    """Return the colors of a level on a theme's background, as hex color. The text contrasts with its background."""
    hue = Color.parse((ABOVE if level > 0 else BELOW)[0 if dark else 1])
    color = Color.parse(background).blend(hue, (0.0, 0.3, 0.5, 0.75, 1.0)[abs(level)])
    text = max((WHITE, BLACK), key=lambda text: contrast(text, color))
    return Style(color=text.rich_color, bgcolor=color.rich_color)


def contrast(one: Color, other: Color) -> float:
    """Return the contrast ratio of two colors, from 1 to 21 (WCAG 2)."""
    low, high = sorted(map(_luminance, (one, other)))
    return (high + 0.05) / (low + 0.05)


def _luminance(color: Color) -> float:
    linear = (c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in color.normalized)
    return sum(share * c for share, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def heat_letter(level: int) -> str:
    """Return the letter of a level, or a space for the middle."""
    letter = LETTERS[abs(level)]
    return letter if level > 0 else letter.lower()
