"""The pane that shows a laboratory: sections of tables, in columns if they fit, which scroll if they do not."""

from __future__ import annotations

from collections.abc import Sequence

from textual import events

from ppo_unified.inspection.laboratories import Laboratory
from ppo_unified.inspection.sections import Canvas, Section
from ppo_unified.terminal.chat import wrap_text
from ppo_unified.text import display_width
from tui.inspector.lines import Line, Span, StripWidget

COLUMN, GAP = 56, 3  # least width of a column, and the space between two columns
STEPS = 12  # most steps of a sample


class LaboratoryPane(StripWidget):
    """Shows the report of a laboratory and the steps around the cursor of one sample, or a message."""

    def __init__(self, id: str) -> None:
        super().__init__(id)
        self._found: Laboratory | str = ""
        self._number = self._step = self._top = self._count = 0
        self._unicode = True
        self._sections: tuple[Laboratory | None, Canvas, list[Section]] = None, Canvas(0), []

    def show(self, found: Laboratory | str, number: int = 0, step: int = 0, unicode: bool = True) -> None:
        """Show a laboratory with one step of one sample, or a message."""
        if found is not self._found:
            self._top = 0
        self._found, self._number, self._step, self._unicode = found, number, step, unicode
        self.repaint()

    def scroll_lines(self, by: int) -> None:
        """Scroll by some lines."""
        self._top = max(0, min(self._top + by, self._count - self.size.height + 1))
        self.repaint()

    def on_mouse_scroll_down(self, event: events.MouseScrollDown) -> None:
        self.scroll_lines(3)

    def on_mouse_scroll_up(self, event: events.MouseScrollUp) -> None:
        self.scroll_lines(-3)

    def paint(self, width: int, height: int) -> Sequence[Line]:
        if isinstance(self._found, str):
            return [[(f" {line}", "")] for line in wrap_text(self._found, max(1, width - 2))]
        columns = max(1, min(2, (width - 2 + GAP) // (COLUMN + GAP)))
        each = (width - 2 - GAP * (columns - 1)) // columns
        lines = place_sections(self._make_sections(self._found, each), each, columns, self._unicode)
        self._count = len(lines)
        if len(lines) <= height:
            self._top = 0
            return lines
        self._top = max(0, min(self._top, len(lines) - height + 1))
        end = self._top + height - 1
        more = f" lines {self._top + 1} to {end} of {len(lines)}; scroll with Page Up and Page Down"
        return [*lines[self._top : end], [(more, "muted")]]

    def _make_sections(self, found: Laboratory, width: int) -> list[Section]:
        """Return the sections. Those of the iteration are made again only if the width changes."""
        canvas = Canvas(width, self._unicode)
        made_from, made_for, sections = self._sections
        if made_from is not found or made_for != canvas:
            sections = found.sections(canvas)
            self._sections = found, canvas, sections
        return [*sections, found.sample_section(self._number, canvas, self._step, STEPS)]


def place_sections(sections: Sequence[Section], width: int, columns: int, unicode: bool) -> list[Line]:
    """Return lines with the sections in one or two columns of `width`, whose heights are as equal as possible."""
    blocks = [_block(section, width, unicode) for section in sections]
    total = sum(map(len, blocks))
    cut = len(blocks)
    if columns == 2:
        heights = [sum(map(len, blocks[:n])) for n in range(len(blocks) + 1)]
        cut = min(range(1, len(blocks) + 1), key=lambda n: max(heights[n], total - heights[n]))
    left, right = (sum(part, list[Line]()) for part in (blocks[:cut], blocks[cut:]))
    lines: list[Line] = []
    for n in range(max(len(left), len(right))):
        spans: list[Span] = [(" ", ""), *(left[n] if n < len(left) else [])]
        if n < len(right):
            used = sum(display_width(text) for text, _ in spans)
            spans += [(" " * (1 + width + GAP - used), ""), *right[n]]
        lines.append(spans)
    return lines


def _block(section: Section, width: int, unicode: bool) -> list[Line]:
    dash = "─" if unicode else "-"
    heading = f"{dash} {section.title} "
    rest = dash * max(0, width - display_width(heading))
    return [[(heading, "bold"), (rest, "muted")], *section.lines, [("", "")]]
