"""Computes the metrics of a rollout of responses."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from envs.llm.generate import Responses
from envs.llm.rewards.scoring import Scores


def kl_sum(estimate: Tensor, kept: Tensor, responses: Responses) -> float:
    """Return an estimate of the KL [N, T], summed over each response and averaged over those that `kept` [N] marks."""
    return float((estimate * responses.mask()).sum(1)[kept].mean())


def rollout_metrics(
    responses: Responses, kept: Tensor, estimates: dict[str, Tensor], scores: Scores, rewards: Tensor
) -> dict[str, float]:
    """Return the metrics of responses, KL and rewards.

    KL and rewards are summed over each response, then averaged over the responses that have a score, which `kept`
    marks. The other metrics cover all responses.
    """
    sums = {name: kl_sum(x, kept, responses) for name, x in estimates.items()}
    left_out = 1 - len(scores.numbers) / len(scores.totals)
    return {
        **scores.means("reward"),
        **({"reward/left_out": left_out} if left_out else {}),
        "reward/score": float(np.mean(scores.numbers)),
        "reward/score_std": float(np.std(scores.numbers)),
        "reward/total": float(rewards.sum(1)[kept].mean()),
        "ref/kl": sums["k1"],
        "ref/kl_k2": sums["k2"],
        "ref/kl_k3": sums["k3"],
        "ref/kl_full": sums["full"],
        "response/length": float(responses.mask().sum(1).float().mean()),
        "response/eos_rate": float(responses.ended.float().mean()),
        "response/repetition": responses.repetition(),
    }
