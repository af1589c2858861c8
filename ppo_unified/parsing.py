"""Parse JSON and TOML from untrusted files. Limits on size and nesting depth bound the time and memory used.

This module imports only the standard library.
"""

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
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

DEEPEST = 64  # maximum nesting depth; code that processes deeper data could exceed Python's recursion limit
LARGEST = 4 << 20  # maximum bytes to read from a file at once; the parsed data can take twenty times as much memory

_TYPE_NAMES = {
    str: "text",
    int: "an integer",
    float: "a number",
    bool: "true or false",
    NoneType: "null",
    list: "a list of tables",
    dict: "a table",
}

_LONG_INTEGER = "an integer has too many digits"

# a dotted key with more than DEEPEST parts; tomllib's parsing time grows with the square of the number of parts
_PART = r"""(?:[\w-]+|"[^"\n]*+"|'[^'\n]*+')[ \t]*+"""
_LONG_KEY = re.compile(rf"(?:^|[{{,\[])[ \t]*+(?:{_PART}\.[ \t]*+){{{DEEPEST}}}", re.MULTILINE)


def open_file(path: Path) -> BufferedReader:
    """Open a regular file for reading. Raises OSError for a pipe or a device, because reading from it could block."""
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))  # noqa: SIM115 - returned
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return file


def read_bytes(path: Path) -> bytes:
    """Return the content of a file. Raises OSError, or ValueError if the file is larger than LARGEST."""
    with open_file(path) as file:
        content = file.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise ValueError(f"the file is larger than {LARGEST >> 20} MB")
    return content


def read_json(path: Path) -> Any:
    """Return the value in a JSON file. Raises OSError if it cannot be read, or ValueError if its content is invalid."""
    return parse_json(read_bytes(path).decode("utf-8"))


def read_lines(path: Path) -> Iterator[str]:
    """Yield the lines of a file one at a time, but skip lines longer than LARGEST. Raises OSError."""
    with open_file(path) as file:
        in_long_line = False  # True if the next part continues a line that is too long
        while part := file.readline(LARGEST):
            complete = part.endswith(b"\n") or len(part) < LARGEST
            if complete and not in_long_line:
                yield part.decode("utf-8", "replace")
            in_long_line = not complete


def parse_json(text: str) -> Any:
    """Parse JSON. Raises ValueError for invalid JSON, numbers with too many digits, and data nested too deeply."""
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError("the data is nested too deeply") from None
    except json.JSONDecodeError:
        raise
    except ValueError:  # Python's message describes a function of Python
        raise ValueError(_LONG_INTEGER) from None
    _check_depth(value)
    return value


def parse_toml(text: str) -> dict[str, Any]:
    """Parse TOML. Raises ValueError for invalid TOML, numbers with too many digits, and data nested too deeply."""
    if _LONG_KEY.search(text):
        raise ValueError(f"a key has more than {DEEPEST} parts")
    try:
        table = tomllib.loads(text)
    except RecursionError:
        raise ValueError("the data is nested too deeply") from None
    except tomllib.TOMLDecodeError:
        raise
    except ValueError:
        raise ValueError(_LONG_INTEGER) from None
    _check_depth(table)
    return table


def parse_fields(table: Any, cls: type) -> dict[str, Any]:
    """Return the entries of a table whose keys are fields of `cls`. Other keys are dropped; fields may be missing.

    Raises ValueError if `table` is not a dict, or if a value does not have its field's type.
    """
    if not isinstance(table, dict):
        raise ValueError(f"expected a table, got {str(table)[:80]!r}")
    kinds = _field_types(cls)
    known = {key: value for key, value in table.items() if key in kinds}
    for key, value in known.items():
        if not _has_type(value, kinds[key]):
            raise ValueError(f"{key}: expected {_type_name(kinds[key])}, got {repr(value)[:80]}")
    return known


@cache
def _field_types(cls: type) -> dict[str, Any]:
    """Return the type of every field of a class."""
    return get_type_hints(cls)


def _type_name(kind: Any) -> str:
    """Return a description of a type for error messages, such as 'a number or null'."""
    options = get_args(kind) if isinstance(kind, UnionType) else (kind,)
    return " or ".join(_TYPE_NAMES.get(get_origin(option) or option, str(option)) for option in options)


def _has_type(value: object, kind: Any) -> bool:
    """Return True if a JSON value has the type `kind`. A 64-bit integer is also a float, but a bool is not a number."""
    if isinstance(kind, UnionType):
        return any(_has_type(value, option) for option in get_args(kind))
    if kind in (int, float):
        is_integer = type(value) is int and -(1 << 63) <= value < 1 << 63
        return is_integer or (kind is float and type(value) is float and math.isfinite(value))
    if get_origin(kind) is list:
        return isinstance(value, list) and all(isinstance(x, get_origin(get_args(kind)[0])) for x in value)
    return isinstance(value, get_origin(kind) or kind)


def _check_depth(value: Any) -> None:
    """Raise ValueError if dicts and lists are nested more than DEEPEST levels deep."""
    level: list[Any] = [value]
    for _ in range(DEEPEST):
        level = [inner for outer in level for inner in _inner_containers(outer)]
        if not level:
            return
    raise ValueError(f"the data is nested more than {DEEPEST} levels deep")


def _inner_containers(value: Any) -> Iterable[Any]:
    """Return the dicts and lists directly inside a dict or list. Return an empty list for any other value."""
    values: Iterable[Any] = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [inner for inner in values if isinstance(inner, (dict, list))]
