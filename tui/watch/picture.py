"""Draws a frame as cells of the terminal: half blocks in color, or characters by brightness."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from rich.color import Color
from rich.segment import Segment
from rich.style import Style
from textual.geometry import Region
from textual.strip import Strip
from textual.widget import Widget

from ppo_unified.runs.play_messages import FrameReply
from ppo_unified.terminal.chat import wrap_text
from ppo_unified.terminal.frames import UPPER_HALF, to_characters
from ppo_unified.text import clean_lines, display_width, pad


class Picture(Widget):
    """Shows a frame in its center. Only lines that change are drawn again."""

    def __init__(self) -> None:
        super().__init__()
        self._lines: list[list[Segment]] = []

    def show(self, lines: list[list[Segment]]) -> None:
        """Show a frame whose lines are `lines`."""
        before, self._lines = self._lines, lines
        if len(before) != len(lines):
            self.refresh()
            return
        top = self._top()
        for y, (old, new) in enumerate(zip(before, lines, strict=True)):
            if old != new:
                self.refresh(Region(0, top + y, self.size.width, 1))

    def _top(self) -> int:
        return max(0, (self.size.height - len(self._lines)) // 2)

    def render_line(self, y: int) -> Strip:
        """Return one line of the widget."""
        y -= self._top()
        if not 0 <= y < len(self._lines):
            return Strip.blank(self.size.width, self.rich_style)
        segments, width = self._lines[y], self.size.width
        left = max(0, (width - sum(segment.cell_length for segment in segments)) // 2)
        own = self.rich_style
        strip = Strip([Segment(" " * left, own), *(Segment(text, style or own) for text, style, _ in segments)])
        return strip.crop(0, width).extend_cell_length(width, own)


def frame_lines(frame: FrameReply, pixels: bytes, color: bool, columns: int, lines: int) -> list[list[Segment]]:
    """Convert a frame that was requested for a size in cells to lines. Without `color`, they consist of characters."""
    if not pixels:
        return text_lines(frame.text, columns, lines)
    picture = np.frombuffer(pixels, np.uint8).reshape(frame.lines, frame.columns, 3)
    return half_block_lines(picture) if color else character_lines(picture)


def half_block_lines(pixels: np.ndarray) -> list[list[Segment]]:
    """Convert pixels [2 * lines, columns, 3] to lines of half blocks. Equal neighbors share a segment."""
    packed = pixels.astype(np.int64) @ np.array([1 << 16, 1 << 8, 1])
    cells = packed[::2] << 24 | packed[1::2]
    lines = []
    for row in cells:
        starts = np.flatnonzero(np.diff(row, prepend=row[0] + 1))
        lengths = np.diff(starts, append=len(row))
        lines.append(
            [_cells(code, length) for code, length in zip(row[starts].tolist(), lengths.tolist(), strict=True)]
        )
    return lines


@lru_cache(16384)
def _cells(code: int, length: int) -> Segment:
    """Return `length` cells of one pair of colors. In some fonts, half blocks of one color would have a seam."""
    upper, lower = code >> 24, code & 0xFFFFFF
    return Segment((" " if upper == lower else UPPER_HALF) * length, _style(upper, lower))


@lru_cache(16384)
def _style(upper: int, lower: int) -> Style:
    return Style(color=_color(upper), bgcolor=_color(lower))


def _color(packed: int) -> Color:
    return Color.from_rgb(packed >> 16, packed >> 8 & 0xFF, packed & 0xFF)


def character_lines(pixels: np.ndarray) -> list[list[Segment]]:
    """Convert pixels [lines, columns, 3] to lines of characters without color."""
    return [[Segment(row.ljust(pixels.shape[1]))] for row in to_characters(pixels)]


def text_lines(text: str, columns: int, lines: int) -> list[list[Segment]]:
    """Convert a frame that is text. A single line is wrapped; otherwise, long lines are cut and end with '~'."""
    rows = clean_lines(text.strip("\r\n")).split("\n")
    if len(rows) == 1:
        rows = wrap_text(rows[0], columns)
    if len(rows) > lines:
        rows = [*rows[: lines - 1], "~"]
    width = min(columns, max(map(display_width, rows), default=0))
    return [[Segment(pad(row, width))] for row in rows]
