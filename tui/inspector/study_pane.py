"""The pane with the study text about the selected formula, with the numbers of the step under the cursor."""

from __future__ import annotations

from collections.abc import Sequence

from ppo_unified.inspection.heat import quantity
from ppo_unified.inspection.step_formulas import Step, explain
from ppo_unified.study.numbers import step_numbers
from ppo_unified.study.pages import TOPICS, committed_numbers, plain_blocks, sections
from ppo_unified.terminal.chat import wrap_text
from tui.inspector.lines import Line, LinesPane, rule
from tui.inspector.shown import Shown

LEAST = 12  # lines of the pane below which the formulas are hidden
CODE = "  "  # indentation of formulas


class StudyPane(LinesPane):
    """Shows one section of the study pages in one language."""

    def __init__(self, id: str) -> None:
        super().__init__(id)
        self.topic, self.language = "A", "en"

    def signature(self, shown: Shown) -> object:
        return shown, self.topic, self.language

    def make_lines(self, shown: Shown, width: int, height: int) -> Sequence[Line]:
        language = self.language if shown.unicode else "en"
        page, name = TOPICS[self.topic]
        section, live = sections(page, language)[name], step_numbers(_step(shown))
        lines: list[Line] = [rule(f"{self.topic}: {section.title}", width, shown.unicode)]
        for block in plain_blocks(section, committed_numbers(), live):
            lines += [[("", "")]] if len(lines) > 1 else []
            for text in block.lines:
                lines += _code_lines(text, width) if block.is_code else _text_lines(text, width)
        return _cut(lines, height, f"docs/study/{'' if language == 'en' else f'{language}/'}{page}.md")


def _step(shown: Shown) -> Step:
    return Step(shown.stored, shown.now, shown.sample.row, shown.column)


def _text_lines(text: str, width: int) -> list[Line]:
    """Wrap a paragraph or an item of a list. The item's text is indented."""
    if not text.startswith("- "):
        return [[(line, "")] for line in wrap_text(text, width)]
    rows = wrap_text(text[2:], max(10, width - 2))
    return [[("  " if number else "- ", ""), (line, "")] for number, line in enumerate(rows)]


def _code_lines(text: str, width: int) -> list[Line]:
    return [[(CODE + line, "bold")] for line in wrap_text(text, max(10, width - len(CODE)))]


def _cut(lines: list[Line], height: int, page: str) -> list[Line]:
    """Return at most `height` lines. If some are omitted, the last one names the page that contains them."""
    if len(lines) <= height:
        return lines
    return [*lines[: max(0, height - 1)], [(f"... {page}", "muted")]]


def topics_of(shown: Shown) -> list[str]:
    """Return the formulas and quantities of a step that have a section, in the order of the formulas."""
    names = {line.name for line in explain(_step(shown))}
    names |= {"V"} if shown.now.settings.baseline == "critic" else set()
    names |= {"entropy"} if quantity(shown.stored, shown.now, "entropy") is not None else set()
    return [topic for topic in TOPICS if topic in names]
