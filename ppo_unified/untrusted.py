"""Plain data out of files that anyone may have written: bounded in size and depth, so that no text costs more than it
is worth. The standard library alone."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

DEEPEST = 64  # tables and lists in each other; Python's own limit would be met later, anywhere
LARGEST = 4 << 20  # bytes of a file that is read whole; parsed, they may take twenty times as much

# a dotted key of more parts than DEEPEST: the standard parser's time grows with the square of their number
_PART = r"""(?:[\w-]+|"[^"\n]*+"|'[^'\n]*+')[ \t]*+"""
_LONG_KEY = re.compile(rf"(?:^|[{{,\[])[ \t]*+(?:{_PART}\.[ \t]*+){{{DEEPEST}}}", re.MULTILINE)


def read_bytes(path: Path) -> bytes:
    """A file's content. Raises OSError, and ValueError where it is longer than LARGEST."""
    with open(path, "rb") as file:
        content = file.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise ValueError(f"it is longer than {LARGEST >> 20} MB")
    return content


def read_json(path: Path) -> Any:
    """The value in a JSON file. Raises OSError, and ValueError for whatever is wrong with its content."""
    return parse_json(read_bytes(path).decode("utf-8"))


def read_lines(path: Path) -> Iterator[str]:
    """A file's lines, one in memory at a time; those longer than LARGEST are passed over. Raises OSError."""
    with open(path, "rb") as file:
        cut = False  # whether what comes next is the rest of a line that is too long
        while part := file.readline(LARGEST):
            whole = part.endswith(b"\n") or len(part) < LARGEST
            if whole and not cut:
                yield part.decode("utf-8", "replace")
            cut = not whole


def parse_json(text: str) -> Any:
    """The value that a JSON text spells. Raises ValueError, also for numbers too long and nesting too deep."""
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    _check_depth(value)
    return value


def parse_toml(text: str) -> dict[str, Any]:
    """The table that a TOML text spells. Raises ValueError, also for numbers too long and nesting too deep."""
    if _LONG_KEY.search(text):
        raise ValueError(f"a key has more than {DEEPEST} parts")
    try:
        table = tomllib.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    _check_depth(table)
    return table


def _check_depth(value: Any) -> None:
    """Raises ValueError for more than DEEPEST containers in each other."""
    level: list[Any] = [value]
    for _ in range(DEEPEST):
        level = [inner for outer in level for inner in _inside(outer)]
        if not level:
            return
    raise ValueError(f"it is nested more than {DEEPEST} deep")


def _inside(value: Any) -> Iterable[Any]:
    """The containers in a container; nothing of anything else."""
    values: Iterable[Any] = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [inner for inner in values if isinstance(inner, (dict, list))]
