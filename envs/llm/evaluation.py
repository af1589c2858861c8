"""How good the policy is on held-out prompts, and what its responses look like."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from envs.llm.adapter import LLMAdapter
from envs.llm.generate import Responses
from envs.llm.model import POLICY, Network
from envs.llm.rewards.functions import score
from ppo_unified.config.spec import Report

SHOWN = 8  # held-out prompts whose responses are logged, the same at every evaluation


@dataclass(frozen=True)
class Answers:
    """Held-out prompts with one response each."""

    prompts: list[str]
    texts: list[str]
    scores: list[float]
    responses: Responses


def choose(count: int, wanted: int, seed: int) -> list[int]:
    """Numbers of `wanted` of `count` prompts in an order drawn from `seed`: each once before any comes again."""
    generator, numbers = torch.Generator().manual_seed(seed), list[int]()
    while len(numbers) < wanted:
        numbers += torch.randperm(count, generator=generator).tolist()
    return numbers[:wanted]


def answer(adapter: LLMAdapter, episodes: int, seed: int, greedy: bool) -> Answers:
    """Responses to `episodes` held-out prompts, and their scores as the reward gives them."""
    numbers = choose(len(adapter.held_out.texts), episodes, seed)
    generator = None if greedy else torch.Generator(adapter.device).manual_seed(seed)
    return _answers(adapter, numbers, generator)


def _answers(
    adapter: LLMAdapter,
    numbers: Sequence[int],
    generator: torch.Generator | None,
    network: Network | None = None,
    named: str | None = POLICY,
) -> Answers:
    prompts, size = adapter.held_out, adapter.config.llm.rollout_batch
    parts = []
    for start in range(0, len(numbers), size):
        some = numbers[start : start + size]
        responses = adapter.respond([prompts.tokens[i] for i in some], generator, network, named)
        parts.append(([prompts.texts[i] for i in some], adapter.texts(responses), responses))
    asked = [text for part in parts for text in part[0]]
    texts = [text for part in parts for text in part[1]]
    scores = score(adapter.reward, "llm.reward", asked, texts, prompts.columns_of(numbers))
    return Answers(asked, texts, scores, _stacked([part[2] for part in parts]))


def _stacked(parts: list[Responses]) -> Responses:
    longest = max(part.tokens.shape[1] for part in parts)
    tokens = [torch.nn.functional.pad(part.tokens, (0, longest - part.tokens.shape[1])) for part in parts]
    return Responses(
        torch.cat(tokens),
        torch.cat([part.prompt_lengths for part in parts]),
        torch.cat([part.lengths for part in parts]),
        torch.cat([part.ended for part in parts]),
    )


def report(adapter: LLMAdapter, episodes: int, seed: int) -> Report:
    """What sampled responses to held-out prompts are like, and greedy ones to a fixed few of them in full."""
    sampled = answer(adapter, episodes, seed, greedy=False)
    mask = sampled.responses.mask()
    kl = (adapter.compare(sampled.responses).kl * mask).sum(1)
    metrics = {
        "eval/sampled_score": float(np.mean(sampled.scores)),
        "eval/kl": float(kl.mean()),
        "eval/length": float(mask.sum(1).float().mean()),
        "eval/eos_rate": float(sampled.responses.ended.float().mean()),
        "eval/repetition": sampled.responses.repetition(),
    }
    if adapter.gold is not None:
        columns = adapter.held_out.columns_of(choose(len(adapter.held_out.texts), episodes, seed))
        metrics["eval/gold"] = float(
            np.mean(score(adapter.gold, "llm.proxy_of", sampled.prompts, sampled.texts, columns))
        )
    return Report(metrics, shown(adapter))


def shown(adapter: LLMAdapter) -> list[dict[str, object]]:
    """Greedy responses of policy and reference to the first held-out prompts."""
    numbers = range(min(SHOWN, len(adapter.held_out.texts)))
    ours = _answers(adapter, numbers, None)
    theirs = _answers(adapter, numbers, None, adapter.reference.network, adapter.reference.adapter)
    kl = (adapter.compare(ours.responses).kl * ours.responses.mask()).sum(1).tolist()
    return [
        {
            "prompt": ours.prompts[i],
            "response": ours.texts[i],
            "score": ours.scores[i],
            "kl": kl[i],
            "reference": theirs.texts[i],
            "reference_score": theirs.scores[i],
        }
        for i in numbers
    ]
