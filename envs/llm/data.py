"""Reads prompts, preference pairs and texts from files and data sets. Error messages name the file and the line.

This module does not import torch.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from envs.llm.tables import csv_records, data_set_records, is_data_set, parquet_records, parse_numbers
from ppo_unified.errors import UsageError, closest_match, did_you_mean
from ppo_unified.parsing import parse_json
from ppo_unified.text import clean

Prompt = str | list[dict[str, str]]  # plain text, or a chat: messages with "role" and "content"

PROMPT_KEYS = ("prompt", "query", "question", "messages")
PAIR_KEYS = ("prompt", "question", "query")
RESERVED = ("prompts", "responses")  # names of a reward function's positional arguments
ENDINGS = (".jsonl", ".json", ".csv", ".parquet", ".txt")
ENDINGS_TEXT = "the file extension .jsonl, .json, .csv, .parquet or .txt"
DATA_SET = "data set"


@dataclass(frozen=True)
class PromptData:
    """Prompts and the other columns of their records. A column's entry is None if the record lacks the key."""

    prompts: list[Prompt]
    columns: dict[str, list[Any]]
    where: str  # the path of the file, the name of a data set or task, or "" for typed prompts
    lines: list[int]  # line number or record number of each prompt, starting at 1
    unit: str = "line"  # the unit that `lines` counts, for messages: "line", "record", "row" or "prompt"

    def __post_init__(self) -> None:
        sizes = {"lines": len(self.lines)} | {key: len(values) for key, values in self.columns.items()}
        wrong = [f"{size} for {key!r}" for key, size in sizes.items() if size != len(self.prompts)]
        if wrong:
            raise ValueError(f"{self.where}: expected {len(self.prompts)} values per column, got {', '.join(wrong)}")

    def location(self, index: int) -> str:
        """Return a prompt's location for use in error messages, such as 'prompts.jsonl, line 3'."""
        return f"{self.where}, {self.unit} {self.lines[index]}".removeprefix(", ")

    def take(self, indices: Sequence[int]) -> PromptData:
        """Return the prompts at `indices`, in that order, with their columns."""
        columns = {key: [values[i] for i in indices] for key, values in self.columns.items()}
        lines = [self.lines[i] for i in indices]
        return PromptData([self.prompts[i] for i in indices], columns, self.where, lines, self.unit)


class Pair(NamedTuple):
    """A prompt with two responses: `chosen` is preferred to `rejected`."""

    prompt: str
    chosen: str
    rejected: str


class _Record(NamedTuple):
    where: str  # 'prompts.jsonl, line 3'
    number: int
    values: dict[str, Any]


def read_prompts(path: Path, key: str = "") -> PromptData:
    """Read the prompts in a file or data set. A prompt is plain text or a list of chat messages.

    If `key` is empty, use the first key in PROMPT_KEYS that the first record contains. Raises UsageError if the file
    cannot be read or its content is invalid.
    """
    where, kind = clean(path), _kind(path)
    if kind == ".txt":
        if key:
            raise UsageError(
                f"llm.prompt_key = {key!r} has no effect, because {where} is plain text; remove llm.prompt_key"
            )
        numbered = _read_lines(path)
        return PromptData([line for _, line in numbered], {}, where, [number for number, _ in numbered])
    records, unit = _read_records(path)
    remedy = "set llm.prompt_key to the key that contains the prompt"
    key = _find_key(records[0], (key,) if key else PROMPT_KEYS, remedy)
    if kind == ".csv" and key == "messages":
        raise UsageError(
            f"{where}: expected plain text, but the column 'messages' is for chat messages, which a CSV file cannot "
            "contain; name the column 'prompt', or use .jsonl or .parquet"
        )
    names = dict.fromkeys(name for record in records for name in record.values if name != key)
    for record in records:
        for name in RESERVED:
            if name in names and name in record.values:
                why = "because reward functions have a parameter of that name"
                raise UsageError(f"{record.where}: the key {name!r} is reserved, {why}; rename the key")
    prompts = [_prompt(record, key) for record in records]
    columns = {name: [record.values.get(name) for record in records] for name in names}
    if kind == ".csv":
        columns = {name: parse_numbers([record.values[name] for record in records]) for name in names}
    return PromptData(prompts, columns, where, [record.number for record in records], unit)


def read_pairs(path: Path) -> list[Pair]:
    """Read preference pairs from a file or data set.

    Each record needs the keys `prompt` (or `question` or `query`), `chosen` and `rejected`. Other keys are ignored.
    Raises UsageError if the file cannot be read or its content is invalid.
    """
    if _kind(path) == ".txt":
        raise UsageError(
            f"{clean(path)}: plain text cannot contain preference pairs; use .jsonl, .json, .csv or .parquet"
        )
    records, _ = _read_records(path)
    key = _find_key(records[0], PAIR_KEYS, "a pair needs a prompt, a chosen response and a rejected response")
    return [
        Pair(_nonempty_text(record, key), _text(record, "chosen"), _text(record, "rejected"))  # a response may be empty
        for record in records
    ]


