"""Tests of prompts in CSV files, Parquet files and data sets: their records equal those of JSON Lines."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from envs.llm import tables
from envs.llm.data import PromptData, read_pairs, read_prompts, read_texts
from envs.llm.tables import is_data_set, parse_numbers
from ppo_unified.errors import UsageError

RECORDS: list[dict[str, Any]] = [
    {"question": "1+1=", "answer": 2, "hint": "two"},
    {"question": 'a "quoted", long\ntext', "answer": -10, "hint": None},
    {"question": "三原色是什么", "answer": 3, "hint": "007"},
]


def write_json(path: Path) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in RECORDS), encoding="utf-8")
    return path


def write_csv(path: Path) -> Path:
    with open(path, "w", encoding="utf-8-sig", newline="") as file:  # with a byte order mark, as Excel writes it
        writer = csv.DictWriter(file, list(RECORDS[0]))
        writer.writeheader()
        writer.writerows(RECORDS)
    return path


def write_parquet(path: Path, records: Sequence[dict[str, Any]] = RECORDS) -> Path:
    """Write a Parquet file. pyarrow and datasets are imported when needed, by one of several test processes."""
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(records), path)
    return path


def write_folder(path: Path) -> Path:
    path.mkdir()
    write_parquet(path / "train-00000-of-00001.parquet")
    return path


def write_saved(path: Path) -> Path:
    from datasets import Dataset

    Dataset.from_list(RECORDS).save_to_disk(path)
    return path


def write_saved_splits(path: Path) -> Path:
    from datasets import Dataset, DatasetDict

    DatasetDict({"train": Dataset.from_list(RECORDS), "test": Dataset.from_list(RECORDS[:1])}).save_to_disk(path)
    return path


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


FORMATS: dict[str, Callable[[Path], Path]] = {
    "a.csv": write_csv,
    "a.parquet": write_parquet,
    "folder": write_folder,
    "saved": write_saved,
    "splits": write_saved_splits,
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_yields_the_records_of_json_lines(tmp_path: Path, name: str) -> None:
    expected = read_prompts(write_json(tmp_path / "a.jsonl"))
    data = read_prompts(FORMATS[name](tmp_path / name))
    assert (data.prompts, data.columns) == (expected.prompts, expected.columns)
    assert [type(value) for value in data.columns["answer"]] == [int] * 3
    where = "a.csv, line 3" if name == "a.csv" else f"{name}, row 2"  # the text above spans two lines
    assert data.location(1) == f"{tmp_path}/{where}"


def test_messages_are_read_from_parquet(tmp_path: Path) -> None:
    """Arrow gives all messages the same keys; those with the value None are missing keys."""
    chats = [
        [{"role": "system", "content": "Be brief.", "name": "s"}, {"role": "user", "content": "hi"}],
        [{"role": "user", "content": "ho"}],
    ]
    write_parquet(tmp_path / "a.parquet", [{"messages": chat} for chat in chats])
    assert read_prompts(tmp_path / "a.parquet").prompts == chats


def test_nan_is_a_missing_value(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "level": 1.5}, {"prompt": "b", "level": math.nan}]
    write_parquet(tmp_path / "a.parquet", rows)
    assert read_prompts(tmp_path / "a.parquet").columns == {"level": [1.5, None]}


@pytest.mark.parametrize(
    ("texts", "values"),
    [
        (["1", "-20", ""], [1, -20, None]),
        (["1", "2.5"], [1, 2.5]),
        (["1.0", "1e+16"], [1.0, 1e16]),
        (["007", "8"], ["007", "8"]),
        (["1.50", "2"], ["1.50", "2"]),
        (["1_000", "2"], ["1_000", "2"]),
        (["inf", "nan", ""], ["inf", "nan", None]),
        (["9" * 5000], ["9" * 5000]),
        (["", ""], [None, None]),
    ],
)
def test_csv_column_is_numeric_only_without_loss(texts: list[str], values: list[Any]) -> None:
    found = parse_numbers(texts)
    assert (found, [type(x) for x in found]) == (values, [type(x) for x in values])


def test_csv_prompts_stay_text(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("prompt,answer\n\n12,3\n5,4\n", encoding="utf-8")
    data = read_prompts(tmp_path / "a.csv")
    assert (data.prompts, data.columns, data.lines) == (["12", "5"], {"answer": [3, 4]}, [3, 4])


def test_pairs_and_texts_are_read_from_tables(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("prompt,chosen,rejected,text\np,c,,t\n", encoding="utf-8")
    assert read_pairs(tmp_path / "a.csv") == [("p", "c", "")]
    assert read_texts(tmp_path / "a.csv") == ["t"]


WRONG: dict[str, tuple[str, str | bytes, str]] = {
    "empty": ("a.csv", "\n", "a.csv: the file is empty; write the names of the columns into the first line"),
    "no record": ("a.csv", "prompt\n", "a.csv: expected at least one record below the names of the columns, got none"),
    "more values": ("a.csv", "prompt,n\na,1\nb, c,2\n", "a.csv, line 3: expected 2 values, got 3; put values that"),
    "fewer values": ("a.csv", 'prompt,n\n"a\nb",1\nb\n', "a.csv, line 4: expected 2 values, got 1; add the missing"),
    "open quote": ("a.csv", 'prompt\na\n"b\n', "a.csv, line 3: expected valid CSV, got an error: unexpected end of"),
    "text after quote": ("a.csv", 'prompt\n"a" b\n', "a.csv, line 2: expected valid CSV, got an error: "),
    "same columns": ("a.csv", "prompt,x,x\n", "a.csv, line 1: expected different column names, got 'x' twice"),
    "index column": ("a.csv", ",prompt\n0,a\n", "a.csv, line 1: column 1 has no name; name it, or remove it"),
    "semicolons": ("a.csv", "prompt;n\na;1\n", "a.csv, line 1: expected columns separated by commas, got ';'"),
    "latin-1": ("a.csv", "prompt\ncafé\n".encode("latin-1"), "a.csv, line 2: expected UTF-8, got byte 0xe9;"),
    "empty prompt": ("a.csv", "prompt,n\n,1\n", "a.csv, line 2: 'prompt' is empty; add text or remove the record"),
    "no prompt": ("a.csv", "promt,n\na,1\n", "a.csv, line 2: missing key 'prompt', 'query', 'question' or 'messages'"),
    "chat": ("a.csv", "messages\n[]\n", "a.csv: expected plain text, but the column 'messages' is for chat messages"),
    "reserved": ("a.csv", "prompt,responses\na,b\n", "a.csv, line 2: the key 'responses' is reserved"),
    "not parquet": ("a.parquet", "prompt\n", "a.parquet: expected a Parquet file, got an error: ArrowInvalid: "),
}


def message(name: str | Path, read: Callable[[Path], PromptData] = read_prompts) -> str:
    with pytest.raises(UsageError) as caught:
        read(Path(name))
    text = str(caught.value)
    assert text.isprintable()
    return text


@pytest.mark.parametrize("case", WRONG)
def test_invalid_tables_are_a_one_line_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    name, content, expected = WRONG[case]
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
    assert message(name).startswith(expected)


def test_invalid_data_sets_are_a_one_line_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_folder(Path("folder"))
    write_saved(Path("saved"))
    write_saved_splits(Path("splits"))
    Path("nothing").mkdir()
    assert read_prompts(Path("splits:test")).prompts == ["1+1="]
    assert read_prompts(Path("folder:train[:2]")).location(1) == "folder:train[:2], row 2"
    assert (
        message("splits:tst")
        == "splits:tst: expected one of the splits 'train', 'test', got 'tst'; did you mean 'test'?"
    )
    assert message("saved:test") == "saved:test: the folder contains a single data set without splits; remove ':test'"
    assert message("folder:test").startswith("folder:test: cannot load the data set (ValueError: Unknown split")
    assert message("nothing").startswith("nothing: cannot load the data set (EmptyDatasetError: ")
    monkeypatch.setattr(tables, "find_spec", lambda _: None)
    assert message("folder").endswith("require datasets: pip install 'ppo-unified[data]'")


def test_hub_data_sets_are_loaded_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def load_dataset(*names: str, split: str) -> Any:
        calls.append((*names, split))
        return SimpleNamespace(to_list=lambda: RECORDS)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    monkeypatch.setattr(tables, "is_hub_reachable", lambda: True)
    data = read_prompts(Path("openai/gsm8k/main:test[:3]"))
    assert data.prompts == [record["question"] for record in RECORDS]
    assert data.location(0) == "openai/gsm8k/main:test[:3], row 1"
    read_prompts(Path("openai/gsm8k"))
    assert calls == [("openai/gsm8k", "main", "test[:3]"), ("openai/gsm8k", "train")]


def test_unreachable_hub_is_a_one_line_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "is_hub_reachable", lambda: False)
    assert message("openai/gsm8k").startswith(
        "openai/gsm8k: no local file or folder has this name, and the Hugging Face"
    )


def test_local_file_takes_precedence_over_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert is_data_set("org/name")
    Path("org").mkdir()
    Path("org/name").write_text("text", encoding="utf-8")
    assert not is_data_set("org/name")
    assert message("org/name").startswith("org/name: expected the file extension .jsonl")
    assert not is_data_set("prompts.jsonl")
    assert not is_data_set("a\0b")
    assert not is_data_set("x" * 5000)
