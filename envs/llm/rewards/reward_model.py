"""Reward models: sequence-classification models that return one score for a prompt and its response."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from envs.llm.data import shorten
from envs.llm.families import check_reward_structure, check_scores
from envs.llm.model import Network, load_config, load_reward_model, load_tokenizer, location
from envs.llm.rewards.errors import RewardError
from envs.llm.rewards.lora_reward_model import read_lora_folder
from envs.llm.structure import config_context_length
from ppo_unified.engine.batch import pack_rows
from ppo_unified.errors import UsageError

# written by `ppo-unified reward-model`, which trains on the text that the policy reads
TRAINED_ON_TEXT = "ppo_unified_reward_model.json"
BATCH_COLUMNS = 8192  # maximum number of tokens in one forward pass, including padding


class RewardModel:
    """Scores a prompt and its response at the response's last token, using the reward model's own tokenizer.

    If the policy reads the prompt as chat messages and this tokenizer has a chat template, the template formats the
    messages and the response. Otherwise, or if `ppo-unified reward-model` has trained the model, the text that the
    policy reads is scored.

    The position of the last token is computed from the number of tokens. In contrast, transformers searches for the
    last id that is not the pad id. This search finds the wrong token if the response ends with an end token that is
    also the pad token.
    """

    extras = ("chats",)  # keyword arguments of __call__, see `Exchanges.extra`

    def __init__(self, source: str, device: Any = "cpu", dtype: str = "float32", option: str = "llm.reward") -> None:
        """Load a reward model. Raises UsageError if `source` is not a reward model or lacks some of its weights."""
        self._read(source, option)
        self.model = load_reward_model(source, option, getattr(torch, dtype)).eval().requires_grad_(False).to(device)
        self.head = find_head(self.model)
        if self.head is not None:
            self.head.float()  # in bfloat16, which has only 128 values from 1 to 2, many scores would be equal
        check_scores(self.model, self.score_tokens, f"{option} = {source!r}")

    def _read(self, source: str, option: str) -> None:
        """Read the configuration and the tokenizer, but no weights."""
        config, self.tokenizer = load_reward_model_parts(source, option)
        self.source, self.option = source, option
        self.longest = max_tokens(config, self.tokenizer)
        self.formats_chats = bool(self.tokenizer.chat_template) and not (Path(source) / TRAINED_ON_TEXT).exists()

    def __call__(
        self, prompts: Sequence[str], responses: Sequence[str], /, *, chats: Sequence[Any] = (), **columns: Any
    ) -> list[float]:
        """Return one score per response. `chats` contains the messages of each prompt, or None for plain text.

        Raises RewardError if a prompt and its response have no tokens or too many. Inputs are never truncated.
        """
        known = chats or [None] * len(prompts)
        rows = [self._encode(*exchange) for exchange in zip(prompts, responses, known, strict=True)]
        scores = [0.0] * len(rows)
        for indices, _ in pack_rows(torch.tensor([len(row) for row in rows]), BATCH_COLUMNS):
            numbers = indices.tolist()
            values = self.score_tokens([rows[i] for i in numbers]).tolist()
            for i, value in zip(numbers, values, strict=True):
                scores[i] = value
        return scores

    def _encode(self, prompt: str, response: str, chat: list[dict[str, str]] | None) -> list[int]:
        if chat is not None and self.formats_chats:
            ids = encode(self.tokenizer, self._format(chat, response), special=False)
        else:
            ids = encode(self.tokenizer, prompt + response)
        if not 0 < len(ids) <= self.longest:
            size = f"{len(ids)} tokens, but {self.source} reads at most {self.longest}" if ids else "no tokens"
            raise RewardError(
                f"{self.option}: prompt {shorten(prompt, 60)!r} and response {shorten(response, 60)!r} have {size}"
            )
        return ids

    def _format(self, chat: list[dict[str, str]], response: str) -> str:
        """Format a conversation with the reward model's chat template. Raises RewardError if the template fails."""
        messages = [*chat, {"role": "assistant", "content": response}]
        try:
            return str(self.tokenizer.apply_chat_template(messages, tokenize=False))
        except Exception as error:  # a template is a program and can raise any exception
            why, prompt = shorten(str(error), 200), shorten(chat[-1]["content"], 60)
            raise RewardError(
                f"{self.option} = {self.source!r}: the chat template of its tokenizer failed ({why}) for a "
                f"conversation that ends with {prompt!r}; remove the template from the folder's tokenizer to score the "
                "text that the policy reads"
            ) from None

    def score_tokens(self, rows: list[list[int]]) -> Tensor:
        """Return the scores [n] of `rows`, which contain token ids."""
        return score_rows(self.model, self.head, rows)


