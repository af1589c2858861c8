"""The pane that shows a response as heat-colored text with a cursor."""

from __future__ import annotations

from collections.abc import Sequence

from rich.cells import cell_len
from rich.style import Style

from ppo_unified.inspection.token_text import pieces_of, visible_text
from tui.inspector.heat import heat_letter, heat_style
from tui.inspector.lines import Line, Span
from tui.inspector.shown import Shown
from tui.inspector.steps_pane import StepsPane, clip_marks, heat_legend, mark_legend
from tui.inspector.token_layout import PROMPT, TokenLayout, arrange_tokens


class TextPane(StepsPane):
    """Shows the prompt and the response. Each token's background is its heat; a mark below it shows what the clip did.

    Without colors, a letter below each token replaces its background.
    """

    def __init__(self, id: str) -> None:
        super().__init__(id)
        self._key: object = None  # identifies the layout
        self._layout = TokenLayout([[]], [])
        self._top = 0  # the first visible line of the layout
        self._rows: list[int] = []  # the line of the layout that each painted line belongs to

    def lines_wanted(self, shown: Shown, width: int) -> int:
        """Return the number of lines that the whole sample needs, including the legends."""
        layout = self._arranged(shown, width)
        return 2 + (2 if shown.colors else 3) * len(layout.lines)

    def _arranged(self, shown: Shown, width: int) -> TokenLayout:
        key = (id(shown.stored), shown.number, width, shown.unicode)
        if key != self._key:
            texts = shown.values("text").tolist()
            before = visible_text(shown.stored.text_before(shown.sample), shown.unicode)
            pieces = pieces_of(texts, shown.unicode)
            edge = "│" if shown.unicode else "|"
            if sum(map(cell_len, (before, *pieces))) + len(pieces) + 1 <= width:  # short: show where tokens end
                before, pieces = before + edge, [piece + edge for piece in pieces]
            self._layout = arrange_tokens(before, pieces, ["\n" in text for text in texts], width)
            self._key, self._top = key, 0
        return self._layout

    def make_lines(self, shown: Shown, width: int, height: int) -> Sequence[Line]:
        layout = self._arranged(shown, width)
        levels = shown.scale.levels(shown.values(shown.heat.name)).tolist()
        marks = clip_marks(shown)
        legend = mark_legend(shown, width) if height > 3 else []
        room, cursor = height - 1 - len(legend), layout.line_of[shown.step]
        marked = [any(i != PROMPT and marks[i] for i, _ in line) for line in layout.lines]
        self._scroll(cursor, [1 + (not shown.colors) + mark for mark in marked], room)
        lines, self._rows = list[Line](), list[int]()
        for number in range(self._top, len(layout.lines)):
            if len(lines) >= room:
                break
            line = layout.lines[number]
            block = [[_token(shown, levels, i, text) for i, text in line]]
            block += [] if shown.colors else [[_letters(levels, i, text) for i, text in line]]
            block += [[_mark(marks, i, text) for i, text in line]] if marked[number] else []
            lines += block
            self._rows += [number] * len(block)
        lines, last = lines[:room], self._rows[-1] + 1
        place = "" if last - self._top >= len(layout.lines) else f"lines {self._top + 1}-{last} of {len(layout.lines)}"
        return [heat_legend(shown, width, place), *lines, *legend]

    def _scroll(self, cursor: int, heights: Sequence[int], room: int) -> None:
        """Move the visible part so that it contains the cursor's line with its letters and marks."""
        self._top = min(self._top, cursor)
        while self._top < cursor and sum(heights[self._top : cursor + 1]) > room:
            self._top += 1

    def step_by_lines(self, by: int) -> int:
        """Return the step that is `by` lines below the cursor, or the first or last one."""
        assert self.shown is not None
        line_of = self._layout.line_of
        wanted = line_of[self.shown.step] + by
        if by > 0:
            return next((i for i, line in enumerate(line_of) if line >= wanted), len(line_of) - 1)
        return next((i for i, line in enumerate(line_of) if line >= wanted), 0)

    def step_at(self, x: int, y: int) -> int | None:
        if not 1 <= y <= len(self._rows):
            return None
        for index, text in self._layout.lines[self._rows[y - 1]]:
            if x < cell_len(text):
                return None if index == PROMPT else index
            x -= cell_len(text)
        return None


def _token(shown: Shown, levels: Sequence[int], index: int, text: str) -> Span:
    if index == PROMPT:
        return text, "muted"
    if index == shown.step:
        return text, "inverse" if shown.colors else Style(reverse=True, bold=True)
    level = int(levels[index])
    return text, heat_style(level, shown.dark, shown.background) if level and shown.colors else ""


def _letters(levels: Sequence[int], index: int, text: str) -> Span:
    return (" " if index == PROMPT else heat_letter(int(levels[index]))) * cell_len(text), "muted"


def _mark(marks: Sequence[str], index: int, text: str) -> Span:
    return ("" if index == PROMPT else marks[index]).ljust(cell_len(text)), "cut"
