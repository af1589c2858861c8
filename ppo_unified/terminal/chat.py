"""Formats a prompt and the responses to it as lines of text. This module does not import torch."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate, zip_longest
from typing import NamedTuple

from ppo_unified.text import BOLD, DIM, apply_style, clean_lines, display_width, pad

SIDE_BY_SIDE = 80  # minimum width in columns to show two responses side by side
GAP = "   "
NOT_FIRST = frozenset("，。、；：？！）」』”’》…%")  # noqa: RUF001  # a line does not start with these
LABEL = 11  # width of the labels "policy" and "reference" if the responses are shown one below the other


class Block(NamedTuple):
    """A response with a name above it and facts about it below it."""

    name: str
    text: str
    facts: str


def format_blocks(
    blocks: Sequence[Block], columns: int, color: bool = False, prompt: str | None = None, remark: str = ""
) -> list[str]:
    """Format blocks as sanitized lines of at most `columns` columns. With 0 columns, lines are not wrapped.

    The prompt comes first and the remark last. The blocks are side by side if they fit, otherwise one below the other.
    """
    lines = [] if prompt is None else _label_lines("prompt", prompt, columns, color)
    if blocks and columns >= SIDE_BY_SIDE:
        lines += _place_side_by_side(blocks, (columns - len(GAP)) // 2, color)
    else:
        for name, text, facts in blocks:
            lines += [*_label_lines(name, text, columns, color), *_label_lines("", facts, columns, color, DIM)]
    return lines + [apply_style(line, DIM if color else "") for line in wrap_text(remark, columns) if line]


def wrap_text(text: str, columns: int) -> list[str]:
    """Sanitize a text and wrap its lines to at most `columns` columns. With 0 columns, do not wrap.

    A line breaks at a space or beside a wide character, such as a Chinese one, if possible.
    """
    lines = []
    for line in clean_lines(text).split("\n"):
        left = line
        while columns and display_width(left) > columns:
            cut = _last_break(left, _prefix_length(left, columns))
            lines.append(left[:cut].rstrip())
            left = left[cut:].lstrip()
        lines.append(left)
    return lines


def _last_break(text: str, end: int) -> int:
    """Return the last position up to `end` at which a line can break, or `end` if there is none."""
    for at in range(end, 0, -1):
        following = text[at : at + 1]
        is_wide = display_width(text[at - 1] + following) > 2
        if (following == " " or (is_wide and following not in NOT_FIRST)) and text[:at].strip():
            return at
    return end


def _prefix_length(text: str, columns: int) -> int:
    """Return the number of characters that fit into `columns` columns, at least one."""
    return max(1, bisect_right(list(accumulate(map(display_width, text))), columns))


def _label_lines(label: str, text: str, columns: int, color: bool, code: str = "") -> list[str]:
    """Format a text with a label to the left of its first line."""
    rows = wrap_text(text, max(1, columns - LABEL) if columns else 0)
    heads = [apply_style(label.ljust(LABEL), BOLD if color and label else ""), *[" " * LABEL] * (len(rows) - 1)]
    return [
        (head + apply_style(row, code if color and row else "")).rstrip() for head, row in zip(heads, rows, strict=True)
    ]


def _place_side_by_side(blocks: Sequence[Block], width: int, color: bool) -> list[str]:
    """Format each block in its own column, with its name above the text and its facts below it.

    The facts of all blocks start on the same line.
    """
    parts = [([name], wrap_text(text, width), wrap_text(facts, width)) for name, text, facts in blocks]
    lines = []
    for code, rows in zip((BOLD, "", DIM), zip(*parts, strict=True), strict=True):
        for cells in zip_longest(*rows, fillvalue=""):
            shown = [apply_style(pad(cell, width), code if color and cell else "") for cell in cells]
            lines.append(GAP.join(shown).rstrip())
    return lines
