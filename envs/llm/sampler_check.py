"""Checks that responses are sampled from the distribution that training assumes.

The sampler decodes token by token with a cache, whereas training processes whole responses at once. If one of them is
wrong, for example in the position of a token or in the attention mask, their log-probs of the same token differ. The
ratio and the KL would then refer to a policy that did not choose the tokens.
"""

from __future__ import annotations

from torch import Tensor

from envs.llm.generate import Responses
from envs.llm.options import LLMConfig


def sampler_errors(responses: Responses, logprobs: Tensor) -> dict[str, float]:
    """Return the largest and the mean difference, over the sampled tokens, of the sampler's log-probs and `logprobs`.

    `logprobs` [N, S - 1] are those that training computes for the same tokens. Differences that are not finite are
    ignored, because `optim.on_nonfinite` decides what happens to them.
    """
    differences = _differences(responses, logprobs)
    known = differences[differences.isfinite()]
    largest, mean = (float(known.max()), float(known.mean())) if len(known) else (0.0, 0.0)
    return {"invariant/sampler_error": largest, "invariant/sampler_error_mean": mean}


def check_sampler(
    responses: Responses, logprobs: Tensor, config: LLMConfig, uses_top_k: bool = False
) -> dict[str, float]:
    """Return the metrics of `sampler_errors`, or {} for responses that were not sampled.

    Raises RuntimeError if one of the metrics exceeds its limit. If the model selects experts or attention keys with
    top-k, a rounding error can change the selection, and with it the log-probs of a few tokens. Then only the median is
    checked, against the limit for the mean: a few changed tokens do not affect it, but a faulty sampler does.
    """
    if responses.sampled_logprobs is None:
        return {}
    errors, (largest, mean) = sampler_errors(responses, logprobs), config.sampler_tolerances
    if uses_top_k:
        median = float(_differences(responses, logprobs).nanmedian())
        checks = [("the median sampler error", median, mean)]
    else:
        checks = [(name, error, limit) for (name, error), limit in zip(errors.items(), (largest, mean), strict=True)]
    for name, error, limit in checks:
        if error > limit:
            raise RuntimeError(
                f"expected {name} to be at most {limit:g}, got {error:.3g}: {_worst(responses, logprobs)}, so the "
                "responses do not come from the policy that is trained; please report this error and the model's type"
            )
    return errors


def _differences(responses: Responses, logprobs: Tensor) -> Tensor:
    """Return the absolute differences [N, S - 1]. They are NaN in columns without a sampled token."""
    assert responses.sampled_logprobs is not None
    return (responses.sampled_logprobs - logprobs).abs()


def _worst(responses: Responses, logprobs: Tensor) -> str:
    assert responses.sampled_logprobs is not None
    differences = _differences(responses, logprobs)
    row, column = divmod(int(differences.nan_to_num(-1.0, posinf=-1.0).argmax()), differences.shape[1])
    number = column + 2 - int(responses.prompt_lengths[row])
    sampled, trained = (float(x[row, column]) for x in (responses.sampled_logprobs, logprobs))
    return (
        f"token {number} of response {row + 1} was sampled with log-prob {sampled:.6g}, but its log-prob in training "
        f"is {trained:.6g}"
    )
