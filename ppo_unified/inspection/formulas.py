"""The formulas of PPO in numpy, for arrays [N, T] of a stored iteration. This module does not import torch.

The engine and the LLM adapter contain the same formulas for tensors. Results have the dtype of the arguments. At steps
whose `mask` is False, arguments are ignored and results are 0 unless stated otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]

SMALLEST_STD = 1e-4  # added to the variance, so that equal numbers can be normalized

KL_ESTIMATES: dict[str, Callable[[Array], Array]] = {  # functions of log(pi / pi_ref) at the chosen token
    "k1": lambda log_ratio: log_ratio,
    "abs": np.abs,
    "k2": lambda log_ratio: 0.5 * np.square(log_ratio),
    "k3": lambda log_ratio: np.expm1(-log_ratio) + log_ratio,  # exact even near 0, so it is never negative
}


def kl_estimate(kind: str, logprobs: Array, ref_logprobs: Array, full: Array) -> Array:
    """Return an estimate of KL(pi || pi_ref) at each step, [N, T] (joschu.net/blog/kl-approx.html).

    `kind` is k1, abs, k2, k3 or full. `full` is the exact KL, summed over the vocabulary.
    """
    return full if kind == "full" else KL_ESTIMATES[kind](logprobs - ref_logprobs)


def last_steps(mask: Array) -> Array:
    """Return the column index of each row's last valid step, int [N], or 0 if the row has none."""
    return np.asarray((mask * np.arange(1, mask.shape[1] + 1)).argmax(1))


def token_rewards(scores: Array, kl: Array, coef: float, mask: Array) -> Array:
    """Return the rewards [N, T]: -coef * KL for each token, plus the response's score at its last token.

    `scores` are [N], or [N, T] if they are distributed over the tokens. A response without a step gets no reward.
    """
    rewards = np.where(mask, -coef * kl, 0)
    if scores.ndim == 2:
        return np.asarray(rewards + np.where(mask, scores, 0))
    rewards[np.arange(len(mask)), last_steps(mask)] += np.where(mask.any(1), scores, 0)
    return rewards


def clip_scores(scores: Array, limit: float) -> Array:
    """Return the scores clipped to [-limit, limit], or unchanged if `limit` is 0."""
    return np.clip(scores, -limit, limit) if limit else scores


def whiten(rewards: Array, mask: Array) -> Array:
    """Scale rewards to variance 1 over the valid steps, without changing their mean."""
    if mask.sum() < 2:
        return rewards
    mean, std = moments_of(rewards[mask])
    return np.where(mask, (rewards - mean) / std + mean, 0)


def moments_of(valid: Array) -> tuple[float, float]:
    """Return the mean and the standard deviation of some numbers, as accurate as float64."""
    mean = float(valid.mean(dtype=np.float64))
    variance = float(valid.var(ddof=1, dtype=np.float64))
    return mean, math.sqrt(variance + SMALLEST_STD**2)  # Python numbers keep the dtype of arrays


def group_baselines(returns: Array, group_size: int, kind: str, kept: Array) -> tuple[Array, Array]:
    """Return (returns, baselines), each [N]. The advantage is returns - baselines.

    Responses to the same prompt form a group and must be adjacent. `kind` is rloo (the mean return of the other
    responses in the group, arXiv:2402.14740, equation 9) or grpo (the mean return of the group, with returns and
    baselines divided by the standard deviation of the group's returns, arXiv:2402.03300, section 4.1.2). Only responses
    that are `kept` (bool [N]) count. If a group has only one, the advantage of this response is 0.
    """
    counted = kept.reshape(-1, group_size)
    groups = np.where(counted, returns.reshape(-1, group_size), 0)
    counts, sums = counted.sum(1, keepdims=True, dtype=returns.dtype), groups.sum(1, keepdims=True)
    if kind == "rloo":
        others = np.where(counts > 1, (sums - groups) / np.maximum(counts - 1, 1), groups)
        return groups.ravel(), np.where(counted, others, 0).ravel()
    means = sums / np.maximum(counts, 1)
    squares = np.where(counted, np.square(groups - means), 0).sum(1, keepdims=True)
    deviations = np.sqrt(squares / np.maximum(counts - 1, 1)) + 1e-4
    return (groups / deviations).ravel(), np.where(counted, means / deviations, 0).ravel()


class Steps(NamedTuple):
    """The arrays [N, T] from which advantages and value targets follow."""

    rewards: Array
    values: Array  # V_old before the step
    next_values: Array  # V_old after the step; 0 if the episode terminated
    continues: Array  # bool: True if the next valid column belongs to the same episode
    mask: Array  # bool: True at valid steps


