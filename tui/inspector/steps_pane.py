"""The base class of the panes that show all steps of a sample, and their legends.

Tokens are shown as text, and environment steps as strips.
"""

from __future__ import annotations

from textual import events
from textual.message import Message

from ppo_unified.inspection.heat import LEVELS
from ppo_unified.text import display_width
from tui.inspector.heat import heat_letter, heat_style
from tui.inspector.lines import Line, LinesPane, Span
from tui.inspector.shown import Shown

CUT, ABOVE, BELOW = "x", ("▲", "^"), ("▼", "v")  # marks of steps; with and without Unicode


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
        """Return the step that is `by` lines below the cursor."""
        raise NotImplementedError

    def step_at(self, x: int, y: int) -> int | None:
        """Return the step that is painted at a cell of the pane, if any."""
        raise NotImplementedError

    def on_mouse_down(self, event: events.MouseDown) -> None:
        step = self.step_at(event.x, event.y)
        if step is not None:
            self.post_message(self.Clicked(step))


def heat_legend(shown: Shown, width: int, note: str = "") -> Line:
    """Return a line with the name, the range and the meaning of the colors, and with `note` at its end.

    An example of a note is 'lines 1-2 of 9'. If the line is too long, it omits the meaning; if it is still too long, it
    also omits the first word of the note.
    """
    heat, scale, letters = shown.heat, shown.scale, not shown.colors
    spans: list[Span] = [(f"heat {heat.label}", "bold"), (f" {scale.low:.2g} ", "muted")]
    for level in range(-LEVELS, LEVELS + 1):
        if level == 0:
            spans.append((f" {scale.middle:.2g} ", ""))
        else:
            style = "" if letters else heat_style(level, shown.dark, shown.background)
            spans.append((heat_letter(level) if letters else " ", style))
    spans.append((f" {scale.high:.2g}", "muted"))
    meaning = heat.meaning if not letters else heat.meaning.replace("orange", "abcd")
    spans.append((f"  {'ABCD' if letters else 'blue'}: {meaning}", "muted"))
    end = f"  {note}" if note else ""
    if _width(spans) + len(end) > width:
        spans.pop()
    used = _width(spans)
    if used + len(end) > width:
        end = f"  {note.partition(' ')[2]}"
    return [*spans, (f"{end:>{max(0, width - used)}}", "")] if end else spans


def _width(spans: Line) -> int:
    return sum(display_width(text) for text, _ in spans)


def clip_marks(shown: Shown) -> list[str]:
    """Return a mark for each step: x if the clip cuts its gradient, otherwise an arrow if its ratio is outside the clip
    range, and otherwise ""."""
    signs = {0: "", 1: ABOVE[0 if shown.unicode else 1], -1: BELOW[0 if shown.unicode else 1]}
    outside, cut = shown.values("outside").tolist(), shown.values("cut").tolist()
    return [CUT if is_cut else signs[side] for side, is_cut in zip(outside, cut, strict=True)]


def mark_legend(shown: Shown, width: int) -> list[Line]:
    """Return a line that explains the marks of the clip, or no line if it does not fit."""
    above, below = (signs[0 if shown.unicode else 1] for signs in (ABOVE, BELOW))
    for cut, outside in (
        (": clip cuts the gradient   ", ": ratio outside clip range, gradient not cut"),
        (": clip cuts the gradient   ", ": ratio outside clip range"),
        (": gradient cut   ", ": ratio outside"),
    ):
        line: Line = [(CUT, "cut"), (cut, "muted"), (f"{above} {below}", "cut"), (outside, "muted")]
        if sum(len(text) for text, _ in line) <= width:
            return [line]
    return []
