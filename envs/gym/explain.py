"""Computes the Gymnasium adapter's columns of the step table, and explains why a checkpoint does not fit."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import Tensor

from envs.gym.spaces import to_env_units
from envs.gym.vector import GymAdapter
from ppo_unified.engine.rollout import Rollout

# names of a policy's first weight matrix: the first of these that exists
FIRST_LAYERS = ("actor_torso.0.weight", "actor_memory.cell.weight_ih", "head.linear.weight")


def explain(adapter: GymAdapter, rollout: Rollout) -> dict[str, np.ndarray]:
    """Return the actions [N, T] as numbers, or as strings if an action has several components.

    The numbers are in the environment's units. Continuous actions are not clipped, because the log-probs refer to the
    unclipped samples.
    """
    actions = to_env_units(rollout.actions.cpu().numpy(), adapter.actions)
    if actions.shape[-1] == 1:
        return {"action": actions[..., 0]}
    texts = [" ".join(f"{x:.4g}" for x in action) for action in actions.reshape(-1, actions.shape[-1])]
    return {"action": np.array(texts).reshape(actions.shape[:2])}


def explain_mismatch(adapter: GymAdapter, weights: Mapping[str, Tensor]) -> str:
    """Explain how the environment's spaces differ from those for which the weights were trained.

    Return "" if the shapes of the weights show no difference.
    """
    if not weights.keys() >= {"head.linear.weight", "critic.weight"}:
        return ""
    then, now = _sizes(weights), _sizes(adapter.policy.state_dict())
    changed = [f"{what} {now[what]}, in the checkpoint {then[what]}" for what in now if then[what] != now[what]]
    if not changed:
        return ""
    return (
        f"the environment {adapter.config.gym.env_id} has changed since then ({'; '.join(changed)}); restore the "
        "package version and the [gym] options with which the run was trained, or start a new run"
    )


def _sizes(weights: Mapping[str, Tensor]) -> dict[str, str]:
    """Return the observation size and the kind and number of the policy's outputs."""
    kind = "continuous action components" if "head.log_std" in weights else "discrete actions"
    return {
        "observation size:": str(next(weights[name].shape[1] for name in FIRST_LAYERS if name in weights)),
        "policy outputs:": f"{len(weights['head.linear.weight'])} {kind}",
    }
