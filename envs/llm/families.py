"""Rejects models whose outputs this project would compute wrongly, and selects a decoder for the others.

Policies run a model in three ways: trunk and head in separate calls, one token at a time with a cache, and on rows that
are padded on the right without an attention mask. The checks compare all of them with the model's own forward pass.
They do not use names of model families.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
)

from envs.llm.data import shorten
from envs.llm.generate import DECODERS, make_decoder
from envs.llm.model import CAUSAL_LM, Network
from ppo_unified.errors import UsageError

LENGTHS = (6, 1, 11, 6, 6)  # lengths of the probe's prompts
UNPADDED = [0, 3, 4]  # the rows whose prompts have the same length
STEPS = 3  # number of tokens that the probe appends to each prompt
# Allowed difference between two ways to compute logits or hidden states, relative to the largest value
TOLERANCE, TOLERANCE_BF16 = 1e-3, 0.1
DECODING_TOLERANCE = 2e-5  # of float32 logits with a cache: smaller, because their errors can grow with every token
NARROW = 3  # the sliding window of a second probe, shorter than most rows
_POLICY_FIX = "use another model, such as Llama, Qwen3, Mixtral or Mamba (docs/llm.md, Supported models)"
_CRITIC_FIX = "use a decoder, such as Llama or Qwen3, or set llm.critic_init = 'policy'"
_REWARD_FIX = "use a decoder such as Llama or an encoder such as BERT"
_OUT_OF_MEMORY = ("not enough memory", "can't allocate memory")  # reported elsewhere, with advice


def check_structure(config: Any, where: str) -> None:
    """Raise UsageError if policies cannot be trained from the causal language model that `config` describes.

    The model is created without weights, so the check is fast. `where` is the option and its value.
    """
    if any("SequenceClassification" in name for name in config.architectures or []):
        raise UsageError(f"{where}: expected a {CAUSAL_LM}, got a reward model ({config.architectures[0]})")
    with _rejecting(f"a model of type {config.model_type!r}", where, _POLICY_FIX):
        if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
            raise _Unsupported("transformers has no causal language model of this type")
        if getattr(config, "is_encoder_decoder", False):
            raise _Unsupported("it is an encoder-decoder model")


def check_trainable(config: Any, where: str, quantize: str = "none") -> None:
    """Raise UsageError if a model's files contain quantized weights, which cannot be trained.

    `quantize` is the value of llm.quantize. The frozen base of LoRA weights may be stored in the same 4-bit format.
    """
    stored = getattr(config, "quantization_config", None)
    if not stored:
        return
    settings = stored if isinstance(stored, dict) else stored.to_dict()
    method = str(settings.get("quant_method", "an unknown method"))
    if not (quantize == "4bit" and method == "bitsandbytes" and settings.get("load_in_4bit")):
        raise UsageError(
            f"{where}: expected unquantized weights, got weights quantized with {method}; use the original model and, "
            "to train LoRA on a 4-bit base, set llm.quantize = '4bit'"
        )


def check_reward_structure(config: Any, where: str) -> None:
    """Raise UsageError if reward models of this type cannot be used. Encoders are supported."""
    with _rejecting(f"a reward model of type {config.model_type!r}", where, _REWARD_FIX):
        if type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
            raise _Unsupported("transformers has no sequence-classification model of this type")
        if getattr(config, "is_encoder_decoder", False):
            raise _Unsupported("it is an encoder-decoder model, which has no score at the last token of the text")
        _vocabulary_size(config)


@torch.no_grad()
def check_policy(network: Network, where: str) -> None:
    """Select the fastest decoder whose logits are correct for this model, and store its name in `network.decoding`.

    A few rows of different lengths are decoded, and some of them are removed partway through. All logits, also those
    that training computes, are compared with the full model's logits for a single row without padding and without
    cache. If the model has a sliding window, the comparison is repeated with a window that is shorter than the rows.

    Raises UsageError if the logits differ, or if the model has no gradient.
    """
    config = network.model.config
    with _rejecting(f"a model of type {config.model_type!r}", where, _POLICY_FIX):
        if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
            raise _Unsupported(
                f"an export would have the type {config.model_type!r}, which cannot be loaded as a {CAUSAL_LM}"
            )
        _check_logits(network)
        with _explaining("its gradient cannot be computed"), torch.enable_grad():
            _compute_gradient(network)
        if getattr(config.get_text_config(), "sliding_window", None):
            with _narrow_window(config.get_text_config()):
                _check_logits(network)


@torch.no_grad()
def check_trunk(network: Network, where: str) -> None:
    """Raise UsageError if a critic's hidden states depend on later tokens, because values must not know the future."""
    config = network.model.config
    kind = f"a critic model of type {config.model_type!r}"
    with _rejecting(kind, where, _CRITIC_FIX), _explaining("its trunk cannot run separately"):
        rows = _probe_rows(config)
        for row, hidden in zip(rows, network.trunk(_pad(rows)), strict=True):
            alone = network.trunk(_pad([row]))[0]
            _compare(hidden[: len(row)], alone, _tolerance(network.bf16), "its hidden states depend on later tokens")


@torch.no_grad()
def check_scores(model: Any, forward: Callable[[list[list[int]]], Tensor], where: str) -> None:
    """Raise UsageError if `forward`, which scores several rows at once, differs from the model's score of one row."""
    bf16 = model.dtype == torch.bfloat16
    precision = torch.autocast(model.device.type, torch.bfloat16, enabled=bf16)  # the head can be float32
    kind = f"a reward model of type {model.config.model_type!r}"
    with _rejecting(kind, where, _REWARD_FIX), _explaining("its scores cannot be computed"), precision:
        rows = _probe_rows(model.config)
        ids = [torch.tensor([row], device=model.device) for row in rows]
        alone = torch.cat([model(input_ids=row, attention_mask=torch.ones_like(row)).logits[:, 0] for row in ids])
        _compare(forward(rows), alone.float(), _tolerance(bf16), "its score of a text depends on padding")


class _TopKFinder(TorchDispatchMode):
    """Finds out whether a model calls topk, with which models select experts or attention keys."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # torch
        self.found = False

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # otherwise, the first call would import the compiler (about 1 s)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.found |= function.overloadpacket is torch.ops.aten.topk
        return function(*args, **(kwargs or {}))


def _check_logits(network: Network) -> None:
    rows = _probe_rows(network.model.config)
    with _explaining("the model cannot run"), _TopKFinder() as finder:
        expected = [_full_logits(network, row) for row in rows]
    network.uses_top_k = finder.found
    with _explaining("its head cannot run separately"):
        padded = network.trunk(_pad(rows))
        for row, hidden, correct in zip(rows, padded, expected, strict=True):
            found = network.logits(hidden[: len(row)])
            reason = "its logits depend on later tokens or on more than the last hidden state"
            _compare(found, correct, _tolerance(network.bf16), reason)
    _choose_decoder(network, rows, expected)


def _compute_gradient(network: Network) -> None:
    """Compute the gradient of one weight, which runs the backward pass of all later layers."""
    trained = [p for p in network.parameters() if p.requires_grad][:1]
    if trained:
        (row, *_) = _probe_rows(network.model.config)
        loss = network.logits(network.trunk(_pad([row]))[0]).logsumexp(-1).sum()
        torch.autograd.grad(loss, trained, allow_unused=True)


@contextmanager
def _narrow_window(config: Any) -> Iterator[None]:
    """Set the sliding window to NARROW tokens, until the context exits."""
    before = config.sliding_window
    config.sliding_window = NARROW
    try:
        yield
    finally:
        config.sliding_window = before


def _choose_decoder(network: Network, rows: list[list[int]], expected: list[Tensor]) -> None:
    names = list(DECODERS)
    for name in names[names.index(network.decoding) :]:
        network.decoding = name
        try:
            with _explaining("its cache cannot be used"):
                _check_decoding(network, rows, expected)
        except _Unsupported:
            if name == names[-1]:
                raise
        else:
            return


def _check_decoding(network: Network, rows: list[list[int]], expected: list[Tensor]) -> None:
    """Compare the logits of decoding with the expected ones, for all rows and for rows that need no padding."""
    for numbers in (list(range(len(rows))), UNPADDED):
        _check_rows(network, [rows[i] for i in numbers], [expected[i] for i in numbers], [LENGTHS[i] for i in numbers])


def _check_rows(network: Network, rows: list[list[int]], expected: list[Tensor], lengths: list[int]) -> None:
    """Check the logits of each row after its prompt. `lengths` are those of the prompts."""
    kept = list(range(len(rows)))
    decoder = make_decoder(network, [row[:length] for row, length in zip(rows, lengths, strict=True)])
    for step in range(STEPS + 1):
        correct = torch.stack([expected[i][lengths[i] - 1 + step] for i in kept])
        tolerance = TOLERANCE_BF16 if network.bf16 else DECODING_TOLERANCE
        _compare(decoder.logits, correct, tolerance, "its logits with a cache differ from those without")
        if step == STEPS:
            return
        if step == 1:  # remove every second row
            kept = kept[::2]
            decoder.keep(torch.tensor(kept, device=network.device))
        decoder.step(torch.tensor([rows[i][lengths[i] + step] for i in kept], device=network.device))


def _probe_rows(config: Any) -> list[list[int]]:
    """Return rows of ordinary tokens, with STEPS tokens after each prompt."""
    size, pad = _vocabulary_size(config), getattr(config.get_text_config(), "pad_token_id", None)
    middle = range(size // 2, min(size, size // 2 + 50))
    ids = [i for i in middle if i != pad]  # special tokens are usually first or last
    return [[ids[(7 * i + 13 * row) % len(ids)] for i in range(n + STEPS)] for row, n in enumerate(LENGTHS)]


def _vocabulary_size(config: Any) -> int:
    size: int | None = getattr(config.get_text_config(), "vocab_size", None)
    if size is None:
        raise _Unsupported("it has no vocabulary")
    return size


def _pad(rows: list[list[int]]) -> Tensor:
    longest = max(map(len, rows))
    return torch.tensor([row + [row[0]] * (longest - len(row)) for row in rows])


def _full_logits(network: Network, row: list[int]) -> Tensor:
    """Return the full model's logits [L, V] for one row."""
    with network.precision():
        output = network.model(input_ids=torch.tensor([row], device=network.device), use_cache=False)
    logits: Tensor = output.logits[0]
    return logits.float()


