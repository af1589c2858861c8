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
from ppo_unified.engine.fused import FlatParameters
from ppo_unified.engine.rollout import ActorCritic

SMALL = 1 << 19  # largest number of weights that an optimizer moves to common tensors


class Adam(torch.optim.Adam):
    """PyTorch's Adam without the hooks for torch.compile, whose first call would import the compiler (about 1 s).

    It has one parameter group. It moves the parameters of a small model that have a gradient to `FlatParameters`."""

    state_dict = inspect.unwrap(Optimizer.state_dict)
    load_state_dict = inspect.unwrap(Optimizer.load_state_dict)

    def __init__(self, parameters: Sequence[nn.Parameter], lr: float, betas: tuple[float, float], eps: float) -> None:
        super().__init__([{"params": parameters, "initial_lr": lr}], lr=lr, betas=betas, eps=eps, fused=True)
        self.__setstate__({})

    def __setstate__(self, state: dict[str, Any]) -> None:  # also called by load_state_dict, deepcopy and pickle
        super().__setstate__(state)  # type: ignore[no-untyped-call]  # torch
        parameters = self.param_groups[0]["params"]
        same = len({(p.dtype, p.device) for p in parameters}) == 1
        self.is_small = same and sum(p.numel() for p in parameters) <= SMALL
        self.flats, self.addresses = list[FlatParameters](), list[int]()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        if self.param_groups:
            raise ValueError("Adam: expected one parameter group, found a second; use another optimizer for it")
        inspect.unwrap(Optimizer.add_param_group)(self, param_group)

    def gradients(self) -> list[Tensor]:
        """Return the gradients of the parameters that have one, in common tensors if the model is small."""
        parameters = [p for p in self.param_groups[0]["params"] if p.grad is not None]
        if not self.is_small:
            return [p.grad for p in parameters]
        if self.addresses != [p.data_ptr() for p in parameters]:
            groups: dict[int, list[nn.Parameter]] = {}  # by step count, which is the same for a whole tensor
            for p in parameters:
                groups.setdefault(int(self.state[p].get("step", 0)), []).append(p)
            self.flats = [FlatParameters(group, self.state) for group in groups.values()]
            self.addresses = [p.data_ptr() for p in parameters]
        return [flat.collect_gradients() for flat in self.flats]

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # closures are not supported
        """Take a step with the gradients that the last call of `gradients` returned."""
        if not self.is_small:
            inspect.unwrap(torch.optim.Adam.step)(self)
        for flat in self.flats:
            flat.step(self.param_groups[0])

    step.hooked = True  # type: ignore[attr-defined]  # otherwise, torch adds a wrapper that takes longer than the step

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Set all gradients to None or, if `set_to_none` is false, to zero, in common tensors if the model is small."""
        for p in self.param_groups[0]["params"]:
            if set_to_none or p.grad is None:
                p.grad = None if set_to_none else torch.zeros_like(p)
        if not set_to_none:
            torch._foreach_zero_(self.gradients())


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
    `optim.on_nonfinite`, the function then returns NaN or raises NonFiniteError."""
    gradients = [own for x in optimizers if (own := x.gradients())]  # in the critic's warm-up, the policy has none
    norms = [torch.linalg.vector_norm(own[0]) if len(own) == 1 else nn.utils.get_total_norm(own) for own in gradients]
    norm = torch.stack(norms).norm() if len(norms) > 1 else norms[0]
    if not math.isfinite(sum(losses, norm)):  # test only the sum, because each test waits for the device
        if optim.on_nonfinite == "skip":
            return torch.full_like(norm, torch.nan)
        raise NonFiniteError(f"the gradient norm is {float(norm)}; no weight was changed", minibatch)
    for own, own_norm in zip(gradients, norms, strict=True):
        if (factor := (optim.max_grad_norm or torch.inf) / (float(own_norm) + 1e-6)) < 1:
            torch._foreach_mul_(own, factor)
    for optimizer in optimizers:
        optimizer.step()
    return norm
