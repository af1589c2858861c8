"""The table with the quantities of the steps around the cursor."""

from __future__ import annotations

from collections.abc import Sequence

from rich.cells import cell_len
from textual import events

from ppo_unified.inspection.actions import action_labels
from ppo_unified.inspection.heat import quantity
from ppo_unified.inspection.token_text import pieces_of, visible_text
from ppo_unified.text import pad
from tui.inspector.lines import Line, LinesPane, Span
from tui.inspector.numbers import WIDTH, cell
from tui.inspector.shown import Shown
from tui.inspector.steps_pane import StepsPane, clip_marks

TEXT = 9  # columns of a token or action
COLUMNS: dict[str, str] = {  # column -> header, in the order of the table
    "logprob_old": "log old",
    "logprob": "log new",
    "logprob_ref": "log ref",
    "ratio": "ratio",
    "kl": "KL",
    "kl_full": "full KL",
    "reward": "r",
    "value": "V",
    "next_value": "V'",
    "delta": "delta",
    "advantage": "A",
    "advantage_used": "A used",
    "return": "return",
    "value_new": "V now",
    "loss": "loss",
    "loss_share": "share",
    "derivative": "d loss",
    "entropy": "entropy",
}
IMPORTANT = (  # those that fit are shown
    *("ratio", "advantage", "reward", "value", "return", "delta", "kl", "logprob_old", "logprob", "advantage_used"),
    *("logprob_ref", "next_value", "derivative", "loss", "entropy", "kl_full", "value_new", "loss_share"),
)


class TablePane(LinesPane):
    """Shows one line per step, with the columns that fit. Only the visible steps are formatted."""

    def __init__(self, id: str) -> None:
        super().__init__(id)
        self._top = 0

    def make_lines(self, shown: Shown, width: int, height: int) -> Sequence[Line]:
        steps, room = len(shown.sample.columns), max(1, height - 1)
        before = (room - 1) // 2
        self._top = max(0, min(shown.step - before, steps - room))
        visible = range(self._top, min(steps, self._top + room))
        names = choose_columns(shown, width)
        number = max(3, len(str(int(shown.sample.columns[-1]))) + 1)
        widths = {name: max(WIDTH, len(COLUMNS[name])) for name in names}
        what = "token" if shown.has_text else "action"
        header: list[Span] = [(f"{'#':>{number + 1}}  {what:<{TEXT}}", "muted")]
        header += [(f" {COLUMNS[name]:>{widths[name]}}" + " " * (name == "ratio"), "muted") for name in names]
        cells = {name: shown.values(name) for name in names}
        marks, labels = clip_marks(shown), step_labels(shown, visible)
        lines: list[Line] = [header]
        for step, label in zip(visible, labels, strict=True):
            is_cursor = step == shown.step
            spans: list[Span] = [(f"{'>' if is_cursor else ' '}{int(shown.sample.columns[step]):>{number}}  ", "")]
            spans.append((label, ""))
            for name in names:
                spans.append((f" {cell(float(cells[name][step])):>{widths[name]}}", ""))
                if name == "ratio":
                    spans.append((marks[step] or " ", "cut"))
            if is_cursor:
                spans = [(text, "cursor") for text, _ in spans]
            lines.append(spans)
        return lines

    def on_mouse_down(self, event: events.MouseDown) -> None:
        step = self._top + event.y - 1
        if self.shown is not None and event.y >= 1 and step < len(self.shown.sample.columns):
            self.post_message(StepsPane.Clicked(step))


def choose_columns(shown: Shown, width: int) -> list[str]:
    """Return the most important columns that fit, in the order of the table."""
    room = width - 7 - TEXT
    chosen: set[str] = set()
    for name in IMPORTANT:
        size = max(WIDTH, len(COLUMNS[name])) + 1 + (name == "ratio")
        if size <= room and quantity(shown.stored, shown.now, name) is not None:
            chosen.add(name)
            room -= size
    return [name for name in COLUMNS if name in chosen]


def step_labels(shown: Shown, steps: Sequence[int]) -> list[str]:
    """Return the token or the action of some steps, padded to TEXT columns."""
    if shown.has_text:
        texts = shown.values("text")[list(steps)].tolist()
        return [_fit(piece) for piece in pieces_of(texts, shown.unicode)]
    labels = action_labels(shown.stored, shown.sample.row, shown.sample.columns[list(steps)])
    return [_fit(visible_text(label, shown.unicode)) for label in labels]


def _fit(text: str) -> str:
    """Pad or cut a text by Textual's own measure of widths."""
    size = cell_len(text)
    return text + " " * (TEXT - size) if size <= TEXT else pad(text, TEXT)
