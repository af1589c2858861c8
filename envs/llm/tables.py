"""Reads the records of CSV files, Parquet files and data sets, which are folders or data sets of the Hugging Face hub.

A record is a number, for error messages, and a dict from column names to values. This module does not import torch.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from envs.llm.hub import is_hub_reachable
from ppo_unified.errors import UsageError, did_you_mean
from ppo_unified.text import clean

Records = list[tuple[int, dict[str, Any]]]

HUB_DATA_SET = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")  # ORG/NAME or ORG/NAME/CONFIG
SAVED = ("state.json", "dataset_dict.json")  # a folder that `save_to_disk` has written contains one of these files
SPLIT = "train"


def split_name(name: str) -> tuple[str, str]:
    """Split 'PATH:SPLIT' into the path and the split, which is `train` if it is missing."""
    path, _, split = name.partition(":")
    return path, split or SPLIT


def is_data_set(name: str) -> bool:
    """Return True if `name` is a folder or has the form of a hub data set, and is not a file."""
    path = split_name(name)[0]
    try:
        return not Path(name).is_file() and (Path(path).is_dir() or HUB_DATA_SET.fullmatch(path) is not None)
    except (OSError, ValueError):  # for example, a null character or a very long name
        return False


# CSV


def csv_records(text: str, where: str) -> Records:
    """Return the records of a CSV file, numbered by their first lines. All values are text, as in the file.

    The first line contains the names of the columns. Raises UsageError if the text is not valid CSV.
    """
    rows = list(_csv_rows(text, where))
    if not rows:
        raise UsageError(f"{where}: the file is empty; write the names of the columns into the first line")
    (line, header), *rows = rows
    _check_header(header, f"{where}, line {line}")
    if not rows:
        raise UsageError(f"{where}: expected at least one record below the names of the columns, got none")
    for line, row in rows:
        if len(row) != len(header):
            fix = (
                "put values that contain a comma in double quotes" if len(row) > len(header) else "add the missing ones"
            )
            raise UsageError(f"{where}, line {line}: expected {len(header)} values, got {len(row)}; {fix}")
    return [(line, dict(zip(header, row, strict=True))) for line, row in rows]


def _csv_rows(text: str, where: str) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    while True:
        line = reader.line_num + 1
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise UsageError(
                f"{where}, line {line}: expected valid CSV, got an error: {error}; put values that contain quotes, "
                "commas or line breaks in double quotes"
            ) from None
        if row:
            yield line, row


def _check_header(header: Sequence[str], where: str) -> None:
    for number, name in enumerate(header, 1):
        if not name.strip():
            raise UsageError(
                f"{where}: column {number} has no name; name it, or remove it (in pandas: to_csv(index=False))"
            )
    _check_different(header, where)
    if len(header) == 1 and (other := next((c for c in ";\t|" if c in header[0]), "")):
        raise UsageError(f"{where}: expected columns separated by commas, got {other!r}; save the file with commas")


def _check_different(names: Sequence[str], where: str) -> None:
    twice = next((name for name, count in Counter(names).items() if count > 1), None)
    if twice is not None:
        raise UsageError(f"{where}: expected different column names, got {clean(twice)!r} twice; rename a column")


def parse_numbers(values: Sequence[str]) -> list[Any]:
    """Return the values of a CSV column: None for an empty value, and numbers if all others are numbers.

    A value counts as a number only if Python writes this number in the same way, so that text such as '007' or '1.50'
    does not change.
    """
    numbers = [_number(value) for value in values]
    if any(number is None and value for number, value in zip(numbers, values, strict=True)):
        return [value or None for value in values]
    return numbers


def _number(text: str) -> int | float | None:
    kinds: tuple[Callable[[str], int | float], ...] = (int, float)
    for kind in kinds:
        try:
            number = kind(text)
        except ValueError:
            continue
        if str(number) == text and math.isfinite(number):
            return number
    return None


# Parquet


def parquet_records(content: bytes, where: str) -> Records:
    """Return the records of a Parquet file, numbered from 1. Raises UsageError if the file is invalid."""
    _require_datasets(where)
    import pyarrow
    from pyarrow import parquet

    try:
        table = parquet.read_table(pyarrow.BufferReader(content), use_threads=False)
        rows = table.to_pylist()
    except Exception as error:  # damaged files raise many kinds of exceptions
        raise UsageError(f"{where}: expected a Parquet file, got an error: {_explain(error)}") from None
    _check_different(table.column_names, where)
    return _number_rows(rows, where)


# data sets


def data_set_records(name: str) -> Records:
    """Return the records of a data set: a folder, ORG/NAME or ORG/NAME/CONFIG, each with an optional ':SPLIT'.

    A folder contains data files, or is the result of `save_to_disk`. Raises UsageError if loading fails.
    """
    where, (path, split) = clean(name), split_name(name)
    _require_datasets(where)
    if not Path(path).is_dir() and not is_hub_reachable():
        raise UsageError(
            f"{where}: no local file or folder has this name, and the Hugging Face hub cannot be reached; check the "
            "name and the network"
        )
    with _silence_datasets():
        try:
            loaded = _load_saved(path, split) if _is_saved(path) else _load(path, split)
            rows = loaded.to_list()
        except UsageError as error:
            raise UsageError(f"{where}: {error}") from None
        except Exception as error:  # missing splits, unknown configurations, damaged files, network errors
            raise UsageError(f"{where}: cannot load the data set ({_explain(error)})") from None
    return _number_rows(rows, where)


def _is_saved(path: str) -> bool:
    return any((Path(path) / name).is_file() for name in SAVED)


def _load_saved(path: str, split: str) -> Any:
    from datasets import DatasetDict, load_from_disk

    saved = load_from_disk(path)
    if not isinstance(saved, DatasetDict):
        if split != SPLIT:
            raise UsageError(f"the folder contains a single data set without splits; remove ':{clean(split)}'")
        return saved
    if split not in saved:
        known = ", ".join(map(repr, saved))
        raise UsageError(f"expected one of the splits {known}, got {clean(split)!r}{did_you_mean(split, saved)}")
    return saved[split]


def _load(path: str, split: str) -> Any:
    """Load a split of a folder with data files, or of a data set of the hub."""
    from datasets import load_dataset

    if Path(path).is_dir():
        return load_dataset(path, split=split)
    owner, name, *config = path.split("/")
    return load_dataset(f"{owner}/{name}", *config, split=split)


@contextmanager
def _silence_datasets() -> Iterator[None]:
    """Disable the progress bars and warnings of datasets."""
    import datasets
    from datasets.utils import logging

    verbosity, bars = logging.get_verbosity(), datasets.are_progress_bars_disabled()
    logging.set_verbosity_error()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if not bars:
            datasets.enable_progress_bars()


def _require_datasets(where: str) -> None:
    if find_spec("datasets") is None:
        raise UsageError(f"{where}: Parquet files and data sets require datasets: pip install 'ppo-unified[data]'")


def _number_rows(rows: Iterable[dict[str, Any]], where: str) -> Records:
    """Number the rows from 1, and replace NaN by None, which stands for a missing value as in JSON Lines."""
    records = [(number, {key: _missing(value) for key, value in row.items()}) for number, row in enumerate(rows, 1)]
    if not records:
        raise UsageError(f"{where}: expected at least one row, got none")
    return records


def _missing(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value


def _explain(error: Exception) -> str:
    text = clean(f"{type(error).__name__}: {error}").strip()
    return text if len(text) <= 200 else text[:197] + "..."