def td_errors(steps: Steps, gamma: float) -> Array:
    """Return delta = r + gamma * V' - V at each step, [N, T]."""
    return np.where(steps.mask, steps.rewards + gamma * steps.next_values - steps.values, 0)


def gae(steps: Steps, gamma: float, lam: float) -> Array:
    """Return generalized advantage estimates [N, T] (arXiv:1506.02438, eq. 16): A = delta + gamma * lam * A', where A'
    is the advantage of the next valid step of the same episode, or 0 at the last step."""
    # time is the first axis, so that each column is contiguous; a masked column adds 0 and keeps the running sum
    advantages = np.ascontiguousarray(td_errors(steps, gamma).T)
    carried = (steps.continues * np.asarray(gamma * lam, advantages.dtype)).T
    carried = np.where(steps.mask.T, carried, np.ones((), advantages.dtype))
    for t in range(len(advantages) - 2, -1, -1):
        advantages[t] += carried[t] * advantages[t + 1]
    return np.where(steps.mask, advantages.T, 0)


def reward_to_go(steps: Steps, gamma: float) -> Array:
    """Return the discounted sum of rewards from each step to the end of its episode, [N, T]. If the rollout ends before
    the episode, V_old of the next state replaces the missing rewards."""
    return np.where(steps.mask, gae(steps, gamma, 1.0) + steps.values, 0)


def episode_starts(continues: Array, mask: Array) -> Array:
    """Return the column of the first step of each step's episode in the rollout, int [N, T]. Masked entries are
    undefined."""
    columns = np.arange(mask.shape[1])
    latest = np.maximum.accumulate(np.where(mask, columns, -1), axis=1)
    previous = np.concatenate([np.full((len(mask), 1), -1), latest[:, :-1]], axis=1)  # previous valid column, or -1
    goes_on = (previous >= 0) & np.take_along_axis(continues, np.maximum(previous, 0), axis=1)
    return np.asarray(np.maximum.accumulate(np.where(mask & ~goes_on, columns, 0), axis=1))


def episode_return(steps: Steps, gamma: float) -> Array:
    """Return the discounted return of each step's episode, [N, T]. The sum starts at the episode's first step in this
    rollout, so it includes rewards received before the step."""
    starts = episode_starts(steps.continues, steps.mask)
    return np.where(steps.mask, np.take_along_axis(reward_to_go(steps, gamma), starts, axis=1), 0)


def advantages_of(kind: str, steps: Steps, gamma: float, lam: float) -> Array:
    """Return the raw advantages [N, T]. `kind` is gae, td, reward-to-go or return, as in ppo.advantage."""
    match kind:
        case "gae":
            return gae(steps, gamma, lam)
        case "td":
            return td_errors(steps, gamma)
        case "reward-to-go":
            return reward_to_go(steps, gamma)
        case "return":
            return episode_return(steps, gamma)
    raise ValueError(f"expected an advantage of ppo.advantage, got {kind!r}")


def value_targets(kind: str, steps: Steps, gamma: float, lam: float) -> Array:
    """Return the critic's targets [N, T]. `kind` is lambda (GAE + V_old) or monte-carlo (the reward-to-go)."""
    if kind == "monte-carlo":
        return reward_to_go(steps, gamma)
    return np.where(steps.mask, gae(steps, gamma, lam) + steps.values, 0)


def standardize(advantages: Array, mask: Array) -> Array:
    """Return advantages with zero mean and unit variance over the valid steps. If there are fewer than two valid steps,
    the advantages are returned unchanged."""
    if mask.sum() < 2:
        return np.where(mask, advantages, 0)
    mean, std = moments_of(advantages[mask])
    return np.where(mask, (advantages - mean) / std, 0)


def standardize_groups(advantages: Array, groups: Array) -> Array:
    """Standardize advantages [N, T] separately in each group, such as a minibatch, with Bessel's correction.

    `groups` contains the number of each step's group, int [N, T], or -1 if the step belongs to none. Steps without a
    group get 0. A group of one step is unchanged.
    """
    chosen = groups >= 0
    number, x = groups[chosen], advantages[chosen].astype(np.float64)
    counts = np.bincount(number)
    centered = x - (np.bincount(number, x) / np.maximum(counts, 1))[number]
    variances = np.bincount(number, np.square(centered)) / np.maximum(counts - 1, 1)
    scaled = np.where(counts[number] < 2, x, centered / np.sqrt(variances[number] + SMALLEST_STD**2))
    standardized = np.zeros_like(advantages)
    standardized[chosen] = scaled
    return standardized


