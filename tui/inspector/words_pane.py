"""The pane that says in words what the names in the table and in the formulas mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ppo_unified.inspection.heat import quantity
from ppo_unified.terminal.chat import wrap_text
from tui.inspector.explanation import QUANTITIES
from tui.inspector.lines import Line, LinesPane, rule
from tui.inspector.shown import Shown

NAME = 8  # columns of a name
LEAST = 5  # lines of the pane beside a long table
NEEDED = {  # name -> the column without which it is omitted
    "KL": "kl",
    "log ref": "logprob_ref",
    "V now": "value_new",
    "full KL": "kl_full",
    "entropy": "entropy",
}


class WordsPane(LinesPane):
    """Lists the meanings of the names, the most important first. If there are few lines, only those that fit."""

    def signature(self, shown: Shown) -> object:
        return id(shown.stored), shown.look

    def lines_wanted(self, shown: Shown, width: int) -> int:
        """Return the number of lines that all meanings need in `width` columns."""
        return len(_all_lines(shown, width))

    def make_lines(self, shown: Shown, width: int, height: int) -> Sequence[Line]:
        return _all_lines(shown, width)[:height] if height > 1 else []


def _all_lines(shown: Shown, width: int) -> list[Line]:
    lines: list[Line] = [rule("what the names mean; ? explains more", width, shown.unicode)]
    for name, meaning in _known(shown).items():
        for number, text in enumerate(wrap_text(meaning, max(20, width - NAME))):
            lines.append([(f"{'' if number else name:<{NAME}}", "bold"), (text, "muted")])
    return lines


def _known(shown: Shown) -> Mapping[str, str]:
    missing = {name for name, column in NEEDED.items() if quantity(shown.stored, shown.now, column) is None}
    return {name: meaning for name, meaning in QUANTITIES.items() if name not in missing}
