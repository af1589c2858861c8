"""Starts a run with the policy of another run: checks that the spaces are equal, and loads the reward statistics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from envs.gym.make import read_actions, read_observations
from envs.gym.options import GymConfig, close_env, make_single, resolve
from envs.gym.spaces import ActionLayout
from envs.gym.vector import GymAdapter
from ppo_unified.errors import UsageError


def check_init(config: GymConfig, source: GymConfig, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Compare the environment's spaces with the shapes of the source's weights. Raises UsageError if they differ."""
    env_id = config.gym.env_id
    if resolve(env_id).entry_point is None:
        return  # there is only a vector version; loading the weights compares the shapes
    env = make_single(config.gym)
    try:
        observations, actions = read_observations(env, config.gym), read_actions(env, config.gym)
    finally:
        close_env(env)
    outputs, features = shapes["head.linear.weight"]
    size = shapes["actor_torso.0.weight"][1] if config.policy.hidden else features
    if observations.size != size:
        raise UsageError(
            f"{env_id} has observations of {observations.size} numbers, but its policy was trained on {size} numbers "
            f"in {source.gym.env_id}; use an environment with equal spaces"
        )
    own, needed = _describe(actions), f"{outputs} {'numbers' if 'head.log_std' in shapes else 'choices'}"
    if own != needed:
        raise UsageError(
            f"{env_id} has actions of {own}, but its policy was trained on {needed} in {source.gym.env_id}; use an "
            "environment with equal spaces"
        )
    if actions.can_rescale and config.gym.rescale_actions != source.gym.rescale_actions:
        value = str(source.gym.rescale_actions).lower()
        raise UsageError(
            f"gym.rescale_actions: the policy was trained with the value {value}, which determines what its actions "
            f"mean; set gym.rescale_actions = {value}"
        )


def _describe(actions: ActionLayout) -> str:
    return f"{len(actions.low)} numbers" if actions.continuous else f"{sum(actions.sizes)} choices"


def load_statistics(adapter: GymAdapter, state: Mapping[str, Any], source: GymConfig) -> None:
    """Load the statistics of the rewards if both runs normalize rewards. Those of observations are in the policy."""
    if adapter.rewards is not None and "rewards" in state:
        adapter.rewards.load_state_dict(state["rewards"])
        adapter.rewards.reset_unfinished(adapter.config.gym.num_envs)
