"""Runs the real networks of a run on a few rows, so that their memory and time can be measured."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from envs.categorical import logprobs_and_entropy
from envs.llm.adapter import LLMAdapter
from envs.llm.generate import choose_tokens, make_decoder
from envs.llm.model import POLICY, Network
from envs.llm.policy import NOT_CHOSEN, logprobs_and_kl, make_observations
from envs.llm.rewards.reward_model import RewardModel, encode
from ppo_unified.engine.optimizers import Adam, step

STEPS = 4  # number of tokens per response that are sampled to measure the time per token
ADAM_WEIGHTS = 1 << 20  # number of weights with which an optimizer step is timed

T = TypeVar("T")


class Probe:
    """Runs the networks of an adapter on text of its prompts, without changing its state."""

    def __init__(self, adapter: LLMAdapter) -> None:
        self.adapter, self.device, self.policy = adapter, adapter.device, adapter.policy
        self.network = adapter.policy.network
        self.width = self.network.width
        self.prompts = sorted(map(list, adapter.prompts.tokens), key=len, reverse=True)
        self.text = max(adapter.prompts.texts, key=len)
        self.new = adapter.config.llm.max_new_tokens
        self.row = self._fill(self.prompts[0], len(self.prompts[0]) + self.new)
        self.columns = len(self.row) - 1  # of a row, without its last token
        self.generator = torch.Generator(self.device).manual_seed(0)

    def _fill(self, prompt: list[int], length: int) -> list[int]:
        """Repeat a prompt up to a length, because a token that follows itself would be unusual for the model."""
        return (prompt * -(-length // len(prompt)))[:length]

    def update(self, rows: int, steps: int | None = None) -> None:
        """Run a forward and a backward pass in which each row has `steps` steps. Free each gradient at once."""
        tokens, chosen = self._rows(rows, steps)
        trained = [p for p in self.policy.parameters() if p.requires_grad]
        hooks = [p.register_post_accumulate_grad_hook(_drop_gradient) for p in trained]
        try:
            obs = make_observations(tokens[:, :-1], chosen, self.adapter.config.llm.min_new_tokens)
            new = self.policy.evaluate(obs, torch.where(chosen, tokens[:, 1:], NOT_CHOSEN))
            loss = new.logprobs.sum() + new.values.sum()
            (loss + new.entropy.sum() if self.policy.entropy_gradient else loss).backward()
        finally:
            for hook in hooks:
                hook.remove()

    def compare(self, rows: int, steps: int | None = None) -> None:
        tokens, chosen = self._rows(rows, steps)
        self.policy.compare(tokens[:, :-1], chosen, tokens[:, 1:], self.adapter.reference)

    def update_logits(self, steps: int) -> None:
        """Compute log-probs from hidden states, and their gradients without those of the weights."""
        gradient = self.policy.entropy_gradient
        hidden = torch.zeros(steps, self.width, device=self.device, requires_grad=True)
        actions = torch.zeros(steps, dtype=torch.long, device=self.device)
        logprobs, entropy = logprobs_and_entropy(self.network.logits(hidden), actions, gradient)
        torch.autograd.grad((logprobs + entropy if gradient else logprobs).sum(), hidden)

    @torch.no_grad()
    def compare_logits(self, steps: int) -> None:
        hidden = torch.zeros(steps, self.width, device=self.device)
        actions = torch.zeros(steps, dtype=torch.long, device=self.device)
        reference, lora = self.adapter.reference
        theirs = reference.logits(hidden.to(reference.device), lora).to(self.device)
        logprobs_and_kl(self.network.logits(hidden), theirs, actions)

    def sample_logits(self, steps: int) -> None:
        """Sample a token from each row of logits."""
        logits = torch.zeros(steps, self.network.model.config.get_text_config().vocab_size, device=self.device)
        choose_tokens(logits, self.generator)

    def _rows(self, rows: int, steps: int | None) -> tuple[Tensor, Tensor]:
        """Return tokens [rows, L + 1] and the mask [rows, L] of the last `steps` columns."""
        tokens = torch.tensor([self.row] * rows, device=self.device)
        columns = torch.arange(self.columns, device=self.device)
        return tokens, (columns >= self.columns - (steps or self.new)).expand(rows, -1)

    @torch.no_grad()
    def prompt(self, rows: int, extra: int = 0) -> Any:
        """Run the network on the longest prompt with `extra` tokens, and return the decoder."""
        self.network.use_lora(POLICY)
        ids = self._fill(self.prompts[0], len(self.prompts[0]) + extra)
        return make_decoder(self.network, [[*ids[:-1], row] for row in range(rows)])  # reads equal rows once

    @torch.no_grad()
    def first_step(self, rows: int) -> None:
        """Run the network on `rows` prompts of different lengths, as the first step of decoding does."""
        self.network.use_lora(POLICY)
        make_decoder(self.network, spread(self.prompts, rows))

    @torch.no_grad()
    def token_s(self, rows: int) -> float:
        """Return the seconds for one token in each of `rows` rows, at half of their length.

        Only a few different rows are read, and then copied. The padding must be like that of the real rows.
        """
        self.network.use_lora(POLICY)
        steps = min(STEPS, self.new - 1)
        if not steps:
            return 0.0
        chosen = spread(self.prompts, rows // self.adapter.config.llm.group_size)
        lengths = list({len(ids): ids for ids in chosen}.values())
        read = lengths if self.network.decoding == "grouped" else [lengths[0], lengths[-1]]
        half = (self.new - 1 - steps) // 2
        copies = [self._fill(ids, len(ids) + half) for ids in spread(read, rows)]
        decoder = make_decoder(self.network, copies)

        def step() -> None:
            decoder.step(choose_tokens(decoder.logits, self.generator)[0])

        return sorted(time_call(step, self.device) for _ in range(steps))[steps // 2]

    def score(self, rows: int) -> None:
        """Run the reward models on `rows` rows. Reward functions may have side effects, so they are not called."""
        for reward in self.reward_models:
            text = encode(reward.tokenizer, self.text) or [0]
            reward.score_tokens([self._fill(text, min(self.columns + 1, reward.longest))] * rows)

    @property
    def reward_models(self) -> list[RewardModel]:
        return [reward for reward in self.adapter.rewards.functions if isinstance(reward, RewardModel)]

    def optimizer_s(self) -> float:
        """Return the seconds of an optimizer step."""
        config, sizes = self.adapter.config, [p.numel() for p in self.policy.parameters() if p.requires_grad]
        count = min(sum(sizes), ADAM_WEIGHTS)
        parameter = nn.Parameter(torch.zeros(count, device=self.device))
        parameter.grad = torch.zeros_like(parameter)
        optimizers = [Adam([parameter], config.optim.lr, betas=(0.9, 0.999), eps=config.optim.eps)]
        step(optimizers, config.optim)
        return time_call(lambda: step(optimizers, config.optim), self.device) * sum(sizes) / count

    @contextmanager
    def restore_state(self) -> Iterator[None]:
        """Restore the active LoRA weights when the context exits. Everything else that a Probe uses is its own."""
        networks = {id(n): n for n in self.policy.modules() if isinstance(n, Network)}
        active = [(network, network.active_lora) for network in networks.values()]
        try:
            yield
        finally:
            for network, lora in active:
                network.use_lora(lora)


def _drop_gradient(parameter: Tensor) -> None:
    parameter.grad = None


def spread(values: Sequence[T], count: int) -> list[T]:
    """Return `count` of the values at evenly distributed positions, starting with the first one."""
    return [values[i * len(values) // count] for i in range(count)]


def time_call(run: Callable[[], object], device: torch.device) -> float:
    """Return the seconds that a call takes."""
    _synchronize(device)  # wait for earlier work, which the call would otherwise seem to take
    started = time.perf_counter()
    run()
    _synchronize(device)
    return time.perf_counter() - started


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
