"""Sampling responses: a batch of prompts padded on the left, a KV cache, rows dropped from it once they have ended.

Our own loop rather than `generate` of transformers, because every draw comes from a generator that is checkpointed; a
test holds greedy responses to those of `generate`.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from envs.llm.model import POLICY, Network

ROOM = 64  # columns that a layer's cache grows by
NGRAM = 3  # tokens whose return counts as repetition


@dataclass(frozen=True)
class Responses:
    """N prompts with their responses, padded on the right: `tokens[i, :lengths[i]]` is row i."""

    tokens: Tensor  # [N, S]; 0 beyond the lengths
    prompt_lengths: Tensor  # [N]
    lengths: Tensor  # [N], prompt and response
    ended: Tensor  # [N] bool: the response closes with an end token of its own

    def response(self, row: int) -> list[int]:
        """The response's tokens, its end token included."""
        ids: list[int] = self.tokens[row, self.prompt_lengths[row] : self.lengths[row]].tolist()
        return ids

    def mask(self) -> Tensor:
        """bool [N, S - 1]: column t chooses token t + 1, and the policy did so."""
        column = torch.arange(self.tokens.shape[1] - 1, device=self.tokens.device)
        return (column >= self.prompt_lengths[:, None] - 1) & (column < self.lengths[:, None] - 1)

    def repetition(self) -> float:
        """Share of a response's n-grams that it has used before, 0 to 1, averaged over responses."""
        tokens, begins, ends = self.tokens.tolist(), self.prompt_lengths.tolist(), self.lengths.tolist()
        rows = zip(tokens, begins, ends, strict=True)
        return sum(_repetition(row[begin:end]) for row, begin, end in rows) / len(tokens)


