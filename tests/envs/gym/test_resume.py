"""Resuming continues the episodes of Gymnasium environments, or restarts them with a message."""

from __future__ import annotations

import io
import signal
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from envs.gym import restore
from envs.gym.options import GymConfig
from envs.gym.vector import GymAdapter
from ppo_unified import load_preset, run
from ppo_unified.engine.rollout import Rollout
from ppo_unified.runs import preparation
from ppo_unified.runs.folder import Run, Status
from ppo_unified.runs.signals import StopRequest
from ppo_unified.training import checkpoint
from ppo_unified.training.session import train_in

pytestmark = pytest.mark.filterwarnings("ignore:builtin type:DeprecationWarning")  # from the import of Box2D

OPENED: list[GymAdapter] = []  # closed after each test


@pytest.fixture(autouse=True)
def _close_adapters() -> Iterator[None]:
    yield
    while OPENED:
        OPENED.pop().close()


def make_adapter(env_id: str, num_envs: int = 2, num_steps: int = 12, **gym: Any) -> GymAdapter:
    table = {"env_id": env_id, "num_envs": num_envs, "num_steps": num_steps, **gym}
    config = GymConfig.model_validate({"gym": table, "policy": {"hidden": [8]}, "ppo": {"minibatches": 1}, "seed": 3})
    OPENED.append(GymAdapter(config, torch.device("cpu")))
    return OPENED[-1]


def content(rollout: Rollout) -> list[Tensor]:
    obs = [rollout.obs] if isinstance(rollout.obs, Tensor) else list(rollout.obs.values())
    names = ("actions", "logprobs", "values", "rewards", "next_values", "continues", "mask")
    return [*obs, *(getattr(rollout, name) for name in names), torch.tensor(list(rollout.metrics.values()))]


def equal(a: Rollout, b: Rollout) -> bool:
    return all(torch.equal(x, y) for x, y in zip(content(a), content(b), strict=True))


