"""Expand one command line or form into a grid of runs: one for each combination of the listed values."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

from pydantic.fields import FieldInfo

from ppo_unified.config.values import kind_of, read_value
from ppo_unified.errors import UsageError

MAX_RUNS = 64  # each run is a separate process
SEED = "seed"
SINGLE = ("list", "table", "text")  # kinds whose values may contain commas
_RANGE = re.compile(r"\s*(\d{1,10})\s*-\s*(\d{1,10})\s*")


class Combination(NamedTuple):
    """The options of one run, as text. `varied` contains the options that differ between runs."""

    typed: Mapping[str, str]
    varied: Mapping[str, str]


def expand(typed: Mapping[str, str], options: Mapping[str, FieldInfo]) -> list[Combination]:
    """Return one combination per run. `typed` contains the text that the user typed for each option.

    Raises UsageError if a list has an empty element, or if there are more than MAX_RUNS runs.
    """
    return combine(typed, {option: split_values(option, text, options[option]) for option, text in typed.items()})


def combine(typed: Mapping[str, str], lists: Mapping[str, Sequence[str]]) -> list[Combination]:
    """Return every combination of the values in `lists`. The seed varies fastest.

    Raises UsageError if there are more than MAX_RUNS combinations.
    """
    names = sorted((option for option in lists if len(lists[option]) > 1), key=lambda option: option == SEED)
    check_count(math.prod(len(lists[name]) for name in names))
    combinations = [dict(zip(names, values, strict=True)) for values in product(*(lists[name] for name in names))]
    single = {option: values[0] for option, values in lists.items()}
    return [Combination({**typed, **single, **varied}, varied) for varied in combinations]


def check_count(count: int) -> None:
    if count > MAX_RUNS:
        raise UsageError(f"expected at most {MAX_RUNS} runs at once, got {count}; list fewer values")


def split_values(option: str, text: str, declared: FieldInfo) -> list[str]:
    """Split a list of values such as '1e-3,3e-3' (or '1-3,7' for seeds) and drop duplicates.

    If the option itself is a list, a table or text, its value may contain commas and is not split.
    """
    if kind_of(declared) in SINGLE:
        return [text]
    if option == SEED and _RANGE.search(text):
        return [str(seed) for seed in parse_seeds(text)]
    if "," not in text:
        return [text]
    parts = [part.strip() for part in text.split(",")]
    if not all(parts):
        raise UsageError(f"{option}: expected a value before and after each comma, got {text!r}")
    if any(re.fullmatch(r"0\d+", part) for part in parts):
        number = text.replace(",", "")
        raise UsageError(f"{option}: {text!r} is a list of values; to give one number, write {number} without commas")
    return list({_key(part, declared): part for part in reversed(parts)}.values())[::-1]


def _key(text: str, declared: FieldInfo) -> Any:
    """Return the parsed value or, if `text` is invalid, `text`. Equal values such as 0.1 and 1e-1 have equal keys."""
    try:
        return read_value(text, declared)
    except ValueError:
        return text


def parse_seeds(text: str) -> list[int]:
    """Parse seeds such as '3', '1-5' or '1,2,7-9', and drop duplicates. Raises UsageError for invalid text."""
    seeds: dict[int, None] = {}
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,10})\s*(?:-\s*(\d{1,10})\s*)?", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if last < first:
            hint = f"; write the smaller number first: {last}-{first}" if match else ""
            raise UsageError(f"{SEED}: expected one seed, or several such as 1-5 or 1,2,7, got {text!r}{hint}")
        check_count(len(seeds) + last - first + 1)
        seeds.update(dict.fromkeys(range(first, last + 1)))
    return list(seeds)
