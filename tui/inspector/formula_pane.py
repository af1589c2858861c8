"""The pane with every formula of a step, filled with its numbers, and a sentence that states what the clip did."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from ppo_unified.inspection.clip_sentence import describe_clip
from ppo_unified.inspection.heat import quantity
from ppo_unified.inspection.step_formulas import Line as Formula
from ppo_unified.inspection.step_formulas import Step, explain
from ppo_unified.inspection.step_path import ratio_path
from ppo_unified.inspection.what_if import Recomputed
from ppo_unified.terminal.chat import wrap_text
from ppo_unified.text import display_width
from tui.inspector.lines import Line, LinesPane, Span, rule
from tui.inspector.numbers import cell, percent
from tui.inspector.shown import Shown
from tui.inspector.table_pane import step_labels

NAME, RESULT = 7, 9  # columns of a formula's name, and of a result
GAP = "  "
PROBABILITIES = {"reference": "logprob_ref", "old": "logprob_old", "new": "logprob"}
NARROW = 64  # columns; a narrower pane shows only symbols and results
MOST_SENTENCE = 226  # columns of most sentences about the clip
CHANGED = "run"  # heading of the results with the run's own options


class FormulaPane(LinesPane):
    """Shows the formulas of the step under the cursor. If an option was changed, both results are shown."""

    def __init__(self, id: str) -> None:
        super().__init__(id)
        self.is_compact = False  # omit the share of the loss
        self.selected = ""  # name of the formula that the study text explains
        self.compares = False  # show the results with the run's own options, too

    def _formulas(self, step: Step) -> list[Formula]:
        return [formula for formula in explain(step) if formula.name != "share" or not self.is_compact]

    def signature(self, shown: Shown) -> object:
        return shown, self.selected

    def lines_wanted(self, shown: Shown, width: int) -> int:
        """Return the number of lines that the pane needs for this sample, whose last step has most formulas."""
        last = Step(shown.stored, shown.now, shown.sample.row, int(shown.sample.columns[-1]))
        before = {"": ""} if self.compares else {}
        path = len(path_line(shown, width)) if not self.is_compact and width >= NARROW else 0
        return (
            1
            + path
            + len(formula_lines(self._formulas(last), before, width))
            + max(2, math.ceil(MOST_SENTENCE / width))
        )

    def make_lines(self, shown: Shown, width: int, height: int) -> Sequence[Line]:
        now = _step(shown, shown.now)
        before = {line.name: line.result for line in explain(_step(shown, shown.run))} if self.compares else {}
        lines = [_title_with_headings(shown, width) if before else title_line(shown, width)]
        lines += formula_lines(self._formulas(now), before, width, self.selected)
        if not self.is_compact and width >= NARROW:
            lines += path_line(shown, width)
        words = wrap_text(describe_clip(now), max(20, width))
        room = max(1, height - len(words))
        return [*lines[:room], *[[(line, "accent")] for line in words]][:height]


def _step(shown: Shown, recomputed: Recomputed) -> Step:
    return Step(shown.stored, recomputed, shown.sample.row, shown.column)


def _title_with_headings(shown: Shown, width: int) -> Line:
    """Return a rule with the longest title that fits, and the headings of the two results at its end."""
    end = f" {CHANGED:>{RESULT - 1}}{'now':>{RESULT}}"
    room, moment = width - len(end), title(shown, is_short=True)
    texts = [title(shown), moment, moment.rpartition(", ")[0]]
    fitting = next((text for text in texts if display_width(text) + 2 <= room), texts[-1])
    return [(rule(fitting, room, shown.unicode)[0][0][: max(0, room)] + end, "muted")]


def title(shown: Shown, is_short: bool = False) -> str:
    """Return the title: the step, and the moment whose numbers are shown."""
    label = step_labels(shown, [shown.step])[0].rstrip()
    what = f"token {shown.column} '{label}'" if shown.has_text else f"step {shown.column}, action {label}"
    moment = "after the update" if shown.moment == "after" else f"epoch {shown.moment} of the update"
    return f"{what}, {moment.replace('the ', '').replace(' of update', '') if is_short else moment}"


def title_line(shown: Shown, width: int) -> Line:
    """Return a rule with the title at its start and, if they fit, the probabilities at its end.

    Both are abbreviated if that makes them fit.
    """
    texts = chances(shown)
    for is_short, ends in ((False, texts[:-1]), (True, texts)):
        start, style = rule(title(shown, is_short), width, shown.unicode)[0]
        room = width - display_width(title(shown, is_short)) - 6
        for end in ends:
            if len(end) <= room:
                return [(start[: len(start) - len(end) - 2], style), (f" {end} ", "bold")]
    return rule(title(shown), width, shown.unicode)


def chances(shown: Shown) -> list[str]:
    """Return the probability of the chosen token or action under each policy, oldest first, at the shown moment.

    Shorter versions of the text follow. The last one omits the reference policy.
    """
    actions = shown.stored.actions
    is_density = not shown.has_text and actions is not None and actions.dtype.kind == "f"
    parts = list[str]()
    for name, column in PROBABILITIES.items():
        if quantity(shown.stored, shown.now, column) is not None:
            logprob = float(shown.values(column)[shown.step])
            parts.append(f"{name} {f'{math.exp(min(logprob, 700)):.3g}' if is_density else percent(logprob)}")
    arrow = " → " if shown.unicode else " -> "
    name, all_parts = "density" if is_density else "probability", arrow.join(parts)
    short = all_parts.replace("reference", "ref")
    return [f"{name}: {all_parts}", f"p: {all_parts}", f"p: {short}", f"p: {arrow.join(parts[-2:])}"]


def formula_lines(formulas: Sequence[Formula], before: Mapping[str, str], width: int, selected: str = "") -> list[Line]:
    """Return the formulas: name, symbols, numbers and result, in aligned columns if they fit.

    `before` contains the results with the run's own options, by name, if they are shown, too. The name of the formula
    `selected` is highlighted.
    """
    room = max(0, width - NAME - 2 - RESULT * (2 if before else 1))
    if width < NARROW:
        return [_short_line(formula, before, room) for formula in formulas]
    symbols = max(len(formula.symbols) for formula in formulas)
    if symbols + len(GAP) + max(len(formula.numbers) for formula in formulas) > room:
        symbols = max([len(f.symbols) for f in formulas if len(f.symbols) + len(f.numbers) + 2 <= room], default=0)
        symbols = min(symbols, room // 2)
    lines: list[Line] = []
    for formula in formulas:
        name, style = f"{formula.name:<{NAME}}= ", "cursor" if formula.name == selected else "bold"
        head = f"{formula.symbols:<{symbols}}{GAP}"
        results = _results(formula, before)
        if len(head) + len(formula.numbers) > room:
            head = formula.symbols + GAP
        if len(head) + len(formula.numbers) > room:  # two lines
            lines.append([(name, style), (formula.symbols, "")])
            name, head = " " * NAME + "= ", ""
        numbers = formula.numbers[:room]
        lines.append([(name, style), (head, ""), (f"{numbers:<{room - len(head)}}", "muted"), *results])
    return lines


def _short_line(formula: Formula, before: Mapping[str, str], room: int) -> Line:
    """Return a formula without numbers, or only its name and results if its symbols do not fit, either."""
    text = f"= {formula.symbols}" if len(formula.symbols) <= room else ""
    return [(f"{formula.name:<{NAME}}", "bold"), (f"{text:<{room + 2}}", ""), *_results(formula, before)]


def path_line(shown: Shown, width: int) -> list[Line]:
    """Return a line with the step's ratio in each epoch and after the update, or no line if only one is stored."""
    path = ratio_path(shown.stored, shown.sample.row, shown.column)
    if len(path) < 2:
        return []
    arrow = " → " if shown.unicode else " -> "
    spans: list[Span] = [(f"{'ratio by epoch':<{NAME + 8}}", "muted")]
    for moment, ratio in path.items():
        label = "after " if moment == "after" else ""
        mark = "bold" if moment == shown.moment else "muted"
        spans += [(arrow, "muted")] if len(spans) > 1 else []
        spans.append((f"{label}{cell(ratio)}", mark))
    if sum(len(text) for text, _ in spans) > width:  # many epochs: the first and the last ones
        spans = [*spans[:6], (" ... ", "muted"), *spans[-3:]]
    return [spans]


def _results(formula: Formula, before: Mapping[str, str]) -> list[Span]:
    old = before.get(formula.name, "-")
    first: list[Span] = [(f"{old:>{RESULT}}", "")] if before else []
    return [*first, (f"{formula.result:>{RESULT}}", "accent" if before and old != formula.result else "bold")]


def copied_text(shown: Shown) -> str:
    """Return the formulas and the sentence as plain text."""
    now = _step(shown, shown.now)
    lines = [f"{f.name} = {' = '.join(filter(None, (f.symbols, f.numbers, f.result)))}" for f in explain(now)]
    return "\n".join([title(shown), *lines, describe_clip(now)])
