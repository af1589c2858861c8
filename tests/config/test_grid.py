"""Lists of values for options: parsing, order of the runs, and errors."""

from __future__ import annotations

import pytest

from envs.gym.options import GymConfig
from ppo_unified.config.grid import MAX_RUNS, expand, parse_seeds
from ppo_unified.config.schema import typed_options
from ppo_unified.errors import UsageError

OPTIONS = typed_options(GymConfig)


@pytest.mark.parametrize(
    ("text", "seeds"), [("3", [3]), ("1-5", [1, 2, 3, 4, 5]), ("1,2,7", [1, 2, 7]), (" 7-9 , 8, 1 ", [7, 8, 9, 1])]
)
def test_seed_lists_are_parsed(text: str, seeds: list[int]) -> None:
    assert parse_seeds(text) == seeds
    assert [int(one.typed["seed"]) for one in expand({"seed": text}, OPTIONS)] == seeds


@pytest.mark.parametrize("text", ["", "a", "1,", "5-1", "1--2", "1-1000000", "1.5,2", "-1,2"])
def test_invalid_seed_lists_are_rejected(text: str) -> None:
    with pytest.raises(UsageError):
        parse_seeds(text)


def test_each_combination_is_a_run_and_seed_varies_fastest() -> None:
    runs = expand({"seed": "1,2", "optim.lr": "1e-3,3e-3", "ppo.clip": "0.1"}, OPTIONS)
    assert [tuple(one.varied.values()) for one in runs] == [("1e-3", "1"), ("1e-3", "2"), ("3e-3", "1"), ("3e-3", "2")]
    assert all(one.typed["ppo.clip"] == "0.1" for one in runs)


@pytest.mark.parametrize(
    ("option", "text", "values"),
    [
        ("optim.lr", "1e-3, 0.001, 2e-3", ["1e-3", "2e-3"]),  # equal numbers are one run
        ("ppo.objective", "clip,ratio", ["clip", "ratio"]),
        ("gym.normalize_obs", "true,false", ["true", "false"]),
        ("eval.threshold", "None,400", ["None", "400"]),
        ("policy.hidden", "64,64", ["64,64"]),
        ("gym.env_id", "A-v1,B-v1", ["A-v1,B-v1"]),
        ("gym.env_kwargs", '{"a": 1, "b": 2}', ['{"a": 1, "b": 2}']),
        ("total_steps", "1-2", ["1-2"]),  # ranges are valid only for seeds
    ],
)
def test_numbers_and_choices_can_be_listed(option: str, text: str, values: list[str]) -> None:
    assert [one.typed[option] for one in expand({option: text}, OPTIONS)] == values


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ({"optim.lr": "1e-3,"}, "optim.lr: expected a value before and after each comma, got '1e-3,'"),
        ({"total_steps": "1,000,000"}, "to give one number, write 1000000 without commas"),
        ({"seed": "1-40", "ppo.clip": "0.1,0.2"}, f"expected at most {MAX_RUNS} runs at once, got 80"),
        ({"seed": "9-1"}, "expected one seed, or several such as 1-5 or 1,2,7, got '9-1'"),
    ],
)
def test_invalid_lists_are_rejected(typed: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        expand(typed, OPTIONS)
