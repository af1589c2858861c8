"""What a language model and its reference answer to a prompt, and how that becomes lines of text. No torch."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate, zip_longest
from typing import Protocol

from ppo_unified.text import BOLD, DIM, clean, columns_of, pad, painted, short

SIDE_BY_SIDE = 80  # columns from which on the two replies stand beside each other
GAP = "   "
LABEL = 11  # columns of "policy" and "reference" where the replies stand one under the other


@dataclass(frozen=True)
class Reply:
    """One response to a prompt."""

    text: str
    tokens: int
    ended: bool  # by a token that ends responses; else it was cut off
    score: float | None  # None: `Exchange.remark` says why


@dataclass(frozen=True)
class Exchange:
    """A prompt, and what policy and reference reply."""

    prompt: str
    policy: Reply
    reference: Reply
    kl: float  # of the policy to the reference, summed over its response, in nats
    remark: str = ""


class Chat(Protocol):
    """A policy that can be talked to, as `AdapterSpec.chat` makes it."""

    def answer(self, prompt: str) -> Exchange:
        """Reply to a prompt that somebody typed. Raises UsageError for one that cannot be answered."""
        ...

    def examples(self, count: int) -> Iterator[Exchange]:
        """Replies to `count` prompts that training does not see."""
        ...


def lay_out(exchange: Exchange, columns: int, color: bool = False, with_prompt: bool = True) -> list[str]:
    """Lines of at most `columns` columns, harmless to a terminal; with 0 columns nothing is wrapped.

    The replies stand side by side where there is room, else one under the other.
    """
    replies = [("policy", exchange.policy, f", KL {short(exchange.kl)}"), ("reference", exchange.reference, "")]
    blocks = [(name, reply.text, facts(reply) + more) for name, reply, more in replies]
    lines = _labelled("prompt", exchange.prompt, columns, color) if with_prompt else []
    if columns >= SIDE_BY_SIDE:
        lines += _side_by_side(blocks, (columns - len(GAP)) // 2, color)
    else:
        for name, text, about in blocks:
            lines += [*_labelled(name, text, columns, color), *_labelled("", about, columns, color, DIM)]
    return lines + [painted(line, DIM if color else "") for line in wrapped(exchange.remark, columns) if line]


def facts(reply: Reply) -> str:
    """A reply in numbers: 'score 0.5, 3 tokens, ended'."""
    score = [] if reply.score is None else [f"score {short(reply.score)}"]
    count = f"{reply.tokens} token{'s' * (reply.tokens != 1)}"
    return ", ".join([*score, count, "ended" if reply.ended else "cut off"])


def wrapped(text: str, columns: int) -> list[str]:
    """The lines of a text made harmless, cut at spaces to at most `columns` columns; 0 columns: not cut."""
    lines = []
    for line in text.splitlines() or [""]:
        left = clean("." + line)[1:]  # the dot keeps `clean` from taking the indentation for empty space
        while columns and columns_of(left) > columns:
            cut = _longest_start(left, columns)
            space = left.rfind(" ", 1, cut + 1)
            cut = space if space > 0 and left[:space].strip() else cut
            lines.append(left[:cut].rstrip())
            left = left[cut:].lstrip()
        lines.append(left)
    return lines


def _longest_start(text: str, columns: int) -> int:
    """How many characters fit, at least one."""
    return max(1, bisect_right(list(accumulate(map(columns_of, text))), columns))


def _labelled(label: str, text: str, columns: int, color: bool, code: str = "") -> list[str]:
    """A text behind its label, further lines below it."""
    rows = wrapped(text, max(1, columns - LABEL) if columns else 0)
    heads = [painted(label.ljust(LABEL), BOLD if color and label else ""), *[" " * LABEL] * (len(rows) - 1)]
    return [
        (head + painted(row, code if color and row else "")).rstrip() for head, row in zip(heads, rows, strict=True)
    ]


def _side_by_side(blocks: list[tuple[str, str, str]], width: int, color: bool) -> list[str]:
    """Name, text and facts of each block in a column of its own; the facts begin on one line."""
    parts = [([name], wrapped(text, width), wrapped(about, width)) for name, text, about in blocks]
    lines = []
    for code, rows in zip((BOLD, "", DIM), zip(*parts, strict=True), strict=True):
        for cells in zip_longest(*rows, fillvalue=""):
            shown = [painted(pad(cell, width), code if color and cell else "") for cell in cells]
            lines.append(GAP.join(shown).rstrip())
    return lines
