"""Adam optimizers for the policy and the critic: creation, learning rates, gradient clipping and the step."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ppo_unified.config.schema import Optim
from ppo_unified.engine.batch import Batch
from ppo_unified.engine.fused import Flat
from ppo_unified.engine.rollout import ActorCritic

SMALL = 1 << 19  # largest number of weights that an optimizer moves to common tensors


class Adam(torch.optim.Adam):
    """PyTorch's Adam without the hooks for torch.compile, whose first call would import the compiler (about 1 s).

    It moves the parameters of a small model to common tensors (see `Flat`); `param_groups` and `state` look the same.
    """

    add_param_group = inspect.unwrap(Optimizer.add_param_group)
    state_dict = inspect.unwrap(Optimizer.state_dict)

    def __init__(self, parameters: Sequence[nn.Parameter], lr: float, **options: Any) -> None:
        super().__init__([{"params": parameters, "initial_lr": lr}], lr=lr, fused=True, **options)
        same = len({(p.dtype, p.device) for p in parameters}) == 1
        self.is_small = same and sum(p.numel() for p in parameters) <= SMALL
        self.flats, self.places = list[Flat](), list[int]()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        inspect.unwrap(Optimizer.load_state_dict)(self, state)
        self.places = []

    def gradients(self) -> list[Tensor]:
        """Return the gradients of the parameters that have one, in common tensors if the model is small."""
        parameters = [p for p in self.param_groups[0]["params"] if p.grad is not None]
        if not self.is_small:
            return [p.grad for p in parameters]
        if self.places != [p.data_ptr() for p in parameters]:
            groups: dict[int, list[nn.Parameter]] = {}  # by step count, which is the same for a whole tensor
            for p in parameters:
                groups.setdefault(int(self.state[p].get("step", 0)), []).append(p)
            self.flats = [Flat(group, self.state) for group in groups.values()]
            self.places = [p.data_ptr() for p in parameters]
        return [flat.collect_gradients() for flat in self.flats]

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # closures are not supported
        if not self.is_small:
            inspect.unwrap(torch.optim.Adam.step)(self)
        group = self.param_groups[0]
        for flat in self.flats:
            flat.step(group["lr"], group["betas"], group["eps"])

    step.hooked = True  # type: ignore[attr-defined]  # otherwise, torch adds a wrapper that takes longer than the step

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Set common tensors to zero, to which new gradients are then added, and other gradients to None."""
        for gradient in self.gradients() if self.is_small else ():
            gradient.zero_()
        for p in () if self.is_small else self.param_groups[0]["params"]:
            p.grad = None


class NonFiniteError(FloatingPointError):
    """Raised if a rollout, loss or gradient is not finite. No weight changed. `step` sets `minibatch`."""

    def __init__(self, message: str, minibatch: Batch | None = None) -> None:
        super().__init__(message)
        self.minibatch = minibatch


def make_optimizers(policy: ActorCritic, optim: Optim) -> list[Adam]:
    """Return one Adam for all parameters or, if `optim.joint` is false, one for the policy and one for the critic."""

    def adam(parameters: Iterable[nn.Parameter], lr: float) -> Adam:
        return Adam(list(parameters), lr, eps=optim.eps, betas=(optim.betas[0], optim.betas[1]))

    trainable = [p for p in policy.parameters() if p.requires_grad]
    if optim.joint:
        return [adam(trainable, optim.lr)]
    critic = [p for p in policy.critic_parameters() if p.requires_grad]
    own = {id(p) for p in critic}
    return [adam((p for p in trainable if id(p) not in own), optim.lr), adam(critic, optim.critic_lr or optim.lr)]


def set_learning_rates(optimizers: list[Adam], scale: float) -> None:
    """Set the learning rate of each parameter group to its initial learning rate multiplied by `scale`."""
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        group["lr"] = group["initial_lr"] * scale


def step(optimizers: list[Adam], optim: Optim, minibatch: Batch | None = None, losses: Iterable[Tensor] = ()) -> Tensor:
    """Clip each optimizer's gradients, take a step, and return the norm of all gradients before clipping.

    If a gradient or one of the `losses` is NaN or infinite, no weight is changed. Depending on
    `optim.on_nonfinite`, the function then returns NaN or raises NonFiniteError.
    """
    gradients = [own for x in optimizers if (own := x.gradients())]  # in the critic's warm-up, the policy has none
    norms = [torch.linalg.vector_norm(own[0]) if len(own) == 1 else nn.utils.get_total_norm(own) for own in gradients]
    norm = torch.stack(norms).norm() if len(norms) > 1 else norms[0]
    if not math.isfinite(sum(losses, norm)):  # a test of each number would wait for the device each time
        if optim.on_nonfinite == "skip":
            return torch.full_like(norm, torch.nan)
        raise NonFiniteError(f"the gradient norm is {float(norm)}; no weight was changed", minibatch)
    for own, own_norm in zip(gradients, norms, strict=True):
        if (factor := (optim.max_grad_norm or torch.inf) / (float(own_norm) + 1e-6)) < 1:
            torch._foreach_mul_(own, factor)
    for optimizer in optimizers:
        optimizer.step()
    return norm
