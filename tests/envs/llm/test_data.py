"""Tests of reading prompts, pairs and texts in common file layouts, and of the errors for invalid files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from envs.llm.data import PROMPT_KEYS, Pair, PromptData, read_pairs, read_prompts, read_texts
from ppo_unified.errors import UsageError

RECORDS: list[dict[str, Any]] = [
    {"prompt": "三原色是什么", "answer": 3},
    {"prompt": "two\nlines\u2028and a separator ", "answer": "x", "tags": ["a"]},
    {"prompt": " 1+1=", "level": None},
]
CHAT = [{"role": "system", "content": ""}, {"role": "user", "content": "hi"}]


def write_file(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def lines(records: list[Any], end: str = "\n") -> str:
    """Return the records as JSON Lines with the minimum of escapes, as other programs write them."""
    return end.join(json.dumps(record, ensure_ascii=False) for record in records) + end


LAYOUTS: dict[str, Callable[[list[Any]], str]] = {
    "lines.jsonl": lines,
    "lines.json": lines,
    "array.json": json.dumps,
    "array.jsonl": json.dumps,
    "indented.json": lambda records: json.dumps(records, indent=2, ensure_ascii=False),
    "windows.jsonl": lambda records: "\ufeff" + lines(records, "\r\n"),
    "gaps.JSONL": lambda records: "\n \n" + lines(records, "\n\n"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_json_layout_yields_the_same_records(tmp_path: Path, layout: str) -> None:
    """The content decides between array and lines, not the file extension, and texts with separators are unchanged."""
    data = read_prompts(write_file(tmp_path, layout, LAYOUTS[layout](RECORDS)))
    assert data.prompts == [record["prompt"] for record in RECORDS]
    assert data.columns == {"answer": [3, "x", None], "tags": [None, ["a"], None], "level": [None, None, None]}


def test_record_may_span_lines(tmp_path: Path) -> None:
    assert read_prompts(write_file(tmp_path, "a.json", '{\n"prompt": "a"\n}')).prompts == ["a"]


def test_prompt_records_its_origin(tmp_path: Path) -> None:
    of_lines = read_prompts(write_file(tmp_path, "a.jsonl", "\n" + lines(RECORDS)))
    of_array = read_prompts(write_file(tmp_path, "b.json", json.dumps(RECORDS, indent=1)))
    of_text = read_prompts(write_file(tmp_path, "c.txt", "one\n\ntwo\n"))
    assert [of_lines.location(2), of_array.location(2), of_text.location(1)] == [
        f"{tmp_path}/a.jsonl, line 4",
        f"{tmp_path}/b.json, record 3",
        f"{tmp_path}/c.txt, line 3",
    ]


def test_plain_text_is_split_only_at_newlines(tmp_path: Path) -> None:
    """Blank lines are skipped, but spaces and the other separators of `str.splitlines` remain in the line."""
    path = write_file(tmp_path, "a.txt", "\ufeffone \r\n\n \t\n two\u2028three\x0cfour\nlast")
    assert read_prompts(path).prompts == read_texts(path) == ["one ", " two\u2028three\x0cfour", "last"]
    assert read_prompts(path).columns == {}


@pytest.mark.parametrize("first", range(len(PROMPT_KEYS)))
def test_first_known_key_is_the_prompt(tmp_path: Path, first: int) -> None:
    record: dict[str, Any] = {key: [{"role": "user", "content": key}] for key in reversed(PROMPT_KEYS[first:])}
    data = read_prompts(write_file(tmp_path, "a.jsonl", lines([record])))
    assert data.prompts == [record[PROMPT_KEYS[first]]]
    assert set(data.columns) == set(PROMPT_KEYS[first + 1 :])


def test_named_key_selects_prompt_and_keeps_messages(tmp_path: Path) -> None:
    path = write_file(tmp_path, "a.jsonl", lines([{"chat": CHAT, "prompt": "p"}, {"chat": "plain", "prompt": "q"}]))
    data = read_prompts(path, "chat")
    assert data.prompts == [CHAT, "plain"]
    assert data.columns == {"prompt": ["p", "q"]}


def test_pairs_and_texts_are_read(tmp_path: Path) -> None:
    for key in ("prompt", "question", "query"):
        records = [{"id": 1, key: "什么", "chosen": "是", "rejected": ""}]
        assert read_pairs(write_file(tmp_path, "a.json", lines(records))) == [Pair("什么", "是", "")]
    assert read_texts(write_file(tmp_path, "b.jsonl", lines([{"text": "a\nb", "n": 1}, {"text": "c"}]))) == [
        "a\nb",
        "c",
    ]


def test_selected_prompts_keep_their_columns(tmp_path: Path) -> None:
    data = read_prompts(write_file(tmp_path, "a.jsonl", lines(RECORDS)))
    taken = data.take([2, 0, 2])
    assert [taken.location(i) for i in range(3)] == [data.location(2), data.location(0), data.location(2)]
    assert taken.prompts == [data.prompts[2], data.prompts[0], data.prompts[2]]
    assert taken.columns["answer"] == [None, 3, None]


def test_columns_of_wrong_length_are_rejected() -> None:
    with pytest.raises(ValueError, match="expected 2 values per column, got 1 for 'answer'"):
        PromptData(["a", "b"], {"answer": [1]}, "here", [1, 2])


def message(read: Callable[[Path], object], path: Path) -> str:
    """Return the one-line error of `read`, without the folder."""
    with pytest.raises(UsageError) as caught:
        read(path)
    text = str(caught.value)
    assert "\n" not in text
    assert text.isprintable()
    return text.removeprefix(f"{path.parent}/")


P = '{"prompt": "a"}\n'
WRONG_PROMPTS: dict[str, tuple[str, str | bytes, str]] = {
    "unknown extension": ("a.xls", P, "a.xls: expected the file extension .jsonl, .json, .csv, .parquet or .txt, got"),
    "no extension": ("a", P, "a: expected the file extension .jsonl, .json, .csv, .parquet or .txt, got none"),
    "empty file": ("a.jsonl", "\n \n", "a.jsonl: the file is empty; write one JSON object per line or an array"),
    "empty text": ("a.txt", " \n", "a.txt: the file is empty; write at least one line of text"),
    "empty array": ("a.json", " [ ]", "a.json: the array is empty"),
    "latin-1": ("a.txt", "ok\ncafé\n".encode("latin-1"), "a.txt, line 2: expected UTF-8, got byte 0xe9;"),
    "utf-16": ("a.jsonl", P.encode("utf-16"), "a.jsonl, line 1: expected UTF-8, got byte 0xff;"),
    "broken line": (
        "a.jsonl",
        f'{P}\n{{"prompt": "b"\n',
        "a.jsonl, line 3: invalid JSON (Expecting ',' delimiter at col",
    ),
    "not JSON at all": ("a.json", "hello\n", "a.json, line 1: invalid JSON (Expecting value at column 1)"),
    "broken record": ("a.json", '{\n "prompt": "a",\n}', "a.json, line 3: invalid JSON (Expecting property name"),
    "broken array": (
        "a.json",
        '[{"prompt": "a"},\n {"prompt": }]',
        "a.json, line 2: invalid JSON (Expecting value at col",
    ),
    "too deep": ("a.json", "[" * 10**5, "a.json: cannot parse the JSON ("),
    "long number": (
        "a.jsonl",
        P + '{"prompt": "b", "n": 1' + "0" * 5000 + "}",
        "a.jsonl, line 2: cannot parse the JSON (",
    ),
    "first line cut off": (
        "a.jsonl",
        P[:-2] + "\n" + P,
        "a.jsonl, line 1: invalid JSON (Expecting ',' delimiter at col",
    ),
    "first two lines cut off": (
        "a.jsonl",
        2 * (P[:-2] + "\n") + P,
        "a.jsonl, line 1: invalid JSON (Expecting ',' delimiter at col",
    ),
    "all lines cut off": (
        "a.jsonl",
        2 * (P[:-2] + "\n"),
        "a.jsonl, line 1: invalid JSON (Expecting ',' delimiter at col",
    ),
    "broken message in one object": (
        "a.json",
        '{\n "messages": [\n  {"role": "user"},\n  {"role" "user"}\n ]\n}',
        "a.json, line 4: invalid JSON (Expecting ':' delimiter at col",
    ),
    "first line after blank lines": (
        "a.jsonl",
        "\n\r\n" + P[:-3] + "\r\n" + P,
        "a.jsonl, line 3: invalid JSON (Unterminat",
    ),
    "byte order mark": (
        "a.jsonl",
        "\ufeff" + P + P[:-2] + "\n" + P,
        "a.jsonl, line 2: invalid JSON (Expecting ',' del",
    ),
    "latin-1 after byte order mark": (
        "a.jsonl",
        b"\xef\xbb\xbf" + P.encode() + b"\xe9" + P.encode(),
        "a.jsonl, line 2: expected UTF-8, got byte 0xe9;",
    ),
    "array without comma": (
        "a.jsonl",
        f"[\n\n{P}{P}]",
        "a.jsonl, line 4: invalid JSON (Expecting ',' delimiter at col",
    ),
    "array per line": ("a.jsonl", '["a"]\n["b"]\n', "a.jsonl, line 1: expected a JSON object, got a list"),
    "list": ("a.jsonl", P + "[1]\n", "a.jsonl, line 2: expected a JSON object, got a list ([1])"),
    "text": ("a.json", '["x"]', "a.json, record 1: expected a JSON object, got the string 'x'"),
    "null": ("a.jsonl", P + "null", "a.jsonl, line 2: expected a JSON object, got null"),
    "no known key": (
        "a.jsonl",
        '{"instruction": "a", "n": 1}',
        "a.jsonl, line 1: missing key 'prompt', 'query', 'question' or 'messages' (keys found: 'instruction', 'n'); "
        "set llm.prompt_key",
    ),
    "no key at all": (
        "a.jsonl",
        "{}",
        "a.jsonl, line 1: missing key 'prompt', 'query', 'question' or 'messages' (keys found: none)",
    ),
    "missing later": (
        "a.jsonl",
        P + '{"promt": "b"}',
        "a.jsonl, line 2: missing key 'prompt' (keys found: 'promt'); rename 'promt' to 'prompt'",
    ),
    "empty prompt": ("a.jsonl", P + '{"prompt": " \\n"}', "a.jsonl, line 2: 'prompt' is empty"),
    "number": ("a.jsonl", '{"prompt": 3}', "a.jsonl, line 1: 'prompt': expected text, got the number 3"),
    "null prompt": ("a.jsonl", '{"prompt": null}', "a.jsonl, line 1: 'prompt': expected text, got null"),
    "lone surrogate": (
        "a.jsonl",
        '{"prompt": "\\ud800"}',
        "a.jsonl, line 1: 'prompt' contains half of a surrogate pair (\\ud800)",
    ),
    "argument of rewards": (
        "a.jsonl",
        P + '{"prompt": "b", "responses": 1}',
        "a.jsonl, line 2: the key 'responses' is reserved",
    ),
    "texts as messages": (
        "a.jsonl",
        '{"prompt": ["x"]}',
        "a.jsonl, line 1: message 1 of 'prompt': expected an object with 'role' and 'content', got the string 'x'",
    ),
    "no content": (
        "a.jsonl",
        '{"messages": [{"role": "user"}]}',
        "a.jsonl, line 1: message 1 of 'messages' has no key 'content' (",
    ),
    "content in parts": (
        "a.jsonl",
        '{"messages": [{"role": "user", "content": ["x"]}]}',
        "a.jsonl, line 1: message 1 of 'messages': 'content': expected text, got a list ([\"x\"])",
    ),
    "no message": ("a.jsonl", '{"messages": []}', "a.jsonl, line 1: 'messages' is empty"),
    "empty message": ("a.jsonl", lines([{"messages": CHAT[:1]}]), "a.jsonl, line 1: 'messages' is empty"),
    "answered": (
        "a.jsonl",
        lines([{"messages": [*CHAT, {"role": "assistant", "content": "yes"}]}]),
        "a.jsonl, line 1: 'messages' ends with an assistant message",
    ),
    "escapes": (
        "a.jsonl",
        '{"\\u001b[31mx": 1}',
        "a.jsonl, line 1: missing key 'prompt', 'query', 'question' or 'messages' (keys found: ",
    ),
}


@pytest.mark.parametrize("case", WRONG_PROMPTS)
def test_invalid_prompts_are_a_one_line_error(tmp_path: Path, case: str) -> None:
    name, content, expected = WRONG_PROMPTS[case]
    assert message(read_prompts, write_file(tmp_path, name, content)).startswith(expected)


WRONG_PAIRS = {
    "no prompt": (
        lines([{"chosen": "a", "rejected": "b"}]),
        "a.json, line 1: missing key 'prompt', 'question' or 'query' (keys found: ",
    ),
    "no chosen": (
        lines([{"prompt": "a", "choosen": "b"}]),
        "a.json, line 1: missing key 'chosen' (keys found: 'prompt', 'choosen');",
    ),
    "no rejected": (
        P.strip()[:-1] + ', "chosen": "a"}',
        "a.json, line 1: missing key 'rejected' (keys found: 'prompt', 'chosen'",
    ),
    "empty prompt": (lines([{"prompt": "", "chosen": "a", "rejected": "b"}]), "a.json, line 1: 'prompt' is empty"),
    "chat": (
        lines([{"prompt": CHAT, "chosen": "a", "rejected": "b"}]),
        "a.json, line 1: 'prompt': expected text, got a list (",
    ),
    "number": (
        lines([{"prompt": "a", "chosen": "a", "rejected": 1}]),
        "a.json, line 1: 'rejected': expected text, got the number 1",
    ),
}


@pytest.mark.parametrize("case", WRONG_PAIRS)
def test_invalid_pairs_are_a_one_line_error(tmp_path: Path, case: str) -> None:
    content, expected = WRONG_PAIRS[case]
    assert message(read_pairs, write_file(tmp_path, "a.json", content)).startswith(expected)


def test_plain_text_has_neither_pairs_nor_keys(tmp_path: Path) -> None:
    path = write_file(tmp_path, "a.txt", "a\n")
    remedy = "use .jsonl, .json, .csv or .parquet"
    assert message(read_pairs, path) == f"a.txt: plain text cannot contain preference pairs; {remedy}"
    error = message(lambda path: read_prompts(path, "q"), path)
    assert error.startswith("llm.prompt_key = 'q' has no effect, because ")


def test_invalid_texts_are_a_one_line_error(tmp_path: Path) -> None:
    error = message(read_texts, write_file(tmp_path, "a.jsonl", P))
    assert error == "a.jsonl, line 1: missing key 'text' (keys found: 'prompt')"
    error = message(read_texts, write_file(tmp_path, "a.jsonl", '{"text": "a"}\n{"text": ""}'))
    assert error == "a.jsonl, line 2: 'text' is empty; add text or remove the record"


def test_missing_prompt_key_names_the_keys_found(tmp_path: Path) -> None:
    path = write_file(tmp_path, "a.jsonl", '{"instruction": "a", "prompt": "b"}')
    error = message(lambda path: read_prompts(path, "instructions"), path)
    assert error == (
        "a.jsonl, line 1: missing key 'instructions' (keys found: 'instruction', 'prompt'); set "
        "llm.prompt_key to the key that contains the prompt"
    )


def test_unreadable_file_is_a_one_line_error(tmp_path: Path) -> None:
    write_file(tmp_path, "prompts.jsonl", P)
    (tmp_path / "folder.jsonl").mkdir()
    error = message(read_prompts, tmp_path / "promts.jsonl")
    assert error == f"promts.jsonl: file not found; did you mean '{tmp_path}/prompts.jsonl'?"
    assert "a.jsonl: folder '" in message(read_prompts, tmp_path / "nowhere" / "a.jsonl")
    assert message(read_prompts, tmp_path / "folder.jsonl") == "folder.jsonl: cannot read the file (Is a directory)"
    assert "cannot read the file" in message(read_prompts, tmp_path / "prompts.jsonl" / "a.txt")
    assert "cannot read the file" in message(read_prompts, tmp_path / "a\0.txt")
