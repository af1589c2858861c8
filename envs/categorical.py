"""Log-probs and entropies of categorical distributions, with a hand-written gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def logprobs_and_entropy(logits: Tensor, actions: Tensor, entropy_gradient: bool) -> tuple[Tensor, Tensor]:
    """Return log pi(a) and the entropy, each [n], from logits [n, V].

    The entropy has a gradient only if `entropy_gradient` is True.
    """
    results: tuple[Tensor, Tensor] = LogprobsAndEntropy.apply(logits, actions, entropy_gradient)  # type: ignore[no-untyped-call] # torch
    return results


def evaluate(logits: Tensor, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return log pi(a) and the entropy, each [n], and the probabilities [n, V]."""
    logs, actions = logits.log_softmax(-1), actions.unsqueeze(-1)
    logprobs = logs.gather(-1, actions)
    total = logits.gather(-1, actions) - logprobs
    probs = logs.exp_()
    entropy = total.view(-1) - torch.bmm(probs.unsqueeze(1), logits.unsqueeze(2)).view(-1)
    return logprobs.view(-1), entropy, probs


def logits_gradient(
    probs: Tensor, actions: Tensor, entropy: Tensor, logprob_grad: Tensor, entropy_grad: Tensor | None
) -> Tensor:
    """Return the gradient of the logits [n, V], given those of log pi(a) and of the entropy H, each [n].

    d log pi(a) / d logits = onehot(a) - pi, and d H / d logits = -pi * (log pi + H). `entropy_grad` is None if the loss
    does not depend on the entropy.
    """
    scale = -logprob_grad if entropy_grad is None else -logprob_grad - entropy_grad * entropy
    grad = probs * scale.unsqueeze(1)
    if entropy_grad is not None:
        grad.sub_(torch.xlogy(probs, probs).mul_(entropy_grad.unsqueeze(1)))
    return grad.scatter_add_(-1, actions.unsqueeze(1), logprob_grad.unsqueeze(1))


class LogprobsAndEntropy(torch.autograd.Function):
    """Computes log-probs and entropies. The hand-written gradient stores fewer [n, V] tensors than autograd would."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, actions: Tensor, entropy_gradient: bool) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        logprobs, entropy, probs = evaluate(logits, actions)
        ctx.save_for_backward(probs, actions, entropy)
        if not entropy_gradient:
            ctx.mark_non_differentiable(entropy)
        return logprobs, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, logprob_grad: Tensor | None, entropy_grad: Tensor | None) -> tuple[Tensor, None, None]:
        probs, actions, entropy = ctx.saved_tensors
        if logprob_grad is None:
            logprob_grad = torch.zeros_like(entropy)
        return logits_gradient(probs, actions, entropy, logprob_grad, entropy_grad), None, None
