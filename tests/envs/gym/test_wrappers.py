"""Wrappers with arguments: parsing, checks, and the values that the policy sees."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from envs.gym.eval import MAX_STEPS, max_episode_length
from envs.gym.make import make_env
from envs.gym.options import Gym, GymConfig
from envs.gym.vector import GymAdapter
from envs.gym.wrappers import REJECTED, REJECTED_WITH_SUBCLASSES, load_wrappers, parse_wrapper
from ppo_unified.config.schema import validate
from ppo_unified.errors import UsageError, closest_match

COUNTER, WEIGHTED = "tests.gym_envs:Counter-v0", "tests.gym_envs:Weighted"


@pytest.fixture
def _keep_modules(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        del sys.modules[name]


def make(*wrappers: str, env_id: str = COUNTER, **options: Any) -> gym.Env[Any, Any]:
    return make_env(Gym(env_id=env_id, wrappers=list(wrappers), **options))


CALLS: dict[str, tuple[str, dict[str, Any]]] = {
    "FlattenObservation": ("FlattenObservation", {}),
    "FlattenObservation()": ("FlattenObservation", {}),
    "TimeLimit(max_episode_steps=200)": ("TimeLimit", {"max_episode_steps": 200}),
    "RescaleObservation(min_obs=-1.0, max_obs=1)": ("RescaleObservation", {"min_obs": -1.0, "max_obs": 1}),
    "minigrid.wrappers:ImgObsWrapper": ("minigrid.wrappers:ImgObsWrapper", {}),
    "m.w:LinearReward(weight=[0.5, 0.5])": ("m.w:LinearReward", {"weight": [0.5, 0.5]}),
    "FilterObservation(filter_keys=['a, b', \"(\"])": ("FilterObservation", {"filter_keys": ["a, b", "("]}),
    "Own(a={'x:y': (1, None)}, b=True,)": ("Own", {"a": {"x:y": (1, None)}, "b": True}),
    "my dir (1)/own.py:Own(a=1)": ("my dir (1)/own.py:Own", {"a": 1}),
    "Own(a='\\d')": ("Own", {"a": "\\d"}),
}


@pytest.mark.parametrize("text", CALLS)
def test_call_is_parsed_into_name_and_arguments(text: str) -> None:
    assert parse_wrapper(text) == CALLS[text]


NAMED = "; name each argument once, for example FrameStackObservation(stack_size=4)"
SYNTAX = {
    "Frame(4": "expected Name or Name(key=value, ...), got 'Frame(4'; write for example FrameStackObservation(stack_",
    "": "got ''; write",
    "3": "got '3'; write",
    "two words": "got 'two words'; write",
    "A(x=1)(y=2)": "got 'A(x=1)(y=2)'; write",
    "A(x=1) + B(x=2)": "got 'A(x=1) + B(x=2)'; write",
    "A(x=1)]": "got 'A(x=1)]'; write",
    "A(x=\0)": "write for example",
    f"A(x={'(' * 900})": "write for example",
    f"A(x={'-' * 900}1)": "A: x: expected a Python literal",
    f"A(x={'1' * 1001})": "write for example",
    "TimeLimit(200)": NAMED,
    "TimeLimit(*[200])": NAMED,
    "TimeLimit(**{'max_episode_steps': 200})": NAMED,
    "TimeLimit(max_episode_steps=1, max_episode_steps=2)": NAMED,
    "GrayscaleObservation(keep_dim=true)": "GrayscaleObservation: keep_dim: expected a Python literal, such as 4",
    "A(x=__import__('os').getcwd())": "got \"__import__('os').getcwd()\"",
    "A(x=np.inf)": "got 'np.inf'",
    "A(x={[]: 1})": "A: x: expected a Python literal",
}


@pytest.mark.parametrize("text", SYNTAX)
def test_malformed_wrapper_is_rejected_in_the_schema(text: str) -> None:
    with pytest.raises(UsageError, match=r"^x\.toml: gym\.wrappers: ") as caught:
        validate(GymConfig, {"kind": "gym", "gym": {"wrappers": [text]}}, "x.toml")
    assert SYNTAX[text] in str(caught.value)
    assert "\n" not in str(caught.value)


MISTAKES = {
    "TimeLimit(steps=200)": "gym.wrappers: TimeLimit has no parameter 'steps'; it accepts max_episode_steps",
    "TimeLimit(env=1)": "gym.wrappers: TimeLimit has no parameter 'env'; it accepts max_episode_steps",
    "FlattenObservation(x=1)": "gym.wrappers: FlattenObservation has no parameter 'x'; it accepts no arguments",
    "FrameStackObservation": "gym.wrappers: FrameStackObservation requires the parameter 'stack_size'; write "
    "FrameStackObservation(stack_size=...)",
    "RescaleObservation(min_obs=0)": "gym.wrappers: RescaleObservation requires the parameter 'max_obs'; write "
    "RescaleObservation(max_obs=...)",
    "TimeLimit(max_episode_steps=0)": f"gym.wrappers: cannot apply TimeLimit(max_episode_steps=0) to {COUNTER} (ValueE",
    "ReshapeObservation(shape=[7])": f"cannot apply ReshapeObservation(shape=[7]) to {COUNTER} (ValueError: Reshape",
    "tests.gym_envs:Weighted(weight={'a': 1}, x=2)": "Weighted has no parameter 'x'; it accepts weight",
    "Flatten": "gym.wrappers: no wrapper 'Flatten' in gymnasium.wrappers; for your own wrapper, use module:Class",
    "FrameStack": "gym.wrappers: no wrapper 'FrameStack' in gymnasium.wrappers; did you mean 'FrameStackObservation'?",
    "vector": "gym.wrappers: no wrapper 'vector' in gymnasium.wrappers; for your own wrapper, use module:Class",
    "tests.gym_envs:Wieghted": "gym.wrappers: no wrapper 'Wieghted' in tests.gym_envs; did you mean 'Weighted'?",
    "gymnasium:Wrapper": "gym.wrappers: gymnasium:Wrapper cannot be used: it is a base class; write a subclass of it",
    "gymnasium.wrappers.vector:ClipReward": "it wraps vector environments; use a wrapper for single environments",
    "NormalizeObservation": "evaluations and exports do not receive its statistics; use gym.normalize_obs = true",
    "NormalizeReward(gamma=0.9)": "use gym.normalize_reward = true",
    "gymnasium.wrappers:NormalizeObservation": "use gym.normalize_obs = true",
    "tests.gym_envs:OwnNormalization": "use gym.normalize_obs = true",
    "TransformReward": "TransformReward cannot be used: it needs a function as an argument; write a subclass of it",
    "builtins:id": f"cannot apply builtins:id to {COUNTER}: expected a gymnasium.Env as the result, got int",
    "builtins:dict": f"gym.wrappers: cannot apply builtins:dict to {COUNTER} (",
    "builtins:int(base=2)": f"gym.wrappers: cannot apply builtins:int(base=2) to {COUNTER} (TypeError: ",
    "functools:partial": f"gym.wrappers: cannot apply functools:partial to {COUNTER} (TypeError: ",
}


@pytest.mark.parametrize("text", MISTAKES)
def test_wrong_wrapper_names_the_option_and_the_fix(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        make(text)
    assert MISTAKES[text] in str(caught.value)
    assert "env_kwargs" not in str(caught.value)
    assert "\n" not in str(caught.value)


USABLE = {
    "AddRenderObservation", "AddWhiteNoise", "AtariPreprocessing", "ClipAction", "ClipReward", "DelayObservation",
    "DiscretizeAction", "DiscretizeObservation", "DtypeObservation", "FilterObservation", "FlattenObservation",
    "FrameStackObservation", "GrayscaleObservation", "MaxAndSkipObservation", "ObstructView", "OrderEnforcing",
    "PassiveEnvChecker", "RecordEpisodeStatistics", "RepeatAction", "RescaleAction", "RescaleObservation",
    "ReshapeObservation", "ResizeObservation", "StickyAction", "TimeAwareObservation", "TimeLimit",
}  # fmt: skip
NEED_OTHER_PACKAGES = {"ArrayConversion", "JaxToNumpy", "JaxToTorch", "NumpyToTorch", "vector"}


@pytest.mark.parametrize("name", gym.wrappers.__all__)
def test_each_library_wrapper_is_usable_or_rejected(name: str) -> None:
    """If this fails with a new version of Gymnasium, decide whether the new wrapper works."""
    reason = ""
    try:
        load_wrappers([name])
    except UsageError as error:
        reason = str(error)
    if name in NEED_OTHER_PACKAGES:
        return
    assert (name in USABLE) != (name in REJECTED | REJECTED_WITH_SUBCLASSES)
    assert ("cannot be used" in reason) == (name not in USABLE), reason


@pytest.mark.parametrize("name", gym.wrappers.__all__)
def test_suggested_wrapper_is_usable(name: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_wrappers([f"{name[:-2]}{name[-1]}x"])
    found = re.search(r"did you mean '(\w+)'", str(caught.value))
    assert found is None or found[1] in USABLE
    assert bool(found) == bool(closest_match(f"{name[:-2]}{name[-1]}x", USABLE))


def test_multiline_error_of_a_wrapper_is_one_line() -> None:
    with pytest.raises(UsageError, match=r"All the `filter_keys` must be .* Missing keys: \['c'\]") as caught:
        make("FilterObservation(filter_keys=['c'])", env_id="tests.gym_envs:Spaces", env_kwargs={"obs": "nested"})
    assert "\n" not in str(caught.value)


def test_wrappers_change_observations_rewards_and_length() -> None:
    env = make(
        "TimeLimit(max_episode_steps=4)",
        "RescaleObservation(min_obs=0, max_obs=1001)",
        "FrameStackObservation(stack_size=2)",
        "ClipReward(min_reward=-1, max_reward=0.25)",
        env_kwargs={"length": 9},
    )
    obs, _ = env.reset(seed=0)
    np.testing.assert_allclose(obs, [[1], [1]])
    results = [env.step(0) for _ in range(4)]
    np.testing.assert_allclose(results[-1][0], [[4], [5]])
    assert [float(result[1]) for result in results] == [0.25] * 4
    assert [result[3] for result in results] == [False, False, False, True]


@pytest.mark.parametrize("weight", ["[0.5, 2.0]", "(0.5, 2.0)"])
def test_list_becomes_an_array_if_the_wrapper_needs_one(weight: str) -> None:
    env: Any = make(f"{WEIGHTED}(weight={weight})")
    assert isinstance(env.weight, np.ndarray) == (weight[0] == "[")
    env.reset(seed=0)
    assert env.step(0)[1] == 0.5 + 2.0


def test_list_becomes_a_tuple_if_the_wrapper_needs_one() -> None:
    env = make("ReshapeObservation(shape=[2, 2])", "FlattenObservation", env_id="CartPole-v1")
    assert env.observation_space.shape == (4,)


def test_frame_stack_enlarges_the_policy_input() -> None:
    table = {
        "env_id": "CartPole-v1",
        "num_envs": 2,
        "num_steps": 8,
        "wrappers": ["FrameStackObservation(stack_size=3)"],
    }
    config = GymConfig.model_validate({"gym": table, "ppo": {"minibatches": 1}})
    adapter = GymAdapter(config, torch.device("cpu"))
    assert adapter.observations.size == 12
    assert adapter.collect().obs.shape == (2, 8, 12)  # type: ignore[union-attr]
    adapter.close()


@pytest.mark.usefixtures("_keep_modules")
def test_wrapper_in_a_file_is_applied(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    source = "import gymnasium as gym\nclass Plus(gym.RewardWrapper):\n"
    source += "    def __init__(self, env, by=1):\n        super().__init__(env)\n        self.by = by\n"
    source += "    def reward(self, r):\n        return r + self.by\n"
    (tmp_path / "own wrapper.py").write_text(source, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    env = make("own wrapper.py:Plus(by=41)")
    env.reset(seed=0)
    assert env.step(0)[1] == 42


def test_time_limit_wrapper_replaces_the_evaluation_limit() -> None:
    unlimited, limited = make_env(Gym(env_id=COUNTER)), make("TimeLimit(max_episode_steps=20000)")
    assert max_episode_length(unlimited) == MAX_STEPS
    assert max_episode_length(limited) > MAX_STEPS
