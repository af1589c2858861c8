"""Sequence-classification models as rewards: one number for a prompt and the response to it, read as one text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from envs.llm.data import shorten
from envs.llm.model import Network, config_context_length, load_config, load_reward_model, load_tokenizer, location
from envs.llm.rewards.errors import RewardError
from envs.llm.rewards.lora_reward_model import read_lora_folder
from ppo_unified.errors import UsageError

BATCH_COLUMNS = 8192  # padded tokens in one forward pass


class RewardModel:
    """The score at the last token of prompt + response, as the model's own tokenizer splits it.

    Nothing is added to the text but what that tokenizer always adds. The score is read where the text ends, known from
    its length: transformers looks for the last id that is not the pad id, and misses an end token that serves as both.
    """

    def __init__(self, source: str, device: Any = "cpu", dtype: str = "float32", option: str = "llm.reward") -> None:
        """Raises UsageError for what is not a reward model: random weights would score as happily as trained ones."""
        self._read(source, option)
        self.model = load_reward_model(source, option, getattr(torch, dtype)).eval().requires_grad_(False).to(device)
        self.head = getattr(self.model, "score", None)  # None: pools in its own way, as encoders do, by the mask
        if isinstance(self.head, nn.Module):
            self.head.float()  # bfloat16 has 256 numbers between 1 and 2: many scores would tie

    def _read(self, source: str, option: str) -> None:
        """Everything but the weights."""
        config, self.tokenizer = load_reward_model_parts(source, option)
        self.source, self.option = source, option
        self.longest = max_tokens(config, self.tokenizer)
        self.fill = config.get_text_config().pad_token_id or 0  # masked; some models number positions by it

    def __call__(self, prompts: Sequence[str], responses: Sequence[str], /, **columns: Any) -> list[float]:
        """Raises RewardError for a text that is longer than the model reads: nothing is ever cut."""
        rows = [self._encode(prompt, response) for prompt, response in zip(prompts, responses, strict=True)]
        scores = [0.0] * len(rows)
        for numbers in _batches([len(row) for row in rows]):
            values = self._forward([rows[i] for i in numbers]).tolist()
            for i, value in zip(numbers, values, strict=True):
                scores[i] = value
        return scores

    def _encode(self, prompt: str, response: str) -> list[int]:
        ids = encode(self.tokenizer, prompt + response)
        if not 0 < len(ids) <= self.longest:
            size = f"{len(ids)} tokens, and {self.source} reads at most {self.longest}" if ids else "no tokens"
            raise RewardError(
                f"{self.option}: prompt {shorten(prompt, 60)!r} and response {shorten(response, 60)!r} have {size}"
            )
        return ids

    @torch.no_grad()
    def _forward(self, rows: list[list[int]]) -> Tensor:
        """Scores [n] of rows of ids, padded on the right."""
        device = self.model.device
        lengths = torch.tensor([len(row) for row in rows], device=device)
        longest = max(map(len, rows))
        ids = torch.tensor([row + [self.fill] * (longest - len(row)) for row in rows], device=device)
        mask = torch.arange(longest, device=device) < lengths[:, None]
        if self.head is None:
            logits: Tensor = self.model(input_ids=ids, attention_mask=mask.long()).logits
            return logits[:, 0].float()
        last = self._hidden_states(ids, mask)[torch.arange(len(rows), device=device), lengths - 1]
        scores: Tensor = self.head(last.float())[:, 0]
        return scores

    def _hidden_states(self, ids: Tensor, mask: Tensor) -> Tensor:
        """[n, L, H]"""
        hidden: Tensor = self.model.base_model(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        return hidden


class SharedRewardModel(RewardModel):
    """A reward model that is LoRA on the policy's own base: the weights are in memory once."""

    def __init__(self, source: str, network: Network, name: str, option: str) -> None:
        """`name`: of the LoRA in `network`. Raises UsageError where it doesn't fit there."""
        self._read(source, option)
        folder = read_lora_folder(source)
        assert folder is not None
        self.network, self.name = network, name
        self.model = network.model
        self.head = network.add_frozen_lora(name, folder, option)

    def _hidden_states(self, ids: Tensor, mask: Tensor) -> Tensor:
        return self.network.trunk(ids, self.name)


def shares_base(source: str, model: str) -> bool:
    """Whether `source` is a LoRA folder whose base is the very model (folder or hub id) that `model` names."""
    folder = read_lora_folder(source)
    return folder is not None and location(folder.base) == location(model)


def encode(tokenizer: Any, text: str) -> list[int]:
    """The ids whose last one a text is scored at, in training a reward model as in using it."""
    ids: list[int] = tokenizer(text, truncation=False, verbose=False)["input_ids"]
    begin = tokenizer.bos_token_id
    # a chat template has written it already
    return ids[1:] if begin is not None and ids[:2] == [begin, begin] else ids


def load_reward_model_parts(source: str, option: str = "llm.reward") -> tuple[Any, Any]:
    """(configuration, tokenizer) of a reward model. Raises UsageError for another kind of model or a misfit."""
    config = load_config(source, option)
    kinds = config.architectures or []
    if kinds and not any("SequenceClassification" in kind for kind in kinds):
        raise UsageError(
            f"{option} = {source!r} is not a scoring model but a {kinds[0]}; make one with: ppo-unified reward-model"
        )
    if config.num_labels != 1:
        raise UsageError(
            f"{option} = {source!r} is not a scoring model: it has {config.num_labels} labels, a scoring model one"
        )
    tokenizer = load_tokenizer(source, option)
    largest, size = max(tokenizer.get_vocab().values(), default=-1), config.get_text_config().vocab_size
    if largest >= size:
        raise UsageError(f"{option} = {source!r}: its tokenizer has ids up to {largest}, its model {size} embeddings")
    return config, tokenizer


def max_tokens(config: Any, tokenizer: Any) -> int:
    """Tokens that the model reads at most: some count positions that no token takes, and only their tokenizer knows."""
    positions = config_context_length(config)
    return min(int(positions), int(tokenizer.model_max_length))


def _batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Row numbers, similar lengths together, in batches of at most BATCH_COLUMNS padded tokens or one row."""
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and (len(batch) + 1) * lengths[i] > BATCH_COLUMNS:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch
