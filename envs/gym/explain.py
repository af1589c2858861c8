"""Computes the columns that the Gymnasium adapter adds to the step table."""

from __future__ import annotations

import numpy as np

from envs.gym.spaces import to_env_units
from envs.gym.vector import GymAdapter
from ppo_unified.engine.rollout import Rollout


def explain(adapter: GymAdapter, rollout: Rollout) -> dict[str, np.ndarray]:
    """Return the actions [N, T] as numbers, or as strings if an action has several components.

    The numbers are those of the environment. Continuous actions are not clipped, because the log-probs refer to the
    unclipped samples.
    """
    actions = to_env_units(rollout.actions.cpu().numpy(), adapter.actions)
    if actions.shape[-1] == 1:
        return {"action": actions[..., 0]}
    texts = [" ".join(f"{x:.4g}" for x in action) for action in actions.reshape(-1, actions.shape[-1])]
    return {"action": np.array(texts).reshape(actions.shape[:2])}
