"""Proximal Policy Optimization (Schulman et al. 2017, arXiv:1707.06347) over rollouts of any origin.

Reading order: `train` is the loop, `gae` and `make_batch` turn a rollout into targets, `ppo_loss` is the objective,
`update` steps the optimizers. Losses are SUMS over steps, divided once by the minibatch's weight, so that the
gradient does not depend on how a minibatch is cut to fit into memory.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ppo_unified.config.schema import PPO, Optim
from ppo_unified.engine.batch import Batch, microbatches, minibatches, normalized
from ppo_unified.engine.diagnostics import accumulate, explained_variance, gae_error
from ppo_unified.engine.optimizers import Adam, set_learning_rates, step
from ppo_unified.engine.rollout import ActorCritic, Adapter, Evaluation, Rollout, map_obs


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


class Iteration(NamedTuple):
    """What one `next()` of `train` gives."""

    metrics: dict[str, float]
    rollout: Rollout
    batch: Batch  # advantages not yet normalised when that happens per minibatch


def train(
    adapter: Adapter,
    optimizers: list[Adam],
    ppo: PPO,
    optim: Optim,
    progress: Progress,
    generator: torch.Generator,
) -> Iterator[Iteration]:
    """One PPO iteration per `next()`, until `progress` is complete. The caller logs, checkpoints, or stops by not
    asking for more. `generator` (CPU) deals the minibatches."""
    while progress.remaining > 0:
        set_learning_rates(optimizers, progress.remaining if optim.anneal else 1.0)
        started = time.perf_counter()
        rollout = adapter.collect()
        collected = time.perf_counter()
        batch = make_batch(rollout, ppo)
        metrics = update(adapter, optimizers, batch, ppo, optim, progress, generator)
        progress.iteration += 1
        progress.steps += int(batch.mask.sum())
        metrics |= {
            "optim/lr": optimizers[0].param_groups[0]["lr"],
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
    ladder: dict[str, Callable[[], Tensor]] = {
        "gae": lambda: estimate,
        "td": lambda: gae(rollout, ppo.gamma, 0.0),
        "reward-to-go": lambda: reward_to_go(rollout, ppo.gamma),
        "return": lambda: episode_return(rollout, ppo.gamma),
    }
    advantages = ladder[ppo.advantage]()
    monte_carlo = ppo.value_target == "monte-carlo"
    returns = reward_to_go(rollout, ppo.gamma) if monte_carlo else estimate + rollout.values
    if ppo.normalize_advantages == "batch":
        advantages = normalized(advantages, rollout.mask)
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
    sums: dict[str, Tensor]  # these terms and diagnostics, detached; the largest value, not the sum, of those *_max

    def total(self, value_coef: float, entropy_coef: float) -> Tensor:
        return self.policy + value_coef * self.value - entropy_coef * self.entropy


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
        clipped = ratio.clamp(1 - clip_scale * ppo.clip, 1 + clip_scale * (ppo.clip_high or ppo.clip))
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

    def summed(x: Tensor) -> Tensor:
        return (torch.where(batch.mask, x, 0.0) * batch.weights).sum()

    logprobs = torch.where(batch.mask, new.logprobs, batch.logprobs)
    values = torch.where(batch.mask, new.values, batch.returns)
    policy = summed(policy_loss(logprobs, batch, ppo, clip_scale, penalty_coef))
    value, entropy = summed(value_loss(values, batch, ppo.value_clip)), summed(new.entropy)
    with torch.no_grad():
        log_ratio = torch.where(batch.mask, logprobs - batch.logprobs, 0.0)
        ratio = log_ratio.exp()
        outside = (ratio < 1 - clip_scale * ppo.clip) | (ratio > 1 + clip_scale * (ppo.clip_high or ppo.clip))
        sums = {
            "policy": policy.detach(),
            "value": value.detach(),
            "entropy": entropy.detach(),
            "kl": ((ratio - 1 - log_ratio) * batch.weights).sum(),
            "clip_fraction": (outside * batch.weights).sum(),
            "ratio_max": ratio.max(),
            "ratio_error_max": (ratio - 1).abs().max(),
        }
    return Loss(policy, value, entropy, sums)


def update(
    adapter: Adapter,
    optimizers: list[Adam],
    batch: Batch,
    ppo: PPO,
    optim: Optim,
    progress: Progress,
    generator: torch.Generator,
) -> dict[str, float]:
    """Epochs of minibatch steps on one batch, until done or stopped by KL. Metrics are means over the last epoch."""
    warming_up = progress.iteration < ppo.critic_warmup
    norms: list[Tensor] = []
    totals: dict[str, Tensor] = {}
    extras: list[Mapping[str, float]] = []
    first_ratio_error, stopped, epoch = 0.0, False, 0
    while epoch < ppo.epochs and not stopped:
        epoch, totals = epoch + 1, {}
        for minibatch in minibatches(batch, ppo.minibatches, ppo.normalize_advantages == "minibatch", generator):
            sums = backward(adapter.policy, optimizers, minibatch, ppo, optim, progress, warming_up)
            accumulate(totals, sums)
            if not norms:
                first_ratio_error = float(sums["ratio_error_max"])
            if ppo.target_kl and sums["kl"] > ppo.target_kl * sums["weight"]:
                stopped = True
                break
            if not warming_up and (extra := adapter.extra_loss(generator)) is not None:
                extra[0].backward()
                extras.append(extra[1])
            norms.append(step(optimizers, optim, minibatch, sums))
    skipped = int((~torch.stack(norms).isfinite()).sum()) if norms else 0
    largest = {name: float(x) for name, x in totals.items() if name.endswith("_max")}
    mean = {name: float(x / totals["weight"]) for name, x in totals.items() if name not in largest}
    extra_metrics = {name: sum(x[name] for x in extras) / len(extras) for name in (extras[0] if extras else ())}
    if ppo.objective == "penalty":
        if ppo.penalty_target and not warming_up:
            missed = mean["kl"] / ppo.penalty_target  # arXiv:1707.06347, section 4
            progress.penalty_coef *= 2.0 if missed > 1.5 else 0.5 if missed < 1 / 1.5 else 1.0
        extra_metrics["policy/penalty_coef"] = progress.penalty_coef
    expected = ppo.epochs * min(ppo.minibatches, len(batch))
    return extra_metrics | {
        "loss/policy": mean["policy"],
        "loss/value": mean["value"],
        "loss/entropy": -mean["entropy"],
        "policy/entropy": mean["entropy"],
        "policy/kl": mean["kl"],
        "policy/clip_fraction": mean["clip_fraction"],
        "policy/ratio_max": largest["ratio_max"],
        "optim/grad_norm": float(torch.stack(norms).nanmean()) if norms else 0.0,
        "optim/steps": len(norms) - skipped,
        "optim/skipped": skipped,
        "optim/epochs": epoch,
        "invariant/first_ratio_error": first_ratio_error,
        "invariant/optimizer_steps_error": 0.0 if stopped else float(expected - len(norms)),
    }


def backward(
    policy: ActorCritic,
    optimizers: list[Adam],
    minibatch: Batch,
    ppo: PPO,
    optim: Optim,
    progress: Progress,
    critic_only: bool,
) -> dict[str, Tensor]:
    """Fresh gradients of one minibatch, accumulated over its micro-batches; the summed terms of its loss.

    With `critic_only` those of the value loss for the critic's own parameters: a shared trunk stays as it is.
    """
    for optimizer in optimizers:
        optimizer.zero_grad()
    clip_scale = progress.remaining if ppo.anneal_clip else 1.0
    critic = list(policy.critic_parameters()) if critic_only else None
    totals = {"weight": minibatch.weights.sum()}
    for micro in microbatches(minibatch, ppo.microbatch_columns):
        new = policy.evaluate(micro.obs, micro.actions)
        loss = ppo_loss(new, micro, ppo, clip_scale, progress.penalty_coef)
        total = loss.value if critic_only else loss.total(ppo.value_coef if optim.joint else 1.0, ppo.entropy_coef)
        (total / totals["weight"]).backward(inputs=critic)
        accumulate(totals, loss.sums)
    return totals
