"""Supports NO_COLOR (no-color.org) by removing all colors, including grays, and reversing highlighted text."""

from __future__ import annotations

from functools import lru_cache

from rich.segment import Segment
from rich.style import Style
from textual.color import Color
from textual.filter import LineFilter, NoColor

HIGHLIGHT_CONTRAST = 0.13  # a background that differs by more in brightness (0 to 1) counts as a highlight


class NoColorFilter(LineFilter):
    """Removes the colors."""

    def apply(self, segments: list[Segment], background: Color) -> list[Segment]:
        """Return the segments without colors."""
        return [Segment(text, _without_color(style, background.brightness), None) for text, style, _ in segments]


@lru_cache(1024)
def _without_color(style: Style | None, around: float) -> Style:
    """Return a style without its colors; `around` is the brightness of the surrounding background."""
    if style is None:
        return NoColor.DEFAULT_COLORS
    own = style.bgcolor
    marks = own is not None and not own.is_default and not style.reverse
    if marks and own is not None and abs(Color.from_rich_color(own).brightness - around) > HIGHLIGHT_CONTRAST:
        return style + NoColor.DEFAULT_COLORS + Style(reverse=True)
    return style + NoColor.DEFAULT_COLORS
