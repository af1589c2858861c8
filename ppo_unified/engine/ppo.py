"""Proximal Policy Optimization (Schulman et al. 2017, arXiv:1707.06347) over rollouts of any origin.

Reading order: `train` is the loop, `gae` and `make_batch` turn a rollout into targets, `ppo_loss` is the objective,
`update` steps the optimizers. Losses are SUMS over steps, divided once by the minibatch's weight, so that the
gradient does not depend on how a minibatch is cut to fit into memory.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from ppo_unified.config.schema import PPO, Optim
from ppo_unified.engine.batch import Batch, microbatches, minibatches, standardize
from ppo_unified.engine.diagnostics import (
    Totals,
    explained_variance,
    gae_error,
    loss_metrics,
    mean_metrics,
    step_metrics,
)
from ppo_unified.engine.optimizers import Adam, make_optimizers, set_learning_rates, step
from ppo_unified.engine.rollout import ActorCritic, Evaluation, Rollout, RolloutSource, map_obs

ExtraLoss: TypeAlias = Callable[[torch.Generator], tuple[Tensor, Mapping[str, float]] | None]  # Adapter.extra_loss


@dataclass
class Progress:
    """How far a run is; checkpointed. A total of 0 is no limit."""

    total_steps: int = 0
    total_iterations: int = 0
    steps: int = 0  # valid steps learned from
    iteration: int = 0
    penalty_coef: float = 1.0  # of the penalty objective; adapts

    @property
    def remaining(self) -> float:
        """1 at the start, 0 at the end: what annealed options are multiplied by."""
        limits = ((self.steps, self.total_steps), (self.iteration, self.total_iterations))
        return max(0.0, 1.0 - max((done / total for done, total in limits if total), default=0.0))


@dataclass
class Learner:
    """What an update reads and changes besides its batch."""

    policy: ActorCritic
    optimizers: list[Adam]
    ppo: PPO
    optim: Optim
    progress: Progress
    generator: torch.Generator  # on the CPU; shuffles the minibatches

    @property
    def clip_scale(self) -> float:
        """The factor that anneals the clip range, in (0, 1]."""
        return self.progress.remaining if self.ppo.anneal_clip else 1.0

    @property
    def trains_critic_only(self) -> bool:
        """Whether this iteration belongs to the critic's warm-up."""
        return self.progress.iteration < self.ppo.critic_warmup


def make_learner(
    policy: ActorCritic, ppo: PPO, optim: Optim, total_steps: int = 0, total_iterations: int = 0, seed: int = 0
) -> Learner:
    """A learner at step 0; `seed` decides how minibatches are shuffled."""
    progress = Progress(total_steps, total_iterations, penalty_coef=ppo.penalty_coef)
    generator = torch.Generator().manual_seed(seed)
    return Learner(policy, make_optimizers(policy, optim), ppo, optim, progress, generator)


class Iteration(NamedTuple):
    """The result of one `next()` of `train`."""

    metrics: dict[str, float]
    rollout: Rollout
    batch: Batch  # advantages not yet normalised when that happens per minibatch


def train(adapter: RolloutSource, learner: Learner) -> Iterator[Iteration]:
    """One PPO iteration per `next()`, until the learner's progress is complete. The caller logs and writes checkpoints;
    it stops by not calling `next()` again."""
    ppo, progress = learner.ppo, learner.progress
    while progress.remaining > 0:
        set_learning_rates(learner.optimizers, progress.remaining if learner.optim.anneal else 1.0)
        started = time.perf_counter()
        rollout = adapter.collect()
        collected = time.perf_counter()
        batch = make_batch(rollout, ppo)
        metrics = update(learner, batch, adapter.extra_loss)
        progress.iteration += 1
        progress.steps += int(batch.mask.sum())
        metrics |= {
            "optim/lr": learner.optimizers[0].param_groups[0]["lr"],
            "value/explained_variance": explained_variance(batch),
            "value/mean": float(batch.values[batch.mask].mean()),
            "invariant/gae_error": gae_error(gae(rollout, ppo.gamma, ppo.lam), rollout, ppo.gamma, ppo.lam),
            "time/collect_s": collected - started,
            "time/update_s": time.perf_counter() - collected,
        }
        yield Iteration(metrics | dict(rollout.metrics), rollout, batch)


def gae(rollout: Rollout, gamma: float, lam: float) -> Tensor:
    """Generalized advantage estimation (Schulman et al. 2015, arXiv:1506.02438, eq. 16), [N, T]; 0 where masked.

        delta_t = r_t + gamma * V(what follows t) - V(s_t)
        A_t     = delta_t + gamma * lam * A_(next valid column of the same episode)

    A masked column is no step: the trace passes through it unchanged.
    """
    deltas = rollout.rewards + gamma * rollout.next_values - rollout.values
    carried = gamma * lam * rollout.continues.to(deltas.dtype)
    advantages, running = torch.zeros_like(deltas), torch.zeros_like(deltas[:, 0])
    for t in reversed(range(deltas.shape[1])):
        running = torch.where(rollout.mask[:, t], deltas[:, t] + carried[:, t] * running, running)
        advantages[:, t] = torch.where(rollout.mask[:, t], running, 0.0)
    return advantages


