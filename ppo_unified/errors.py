"""The one exception that means "the user can mend this": shown as one line, exit code 2, never a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UsageError(Exception):
    """A mistake in what was typed or configured. Its text says where, what was found, and what would do."""


def nearest(word: str, known: Iterable[str]) -> str:
    """'; did you mean 'x'?' when something known resembles `word`, else an empty string."""
    matches = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean {matches[0]!r}?" if matches else ""
