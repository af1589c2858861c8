"""Several runs from one command line or form: every combination of the values listed for its options."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

from pydantic.fields import FieldInfo

from ppo_unified.config.schema import RunConfig
from ppo_unified.config.values import kind_of, read_value
from ppo_unified.errors import UsageError

MOST_RUNS = 64  # each is a process of its own
SEED = "seed"
SINGLE = ("list", "table", "text")  # kinds whose own values may hold commas
_RANGE = re.compile(r"\s*(\d{1,10})\s*-\s*(\d{1,10})\s*")


class Combination(NamedTuple):
    """The options of one run, as text; `varied` are those that tell it from the other runs."""

    typed: Mapping[str, str]
    varied: Mapping[str, str]


def expand(typed: Mapping[str, str], options: Mapping[str, FieldInfo]) -> list[Combination]:
    """One combination for each run that typed options stand for.

    Raises UsageError for a list with something missing in it, and for more than MOST_RUNS runs.
    """
    return combine(typed, {option: split_values(option, text, options[option]) for option, text in typed.items()})


def combine(typed: Mapping[str, str], lists: Mapping[str, Sequence[str]]) -> list[Combination]:
    """Every combination of the values in `lists`; the seed varies fastest. Raises UsageError for too many."""
    names = sorted((option for option in lists if len(lists[option]) > 1), key=lambda option: option == SEED)
    check_count(math.prod(len(lists[name]) for name in names))
    combinations = [dict(zip(names, values, strict=True)) for values in product(*(lists[name] for name in names))]
    single = {option: values[0] for option, values in lists.items()}
    return [Combination({**typed, **single, **varied}, varied) for varied in combinations]


def check_count(count: int) -> None:
    if count > MOST_RUNS:
        raise UsageError(f"{count} runs at once: at most {MOST_RUNS} are started together; list fewer values")


def split_values(option: str, text: str, declared: FieldInfo) -> list[str]:
    """The texts of the values listed in `text`, each value once: '1e-3,3e-3', of seeds also '1-3,7'.

    Lists, tables and texts are always one value, since they may hold commas themselves.
    """
    if kind_of(declared) in SINGLE:
        return [text]
    if option == SEED and _RANGE.search(text):
        return [str(seed) for seed in parse_seeds(text)]
    if "," not in text:
        return [text]
    parts = [part.strip() for part in text.split(",")]
    if not all(parts):
        raise UsageError(f"{option}: expected values separated by commas, got {text!r}")
    if any(re.fullmatch(r"0\d+", part) for part in parts):
        raise UsageError(f"{option}: {text!r} is a list of values; write one number without commas, such as 1e6")
    return list({_key(part, declared): part for part in reversed(parts)}.values())[::-1]


def _key(text: str, declared: FieldInfo) -> Any:
    """What two texts of the same value have in common."""
    try:
        return read_value(text, declared)
    except ValueError:
        return text


def parse_seeds(text: str) -> list[int]:
    """Seeds of '3', '1-5' or '1,2,7-9', each once. Raises UsageError."""
    seeds: dict[int, None] = {}
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,10})\s*(?:-\s*(\d{1,10})\s*)?", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if last < first:
            raise UsageError(f"{SEED}: expected one seed, or several such as 1-5 or 1,2,7; got {text!r}")
        check_count(len(seeds) + last - first + 1)
        seeds.update(dict.fromkeys(range(first, last + 1)))
    return list(seeds)


def run_name(combination: Combination, name: str, config: RunConfig) -> str:
    """The folder's name of a run: `name`, or what `config` began as, and what tells the run from the others.

    Of a single run `name` alone. Empty where the seed at most varies: then `train` chooses the same name.
    """
    varied = combination.varied
    if not varied or (not name and list(varied) == [SEED]):
        return name
    keys = [option.rpartition(".")[2] for option in varied]
    parts = []
    for key, (option, text) in zip(keys, varied.items(), strict=True):
        if option != SEED:
            label = key if keys.count(key) == 1 else option.replace(".", "-")
            value = re.sub(r"[^\w.+=@-]+", "", text)
            parts.append(f"{label}-{value}" if value[:1].isalpha() else f"{label}{value}")
    if SEED in varied or not name:
        parts.append(f"s{config.seed}")
    return "-".join([name or config.origin, *parts])
