"""Tests of the layout of responses: lines fit the terminal, and no word is lost."""

from __future__ import annotations

import re

import pytest

from ppo_unified.terminal.chat import SIDE_BY_SIDE, Block, format_blocks, wrap_text
from ppo_unified.text import display_width

PROMPT, REMARK = "What is it?", "no score: it needs `answer`"
TEXT = "A sentence of many words, 语言模型的强化学习, " * 4 + "\n  indented\x1b[31m line"
BLOCKS = [
    Block("policy", TEXT, "40 tokens, ended"),
    Block("reference", "x" * 300, "1 token, cut off"),
]


def lines_of(columns: int, color: bool = False) -> list[str]:
    return format_blocks(BLOCKS, columns, color, PROMPT, REMARK)


@pytest.mark.parametrize("columns", [13, 20, 40, SIDE_BY_SIDE - 1, SIDE_BY_SIDE, 81, 200])
def test_replies_wrap_to_terminal_width_without_losing_words(columns: int) -> None:
    lines = lines_of(columns)
    assert max(map(display_width, lines)) <= columns
    assert "\x1b" not in "".join(lines)
    together = any("policy" in line and "reference" in line for line in lines)
    assert together == (columns >= SIDE_BY_SIDE)
    text = "".join("".join(lines).split())
    assert all(word in text for word in ("What", "ended", "cut", "answer"))
    assert text.count("x") == 300
    assert text.count("学") == 4
    assert len(format_blocks(BLOCKS, columns, remark=REMARK)) < len(lines)


def test_colours_do_not_change_the_text() -> None:
    for columns in (0, 40, 100):
        painted = [re.sub(r"\x1b\[\d+m", "", line).rstrip() for line in lines_of(columns, color=True)]
        assert painted == lines_of(columns)


def test_wrapping_breaks_at_spaces_and_keeps_indentation() -> None:
    assert wrap_text("one two three", 8) == ["one two", "three"]
    assert wrap_text("  deep\nend", 8) == ["  deep", "end"]
    assert wrap_text("abcdefgh", 3) == ["abc", "def", "gh"]
    assert wrap_text("语言模型", 3) == ["语", "言", "模", "型"]
    assert wrap_text("a 语言。模型", 6) == ["a 语", "言。模", "型"]
    assert wrap_text("\x1b]0;title\x07safe\x07", 0) == ["safe"]
    assert wrap_text("", 5) == [""]
