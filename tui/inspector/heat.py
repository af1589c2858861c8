"""The colors or letters of each level of a scale.

The scale is signed: blue is above the middle and orange is below it, which people with any type of color vision can
distinguish. Without colors, an uppercase letter is above the middle and a lowercase letter is below it.
"""

from __future__ import annotations

from functools import lru_cache

from rich.style import Style
from textual.color import BLACK, WHITE, Color

ABOVE, BELOW = ("#56B4E9", "#0072B2"), ("#E69F00", "#B35F00")  # blue and orange, each for a dark and a light theme
LETTERS = " ABCD"  # level -> letter above the middle; below it, the letter is lowercase


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
