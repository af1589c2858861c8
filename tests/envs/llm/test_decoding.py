"""Tests of the optimized parts of decoding and log-probs: the preallocated cache, sampling, the manual gradient."""

from __future__ import annotations

import math
from inspect import Parameter, Signature, signature
from typing import Any

import pytest
import torch
from transformers.cache_utils import DynamicLayer
from transformers.utils.generic import ModelOutput

from envs.categorical import logprobs_and_entropy
from envs.llm import generate as decoding
from envs.llm.generate import DECODERS, CachedDecoder, _PreallocatedLayer, choose_tokens, generate
from envs.llm.model import Network
from envs.llm.policy import logprobs_and_kl
from tests.models import FAMILIES, make_causal_lm

PROMPTS = [[(29 * row + 7 * i) % 250 for i in range(1 + 5 * row % 17)] for row in range(16)]


@pytest.mark.parametrize(
    "family", [pytest.param(x, marks=() if x in ("gemma2", "gpt2") else pytest.mark.exhaustive) for x in FAMILIES]
)
def test_greedy_decoding_matches_generate_at_any_cache_room(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_causal_lm(family)
    unending = generate(Network(model), PROMPTS, 20, [])
    ends = [unending.response(row)[3 * row] for row in range(5)]  # some rows end, at different tokens
    expected = [
        model.generate(torch.tensor([x]), max_new_tokens=20, do_sample=False, eos_token_id=ends, pad_token_id=258)
        for x in PROMPTS
    ]
    for room in (1, 5, 64):
        monkeypatch.setattr(decoding, "ROOM", room)
        responses = generate(Network(model), PROMPTS, 20, ends)
        sizes = (responses.lengths - responses.prompt_lengths).tolist()
        assert len(set(sizes)) > 2
        assert sizes.count(20) < 12  # fewer than 75 % of the rows continue, so the cache drops rows
        for row, tokens in enumerate(expected):
            assert responses.tokens[row, : responses.lengths[row]].tolist() == tokens[0].tolist(), room


@pytest.mark.parametrize("name", ["cache", "mems"])
def test_cache_may_have_any_name(name: str) -> None:
    """The cache is what the model returns and also accepts."""
    model = make_causal_lm()
    expected = generate(Network(model), PROMPTS, 8, [])
    forward, current = model.forward, "cache" if "cache" in signature(model.forward).parameters else "past_key_values"

    def renamed(*arguments: Any, **options: Any) -> ModelOutput:
        if name in options:
            options[current] = options.pop(name)
        output = forward(*arguments, **options)
        return ModelOutput({name if key == current else key: x for key, x in output.items()})

    parameters = [Parameter(x, Parameter.KEYWORD_ONLY) for x in ("logits_to_keep", name)]
    renamed.__signature__ = Signature(parameters)  # type: ignore[attr-defined] # inspect reads it
    model.forward = renamed
    assert generate(Network(model), PROMPTS, 8, []).tokens.equal(expected.tokens)


@pytest.mark.parametrize("decoding", ["grouped", "uncached"])
def test_all_decoders_give_the_same_responses(decoding: str) -> None:
    network = Network(make_causal_lm("gemma2"))
    ends = generate(network, PROMPTS, 20, []).tokens[:6, -1].tolist()
    expected = generate(network, PROMPTS, 20, ends)
    network.decoding = decoding
    responses = generate(network, PROMPTS, 20, ends)
    assert responses.tokens.equal(expected.tokens)
    assert responses.lengths.equal(expected.lengths)


@pytest.mark.parametrize("decoding", list(DECODERS))
def test_repeated_prompts_are_read_once(decoding: str) -> None:
    network, order = Network(make_causal_lm()), [3, 0, 3, 5, 0, 3, 1]
    network.decoding = decoding
    ends = generate(network, PROMPTS[:6], 8, []).tokens[:3, -1].tolist()
    expected = generate(network, PROMPTS[:6], 8, ends)
    read: list[int] = []  # number of rows of each forward pass
    network.model.get_input_embeddings().register_forward_pre_hook(lambda _, inputs: read.append(len(inputs[0])))
    responses = generate(network, [PROMPTS[i] for i in order], 8, ends)
    assert [responses.response(row) for row in range(7)] == [expected.response(i) for i in order]
    assert read[0] == (1 if decoding == "grouped" else len(set(order)))


def test_only_full_attention_caches_get_spare_room() -> None:
    kinds = {}
    for family in ("llama", "gemma2"):
        (cache,) = CachedDecoder(Network(make_causal_lm(family)), [[1, 2]]).cache.values()
        kinds[family] = [type(layer) for layer in cache.layers]
    assert kinds["llama"] == [_PreallocatedLayer] * 2
    assert sorted(kind is _PreallocatedLayer for kind in kinds["gemma2"]) == [False, True]
    assert DynamicLayer not in kinds["gemma2"]


def test_sampling_frequencies_match_probabilities() -> None:
    probs = torch.tensor([0.0, 0.5, 0.0, 0.3, 0.15, 0.05, 0.0])
    count = 400_000
    tokens = choose_tokens(probs.log().expand(count, -1), torch.Generator().manual_seed(0))[0]
    shares = tokens.bincount(minlength=len(probs)) / count
    assert (shares[probs == 0] == 0).all()
    deviation = (probs * (1 - probs) / count).sqrt()
    assert ((shares - probs).abs() <= 4.5 * deviation).all()


@pytest.mark.parametrize("drawn", [0.0, 1 - 2**-24])
def test_extreme_random_numbers_draw_possible_tokens(drawn: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "rand", lambda *size, **_: torch.full(size, drawn))
    logits = torch.full((9, 1000), -torch.inf)
    for row in range(9):
        logits[row, 100 : 200 + 50 * row] = torch.linspace(0, row, 100 + 50 * row)
    tokens = choose_tokens(logits, torch.Generator())[0]
    assert tokens.tolist() == ([100] * 9 if drawn == 0 else [199 + 50 * row for row in range(9)])


@pytest.mark.parametrize("entropy_gradient", [False, True])
def test_logprob_and_entropy_gradients_match_definition(entropy_gradient: bool) -> None:
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(6, 11, generator=generator, dtype=torch.float64).mul(3).requires_grad_()
    actions = torch.randint(11, (6,), generator=generator)
    weights = torch.randn(2, 6, generator=generator, dtype=torch.float64)
    logs = logits.log_softmax(-1)
    expected = logs.gather(1, actions[:, None]).squeeze(1), -(logs.exp() * logs).sum(1)
    found = logprobs_and_entropy(logits, actions, entropy_gradient)
    torch.testing.assert_close(found, expected)
    assert found[1].requires_grad is entropy_gradient
    used = 2 if entropy_gradient else 1
    wanted, given = (
        torch.autograd.grad((weights[:used] * torch.stack(pair[:used])).sum(), logits)[0] for pair in (expected, found)
    )
    torch.testing.assert_close(given, wanted)


def test_very_unlikely_actions_have_finite_logprobs() -> None:
    logits = torch.tensor([[500.0, 0.0, -500.0]])
    actions = torch.tensor([2])
    assert logprobs_and_entropy(logits, actions, False)[0].item() == -1000
    assert [x.item() for x in logprobs_and_kl(logits, logits, actions)] == [-1000, -1000, 0]


def test_logprob_computation_leaves_logits_unchanged() -> None:
    logits, ref_logits = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(1))
    before = logits.clone(), ref_logits.clone()
    actions = torch.zeros(4, dtype=torch.long)
    logprobs_and_entropy(logits, actions, True)
    logprobs_and_kl(logits, ref_logits, actions)
    assert torch.equal(logits, before[0])
    assert torch.equal(ref_logits, before[1])


def test_every_rare_token_can_be_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens with probabilities below the float32 resolution near 1 can still be drawn."""
    logits = torch.full((1, 100_001), math.log(2e-8))
    logits[0, 0] = 0.0
    wanted = torch.arange(50_000, 50_030)
    middles = (1 + 2e-8 * (wanted.double() - 0.5)) / (1 + 2e-8 * 100_000)
    monkeypatch.setattr(torch, "rand", lambda *_, dtype, **__: middles[:, None].to(dtype))
    drawn = choose_tokens(logits.expand(30, -1), torch.Generator())[0]
    assert len(drawn.unique()) == 30
    assert (drawn - wanted).abs().max() <= 4  # the softmax is computed in float32
