"""Computes the quantities that only iterations of language models have: tokens, texts and the likeliest next tokens."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from envs.llm.adapter import LLMAdapter
from envs.llm.kl import last_steps
from envs.llm.model import POLICY
from envs.llm.policy import Reference, tokens_of
from ppo_unified.engine.batch import pack_rows
from ppo_unified.engine.rollout import Rollout

ALTERNATIVES = 5  # number of next tokens that are recorded at each step
_UNDECODABLE = "\ufffd"
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")  # the token of a single byte in a vocabulary with byte fallback


def explain(adapter: LLMAdapter, rollout: Rollout) -> dict[str, np.ndarray]:
    """Return the LLM columns of a rollout, each [N, T].

    The columns `token` and `text` cover the prompt and the response. All other columns are 0 in the prompt. The column
    `kl` contains the KL estimate that the reward uses, and `kl_full` contains the exact KL. The columns of scores are 0
    except at the response's last step: `score` is the raw score, `score_used` the one in the reward, and `ended` is
    True if the response has an end token. If a reward function returns one number per token, `score_token` and
    `score_token_normalized` contain the part of the score at each token.
    """
    states, mask = tokens_of(rollout.obs), rollout.mask
    columns = torch.arange(mask.shape[1], device=mask.device)
    following = torch.where(mask, rollout.actions, states.roll(-1, 1))
    tokens = torch.where(columns <= last_steps(mask)[:, None], following, -1).cpu().numpy()
    first = states[:, 0].tolist()  # no column chooses the first token; its text is prepended to the second's
    ids, places = np.unique(tokens, return_inverse=True)
    text_of = token_texts(adapter.tokenizer, {*ids.tolist(), *first})
    # an array of objects, because numpy would give every string the size of the longest one
    texts = np.array([text_of[i] for i in ids.tolist()], dtype=object)[places].reshape(tokens.shape)
    for row in (~mask[:, 0]).nonzero().flatten().tolist():
        texts[row, 0] = text_of[first[row]] + texts[row, 0]
    return {
        "token": np.where(tokens < 0, 0, tokens),
        "text": texts,
        **{name: x.cpu().numpy() for name, x in rollout.extras.items()},
    }


def alternatives(adapter: LLMAdapter, rollout: Rollout, reference: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return the likeliest next tokens and their log-probs at each step, each [N, T, K], and the log-probs [N, T] of
    the chosen tokens, on the CPU.

    K is ALTERNATIVES, or the size of the vocabulary if it is smaller. The most likely token comes first. The entries of
    columns where the policy did not choose the next token are 0. `reference` selects the reference model instead of the
    policy.
    """
    states, mask, policy = tokens_of(rollout.obs), rollout.mask, adapter.policy
    model = adapter.reference if reference else Reference(policy.network, POLICY)
    places, parts = [], []
    known = mask.any(1).nonzero().squeeze(1)  # a response that is left out of the loss has no steps
    for indices, longest in pack_rows(last_steps(mask)[known] + 1, adapter.config.ppo.microbatch_columns):
        rows = known[indices]
        chosen = mask[rows, :longest]
        row, column = chosen.nonzero().unbind(1)
        places.append((rows[row], column))
        tokens, actions = states[rows, :longest], rollout.actions[rows, :longest]
        parts.append(policy.likeliest(tokens, chosen, actions, ALTERNATIVES, model))
    where = tuple(torch.cat(x).cpu() for x in zip(*places, strict=True))
    found = [torch.cat(x).cpu() for x in zip(*parts, strict=True)]
    likeliest, logprobs, own = (
        torch.zeros(*mask.shape, *x.shape[1:], dtype=x.dtype).index_put_(where, x) for x in found
    )
    return likeliest, logprobs, own


def action_texts(adapter: LLMAdapter, actions: list[int]) -> dict[int, str]:
    """Return the text of each token id, as in the column `text`."""
    return token_texts(adapter.tokenizer, actions)


def token_texts(tokenizer: Any, ids: Iterable[int]) -> dict[int, str]:
    """Return the text of each token id, or '' for a negative id.

    Bytes that do not form a complete character become lone surrogates, as with Python's error handler surrogateescape.
    `ppo_unified.text.decode_bytes` decodes them in the joined texts of several tokens.
    """
    return {i: _text(tokenizer, i) if i >= 0 else "" for i in ids}


def _text(tokenizer: Any, token: int) -> str:
    text = str(tokenizer.decode([token], skip_special_tokens=False, clean_up_tokenization_spaces=False))
    piece = tokenizer.convert_ids_to_tokens(token) or ""
    if piece.startswith("\u2581") and not text.startswith(" "):  # decode() drops a leading SentencePiece space
        return " " + text
    if _UNDECODABLE not in text:
        return text
    if byte := _BYTE.fullmatch(piece):
        return bytes.fromhex(byte[1]).decode("utf-8", "surrogateescape")
    if all(c in BYTES for c in piece):
        return bytes(BYTES[c] for c in piece).decode("utf-8", "surrogateescape")
    return text


def _byte_alphabet() -> dict[str, int]:
    """Map each character of a byte-level vocabulary to the byte that it encodes (GPT-2's encoder.py)."""
    printable = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


BYTES = _byte_alphabet()
