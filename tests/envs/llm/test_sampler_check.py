"""Tests of the comparison between the log-probs of the sampler and those of training."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from envs.llm.adapter import LLMAdapter
from envs.llm.generate import CachedDecoder
from envs.llm.sampler_check import check_sampler, sampler_errors
from tests.envs.llm.test_adapter import CPU, folder, make_config

__all__ = ["folder"]  # a fixture
LONG = {"max_new_tokens": 24, "rollout_batch": 12}


def make_adapter(folder: Path, dtype: str = "float32", temperature: float = 1.3) -> LLMAdapter:
    adapter = LLMAdapter(make_config(folder, LONG | {"dtype": dtype, "temperature": temperature}), CPU, notes=False)
    weights = torch.Generator().manual_seed(0)
    with torch.no_grad():  # the logits of an untrained model are almost equal, which would hide faults
        for parameter in adapter.policy.network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=weights), alpha=0.1)
    return adapter


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_sampler_and_training_agree_on_each_token(folder: Path, dtype: str) -> None:
    adapter = make_adapter(folder, dtype)
    metrics = adapter.collect().metrics
    limits = adapter.config.sampler_tolerances
    found = metrics["invariant/sampler_error"], metrics["invariant/sampler_error_mean"]
    assert all(0 < error < limit for error, limit in zip(found, limits, strict=True))


def no_new_position(decoder: CachedDecoder, token: Tensor) -> None:
    decoder.attention = torch.cat([decoder.attention, torch.ones_like(decoder.attention[:, :1])], 1)
    decoder._run(token[:, None], decoder.positions[:, None])


def padding_attended(decoder: CachedDecoder, token: Tensor) -> None:
    decoder.attention = torch.ones_like(decoder.attention)
    step(decoder, token)


def rows_exchanged(decoder: CachedDecoder, token: Tensor) -> None:
    step(decoder, token)
    decoder.logits = decoder.logits.flip(0)


step = CachedDecoder.step


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("fault", [no_new_position, padding_attended, rows_exchanged])
def test_fault_of_the_sampler_stops_the_run(
    folder: Path, dtype: str, fault: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = make_adapter(folder, dtype)
    monkeypatch.setattr(CachedDecoder, "step", fault)
    with pytest.raises(RuntimeError, match=r"^expected invariant/sampler_error.* but its log-prob in training is"):
        adapter.collect()


def test_errors_are_those_of_the_sampled_tokens(folder: Path) -> None:
    adapter = make_adapter(folder)
    responses = adapter.respond(adapter.prompts.tokens, adapter.generator)
    mask, logprobs = responses.mask(), adapter.compare(responses).logprobs
    assert responses.sampled_logprobs is not None
    assert torch.equal(responses.sampled_logprobs.isfinite(), mask)
    row, column = (int(x) for x in mask.nonzero()[5])
    changed = logprobs.clone()
    changed[row, column] -= 0.5
    errors = sampler_errors(responses, changed)
    assert errors["invariant/sampler_error"] == pytest.approx(0.5, abs=1e-4)
    assert errors["invariant/sampler_error_mean"] == pytest.approx(0.5 / int(mask.sum()), abs=1e-5)
    number = column + 2 - int(responses.prompt_lengths[row])
    with pytest.raises(RuntimeError, match=rf"token {number} of response {row + 1} was sampled with log-prob"):
        check_sampler(responses, changed, adapter.config)
    check_sampler(responses, changed, adapter.config, uses_top_k=True)
    with pytest.raises(RuntimeError, match=r"expected the median sampler error to be at most 1e-05, got 0\.5"):
        check_sampler(responses, logprobs - 0.5, adapter.config, uses_top_k=True)
    changed[row, column] = torch.nan
    check_sampler(responses, changed, adapter.config)


def test_greedy_responses_have_no_sampled_logprobs(folder: Path) -> None:
    adapter = make_adapter(folder)
    assert adapter.respond(adapter.prompts.tokens[:2], None).sampled_logprobs is None
