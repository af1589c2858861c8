"""The pane that shows the steps of an episode as strips over time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ppo_unified.inspection.actions import action_components
from ppo_unified.inspection.heat import quantity
from ppo_unified.text import pad
from tui.inspector.heat import heat_letter, heat_style
from tui.inspector.lines import Line, Span
from tui.inspector.numbers import cell
from tui.inspector.shown import Shown
from tui.inspector.steps_pane import StepsPane, clip_marks, heat_legend, mark_legend
from tui.inspector.summary_pane import BARS
from tui.inspector.table_pane import step_labels

NAME, VALUE = 9, 9  # columns of a strip's name, and of its number at the cursor
BAR_STRIPS = {"reward": "reward", "value": "V", "entropy": "entropy"}  # quantities that are drawn as bars
DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"  # discrete actions


class StripsPane(StepsPane):
    """Shows the actions, the rewards, the values, the heat, the clip marks and the entropy, one column per step.

    A long episode scrolls sideways with the cursor.
    """

    def __init__(self, id: str) -> None:
        super().__init__(id)
        self._left = 0  # the first visible step

    def lines_wanted(self, shown: Shown, width: int) -> int:
        bars = [name for name in BAR_STRIPS if quantity(shown.stored, shown.now, name) is not None]
        return 5 + len(action_components(shown.stored)) + len(bars)

    def step_by_lines(self, by: int) -> int:
        assert self.shown is not None
        page = max(1, self._room(self.size.width) // 2)
        return self.shown.step + (page if by > 0 else -page)

    def step_at(self, x: int, y: int) -> int | None:
        step = self._left + x - NAME
        inside = self.shown is not None and NAME <= x < NAME + self._room(self.size.width)
        return step if inside and self.shown is not None and step < len(self.shown.sample.columns) else None

    @staticmethod
    def _room(width: int) -> int:
        return max(1, width - NAME - VALUE)

    def make_lines(self, shown: Shown, width: int, height: int) -> Sequence[Line]:
        steps, room = len(shown.sample.columns), self._room(width)
        if not self._left <= shown.step < self._left + room:
            self._left = shown.step - room // 2
        self._left = max(0, min(self._left, steps - room))
        seen = slice(self._left, min(steps, self._left + room))
        strips: dict[str, Line] = {"heat": _heat_strip(shown, seen)}  # most important first
        place = shown.sample.row, shown.sample.columns
        parts = {name: x[place] for name, x in action_components(shown.stored).items()}
        actions = {name: _action_strip(shown, name, x, seen) for name, x in parts.items()}
        strips |= dict(list(actions.items())[:1])
        strips["clip"] = _strip(shown, "clip", clip_marks(shown)[seen], seen, "", "cut")
        for name in ("value", "reward", "entropy"):
            if quantity(shown.stored, shown.now, name) is not None:
                strips[name] = _bar_strip(shown, name, BAR_STRIPS[name], seen)
        strips["place"] = _place(shown, self._left, width)
        strips |= actions
        legend = mark_legend(shown, width)[: max(0, height - 1 - len(strips))]
        chosen = list(strips)[: max(1, height - 1)]
        order = [*parts, "reward", "value", "heat", "clip", "entropy", "place"]
        return [heat_legend(shown, width), *(strips[name] for name in order if name in chosen), *legend]


def _place(shown: Shown, left: int, width: int) -> Line:
    """Return a line with the number of the step below the cursor."""
    place = f"step {int(shown.sample.columns[shown.step])}"
    at = max(0, min(NAME + shown.step - left, width - len(place)))
    return [(" " * at + place, "bold")]


def _strip(shown: Shown, label: str, signs: Sequence[str], seen: slice, value: str, style: str = "") -> Line:
    """Return a line with a name, one character per visible step, and the number at the cursor."""
    at = shown.step - seen.start
    text = "".join(sign or " " for sign in signs)
    spans: list[Span] = [
        (pad(label, NAME), "muted"),
        (text[:at], style),
        (text[at], "cursor"),
        (text[at + 1 :], style),
    ]
    return [*spans, (f"{value:>{VALUE}}", "bold")]


def _bar_strip(shown: Shown, name: str, label: str, seen: slice) -> Line:
    x = shown.values(name).astype(np.float64)
    return _strip(shown, label, _bars(x, shown.unicode)[seen], seen, cell(float(x[shown.step])))


def _bars(x: np.ndarray, unicode: bool) -> list[str]:
    """Return a bar for each number; the lowest number of the sample has the smallest bar."""
    bars = BARS[0 if unicode else 1]
    finite = x[np.isfinite(x)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    share = np.clip(np.where(np.isfinite(x), (x - low) / max(high - low, 1e-12), 0), 0, 1)
    return [bars[1 + round(float(part) * (len(bars) - 2))] for part in share]


def _action_strip(shown: Shown, name: str, x: np.ndarray, seen: slice) -> Line:
    value = step_labels(shown, [shown.step])[0].rstrip() if name == "action" else cell(float(x[shown.step]))
    if x.dtype.kind in "biu":
        signs = [DIGITS[int(number)] if 0 <= int(number) < len(DIGITS) else "+" for number in x[seen]]
    else:
        signs = _bars(x.astype(np.float64), shown.unicode)[seen]
    return _strip(shown, name, signs, seen, pad(value, VALUE - 1).rstrip())


def _heat_strip(shown: Shown, seen: slice) -> Line:
    x = shown.values(shown.heat.name)
    levels = shown.scale.levels(x)[seen].tolist()
    spans: list[Span] = [(pad(shown.heat.label, NAME), "muted")]
    for step, level in enumerate(levels, seen.start):
        heat = heat_style(level, shown.dark, shown.background) if level and shown.colors else ""
        if step == shown.step:
            spans.append(("┃", heat) if shown.colors else (heat_letter(level), "inverse"))
        elif shown.colors:
            spans.append((" ", heat))
        else:
            spans.append((heat_letter(level), ""))
    return [*spans, (f"{cell(float(x[shown.step])):>{VALUE}}", "bold")]
