"""Format text for terminals: safe text, numbers, durations and aligned tables."""

from __future__ import annotations

import math
import os
import re
import sys
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import TextIO

BOLD, DIM, RED, GREEN, YELLOW = "1", "2", "31", "32", "33"  # parameters of ANSI's "select graphic rendition"

_ESCAPES = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b[\]PX^_].*?(?:\x07|\x1b\\|$)|\x1b.?", re.DOTALL)
_NUMBER = re.compile(r"[-+]?\d[\d,]*\.?\d*(e[-+]?\d+)?([kMGT%]| (s|min|h|d)| of \d+)?|nan|[-+]?inf|-|")
_BYTES = re.compile("[\udc80-\udcff]+")  # bytes that are not valid UTF-8, as with surrogateescape


def clean(text: object) -> str:
    """Return `text` as one safe line. Escape sequences are removed, and unprintable characters become spaces."""
    line = str(text)
    if not line.isprintable():  # most texts are, and need no search for escape sequences
        line = "".join(c if c.isprintable() else " " for c in _ESCAPES.sub("", line))
    return line.strip()


def clean_lines(text: object) -> str:
    """Apply `clean` to each line of `text` and preserve the indentation."""
    return "\n".join(clean("." + line)[1:] for line in str(text).splitlines())  # the dot preserves the indentation


def replace_surrogates(text: str) -> str:
    """Replace each lone surrogate, such as Python's form of a byte that is not valid UTF-8, with '?'."""
    return text.encode("utf-8", "replace").decode("utf-8")


def decode_bytes(text: str) -> str:
    """Decode the bytes of UTF-8 in `text` that are lone surrogates, as with Python's error handler surrogateescape.

    Bytes that do not form a complete character become escapes, such as \\xe4.
    """
    return _BYTES.sub(lambda found: _to_bytes(found[0]).decode("utf-8", "backslashreplace"), text)


def find_byte_characters(text: str) -> Iterator[tuple[int, int, str]]:
    """Yield (start, size, character) for each run of lone surrogates in `text` that are the bytes of one character.

    A byte that belongs to no complete character is yielded as a lone surrogate of size 1.
    """
    for found in _BYTES.finditer(text):
        start = found.start()
        for character in _to_bytes(found[0]).decode("utf-8", "surrogateescape"):
            size = len(character.encode("utf-8", "surrogateescape"))
            yield start, size, character
            start += size


def _to_bytes(surrogates: str) -> bytes:
    return surrogates.encode("utf-8", "surrogateescape")


def is_drawable(stream: TextIO) -> bool:
    """Return True if `stream` is a terminal that supports escape sequences."""
    return stream.isatty() and os.environ.get("TERM", "dumb") != "dumb"


def can_color(stream: TextIO) -> bool:
    """Return True if `stream` is a terminal with colors and NO_COLOR (no-color.org) is unset or empty."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def can_unicode(stream: TextIO) -> bool:
    """Return True if `stream` uses UTF-8 and LC_ALL does not select the C locale.

    Checking the encoding is not enough, because Python uses UTF-8 for its streams even with LC_ALL=C (PEP 540).
    """
    encoding = (getattr(stream, "encoding", None) or "").lower().replace("-", "")
    return encoding.startswith("utf8") and os.environ.get("LC_ALL") not in ("C", "POSIX")


def print_out(text: str) -> None:
    """Print to stdout. Characters that stdout's encoding does not support become '?'."""
    encoding = sys.stdout.encoding or "utf-8"
    print(text.encode(encoding, "replace").decode(encoding))


def print_err(text: str) -> None:
    """Print a message to stderr, without escape sequences or unprintable characters."""
    print(clean_lines(text), file=sys.stderr)


def apply_style(text: str, code: str) -> str:
    """Return `text` with an ANSI style applied, or unchanged if `code` is empty."""
    return f"\x1b[{code}m{text}\x1b[0m" if code else text


def format_number(value: float | None) -> str:
    """Format a number with about four digits, such as '0.25', '14.74k' (for 14742) or '-' (for None).

    The suffixes k, M, G and T are used from 10,000 on.
    """
    if value is None:
        return "-"
    size = abs(value)
    if not math.isfinite(value) or size >= 1e15:
        return f"{value:.3g}"
    for unit, suffix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if size >= (unit if suffix != "k" else 9999.5):
            return f"{value / unit:.4g}{suffix}"
    return f"{value:.1e}" if 0 < size < 1e-3 else f"{value:.4g}"


