"""The networks of an actor and a critic with equal hidden layers, computed together with a hand-written gradient.

The results equal those of the separate networks. Each pair of equal layers is computed as one batched product, so small
networks need about half as many operations. The optimizer moves the parameters and gradients of a small model to common
tensors (see `fused.FlatParameters`), so the weights of two equal layers form one tensor [2, ...] without a copy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ppo_unified.engine.fused import ALIGNMENT

aten = torch.ops.aten
# activation -> (in-place function, in-place function that computes the gradient of the input from that of the output)
ACTIVATIONS: dict[type[nn.Module], tuple[Any, Any]] = {
    nn.Tanh: (torch.tanh_, lambda grad, output: aten.tanh_backward.grad_input(grad, output, grad_input=grad)),
    nn.ReLU: (torch.relu_, lambda grad, output: aten.threshold_backward.grad_input(grad, output, 0, grad_input=grad)),
    nn.ELU: (nn.functional.elu_, None),
    nn.SiLU: (partial(nn.functional.silu, inplace=True), None),
}
MANY = 1 << 11  # number of outputs from which `apply_layer` uses the sigmoid


def apply_layer(activation: type[nn.Module], product: Any, bias: Tensor, weight: Tensor, x: Tensor) -> Tensor:
    """Return activation(x @ weight + bias). `product` is torch.addmm or torch.baddbmm.

    On the CPU, tanh(z) = 2 sigmoid(2z) - 1 takes a third of the time of tanh if there are many outputs. The absolute
    error of this form is about 1e-7 in float32.
    """
    if activation is nn.Tanh and x.is_cpu and x.shape[-2] * bias.numel() >= MANY:
        outputs: Tensor = product(bias, x, weight, beta=2, alpha=2).sigmoid_()
        return torch.add(outputs.new_full((), -1), outputs, alpha=2, out=outputs)
    return ACTIVATIONS[activation][0](product(bias, x, weight))  # type: ignore[no-any-return]  # the table has no types


def stack(one: Tensor, other: Tensor) -> Tensor:
    """Return two tensors as one [2, ...]: as a view if they are views of the same tensor, otherwise as a copy."""
    if not are_views(one, other):
        size = one.numel()  # aligned like the views, because a product can round differently for other alignments
        both = one.new_empty(2, -(-size // ALIGNMENT) * ALIGNMENT)[:, :size].view(2, *one.shape)
        return torch.stack((one, other), out=both)
    distance = other.storage_offset() - one.storage_offset()
    return one.as_strided((2, *one.shape), (distance, *one.stride()))


def are_views(one: Tensor, other: Tensor) -> bool:
    """Return True if both are views of the same tensor with equal strides, and `one` starts before `other`."""
    same = one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr() and one.stride() == other.stride()
    return same and one.storage_offset() < other.storage_offset()


def stack_layers(parameters: Sequence[Tensor]) -> list[Tensor]:
    """Return the weights and biases of the hidden layers, [2, ...] each, followed by those of both heads."""
    *hidden, weight, bias, critic_weight, critic_bias = parameters
    half = len(hidden) // 2
    return [*map(stack, hidden[:half], hidden[half:]), weight, bias, critic_weight, critic_bias]


def evaluate(activation: type[nn.Module], layers: list[Tensor], x: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Return the actor's outputs [n, A], the critic's values [n, 1], and the inputs of each layer, each [2, n, ...]."""
    *hidden, weight, bias, critic_weight, critic_bias = layers
    inputs = [x.expand(2, -1, -1)]
    for w, b in zip(hidden[::2], hidden[1::2], strict=True):
        inputs.append(apply_layer(activation, torch.baddbmm, b.unsqueeze(1), w.mT, inputs[-1]))
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
        derive(grad, inputs[k + 1])
        gradients[2 * k + 1].add_(grad.sum(1))
        if k:
            gradients[2 * k].baddbmm_(grad.mT, inputs[k])
            grad = torch.bmm(grad, layers[2 * k])
        else:  # the inputs can be narrow, for which grad.mT @ inputs takes longer
            gradients[0].add_(torch.bmm(inputs[0].mT, grad).mT)


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
        # h hidden layers have 2 h + 4 tensors and h + 1 inputs, in this order
        count = 2 * (len(saved) - 5) // 3 + 4
        layers, inputs = saved[:count], saved[count:]
        gradients = [x.new_zeros(x.shape) for x in layers]
        add_gradients(ctx.activation, layers, gradients, inputs, output_grad, value_grad)
        actor, critic = zip(*gradients[:-4], strict=True)
        return None, None, *actor, *critic, *gradients[-4:]


