"""Computes token rewards from scores and KL estimates, adapts the KL coefficient and computes group baselines."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

# Functions of log(pi / pi_ref) at the sampled token
ESTIMATES: dict[str, Callable[[Tensor], Tensor]] = {
    "k1": lambda log_ratio: log_ratio,  # unbiased; negative if the token is more likely under the reference model
    "abs": torch.abs,
    "k2": lambda log_ratio: 0.5 * log_ratio.square(),
    "k3": lambda log_ratio: (-log_ratio).exp() - 1 + log_ratio,  # unbiased and never negative
}


def kl_estimates(logprobs: Tensor, ref_logprobs: Tensor, full: Tensor) -> dict[str, Tensor]:
    """Return the estimates of KL(pi || pi_ref) by name, each [N, T] (joschu.net/blog/kl-approx.html).

    The entry `full` is the exact KL, summed over the vocabulary. All other estimates use only the sampled token.
    """
    log_ratio = logprobs - ref_logprobs
    return {name: estimate(log_ratio) for name, estimate in ESTIMATES.items()} | {"full": full}


@dataclass
class KLController:
    """Adapts the KL coefficient so that the KL per response approaches `target`.

    The coefficient is constant if `target` is 0. Section 2.2 of arXiv:1909.08593 describes the controller.
    """

    coef: float
    target: float
    horizon: int

    def update(self, kl: float, responses: int) -> None:
        """Update the coefficient. `kl` is the mean KL per response, and `responses` is the number of responses."""
        if self.target:
            error = min(max(kl / self.target - 1, -0.2), 0.2)
            self.coef *= 1 + error * responses / self.horizon


def token_rewards(scores: Tensor, kl: Tensor, coef: float, mask: Tensor) -> Tensor:
    """Return the rewards [N, T]: -coef * KL for each token, plus the response's score at its last token.

    `scores` are [N], or [N, T] if they are distributed over the tokens. A response without a step gets no reward.
    """
    rewards = torch.where(mask, -coef * kl, 0.0)
    if scores.ndim == 2:
        return rewards + torch.where(mask, scores, 0.0)
    rows = torch.arange(len(mask), device=mask.device)
    rewards[rows, last_steps(mask)] += torch.where(mask.any(1), scores, 0.0)
    return rewards


def last_steps(mask: Tensor) -> Tensor:
    """Return the column index of each row's last step, as a tensor [N]."""
    return (mask * torch.arange(1, mask.shape[1] + 1, device=mask.device)).argmax(1)


def whiten(rewards: Tensor, mask: Tensor) -> Tensor:
    """Scale rewards to variance 1 over the rollout's steps, without changing their mean.

    Entries whose `mask` is False become 0. The authors of arXiv:1909.08593 use this method in their code. The variance
    is computed with Bessel's correction, as in TRL 0.11.4.
    """
    if int(mask.sum()) < 2:
        return rewards
    variance, mean = torch.var_mean(rewards[mask])
    return torch.where(mask, (rewards - mean) * torch.rsqrt(variance + 1e-8) + mean, 0.0)


def group_baselines(returns: Tensor, group_size: int, kind: str, kept: Tensor) -> tuple[Tensor, Tensor]:
    """Return (returns, baselines), each [N]. The advantage is returns - baselines.

    Responses to the same prompt form a group and must be adjacent. With `rloo`, the baseline is the mean return of the
    other responses in the group (arXiv:2402.14740, equation 9). With `grpo`, the baseline is the mean return of the
    group, and both returns and baselines are divided by the standard deviation of the group's returns
    (arXiv:2402.03300, section 4.1.2). Only responses that are `kept` (bool [N]) count. If a group has only one, the
    advantage of this response is 0.
    """
    counted = kept.view(-1, group_size)
    groups = torch.where(counted, returns.view(-1, group_size), 0.0)
    counts, sums = counted.sum(1, keepdim=True), groups.sum(1, keepdim=True)
    if kind == "rloo":
        others = torch.where(counts > 1, (sums - groups) / (counts - 1).clamp(min=1), groups)
        return groups.flatten(), torch.where(counted, others, 0.0).flatten()
    means = sums / counts.clamp(min=1)
    squares = torch.where(counted, groups - means, 0.0).square().sum(1, keepdim=True)
    deviation = (squares / (counts - 1).clamp(min=1)).sqrt() + 1e-4
    return (groups / deviation).flatten(), torch.where(counted, means / deviation, 0.0).flatten()