def reward_to_go(rollout: Rollout, gamma: float) -> Tensor:
    """Discounted rewards up to the episode's end, [N, T]; where the rollout cuts it off, the value of what follows
    stands for the rest. At lambda = 1 the values in GAE's deltas cancel, all but V(s_t)."""
    return torch.where(rollout.mask, gae(rollout, gamma, 1.0) + rollout.values, 0.0)


def episode_return(rollout: Rollout, gamma: float) -> Tensor:
    """Every step weighed by its whole episode's return, counted from the episode's first step in this rollout, [N, T]:
    the first rung of the policy-gradient ladder, blind to what an action could not have caused."""
    returns = reward_to_go(rollout, gamma)
    running, fresh = torch.zeros_like(returns[:, 0]), torch.ones_like(rollout.mask[:, 0])
    for t in range(returns.shape[1]):
        valid = rollout.mask[:, t]
        running = torch.where(fresh & valid, returns[:, t], running)
        returns[:, t] = torch.where(valid, running, 0.0)
        fresh = torch.where(valid, ~rollout.continues[:, t], fresh)
    return returns


def make_batch(rollout: Rollout, ppo: PPO) -> Batch:
    """Advantages, value targets and step weights for a rollout, as update rows [R, L]; rows without a valid step go."""
    estimate = gae(rollout, ppo.gamma, ppo.lam)
    match ppo.advantage:
        case "gae":
            advantages = estimate
        case "td":
            advantages = gae(rollout, ppo.gamma, 0.0)
        case "reward-to-go":
            advantages = reward_to_go(rollout, ppo.gamma)
        case "return":
            advantages = episode_return(rollout, ppo.gamma)
    monte_carlo = ppo.value_target == "monte-carlo"
    returns = reward_to_go(rollout, ppo.gamma) if monte_carlo else estimate + rollout.values
    if ppo.normalize_advantages == "batch":
        advantages = standardize(advantages, rollout.mask)
    mask = rollout.rows(rollout.mask)
    weights = mask / (mask.sum(1, keepdim=True).clamp(min=1) if ppo.loss_mean == "sequence" else 1.0)
    columns = (rollout.actions, rollout.logprobs, rollout.values, advantages, returns)
    actions, logprobs, values, advantages, returns = map(rollout.rows, columns)
    obs = map_obs(rollout.rows, rollout.obs)
    return Batch(obs, actions, logprobs, values, advantages, returns, mask, weights)[mask.any(1)]


class Loss(NamedTuple):
    """Terms of the loss, each a SUM over steps of weight * term (scalars)."""

    policy: Tensor
    value: Tensor
    entropy: Tensor  # the entropy itself; the total subtracts it
    totals: Totals  # these terms and diagnostics, detached

    def total(self, value_coef: float, entropy_coef: float) -> Tensor:
        return self.policy + value_coef * self.value - entropy_coef * self.entropy


def clip_range(ppo: PPO, clip_scale: float) -> tuple[float, float]:
    """How far the ratio may fall below and rise above 1."""
    return clip_scale * ppo.clip, clip_scale * (ppo.clip_high or ppo.clip)


def policy_loss(logprobs: Tensor, batch: Batch, ppo: PPO, clip_scale: float = 1.0, penalty_coef: float = 1.0) -> Tensor:
    """The objective to be minimised at every step, [R, L]. `clip_scale` in (0, 1] anneals the clip range.

    clip: arXiv:1707.06347 eq. 7; penalty: eq. 8 with KL(old || new) estimated on the old policy's samples;
    dual clip: arXiv:1912.09729 eq. 5; wider upper clip: arXiv:2503.14476.
    """
    advantages = batch.advantages
    if ppo.objective == "policy-gradient":
        return -logprobs * advantages
    log_ratio = logprobs - batch.logprobs
    ratio = log_ratio.exp()
    gain = ratio * advantages
    if ppo.objective == "penalty":
        return penalty_coef * (ratio - 1 - log_ratio) - gain
    if ppo.objective == "clip":
        below, above = clip_range(ppo, clip_scale)
        clipped = ratio.clamp(1 - below, 1 + above)
        gain = torch.min(gain, clipped * advantages)
        if ppo.dual_clip:
            gain = torch.where(advantages < 0, torch.max(gain, ppo.dual_clip * advantages), gain)
    return -gain


def value_loss(values: Tensor, batch: Batch, value_clip: float = 0.0) -> Tensor:
    """Half the squared error against the target at every step, [R, L]; with `value_clip` the worse of it and the
    error of the value held within `value_clip` of V_old."""
    loss = (values - batch.returns).square()
    if value_clip:
        held = batch.values + (values - batch.values).clamp(-value_clip, value_clip)
        loss = torch.max(loss, (held - batch.returns).square())
    return 0.5 * loss