def read_texts(path: Path) -> list[str]:
    """Read the non-blank lines of a .txt file, or the values of the key `text` in another file or data set.

    Raises UsageError if the file cannot be read or its content is invalid.
    """
    if _kind(path) == ".txt":
        return [line for _, line in _read_lines(path)]
    records, _ = _read_records(path)
    return [_nonempty_text(record, "text") for record in records]


def _kind(path: Path) -> str:
    """Return a file's extension, or DATA_SET for a folder or the name of a data set. A local file takes precedence."""
    ending = path.suffix.lower()
    if ending in ENDINGS:
        return ending
    if is_data_set(str(path)):
        return DATA_SET
    raise UsageError(f"{clean(path)}: expected {ENDINGS_TEXT}, {f'got {ending!r}' if ending else 'got none'}")


def _read_bytes(path: Path) -> bytes:
    where = clean(path)
    try:
        return path.read_bytes()
    except FileNotFoundError:
        folder = path.parent
        if not folder.is_dir():
            raise UsageError(f"{where}: folder {clean(folder)!r} not found") from None
        prefix = "" if folder == Path() else f"{folder}/"
        known = did_you_mean(path.name, sorted(os.listdir(folder)), prefix) if os.access(folder, os.R_OK) else ""
        raise UsageError(f"{where}: file not found{known}") from None
    except (OSError, ValueError) as error:  # a null character in the name raises ValueError
        reason = error.strerror if isinstance(error, OSError) else error
        raise UsageError(f"{where}: cannot read the file ({reason})") from None


def _read(path: Path) -> str:
    where, content = clean(path), _read_bytes(path)
    try:
        return content.decode("utf-8-sig")  # some Windows editors write a byte order mark
    except UnicodeDecodeError as error:
        decoded = error.object  # the content without the byte order mark
        line, byte = decoded.count(b"\n", 0, error.start) + 1, decoded[error.start]
        raise UsageError(
            f"{where}, line {line}: expected UTF-8, got byte 0x{byte:02x}; save the file as UTF-8"
        ) from None


def _split_lines(text: str) -> list[tuple[int, str]]:
    """Return the non-blank lines of `text` with their line numbers.

    Unlike `str.splitlines`, this function splits at newlines only.
    """
    lines = (line.removesuffix("\r") for line in text.split("\n"))
    return [(number, line) for number, line in enumerate(lines, 1) if line.strip()]


def _read_lines(path: Path) -> list[tuple[int, str]]:
    lines = _split_lines(_read(path))
    if not lines:
        raise UsageError(f"{clean(path)}: the file is empty; write at least one line of text")
    return lines


def _read_records(path: Path) -> tuple[list[_Record], str]:
    """Return the records in a file or data set, and the word for their positions ("record", "line" or "row")."""
    where, kind = clean(path), _kind(path)
    if kind == ".csv":
        unit, numbered = "line", csv_records(_read(path), where)
    elif kind == ".parquet":
        unit, numbered = "row", parquet_records(_read_bytes(path), where)
    elif kind == DATA_SET:
        unit, numbered = "row", data_set_records(str(path))
    else:
        return _read_json(path)
    return [_Record(f"{where}, {unit} {number}", number, values) for number, values in numbered], unit


def _read_json(path: Path) -> tuple[list[_Record], str]:
    """Return the objects in a JSON array or JSON Lines file, and the word for their positions ("record" or "line").

    The format is detected from the content, not from the file extension.
    """
    where, text = clean(path), _read(path)
    lines = _split_lines(text)
    if not lines:
        raise UsageError(f"{where}: the file is empty; write one JSON object per line or an array of objects")
    if not _is_json_lines(text, [line for _, line in lines]):
        value, unit = _parse(text, where), "record"
        values = list(enumerate(value if isinstance(value, list) else [value], 1))
    else:
        values, unit = [(number, _parse(line, where, number)) for number, line in lines], "line"
    if not values:
        raise UsageError(f"{where}: the array is empty; write one JSON object per record")
    records = []
    for number, value in values:
        if not isinstance(value, dict):
            raise UsageError(f"{where}, {unit} {number}: expected a JSON object, got {_describe_value(value)}")
        records.append(_Record(f"{where}, {unit} {number}", number, value))
    return records, unit


