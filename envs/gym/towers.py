"""The networks of an actor and a critic with equal hidden layers, computed together with a hand-written gradient.

Both results equal those of the two networks. A layer of both is one batched product, so that a small network takes
about half of the operations. The parameters and gradients of a small model are views of common tensors, so that those
of two equal layers form one tensor [2, ...] without a copy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def tanh_(x: Tensor) -> Tensor:
    """Compute tanh(x) = 2 sigmoid(2x) - 1 in place, in half the time of `torch.tanh_`."""
    return x.mul_(2).sigmoid_().mul_(2).sub_(1)


aten = torch.ops.aten
# per activation: the function in place, and the gradient of its input from that of its output and the output
ACTIVATIONS: dict[type[nn.Module], tuple[Any, Any]] = {
    nn.Tanh: (tanh_, aten.tanh_backward.default),
    nn.ReLU: (torch.relu_, lambda grad, output: aten.threshold_backward.default(grad, output, 0)),
}


def linear_layers(actor: nn.Sequential, critic: nn.Sequential) -> list[nn.Linear]:
    """Return the linear layers of two networks: those of the actor, then those of the critic."""
    return [layer for network in (actor, critic) for layer in network if isinstance(layer, nn.Linear)]


def stack(one: Tensor, other: Tensor) -> Tensor:
    """Return two tensors as one [2, ...]: as a view if they are views of the same tensor, otherwise as a copy."""
    if not are_views(one, other):
        return torch.stack((one, other))
    distance = other.storage_offset() - one.storage_offset()
    return one.as_strided((2, *one.shape), (distance, *one.stride()))


def are_views(one: Tensor, other: Tensor) -> bool:
    """Return True if both are views of the same tensor, in this order."""
    same = one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()
    return same and one.storage_offset() < other.storage_offset()


def stack_layers(parameters: Sequence[Tensor]) -> list[Tensor]:
    """Return the weights and biases of the hidden layers, [2, ...] each, followed by those of both heads."""
    *hidden, weight, bias, critic_weight, critic_bias = parameters
    half = len(hidden) // 2
    return [*map(stack, hidden[:half], hidden[half:]), weight, bias, critic_weight, critic_bias]


def evaluate(activation: type[nn.Module], layers: list[Tensor], x: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Return outputs [n, A], values [n, 1], and the inputs of each layer [2, n, ...]."""
    *hidden, weight, bias, critic_weight, critic_bias = layers
    inputs, apply = [x.expand(2, -1, -1)], ACTIVATIONS[activation][0]
    for w, b in zip(hidden[::2], hidden[1::2], strict=True):
        inputs.append(apply(torch.baddbmm(b.unsqueeze(1), inputs[-1], w.mT)))
    actor, critic = inputs[-1].unbind()
    return torch.addmm(bias, actor, weight.t()), torch.addmm(critic_bias, critic, critic_weight.t()), inputs


def add_gradients(
    activation: type[nn.Module],
    layers: list[Tensor],
    gradients: list[Tensor],
    inputs: list[Tensor],
    output_grad: Tensor,
    value_grad: Tensor,
) -> None:
    """Add to the `gradients` of all layers, given the layers' inputs and the gradients of the results of `evaluate`."""
    derive, grad = ACTIVATIONS[activation][1], torch.empty_like(inputs[-1])
    for k, own, x, x_grad in zip((-4, -2), (output_grad, value_grad), inputs[-1].unbind(), grad.unbind(), strict=True):
        gradients[k].addmm_(own.t(), x)
        gradients[k + 1].add_(own.sum(0))
        torch.mm(own, layers[k], out=x_grad)
    for k in reversed(range(len(inputs) - 1)):
        grad = derive(grad, inputs[k + 1])
        gradients[2 * k].add_(torch.bmm(inputs[k].mT, grad).mT)  # in this order, because inputs can be narrow
        gradients[2 * k + 1].add_(grad.sum(1))
        if k:
            grad = torch.bmm(grad, layers[2 * k])


class Towers(torch.autograd.Function):
    """Maps x [n, D] to outputs [n, A] and values [n, 1]. The parameters are a weight and a bias per layer: the actor's
    hidden layers, the critic's hidden layers, the actor's head, the critic's head."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, activation: type[nn.Module], *parameters: Tensor) -> tuple[Tensor, Tensor]:
        layers = stack_layers(parameters)
        outputs, values, inputs = evaluate(activation, layers, x)
        ctx.activation = activation
        ctx.save_for_backward(*layers, *inputs)
        return outputs, values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, output_grad: Tensor, value_grad: Tensor) -> tuple[Tensor | None, ...]:
        saved = list(ctx.saved_tensors)
        count = 2 * (len(saved) - 5) // 3 + 4  # of layers' tensors: two per hidden layer, which has one input
        layers, inputs = saved[:count], saved[count:]
        gradients = [x.new_zeros(x.shape) for x in layers]
        add_gradients(ctx.activation, layers, gradients, inputs, output_grad, value_grad)
        actor, critic = zip(*gradients[:-4], strict=True)
        return None, None, *actor, *critic, *gradients[-4:]


class ExplicitTowers:
    """Evaluates both networks without autograd, whose bookkeeping would take as long as a small network."""

    def __init__(self, parameters: Sequence[Tensor], activation: type[nn.Module]) -> None:
        self.parameters, self.activation, self.places = parameters, activation, list[int]()
        self.layers, self.gradients = list[Tensor](), list[Tensor]()

    def evaluate(self, x: Tensor) -> tuple[Tensor, Tensor, Callable[[Tensor, Tensor], None]] | None:
        """Return the results of `Towers`, and a function that adds to the gradients of the parameters, given those of
        the results. Return None unless an optimizer has moved the gradients of both networks to a common tensor."""
        places = [0 if x is None else x.data_ptr() for p in self.parameters for x in (p, p.grad)]
        if places != self.places:
            weights = [p.data for p in self.parameters]
            gradients = [p.grad for p in self.parameters if p.grad is not None]
            half = len(weights) // 2 - 2
            pairs = [pair for x in (weights, gradients) for pair in zip(x[:half], x[half : 2 * half], strict=False)]
            if 0 in places or not all(are_views(*pair) for pair in pairs):
                return None
            self.places, self.layers, self.gradients = places, stack_layers(weights), stack_layers(gradients)
        outputs, values, inputs = evaluate(self.activation, self.layers, x)
        return outputs, values, partial(add_gradients, self.activation, self.layers, self.gradients, inputs)


def make_towers(
    actor: nn.Sequential, actor_head: nn.Linear, critic: nn.Sequential, critic_head: nn.Linear
) -> ExplicitTowers | None:
    """Return both networks as one object, or None if they have no hidden layer or an unknown activation."""
    if not len(actor) or type(actor[1]) not in ACTIVATIONS:
        return None
    layers = [*linear_layers(actor, critic), actor_head, critic_head]
    return ExplicitTowers([p for layer in layers for p in (layer.weight, layer.bias)], type(actor[1]))
