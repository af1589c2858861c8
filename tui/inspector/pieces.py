"""Token texts as the inspector displays them: each in one line, at least one column wide, and safe to print."""

from __future__ import annotations

from collections.abc import Sequence

from rich.cells import cell_len

SIGNS = {"\n": ("⏎", "\\n"), "\r": ("␍", "\\r"), "\t": ("⇥", "\\t"), "\x1b": ("␛", "\\e")}  # with and without Unicode
MARKER = ("◌", "?")  # in front of a text that has no width, such as a combining mark


def visible_text(text: str, unicode: bool) -> str:
    """Return a text in which control characters are visible."""
    return "".join(_visible(c, unicode) for c in text)


def _visible(character: str, unicode: bool) -> str:
    if character in SIGNS:
        return SIGNS[character][0 if unicode else 1]
    if not character.isprintable():
        return "�" if unicode else "?"
    return character if unicode or character.isascii() else "?" * max(1, cell_len(character))


def pieces_of(texts: Sequence[str], unicode: bool) -> list[str]:
    """Return the displayed text of each token. A text without width gets a marker."""
    found = []
    for text in texts:
        piece = visible_text(text, unicode)
        found.append(piece if cell_len(piece) else MARKER[0 if unicode else 1] + piece)
    return found
