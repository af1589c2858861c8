"""Responds to the prompts of the `play` command, with both the policy and the reference, and scores the responses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from envs.llm.adapter import LLMAdapter
from envs.llm.data import PromptData
from envs.llm.evaluation import choose_prompts
from envs.llm.generate import Responses
from envs.llm.prompts import tokenize
from envs.llm.rewards.errors import RewardError
from envs.llm.rewards.functions import needed_columns, score
from ppo_unified.config.spec import Exchange, Reply


class LLMChat:
    """A chat in which each prompt is independent of earlier ones. Implements `ppo_unified.config.spec.Chat`."""

    def __init__(self, adapter: LLMAdapter, seed: int, greedy: bool) -> None:
        """Prepare a chat. Unless `greedy` is True, the policy and the reference sample with the same seed."""
        self.adapter, self.seed = adapter, seed
        devices = adapter.device, adapter.reference.network.device
        self.generators = [None if greedy else torch.Generator(device).manual_seed(seed) for device in devices]
        self.needed = needed_columns(adapter.config.llm.reward_name)
        llm, first = adapter.config.llm, adapter.prompts.data.prompts[0]
        self.as_message = llm.chat_template or isinstance(first, list)  # as in training
        self.prompt_count = 0

    def answer(self, prompt: str) -> Exchange:
        self.prompt_count += 1
        longest = self.adapter.policy.network.context_length - self.adapter.config.llm.max_new_tokens
        data = PromptData([prompt], {}, "", [self.prompt_count], unit="prompt")
        read = tokenize(data, self.adapter.tokenizer, self.as_message, longest)
        return self._exchange(prompt, read.texts[0], read.tokens[0], self._find_columns(read.texts[0]))

    def _find_columns(self, prompt: str) -> Mapping[str, Sequence[Any]]:
        """Return the columns of a prompt from the run's prompt files, or {} for any other prompt."""
        for prompts in (self.adapter.held_out, self.adapter.prompts):
            if prompt in prompts.texts:
                return prompts.columns_at([prompts.texts.index(prompt)])
        return {}

    def examples(self, count: int) -> Iterator[Exchange]:
        prompts = self.adapter.held_out
        for number in choose_prompts(len(prompts.texts), count, self.seed):
            prompt = prompts.texts[number]
            yield self._exchange(prompt, prompt, prompts.tokens[number], prompts.columns_at([number]))

    def _exchange(self, shown: str, prompt: str, tokens: list[int], columns: Mapping[str, Sequence[Any]]) -> Exchange:
        adapter, (ours, theirs) = self.adapter, self.generators
        responses = [adapter.respond([tokens], ours), adapter.respond([tokens], theirs, adapter.reference)]
        texts = [adapter.texts(part)[0] for part in responses]
        scores, remark = self._scores(prompt, texts, columns)
        kl = float((adapter.compare(responses[0]).kl * responses[0].mask()).sum())
        policy, reference = (_reply(*parts) for parts in zip(texts, responses, scores, strict=True))
        return Exchange(shown, policy, reference, kl, remark)

    def _scores(
        self, prompt: str, texts: list[str], columns: Mapping[str, Sequence[Any]]
    ) -> tuple[Sequence[float | None], str]:
        """Return (scores, remark) for two responses. If they cannot be scored, the remark contains the reason."""
        missing = [name for name in self.needed if name not in columns]
        if missing:
            return (
                None,
                None,
            ), f"no score: the reward needs a prompt with {', '.join(f'`{name}`' for name in missing)}"
        twice = {name: [*values, *values] for name, values in columns.items()}
        try:
            return score(self.adapter.reward, "llm.reward", [prompt, prompt], texts, twice), ""
        except RewardError as error:
            return (None, None), f"no score: {error}"


def chat(adapter: LLMAdapter, seed: int, greedy: bool) -> LLMChat:
    return LLMChat(adapter, seed, greedy)


def _reply(text: str, responses: Responses, value: float | None) -> Reply:
    return Reply(text, len(responses.response(0)), bool(responses.ended[0]), value)
