"""Responds to the prompts of the `play` command, with both the policy and the reference, and scores the responses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from envs.llm.adapter import LLMAdapter
from envs.llm.data import PromptData
from envs.llm.evaluation import choose_prompts, stack
from envs.llm.generate import Responses
from envs.llm.prompts import Prompts, find_system_message, tokenize
from envs.llm.rewards.errors import RewardError
from envs.llm.rewards.functions import needed_columns
from ppo_unified.config.spec import Exchange, Reply


class LLMChat:
    """A chat in which each prompt is independent of earlier ones. Implements `ppo_unified.config.spec.Chat`."""

    def __init__(self, adapter: LLMAdapter, seed: int, greedy: bool) -> None:
        """Prepare a chat. Unless `greedy` is True, the policy and the reference sample with the same seed."""
        self.adapter, self.seed = adapter, seed
        devices = adapter.device, adapter.reference.network.device
        self.generators = [None if greedy else torch.Generator(device).manual_seed(seed) for device in devices]
        rewards = adapter.config.llm.rewards
        self.needed = [name for reward in rewards if reward.weight for name in needed_columns(reward.source)]
        llm, first = adapter.config.llm, adapter.prompts.data.prompts[0]
        self.as_message = llm.chat_template or isinstance(first, list)  # as in training
        self.system, self.system_note = find_system_message(adapter.prompts.data.prompts)
        self.prompt_count = 0

    def answer(self, prompt: str) -> Exchange:
        exchange = self._answer(prompt)
        if self.prompt_count == 1 and self.system_note:
            exchange = replace(exchange, remark="; ".join(filter(None, [exchange.remark, self.system_note])))
        return exchange

    def _answer(self, prompt: str) -> Exchange:
        self.prompt_count += 1
        longest = self.adapter.policy.network.context_length - self.adapter.config.llm.max_new_tokens
        chat = [*self.system, {"role": "user", "content": prompt}]
        data = PromptData([chat if self.system else prompt], {}, "", [self.prompt_count], unit="prompt")
        cut = "cut" if self.adapter.config.llm.long_prompts == "cut" else "refuse"
        read = tokenize(data, self.adapter.tokenizer, self.as_message, longest, cut)
        for prompts in (self.adapter.held_out, self.adapter.prompts):  # which have the columns that the reward needs
            if read.texts[0] in prompts.texts:
                return self._exchange(prompt, prompts, prompts.texts.index(read.texts[0]))
        return self._exchange(prompt, read, 0)

    def examples(self, count: int) -> Iterator[Exchange]:
        prompts = self.adapter.held_out
        for number in choose_prompts(len(prompts.texts), count, self.seed):
            yield self._exchange(prompts.texts[number], prompts, number)

    def _exchange(self, shown: str, prompts: Prompts, number: int) -> Exchange:
        """Respond to the prompt at the index `number`."""
        adapter, (ours, theirs), tokens = self.adapter, self.generators, prompts.tokens[number]
        responses = [adapter.respond([tokens], ours), adapter.respond([tokens], theirs, adapter.reference)]
        texts = [adapter.texts(part)[0] for part in responses]
        scores, remark = self._scores(prompts, number, responses)
        kl = float((adapter.compare(responses[0]).kl * responses[0].mask()).sum())
        policy, reference = (_reply(*parts) for parts in zip(texts, responses, scores, strict=True))
        return Exchange(shown, policy, reference, kl, remark)

    def _scores(
        self, prompts: Prompts, number: int, responses: Sequence[Responses]
    ) -> tuple[Sequence[float | None], str]:
        """Return (scores, remark) for two responses. If they cannot be scored, the remark contains the reason."""
        missing = [name for name in self.needed if name not in prompts.data.columns]
        if missing:
            return (
                None,
                None,
            ), f"no score: the reward needs a prompt with {', '.join(f'`{name}`' for name in missing)}"
        try:
            scores = self.adapter.judge(prompts, [number] * len(responses), stack(responses)).totals
            return scores, "" if None not in scores else "no score: the reward returned None"
        except RewardError as error:
            return (None, None), f"no score: {error}"


def chat(adapter: LLMAdapter, seed: int, greedy: bool) -> LLMChat:
    return LLMChat(adapter, seed, greedy)


def _reply(text: str, responses: Responses, value: float | None) -> Reply:
    return Reply(text, len(responses.response(0)), bool(responses.ended[0]), value)
