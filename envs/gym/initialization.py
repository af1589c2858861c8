"""Starts a run with the policy of another run: checks that the spaces are the same, and loads the reward statistics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from envs.gym.errors import close_env
from envs.gym.make import make_own_vector, read_actions, read_observations
from envs.gym.options import GymConfig, make_single, resolve
from envs.gym.spaces import ActionLayout
from envs.gym.vector import GymAdapter
from ppo_unified.errors import UsageError


def check_init(
    config: GymConfig, source: GymConfig, shapes: Mapping[str, tuple[int, ...]], state: Mapping[str, Any]
) -> None:
    """Compare the environment's spaces with the source's spaces. Raises UsageError if they differ."""
    env_id = config.gym.env_id
    env = make_own_vector(config.gym, 1) if resolve(env_id).entry_point is None else make_single(config.gym)
    try:
        observations, actions = read_observations(env, config.gym), read_actions(env, config.gym)
    finally:
        close_env(env)
    own, needed = {"observations": observations.structure, "actions": actions.structure}, state.get("spaces")
    if not isinstance(needed, dict):  # written by an older version: only the numbers of inputs and outputs are known
        own = {"observations": f"{observations.size} numbers", "actions": _count_outputs(actions)}
        needed = _count_weights(shapes, bool(config.policy.hidden))
    for what, found in own.items():
        if found != needed.get(what):
            raise UsageError(
                f"{env_id} has {what} of {found}, but the policy was trained on {what} of "
                f"{needed.get(what)} in {source.gym.env_id}; use an environment with the same spaces"
            )
    encoder, needs = config.policy.image_encoder, source.policy.image_encoder
    named = config.policy.encoders  # the same in both configurations
    if encoder != needs and any(part.name not in named for part in observations.images):
        raise UsageError(
            f"policy.image_encoder: expected {needs!r}, which the policy of --init uses, got {encoder!r}; add "
            f"--policy.image-encoder {needs}"
        )
    if actions.can_rescale and config.gym.rescale_actions != source.gym.rescale_actions:
        value = str(source.gym.rescale_actions).lower()
        raise UsageError(
            f"gym.rescale_actions: the policy was trained with the value {value}, which determines what its actions "
            f"mean; set gym.rescale_actions = {value}"
        )


def _count_outputs(actions: ActionLayout) -> str:
    return f"{len(actions.low)} numbers" if actions.continuous else f"{sum(actions.sizes)} choices"


def _count_weights(shapes: Mapping[str, tuple[int, ...]], has_hidden: bool) -> dict[str, str]:
    """Describe the inputs and outputs of a policy's network by the shapes of its weights."""
    outputs, features = shapes["head.linear.weight"]
    size = shapes["actor_torso.0.weight"][1] if has_hidden else features
    kind = "numbers" if "head.log_std" in shapes else "choices"
    return {"observations": f"{size} numbers", "actions": f"{outputs} {kind}"}


def load_statistics(adapter: GymAdapter, state: Mapping[str, Any], source: GymConfig) -> None:
    """Load the reward statistics if both runs normalize rewards. The observation statistics are in the policy."""
    if adapter.rewards is not None and "rewards" in state:
        adapter.rewards.load_state_dict(state["rewards"])
        adapter.rewards.reset_unfinished(adapter.config.gym.num_envs)
