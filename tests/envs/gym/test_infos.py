"""What environments report besides observations and rewards: success, numbers in infos, `action_masks` and {rank}."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from envs.gym.infos import find_value, to_number
from envs.gym.make import check
from envs.gym.options import GymConfig, fill_rank
from envs.gym.play import play
from envs.gym.spaces import describe_actions, read_masks
from ppo_unified import run
from ppo_unified.cli.main import main
from ppo_unified.errors import ForeignCodeError, UsageError
from ppo_unified.training.evaluation import evaluate_run
from tests.envs.gym.test_vector import _close_adapters, make_adapter, make_config  # noqa: F401 (a fixture)

GOAL, DOORS, SIMULATOR = "tests.gym_info:Goal-v0", "tests.gym_info:Doors-v0", "tests.gym_info:Simulator-v0"


@pytest.mark.parametrize("vectorization", ["sync", "async"])
@pytest.mark.parametrize(("key", "ends"), [("is_success", "terminated"), ("is_success", "truncated"), ("success", "x")])
def test_success_is_the_share_of_finished_episodes(vectorization: str, key: str, ends: str) -> None:
    """In 8 steps, each environment finishes 3 episodes of 2 steps and a reset; one of them has an even seed."""
    kwargs = {"key": key, "ends": ends}
    adapter = make_adapter(GOAL, 2, 8, vectorization=vectorization, env_kwargs=kwargs)
    assert adapter.collect().metrics["episode/success"] == pytest.approx(3 / 6)
    adapter.score(5, 4, True)
    assert 0 <= adapter.evaluated["eval/success"] <= 1


def test_success_of_evaluation_counts_every_episode_once() -> None:
    """20 episodes in 16 environments. Only the last 4 episodes are not the first of their environment."""
    adapter = make_adapter(GOAL, 1)
    adapter.score(16, 0, True)
    assert adapter.evaluated == {"eval/success": 0.5}
    adapter.score(20, 0, True)
    assert adapter.evaluated["eval/success"] in (8 + np.arange(5)) / 20


def test_confirmed_score_and_success_come_from_the_same_episodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first evaluation does not count, and the two that confirm it count equally."""
    adapter, wins = make_adapter(GOAL, 1), iter([1.0, 0.25, 0.75])

    def score(episodes: int, seed: int, greedy: bool) -> list[float]:
        adapter.evaluated = {"eval/success": next(wins)} | ({"eval/info/cost": 3.0} if seed % 2 else {})
        return [float(seed)] * episodes

    monkeypatch.setattr(adapter, "score", score)
    config = make_config(GOAL, seed=0, eval={"threshold": 0.0, "episodes": 4})
    outcome = evaluate_run(adapter, config, True, "a")
    assert outcome.metrics == {"eval/score": 2.5, "eval/return": 2.5, "eval/success": 0.5, "eval/info/cost": 3.0}


