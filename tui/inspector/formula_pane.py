"""The pane with every formula of a step, filled with its numbers, and a sentence that states what the clip did."""

from __future__ import annotations

from collections.abc import Sequence

from ppo_unified.terminal.chat import wrap_text
from tui.inspector.lines import Line, LinesPane, rule
from tui.inspector.shown import Shown
from tui.inspector.table_pane import step_labels

MOST_SENTENCE = 3  # lines of the sentence


class FormulaPane(LinesPane):
    """Shows the formulas of the step under the cursor. If an option was changed, both results are shown."""

    def lines_wanted(self, shown: Shown, width: int) -> int:
        """Return the number of lines for all formulas of the step."""
        return len(self.make_lines(shown, width, 99))

    def make_lines(self, shown: Shown, width: int, height: int) -> Sequence[Line]:
        lines: list[Line] = [rule(title(shown), width, shown.unicode)]
        text, sentence = formula_lines(shown, width)
        lines += text
        words = wrap_text(sentence, max(20, width))
        lines += [[(line, "accent")] for line in words[:MOST_SENTENCE]]
        return lines[:height]


def title(shown: Shown) -> str:
    """Return the title: the step and the moment whose numbers are shown."""
    label = step_labels(shown, [shown.step])[0].rstrip()
    what = f"token {shown.column} '{label}'" if shown.has_text else f"step {shown.column}, action {label}"
    return f"{what}: formulas with its numbers, {moment_name(shown)}"


def moment_name(shown: Shown) -> str:
    """Return the moment as words."""
    return "after the update" if shown.moment == "after" else f"in epoch {shown.moment}"


def formula_lines(shown: Shown, width: int) -> tuple[list[Line], str]:
    return [], ""


def copied_text(shown: Shown) -> str:
    """Return the formulas and the sentence as plain text."""
    lines, sentence = formula_lines(shown, 200)
    texts = ["".join(text for text, _ in line).rstrip() for line in lines]
    return "\n".join([title(shown), *texts, sentence])
