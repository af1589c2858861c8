"""Prompts, preference pairs and texts from files; whatever is wrong in them is named with its line. No torch."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ppo_unified.errors import UsageError, did_you_mean
from ppo_unified.parsing import parse_json
from ppo_unified.text import clean

Prompt = str | list[dict[str, str]]  # a text, or a chat: messages with "role" and "content"

PROMPT_KEYS = ("prompt", "query", "question", "messages")
PAIR_KEYS = ("prompt", "question", "query")
RESERVED = ("prompts", "responses")  # the reward's own arguments
ENDINGS = (".jsonl", ".json", ".txt")


@dataclass(frozen=True)
class PromptData:
    """Prompts with what else their records hold, one entry of each column per prompt (None where a record lacks it)."""

    prompts: list[Prompt]
    columns: dict[str, list[Any]]
    where: str  # the file, or the name of a built-in task
    lines: list[int]  # where in it each prompt stands, counted from 1
    unit: str = "line"  # what `lines` counts: lines of a file, or records of a JSON array

    def __post_init__(self) -> None:
        sizes = {"lines": len(self.lines)} | {key: len(values) for key, values in self.columns.items()}
        wrong = [f"{key} {size}" for key, size in sizes.items() if size != len(self.prompts)]
        if wrong:
            raise ValueError(f"{self.where}: {len(self.prompts)} prompts, but {', '.join(wrong)}")

    def location(self, index: int) -> str:
        """Where the prompt at `index` comes from, as messages name it: 'prompts.jsonl, line 3'."""
        return f"{self.where}, {self.unit} {self.lines[index]}"

    def take(self, indices: Sequence[int]) -> PromptData:
        """The prompts at `indices`, in that order, with their columns."""
        columns = {key: [values[i] for i in indices] for key, values in self.columns.items()}
        lines = [self.lines[i] for i in indices]
        return PromptData([self.prompts[i] for i in indices], columns, self.where, lines, self.unit)


class Pair(NamedTuple):
    """A preference: of two responses to a prompt, the chosen one is better."""

    prompt: str
    chosen: str
    rejected: str


class _Record(NamedTuple):
    where: str  # 'prompts.jsonl, line 3'
    number: int
    values: dict[str, Any]


def read_prompts(path: Path, key: str = "") -> PromptData:
    """The prompts of a .jsonl, .json or .txt file; `key` names theirs, '' takes the first of PROMPT_KEYS.

    Prompts that are lists of messages stay lists. Raises UsageError.
    """
    where = clean(path)
    if _suffix(path) == ".txt":
        if key:
            raise UsageError(f"llm.prompt_key = {key!r} has no effect: {where} is plain text without keys; drop it")
        numbered = _read_lines(path)
        return PromptData([line for _, line in numbered], {}, where, [number for number, _ in numbered])
    records, unit = _read_records(path)
    remedy = "" if key else "name the prompt's with llm.prompt_key"
    key = _find_key(records[0], (key,) if key else PROMPT_KEYS, remedy)
    names = dict.fromkeys(name for record in records for name in record.values if name != key)
    for record in records:
        for name in RESERVED:
            if name in names and name in record.values:
                raise UsageError(f"{record.where}: the key {name!r} is an argument of the reward itself; rename it")
    prompts = [_prompt(record, key) for record in records]
    columns = {name: [record.values.get(name) for record in records] for name in names}
    return PromptData(prompts, columns, where, [record.number for record in records], unit)


def read_pairs(path: Path) -> list[Pair]:
    """Preference pairs of a .jsonl or .json file: `prompt` (or `question`, `query`), `chosen`, `rejected`, all texts.

    Other keys are left alone. Raises UsageError.
    """
    if _suffix(path) == ".txt":
        raise UsageError(f"{clean(path)}: plain text cannot hold preference pairs; use .jsonl or .json")
    records, _ = _read_records(path)
    key = _find_key(records[0], PAIR_KEYS, "a pair has a prompt, a chosen and a rejected text")
    return [
        Pair(_nonempty_text(record, key), _text(record, "chosen"), _text(record, "rejected"))  # a response may be empty
        for record in records
    ]


def read_texts(path: Path) -> list[str]:
    """Texts: the lines of a .txt file but blank ones, or the key `text` of each .jsonl or .json record.

    Raises UsageError.
    """
    if _suffix(path) == ".txt":
        return [line for _, line in _read_lines(path)]
    records, _ = _read_records(path)
    return [_nonempty_text(record, "text") for record in records]


def _suffix(path: Path) -> str:
    ending = path.suffix.lower()
    if ending not in ENDINGS:
        found = f"unknown ending {ending!r}" if ending else "no ending"
        raise UsageError(f"{clean(path)}: {found}; use a .jsonl, .json or .txt file")
    return ending


def _read(path: Path) -> str:
    where = clean(path)
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        folder = path.parent
        if not folder.is_dir():
            raise UsageError(f"{where}: no such file (there is no folder {clean(folder)!r})") from None
        known = did_you_mean(path.name, sorted(os.listdir(folder))) if os.access(folder, os.R_OK) else ""
        raise UsageError(f"{where}: no such file{known}") from None
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        reason = error.strerror if isinstance(error, OSError) else error
        raise UsageError(f"{where}: cannot be read ({reason})") from None
    try:
        return content.decode("utf-8-sig")  # editors on Windows put a mark at the start
    except UnicodeDecodeError as error:
        line, byte = content.count(b"\n", 0, error.start) + 1, content[error.start]
        raise UsageError(f"{where}, line {line}: not UTF-8 (byte 0x{byte:02x}); save the file as UTF-8") from None


def _split_lines(text: str) -> list[tuple[int, str]]:
    """Numbered lines without blank ones; `splitlines` would also cut inside texts, at U+2028 for one."""
    lines = (line.removesuffix("\r") for line in text.split("\n"))
    return [(number, line) for number, line in enumerate(lines, 1) if line.strip()]


def _read_lines(path: Path) -> list[tuple[int, str]]:
    lines = _split_lines(_read(path))
    if not lines:
        raise UsageError(f"{clean(path)}: the file is empty; it holds one text a line")
    return lines


def _read_records(path: Path) -> tuple[list[_Record], str]:
    """The objects of a file that holds a JSON array or JSON Lines, whatever its ending, and what numbers them."""
    where, text = clean(path), _read(path)
    lines = _split_lines(text)
    if not lines:
        raise UsageError(f"{where}: the file is empty; it holds one JSON object a line, or an array of them")
    # Only a first line that is complete by itself makes JSON Lines; else one value spans the file
    if lines[0][1].lstrip().startswith("[") or not _is_json(lines[0][1]):
        value, unit = _parse(text, where), "record"
        values = list(enumerate(value if isinstance(value, list) else [value], 1))
    else:
        values, unit = [(number, _parse(line, where, number)) for number, line in lines], "line"
    if not values:
        raise UsageError(f"{where}: the array is empty; it holds one object a record")
    records = []
    for number, value in values:
        if not isinstance(value, dict):
            raise UsageError(f"{where}, {unit} {number}: {_describe_value(value)}, where an object with keys is meant")
        records.append(_Record(f"{where}, {unit} {number}", number, value))
    return records, unit


def _is_json(text: str) -> bool:
    try:
        parse_json(text)
    except ValueError:
        return False
    return True


def _parse(text: str, where: str, line: int = 0) -> Any:
    """A JSON value; `line` is where it stands if it takes one line of a file, 0 for the whole file."""
    try:
        return parse_json(text)
    except json.JSONDecodeError as error:
        raise UsageError(
            f"{where}, line {line or error.lineno}: not JSON ({error.msg} at column {error.colno})"
        ) from None
    except ValueError as error:  # a number of thousands of digits, thousands of brackets
        at = f"{where}, line {line}" if line else where
        raise UsageError(f"{at}: JSON that cannot be read ({error})") from None


def _find_key(record: _Record, keys: Sequence[str], remedy: str) -> str:
    """The first of `keys` in a record. Raises UsageError that names the keys found."""
    for key in keys:
        if key in record.values:
            return key
    raise UsageError(_missing_key_message(record, keys, remedy))


def _missing_key_message(record: _Record, keys: Sequence[str], remedy: str = "") -> str:
    found = shorten(", ".join(map(repr, record.values)), 200) or "none"
    similar = next(filter(None, (did_you_mean(key, record.values) for key in keys)), "")
    then = f"; {remedy}" if remedy else similar
    return f"{record.where}: no key {', '.join(keys[:-1])}{' or ' * (len(keys) > 1)}{keys[-1]} (found: {found}){then}"


def _prompt(record: _Record, key: str) -> Prompt:
    """A record's prompt, text or messages. Raises UsageError for an empty one and for any other type."""
    value = record.values.get(key)
    if not isinstance(value, list):
        return _nonempty_text(record, key)
    for position, message in enumerate(value, 1):
        at = f"{record.where}: message {position} of {key!r}"
        if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
            raise UsageError(f"{at} is {_describe_value(message)}, where an object with 'role' and 'content' is meant")
        for name, part in message.items():
            _check_text(part, f"{at}: {name!r}")
    if not value or not value[-1]["content"].strip():
        raise UsageError(f"{record.where}: {key!r} is empty; a prompt has at least one message that says something")
    if value[-1]["role"] == "assistant":
        raise UsageError(f"{record.where}: {key!r} ends with the assistant's message, which the model is to write")
    return value


