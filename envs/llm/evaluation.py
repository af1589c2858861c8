"""Evaluates the policy on held-out prompts and returns metrics and example responses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from envs.llm.generate import Responses
from envs.llm.options import LLMConfig
from envs.llm.policy import Comparison, Reference
from envs.llm.prompts import HOLD_OUT_FROM, Prompts
from envs.llm.rewards.errors import RewardError
from envs.llm.rewards.scoring import Scores
from ppo_unified.config.spec import Report, WorkCounter

SHOWN = 8  # number of held-out prompts whose responses are logged; they are the same in every evaluation


class Respondent(Protocol):
    """The part of the adapter that an evaluation uses."""

    config: LLMConfig
    device: torch.device
    held_out: Prompts
    reference: Reference
    counter: WorkCounter

    def respond(
        self, prompts: Sequence[list[int]], generator: torch.Generator | None, reference: Reference | None = None
    ) -> Responses: ...

    def texts(self, responses: Responses) -> list[str]: ...

    def judge(self, prompts: Prompts, numbers: Sequence[int], responses: Responses) -> Scores: ...

    def compare(self, responses: Responses) -> Comparison: ...


@dataclass(frozen=True)
class Answers:
    """Prompts, each with one response and its score."""

    prompts: list[str]
    texts: list[str]
    scores: Scores  # before any normalization
    responses: Responses

    @property
    def numbers(self) -> list[float]:
        """The scores of the responses that have one. Raises RewardError if there are none."""
        if not self.scores.numbers:
            raise RewardError(
                f"llm.reward returned None for all {len(self.texts)} responses of an evaluation; return a number for "
                "at least one of them"
            )
        return self.scores.numbers


def choose_prompts(count: int, wanted: int, seed: int) -> list[int]:
    """Return `wanted` indices below `count` in random order. No index repeats until all indices have been used."""
    generator, numbers = torch.Generator().manual_seed(seed), list[int]()
    while len(numbers) < wanted:
        numbers += torch.randperm(count, generator=generator).tolist()
    return numbers[:wanted]


def describe_prompts(training: Prompts, evaluated: Prompts) -> str | None:
    """Return a note if evaluations use training prompts, or None if all of them are held out."""
    if evaluated.data is training.data:
        return (
            f"evaluations use the {len(training.texts)} training prompts, because a file with fewer than "
            f"{HOLD_OUT_FROM} prompts is not divided; to use held-out prompts, set llm.eval_prompts"
        )
    seen = set(training.texts)
    shared = sum(text in seen for text in evaluated.texts)
    if not shared:
        return None
    return (
        f"evaluations use prompts that are also training prompts ({shared} of {len(evaluated.texts)}); to use only "
        "held-out prompts, remove them from one of the two sets"
    )


def answer(
    respondent: Respondent,
    prompts: Prompts,
    numbers: Sequence[int],
    generator: torch.Generator | None,
    reference: Reference | None = None,
) -> Answers:
    """Generate responses to the prompts at the indices `numbers`, and score the responses.

    Responses come from `reference` if it is given, otherwise from the policy. If `generator` is None, decoding is
    greedy.
    """
    size, parts = respondent.config.llm.rollout_batch, list[Responses]()
    starts = range(0, len(numbers), size)
    for number, start in enumerate(starts, 1):
        batch = f" batch {number} of {len(starts)}," if len(starts) > 1 else ""
        respondent.counter.begin(f"generating{batch}", "token", respondent.config.llm.max_new_tokens)
        tokens = [prompts.tokens[i] for i in numbers[start : start + size]]
        parts.append(respondent.respond(tokens, generator, reference))
    responses = stack(parts)
    scores = respondent.judge(prompts, numbers, responses)
    return Answers([prompts.texts[i] for i in numbers], respondent.texts(responses), scores, responses)


def stack(parts: Sequence[Responses]) -> Responses:
    """Join responses. Their tokens are padded to the longest row."""
    longest = max(part.tokens.shape[1] for part in parts)
    tokens = [torch.nn.functional.pad(part.tokens, (0, longest - part.tokens.shape[1])) for part in parts]
    return Responses(
        torch.cat(tokens),
        torch.cat([part.prompt_lengths for part in parts]),
        torch.cat([part.lengths for part in parts]),
        torch.cat([part.ended for part in parts]),
    )


def report(adapter: Respondent, episodes: int, seed: int) -> Report:
    """Return the metrics of sampled responses to held-out prompts, and a few greedy responses as examples."""
    numbers = choose_prompts(len(adapter.held_out.texts), episodes, seed)
    sampled = answer(adapter, adapter.held_out, numbers, torch.Generator(adapter.device).manual_seed(seed))
    mask = sampled.responses.mask()
    kl = (adapter.compare(sampled.responses).kl * mask).sum(1)
    metrics = {
        **sampled.scores.means("eval"),
        "eval/sampled_score": float(np.mean(sampled.numbers)),
        "eval/kl": float(kl.mean()),
        "eval/length": float(mask.sum(1).float().mean()),
        "eval/eos_rate": float(sampled.responses.ended.float().mean()),
        "eval/repetition": sampled.responses.repetition(),
    }
    return Report(metrics, examples(adapter))


def examples(adapter: Respondent) -> list[dict[str, object]]:
    """Return the greedy responses of the policy and of the reference to the first held-out prompts."""
    numbers = range(min(SHOWN, len(adapter.held_out.texts)))
    ours = answer(adapter, adapter.held_out, numbers, None)
    theirs = answer(adapter, adapter.held_out, numbers, None, adapter.reference)
    kl = (adapter.compare(ours.responses).kl * ours.responses.mask()).sum(1).tolist()
    return [
        {
            "prompt": ours.prompts[i],
            "response": ours.texts[i],
            "score": ours.scores.totals[i],
            "kl": kl[i],
            "reference": theirs.texts[i],
            "reference_score": theirs.scores.totals[i],
        }
        for i in numbers
    ]
