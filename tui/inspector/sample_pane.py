"""The list of all samples of an iteration."""

from __future__ import annotations

from collections.abc import Sequence

from rich.cells import cell_len
from textual import events
from textual.message import Message

from ppo_unified.inspection.token_text import visible_text
from ppo_unified.text import format_number, pad
from tui.inspector.inspection import SORTS, Inspection
from tui.inspector.lines import Line, LinesPane
from tui.inspector.shown import Shown

NUMBERS = {  # column -> header and width, in the order of the table
    "length": ("len", 5),
    "score": ("score", 6),
    "kl": ("KL", 6),
    "advantage": ("|A|", 6),
    "outside": ("out", 4),
    "cut": ("cut", 4),
}
IMPORTANT = ("cut", "score", "kl", "outside", "length", "advantage")  # those that fit are shown
LEAST_TEXT = 14  # columns


class SamplePane(LinesPane):
    """Lists the samples with their scores, KL and clip counts. Only the visible lines are formatted."""

    class Clicked(Message):
        """A sample was clicked."""

        def __init__(self, number: int) -> None:
            super().__init__()
            self.number = number

    def __init__(self, id: str) -> None:
        super().__init__(id)
        self.inspection: Inspection | None = None
        self._top = 0

    def signature(self, shown: Shown) -> object:
        found = self.inspection
        assert found is not None
        return (
            id(found),
            id(found.listing),
            id(found.order),
            shown.number,
            found.view.query,
            found.view.sort,
            shown.look,
        )

    def make_lines(self, shown: Shown, width: int, height: int) -> Sequence[Line]:
        inspection = self.inspection
        if inspection is None:
            return []
        order, view = inspection.order, inspection.view
        of = f"{len(order):,} of {shown.count:,}" if view.query else f"{shown.count:,}"
        filtered = f"  /{view.query}" if view.query else ""
        room = max(1, height - 2)
        at = order.index(shown.number) if shown.number in order else 0
        self._top = max(0, min(self._top, at, len(order) - room), at - room + 1)
        names = _choose_columns(inspection, width)
        text = width - 5 - sum(NUMBERS[name][1] for name in names)
        what = "episode" if not shown.has_text else "prompt > response" if text > 17 else "sample"
        head = f"{'#':>5} {pad(what, text - 1)}"
        lines: list[Line] = [[(pad(f"{of} samples, {SORTS[view.sort]}{filtered}", width), "bold")]]
        lines.append([(head + "".join(f"{NUMBERS[name][0]:>{NUMBERS[name][1]}}" for name in names), "muted")])
        for number in order[self._top : self._top + room]:
            lines.append(_sample_line(inspection, number, text - 1, names, shown))
        return lines if order else [*lines, [("No sample matches the filter.", "muted")]]

    def on_mouse_down(self, event: events.MouseDown) -> None:
        at = self._top + event.y - 2
        if self.inspection is not None and event.y >= 2 and at < len(self.inspection.order):
            self.post_message(self.Clicked(self.inspection.order[at]))


def _choose_columns(inspection: Inspection, width: int) -> list[str]:
    room, chosen = width - 5 - LEAST_TEXT, set[str]()
    for name in IMPORTANT:
        if name in inspection.listing.columns and NUMBERS[name][1] <= room:
            chosen.add(name)
            room -= NUMBERS[name][1]
    return [name for name in NUMBERS if name in chosen]


def _sample_line(inspection: Inspection, number: int, text: int, names: Sequence[str], shown: Shown) -> Line:
    found, sample, is_selected = inspection.listing, inspection.samples[number], number == shown.number
    if shown.has_text:
        prompt, response = shown.stored.text_before(sample), shown.stored.text_of(sample)
        before = _end(prompt.rstrip(), max(2, (text - 1) // 2))
        words = visible_text(f"{before} > {response[: 2 * text]}" if before else response[: 2 * text], shown.unicode)
    else:
        words = f"env {sample.row}, step {int(sample.columns[0])}"
    size = cell_len(words)
    label = words + " " * (text - size) if size <= text else pad(words, text)
    cells = "".join(f"{_cell(name, found.columns[name][number]):>{NUMBERS[name][1]}}" for name in names)
    return [(f"{'>' if is_selected else ' '}{number:>4} {label}{cells}", "cursor" if is_selected else "")]


def _end(text: str, width: int) -> str:
    """Return the end of a text that has at most `width` characters, with a mark if the start is missing."""
    return text if len(text) <= width else f"~{text[1 - width :]}"


def _cell(name: str, value: float) -> str:
    if name in ("outside", "cut"):
        return str(int(value)) if value else ""
    return str(int(value)) if name == "length" else f"{value:.2f}" if abs(value) < 1000 else format_number(float(value))