def save_and_load(adapter: GymAdapter) -> Any:
    """Save the states of the adapter and its policy, and load them with weights_only=True."""
    file = io.BytesIO()
    torch.save((adapter.state_dict(), adapter.policy.state_dict()), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def load_state(adapter: GymAdapter, state: Any) -> str | None:
    adapter.policy.load_state_dict(state[1])
    return adapter.load_state_dict(state[0])


EXACT: dict[str, tuple[str, dict[str, Any]]] = {
    "own vector version": ("CartPole-v1", {}),
    "own vector version, all environments reset next": (
        "CartPole-v1",
        {"env_kwargs": {"max_episode_steps": 5}, "num_steps": 5},
    ),
    "loop": ("CartPole-v1", {"vectorization": "sync"}),
    "processes": ("tests.gym_envs:Locks-v0", {"vectorization": "async"}),
    "Acrobot": ("Acrobot-v1", {}),
    "continuous mountain car": ("MountainCarContinuous-v0", {}),
    "Pendulum": ("Pendulum-v1", {"normalize_obs": True, "normalize_reward": True}),
    "LunarLander": ("LunarLander-v3", {"num_steps": 50}),
    "continuous LunarLander": ("LunarLander-v3", {"env_kwargs": {"continuous": True}, "num_steps": 50}),
    "BipedalWalker": ("BipedalWalker-v3", {"num_steps": 60, "num_envs": 2, "vectorization": "sync"}),
    "Taxi, a mask in the info": ("Taxi-v4", {"env_kwargs": {"max_episode_steps": 9}}),
    "FrozenLake": ("FrozenLake-v1", {}),
    "Blackjack": ("Blackjack-v1", {"wrappers": ["FlattenObservation"]}),
    "wrappers with arguments": (
        "CartPole-v1",
        {"wrappers": ["TimeLimit(max_episode_steps=7)", "FrameStackObservation(stack_size=3)"], "num_steps": 30},
    ),
    "wrapper with random numbers": ("CartPole-v1", {"wrappers": ["StickyAction(repeat_action_probability=0.4)"]}),
    "Dict observation, mask": ("tests.gym_envs:Locks-v0", {"vectorization": "sync"}),
    "nested observation, mask": ("tests.space_envs:Nested-v0", {}),
    "float64 observation": ("tests.space_envs:Offset-v0", {"normalize_obs": True, "vectorization": "sync"}),
    "vector version with load_state_dict": ("tests.gym_envs:KeepsCounters-v0", {"num_steps": 7}),
    "images and numbers": ("tests.pixel_envs:Scene-v0", {"normalize_obs": True, "vectorization": "sync"}),
    "time limit": ("tests.gym_envs:TimedCounter-v0", {}),
}


@pytest.mark.parametrize("name", EXACT)
def test_restored_adapter_collects_identical_rollouts(name: str) -> None:
    env_id, options = EXACT[name]
    unbroken = make_adapter(env_id, **options)
    for _ in range(3):
        unbroken.collect()
        state = save_and_load(unbroken)
        restored = make_adapter(env_id, **options)
        assert load_state(restored, state) is None
        state_again = save_and_load(restored)[0]["envs"]
        assert str(state_again) == str(state[0]["envs"]), "the state changed between loading and saving"
        assert equal(restored.collect(), unbroken.collect())
        restored.close()
        OPENED.remove(restored)


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_episode_end_before_checkpoint_is_followed_by_reset(vectorization: str) -> None:
    """After 7 steps (two episodes of 3 steps and a reset column), the next step resets every environment."""
    unbroken = make_adapter("tests.gym_envs:TimedCounter-v0", num_steps=7, vectorization=vectorization)
    unbroken.collect()
    assert unbroken.ended.all()
    restored = make_adapter("tests.gym_envs:TimedCounter-v0", num_steps=7, vectorization=vectorization)
    restored.collect()
    assert load_state(restored, save_and_load(unbroken)) is None
    rollout = restored.collect()
    assert not rollout.mask[:, 0].any()
    assert equal(rollout, unbroken.collect())


@pytest.mark.parametrize("num_envs", [2, 11])
def test_changed_num_envs_restarts_episodes_only(num_envs: int) -> None:
    """Lowering gym.num_envs is the advice after an out-of-memory error, so the rest of the state must be restored."""
    options: dict[str, Any] = {"num_steps": 30, "normalize_obs": True, "normalize_reward": True}
    stopped, restored = (make_adapter("CartPole-v1", num_envs=n, **options) for n in (8, num_envs))
    stopped.collect()
    why = load_state(restored, save_and_load(stopped))
    now = f"gym.num_envs changed from 8 to {num_envs}"
    assert why == f"episodes restarted: CartPole-v1: {now}"
    assert torch.equal(restored.generator.get_state(), stopped.generator.get_state())
    assert restored.steps_taken == stopped.steps_taken
    assert restored.episodes.returns == stopped.episodes.returns != deque()
    assert restored.rewards is not None
    assert stopped.rewards is not None
    before, after = stopped.rewards.state_dict(), restored.rewards.state_dict()
    assert after == before | {"running": [0.0] * num_envs}
    rollout = restored.collect()
    assert rollout.mask.shape == (num_envs, 30)
    assert rollout.mask[:, 0].all()


def test_run_resumes_with_fewer_environments(tmp_path: Path) -> None:
    """A user may lower gym.num_envs in config.toml after an out-of-memory error and then resume."""
    config = load_preset("cartpole", gym={"num_envs": 8}, eval={"episodes": 1}, total_iterations=2)
    kept = Run(run(config, tmp_path).path)
    fewer = load_preset("cartpole", gym={"num_envs": 2}, eval={"episodes": 1}, total_iterations=3)
    kept.config.write_text(fewer.to_toml())
    kept.write_status(preparation.reopen(kept))
    status = train_in(kept, fewer, StopRequest())
    assert (status.state, status.iteration) == ("finished", 3)
    assert "gym.num_envs changed from 8" in status.resumes[-1]["restored"]


@pytest.mark.parametrize("by", ["system", "past"])
def test_unrepeatable_episode_restarts_with_a_message(by: str) -> None:
    options: dict[str, Any] = {"env_kwargs": {"by": by}, "vectorization": "sync"}
    stopped, restored = (make_adapter("tests.gym_envs:Unrepeatable-v0", num_steps=55, **options) for _ in range(2))
    stopped.collect()
    why = load_state(restored, save_and_load(stopped))
    reason = "a replayed episode returned different observations or rewards"
    assert why == f"episodes restarted: tests.gym_envs:Unrepeatable-v0: {reason}"
    assert not restored.episodes.length.any(), "the length of a new episode starts at 0"
    assert restored.collect().mask[:, 0].all()


def test_stateful_wrapper_restarts_episodes_with_a_message() -> None:
    stopped, restored = (
        make_adapter("FrozenLake-v1", num_steps=60, wrappers=["FlattenObservation", "tests.gym_envs:AddsEarlierSteps"])
        for _ in range(2)
    )
    stopped.collect()
    why = load_state(restored, save_and_load(stopped))
    assert why == "episodes restarted: FrozenLake-v1: a replayed episode returned different observations or rewards"


@pytest.mark.parametrize("forms", [("auto", "sync"), ("sync", "auto")])
@pytest.mark.parametrize("env_id", ["CartPole-v1", "tests.gym_envs:OwnKeptCounter-v0"])
def test_other_version_of_the_environment_restarts_episodes(env_id: str, forms: tuple[str, str]) -> None:
    stopped, restored = (make_adapter(env_id, vectorization=form) for form in forms)
    stopped.collect()
    assert (load_state(restored, save_and_load(stopped)) or "").startswith(f"episodes restarted: {env_id}: ")
    assert restored.steps_taken == stopped.steps_taken
    restored.collect()


@pytest.mark.parametrize("masked", [True, False])
def test_new_or_missing_action_masks_restart_episodes(masked: bool) -> None:
    env_id = "tests.gym_envs:Locks-v0" if masked else "CartPole-v1"
    stopped, restored = (make_adapter(env_id, vectorization="sync") for _ in range(2))
    stopped.collect()
    state = save_and_load(stopped)
    if masked:
        del state[0]["masks"]
    else:
        state[0]["masks"] = torch.ones(2, 2, dtype=torch.bool)
    why = f"episodes restarted: {env_id}: the environments now return action masks, or no longer do"
    assert load_state(restored, state) == why


def test_unknown_vector_env_restarts_episodes_with_a_message() -> None:
    stopped, restored = (make_adapter("tests.gym_envs:OwnCounter-v0", num_steps=6) for _ in range(2))
    stopped.collect()
    why = load_state(restored, save_and_load(stopped))
    assert why is not None
    assert "CounterVector has no methods state_dict and load_state_dict" in why


def test_modified_state_arrays_restart_episodes() -> None:
    stopped, restored = (make_adapter("CartPole-v1") for _ in range(2))
    stopped.collect()
    state = save_and_load(stopped)
    state[0]["envs"]["arrays"]["state"][0, 0] += 1
    why = load_state(restored, state)
    assert why == "episodes restarted: CartPole-v1: the restored environments returned different observations"


def test_overlong_episode_is_not_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restore, "MAX_RECORDED_STEPS", 10)
    options: dict[str, Any] = {"env_kwargs": {"length": 1000}, "vectorization": "sync"}
    stopped, restored = (make_adapter("tests.gym_envs:Counter-v0", **options) for _ in range(2))
    stopped.collect()
    why = load_state(restored, save_and_load(stopped))
    assert why == "episodes restarted: tests.gym_envs:Counter-v0: an episode is longer than 10 steps"


