"""The one exception that means "the user can mend this": shown as one line, exit code 2, never a traceback."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable


class UsageError(Exception):
    """A mistake in what was typed or configured. Its text says where, what was found, and what would do."""


class StartError(UsageError):
    """A run that could not begin: nothing was trained."""


def closest_match(word: str, known: Iterable[str]) -> str:
    """The known name that `word` most likely means: a part of it ('clip' for 'clip_range'), else the most similar one;
    empty if nothing resembles it."""
    names = list(known)
    parts = re.split(r"[\W_]+", word)
    inside = [name for name in names if name in parts]
    return max(inside, key=len) if inside else next(iter(difflib.get_close_matches(word, names, n=1, cutoff=0.6)), "")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """'; did you mean 'x'?' when something known resembles `word`, else an empty string."""
    match = closest_match(word, known)
    return f"; did you mean {match!r}?" if match else ""
