"""What the inspector shows of a Gymnasium rollout besides the engine's own quantities."""

from __future__ import annotations

import numpy as np

from envs.gym.vector import GymAdapter
from ppo_unified.engine.rollout import Rollout


def explain(adapter: GymAdapter, rollout: Rollout) -> dict[str, np.ndarray]:
    """The actions, [N, T]: numbers, or several components as one text.

    Discrete ones as the environment counts them; continuous ones as drawn, which is what their log-prob is of.
    """
    actions, layout = rollout.actions.cpu().numpy(), adapter.actions
    if not layout.continuous:
        actions = actions + np.asarray(layout.start)
    if actions.shape[-1] == 1:
        return {"action": actions[..., 0]}
    texts = [" ".join(f"{x:.4g}" for x in action) for action in actions.reshape(-1, actions.shape[-1])]
    return {"action": np.array(texts).reshape(actions.shape[:2])}