def format_duration(seconds: float) -> str:
    """Format a duration in a suitable unit, such as '2.1 s', '3.5 min', '12 h' or '4.0 d'."""
    amount, unit = max(0.0, seconds), "s"
    for factor, larger in ((60, "min"), (60, "h"), (24, "d")):
        if amount < factor:
            break
        amount, unit = amount / factor, larger
    return f"{amount:.0f} {unit}" if amount >= 9.95 else f"{amount:.1f} {unit}"


def format_scaled(number: float, units: Mapping[str, float]) -> str:
    """Format a number with three digits in the first of `units` in which it is below 1000, or else in the last one.

    `units` contains the names of units and their sizes, from small to large.
    """
    rounded = [(float(f"{number / size:.3g}"), unit) for unit, size in units.items()]
    amount, unit = next((pair for pair in rounded if pair[0] < 1000), rounded[-1])
    return f"{amount:,g} {unit}"


def display_width(text: str) -> int:
    """Return the width of `text` in terminal columns. Wide East Asian characters take two, combining marks none."""
    return len(text) if text.isascii() else sum(map(_character_width, text))


@lru_cache(maxsize=4096)
def _character_width(character: str) -> int:
    if unicodedata.category(character) in ("Mn", "Me"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def _is_wider(text: str, width: int) -> bool:
    """Return True if `text` is wider than `width` columns, or if it has so many characters that it is treated so."""
    return len(text) > 4 * width or display_width(text) > width


def pad(text: str, width: int) -> str:
    """Pad `text` with spaces to `width` columns. If it is longer, truncate it and end it with '~'."""
    if not _is_wider(text, width):
        return text + " " * (width - display_width(text))
    text = text[: 4 * width]
    size, used = len(text), display_width(text)
    while size and used > width - 1:
        size -= 1
        used -= _character_width(text[size])
    return text[:size] + "~"[:width] + " " * (width - 1 - used)


def elide(text: str, width: int) -> str:
    """Return `text`. If it is wider than `width` columns, replace its middle with '~', as in 'cartpole-l~-s12'."""
    if not _is_wider(text, width):
        return text
    half = len(text) // 2
    start, end = text[:half][: 4 * width], text[max(half, len(text) - 4 * width) :]
    size, first = len(start), 0  # start[:size] and end[first:] remain
    left, right = display_width(start), display_width(end)
    while left + right > width - 1 and (size or first < len(end)):
        if size and left >= right:
            size -= 1
            left -= _character_width(start[size])
        else:
            right -= _character_width(end[first])
            first += 1
    return start[:size] + "~"[:width] + end[first:]


def format_table(
    rows: Sequence[Mapping[str, str]],
    color: bool = False,
    paint: Mapping[str, Mapping[str, str]] | None = None,
    *,
    align_numbers: bool = True,
) -> list[str]:
    """Return a header line with the keys of the first row, then one line per row.

    Columns that contain only numbers, durations, counts such as '2 of 3' and '-' are right-aligned. If `align_numbers`
    is false, all columns are left-aligned; use this if each column contains values of different kinds. `paint` maps a
    key to a table from cell text to ANSI code. It is used only if `color` is true.
    """
    columns = []
    for key in rows[0]:
        cells = [key, *(row[key] for row in rows)]
        width, right = max(map(display_width, cells)), align_numbers and all(map(_NUMBER.fullmatch, cells[1:]))
        codes = [BOLD, *((paint or {}).get(key, {}).get(cell, "") for cell in cells[1:])]
        columns.append([_cell(x, width, right, code if color else "") for x, code in zip(cells, codes, strict=True)])
    return ["  ".join(line).rstrip() for line in zip(*columns, strict=True)]


def _cell(text: str, width: int, right: bool, code: str) -> str:
    space, shown = " " * (width - display_width(text)), apply_style(text, code) if text else ""
    return space + shown if right else shown + space


def max_display_width(lines: Sequence[str]) -> int:
    """Return the width of the widest line in terminal columns. The lines must not contain color codes."""
    return max(map(display_width, lines), default=0)