def ppo_loss(new: Evaluation, batch: Batch, ppo: PPO, clip_scale: float = 1.0, penalty_coef: float = 1.0) -> Loss:
    """All terms of PPO's loss on [R, L] steps, summed with the batch's weights. Masked entries count for nothing and
    get no gradient, even where they are not finite."""

    def weighted_sum(x: Tensor) -> Tensor:
        return (torch.where(batch.mask, x, 0.0) * batch.weights).sum()

    logprobs = torch.where(batch.mask, new.logprobs, batch.logprobs)
    values = torch.where(batch.mask, new.values, batch.returns)
    policy = weighted_sum(policy_loss(logprobs, batch, ppo, clip_scale, penalty_coef))
    value, entropy = weighted_sum(value_loss(values, batch, ppo.value_clip)), weighted_sum(new.entropy)
    with torch.no_grad():
        log_ratio = torch.where(batch.mask, logprobs - batch.logprobs, 0.0)
        ratio = log_ratio.exp()
        below, above = clip_range(ppo, clip_scale)
        outside = (ratio < 1 - below) | (ratio > 1 + above)
        sums = {
            "policy": policy.detach(),
            "value": value.detach(),
            "entropy": entropy.detach(),
            "kl": ((ratio - 1 - log_ratio) * batch.weights).sum(),
            "clip_fraction": (outside * batch.weights).sum(),
        }
        maxima = {"ratio": ratio.max(), "ratio_error": (ratio - 1).abs().max()}
    return Loss(policy, value, entropy, Totals(sums, maxima))


def update(learner: Learner, batch: Batch, extra_loss: ExtraLoss) -> dict[str, float]:
    """Epochs of minibatch steps on one batch, until done or stopped by KL. Metrics are means over the last epoch."""
    ppo, critic_only = learner.ppo, learner.trains_critic_only
    norms: list[Tensor] = []
    extras: list[Mapping[str, float]] = []
    epoch_totals, first_ratio_error, stopped, epoch = Totals({}, {}), 0.0, False, 0
    while epoch < ppo.epochs and not stopped:
        epoch, epoch_totals = epoch + 1, Totals({}, {})
        per_minibatch = ppo.normalize_advantages == "minibatch"
        for minibatch in minibatches(batch, ppo.minibatches, per_minibatch, learner.generator):
            totals = backward(learner, minibatch, critic_only)
            epoch_totals.add(totals)
            if not norms:
                first_ratio_error = float(totals.maxima["ratio_error"])
            if ppo.target_kl and totals.sums["kl"] > ppo.target_kl * totals.sums["weight"]:
                stopped = True
                break
            if not critic_only and (extra := extra_loss(learner.generator)) is not None:
                extra[0].backward()
                extras.append(extra[1])
            norms.append(step(learner.optimizers, learner.optim, minibatch, totals.sums))
    metrics = mean_metrics(extras) | loss_metrics(epoch_totals) | step_metrics(norms)
    if ppo.objective == "penalty":
        if ppo.penalty_target and not critic_only:
            learner.progress.penalty_coef = adapt_penalty(learner.progress.penalty_coef, metrics["policy/kl"], ppo)
        metrics["policy/penalty_coef"] = learner.progress.penalty_coef
    expected = ppo.epochs * min(ppo.minibatches, len(batch))
    return metrics | {
        "optim/epochs": epoch,
        "invariant/first_ratio_error": first_ratio_error,
        "invariant/optimizer_steps_error": 0.0 if stopped else float(expected - len(norms)),
    }


def adapt_penalty(penalty_coef: float, kl: float, ppo: PPO) -> float:
    """The penalty's coefficient after an update that moved the policy by `kl` (arXiv:1707.06347, section 4)."""
    missed = kl / ppo.penalty_target
    return penalty_coef * (2.0 if missed > 1.5 else 0.5 if missed < 1 / 1.5 else 1.0)


def backward(learner: Learner, minibatch: Batch, critic_only: bool) -> Totals:
    """Fresh gradients of one minibatch, accumulated over its micro-batches; the totals of its loss.

    With `critic_only` those of the value loss for the critic's own parameters: a shared trunk stays as it is.
    """
    policy, ppo = learner.policy, learner.ppo
    for optimizer in learner.optimizers:
        optimizer.zero_grad()
    critic = list(policy.critic_parameters()) if critic_only else None
    value_coef = ppo.value_coef if learner.optim.joint else 1.0
    weight = minibatch.weights.sum()
    totals = Totals({"weight": weight}, {})
    for micro in microbatches(minibatch, ppo.microbatch_columns):
        new = policy.evaluate(micro.obs, micro.actions)
        loss = ppo_loss(new, micro, ppo, learner.clip_scale, learner.progress.penalty_coef)
        total = loss.value if critic_only else loss.total(value_coef, ppo.entropy_coef)
        (total / weight).backward(inputs=critic)
        totals.add(loss.totals)
    return totals
