"""Replacing a file in one step: readers see the old content or the new, never a part of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; the file that the block writes there replaces `path` when the block ends.

    If the block raises, `path` keeps its content and the temporary file is removed. A killed process may leave one
    behind, named .NAME.PID.tmp.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def write_atomically(path: Path, text: str) -> None:
    """Replace the content of a text file. Raises OSError, and UnicodeEncodeError for text that is not valid Unicode."""
    with replace_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
