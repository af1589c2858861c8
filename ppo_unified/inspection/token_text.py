"""Token texts as the inspector displays them: each in one line, at least one column wide, and safe to print.

Tokens can contain parts of a character. Their bytes are lone surrogates in token texts, as with Python's error handler
surrogateescape, so they differ from all characters that a text can contain.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from itertools import accumulate, pairwise

from ppo_unified.text import display_width, find_byte_characters

SIGNS = {  # with and without Unicode
    "\n": ("⏎", "\\n"),
    "\r": ("␍", "\\r"),
    "\t": ("⇥", "\\t"),
    "\x1b": ("␛", "\\e"),
}
PART = ("⋯", "~")  # a part of a character that a later token completes
BASE = ("◌", "?")  # before a combining mark, which has no width
EMPTY = ("∅", "_")  # a token without text
FORMAT = ("·", "?")  # an invisible character that changes how other characters are displayed, such as a joiner
UNKNOWN = ("�", "?")  # any other unprintable character
BYTE = ("⟨{:02X}⟩", "<{:02X}>")  # a byte that belongs to no complete character


def visible_text(text: str, unicode: bool = True) -> str:
    """Return `text` in one line, with signs for unprintable characters. Bytes that form a character become one.

    If `unicode` is False, the result contains only ASCII characters.
    """
    return "".join(_show_characters([text], unicode))


def pieces_of(texts: Sequence[str], unicode: bool = True) -> list[str]:
    """Return the displayed text of each of several consecutive tokens, as with `visible_text`.

    A character that is split over several tokens is in the text of the last one, and each earlier one contains PART. A
    text never starts with a combining mark, which a terminal would draw over the previous token.
    """
    shown = _show_characters(texts, unicode)
    ends = accumulate(map(len, texts), initial=0)
    found = []
    for start, end in pairwise(ends):
        piece = "".join(shown[start:end])
        if not piece:
            piece = EMPTY[not unicode]
        elif not display_width(piece[0]):
            piece = BASE[not unicode] + piece
        found.append(piece)
    return found


def _show_characters(texts: Sequence[str], unicode: bool) -> list[str]:
    """Return the displayed text at each position of the joined `texts`, "" where a later position completes it."""
    joined = "".join(texts)
    shown = [_show(character, unicode) for character in joined]
    token_of = [number for number, text in enumerate(texts) for _ in text]
    for start, size, character in find_byte_characters(joined):
        last = start + size - 1
        for place in range(start, last):
            is_last_of_token = token_of[place] != token_of[place + 1]
            shown[place] = PART[not unicode] if is_last_of_token else ""
        shown[last] = _show(character, unicode)
    return shown


def _show(character: str, unicode: bool) -> str:
    if character.isprintable():
        return character if unicode or character.isascii() else "?" * max(1, display_width(character))
    if "\udc80" <= character <= "\udcff":
        return BYTE[not unicode].format(ord(character) - 0xDC00)
    if character in SIGNS:
        return SIGNS[character][not unicode]
    category = unicodedata.category(character)
    if category == "Zs":  # a space, such as the wide one of Chinese texts
        return " " * display_width(character)
    return (FORMAT if category == "Cf" else UNKNOWN)[not unicode]
