"""Observation and action spaces: vector versions that differ, rescaled actions, nested spaces, and large numbers."""

from __future__ import annotations

import contextlib
import io
import json
import runpy
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from envs.gym import eval as gym_eval
from envs.gym import export as gym_export
from envs.gym import play as gym_play
from envs.gym.explain import explain
from envs.gym.make import check
from envs.gym.options import GymConfig
from envs.gym.spaces import describe_actions, to_env_actions
from envs.gym.vector import GymAdapter
from ppo_unified import load_preset, run
from ppo_unified.cli.main import main
from ppo_unified.config import presets
from ppo_unified.config.schema import Optim
from ppo_unified.engine.rollout import Rollout
from ppo_unified.errors import ForeignCodeError, UsageError
from ppo_unified.training.health import Health
from tests.space_envs import Levers
from tests.toys import run_engine

OPENED: list[GymAdapter] = []  # closed after each test


@pytest.fixture(autouse=True)
def _close_adapters() -> Iterator[None]:
    yield
    while OPENED:
        OPENED.pop().close()


def make_config(name: str, policy: dict[str, Any] | None = None, **gym: Any) -> GymConfig:
    """Return a small configuration for an environment of tests/space_envs.py."""
    table = {"env_id": f"tests.space_envs:{name}-v0", "num_envs": 4, "num_steps": 16} | gym
    options = {"policy": {"hidden": [8]} | (policy or {}), "ppo": {"minibatches": 1}}
    limits = {"total_steps": 64, "eval": {"episodes": 2}, "log": {"samples_every": 0}}
    return GymConfig.model_validate({"gym": table, **options, **limits})


def make_adapter(name: str, policy: dict[str, Any] | None = None, **gym: Any) -> GymAdapter:
    OPENED.append(GymAdapter(make_config(name, policy, **gym), torch.device("cpu")))
    return OPENED[-1]


def obs_of(rollout: Rollout) -> torch.Tensor:
    return rollout.obs if isinstance(rollout.obs, torch.Tensor) else rollout.obs["obs"]


# The environment's own vector version