def test_long_episodes_fit_in_the_record() -> None:
    stopped, restored = (
        make_adapter("Pendulum-v1", num_envs=1, num_steps=3 * restore.INITIAL_CAPACITY, vectorization="sync")
        for _ in range(2)
    )
    stopped.collect()
    assert load_state(restored, save_and_load(stopped)) is None
    assert equal(restored.collect(), stopped.collect())


def test_resumed_cartpole_equals_uninterrupted_run(tmp_path: Path) -> None:
    """Six iterations give the same weights as three iterations, a stop and three more."""
    gym = {"num_envs": 4, "num_steps": 32, "vectorization": "sync"}
    config = load_preset("cartpole", gym=gym, eval={"episodes": 1}, total_iterations=6)
    whole, halves = Run(run(config, tmp_path / "whole").path), preparation.prepare(config, tmp_path / "halves", "")
    stop = StopRequest()

    def stop_after_three(status: Status, metrics: dict[str, float]) -> None:
        if status.iteration == 3:
            stop.signal = signal.SIGTERM

    assert train_in(halves, config, stop, stop_after_three).iteration == 3
    halves.write_status(preparation.reopen(halves))
    status = train_in(halves, config, StopRequest())
    assert status.resumes[-1]["restored"] == "exact"
    assert status.iteration == 6
    ends = [checkpoint.load_policy(x, checkpoint.steps(x)[-1], torch.device("cpu")) for x in (whole, halves)]
    assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])


