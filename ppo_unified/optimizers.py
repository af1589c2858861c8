"""Adam, once or twice: what turns gradients into steps."""

from __future__ import annotations

import inspect
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ppo_unified.config import Optim
from ppo_unified.rollout import ActorCritic


class Adam(torch.optim.Adam):
    """torch's fused Adam without its hooks for torch.compile, which nothing here uses: the first call of a hook imports
    the compiler, a second of start-up that would be a third of a CartPole run."""

    add_param_group = inspect.unwrap(Optimizer.add_param_group)
    zero_grad = inspect.unwrap(Optimizer.zero_grad)
    state_dict = inspect.unwrap(Optimizer.state_dict)
    load_state_dict = inspect.unwrap(Optimizer.load_state_dict)
    step = torch.no_grad()(inspect.unwrap(torch.optim.Adam.step))


class NonFiniteError(FloatingPointError):
    """A loss or gradient is NaN or infinite; raised before the optimizer sees it."""


def make_optimizers(policy: ActorCritic, optim: Optim) -> list[Adam]:
    """One Adam over everything, or one for the policy and one for the critic (`optim.joint = false`)."""

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
    """Every group's initial learning rate times `scale`."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * scale


def step(optimizers: list[Adam], max_grad_norm: float) -> Tensor:
    """Clip each optimizer's gradient norm (0 = don't) and step; the norm of all gradients before clipping.

    Raises NonFiniteError, before any weight changes, where a gradient is NaN or infinite.
    """
    norms = []
    for optimizer in optimizers:
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if parameters:  # none of the policy's while the critic warms up alone
            norms.append(nn.utils.clip_grad_norm_(parameters, max_grad_norm or torch.inf))
    norm = torch.stack(norms).norm() if len(norms) > 1 else norms[0]
    if not torch.isfinite(norm):
        raise NonFiniteError(f"the gradient norm is {float(norm)}; no weight was changed")
    for optimizer in optimizers:
        optimizer.step()
    return norm
