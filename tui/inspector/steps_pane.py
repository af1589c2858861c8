"""The interface of the panes that show all steps of a sample: tokens as text, or environment steps as strips."""

from __future__ import annotations

from textual import events
from textual.message import Message

from ppo_unified.inspection.heat import LEVELS
from ppo_unified.text import display_width
from tui.inspector.heat import heat_letter, heat_style
from tui.inspector.lines import Line, LinesPane, Span
from tui.inspector.shown import Shown


class StepsPane(LinesPane):
    """Shows all steps of a sample with a cursor."""

    class Clicked(Message):
        """A step was clicked."""

        def __init__(self, step: int) -> None:
            super().__init__()
            self.step = step

    def lines_wanted(self, shown: Shown, width: int) -> int:
        """Return the number of lines that the sample needs in `width` columns."""
        raise NotImplementedError

    def step_by_lines(self, by: int) -> int:
        """Return the step that is `by` lines below the cursor's."""
        raise NotImplementedError

    def step_at(self, x: int, y: int) -> int | None:
        """Return the step that is painted at a cell of the pane, if any."""
        raise NotImplementedError

    def on_mouse_down(self, event: events.MouseDown) -> None:
        step = self.step_at(event.x, event.y)
        if step is not None:
            self.post_message(self.Clicked(step))


def heat_legend(shown: Shown, width: int, note: str = "") -> Line:
    """Return a line with the name, the colors and the range of the heat."""
    heat, scale, letters = shown.heat, shown.scale, not shown.colors
    spans: list[Span] = [(f"heat {heat.label} ", "bold"), (f" {scale.low:.2g} ", "muted")]
    for level in range(-LEVELS, LEVELS + 1):
        if level == 0:
            spans.append((f" {scale.middle:.2g} ", ""))
        else:
            style = "" if letters else heat_style(level, shown.dark, shown.background)
            spans.append((heat_letter(level) if letters else " ", style))
    spans.append((f" {scale.high:.2g}", "muted"))
    meaning = heat.meaning if not letters else heat.meaning.replace("orange", "abcd")
    spans.append((f"   {'ABCD' if letters else 'blue'}: {meaning}", "muted"))
    end = f"  {note}" if note else ""
    used = sum(display_width(text) for text, _ in spans[:-1])
    if used + display_width(spans[-1][0] + end) > width:
        spans.pop()
    else:
        used += display_width(spans[-1][0])
    return [*spans, (f"{end:>{max(0, width - used)}}", "")] if end else spans
