"""The sources of the study pages in two languages: sections of Markdown with placeholders for numbers and formulas.

A page is a file with the same name in each language's folder. A section begins with `## Title {#id}`. A placeholder is
{{name}} or {{name:format}}, where `format` is a format specification of Python.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple, TypeAlias

Number: TypeAlias = str | int | float

FOLDER = Path(__file__).parent
LANGUAGES = {"en": "English", "zh": "中文"}
PLACEHOLDER = re.compile(r"\{\{([\w.-]+)(?::([^{}]+))?\}\}")
_SECTION = re.compile(r"^## (.+) \{#([\w-]+)\}$", re.M)
_SAME = re.compile(r"= (\S+) = \1$")  # the numbers of a formula are its result, for example of A at the last step
_LINK = re.compile(r"\[([^\]]+)\]\((/?)([^)]+)\)")

TOPICS = {  # name of a formula or quantity in the inspector -> page and section about it
    "kl": ("reward", "kl"),
    "r": ("reward", "reward"),
    "V": ("value", "meaning"),
    "delta": ("gae", "td-error"),
    "A": ("gae", "gae"),
    "return": ("value", "target"),
    "A used": ("policy-gradient", "normalization"),
    "ratio": ("off-policy", "ratio"),
    "loss": ("off-policy", "clip"),
    "d loss": ("policy-gradient", "gradient"),
    "entropy": ("policy-gradient", "entropy"),
}


class Section(NamedTuple):
    """One section of a page. Its text contains placeholders."""

    id: str
    title: str
    text: str


class Block(NamedTuple):
    """A paragraph, a list or a code block of a section as plain text."""

    is_code: bool
    lines: list[str]  # each line of a code block, each paragraph and each item of a list is one string


def page_names() -> list[str]:
    """Return the names of all pages, such as 'gae'."""
    return sorted(path.stem for path in (FOLDER / "en").glob("*.md"))


@cache
def source(page: str, language: str) -> str:
    """Return the Markdown source of a page."""
    return (FOLDER / language / f"{page}.md").read_text(encoding="utf-8")


@cache
def sections(page: str, language: str) -> dict[str, Section]:
    """Return the sections of a page by id, in order."""
    parts = _SECTION.split(source(page, language))
    found = zip(parts[2::3], parts[1::3], parts[3::3], strict=True)
    return {name: Section(name, title, text.strip()) for name, title, text in found}


@cache
def committed_numbers() -> Mapping[str, Number]:
    """Return the numbers of all placeholders, from the committed run and the committed measurements."""
    numbers: dict[str, Number] = json.loads((FOLDER / "numbers.json").read_text(encoding="utf-8"))
    return numbers


def placeholders(text: str) -> list[str]:
    """Return the names of all placeholders in a text, in order."""
    return [name for name, _ in PLACEHOLDER.findall(text)]


def fill(text: str, numbers: Mapping[str, Number]) -> str:
    """Replace each placeholder by its number. Raises KeyError if a number is unknown."""
    return PLACEHOLDER.sub(lambda match: format_number(numbers[match[1]], match[2]), text)


def format_number(number: Number, spec: str | None) -> str:
    """Format a number with a format specification, or by default as the inspector does."""
    if spec:
        return format(number, spec)
    if isinstance(number, float):
        from ppo_unified.inspection.step_formulas import show  # imported late: it imports numpy

        return show(number)
    return f"{number:,}" if isinstance(number, int) else number


def plain_blocks(section: Section, numbers: Mapping[str, Number], live: Mapping[str, Number]) -> list[Block]:
    """Return the blocks of a section, without tables.

    `live` contains the numbers and formulas of one step, which replace those of the committed run. A block that needs a
    number "here." that `live` lacks is omitted.
    """
    found = []
    for block in section.text.split("\n\n"):
        is_known = all(name in live for name in placeholders(block) if name.startswith("here."))
        if not is_known or block.startswith("|"):
            continue
        text = fill(block, {**numbers, **live})
        if text.startswith("```"):
            found.append(Block(True, [_SAME.sub(r"= \1", line) for line in text.split("\n")[1:-1]]))
        else:
            spans = _LINK.sub(lambda link: link[1] + f" ({link[3]})" * bool(link[2]), text).split("`")
            spans[::2] = [span.replace("*", "") for span in spans[::2]]  # not in code, where * is a sign of a formula
            items = re.split(r"\n(?=- )", "".join(spans))
            found.append(Block(False, [" ".join(item.split()) for item in items]))
    return found
