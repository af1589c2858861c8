"""The networks of an actor and a critic with equal hidden layers, computed together with a hand-written gradient.

Both results equal those of the two networks. A layer of both is one batched product, so that a small network takes
about half of the operations.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

aten = torch.ops.aten
# per activation: the function in place, and the gradient of its input from that of its output and the output
ACTIVATIONS: dict[type[nn.Module], tuple[Any, Any]] = {
    nn.Tanh: (torch.tanh_, aten.tanh_backward.default),
    nn.ReLU: (torch.relu_, lambda grad, output: aten.threshold_backward.default(grad, output, 0)),
}


def linear_layers(actor: nn.Sequential, critic: nn.Sequential) -> list[nn.Linear]:
    """Return the linear layers of two networks: those of the actor, then those of the critic."""
    return [layer for network in (actor, critic) for layer in network if isinstance(layer, nn.Linear)]


def find_parameters(
    actor: nn.Sequential, actor_head: nn.Linear, critic: nn.Sequential, critic_head: nn.Linear
) -> list[Tensor] | None:
    """Return the parameters of both networks in the order of `Towers`, or None if it does not know the activation."""
    if not len(actor) or type(actor[1]) not in ACTIVATIONS:
        return None
    layers = [*linear_layers(actor, critic), actor_head, critic_head]
    return [p for layer in layers for p in (layer.weight, layer.bias)]


def apply_explicitly(function: Any, *arguments: Any) -> tuple[Any, Callable[..., Any]]:
    """Apply a `torch.autograd.Function` without autograd, whose bookkeeping would take as long as a small network.

    Return its outputs, and a function that maps their gradients to those of the arguments.
    """
    context = _Context()
    return function.forward(context, *arguments), partial(function.backward, context)


class _Context:
    """The part of autograd's context that the functions here use."""

    saved_tensors: tuple[Tensor, ...]

    def save_for_backward(self, *tensors: Tensor) -> None:
        self.saved_tensors = tensors

    def set_materialize_grads(self, value: bool) -> None: ...


class Towers(torch.autograd.Function):
    """Maps x [n, D] to outputs [n, A] and values [n, 1]. The parameters are a weight and a bias per layer: the actor's
    hidden layers, the critic's hidden layers, the actor's head, the critic's head."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, activation: type[nn.Module], *parameters: Tensor) -> tuple[Tensor, Tensor]:
        *hidden, weight, bias, critic_weight, critic_bias = parameters
        half = len(hidden) // 2
        features, weights, apply = [x.expand(2, -1, -1)], [], ACTIVATIONS[activation][0]
        for k in range(0, half, 2):
            weights.append(torch.stack((hidden[k], hidden[half + k])))
            biases = torch.stack((hidden[k + 1], hidden[half + k + 1])).unsqueeze(1)
            features.append(apply(torch.baddbmm(biases, features[-1], weights[-1].mT)))
        ctx.activation = activation
        ctx.save_for_backward(weight, critic_weight, *features, *weights)
        last = features[-1]
        return torch.addmm(bias, last[0], weight.t()), torch.addmm(critic_bias, last[1], critic_weight.t())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, output_grad: Tensor, value_grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, critic_weight, *saved = ctx.saved_tensors
        features, weights = saved[: len(saved) // 2 + 1], saved[len(saved) // 2 + 1 :]
        derive, last = ACTIVATIONS[ctx.activation][1], features[-1]
        heads = (output_grad.t() @ last[0], output_grad.sum(0), value_grad.t() @ last[1], value_grad.sum(0))
        grad = torch.empty_like(last)
        torch.mm(output_grad, weight, out=grad[0])
        torch.mm(value_grad, critic_weight, out=grad[1])
        gradients: list[Tensor] = []  # [2, ...] each, from the first layer to the last
        for k in reversed(range(len(weights))):
            grad = derive(grad, features[k + 1])
            gradients[:0] = torch.bmm(grad.mT, features[k]), grad.sum(1)
            if k:
                grad = torch.bmm(grad, weights[k])
        return None, None, *(g[0] for g in gradients), *(g[1] for g in gradients), *heads
