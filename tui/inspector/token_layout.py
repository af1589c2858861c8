"""Places the tokens of a response in lines of a given width."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import cell_len, chop_cells

PROMPT = -1  # index of the parts that belong to the prompt


@dataclass(frozen=True)
class TokenLayout:
    """Lines of tokens."""

    lines: list[list[tuple[int, str]]]  # the parts of each line: index of the token or PROMPT, and text
    line_of: list[int]  # the line in which each token starts


def arrange_tokens(prompt: str, pieces: Sequence[str], breaks: Sequence[bool], width: int) -> TokenLayout:
    """Place a prompt and the tokens after it, [steps] each, in lines of `width` columns.

    A token that does not fit starts a new line; a token wider than a line is split. `breaks` is True for tokens that
    end with a line break.
    """
    lines: list[list[tuple[int, str]]] = [[]]
    used, line_of = 0, list[int]()
    parts = [(PROMPT, part, False) for part in chop_cells(prompt, width)] if prompt else []
    parts += zip(range(len(pieces)), pieces, breaks, strict=True)
    for index, text, ends in parts:
        size = cell_len(text)
        if used and used + size > width:
            lines.append([])
            used = 0
        if index != PROMPT:
            line_of.append(len(lines) - 1)
        if size > width:
            first, *others = chop_cells(text, width)
            lines[-1].append((index, first))
            lines += [[(index, part)] for part in others]
            used = cell_len(lines[-1][-1][1])
        else:
            lines[-1].append((index, text))
            used += size
        if ends:
            lines.append([])
            used = 0
    return TokenLayout(lines, line_of)
