"""What a token costs and what a response earns: KL estimates, the adaptive coefficient, rewards, group baselines."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

ESTIMATES: dict[str, Callable[[Tensor], Tensor]] = {  # of log(pi / pi_ref) at the sampled token
    "k1": lambda log_ratio: log_ratio,  # unbiased; negative where the reference likes the token better
    "abs": torch.abs,
    "k2": lambda log_ratio: 0.5 * log_ratio.square(),
    "k3": lambda log_ratio: (-log_ratio).exp() - 1 + log_ratio,  # unbiased, never negative
}


def kl_estimates(logprobs: Tensor, ref_logprobs: Tensor, full: Tensor) -> dict[str, Tensor]:
    """Every estimate of KL(pi || pi_ref) per step, each [N, T] (joschu.net/blog/kl-approx.html).

    `full` is the exact sum over the vocabulary, which only who holds both distributions can compute.
    """
    log_ratio = logprobs - ref_logprobs
    return {name: estimate(log_ratio) for name, estimate in ESTIMATES.items()} | {"full": full}


@dataclass
class KLController:
    """The weight of the KL penalty, fixed (target 0) or adapting towards a KL per response
    (arXiv:1909.08593, section 2.2)."""

    coef: float
    target: float
    horizon: int

    def update(self, kl: float, responses: int) -> None:
        """`kl`: mean over `responses` of the KL summed over their tokens."""
        if self.target:
            error = min(max(kl / self.target - 1, -0.2), 0.2)
            self.coef *= 1 + error * responses / self.horizon


def token_rewards(scores: Tensor, kl: Tensor, coef: float, mask: Tensor) -> Tensor:
    """-coef * KL at every step the policy took, plus the score [N] at each row's last one; [N, T]."""
    rewards = torch.where(mask, -coef * kl, 0.0)
    rows = torch.arange(len(mask), device=mask.device)
    rewards[rows, last_steps(mask)] += scores
    return rewards


def last_steps(mask: Tensor) -> Tensor:
    """The column of each row's last step, [N]."""
    return (mask * torch.arange(1, mask.shape[1] + 1, device=mask.device)).argmax(1)


def whiten(rewards: Tensor, mask: Tensor) -> Tensor:
    """Unit variance over the steps of a rollout with the mean kept (arXiv:1909.08593's code; Bessel's correction as in
    TRL 0.11.4); 0 where masked."""
    if int(mask.sum()) < 2:
        return rewards
    variance, mean = torch.var_mean(rewards[mask])
    return torch.where(mask, (rewards - mean) * torch.rsqrt(variance + 1e-8) + mean, 0.0)


def group_baselines(returns: Tensor, group_size: int, kind: str) -> tuple[Tensor, Tensor]:
    """(returns, baselines), each [N], whose difference is the advantage; responses to one prompt stand together.

    rloo: the mean of the group's other returns (arXiv:2402.14740, eq. 9). grpo: the group's mean, both divided by its
    standard deviation (arXiv:2402.03300, section 4.1.2).
    """
    groups = returns.view(-1, group_size)
    if kind == "rloo":
        others = (groups.sum(1, keepdim=True) - groups) / (group_size - 1)
        return returns, others.flatten()
    deviation = groups.std(1, keepdim=True) + 1e-4
    means = groups.mean(1, keepdim=True).expand_as(groups)
    return (groups / deviation).flatten(), (means / deviation).flatten()
