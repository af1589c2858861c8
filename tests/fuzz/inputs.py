"""Unusual texts and numbers, mutations of files, and strategies that build files from them."""

from __future__ import annotations

import json
import tomllib
from typing import Any

import tomli_w
from hypothesis import strategies as st

_VALUES = ("", "nan", "inf", "-1", "0", "1e308", "1e999", "-0.0", "9" * 5000, "true", "null", "[]", "{}")
_NAMES = ("..", "/", "latest", "a" * 5000)
_UNSEEN = ("\x1b[31m", "\x1b]52;c;aGk=\x07", "\x9b31m", "\u202e", "\u2028", "\ufeff", "\x00", "\n", "\t")
_LETTERS = ("é", "漢", "🤖")
_MARKUP = ("[red]", "[@click=app.quit]x[/]", "'", '"', '"""', "\\", "\\ud800", "${HOME}", "%s")
_SIGNS = ("--", "#", "=", ".", ",", "|", "!")
WORDS = (*_VALUES, *_NAMES, *_UNSEEN, *_LETTERS, *_MARKUP, *_SIGNS)
MARKS = "\x1b\x9b\x07\x00\u202e"
texts = st.one_of(st.text(max_size=40), st.sampled_from(WORDS), st.text("\x1b[]m\x07\x9b\u202e0;a\n", max_size=20))
numbers = st.one_of(st.integers(), st.floats(), st.sampled_from((0, 1, 2**31, 2**63, -(2**63), 2**64, 10**400, 1e308)))
plain = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, texts),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(texts, inner, max_size=4)),
    max_leaves=8,
)
_NESTING = (b"[", b'{"a":', b"a.", b"\x0a\x80")  # opens a nested level in JSON (two ways), TOML and protocol buffers
edits = st.tuples(
    st.sampled_from(("flip", "cut", "drop", "repeat", "insert", "swap", "deep")), st.floats(0, 1), st.integers(0, 255)
)


def mutate(content: bytes, changes: list[tuple[str, float, int]]) -> bytes:
    """Apply some mutations to the content of a file."""
    for how, share, number in changes:
        at = int(share * len(content))
        end = at + number
        if how == "flip":
            content = content[:at] + bytes([number]) + content[at + 1 :]
        elif how == "cut":
            content = content[:at]
        elif how == "drop":
            content = content[:at] + content[end:]
        elif how == "repeat":
            content = content[:end] + content[at:end] * (1 + number % 50) + content[end:]
        elif how == "insert":
            content = content[:at] + WORDS[number % len(WORDS)].encode() + content[at:]
        elif how == "swap":
            content = content[:at] + content[end : end + 8] + content[at:end] + content[end + 8 :]
        else:
            content = content[:at] + _NESTING[number % 4] * (1 << number % 17) + content[at:]
    return content[: 1 << 20]


def files(*real: bytes) -> st.SearchStrategy[bytes]:
    """Generate file contents: real contents with changes, and random contents."""
    changed = st.builds(mutate, st.sampled_from(real), st.lists(edits, max_size=6))
    hardly = st.builds(mutate, st.sampled_from(real), st.lists(edits, max_size=1))
    return st.one_of(
        changed,
        changed,
        hardly,
        hardly,
        st.binary(max_size=300),
        texts.map(lambda text: text.encode("utf-8", "replace")),
    )


def json_objects(real: dict[str, Any]) -> st.SearchStrategy[bytes]:
    """Generate JSON objects that are copies of `real` with some values of other types."""
    keys = st.one_of(st.sampled_from([*real, *real]), texts)
    values = st.dictionaries(keys, plain, max_size=4)
    return values.map(lambda new: json.dumps(real | new).encode())


def toml_files(*real: bytes) -> st.SearchStrategy[bytes]:
    """Generate TOML files that are copies of `real` with some options changed."""
    tables = [tomllib.loads(text.decode()) for text in real]
    options = [(section, name) for table in tables for section, x in table.items() if type(x) is dict for name in x]
    value = st.one_of(plain.filter(_has_toml), st.integers(0, 9), st.floats(0, 1), st.booleans(), texts)
    changes = st.lists(st.tuples(st.sampled_from(options), value), max_size=3)

    def apply_changes(table: dict[str, Any], changes: list[tuple[tuple[str, str], Any]]) -> bytes:
        for (section, name), new in changes:
            inner = table.get(section)
            table = {**table, section: {**(inner if isinstance(inner, dict) else {}), name: new}}
        return tomli_w.dumps(table).encode("utf-8", "replace")

    return st.builds(apply_changes, st.sampled_from(tables), changes)


def _has_toml(value: Any) -> bool:
    """Return True if TOML can represent the value."""
    try:
        tomli_w.dumps({"a": value})
    except (TypeError, ValueError):
        return False
    return True


def records(*keys: str) -> st.SearchStrategy[bytes]:
    """Generate JSON Lines and JSON arrays of objects with these keys; most of the values are texts."""
    message = st.fixed_dictionaries({"role": st.sampled_from(("user", "system", "assistant")), "content": texts})
    value = st.one_of(texts, texts, st.lists(message, max_size=3), plain)
    record = st.dictionaries(st.sampled_from(keys), value, min_size=1)
    whole = st.fixed_dictionaries(dict.fromkeys(keys, texts))
    several = st.lists(st.one_of(whole, whole, record), max_size=4)
    as_lines = several.map(lambda found: "\n".join(map(json.dumps, found)))
    return st.one_of(as_lines, several.map(json.dumps)).map(str.encode)
