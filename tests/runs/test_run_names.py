"""Default names of runs: the same for the same options, distinct for runs of one grid, and valid for any value."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from ppo_unified import load_preset
from ppo_unified.cli.flags import configure
from ppo_unified.config.grid import expand
from ppo_unified.config.presets import load_target, naming_base, reload_target
from ppo_unified.config.schema import typed_options
from ppo_unified.runs.folder import check_name
from ppo_unified.runs.preparation import LONGEST_LABELS, run_name


def names(target: str, typed: dict[str, str], name: str = "") -> list[str]:
    base = load_target(target)
    runs = expand(typed, typed_options(type(base)))
    return [run_name(configure(base, one.typed), base, one.varied, name) for one in runs]


@pytest.mark.parametrize(
    ("typed", "label"),
    [
        ({}, ""),
        ({"optim.lr": "3e-3"}, "-lr3e-3"),
        ({"optim.lr": "0.003"}, "-lr3e-3"),
        ({"optim.lr": "00.0010"}, "-lr1e-3"),
        ({"optim.lr": "2.5E-4"}, "-lr2.5e-4"),
        ({"ppo.clip": "1e-1", "gym.num_steps": "1000"}, "-clip0.1-num_steps1e3"),
        ({"ppo.gamma": "-0.0", "gym.num_steps": "2048"}, "-gamma0-num_steps2048"),
        ({"optim.lr": "2e-3"}, ""),  # the preset's value
        ({"optim.anneal": "false"}, "-no-anneal"),
        ({"gym.normalize_obs": "true"}, "-normalize_obs"),
        ({"policy.hidden": "[32, 32]"}, "-hidden32x32"),
        ({"policy.hidden": ""}, "-hidden-none"),
        ({"ppo.objective": "ratio"}, "-objective-ratio"),
        ({"eval.threshold": "None", "stop_when_solved": "false"}, ""),
        ({"policy.log_std_init": "-1e-1"}, "-log_std_init-0.1"),
        ({"gym.env_kwargs": '{"sutton_barto_reward": true}'}, "-env_kwargs-sutton_barto_reward-true"),
        ({"gym.wrappers": "my.wrappers:Noise"}, "-wrappers-my.wrappers-Noise"),
        ({"optim.lr": "1e-3", "ppo.clip": "0.1"}, "-clip0.1-lr1e-3"),  # in the schema's order, however they are typed
        ({"ppo.clip": "0.1", "optim.lr": "1e-3"}, "-clip0.1-lr1e-3"),
        ({"optim.lr": "1e-3", "seed": "7"}, "-lr1e-3"),
        ({"total_steps": "5e4", "device": "cpu", "threads": "2", "log.every": "2", "checkpoint.keep": "3"}, ""),
    ],
)
def test_name_lists_the_changed_options(typed: dict[str, str], label: str) -> None:
    (name,) = names("cartpole", typed)
    assert name == f"cartpole{label}-s{typed.get('seed', 1)}"


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("data/my prompts.jsonl", "prompts-my-prompts"),
        ("/abs/folder/v1.2.json", "prompts-v1.2"),
        ("x" * 80 + ".txt", "prompts-" + "x" * 24),
        ("../..", "prompts-none"),
        ("a\nb\x1b[1m", "prompts-a-b-1m"),
        ("学習.jsonl", "prompts-学習"),
    ],
)
def test_paths_and_texts_are_shortened_to_safe_names(text: str, label: str) -> None:
    (name,) = names("arithmetic", {"llm.prompts": text})
    assert name == f"arithmetic-{label}-s1"
    check_name(name)


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("my.rewards:score", "reward-my.rewards-score"),
        ("numeric regex:a", "reward-numeric-regex-a"),
        ("rm", "reward-rm"),
    ],
)
def test_rewards_are_named_like_texts(text: str, label: str) -> None:
    (name,) = names("arithmetic", {"llm.reward": text})
    assert name == f"arithmetic-{label}-s1"


@pytest.mark.parametrize(
    ("typed", "name", "expected"),
    [
        ({"seed": "3"}, "pole", ["pole"]),
        ({"seed": "1-2"}, "", ["cartpole-s1", "cartpole-s2"]),
        ({"seed": "1-2"}, "pole", ["pole-s1", "pole-s2"]),
        ({"seed": "1-2", "ppo.clip": "0.1"}, "", ["cartpole-clip0.1-s1", "cartpole-clip0.1-s2"]),
        ({"seed": "1-2", "ppo.clip": "0.1"}, "pole", ["pole-s1", "pole-s2"]),
        ({"optim.lr": "3e-3,2e-3"}, "", ["cartpole-lr3e-3-s1", "cartpole-lr2e-3-s1"]),  # 2e-3 is the preset's value
        ({"optim.lr": "3e-3,1e-3"}, "pole", ["pole-lr3e-3", "pole-lr1e-3"]),
        ({"total_steps": "1e3,2e3"}, "", ["cartpole-total_steps1e3-s1", "cartpole-total_steps2e3-s1"]),
        ({"ppo.clip": "0.1,0.3", "seed": "7,1e1"}, "", [f"cartpole-clip{c}-s{s}" for c in (0.1, 0.3) for s in (7, 10)]),
        ({"gym.normalize_obs": "true,false"}, "", ["cartpole-normalize_obs-s1", "cartpole-no-normalize_obs-s1"]),
        ({"log.every": "1,2", "eval.every_steps": "3"}, "x", ["x-every1", "x-every2"]),
        (
            {"log.every": "1,2", "eval.every_steps": "3,4"},
            "x",
            ["x-every_steps3-every1", "x-every_steps4-every1", "x-every_steps3-every2", "x-every_steps4-every2"],
        ),
    ],
)
def test_sweep_names_contain_the_varied_options(typed: dict[str, str], name: str, expected: list[str]) -> None:
    assert names("cartpole", typed, name) == expected


MANY = {
    "gym.num_envs": "8",
    "gym.num_steps": "64",
    "policy.hidden": "32 32",
    "policy.activation": "relu",
    "ppo.epochs": "4",
    "ppo.gamma": "0.9",
    "ppo.lam": "0.8",
    "ppo.clip": "0.1,0.3",
    "optim.lr": "1e-3,3e-3",
}


def test_long_names_are_shortened_and_stay_distinct() -> None:
    found = names("cartpole", MANY)
    assert len(set(found)) == 4
    for name in found:
        assert len(name) <= LONGEST_LABELS + 15
        assert re.fullmatch(r"cartpole-epochs4-gamma0.9-.*-\+\d+-[0-9a-f]{6}-s1", name), name
        check_name(name)
    assert names("cartpole", MANY) == found


def test_long_target_name_leaves_room_for_the_options() -> None:
    base = load_target("cartpole").model_copy(update={"preset": "x" * 97})
    name = run_name(configure(base, {"optim.lr": "1e-3"}), base)
    check_name(name)
    assert name.endswith("-s1")
    assert name != run_name(configure(base, {"optim.lr": "3e-3"}), base)


@pytest.mark.parametrize(
    ("target", "changes", "expected"),
    [
        ("cartpole", {"seed": 3, "optim": {"lr": 3e-3}, "total_steps": 1000}, "cartpole-lr3e-3-s3"),
        ("CartPole-v1", {"ppo": {"clip": 0.1}}, "CartPole-v1-clip0.1-s1"),
        ("Acrobot", {"ppo": {"clip": 0.1}}, "Acrobot-clip0.1-s1"),  # selects Acrobot-v1
        ("my_module:My-v0", {}, "My-v0-s1"),
        ("my_module:My-v0", {"ppo": {"clip": 0.1}}, "My-v0-clip0.1-s1"),
        ("my_module:MyEnv", {"ppo": {"clip": 0.1}}, "MyEnv-clip0.1-s1"),
        ("dir/my.py:My-v0", {"ppo": {"clip": 0.1}}, "My-v0-clip0.1-s1"),
        ("dir/my.py", {"ppo": {"clip": 0.1}}, "my-clip0.1-s1"),
        ("ALE/Pong-v5", {"ppo": {"clip": 0.1}}, "ALE-Pong-v5-clip0.1-s1"),
        ("ale_py:ALE/Pong-v5", {}, "ALE-Pong-v5-s1"),
        ("llm", {"llm": {"model": "tiny"}}, "llm-model-tiny-s1"),
        ("sentiment", {"recipe": "trl-early", "ppo": {"clip": 0.1}}, "sentiment-trl-early-clip0.1-s1"),
        ("sentiment", {"recipe": "trl-early"}, "sentiment-trl-early-s1"),
    ],
)
def test_python_configuration_names_its_changes(target: str, changes: dict[str, Any], expected: str) -> None:
    config = load_preset(target, **changes)
    assert run_name(config, reload_target(config)) == expected


@pytest.mark.parametrize(
    ("source", "name", "expected"),
    [
        ("cp", "", "cartpole-init-cp-clip0.1-s1"),
        ("my run @2", "", "cartpole-init-my-run-@2-clip0.1-s1"),
        ("x" * 100, "", f"cartpole-init-{'x' * 24}-clip0.1-s1"),
        ("cp", "pole", "pole"),
    ],
)
def test_name_contains_the_source(source: str, name: str, expected: str) -> None:
    base = load_target("cartpole")
    assert run_name(configure(base, {"ppo.clip": "0.1"}), base, name=name, source=source) == expected
    assert run_name(base, base, source="cp") == "cartpole-init-cp-s1"
    check_name(expected)


@pytest.mark.parametrize("preset", ["", "cartpole", "CartPole-v1"])
def test_configuration_from_a_file_has_a_plain_name(preset: str, tmp_path: Path) -> None:
    """In Python, its changes cannot be distinguished from the file's options."""
    path = tmp_path / "mine.toml"
    path.write_text(load_target("cartpole").to_toml().replace('"cartpole"', f'"{preset}"'))
    config = load_preset(str(path), ppo={"clip": 0.1})
    assert run_name(config, reload_target(config)) == "mine-s1"


def test_names_of_a_file_list_only_options_typed_on_top(tmp_path: Path) -> None:
    base = load_preset("cartpole", optim={"lr": 3e-3})
    (tmp_path / "mine.toml").write_text(base.to_toml())
    (tmp_path / "config.toml").write_text(base.to_toml())  # as in a run folder
    expected = {"mine.toml": ["mine-s1", "mine-clip0.1-s1"]}
    expected["config.toml"] = ["cartpole-lr3e-3-s1", "cartpole-clip0.1-lr3e-3-s1"]
    for file, wanted in expected.items():
        target = str(tmp_path / file)
        config = load_target(target)
        base = naming_base(target, config)
        assert [run_name(configure(config, typed), base) for typed in ({}, {"ppo.clip": "0.1"})] == wanted


def test_equal_tables_have_equal_names() -> None:
    texts = '{"a": 1, "b": 0.5}', '{"b":5e-1,"a":1}'
    assert names("cartpole", {"gym.env_kwargs": texts[0]}) == names("cartpole", {"gym.env_kwargs": texts[1]})
