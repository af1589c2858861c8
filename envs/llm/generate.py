"""Generates responses token by token, with the model's cache if possible.

Finished rows are removed from the batch. The `generate` method of transformers is not used, because it accepts no
random generator whose state could be saved in checkpoints. A test verifies that greedy responses are identical to those
of `generate`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache, DynamicLayer

from envs.llm.model import POLICY, Network
from envs.llm.stop_strings import StopStrings
from ppo_unified.config.spec import WorkCounter

ROOM = 64  # number of spare columns that a cache layer allocates when it grows
NEVER = -1e9  # logit of a token that is never chosen; with -inf, KL would be NaN
NGRAM = 3  # length in tokens of the n-grams that the repetition metric compares


@dataclass(frozen=True)
class Responses:
    """N prompts with their responses, padded on the right. `tokens[i, :lengths[i]]` is row i without padding."""

    tokens: Tensor  # [N, S], padded with 0
    prompt_lengths: Tensor  # [N]
    lengths: Tensor  # [N], total length of prompt and response
    ended: Tensor  # [N] bool, True if the response ends with an end token or a stop string
    # [N, S - 1], column t is the log-prob with which token t + 1 was sampled, or NaN; None if nothing was sampled
    sampled_logprobs: Tensor | None = None

    def response(self, row: int) -> list[int]:
        """Return the tokens of the response in this row, including its end token."""
        ids: list[int] = self.tokens[row, self.prompt_lengths[row] : self.lengths[row]].tolist()
        return ids

    def mask(self) -> Tensor:
        """Return a bool tensor [N, S - 1] whose column t is True if the policy chose token t + 1."""
        column = torch.arange(self.tokens.shape[1] - 1, device=self.tokens.device)
        return (column >= self.prompt_lengths[:, None] - 1) & (column < self.lengths[:, None] - 1)

    def repetition(self) -> float:
        """Return the fraction of repeated n-grams in a response, averaged over all responses."""
        tokens, starts, ends = self.tokens.tolist(), self.prompt_lengths.tolist(), self.lengths.tolist()
        rows = zip(tokens, starts, ends, strict=True)
        return sum(_repetition(row[start:end]) for row, start, end in rows) / len(tokens)


def _repetition(response: Sequence[int]) -> float:
    """Return the fraction of n-grams that already occur earlier in the response."""
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
    counter: WorkCounter | None = None,
    min_new_tokens: int = 0,
    stop: StopStrings | None = None,
) -> Responses:
    """Generate one response to each prompt. `counter` counts the tokens of the longest response.

    If `generator` is given, tokens are sampled from softmax(logits / temperature). The generator must be on the
    network's device. If `generator` is None, the most likely token is chosen at every step. The first `min_new_tokens`
    tokens cannot be end tokens. A response also ends with the token that completes a string of `stop`.
    """
    network.use_lora(lora)
    counter = counter or WorkCounter()
    device, count = network.device, len(prompts)
    end = torch.tensor(list(end_tokens), dtype=torch.long, device=device)
    prompt_lengths = torch.tensor([len(p) for p in prompts], device=device)
    responses = torch.zeros(count, max_new_tokens, dtype=torch.long, device=device)
    logprobs = torch.zeros(count, max_new_tokens, device=device)
    lengths, ended = torch.zeros_like(prompt_lengths), torch.zeros(count, dtype=torch.bool, device=device)
    history: list[list[int]] = [[] for _ in prompts]  # the responses so far, for `stop`
    rows = torch.arange(count, device=device)  # index of the response, 0 to N - 1, of each row in the cache
    decoder = make_decoder(network, prompts)
    for column in range(max_new_tokens):
        logits = decoder.logits if temperature == 1.0 else decoder.logits / temperature
        logits = logits.index_fill(1, end, NEVER) if column < min_new_tokens else logits
        token, logprobs[rows, column] = choose_tokens(logits, generator)
        responses[rows, column] = torch.where(ended[rows], 0, token)
        lengths[rows] += (~ended[rows]).long()
        ended[rows] |= torch.isin(token, end) | _complete_stop(history, rows, token, stop)
        counter.done += 1
        alive = ~ended[rows]
        left = int(alive.sum())
        if not left or column + 1 == max_new_tokens:
            break
        if left <= 0.75 * len(rows):
            keep = alive.nonzero().squeeze(1)
            rows, token = rows[keep], token[keep]
            decoder.keep(keep)
        decoder.step(token)
    counter.done = counter.total
    found = _join(prompts, prompt_lengths, responses, lengths, ended, logprobs)
    return found if generator is not None else replace(found, sampled_logprobs=None)


class CachedDecoder:
    """Runs the network one token at a time. Stores the cache, attention mask, positions and logits between calls.

    Prompts of different lengths are padded on the left. If all prompts have the same length, the model gets no mask.
    """

    logits: Tensor  # [rows, V], of the next token

    def __init__(self, network: Network, prompts: Sequence[Sequence[int]]) -> None:
        device, longest, self.prompt = network.device, max(len(p) for p in prompts), prompts[0]
        tokens = torch.tensor([[0] * (longest - len(p)) + list(p) for p in prompts], device=device)
        lengths = torch.tensor([len(p) for p in prompts], device=device)
        self.attention = torch.arange(longest, device=device) >= longest - lengths[:, None]
        self.network, self.padded = network, bool((lengths < longest).any())
        self.arguments = inspect.signature(network.model.forward).parameters
        self.cache: dict[str, Any] = {}  # the arguments of the next call that contain the model's cache
        self.positions = lengths - 1  # position of each row's newest token
        self._run(tokens, (self.attention.long().cumsum(1) - 1).clamp(min=0))
        self.cache = {name: _preallocate(x) for name, x in self.cache.items()}

    def step(self, token: Tensor) -> None:
        """Append `token` [rows], one token per row, and compute the logits of the next token."""
        self.positions = self.positions + 1
        if self.padded:
            self.attention = torch.cat([self.attention, torch.ones_like(self.attention[:, :1])], 1)
        self._run(token[:, None], self.positions[:, None])

    def keep(self, rows: Tensor) -> None:
        """Keep the rows with these indices, in this order. An index can occur several times."""
        network = self.network
        if network.row_dimensions is None:
            network.row_dimensions = _find_row_dimensions(network, self.prompt)
        found = network.row_dimensions
        self.cache = _replace_tensors(
            self.cache, lambda path, x: x.index_select(found[path], rows) if path in found else x
        )
        self.attention, self.positions = self.attention[rows], self.positions[rows]
        self.logits = self.logits[rows]

    def _run(self, tokens: Tensor, positions: Tensor) -> None:
        more: dict[str, Any] = {"attention_mask": self.attention.long()} if self.padded else {}
        more |= {name: x for name, x in (("position_ids", positions), ("logits_to_keep", 1)) if name in self.arguments}
        with self.network.precision():
            output = self.network.model(input_ids=tokens, use_cache=True, **more, **self.cache)
        # The cache is whatever the model returns and also accepts, because its name differs between types of models
        self.cache = {name: x for name, x in output.items() if name in self.arguments}
        if not self.cache:
            raise ValueError("the model returns no cache")
        self.logits = output.logits[:, -1].float()


class GroupedDecoder:
    """Decodes prompts of the same length together, without padding, for models that padding would change."""

    def __init__(self, network: Network, prompts: Sequence[Sequence[int]]) -> None:
        lengths = torch.tensor([len(p) for p in prompts], device=network.device)
        self.rows = [(lengths == length).nonzero().squeeze(1) for length in lengths.unique()]  # of each group
        self.groups = [CachedDecoder(network, [prompts[i] for i in rows.tolist()]) for rows in self.rows]

    @property
    def logits(self) -> Tensor:
        return torch.cat([group.logits for group in self.groups])[torch.cat(self.rows).argsort()]

    def step(self, token: Tensor) -> None:
        for rows, group in zip(self.rows, self.groups, strict=True):
            group.step(token[rows])

    def keep(self, rows: Tensor) -> None:
        before, self.rows, self.groups = zip(self.rows, self.groups, strict=True), [], []
        for old, group in before:
            kept = torch.isin(rows, old).nonzero().squeeze(1)
            if len(kept):
                group.keep(torch.searchsorted(old, rows[kept]))  # `old` is sorted
                self.rows.append(kept)
                self.groups.append(group)


class UncachedDecoder:
    """Runs the network on whole rows at every token, as in training, for models without a usable cache."""

    logits: Tensor  # [rows, V], of the next token

    def __init__(self, network: Network, prompts: Sequence[Sequence[int]]) -> None:
        self.network, self.lora = network, network.active_lora
        device = network.device
        self.lengths = torch.tensor([len(p) for p in prompts], device=device)
        longest = max(len(p) for p in prompts)
        self.tokens = torch.tensor([[*p, *[0] * (longest - len(p))] for p in prompts], device=device)
        self._run()

    def step(self, token: Tensor) -> None:
        self.tokens = nn.functional.pad(self.tokens, (0, 1)).scatter(1, self.lengths[:, None], token[:, None])
        self.lengths = self.lengths + 1
        self._run()

    def keep(self, rows: Tensor) -> None:
        self.lengths, self.logits = self.lengths[rows], self.logits[rows]
        self.tokens = self.tokens[rows, : int(self.lengths.max())]

    def _run(self) -> None:
        hidden = self.network.trunk(self.tokens, self.lora)
        last = hidden[torch.arange(len(hidden), device=hidden.device), self.lengths - 1]
        self.logits = self.network.logits(last, self.lora)


Decoder = CachedDecoder | GroupedDecoder | UncachedDecoder
# From fast to slow. The first one that computes correct logits for a model is used.
DECODERS: dict[str, type[Decoder]] = {
    "padded": CachedDecoder,
    "grouped": GroupedDecoder,
    "uncached": UncachedDecoder,
}


def make_decoder(network: Network, prompts: Sequence[Sequence[int]]) -> Decoder:
    """Run the network once on each different prompt, and return the decoder that suits the network."""
    numbers = {prompt: number for number, prompt in enumerate(dict.fromkeys(map(tuple, prompts)))}
    decoder = DECODERS[network.decoding](network, list(numbers))
    if len(numbers) < len(prompts):
        decoder.keep(torch.tensor([numbers[tuple(prompt)] for prompt in prompts], device=network.device))
    return decoder


def _preallocate(cache: Any) -> Any:
    """Replace the layers of a cache for which there is a faster implementation."""
    if isinstance(cache, Cache):
        cache.layers = [
            _PreallocatedLayer(x) if type(x) is DynamicLayer and x.is_initialized else x for x in cache.layers
        ]
    return cache


def _find_row_dimensions(network: Network, prompt: Sequence[int]) -> dict[str, int]:
    """Return, for each tensor in the model's cache, the dimension that contains the rows.

    The dimension is the one whose size differs between caches with one row and with two rows.
    """
    one, two = (_tensors(CachedDecoder(network, [prompt] * count).cache) for count in (1, 2))
    return {
        path: next(i for i, size in enumerate(x.shape) if size != two[path].shape[i])
        for path, x in one.items()
        if path in two and x.shape != two[path].shape
    }


def _tensors(cache: Any) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    _replace_tensors(cache, found.setdefault)
    return found


def _replace_tensors(x: Any, replace: Callable[[str, Tensor], Tensor], path: str = "", seen: Any = None) -> Any:
    """Replace every tensor in a cache by `replace(path, tensor)`. Caches are different for each type of model.

    `seen` contains the objects that have been visited, by their id.
    """
    seen = {} if seen is None else seen
    if isinstance(x, Tensor):
        return replace(path, x)
    if isinstance(x, (list, tuple)):
        return type(x)([_replace_tensors(y, replace, f"{path}.{i}", seen) for i, y in enumerate(x)])
    if isinstance(x, dict):
        return {key: _replace_tensors(y, replace, f"{path}.{key}", seen) for key, y in x.items()}
    if hasattr(x, "__dict__") and not isinstance(x, (nn.Module, PreTrainedConfig, type)) and id(x) not in seen:
        seen[id(x)] = x
        x.__dict__.update(_replace_tensors(vars(x), replace, path, seen))
    return x


class _PreallocatedLayer(DynamicLayer):
    """A KV cache layer that preallocates columns. Its tensors have the shape [rows, heads, columns, size].

    It replaces DynamicLayer, which copies all keys and values for every token. Other kinds of layers, such as
    sliding-window layers, are not replaced.
    """

    key_buffer: Tensor
    value_buffer: Tensor

    def __init__(self, layer: DynamicLayer) -> None:
        """Start with the keys and values of `layer`."""
        super().__init__()  # type: ignore[no-untyped-call] # transformers
        self.__dict__.update(vars(layer))
        assert layer.keys is not None
        assert layer.values is not None
        self.key_buffer, self.value_buffer = layer.keys, layer.values

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        if end > self.key_buffer.shape[-2]:
            self.key_buffer, self.value_buffer = (_grow(x, end + ROOM) for x in (self.key_buffer, self.value_buffer))
        self.key_buffer[:, :, start:end], self.value_buffer[:, :, start:end] = key_states, value_states
        self.keys, self.values = self.key_buffer[:, :, :end], self.value_buffer[:, :, :end]
        return self.keys, self.values


def _grow(x: Tensor, columns: int) -> Tensor:
    """Copy `x` [rows, heads, n, size] into a new buffer [rows, heads, columns, size]."""
    buffer = x.new_empty(*x.shape[:2], columns, x.shape[3])
    buffer[:, :, : x.shape[2]] = x
    return buffer


def _complete_stop(history: list[list[int]], rows: Tensor, token: Tensor, stop: StopStrings | None) -> Tensor:
    """Append `token` [n] to the responses `rows` [n]. Return True [n] for each response that now ends with `stop`."""
    if stop is None:
        return torch.zeros_like(token, dtype=torch.bool)
    for row, number in zip(rows.tolist(), token.tolist(), strict=True):
        history[row].append(number)
    return torch.tensor([stop.completes(history[row]) for row in rows.tolist()], device=rows.device)


def choose_tokens(logits: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """Sample a token from each row of `logits` [rows, V]. Return the tokens and their log-probs, each [rows].

    If `generator` is None, return the most likely tokens, and zeros instead of log-probs.
    """
    if generator is None:
        return logits.argmax(-1), logits.new_zeros(len(logits))
    # This is much faster than `multinomial`, which draws one random number per vocabulary entry. The sums need float64:
    # adding a very small probability would not change a float32 sum, so most rare tokens could never be drawn.
    probs = logits.softmax(-1)
    bounds = probs.cumsum(-1, dtype=torch.float64)
    drawn = torch.rand(len(bounds), 1, dtype=torch.float64, generator=generator, device=bounds.device)
    # right=True ensures that a token with probability 0 is never drawn
    token = torch.searchsorted(bounds, drawn * bounds[:, -1:], right=True).clamp(max=logits.shape[-1] - 1)
    return token.squeeze(1), probs.gather(1, token).log().squeeze(1)


def _join(
    prompts: Sequence[Sequence[int]],
    prompt_lengths: Tensor,
    responses: Tensor,
    lengths: Tensor,
    ended: Tensor,
    logprobs: Tensor,
) -> Responses:
    """Concatenate each prompt with its response, without padding in between."""
    totals = prompt_lengths + lengths
    tokens = torch.zeros(len(prompts), int(totals.max()), dtype=torch.long, device=responses.device)
    placed = logprobs.new_full((len(prompts), tokens.shape[1] - 1), torch.nan)
    for row, (prompt, size) in enumerate(zip(prompts, lengths.tolist(), strict=True)):
        tokens[row, : len(prompt)] = torch.tensor(prompt, device=tokens.device)
        tokens[row, len(prompt) : len(prompt) + size] = responses[row, :size]
        placed[row, len(prompt) - 1 : len(prompt) - 1 + size] = logprobs[row, :size]
    return Responses(tokens, prompt_lengths, totals, ended, placed)