def test_eval_reports_success_and_info_keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gym = {"info_keys": ["terms.energy"], "vectorization": "sync"}
    run(make_config(GOAL, total_steps=14, gym=gym), tmp_path, "a")
    words = ["eval", "a", "--episodes", "16", "--runs", str(tmp_path)]
    capsys.readouterr()
    assert main([*words, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["success"], document["info/terms.energy"]) == (0.5, 6.0)
    assert main(words) == 0
    assert "over 16 episodes, success 50% (greedy, " in capsys.readouterr().out


def test_success_is_not_logged_if_it_is_not_reported() -> None:
    adapter = make_adapter(GOAL, env_kwargs={"reports": False})
    assert set(adapter.collect().metrics) == {"episode/return", "episode/length"}
    adapter.score(2, 1, True)
    assert adapter.evaluated == {}


def test_vector_infos_without_masks_are_read_at_episode_ends() -> None:
    """Environment i finishes an episode in every i + 2 steps: 6, 4 and 3 episodes in 12 steps."""
    adapter = make_adapter("tests.gym_info:GoalVector-v0", 3, 12, info_keys=["terms.energy"])
    metrics = adapter.collect().metrics
    assert metrics["episode/success"] == pytest.approx(4 / 13)
    assert metrics["episode/info/terms.energy"] == pytest.approx((4 * 10 + 3 * 20) / 13)
    adapter.score(4, 1, True)
    assert adapter.evaluated == {"eval/success": 0.5, "eval/info/terms.energy": 15.0}


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_info_keys_keep_fractions_next_to_integers(vectorization: str) -> None:
    """In each of two episodes, one environment reports the integer 2 and the other one 0.5."""
    adapter = make_adapter(GOAL, 2, 5, vectorization=vectorization, info_keys=["cost", "terms.energy"])
    metrics = adapter.collect().metrics
    assert metrics["episode/info/cost"] == 1.25
    assert metrics["episode/info/terms.energy"] == 6.0
    adapter.score(2, 1, True)
    assert adapter.evaluated["eval/info/cost"] == 1.25


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_partial_success_is_not_rounded(vectorization: str) -> None:
    """In each of two episodes, the success is the integer 1 in one environment and 0.5 in the other one."""
    adapter = make_adapter(GOAL, 2, 5, vectorization=vectorization, env_kwargs={"partial": True})
    assert adapter.collect().metrics["episode/success"] == 0.75


def test_missing_info_key_is_reported_once(capsys: pytest.CaptureFixture[str]) -> None:
    adapter = make_adapter(GOAL, info_keys=["costs", "path", "cost"])
    metrics = adapter.collect().metrics
    adapter.collect()
    assert {name for name in metrics if "info" in name} == {"episode/info/cost"}
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert "under 'costs' at" in lines[0]
    assert "the info has cost, is_success, path, terms; did you mean 'cost'?" in lines[0]
    assert "under 'path' at the end of an episode: it is an array of shape [3]; remove 'path'" in lines[1]


def test_info_key_without_any_info_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    adapter = make_adapter("tests.gym_envs:Counter-v0", info_keys=["fuel"])
    adapter.collect()
    assert "reported no number under 'fuel' at the end of an episode" in capsys.readouterr().err


def test_resume_restores_infos_and_accepts_older_states() -> None:
    adapter, again, older = (make_adapter(GOAL, 2, 3, info_keys=["cost"]) for _ in range(3))
    adapter.collect()
    state = adapter.state_dict()
    again.load_state_dict(state)
    assert again.collect().metrics == adapter.collect().metrics
    del state["episodes"]["infos"]
    older.load_state_dict(state)
    assert "episode/success" in older.collect().metrics


def test_values_are_found_in_nested_and_masked_infos() -> None:
    info = {
        "a": {"b": np.array([1, 2]), "_b": np.array([True, False])},
        "_a": np.array([True, False]),
        "c.d": 3,
        "n": 4,
    }
    assert find_value(info, "a.b", 0) == 1
    assert find_value(info, "a.b", 1) is None
    assert find_value(info, "c.d", 1) == 3
    assert find_value(info, "n", 1) == 4  # a single number for all environments
    assert find_value(info, "a.x", 0) is find_value(info, "n.x", 0) is find_value(info, "x", 0) is None
    assert find_value({"global": np.array([5.0])}, "global", 3) is None
    numbers = [to_number(x) for x in (True, np.bool_(False), np.float32(0.5), [7], torch.tensor(2))]
    assert numbers == [1, 0, 0.5, 7, 2]
    others: list[Any] = ["1", None, float("nan"), float("inf"), [1, 2], [[1], [2, 3]], {}, 1j]
    assert [to_number(x) for x in others] == [None] * len(others)


@pytest.mark.parametrize("vectorization", ["sync", "async"])
@pytest.mark.parametrize("kind", ["array", "list", "parts", "discrete"])
def test_action_masks_method_is_respected(kind: str, vectorization: str) -> None:
    """The environment raises an error at a forbidden action, and if the method is called after an episode's end."""
    adapter = make_adapter(DOORS, 3, 40, vectorization=vectorization, env_kwargs={"kind": kind})
    rollout = adapter.collect()
    assert not isinstance(rollout.obs, torch.Tensor)
    mask = rollout.obs["action_mask"]
    assert (~mask[rollout.mask]).sum(-1).eq(1 if kind == "discrete" else 2).all()
    assert mask[~rollout.mask].all()
    assert adapter.score(20, 1, True) == [3.0] * 20
    assert adapter.score(20, 1, False) == [3.0] * 20


@pytest.mark.parametrize("name", ["Steering", "Forwards"])
def test_action_masks_method_is_used_only_if_it_applies(name: str) -> None:
    """The method of Steering belongs to discrete actions, and Forwards seems to have every method."""
    adapter = make_adapter(f"tests.gym_info:{name}-v0", vectorization="sync")
    check(adapter.config)
    assert isinstance(adapter.collect().obs, torch.Tensor)


def test_missing_action_mask_is_reported() -> None:
    adapter = make_adapter(DOORS, env_kwargs={"kind": "none"}, vectorization="sync")
    with pytest.raises(ForeignCodeError, match=r"step\(\) .*: action_masks\(\): expected an action mask, got None$"):
        adapter.collect()
    layout = describe_actions(spaces.Discrete(3), "X-v0", rescale=False)
    for mask, found in ((None, "None"), ([], "0"), (["a", "b", "c"], r"\['a', 'b', 'c'\]"), ([1, 1], "2")):
        with pytest.raises(ForeignCodeError, match=f"X-v0: environment 0: .* mask of length 3, got {found}$"):
            read_masks({"action_mask": [mask]}, 1, layout, env_id="X-v0")


def test_action_mask_in_info_takes_precedence_over_method() -> None:
    rollout = make_adapter(DOORS, env_kwargs={"info_mask": True}, vectorization="sync").collect()
    assert not isinstance(rollout.obs, torch.Tensor)


def test_action_masks_of_a_wrapper_are_used_in_play() -> None:
    adapter = make_adapter(DOORS, wrappers=["tests.gym_info:Passes"], vectorization="sync")
    assert adapter.reports_masks
    frames = list(play(adapter, 5, 0, False, ()))
    assert sum(frame.ended for frame in frames) == 5


def test_rank_is_replaced_in_nested_values() -> None:
    kwargs = {"port": "{rank}", "base": "{rank+5000}", "url": "sim-{rank}:{rank+70}", "deep": {"a": ["{rank}", 1]}}
    filled = {"port": 3, "base": 5003, "url": "sim-3:73", "deep": {"a": [3, 1]}}
    assert fill_rank(kwargs, 3) == filled
    assert fill_rank({"text": "{other} {rank", "{rank}": 1}, 3) == {"text": "{other} {rank", "{rank}": 1}


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_environments_at_the_same_time_have_different_numbers(vectorization: str, tmp_path: Path) -> None:
    """Training has the numbers 0 to 2, evaluations have 3 to 18, and all other environments have 19."""
    log = tmp_path / "ports"
    kwargs = {"port": "{rank}", "log": str(log)}
    config = make_config(SIMULATOR, 3, gym={"vectorization": vectorization, "env_kwargs": kwargs})
    check(config)
    adapter = make_adapter(SIMULATOR, 3, vectorization=vectorization, env_kwargs=kwargs)
    assert adapter.raw.ravel().tolist() == [0, 1, 2]
    created = log.read_text().split()
    assert sorted(set(created)) == ["0", "1", "19", "2"]
    assert [created.count(str(number)) for number in range(3)] == [1, 1, 1]
    log.unlink()
    adapter.score(20, 1, True)
    assert log.read_text().split() == [str(number) for number in range(3, 19)]
    log.unlink()
    list(play(adapter, 1, 0, True, ()))
    assert set(log.read_text().split()) == {"19"}


def test_loaded_policies_use_other_numbers_than_training() -> None:
    config = make_config(SIMULATOR, 3, gym={"env_kwargs": {"port": "{rank+5000}", "server": ["{rank}"]}})
    assert config.beside_training().gym.env_kwargs == {"port": "{rank+5020}", "server": ["{rank+20}"]}
    same = make_config(SIMULATOR, 3, gym={"env_kwargs": {"port": 5}})
    assert same.beside_training() is same


def test_rank_needs_separate_environments() -> None:
    """A vector version cannot use {rank}: "auto" does not use it, and "vector_entry_point" is rejected."""
    kwargs = {"port": "{rank}"}
    adapter = make_adapter("tests.gym_info:Simulators-v0", 2, env_kwargs=kwargs)
    assert adapter.raw.ravel().tolist() == [0, 1]
    with pytest.raises(ValueError, match=r"gym.env_kwargs: \{rank\} requires gym.vectorization = 'sync' or 'async'"):
        make_config("tests.gym_info:Simulators-v0", gym={"env_kwargs": kwargs, "vectorization": "vector_entry_point"})
    only: GymConfig = make_config("tests.gym_info:GoalVector-v0", gym={"env_kwargs": kwargs})
    with pytest.raises(UsageError, match=r"gym.env_kwargs: \{rank\} cannot be used, because .* only a vector version"):
        check(only)
