"""Plain data out of files that anyone may have written: bounded in size and depth, so that no text costs more than it
is worth. The standard library alone."""

from __future__ import annotations

import errno
import json
import math
import os
import re
import stat
import tomllib
from collections.abc import Iterable, Iterator
from functools import cache
from io import BufferedReader
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

DEEPEST = 64  # tables and lists in each other; Python's own limit would be met later, anywhere
LARGEST = 4 << 20  # bytes of a file that is read whole; parsed, they may take twenty times as much

# a dotted key of more parts than DEEPEST: the standard parser's time grows with the square of their number
_PART = r"""(?:[\w-]+|"[^"\n]*+"|'[^'\n]*+')[ \t]*+"""
_LONG_KEY = re.compile(rf"(?:^|[{{,\[])[ \t]*+(?:{_PART}\.[ \t]*+){{{DEEPEST}}}", re.MULTILINE)


def open_file(path: Path) -> BufferedReader:
    """An ordinary file, open for reading. Raises OSError, also for a pipe or a device: who waits for what nobody writes
    waits forever."""
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))  # noqa: SIM115 - returned
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "it is no ordinary file", str(path))
    return file


def read_bytes(path: Path) -> bytes:
    """A file's content. Raises OSError, and ValueError where it is longer than LARGEST."""
    with open_file(path) as file:
        content = file.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise ValueError(f"it is longer than {LARGEST >> 20} MB")
    return content


def read_json(path: Path) -> Any:
    """The value in a JSON file. Raises OSError, and ValueError for whatever is wrong with its content."""
    return parse_json(read_bytes(path).decode("utf-8"))


def read_lines(path: Path) -> Iterator[str]:
    """A file's lines, one in memory at a time; those longer than LARGEST are passed over. Raises OSError."""
    with open_file(path) as file:
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


def parse_fields(table: Any, cls: type) -> dict[str, Any]:
    """What a table from a file says of the fields of a class; other keys are left out, fields may be missing.

    Raises ValueError for what is no table, and for a value that is not of its field's type.
    """
    if not isinstance(table, dict):
        raise ValueError(f"it is no table but {str(table)[:80]!r}")
    kinds = _field_types(cls)
    known = {key: value for key, value in table.items() if key in kinds}
    for key, value in known.items():
        if not _has_type(value, kinds[key]):
            raise ValueError(f"{key} = {str(value)[:80]!r} is no {kinds[key]}")
    return known


@cache
def _field_types(cls: type) -> dict[str, Any]:
    """The type of every field of a class."""
    return get_type_hints(cls)


def _has_type(value: object, kind: Any) -> bool:
    """Whether a value from JSON is of a type: a whole number of 64 bits is also a float, true is no number."""
    if isinstance(kind, UnionType):
        return any(_has_type(value, option) for option in get_args(kind))
    if kind in (int, float):
        whole = type(value) is int and -(1 << 63) <= value < 1 << 63
        return whole or (kind is float and type(value) is float and math.isfinite(value))
    if get_origin(kind) is list:
        return isinstance(value, list) and all(isinstance(x, get_origin(get_args(kind)[0])) for x in value)
    return isinstance(value, get_origin(kind) or kind)


def _check_depth(value: Any) -> None:
    """Raises ValueError for more than DEEPEST containers in each other."""
    level: list[Any] = [value]
    for _ in range(DEEPEST):
        level = [inner for outer in level for inner in _inner_containers(outer)]
        if not level:
            return
    raise ValueError(f"it is nested more than {DEEPEST} deep")


def _inner_containers(value: Any) -> Iterable[Any]:
    """The containers in a container; nothing of anything else."""
    values: Iterable[Any] = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [inner for inner in values if isinstance(inner, (dict, list))]