@pytest.mark.parametrize(
    ("name", "kwargs", "reason"),
    [
        ("TwoBuilds", {}, "has the action space Discrete(3), expected Discrete(2) as in a single environment"),
        ("Strict", {"ends": "truncated"}, "cannot be created with gym.env_kwargs = {'ends': 'truncated'} (TypeError: "),
    ],
)
def test_auto_uses_single_environments_if_versions_differ(
    name: str, kwargs: dict[str, Any], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = make_adapter(name, env_kwargs=kwargs)
    assert adapter.actions.sizes == (2,)
    err = capsys.readouterr().err
    assert reason in err
    assert err.count("\n") == 1
    assert err.endswith("; single environments are used instead\n")
    assert adapter.score(3, 1, True) == [3.0] * 3  # evaluations also use single environments
    assert capsys.readouterr().err == ""
    with pytest.raises(UsageError, match=r"the vector version .*; set gym\.vectorization to sync or async"):
        make_adapter(name, env_kwargs=kwargs, vectorization="vector_entry_point")


def test_auto_uses_a_vector_version_with_equal_spaces(capsys: pytest.CaptureFixture[str]) -> None:
    assert make_adapter("Strict", env_kwargs={"length": 5}).own_vector
    assert capsys.readouterr().err == ""


def test_run_with_two_builds_can_be_played_and_exported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = run(make_config("TwoBuilds"), tmp_path).path
    assert main(["play", str(path)]) == 0
    assert capsys.readouterr().out == "episode 1: return 3 (greedy) in 3 steps\n"
    assert main(["export", str(path), "--to", str(tmp_path / "policy")]) == 0
    assert json.loads((tmp_path / "policy" / "policy.json").read_text())["action"]["options"] == [2]


# Rescaled actions


def test_bounded_components_are_mapped_from_minus_one_to_one() -> None:
    layout = describe_actions(Levers().action_space, "Levers", rescale=True)
    policy = np.array([[-1, -1, -1, -1], [0, 0, 0, 0], [0.5, 0.5, 0.5, 0.5], [1, 1, 1, 1], [-9, -9, -9, -9]])
    mapped = to_env_actions(policy.astype(np.float32), layout)
    assert mapped[:, 0].tolist() == [0, 256, 384, 512, 0]
    assert mapped[:, 1].tolist() == [0, 0, 0.5, 1, 0]
    assert mapped[:, 2].tolist() == mapped[:, 3].tolist() == [-1, 0, 0.5, 1, -9]
    plain = describe_actions(Levers().action_space, "Levers", rescale=False)
    assert to_env_actions(policy.astype(np.float32), plain)[:, 0].tolist() == [0, 0, 0.5, 1, 0]


def test_environment_and_inspect_show_rescaled_actions() -> None:
    adapter = make_adapter("Levers", vectorization="sync")
    rollout = adapter.collect()
    bounded = 256 + 256 * rollout.actions[..., 0].double()
    assert torch.allclose(obs_of(rollout)[:, 1:, 0].double(), bounded[:, :-1].clamp(0, 512), atol=1e-4)
    assert torch.allclose(obs_of(rollout)[:, 1:, 2:], rollout.actions[:, :-1, 2:])
    shown = explain(adapter, rollout)["action"]
    assert float(shown[0, 0].split()[0]) == pytest.approx(float(bounded[0, 0]), rel=1e-3)


def train_throttle(rescale: bool, epochs: int = 4, **env_kwargs: float) -> tuple[GymAdapter, set[str]]:
    """Train on Throttle. Return the adapter and the names of the health checks that warned."""
    adapter = make_adapter("Throttle", {"hidden": []}, num_steps=64, rescale_actions=rescale, env_kwargs=env_kwargs)
    health, warned = Health(), set[str]()
    ppo = adapter.config.ppo.model_copy(update={"epochs": epochs, "minibatches": epochs, "gamma": 0.0})
    for step, metrics in enumerate(run_engine(adapter, 60, ppo, Optim(lr=0.01))):
        health.update(step, metrics)
        warned |= {warning["name"] for warning in health.active_warnings()}
    return adapter, warned


@pytest.mark.exhaustive
def test_wide_action_space_is_learned_only_with_rescaling() -> None:
    """The best return is 0 and the return of action 0 is -6."""
    adapter, warned = train_throttle(rescale=True)
    assert adapter.score(1, 1, True)[0] > -0.4
    assert not warned & {"action_spread", "action_clipping"}
    adapter, warned = train_throttle(rescale=False)
    assert adapter.score(1, 1, True)[0] < -5.8
    assert "action_spread" in warned


def test_narrow_action_space_raises_a_warning_without_rescaling() -> None:
    narrow = {"low": -0.01, "high": 0.01, "target": 0.005}
    assert "action_clipping" in train_throttle(rescale=False, epochs=2, **narrow)[1]
    assert not train_throttle(rescale=True, epochs=2, **narrow)[1] & {"action_spread", "action_clipping"}


def test_action_metrics_have_the_values_of_a_rollout() -> None:
    adapter = make_adapter("Throttle", {"log_std_init": 1.0})
    rollout = adapter.collect()
    actions = rollout.actions[rollout.mask]
    assert rollout.metrics["policy/action_clip_fraction"] == pytest.approx(float((actions.abs() > 1).double().mean()))
    spread = float(actions.clamp(-1, 1).double().std(correction=0)) / 2
    assert rollout.metrics["policy/action_spread"] == pytest.approx(spread, rel=1e-5)
    assert "policy/action_clip_fraction" not in make_adapter("Offset").collect().metrics


@pytest.mark.parametrize(
    ("env_id", "kwargs"), [("CartPole-v1", {}), ("tests.space_envs:Throttle-v0", {"high": float("inf")})]
)
def test_rescale_option_without_effect_is_rejected(env_id: str, kwargs: dict[str, Any]) -> None:
    table = {"env_id": env_id, "env_kwargs": kwargs}
    check(GymConfig.model_validate({"gym": table}))
    message = r"gym\.rescale_actions = false has no effect, because .* has .*; add --gym\.rescale-actions$"
    with pytest.raises(UsageError, match=message):
        check(GymConfig.model_validate({"gym": table | {"rescale_actions": False}}))


def test_tuned_presets_do_not_rescale_and_new_targets_do() -> None:
    for preset in ("pendulum", "mountaincar-continuous", "lunarlander-continuous"):
        config = load_preset(preset)
        assert isinstance(config, GymConfig)
        assert not config.gym.rescale_actions
    config = load_preset("Pendulum-v1")
    assert isinstance(config, GymConfig)
    assert config.gym.rescale_actions


def test_stored_config_without_the_option_does_not_rescale(tmp_path: Path) -> None:
    """An older run keeps its behavior when it is resumed, evaluated or repeated; a user's own file has the default."""
    result = run(make_config("Throttle"), tmp_path / "runs", name="old")
    config = result.path / "config.toml"
    text = config.read_text(encoding="utf-8")
    assert "rescale_actions = true\n" in text
    config.write_text(text.replace("rescale_actions = true\n", ""), encoding="utf-8")
    for stored in (presets.from_file(config), presets.load_target(str(config))):
        assert stored.flatten()["gym.rescale_actions"] is False
        changed = presets.apply_changes(stored, {"seed": 2}, "test")
        assert "rescale_actions = false\n" in changed.to_toml()
    own = Path(shutil.copy(config, tmp_path / "own.toml"))
    assert presets.from_file(own).flatten()["gym.rescale_actions"] is True


def test_stored_config_with_discrete_actions_is_accepted(tmp_path: Path) -> None:
    result = run(make_config("Strict"), tmp_path, name="old")
    config = result.path / "config.toml"
    config.write_text(config.read_text(encoding="utf-8").replace("rescale_actions = true\n", ""), encoding="utf-8")
    completed, _ = presets.complete(presets.load_target(str(config)))
    assert completed.flatten()["gym.rescale_actions"] is False


# Exported programs


def export_and_compare(adapter: GymAdapter, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Export a policy, run its example, compare the returns with those of `play`, and return the facts."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in adapter.policy.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator))
    facts = gym_export.export(adapter, folder, {"run": "a", "kind": "gym", "step": 1, "score": None, "versions": {}})
    totals = [frame.total for frame in gym_play.play(adapter, 10, 0, True, ()) if frame.ended]
    monkeypatch.setattr(sys, "path", list(sys.path))
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        runpy.run_path(str(folder / "play.py"))
    assert printed.getvalue() == f"mean return {np.mean(totals):.6g} over 10 episodes\n"
    return facts


@pytest.mark.parametrize("rescale", [True, False])
def test_exported_program_returns_rescaled_actions(
    rescale: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = make_adapter("Throttle", rescale_actions=rescale)
    facts = export_and_compare(adapter, tmp_path, monkeypatch)
    assert (facts["action"]["low"], facts["action"]["high"]) == ([-2000], [2000])
    obs = torch.ones(1, 1)
    wanted = adapter.policy.act(obs, None).item() * (2000 if rescale else 1)
    exported = torch.export.load(tmp_path / "policy.pt2").module()(obs)
    assert float(exported) == pytest.approx(min(max(wanted, -2000), 2000), rel=1e-4)


# Observations


def test_nested_observations_are_flattened() -> None:
    adapter = make_adapter("Nested")
    rollout = adapter.collect()
    assert not isinstance(rollout.obs, torch.Tensor)
    assert rollout.obs["action_mask"][0, 0].tolist() == [True, False, True]
    for step in (0, 7):
        gold, keys, pose, direction = [step], [0, 1], [0.25, -0.5], [0, 1, 0]
        assert rollout.obs["obs"][0, step].tolist() == [*gold, *keys, *pose, *direction]
    assert (rollout.actions != 1).all()


def test_nested_observations_are_evaluated_and_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = make_adapter("Nested", env_kwargs={"max_episode_steps": 5}, normalize_obs=True)
    adapter.collect()
    assert adapter.score(2, 1, True) == [0.0, 0.0]
    assert export_and_compare(adapter, tmp_path, monkeypatch)["obs"]["dtype"] == "float32"


def test_tuple_observations_are_flattened() -> None:
    config = GymConfig.model_validate({"gym": {"env_id": "Blackjack-v1", "num_envs": 2, "num_steps": 8}})
    OPENED.append(GymAdapter(config, torch.device("cpu")))
    obs = obs_of(OPENED[-1].collect())
    assert obs.shape == (2, 8, 32 + 11 + 2)
    assert obs.sum(-1).eq(3).all()


@pytest.mark.parametrize("rule", ["multi negative", "dict negative"])
def test_nested_discrete_value_outside_its_range_is_an_error(rule: str) -> None:
    options: dict[str, Any] = {"env_kwargs": {"rule": rule}, "vectorization": "sync"}
    with pytest.raises(ForeignCodeError, match=r"reset\(\): observation.*: expected integers from 0 to [23], got -1;"):
        make_adapter("", env_id="tests.faulty_envs:BreaksRuleTwoForms-v0", **options)


@pytest.mark.parametrize("kind", ["text", "sequence", "graph", "oneof"])
def test_unsupported_part_of_an_observation_is_named(kind: str) -> None:
    with pytest.raises(UsageError, match=r"Unsupported-v0: expected .*, got .* at \['b'\]\[1\]; add a wrapper"):
        check(make_config("Unsupported", env_kwargs={"kind": kind}))


@pytest.mark.parametrize("dtype", ["float64", pytest.param("int64", marks=pytest.mark.exhaustive)])
def test_large_offset_does_not_hide_observations(dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = make_adapter("Offset", num_steps=64, normalize_obs=True, env_kwargs={"dtype": dtype})
    adapter.collect()
    obs = obs_of(adapter.collect())
    assert obs.dtype is torch.float32
    assert obs.abs().sub(1).abs().max() < 0.3  # -1 and 1, up to the error of the estimated mean and variance
    run_engine(adapter, 20, adapter.config.ppo, Optim(lr=0.02))
    assert adapter.score(5, 1, True) == [8.0] * 5
    assert [f.total for f in gym_play.play(adapter, 1, 3, True, ()) if f.ended] == [8.0]
    facts = gym_export.export(adapter, tmp_path, {"run": "a", "kind": "gym", "step": 1, "score": None, "versions": {}})
    assert facts["obs"]["dtype"] == "float64"
    program = torch.export.load(tmp_path / "policy.pt2").module()
    assert program(torch.tensor([[1e8 - 1], [1e8 + 1]], dtype=torch.float64)).tolist() == [0, 1]
    monkeypatch.setattr(sys, "path", list(sys.path))
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        runpy.run_path(str(tmp_path / "play.py"))
    assert printed.getvalue() == "mean return 8 over 10 episodes\n"


@pytest.mark.parametrize(
    ("dtype", "offset", "normalize", "expected"),
    [
        ("float32", 1e3, True, "float32"),
        ("float64", 1e3, False, "float32"),
        ("int64", 1e3, True, "float32"),
        ("float64", 1e3, True, "float64"),
        ("int32", 1e8, True, "float64"),
    ],
)
def test_only_rounded_observations_are_float64(dtype: str, offset: float, normalize: bool, expected: str) -> None:
    adapter = make_adapter("Offset", normalize_obs=normalize, env_kwargs={"dtype": dtype, "offset": offset})
    assert adapter.observations.dtype == expected == str(adapter.raw.dtype)
    if adapter.policy.scaler is not None:
        assert adapter.policy.scaler.mean.dtype is getattr(torch, expected)


def test_checkpoint_with_float32_statistics_is_restored() -> None:
    older, restored = (
        make_adapter("Offset", normalize_obs=True, vectorization="sync", env_kwargs={"offset": 1e3}) for _ in range(2)
    )
    older.collect()
    weights = older.policy.state_dict()
    weights |= {key: weights[key].float() for key in ("scaler.mean", "scaler.variance")}
    state = older.state_dict()
    state["raw"] = state["raw"].float()
    restored.policy.load_state_dict(weights)
    assert restored.load_state_dict(state) is None
    assert restored.policy.scaler is not None
    assert restored.policy.scaler.mean.item() == pytest.approx(1e3, rel=1e-3)
    assert restored.policy.scaler.mean.dtype is torch.float64


# Evaluations of episodes without an end


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (gym_eval, gym_export):
        monkeypatch.setattr(module, "MAX_STEPS", 20)


LINE = "evaluation episodes were cut at 20 steps, because the environment has no time limit"


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("name", ["Nested", "Strict"])
def test_cut_episodes_are_reported(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kwargs = {"length": 1000} if name == "Strict" else {}
    path = run(make_config(name, env_kwargs=kwargs), tmp_path).path
    assert f"-v0: 2 of 2 {LINE}" in capsys.readouterr().err
    assert main(["eval", str(path), "--episodes", "3", "--json"]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["cut"] == 3
    assert f"3 of 3 {LINE}" in shown.err
    assert main(["play", str(path)]) == 0
    assert "in 20 steps; cut at this limit, because the environment has no time limit\n" in capsys.readouterr().out


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize(
    ("limit", "wrappers", "steps"),
    [({"max_episode_steps": 30}, [], 30), ({"max_episode_steps": -1}, [], 20)]
    + [({}, ["tests.space_envs:LimitOf30"], 30)],
)
def test_time_limit_of_the_user_is_respected(
    limit: dict[str, int],
    wrappers: list[str],
    steps: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In Gymnasium, max_episode_steps = -1 means no limit."""
    adapter = make_adapter("TwoBuilds", env_kwargs=limit | {"length": 1000}, wrappers=wrappers, vectorization="sync")
    assert adapter.score(2, 1, True) == [float(steps)] * 2
    assert bool(capsys.readouterr().err) == (steps == 20)
    if wrappers or steps == 20:  # the two cases that differ in an export, which takes a second
        export_and_compare(adapter, tmp_path, monkeypatch)


# Environments that have changed since the run began


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"length": 8}, "observation size: 9, in the checkpoint 6"),
        ({"space": "started"}, "policy outputs: 3 discrete actions, in the checkpoint 2 continuous action components"),
    ],
)
def test_changed_environment_is_named(
    changed: dict[str, Any], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_config("Echo", env_id="tests.gym_envs:Echo-v0")
    path = run(config, tmp_path).path
    now = config.gym.model_copy(update={"env_kwargs": changed})
    (path / "config.toml").write_text(config.model_copy(update={"gym": now}).to_toml(), encoding="utf-8")
    for command in (["eval"], ["play"], ["export", "--to", str(tmp_path / "out")], ["resume", "--total-steps", "640"]):
        capsys.readouterr()
        assert main([command[0], str(path), *command[1:]]) == 2
        err = capsys.readouterr().err
        assert f"the environment tests.gym_envs:Echo-v0 has changed since then ({expected})" in err.splitlines()[-1]
        assert "network options" not in err
