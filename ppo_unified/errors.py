"""Exceptions whose message the command line prints: mistakes that the user can fix, and errors in foreign code."""

from __future__ import annotations

import difflib
import os
import re
import sys
from collections.abc import Iterable
from pathlib import Path


class UsageError(Exception):
    """A mistake in a command or a configuration. The message states the location, the actual value and a fix."""


class StartError(UsageError):
    """Raised if a run cannot start; nothing was trained."""


class ForeignCodeError(Exception):
    """Raised if code of an environment fails. The message names the environment, the call and the cause in one line."""


def closest_match(word: str, known: Iterable[str]) -> str:
    """Return the known name that `word` most likely means, or '' if none is similar.

    A name that is a part of `word`, such as 'clip' in 'clip_range', takes precedence over similar names.
    """
    names = list(known)
    cutoff = 0.64  # the default of 0.6 finds unrelated words, such as 'Hopper' for 'Nope'
    parts = re.split(r"[\W_]+", word)
    inside = [name for name in names if name in parts]
    return (
        max(inside, key=len) if inside else next(iter(difflib.get_close_matches(word, names, n=1, cutoff=cutoff)), "")
    )


def did_you_mean(word: str, known: Iterable[str], prefix: str = "") -> str:
    """Return '; did you mean 'x'?' if a known name is similar to `word`, or '' if none is.

    `prefix` is what the user must write before the name, such as 'module:'.
    """
    match = closest_match(word, known)
    return f"; did you mean {prefix + match!r}?" if match else ""


def explain_unusable(folder: Path, error: OSError) -> str:
    """Return the reason why `error` occurred when an output folder was created or used."""
    file = next((path for path in (folder, *folder.parents) if os.path.lexists(path) and not path.is_dir()), None)
    if file is not None:
        return "expected a folder, got a file" if file == folder else f"{file} is not a folder"
    return f"cannot {'use' if folder.is_dir() else 'create'} the folder ({error.strerror})"


def explain_hidden(error: BaseException) -> str:
    """Return the reason and the fix if a module was not found because a package shadows the user's folder, or ""."""
    name = (error.name or "") if isinstance(error, ModuleNotFoundError) else ""
    path, top = Path(name.replace(".", "/") + ".py"), name.partition(".")[0]
    if top == name or top not in sys.modules or not path.is_file():
        return ""
    package = next(iter(getattr(sys.modules[top], "__path__", [])), top)
    return f", because the package {package} shadows {path}; rename the folder {top!r}"
