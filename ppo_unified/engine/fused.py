"""Gradients of `ppo.ppo_loss` and an Adam step that call fewer operations, which is faster for small models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn

from ppo_unified.config.schema import PPO
from ppo_unified.engine.batch import Batch
from ppo_unified.engine.rollout import AddGradients, Evaluation

ALIGNMENT = 16  # in elements: a view starts at a multiple of 64 bytes, as a separate tensor does


def value_slope(values: Tensor, batch: Batch, value_clip: float) -> Tensor:
    """Return the derivative of `ppo.value_loss` with respect to `values` at every step, [R, L]."""
    error = values - batch.returns
    if value_clip:
        change = values - batch.values
        clipped = batch.values + change.clamp(-value_clip, value_clip) - batch.returns
        moving = torch.where(change.abs() <= value_clip, clipped, 0.0)  # outside, the clipped error is constant
        error = torch.where(clipped.square() > error.square(), moving, error)
    return error


def policy_slope(logprobs: Tensor, batch: Batch, ppo: PPO, limits: tuple[float, float], penalty_coef: float) -> Tensor:
    """Return the derivative of `ppo.policy_loss` with respect to `logprobs` at every step, [R, L]."""
    advantages = batch.advantages
    if ppo.objective == "policy-gradient":
        return -advantages
    ratio = (logprobs - batch.logprobs).exp_()
    slope = gain = ratio * advantages
    if ppo.objective == "penalty":
        return penalty_coef * (ratio - 1) - gain
    if ppo.objective == "clip":
        slope = gain * (gain <= ratio.clamp_(1 - limits[0], 1 + limits[1]).mul_(advantages))
        if ppo.dual_clip:
            slope = slope * ((advantages >= 0) | (gain >= ppo.dual_clip * advantages))
    return -slope


def use_autograd(new: Evaluation, inputs: list[nn.Parameter] | None) -> tuple[Evaluation, AddGradients]:
    """Return `new` and a function that takes its gradients and adds to those of all parameters, or only of `inputs`."""

    def add_gradients(*gradients: Tensor | None) -> None:
        used = [(x, g) for x, g in zip(new, gradients, strict=True) if g is not None and x.requires_grad]
        torch.autograd.backward([x for x, _ in used], [g for _, g in used], inputs=inputs)

    return new, add_gradients


class FlatParameters:
    """Common tensors of parameters, gradients and Adam's moments. Each parameter's `data` and `grad` are views."""

    def __init__(self, parameters: Sequence[nn.Parameter], state: dict[Any, dict[str, Any]]) -> None:
        """Move the parameters and Adam's state, which must have equal step counts, to common tensors."""
        sizes = [-(-p.numel() // ALIGNMENT) * ALIGNMENT for p in parameters]
        whole = parameters[0].data.new_zeros(4, sum(sizes)).unbind()
        self.count: Tensor = whole[0].new_zeros((), dtype=torch.float32) + state[parameters[0]].get("step", 0.0)
        self.parameters, self.views = parameters, list[Tensor]()
        self.whole: list[list[Tensor]] = [*([x] for x in whole), [], [self.count]]
        for p, *parts in zip(parameters, *(x.split(sizes) for x in whole), strict=True):
            data, grad, avg, avg_sq = (part[: p.numel()].view_as(p) for part in parts)
            old, state[p] = state[p], {"step": self.count, "exp_avg": avg, "exp_avg_sq": avg_sq}
            torch._foreach_copy_([data, avg, avg_sq], [p.data, old.get("exp_avg", avg), old.get("exp_avg_sq", avg_sq)])
            p.data = data
            self.views.append(grad)

    def collect_gradients(self) -> Tensor:
        """Move the gradients to their common tensor and return it."""
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        if not all(map(is_, gradients, self.views)):
            torch._foreach_copy_(self.views, gradients)
            for p, view in zip(self.parameters, self.views, strict=True):
                p.grad = view
        return self.whole[1][0]

    def step(self, group: Mapping[str, Any]) -> None:
        self.count += 1
        betas, options = group["betas"], {name: group[name] for name in ("lr", "eps", "weight_decay", "maximize")}
        torch._fused_adam_(*self.whole, beta1=betas[0], beta2=betas[1], amsgrad=False, **options)
