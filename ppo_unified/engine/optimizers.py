"""Adam optimizers for the policy and the critic: creation, learning rates, gradient clipping and the step."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ppo_unified.config.schema import Optim
from ppo_unified.engine.batch import Batch
from ppo_unified.engine.rollout import ActorCritic

TERMS = ("policy", "value", "entropy")  # terms of the loss


class Adam(torch.optim.Adam):
    """PyTorch's Adam without the hooks for torch.compile, whose first call would import the compiler (about 1 s)."""

    add_param_group = inspect.unwrap(Optimizer.add_param_group)
    zero_grad = inspect.unwrap(Optimizer.zero_grad)
    state_dict = inspect.unwrap(Optimizer.state_dict)
    load_state_dict = inspect.unwrap(Optimizer.load_state_dict)
    step = torch.no_grad()(inspect.unwrap(torch.optim.Adam.step))


class NonFiniteError(FloatingPointError):
    """Raised if a rollout, loss or gradient is not finite. No weight changed. `step` sets `minibatch` and `sums`."""

    def __init__(self, message: str, minibatch: Batch | None = None, sums: Mapping[str, Tensor] | None = None) -> None:
        super().__init__(message)
        self.minibatch, self.sums = minibatch, sums or {}


def make_optimizers(policy: ActorCritic, optim: Optim) -> list[Adam]:
    """Return one Adam for all parameters or, if `optim.joint` is false, one for the policy and one for the critic."""

    def adam(parameters: Iterable[nn.Parameter], lr: float) -> Adam:
        betas = (optim.betas[0], optim.betas[1])
        optimizer = Adam(list(parameters), lr=lr, eps=optim.eps, betas=betas, fused=True)
        for group in optimizer.param_groups:
            group["initial_lr"] = lr
        return optimizer

    trainable = [p for p in policy.parameters() if p.requires_grad]
    if optim.joint:
        return [adam(trainable, optim.lr)]
    critic = [p for p in policy.critic_parameters() if p.requires_grad]
    own = {id(p) for p in critic}
    return [adam((p for p in trainable if id(p) not in own), optim.lr), adam(critic, optim.critic_lr or optim.lr)]


def set_learning_rates(optimizers: list[Adam], scale: float) -> None:
    """Set the learning rate of each parameter group to its initial learning rate multiplied by `scale`."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * scale


def step(
    optimizers: list[Adam],
    optim: Optim,
    minibatch: Batch | None = None,
    sums: Mapping[str, Tensor] = MappingProxyType({}),
) -> Tensor:
    """Clip each optimizer's gradients, take a step, and return the norm of all gradients before clipping.

    If a gradient or one of the loss terms in `sums` is NaN or infinite, no weight is changed. Depending on
    `optim.on_nonfinite`, the function then returns NaN or raises NonFiniteError.
    """
    norms, clipped = [], []
    for optimizer in optimizers:
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if parameters:  # during the critic's warm-up, the policy's optimizer has no gradients
            norms.append(nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))
            clipped.append(parameters)
    norm = torch.stack(norms).norm() if len(norms) > 1 else norms[0]
    # test the sum, not each number, because every test waits for the device
    if not torch.isfinite(norm + sum(sums[name] for name in TERMS if name in sums)):
        if optim.on_nonfinite == "skip":
            return torch.full_like(norm, torch.nan)
        terms = ", ".join(f"{name} {float(sums[name]):.4g}" for name in TERMS if name in sums)
        raise NonFiniteError(
            f"the gradient norm is {float(norm)}; no weight was changed (loss sums: {terms})", minibatch, sums
        )
    for parameters, own_norm in zip(clipped, norms, strict=True):  # a NaN norm, rejected above, would spread
        nn.utils.clip_grads_with_norm_(parameters, optim.max_grad_norm or torch.inf, own_norm)
    for optimizer in optimizers:
        optimizer.step()
    return norm
