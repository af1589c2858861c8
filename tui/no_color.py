"""NO_COLOR (no-color.org): no colour leaves the program, nor a grey. What a cursor marks is reversed instead."""

from __future__ import annotations

from functools import lru_cache

from rich.segment import Segment
from rich.style import Style
from textual.color import Color
from textual.filter import LineFilter, NoColor

STANDS_OUT = 0.13  # difference in brightness (0 to 1) from which on a background marks something


class NoColorFilter(LineFilter):
    """Takes the colours away."""

    def apply(self, segments: list[Segment], background: Color) -> list[Segment]:
        return [Segment(text, _without_color(style, background.brightness), None) for text, style, _ in segments]


@lru_cache(1024)
def _without_color(style: Style | None, around: float) -> Style:
    """A style without its colours; `around` is the brightness of what surrounds it."""
    if style is None:
        return NoColor.DEFAULT_COLORS
    own = style.bgcolor
    marks = own is not None and not own.is_default and not style.reverse
    if marks and own is not None and abs(Color.from_rich_color(own).brightness - around) > STANDS_OUT:
        return style + NoColor.DEFAULT_COLORS + Style(reverse=True)
    return style + NoColor.DEFAULT_COLORS
