"""Proximal Policy Optimization (Schulman et al. 2017, arXiv:1707.06347) for rollouts from any adapter.

`train` is the training loop, `gae` and `make_batch` compute advantages and value targets, `ppo_loss` computes the loss,
and `update` runs the optimizers. Losses are summed over steps, and the sum is divided once by the minibatch's total
weight. The gradient therefore does not depend on the size of the micro-batches.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from ppo_unified.config.schema import PPO, Optim
from ppo_unified.config.spec import WorkCounter
from ppo_unified.engine import diagnostics
from ppo_unified.engine.batch import Batch, microbatches, minibatches, standardize
from ppo_unified.engine.diagnostics import Totals
from ppo_unified.engine.fused import policy_slope, use_autograd, value_slope
from ppo_unified.engine.optimizers import Adam, make_optimizers, set_learning_rates, step
from ppo_unified.engine.rollout import ActorCritic, Evaluation, Rollout, RolloutSource, map_obs

ExtraLoss: TypeAlias = Callable[[torch.Generator], tuple[Tensor, Mapping[str, float]] | None]  # Adapter.extra_loss
Observer: TypeAlias = Callable[[Batch, Evaluation, Tensor], None]  # micro-batch, its outputs, weight of its minibatch


@dataclass
class Progress:
    """The progress of a run, saved in every checkpoint. A total of 0 means no limit."""

    total_steps: int = 0
    total_iterations: int = 0
    steps: int = 0  # number of valid steps so far
    iteration: int = 0  # number of completed iterations
    penalty_coef: float = 1.0  # current weight of the KL term in the penalty objective

    @property
    def remaining(self) -> float:
        """The fraction of the run that remains, from 1 down to 0. Annealed options are multiplied by this fraction."""
        limits = ((self.steps, self.total_steps), (self.iteration, self.total_iterations))
        return max(0.0, 1.0 - max((done / total for done, total in limits if total), default=0.0))


@dataclass
class Learner:
    """The state that an update uses and changes: the policy, its optimizers, the options and the progress."""

    policy: ActorCritic
    optimizers: list[Adam]
    ppo: PPO
    optim: Optim
    progress: Progress
    generator: torch.Generator  # on the CPU; shuffles the minibatches
    counter: WorkCounter = field(default_factory=WorkCounter)  # rows of the current update, in all epochs
    observe: Observer | None = None  # called with every micro-batch, before the optimizer step of its minibatch

    def scale(self, annealed: bool) -> float:
        """Return the factor in (0, 1] of a value that is annealed, or 1."""
        return self.optim.anneal_factor(self.progress.remaining) if annealed else 1.0

    @property
    def trains_critic_only(self) -> bool:
        """True during the first `ppo.critic_warmup` iterations, which train only the critic."""
        return self.progress.iteration < self.ppo.critic_warmup


def make_learner(
    policy: ActorCritic, ppo: PPO, optim: Optim, total_steps: int = 0, total_iterations: int = 0, seed: int = 0
) -> Learner:
    """Return a learner at step 0. `seed` initializes the generator that shuffles the minibatches."""
    progress = Progress(total_steps, total_iterations, penalty_coef=ppo.penalty_coef)
    generator = torch.Generator().manual_seed(seed)
    return Learner(policy, make_optimizers(policy, optim), ppo, optim, progress, generator)


class Iteration(NamedTuple):
    """The result of one iteration of `train`."""

    metrics: dict[str, float]
    rollout: Rollout
    batch: Batch  # before normalization per minibatch, if that is enabled


def train(adapter: RolloutSource, learner: Learner) -> Iterator[Iteration]:
    """Run one PPO iteration (collect, then update) for each call of `next()` until `learner.progress` reaches a limit.
    Between iterations, the caller can write logs and checkpoints, or end training early by not calling `next()`."""
    ppo, progress = learner.ppo, learner.progress
    while progress.remaining > 0:
        set_learning_rates(learner.optimizers, learner.optim.lr_scale(progress.iteration, progress.remaining))
        started = time.perf_counter()
        rollout = adapter.collect()
        collected = time.perf_counter()
        batch = make_batch(rollout, ppo)
        metrics = update(learner, batch, adapter.extra_loss)
        progress.iteration += 1
        progress.steps += int(batch.mask.sum())
        metrics |= {
            "optim/lr": learner.optimizers[0].param_groups[0]["lr"],
            "value/explained_variance": diagnostics.explained_variance(batch),
            "value/mean": float(batch.values[batch.mask].mean()),
            "invariant/gae_error": diagnostics.gae_error(gae(rollout, ppo.gamma, ppo.lam), rollout, ppo.gamma, ppo.lam),
            "time/collect_s": collected - started,
            "time/update_s": time.perf_counter() - collected,
        }
        yield Iteration(metrics | dict(rollout.metrics), rollout, batch)


def gae(rollout: Rollout, gamma: float, lam: float) -> Tensor:
    """Compute generalized advantage estimates [N, T] (GAE; Schulman et al. 2015, arXiv:1506.02438, eq. 16).

        delta_t = r_t + gamma * V(next state) - V(s_t)
        A_t     = delta_t + gamma * lam * A_(next valid column of the same episode)

    Masked columns are skipped: their advantage is 0, and the recursion continues at the next valid column.
    """
    deltas = rollout.rewards + gamma * rollout.next_values - rollout.values
    carried = gamma * lam * rollout.continues.to(deltas.dtype)
    deltas, carried = torch.where(rollout.mask, deltas, 0.0), torch.where(rollout.mask, carried, 1.0)
    running, advantages = torch.zeros_like(deltas[:, 0]), list[Tensor]()
    for delta, carry in zip(reversed(deltas.unbind(1)), reversed(carried.unbind(1)), strict=True):
        running = torch.addcmul(delta, carry, running)
        advantages.append(running)
    return torch.where(rollout.mask, torch.stack(advantages[::-1], 1), 0.0)


def reward_to_go(rollout: Rollout, gamma: float) -> Tensor:
    """Return the discounted sum of rewards from each step to the end of its episode, [N, T]. If the rollout ends before
    the episode, V_old of the next state replaces the missing rewards."""
    # with lambda = 1, all value estimates in GAE's deltas cancel except V(s_t)
    return torch.where(rollout.mask, gae(rollout, gamma, 1.0) + rollout.values, 0.0)


def episode_return(rollout: Rollout, gamma: float) -> Tensor:
    """Return the discounted return of each step's episode, [N, T]. The sum starts at the episode's first step in this
    rollout, so it includes rewards received before the step."""
    returns = reward_to_go(rollout, gamma)
    running, starts = torch.zeros_like(returns[:, 0]), torch.ones_like(rollout.mask[:, 0])
    for t in range(returns.shape[1]):
        valid = rollout.mask[:, t]
        running = torch.where(starts & valid, returns[:, t], running)
        returns[:, t] = torch.where(valid, running, 0.0)
        starts = torch.where(valid, ~rollout.continues[:, t], starts)
    return returns


def make_batch(rollout: Rollout, ppo: PPO) -> Batch:
    """Return the update batch with advantages, value targets and step weights. Drop rows without a valid step."""
    estimate = gae(rollout, ppo.gamma, ppo.lam)
    if ppo.advantage in ("gae", "td"):
        advantages = estimate if ppo.advantage == "gae" else gae(rollout, ppo.gamma, 0.0)
    else:
        discount = reward_to_go if ppo.advantage == "reward-to-go" else episode_return
        advantages = discount(rollout, ppo.gamma)
    monte_carlo = ppo.value_target == "monte-carlo"
    returns = reward_to_go(rollout, ppo.gamma) if monte_carlo else estimate + rollout.values
    if ppo.normalize_advantages == "batch":
        advantages = standardize(advantages, rollout.mask)
    mask = rollout.rows(rollout.mask)
    weights = mask / (mask.sum(1, keepdim=True).clamp(min=1) if ppo.loss_mean == "sequence" else 1.0)
    places = torch.arange(mask.numel(), device=mask.device).view(mask.shape)
    columns = map(rollout.rows, (rollout.actions, rollout.logprobs, rollout.values, advantages, returns))
    return Batch(map_obs(rollout.rows, rollout.obs), *(*columns, mask, weights, places))[mask.any(1).nonzero()[:, 0]]


class Loss(NamedTuple):
    """The terms of the loss. Each term is a scalar: the sum over all steps, weighted by `Batch.weights`."""

    policy: Tensor
    value: Tensor
    entropy: Tensor  # `total` subtracts it
    totals: Totals  # the same terms, detached, and diagnostics

    def total(self, value_coef: float, entropy_coef: float) -> Tensor:
        return self.policy + value_coef * self.value - entropy_coef * self.entropy


def clip_range(ppo: PPO, clip_scale: float) -> tuple[float, float]:
    """Return `below` and `above`: the ratio is clipped to [1 - below, 1 + above]."""
    return clip_scale * ppo.clip, clip_scale * (ppo.clip_high or ppo.clip)


def policy_loss(logprobs: Tensor, batch: Batch, ppo: PPO, clip_scale: float = 1.0, penalty_coef: float = 1.0) -> Tensor:
    """Return the policy loss at every step, [R, L]. The clip range is multiplied by `clip_scale`, a factor in (0, 1].

    Sources: arXiv:1707.06347 for the clip (eq. 7) and the penalty (eq. 8, with KL(old || new) estimated from the old
    policy's samples), arXiv:1912.09729 for the dual clip (eq. 5), and arXiv:2503.14476 for `clip_high`.
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
    """Return half the squared error of the value estimate at every step, [R, L]. If `value_clip` > 0, return the larger
    of two errors: with the original estimate, and with the estimate clipped to V_old +- `value_clip`."""
    loss = (values - batch.returns).square()
    if value_clip:
        clipped = batch.values + (values - batch.values).clamp(-value_clip, value_clip)
        loss = torch.max(loss, (clipped - batch.returns).square())
    return 0.5 * loss


def ppo_loss(new: Evaluation, batch: Batch, ppo: PPO, clip_scale: float = 1.0, penalty_coef: float = 1.0) -> Loss:
    """Return the terms of PPO's loss, each as a sum over all steps, weighted by `batch.weights`. Masked entries
    contribute neither to the loss nor to the gradient, even if they are NaN or infinite."""

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
    """Train on one batch for `ppo.epochs` epochs, or until the KL exceeds `ppo.target_kl`. Return the update's metrics;
    loss terms and diagnostics are means over the last epoch."""
    ppo, critic_only = learner.ppo, learner.trains_critic_only
    learner.counter.begin("update", total=ppo.epochs * len(batch))
    expected, norms, extras = ppo.epochs * min(ppo.minibatches, len(batch)), list[Tensor](), list[Mapping[str, float]]()
    last_epoch, first_ratio_error, stopped, epoch = Totals({}, {}), 0.0, False, 0
    while epoch < ppo.epochs and not stopped:
        epoch, last_epoch = epoch + 1, Totals({}, {})
        per_minibatch = ppo.normalize_advantages == "minibatch"
        for minibatch in minibatches(batch, ppo.minibatches, per_minibatch, learner.generator):
            learner.counter.work = f"update {len(norms) + 1:,} of {expected:,}"
            measured = not norms or epoch == ppo.epochs or ppo.target_kl > 0
            totals = backward(learner, minibatch, critic_only, measured)
            if measured:
                last_epoch.add(totals)
            if not norms:
                first_ratio_error = float(totals.maxima["ratio_error"])
            if ppo.target_kl and totals.sums["kl"] > ppo.target_kl * totals.sums["weight"]:
                stopped = True
                break
            if not critic_only and (extra := extra_loss(learner.generator)) is not None:
                extra[0].backward()
                extras.append(extra[1])
            losses = [totals.sums[name] for name in Loss._fields if name in totals.sums]
            norms.append(step(learner.optimizers, learner.optim, minibatch, losses))
    metrics = diagnostics.mean_metrics(extras) | diagnostics.loss_metrics(last_epoch) | diagnostics.step_metrics(norms)
    if ppo.objective == "penalty":
        if ppo.penalty_target and not critic_only:
            learner.progress.penalty_coef = adapt_penalty(learner.progress.penalty_coef, metrics["policy/kl"], ppo)
        metrics["policy/penalty_coef"] = learner.progress.penalty_coef
    return metrics | {
        "optim/epochs": epoch,
        "invariant/first_ratio_error": first_ratio_error,
        "invariant/optimizer_steps_error": 0.0 if stopped else float(expected - len(norms)),
    }


def adapt_penalty(penalty_coef: float, kl: float, ppo: PPO) -> float:
    """Return the KL penalty's new coefficient, given the mean KL of the last epoch (arXiv:1707.06347, section 4)."""
    relative_kl = kl / ppo.penalty_target
    return penalty_coef * (2.0 if relative_kl > 1.5 else 0.5 if relative_kl < 1 / 1.5 else 1.0)


def backward(learner: Learner, minibatch: Batch, critic_only: bool, measured: bool = True) -> Totals:
    """Accumulate the gradients of one minibatch over its micro-batches, and return the minibatch's loss totals.

    If `critic_only` is true, only the value loss is used and only the critic's own parameters get gradients. If every
    row is one valid step and `measured` is false, only gradients are computed, and the totals contain only the weight.
    """
    policy, ppo = learner.policy, learner.ppo
    single = minibatch.mask.shape[1] == 1 and bool(minibatch.mask.all())
    critic = list(policy.critic_parameters()) if critic_only else None
    value_coef = ppo.value_coef if learner.optim.joint and not critic_only else 1.0
    entropy_coef, clip_scale = ppo.entropy_coef * learner.scale(ppo.anneal_entropy), learner.scale(ppo.anneal_clip)
    weight = minibatch.weights.sum()
    totals = Totals({"weight": weight}, {})
    for number, micro in enumerate(microbatches(minibatch, ppo.microbatch_columns)):
        explicit = policy.evaluate_explicitly(micro.obs, micro.actions) if single and not critic_only else None
        for optimizer in learner.optimizers if number == 0 else ():
            optimizer.zero_grad(set_to_none=explicit is None)
        new, add_gradients = explicit or use_autograd(policy.evaluate(micro.obs, micro.actions), critic)
        if learner.observe is not None:
            learner.observe(micro, new, weight)
        if measured or not single:
            loss = ppo_loss(new, micro, ppo, clip_scale, learner.progress.penalty_coef)
            totals.add(loss.totals)
        if single:
            limits, penalty_coef = clip_range(ppo, clip_scale), learner.progress.penalty_coef
            with torch.no_grad():
                share = micro.weights.to(new.values.dtype) / weight
                by_logprob = share * policy_slope(new.logprobs, micro, ppo, limits, penalty_coef)
                by_entropy = share * -entropy_coef if entropy_coef else None
                by_value = share * value_coef * value_slope(new.values, micro, ppo.value_clip)
            add_gradients(*((None, None) if critic_only else (by_logprob, by_entropy)), by_value)
        else:
            total = loss.value if critic_only else loss.total(value_coef, entropy_coef)
            (total / weight).backward(inputs=critic)
        learner.counter.done += len(micro)
    return totals