def _tolerance(bf16: bool) -> float:
    return TOLERANCE_BF16 if bf16 else TOLERANCE


def _compare(found: Tensor, expected: Tensor, tolerance: float, reason: str) -> None:
    """Raise _Unsupported if the tensors differ by more than rounding. NaN counts as a difference."""
    error, scale = float((found - expected).abs().max()), float(expected.abs().max())
    if not error <= tolerance * max(1.0, scale):
        raise _Unsupported(f"{reason} (difference {error:.3g})")


class _Unsupported(Exception):
    """The reason why a model is not supported."""


@contextmanager
def _rejecting(what: str, where: str, fix: str) -> Iterator[None]:
    """Turn the reason why a model is not supported, or an error of its configuration, into a UsageError.

    `what` is the kind of model for the message, and `fix` is the advice at its end.
    """
    try:
        with _explaining("its configuration cannot be used"):
            yield
    except _Unsupported as reason:
        raise UsageError(f"{where}: {what} is not supported, because {reason}; {fix}") from None


@contextmanager
def _explaining(reason: str) -> Iterator[None]:
    """Turn any exception that the model's code raises into the reason why the model is not supported."""
    try:
        yield
    except (_Unsupported, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        if any(phrase in str(error) for phrase in _OUT_OF_MEMORY):
            raise
        raise _Unsupported(f"{reason} ({shorten(f'{type(error).__name__}: {error}', 120)})") from None