FAULTY = "tests.faulty_envs"


@pytest.mark.parametrize("vectorization", ["sync", "async"])
@pytest.mark.parametrize("kind", ["RandomState", "Random", "None", "raises"])
def test_other_random_generators_restart_episodes(kind: str, vectorization: str) -> None:
    options: dict[str, Any] = {"env_kwargs": {"kind": kind}, "vectorization": vectorization}
    saved = make_adapter(f"{FAULTY}:OddRandom-v0", **options)
    assert saved.collect().rewards.sum() == 20.0
    why = load_state(make_adapter(f"{FAULTY}:OddRandom-v0", **options), save_and_load(saved))
    assert why == f"episodes restarted: {FAULTY}:OddRandom-v0: its np_random is not a numpy.random.Generator"


@pytest.mark.parametrize("kind", ["array", "scalar", "float32", "list", "float64", "integers"])
def test_results_of_other_types_train_and_resume(kind: str) -> None:
    plain, odd = (
        make_adapter(f"{FAULTY}:OddResults-v0", env_kwargs={"kind": x}, vectorization="sync") for x in ("plain", kind)
    )
    first = odd.collect()
    assert equal(plain.collect(), first)
    assert first.rewards[0].tolist() == [0.5, 1, 1.5, 2, 2.5, 0, 0.5, 1, 1.5, 2, 2.5, 0]
    resumed = make_adapter(f"{FAULTY}:OddResults-v0", env_kwargs={"kind": kind}, vectorization="sync")
    assert load_state(resumed, save_and_load(odd)) is None
    assert equal(resumed.collect(), odd.collect())
    assert odd.score(2, 1, True) == [7.5, 7.5]


def test_actions_that_cannot_be_stored_restart_episodes() -> None:
    options: dict[str, Any] = {"env_kwargs": {"kind": "longdouble"}, "vectorization": "sync"}
    saved = make_adapter(f"{FAULTY}:OddResults-v0", **options)
    saved.collect()
    why = load_state(make_adapter(f"{FAULTY}:OddResults-v0", **options), save_and_load(saved))
    assert "its actions cannot be stored" in (why or "")


@pytest.mark.parametrize(
    ("rule", "why"),
    [
        ("save raises", "state_dict(): ZeroDivisionError: no state, in faulty_envs.py, line "),
        ("array", "its state_dict() contains a value of type numpy.ndarray, which a checkpoint cannot store"),
        ("lock", "its state_dict() contains a value of type _thread.lock, which a checkpoint cannot store"),
        ("", "load_state_dict(): ZeroDivisionError: wrong state, in faulty_envs.py, line "),
    ],
)
def test_unusable_own_state_restarts_episodes(rule: str, why: str) -> None:
    options: dict[str, Any] = {"env_kwargs": {"rule": rule}}
    saved = make_adapter(f"{FAULTY}:OddStates-v0", **options)
    saved.collect()
    restarted = load_state(make_adapter(f"{FAULTY}:OddStates-v0", **options), save_and_load(saved))
    assert (restarted or "").startswith(f"episodes restarted: {FAULTY}:OddStates-v0: {why}")