def _is_json_lines(text: str, lines: Sequence[str]) -> bool:
    """Return True if `text` contains one JSON value per line, or False if the whole text is a single value.

    `lines` are the lines of `text` that are not blank. Any of them may be damaged.
    """
    if lines[0].lstrip().startswith("["):
        return len(lines) > 1 and _is_json(lines[0])
    records = sum(line.startswith("{") for line in lines)  # in one object, which is indented, only the first line does
    return _is_json(lines[0]) or (records > 1 and not _is_json(text))


def _is_json(text: str) -> bool:
    try:
        parse_json(text)
    except ValueError:
        return False
    return True


def _parse(text: str, where: str, line: int = 0) -> Any:
    """Parse a JSON value.

    In a JSON Lines file, `line` is the line number of the value. Otherwise, the value is the entire file and `line` is
    0.
    """
    try:
        return parse_json(text)
    except json.JSONDecodeError as error:
        raise UsageError(
            f"{where}, line {line or error.lineno}: invalid JSON ({error.msg} at column {error.colno})"
        ) from None
    except ValueError as error:  # a number with thousands of digits or very deep nesting
        at = f"{where}, line {line}" if line else where
        raise UsageError(f"{at}: cannot parse the JSON ({error})") from None


def _find_key(record: _Record, keys: Sequence[str], remedy: str) -> str:
    """Return the first of `keys` that a record contains. Raises UsageError if the record contains none of them."""
    for key in keys:
        if key in record.values:
            return key
    raise UsageError(_missing_key_message(record, keys, remedy))


def _missing_key_message(record: _Record, keys: Sequence[str], remedy: str = "") -> str:
    found = shorten(", ".join(map(repr, record.values)), 200) or "none"
    matches = [(closest_match(key, record.values), key) for key in keys]
    renamed = next((f"; rename {match!r} to {key!r}" for match, key in matches if match), "")
    then = f"; {remedy}" if remedy else renamed
    *others, last = map(repr, keys)
    wanted = f"{', '.join(others)}{' or ' if others else ''}{last}"
    return f"{record.where}: missing key {wanted} (keys found: {found}){then}"


def _prompt(record: _Record, key: str) -> Prompt:
    """Return a record's prompt, which is plain text or a list of chat messages.

    Raises UsageError if the prompt is empty or invalid.
    """
    value = record.values.get(key)
    if not isinstance(value, list):
        return _nonempty_text(record, key)
    # Arrow gives all messages the same keys, and those that a message lacks the value None
    value = [{k: v for k, v in part.items() if v is not None} if isinstance(part, dict) else part for part in value]
    for position, message in enumerate(value, 1):
        at = f"{record.where}: message {position} of {key!r}"
        if not isinstance(message, dict):
            raise UsageError(f"{at}: expected an object with 'role' and 'content', got {_describe_value(message)}")
        for name in ("role", "content"):
            if name not in message:
                raise UsageError(f"{at} has no key {name!r} ({json.dumps(message)[:80]})")
        for name, part in message.items():
            _check_text(part, f"{at}: {name!r}")
    if not value or not value[-1]["content"].strip():
        raise UsageError(f"{record.where}: {key!r} is empty; the last message of a prompt needs text")
    if value[-1]["role"] == "assistant":
        raise UsageError(
            f"{record.where}: {key!r} ends with an assistant message; remove it, since the model generates the reply"
        )
    return value


def _nonempty_text(record: _Record, key: str) -> str:
    text = _text(record, key)
    if not text.strip():
        raise UsageError(f"{record.where}: {key!r} is empty; add text or remove the record")
    return text


def _text(record: _Record, key: str) -> str:
    if key not in record.values:
        raise UsageError(_missing_key_message(record, (key,)))
    return _check_text(record.values[key], f"{record.where}: {key!r}")


def _check_text(value: object, at: str) -> str:
    if not isinstance(value, str):
        raise UsageError(f"{at}: expected text, got {_describe_value(value)}")
    try:
        value.encode()
    except UnicodeEncodeError as error:  # "\ud800" is valid JSON, but no tokenizer accepts it
        surrogate = f"\\u{ord(value[error.start]):04x}"
        raise UsageError(f"{at} contains half of a surrogate pair ({surrogate}); add the other half") from None
    return value


def _describe_value(value: object) -> str:
    """Describe a JSON value of the wrong type for an error message."""
    if value is None or isinstance(value, bool):
        return str(json.dumps(value))
    if isinstance(value, (list, dict)):
        kind = "a list" if isinstance(value, list) else "an object"
        return f"{kind} ({shorten(json.dumps(value, ensure_ascii=False))})"
    return f"the {'string' if isinstance(value, str) else 'number'} {shorten(repr(value))}"


def shorten(text: str, length: int = 40) -> str:
    """Return `text` as one printable line of at most `length` characters."""
    text = clean(text)
    return text if len(text) <= length else text[: length - 3] + "..."
