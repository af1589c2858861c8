"""Images in observations: how they are packed and encoded, the options of encoders, and the details for Atari games."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

from envs.gym.atari import FireStart
from envs.gym.encoders import Pixels, check_encoders
from envs.gym.images import image_shape
from envs.gym.initialization import check_init
from envs.gym.make import check
from envs.gym.options import GymConfig, Policy, make_single
from envs.gym.spaces import describe_observations
from envs.gym.vector import GymAdapter
from ppo_unified import load_preset, run
from ppo_unified.config import presets
from ppo_unified.errors import UsageError
from tests.envs.gym.test_spaces import export_and_compare
from tests.envs.gym.test_vector import OPENED, _close_adapters, make_config
from tests.pixel_envs import Lives, LostStart

__all__ = ["_close_adapters"]
SCENE, LIVES, CATCH = "tests.pixel_envs:Scene-v0", "tests.pixel_envs:Lives-v0", "envs.gym.pixel_tasks:Catch"


def make_adapter(env_id: str = SCENE, num_envs: int = 2, num_steps: int = 6, **tables: Any) -> GymAdapter:
    OPENED.append(GymAdapter(make_config(env_id, num_envs, num_steps, **tables), torch.device("cpu")))
    return OPENED[-1]


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_parts_reach_the_networks_unchanged(vectorization: str) -> None:
    adapter = make_adapter(gym={"vectorization": vectorization}, seed=3)
    rollout = adapter.collect()
    assert isinstance(rollout.obs, dict)
    assert {name: (x.shape[2:], x.dtype) for name, x in rollout.obs.items()} == {
        "obs": ((3,), torch.float32),
        "image.camera": ((36, 40, 3), torch.uint8),
    }
    env = gym.make(SCENE)
    seed = int(np.random.SeedSequence(3).generate_state(3)[0])
    obs, _ = env.reset(seed=seed)
    for step in range(4):
        flat: Any = spaces.flatten(env.observation_space["state"], obs["state"])  # type: ignore[index]  # a Dict space
        assert rollout.obs["obs"][0, step].tolist() == flat.tolist()
        assert np.array_equal(rollout.obs["image.camera"][0, step], obs["camera"])
        obs = env.step(rollout.actions[0, step].item())[0]


@pytest.mark.parametrize(
    ("shape", "axes"),
    [((9, 8), None), ((9, 8, 3), (2, 0, 1)), ((4, 9, 8), (0, 1, 2)), ((2, 9, 8, 3), (0, 3, 1, 2))],
)
def test_pixels_become_channels_from_0_to_1(shape: tuple[int, ...], axes: tuple[int, ...] | None) -> None:
    images = np.random.default_rng(0).integers(256, size=(5, *shape), dtype=np.uint8)
    wanted = [(x if axes is None else x.transpose(axes)).reshape(image_shape(shape)) / 255 for x in images]
    found = Pixels(shape)(torch.from_numpy(images))
    torch.testing.assert_close(found, torch.tensor(np.array(wanted), dtype=torch.float32))


@pytest.mark.parametrize("shared", [False, True])
def test_shared_option_shares_the_encoder(shared: bool) -> None:
    policy = make_adapter(policy={"shared": shared, "hidden": []}).policy
    assert policy.actor_encoder is not None
    assert (policy.actor_encoder is policy.critic_encoder) == shared
    convolutions = [m for m in policy.actor_encoder.modules() if isinstance(m, torch.nn.Conv2d)]
    assert [(m.out_channels, m.kernel_size[0], m.stride[0]) for m in convolutions] == [
        (32, 8, 4),
        (64, 4, 2),
        (64, 3, 1),
    ]
    kernel = convolutions[1].weight.detach().flatten(1)
    torch.testing.assert_close(kernel @ kernel.T, 2 * torch.eye(len(kernel)), atol=1e-4, rtol=0)
    own = {id(p) for p in policy.critic_parameters()}
    assert all((id(p) in own) != shared for p in policy.critic_encoder.parameters())  # type: ignore[union-attr]


def test_only_numbers_are_normalized(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = make_adapter(num_steps=40, gym={"normalize_obs": True})
    before, after = adapter.collect(), adapter.collect()
    assert isinstance(before.obs, dict)
    assert isinstance(after.obs, dict)
    valid = before.obs["obs"][before.mask]
    assert adapter.policy.scaler is not None
    torch.testing.assert_close(adapter.scaling[0], valid.mean(0), atol=1e-3, rtol=0)  # type: ignore[index]
    assert after.obs["image.camera"].dtype is torch.uint8
    assert abs(float(after.obs["obs"].mean())) < 0.3
    facts = export_and_compare(adapter, tmp_path, monkeypatch)
    assert facts["obs"]["image.camera"]["shape"] == ["batch", 36, 40, 3]


ENCODERS = {"camera": "tests.pixel_envs:Means", "state.0": "mlp(5, 4)", "state.1": "embedding(6)"}


def test_each_part_can_have_its_own_encoder() -> None:
    adapter = make_adapter(policy={"encoders": ENCODERS})
    encoder, rollout = adapter.policy.actor_encoder, adapter.collect()
    assert encoder is not None
    assert isinstance(rollout.obs, dict)
    flag = encoder.networks[2](rollout.obs["obs"][..., 1:])
    torch.testing.assert_close(encoder(rollout.obs)[..., 2 + 4 :], flag)
    assert encoder.size == 2 + 4 + 6 == 2 + 4 + flag.shape[-1]
    new = adapter.policy.evaluate(rollout.obs, rollout.actions)
    torch.testing.assert_close(new.logprobs, rollout.logprobs)
    new.logprobs.sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in encoder.networks[0].parameters())


def test_own_encoder_stays_in_evaluation_mode() -> None:
    adapter = make_adapter(policy={"encoders": {"camera": "tests.pixel_envs:Noisy"}})
    policy = adapter.policy
    before, random_state = [x.clone() for x in policy.buffers()], torch.get_rng_state()
    rollout = adapter.collect()
    policy.train()
    torch.testing.assert_close(policy.evaluate(rollout.obs, rollout.actions).logprobs, rollout.logprobs)
    assert adapter.score(2, 1, True) == adapter.score(2, 1, True)
    assert all(map(torch.equal, before, policy.buffers()))
    assert torch.equal(random_state, torch.get_rng_state())


@pytest.mark.parametrize(
    ("env_id", "tables", "message"),
    [
        (CATCH, {"gym": {"normalize_obs": True}}, "gym.normalize_obs = true has no effect, because the observations"),
        (
            SCENE,
            {"policy": {"image_encoder": "resnet", "encoders": {"camera": "nature"}}},
            "policy.image_encoder = 'resnet' has no effect, because policy.encoders contains all images: camera; rem",
        ),
        (
            SCENE,
            {"policy": {"image_encoder": "flat", "encoders": {"camera": "nature"}}},
            "policy.image_encoder = 'flat' has no effect, because policy.encoders contains all images: camera; remove",
        ),
        (LIVES, {"policy": {"image_encoder": "resnet"}}, "has no effect, because tests.pixel_envs:Lives-v0 has no im"),
    ],
)
def test_option_of_images_without_effect_is_rejected(env_id: str, tables: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        check(make_config(env_id, **tables))


def test_init_ignores_an_image_encoder_without_effect() -> None:
    named, source = ({"image_encoder": x, "encoders": {"camera": "nature"}} for x in ("nature", "resnet"))
    state = make_adapter(policy=named).state_dict()
    check_init(make_config(SCENE, policy=named), make_config(SCENE, policy=source), {}, state)
    with pytest.raises(UsageError, match="expected 'resnet', which the policy of --init uses, got 'nature'"):
        check_init(make_config(SCENE), make_config(SCENE, policy={"image_encoder": "resnet"}), {}, state)


def test_init_compares_encoders_as_absolute_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path.name
    same = ("net.py:Net", "./net.py:Net", f"../{folder}/net.py:Net", f"{tmp_path}/net.py:Net")
    other = ("net.py:Other", "sub/net.py:Net", "net:Net", "mlp(8)")
    found = [make_config(SCENE, policy={"encoders": {"camera": x}}).network_options() for x in (*same, *other)]
    assert found[1:4] == found[:1] * 3
    assert all(options != found[0] for options in found[4:])


@pytest.mark.parametrize(
    ("encoders", "message"),
    [
        (
            {"camara": "resnet"},
            "the observation has no part 'camara'; did you mean 'camera'? (its parts: camera, state.0",
        ),
        ({"state.0": "nature"}, "state.0 = 'nature': expected an image (a Box of uint8"),
        ({"state.0": "embedding(3)"}, "expected a Discrete or MultiDiscrete space, got Box"),
        ({"camera": "mlp(3"}, "camera: expected nature, resnet, flat, 'mlp(64, 64)'"),
        ({"camera": "tests.pixel_envs:Absent"}, "tests.pixel_envs contains no class 'Absent'"),
        ({"camera": "tests.pixel_envs:Scene"}, "Scene(Box(0, 255, (36, 40, 3), uint8)) failed (TypeError"),
        (
            {"camera": "tests.pixel_envs:Shapeless"},
            "expected features [2, F] of float32 for a batch of 2, got torch.fl",
        ),
    ],
)
def test_unsuitable_encoder_is_a_one_line_error(encoders: dict[str, str], message: str) -> None:
    with pytest.raises((UsageError, ValueError), match=re.escape(message)):
        check(make_config(SCENE, policy={"encoders": encoders}))


def test_small_image_needs_a_named_encoder() -> None:
    space = spaces.Box(0, 255, (7, 7, 3), np.uint8)
    assert not describe_observations(space, "", False, {"": "nature"}).images
    layout = describe_observations(space, "", False, {"": "nature", "image": "resnet"})
    check_encoders(layout, Policy(encoders={"image": "resnet"}))
    with pytest.raises(UsageError, match=r"image = 'nature': expected an image with sides of at least 36 pixels"):
        check_encoders(layout, Policy(encoders={"image": "nature"}))


@pytest.mark.parametrize("size", [7, 40])
def test_name_of_an_observation_depends_only_on_its_space(size: int) -> None:
    space = spaces.Box(0, 255, (size, size, 3), np.uint8)
    for encoder in ("mlp(5)", "flat", "resnet"):
        layout = describe_observations(space, "", False, {"": "nature", "image": encoder})
        check_encoders(layout, Policy(encoders={"image": encoder}))
        with pytest.raises(UsageError, match=r"no part 'obs' \(its parts: image\)"):
            check_encoders(layout, Policy(encoders={"obs": encoder}))


def test_stored_run_without_encoder_keeps_flat_images() -> None:
    table = make_config(SCENE).model_dump(exclude_none=True)
    del table["policy"]["image_encoder"], table["policy"]["encoders"], table["gym"]["training_wrappers"]
    older = presets.from_table(table, "config.toml", stored=True)
    assert isinstance(older, GymConfig)
    OPENED.append(GymAdapter(older, torch.device("cpu")))
    rollout = OPENED[-1].collect()
    assert isinstance(rollout.obs, torch.Tensor)
    assert rollout.obs.shape[2:] == (36 * 40 * 3 + 3,)


# Atari


def test_training_wrappers_do_not_change_scores() -> None:
    """A game has 3 lives of 2 steps with a reward of 5. In training, an episode is one life with clipped rewards."""
    wrappers = ["envs.gym.atari:LifeLoss", "ClipReward(min_reward=-1.0, max_reward=1.0)"]
    table = {"wrappers": ["envs.gym.atari:FireStart"], "training_wrappers": wrappers}
    check(make_config(LIVES, gym=table))
    adapter = make_adapter(LIVES, num_envs=1, num_steps=9, gym=table)
    rollout = adapter.collect()
    assert rollout.rewards.tolist() == [[1, 1, 0] * 3]
    assert rollout.continues.tolist() == [[True, False, True] * 3]
    assert adapter.score(1, 1, True) == [30.0]


def test_training_wrapper_that_changes_spaces_is_rejected() -> None:
    config = make_config(LIVES, gym={"training_wrappers": ["FrameStackObservation(stack_size=2)"]})
    with pytest.raises(
        UsageError, match=r"gym.training_wrappers: expected the observation space .* of evaluations, got"
    ):
        check(config)


def test_fire_may_end_the_game() -> None:
    env = FireStart(LostStart(Lives()))
    env.reset(seed=0)
    assert env.step(0)[2:] == (False, False, {"lives": 3})


def test_game_without_fire_is_rejected() -> None:
    with pytest.raises(
        UsageError, match=r"expected a game whose action 1 is FIRE, got the actions .*; remove FireStart"
    ):
        check(make_config("CartPole-v1", gym={"wrappers": ["envs.gym.atari:FireStart"]}))


@pytest.mark.parametrize("preset", ["pong", "breakout"])
def test_atari_presets_have_the_options_of_the_details(preset: str) -> None:
    config = load_preset(preset)
    assert isinstance(config, GymConfig)
    assert config.gym.wrappers == [
        "AtariPreprocessing(noop_max=30, frame_skip=4, screen_size=84, grayscale_obs=True)",
        "envs.gym.atari:FireStart",
        "FrameStackObservation(stack_size=4)",
    ]
    assert config.gym.training_wrappers == ["envs.gym.atari:LifeLoss", "ClipReward(min_reward=-1.0, max_reward=1.0)"]
    assert config.gym.env_kwargs["frameskip"] == 1
    assert (config.policy.image_encoder, config.policy.shared, config.policy.hidden) == ("nature", True, [])


def test_atari_observations_are_stacks_of_grey_frames() -> None:
    pytest.importorskip("ale_py")
    pytest.importorskip("cv2")
    config = load_preset("pong")
    assert isinstance(config, GymConfig)
    env = make_single(config.gym)
    starts = set()
    for seed in range(5):
        obs, info = env.reset(seed=seed)
        assert (obs.shape, obs.dtype) == ((4, 84, 84), np.uint8)
        starts.add(info["episode_frame_number"])
        obs, _, _, _, after = env.step(0)
        assert after["episode_frame_number"] - info["episode_frame_number"] == 4
    assert len(starts) > 2
    assert all(4 < start <= 34 for start in starts)
    env.close()


@pytest.mark.exhaustive
@pytest.mark.parametrize("network", ["nature", "resnet"])
def test_nested_observation_with_image_is_solved(network: str, tmp_path: Path) -> None:
    """A policy that ignores the image has a mean return of at most 2.7 of 4."""
    encoders = {"camera": network, "state.1": "embedding(16)", "state.0": "mlp(16)"}
    config = make_config(
        *(SCENE, 8, 64),
        policy={"hidden": [64], "encoders": encoders, "shared": True},
        ppo={"minibatches": 8, "epochs": 4, "microbatch_columns": 128, "gamma": 0.0},  # steps are independent
        optim={"lr": 1e-3},
        total_steps=40_000,
        eval={"every_steps": 4_000, "episodes": 50, "threshold": 3.8},
        stop_when_solved=True,
    )
    assert run(config, runs=tmp_path).solved_step is not None
