"""The check of an environment before a run is created: the rules of Gymnasium that it must follow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from envs.gym import eval as gym_eval
from envs.gym.make import check
from ppo_unified import run
from ppo_unified.errors import UsageError
from tests.envs.gym.test_vector import make_config

FIX = "; correct the environment's observation or observation_space"
SHAPE = "type float32 as in the observation space, got ndarray of shape"
RULES = {  # rule -> message without the environment's id
    "old reset": "reset(): expected (observation, info), got ndarray; return the info as a dict",
    "old step": "step(): expected (observation, reward, terminated, truncated, info), got (ndarray, float, bool, "
    "dict); replace done by terminated and truncated, and return the info as a dict",
    "vector reward": "step(): reward: expected one number, got ndarray of shape [2] and type float64; add a wrapper "
    "(gym.wrappers) that combines the rewards",
    "late mask": "step(): returned an action mask, but reset() did not; return it from both",
    "mask length": "environment 0: expected an action mask of length 3, got 2",
    "discrete range": f"reset(): observation: expected integers from 1 to 3, got 0{FIX}",
    "multi range": f"reset(): observation: expected integers from 0 to 2, got 3{FIX}",
    "dict": "reset(): observation: missing 'b', which the observation space contains; return it",
    "shape": f"reset(): observation: expected shape [2] and {SHAPE} [3] and type float32{FIX}",
    "step shape": f"step(): observation: expected shape [2] and {SHAPE} [5] and type float32{FIX}",
    "integers": "reset(): observation: expected shape [2] and type uint8 as in the observation space, got ndarray of "
    f"shape [2] and type float64{FIX}",
    "object": "reset(): observation: expected shape [2] and type float32 as in the observation space, got NoneType of "
    f"shape [] and type object{FIX}",
}


def reject(env_id: str, **env_kwargs: Any) -> str:
    """Return the message of the check, without the environment's id."""
    with pytest.raises(UsageError) as caught:
        check(make_config(f"tests.faulty_envs:{env_id}", gym={"env_kwargs": env_kwargs}))
    assert "\n" not in str(caught.value)
    return str(caught.value).removeprefix(f"tests.faulty_envs:{env_id}: ")


@pytest.mark.parametrize("rule", RULES)
def test_broken_rule_is_named_in_one_line(rule: str) -> None:
    assert reject("BreaksRule-v0", rule=rule) == RULES[rule]


@pytest.mark.parametrize("rule", ["old reset", "old step"])
def test_rule_is_named_below_a_time_limit(rule: str) -> None:
    """The time limit and other wrappers raise errors such as "not enough values to unpack"."""
    assert reject("BreaksRule-v0", rule=rule, max_episode_steps=9) == RULES[rule]


def test_reset_must_accept_a_seed() -> None:
    expected = "reset(): expected the parameters seed and options, got no seed and no options; declare "
    assert reject("OldSeed-v0") == f"{expected}reset(self, *, seed=None, options=None)"


@pytest.mark.parametrize("rule", ["", "slightly outside", "nested integers"])
def test_check_accepts_bounds_and_integer_types(rule: str) -> None:
    check(make_config("tests.faulty_envs:BreaksRule-v0", gym={"env_kwargs": {"rule": rule}}))


def test_check_accepts_an_error_in_close() -> None:
    check(make_config("tests.faulty_envs:Faulty-v0", gym={"env_kwargs": {"place": "close"}}))


@pytest.mark.parametrize("fault", ["raise", "exit"])
@pytest.mark.parametrize("place", ["constructor", "reset", "step"])
def test_check_names_call_and_cause(place: str, fault: str) -> None:
    cause = "ZeroDivisionError: the world broke, in faulty_envs.py, line " if fault == "raise" else "SystemExit: 3"
    message = reject("Faulty-v0", place=place, fault=fault)
    assert ("cannot create the environment" if place == "constructor" else f"{place}(): {cause}") in message
    assert cause in message


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("shape", f"reset(): observation: expected shape [2, 2] and {SHAPE} [2, 3] and type float32{FIX}"),
        (
            "vector reward",
            "step(): reward: expected an array of 2 numbers, got ndarray of shape [2, 2] and type float64",
        ),
        ("raise", "step(): ZeroDivisionError: the worlds broke, in faulty_envs.py, line"),
    ],
)
def test_vector_environment_is_checked_too(rule: str, message: str) -> None:
    assert reject("VectorBreaksRule-v0", rule=rule).startswith(f"the vector version: {message}")


@pytest.mark.parametrize(
    ("name", "rule", "message"),
    [
        ("BreaksRule", "shape in vector", "reset(): observation: expected shape [2, 2] and "),
        ("BreaksRule", "raise", "step(): ZeroDivisionError: the worlds broke, in faulty_envs.py, line "),
        ("BreaksRule", "masks", "returns no action masks, unlike a single environment"),
        ("HasMasks", "", "returns no action masks, unlike a single environment"),
    ],
)
def test_auto_does_not_use_a_broken_vector_version(
    name: str,
    rule: str,
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gym_eval, "MAX_STEPS", 5)
    env_id = f"tests.faulty_envs:{name}TwoForms-v0"
    gym = {"env_kwargs": {"rule": rule}}
    assert run(make_config(env_id, gym=gym, total_steps=14, eval={"episodes": 1}), tmp_path).state == "finished"
    lines = [line for line in capsys.readouterr().err.splitlines() if "vector version" in line]
    assert len(lines) == 1
    assert message in lines[0]
    assert lines[0].endswith("; single environments are used instead")
    with pytest.raises(UsageError, match=r"the vector version.*"):
        check(make_config(env_id, gym=gym | {"vectorization": "vector_entry_point"}))


def test_broken_rule_leaves_no_run_folder(tmp_path: Path) -> None:
    config = make_config("tests.faulty_envs:BreaksRule-v0", gym={"env_kwargs": {"rule": "old step"}}, total_steps=20)
    with pytest.raises(UsageError, match="BreaksRule-v0: step"):
        run(config, tmp_path / "runs")
    assert not list((tmp_path / "runs").glob("*"))


@pytest.mark.parametrize(
    ("options", "fix"),
    [({"vectorization": "sync"}, "")]
    + [({name: ["FlattenObservation"]}, f" and remove gym.{name}") for name in ("wrappers", "training_wrappers")],
)
def test_vector_environment_cannot_be_used_as_a_single_one(options: dict[str, Any], fix: str) -> None:
    message = "VectorBreaksRule-v0: this environment only has a vector version; set gym.vectorization to"
    with pytest.raises(UsageError, match=f"{message} vector_entry_point{fix}$"):
        check(make_config("tests.faulty_envs:VectorBreaksRule-v0", gym=options))