class Layers:
    """Stacks the layers of parameters or gradients, see `stack_layers`. Keeps the result while it contains no copy."""

    def __init__(self) -> None:
        self.addresses, self.layers = list[int](), list[Tensor]()

    def stack(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        addresses = [x.data_ptr() for x in tensors]
        if self.addresses != addresses:
            self.layers, half = stack_layers(tensors), len(tensors) // 2 - 2
            views = all(map(are_views, tensors[:half], tensors[half : 2 * half]))
            self.addresses = addresses if views else []
        return self.layers

    def copy_back(self, tensors: Sequence[Tensor]) -> None:
        """Copy the stacked layers to `tensors` unless they are views of them."""
        if not self.addresses:
            half = len(tensors) // 2 - 2
            parts = zip(*self.layers[:-4], strict=True)
            torch._foreach_copy_(list(tensors[: 2 * half]), [x for network in parts for x in network])


def find_activation(actor: nn.Sequential, critic: nn.Sequential) -> type[nn.Module] | None:
    """Return the activation after every linear layer of both networks, or None if `Towers` does not support them."""
    kinds = [type(layer) for layer in actor]
    activation = kinds[1] if len(kinds) > 1 else nn.Identity
    supported = ACTIVATIONS.get(activation, (None, None))[1] is not None
    same = [type(layer) for layer in critic] == kinds == [nn.Linear, activation] * (len(kinds) // 2)
    return activation if supported and same and actor is not critic else None


class ExplicitTowers:
    """Evaluates both networks without autograd, whose bookkeeping would take as long as a small network."""

    def __init__(self) -> None:
        self.weights, self.gradients, self.parts = Layers(), Layers(), list[Any]()
        self.found: tuple[list[nn.Parameter], type[nn.Module]] | None = None  # for the networks that consist of `parts`

    def __reduce__(self) -> tuple[type[ExplicitTowers], tuple[()]]:
        return ExplicitTowers, ()  # a copy has other parameters

    def find(
        self, actor: nn.Sequential, actor_head: nn.Linear, critic: nn.Sequential, critic_head: nn.Linear
    ) -> tuple[list[nn.Parameter], type[nn.Module]] | None:
        """Return the parameters that `Towers` needs and the activation. Return None if the networks are not separate
        networks of equal shape with an activation that has a gradient in `ACTIVATIONS`."""
        layers = [*actor._modules.values(), *critic._modules.values(), actor_head, critic_head]  # faster than by name
        parameters = [p for layer in layers if layer is not None for p in layer._parameters.values()]
        parts = [*layers, *parameters]
        if len(parts) != len(self.parts) or not all(map(is_, parts, self.parts)):
            self.parts, activation = parts, find_activation(actor, critic)
            half, shapes = len(parameters) // 2 - 2, [None if p is None else p.shape for p in parameters]
            shared = len({id(p) for p in parameters}) < len(parameters)
            fits = activation and not shared and None not in shapes and shapes[:half] == shapes[half : 2 * half]
            self.found = ([p for p in parameters if p is not None], activation) if activation and fits else None
        return self.found

    def evaluate(
        self, activation: type[nn.Module], parameters: Sequence[Tensor], x: Tensor
    ) -> tuple[Tensor, Tensor, Callable[[Tensor, Tensor], None]]:
        """Return the results of `Towers`, and a function that adds to the gradients of the parameters, given those of
        the results."""
        layers = self.weights.stack(parameters)
        outputs, values, inputs = evaluate(activation, layers, x)

        def add(output_grad: Tensor, value_grad: Tensor) -> None:
            gradients = [p.grad for p in parameters if p.grad is not None]
            add_gradients(activation, layers, self.gradients.stack(gradients), inputs, output_grad, value_grad)
            self.gradients.copy_back(gradients)

        return outputs, values, add