def _nonempty_text(record: _Record, key: str) -> str:
    text = _text(record, key)
    if not text.strip():
        raise UsageError(f"{record.where}: {key!r} is empty; write a text or drop the record")
    return text


def _text(record: _Record, key: str) -> str:
    if key not in record.values:
        raise UsageError(_missing_key_message(record, (key,)))
    return _check_text(record.values[key], f"{record.where}: {key!r}")


def _check_text(value: object, at: str) -> str:
    if not isinstance(value, str):
        raise UsageError(f"{at} is {_describe_value(value)}, where a text is meant")
    try:
        value.encode()
    except UnicodeEncodeError as error:  # "\ud800" is valid JSON, and no tokenizer takes it
        raise UsageError(f"{at} holds half a character (\\u{ord(value[error.start]):04x}); write it whole") from None
    return value


def _describe_value(value: object) -> str:
    """A JSON value of the wrong type, in a few words."""
    if value is None or isinstance(value, bool):
        return str(json.dumps(value))
    if isinstance(value, (list, dict)):
        kind = "a list" if isinstance(value, list) else "an object"
        return f"{kind} ({shorten(json.dumps(value, ensure_ascii=False))})"
    return f"the {'text' if isinstance(value, str) else 'number'} {shorten(repr(value))}"


def shorten(text: str, length: int = 40) -> str:
    """A text as one harmless line of at most `length` characters."""
    text = clean(text)
    return text if len(text) <= length else text[: length - 3] + "..."