class SharedRewardModel(RewardModel):
    """A LoRA reward model that shares its base with the policy, so that the base is in memory only once."""

    def __init__(self, source: str, network: Network, name: str, option: str) -> None:
        """Add the LoRA weights to `network` under `name`. Raises UsageError if they do not fit the network."""
        self._read(source, option)
        folder = read_lora_folder(source)
        assert folder is not None
        self.network, self.name = network, name
        self.model = network.model
        self.head = network.add_frozen_lora(name, folder, option)

    def score_tokens(self, rows: list[list[int]]) -> Tensor:
        return score_rows(self.model, self.head, rows, lambda ids: self.network.trunk(ids, self.name))


def find_head(model: Any) -> nn.Module | None:
    """Return a model's score head, or None for encoders, which pool by the attention mask."""
    head = getattr(model, "score", None)
    return head if isinstance(head, nn.Module) else None


@torch.no_grad()
def score_rows(
    model: Any, head: nn.Module | None, rows: list[list[int]], trunk: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """Return the scores [n] of `rows`, which contain token ids.

    `head` is applied to the hidden states [n, L, H] after the last normalization layer, which `trunk` returns. By
    default, the model's own trunk is used.
    """
    device = model.device
    lengths = torch.tensor([len(row) for row in rows], device=device)
    longest = max(map(len, rows))
    fill = getattr(model.config.get_text_config(), "pad_token_id", None) or 0  # some models derive positions from it
    ids = torch.tensor([row + [fill] * (longest - len(row)) for row in rows], device=device)
    mask = torch.arange(longest, device=device) < lengths[:, None]
    if head is None:
        logits: Tensor = model(input_ids=ids, attention_mask=mask.long()).logits
        return logits[:, 0].float()
    if trunk:
        hidden = trunk(ids)
    else:
        hidden = model.base_model(input_ids=ids, attention_mask=mask.long(), use_cache=False).last_hidden_state
    scores: Tensor = head(hidden[torch.arange(len(rows), device=device), lengths - 1].float())[:, 0]
    return scores


def shares_base(source: str, model: str) -> bool:
    """Return True if `source` is the folder of a LoRA reward model whose base is `model`."""
    folder = read_lora_folder(source)
    return folder is not None and location(folder.base) == location(model)


def encode(tokenizer: Any, text: str, special: bool = True) -> list[int]:
    """Tokenize text for a reward model. Training and scoring both use this function.

    `special` is False for text to which a chat template has added all special tokens.
    """
    ids: list[int] = tokenizer(text, add_special_tokens=special, truncation=False, verbose=False)["input_ids"]
    begin = tokenizer.bos_token_id
    # A chat template may already have added a start token; if so, remove the tokenizer's
    return ids[1:] if begin is not None and ids[:2] == [begin, begin] else ids


def load_reward_model_parts(source: str, option: str = "llm.reward") -> tuple[Any, Any]:
    """Load a reward model's configuration and tokenizer. Raises UsageError if `source` is not a reward model."""
    config = load_config(source, option)
    check_reward_structure(config, f"{option} = {source!r}")
    kinds = config.architectures or []
    if kinds and not any("SequenceClassification" in kind for kind in kinds):
        raise UsageError(
            f"{option} = {source!r}: expected a reward model, got {kinds[0]}; train one with: ppo-unified reward-model"
        )
    if config.num_labels != 1:
        raise UsageError(
            f"{option} = {source!r}: expected a reward model with 1 label, got a model with {config.num_labels} labels"
        )
    tokenizer = load_tokenizer(source, option)
    largest, size = max(tokenizer.get_vocab().values(), default=-1), config.get_text_config().vocab_size
    if largest >= size:
        raise UsageError(
            f"{option} = {source!r}: the tokenizer has ids up to {largest}, but the model has only {size} embeddings; "
            "use the model's original tokenizer"
        )
    return config, tokenizer


def max_tokens(config: Any, tokenizer: Any) -> int:
    """Return the maximum number of tokens that a reward model can read.

    The tokenizer's limit can be lower than the model's, because some models reserve positions that no token can use.
    """
    positions = config_context_length(config)
    return min(int(positions), int(tokenizer.model_max_length))