def _repetition(response: Sequence[int]) -> float:
    """Share of n-grams that came before, 0 to 1."""
    grams = [tuple(response[i : i + NGRAM]) for i in range(len(response) - NGRAM + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


@torch.no_grad()
def generate(
    network: Network,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    end_tokens: Sequence[int],
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
    lora: str | None = POLICY,
) -> Responses:
    """One response to each prompt: sampled from softmax(logits / temperature) with a generator (on the network's
    device), else the likeliest token every time."""
    network.use_lora(lora)
    device, count = network.device, len(prompts)
    end = torch.tensor(list(end_tokens), dtype=torch.long, device=device)
    prompt_lengths = torch.tensor([len(p) for p in prompts], device=device)
    responses = torch.zeros(count, max_new_tokens, dtype=torch.long, device=device)
    lengths, ended = torch.zeros_like(prompt_lengths), torch.zeros(count, dtype=torch.bool, device=device)
    rows = torch.arange(count, device=device)  # which of the N responses each row of the cache belongs to
    decoder = _Decoder(network, prompts, device)
    for column in range(max_new_tokens):
        token = _choose_tokens(decoder.logits if temperature == 1.0 else decoder.logits / temperature, generator)
        responses[rows, column] = torch.where(ended[rows], 0, token)
        lengths[rows] += (~ended[rows]).long()
        ended[rows] |= torch.isin(token, end)
        alive = ~ended[rows]
        left = int(alive.sum())
        if not left or column + 1 == max_new_tokens:
            break
        if left <= 0.75 * len(rows):
            keep = alive.nonzero().squeeze(1)
            rows, token = rows[keep], token[keep]
            decoder.keep(keep)
        decoder.step(token)
    return _join(prompts, prompt_lengths, responses, lengths, ended)


class _Decoder:
    """The model's state between two tokens: cache, attention mask and positions."""

    def __init__(self, network: Network, prompts: Sequence[Sequence[int]], device: torch.device) -> None:
        longest = max(len(p) for p in prompts)
        tokens = torch.tensor([[0] * (longest - len(p)) + list(p) for p in prompts], device=device)
        lengths = torch.tensor([len(p) for p in prompts], device=device)
        self.attention = torch.arange(longest, device=device) >= longest - lengths[:, None]
        self.network, self.padded = network, bool((lengths < longest).any())
        self.cache: Any = DynamicCache(config=network.model.config.get_text_config())
        self.cache.layers = [_PreallocatedLayer() if type(x) is DynamicLayer else x for x in self.cache.layers]
        # transformers 5.24 renamed the argument; a model class outside it may still have the older name
        arguments = inspect.signature(network.model.forward).parameters
        self.cache_argument = "cache" if "cache" in arguments else "past_key_values"
        self.positions = lengths - 1  # of each row's newest token
        self._run(tokens, (self.attention.long().cumsum(1) - 1).clamp(min=0))

    def step(self, token: Tensor) -> None:
        """Take one token [rows] in."""
        self.positions = self.positions + 1
        if self.padded:
            self.attention = torch.cat([self.attention, torch.ones_like(self.attention[:, :1])], 1)
        self._run(token[:, None], self.positions[:, None])

    def keep(self, rows: Tensor) -> None:
        self.cache.batch_select_indices(rows)
        self.attention, self.positions = self.attention[rows], self.positions[rows]

    def _run(self, tokens: Tensor, positions: Tensor) -> None:
        with self.network.precision():
            output = self.network.model(
                input_ids=tokens,
                attention_mask=self.attention.long() if self.padded else None,
                position_ids=positions,
                use_cache=True,
                logits_to_keep=1,
                **{self.cache_argument: self.cache},
            )
        self.logits: Tensor = output.logits[:, -1].float()


class _PreallocatedLayer(DynamicLayer):
    """Keys and values [rows, heads, columns, size] with room for columns to come: the layer it stands for copies all of
    them at every token. Windows and other kinds of layers stay as they are."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # transformers
        self.key_buffer = self.value_buffer = torch.empty(0)

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.key_buffer, self.value_buffer = key_states[:, :, :0], value_states[:, :, :0]
        if end > self.key_buffer.shape[-2]:
            self.key_buffer, self.value_buffer = (_grow(x, end + ROOM) for x in (self.key_buffer, self.value_buffer))
        self.key_buffer[:, :, start:end], self.value_buffer[:, :, start:end] = key_states, value_states
        self.keys, self.values = self.key_buffer[:, :, :end], self.value_buffer[:, :, :end]
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        end = self.get_seq_length()
        self.key_buffer, self.value_buffer = self.key_buffer[indices], self.value_buffer[indices]
        self.keys, self.values = self.key_buffer[:, :, :end], self.value_buffer[:, :, :end]


def _grow(x: Tensor, columns: int) -> Tensor:
    """`x` [rows, heads, n, size] with room for `columns` columns."""
    buffer = x.new_empty(*x.shape[:2], columns, x.shape[3])
    buffer[:, :, : x.shape[2]] = x
    return buffer


def _choose_tokens(logits: Tensor, generator: torch.Generator | None) -> Tensor:
    if generator is None:
        return logits.argmax(-1)
    # a fraction of `multinomial`'s time, which draws a number per token; float64, or most of a large vocabulary's rare
    # tokens, each less than what float32 tells apart near 1, would never be drawn and the others too often
    bounds = logits.softmax(-1).cumsum(-1, dtype=torch.float64)
    drawn = torch.rand(len(bounds), 1, dtype=torch.float64, generator=generator, device=bounds.device)
    token = torch.searchsorted(bounds, drawn * bounds[:, -1:], right=True)  # right: never one of no width
    return token.squeeze(1).clamp(max=logits.shape[-1] - 1)


def _join(
    prompts: Sequence[Sequence[int]], prompt_lengths: Tensor, responses: Tensor, lengths: Tensor, ended: Tensor
) -> Responses:
    """Each response right behind its prompt."""
    totals = prompt_lengths + lengths
    tokens = torch.zeros(len(prompts), int(totals.max()), dtype=torch.long, device=responses.device)
    for row, (prompt, size) in enumerate(zip(prompts, lengths.tolist(), strict=True)):
        tokens[row, : len(prompt)] = torch.tensor(prompt, device=tokens.device)
        tokens[row, len(prompt) : len(prompt) + size] = responses[row, :size]
    return Responses(tokens, prompt_lengths, totals, ended)
