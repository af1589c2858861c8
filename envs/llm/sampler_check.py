"""Checks that responses are sampled from the distribution that training assumes.

The sampler decodes token by token with a cache, whereas training processes whole responses at once. If one of them is
wrong, for example in the position of a token or in the attention mask, their log-probs of the same token differ. The
ratio and the KL would then refer to a policy that did not choose the tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from envs.llm.generate import Responses
from envs.llm.options import LLMConfig


def sampler_errors(responses: Responses, logprobs: Tensor) -> dict[str, float]:
    """Return the largest and the mean difference, over the sampled tokens, of the sampler's log-probs and `logprobs`.

    `logprobs` [N, S - 1] are those that training computes for the same tokens.
    """
    differences = _differences(responses, logprobs)
    return {
        "invariant/sampler_error": float(differences.max()),
        "invariant/sampler_error_mean": float(differences.sum() / responses.mask().sum()),
    }


def check_sampler(responses: Responses, logprobs: Tensor, config: LLMConfig) -> dict[str, float]:
    """Return the metrics of `sampler_errors`. Raises RuntimeError if one of them exceeds its limit.

    Values that are not finite raise no error here: `optim.on_nonfinite` decides what happens to them.
    """
    errors = sampler_errors(responses, logprobs)
    for (name, error), limit in zip(errors.items(), config.sampler_tolerances, strict=True):
        if error > limit:
            raise RuntimeError(
                f"expected {name} to be at most {limit:g}, got {error:.3g}: {_worst(responses, logprobs)}, so the "
                "responses do not come from the policy that is trained; please report this with the type of the model"
            )
    return errors


def _differences(responses: Responses, logprobs: Tensor) -> Tensor:
    """Return the absolute differences [N, S - 1], 0 at columns without a sampled token."""
    assert responses.sampled_logprobs is not None
    return torch.where(responses.mask(), (responses.sampled_logprobs - logprobs).abs(), 0.0)


def _worst(responses: Responses, logprobs: Tensor) -> str:
    assert responses.sampled_logprobs is not None
    differences = _differences(responses, logprobs)
    row, column = divmod(int(differences.nan_to_num(-1.0).argmax()), differences.shape[1])
    number = column + 2 - int(responses.prompt_lengths[row])
    sampled, trained = (float(x[row, column]) for x in (responses.sampled_logprobs, logprobs))
    return (
        f"token {number} of response {row + 1} was sampled with log-prob {sampled:.6g}, but its log-prob in training "
        f"is {trained:.6g}"
    )