class Objective(NamedTuple):
    """The policy objective and the numbers in it."""

    kind: str  # clip, penalty, ratio or policy-gradient, as in ppo.objective
    below: float  # the ratio is clipped to [1 - below, 1 + above]
    above: float
    dual_clip: float = 0.0  # 0 = off
    penalty_coef: float = 1.0  # used only by the penalty objective


def ratio_kl(ratio: Array, log_ratio: Array) -> Array:
    """Return the estimate of KL(old || new) at each step, [N, T]: ratio - 1 - log ratio. It is never negative."""
    return np.asarray(ratio - 1 - log_ratio)


def outside(ratio: Array, objective: Objective) -> Array:
    """Return the side on which each ratio is outside the clip range, int8 [N, T]: -1 below, 1 above, 0 inside."""
    above = (ratio > 1 + objective.above).astype(np.int8)
    return np.asarray(above - (ratio < 1 - objective.below).astype(np.int8))


def policy_loss(logprobs: Array, old_logprobs: Array, advantages: Array, objective: Objective) -> Array:
    """Return the policy loss at each step, [N, T]. `logprobs` are those of the current policy."""
    if objective.kind == "policy-gradient":
        return np.asarray(-logprobs * advantages)
    log_ratio = logprobs - old_logprobs
    ratio = np.exp(log_ratio)
    gain = ratio * advantages
    if objective.kind == "penalty":
        return np.asarray(objective.penalty_coef * ratio_kl(ratio, log_ratio) - gain)
    if objective.kind == "clip":
        gain = np.minimum(gain, np.clip(ratio, 1 - objective.below, 1 + objective.above) * advantages)
        if objective.dual_clip:
            gain = np.where(advantages < 0, np.maximum(gain, objective.dual_clip * advantages), gain)
    return np.asarray(-gain)


def passed_gradient(ratio: Array, advantages: Array, objective: Objective) -> Array:
    """Return the fraction of the gradient of -ratio * A that passes through the clip at each step, [N, T].

    The fraction is 0 if a clipped term is selected and 1 otherwise. If two terms with different gradients are equal, it
    is 1/2, because PyTorch's `min` and `max` split the gradient between equal arguments.
    """
    gain = ratio * advantages
    if objective.kind != "clip":
        return np.ones_like(gain)
    clipped = np.clip(ratio, 1 - objective.below, 1 + objective.above) * advantages
    stopped = _fraction_below(clipped, gain)
    stopped *= outside(ratio, objective) != 0
    passed = np.subtract(1, stopped, out=stopped)
    if objective.dual_clip:
        below = _fraction_below(np.minimum(gain, clipped), objective.dual_clip * advantages)
        passed *= 1 - below * (advantages < 0)
    return np.asarray(passed)


def _fraction_below(x: Array, y: Array) -> Array:
    """Return 1 where `x` < `y`, 0 where it is greater, and 1/2 where they are equal."""
    # arithmetic with flags is several times faster than np.where if they have no regular pattern
    fraction = np.add(x < y, x <= y, dtype=x.dtype)
    fraction *= 0.5
    return np.asarray(fraction)


def is_cut(ratio: Array, advantages: Array, objective: Objective) -> Array:
    """Return True at steps whose policy gradient is exactly zero because a clipped term was selected, bool [N, T]."""
    # at A = 0, the terms are equal, so half of the (zero) gradient passes and the step is not cut
    return np.asarray(passed_gradient(ratio, advantages, objective) == 0)


def policy_derivative(ratio: Array, advantages: Array, objective: Objective) -> Array:
    """Return the derivative of each step's policy loss with respect to its log-prob, [N, T].

    Gradient descent makes an action more likely if the derivative is negative, and less likely if it is positive.
    """
    if objective.kind == "policy-gradient":
        return -advantages
    derivative = -ratio * advantages * passed_gradient(ratio, advantages, objective)
    if objective.kind == "penalty":
        derivative = objective.penalty_coef * (ratio - 1) + derivative
    return np.asarray(derivative)


def value_loss(values: Array, old_values: Array, targets: Array, value_clip: float = 0.0) -> Array:
    """Return half the squared error of the value estimates, [N, T]. If `value_clip` > 0, return the larger of two
    errors: with the original estimate, and with the estimate clipped to V_old +- `value_clip`."""
    loss = np.square(values - targets)
    if value_clip:
        clipped = old_values + np.clip(values - old_values, -value_clip, value_clip)
        loss = np.maximum(loss, np.square(clipped - targets))
    return np.asarray(0.5 * loss)
