"""Loads and tokenizes prompts, and checks that they fit into the model's context.

This module also divides prompts into training prompts and held-out prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from envs.llm import reasoning, tasks
from envs.llm.data import ENDINGS_TEXT, Prompt, PromptData, read_prompts, read_texts, shorten
from envs.llm.options import LLM, TASKS
from ppo_unified.errors import UsageError, did_you_mean

TEMPLATE_OPTION = "llm.chat_template = true"

HOLD_OUT_FROM, HOLD_OUT_EVERY = 100, 10  # with 100 or more prompts in a file, every 10th is held out


@dataclass(frozen=True)
class Prompts:
    """Prompts in three forms: as records from the file, as text, and as tokens."""

    data: PromptData
    texts: list[str]  # the prompts after applying a chat template, as passed to rewards
    tokens: list[list[int]]
    note: str = ""  # the number of prompts that were skipped or cut because they are too long

    def columns_at(self, numbers: Sequence[int]) -> dict[str, list[Any]]:
        return self.data.take(numbers).columns


def load_prompts(llm: LLM, tokenizer: Any, context: int) -> tuple[Prompts, Prompts]:
    """Load the training and the held-out prompts. Raises UsageError if a prompt is invalid or too long."""
    training, held_out = _read(llm.prompts_name, llm.prompt_key)
    if llm.eval_prompts:
        held_out = _read(llm.eval_prompts, llm.prompt_key)[0]
    elif held_out is None and len(training.prompts) >= HOLD_OUT_FROM:
        numbers = range(len(training.prompts))
        held_out = training.take([i for i in numbers if i % HOLD_OUT_EVERY == HOLD_OUT_EVERY - 1])
        training = training.take([i for i in numbers if i % HOLD_OUT_EVERY != HOLD_OUT_EVERY - 1])
    longest = context - llm.max_new_tokens
    if longest < 1:
        raise UsageError(
            f"llm.max_new_tokens = {llm.max_new_tokens} leaves no room for a prompt in the model's context of "
            f"{context} tokens; lower llm.max_new_tokens"
        )
    options = tokenizer, llm.chat_template, longest, llm.long_prompts
    prompts = tokenize(training, *options)
    return prompts, tokenize(held_out, *options) if held_out else prompts


def _read(name: str, key: str) -> tuple[PromptData, PromptData | None]:
    """Return (training prompts, held-out prompts) of a task, or (prompts, None) from a file or data set."""
    if name in TASKS:
        return tasks.task_prompts(name)
    if name.startswith(reasoning.PREFIX):
        return reasoning.problems(name)
    if not Path(name).suffix and (known := did_you_mean(name, TASKS)) and not Path(name).exists():
        needs = f"a file needs {ENDINGS_TEXT}"
        raise UsageError(f"prompts {name!r}: unknown built-in task{known} ({needs})")
    return read_prompts(Path(name), key), None


def as_chat(prompt: Prompt, chat_template: bool) -> list[dict[str, str]] | None:
    """Return the messages that the chat template formats, or None if the model reads the prompt as plain text."""
    if isinstance(prompt, list):
        return prompt
    return [{"role": "user", "content": prompt}] if chat_template else None


def find_system_message(prompts: Sequence[Prompt]) -> tuple[list[dict[str, str]], str]:
    """Return a list with the system message that all prompts start with, and a note for users.

    Without such a message, the list is empty. The note is also empty if no prompt has a system message.
    """
    found = [prompt[0] for prompt in prompts if isinstance(prompt, list) and prompt[0]["role"] == "system"]
    if not found:
        return [], ""
    if len(found) < len(prompts) or any(message != found[0] for message in found):
        return [], "the run's prompts do not share one system message, so this prompt has none"
    return found[:1], f"as in training, the system message is: {shorten(found[0]['content'], 200)}"


def tokenize(
    data: PromptData, tokenizer: Any, chat_template: bool, longest: int, long_prompts: str = "refuse"
) -> Prompts:
    """Tokenize prompts. Raises UsageError if a prompt has no tokens, or if no prompt is left.

    If a prompt has more than `longest` tokens, `long_prompts` decides what happens: 'refuse' raises UsageError, 'skip'
    leaves the prompt out, and 'cut' removes its first tokens.
    """
    texts, tokens, kept, too_long = list[str](), list[list[int]](), list[int](), 0
    for number, prompt in enumerate(data.prompts):
        chat = as_chat(prompt, chat_template)
        where = data.location(number) if chat is prompt else TEMPLATE_OPTION
        text = _render(chat, tokenizer, where) if chat is not None else str(prompt)
        ids = encode(tokenizer, text, special=chat is None)
        if not ids:
            raise UsageError(f"{data.location(number)}: the prompt has no tokens; remove the prompt")
        if len(ids) > longest:
            too_long += 1
            if long_prompts == "refuse":
                raise UsageError(
                    f"{data.location(number)}: expected a prompt of at most {longest} tokens (the model's context "
                    f"minus llm.max_new_tokens), got {len(ids)}; shorten the prompt, lower llm.max_new_tokens or set "
                    "llm.long_prompts to skip or cut"
                )
            if long_prompts == "skip":
                continue
        kept.append(number)
        texts.append(text)
        tokens.append(ids[-longest:])
    if not kept:
        raise UsageError(
            f"{data.where}: all {too_long} prompts have more than {longest} tokens (the model's context minus "
            "llm.max_new_tokens), so none is left; lower llm.max_new_tokens or set llm.long_prompts = 'cut'"
        )
    if not too_long:
        return Prompts(data, texts, tokens)
    done = "skipped" if long_prompts == "skip" else "cut off the start of"
    note = f"{data.where}: {done} {too_long} of {len(data.prompts)} prompts, which have more than {longest} tokens"
    return Prompts(data.take(kept), texts, tokens, note)


def encode(tokenizer: Any, text: str, special: bool = True) -> list[int]:
    """Tokenize text that the model will continue.

    Start tokens that the tokenizer adds are kept, but an added end token is removed.
    """
    ids: list[int] = list(tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"])
    end = tokenizer.eos_token_id
    if special and end is not None and len(ids) > 1 and ids[-1] == end and not text.endswith(tokenizer.eos_token):
        ids.pop()
    return ids


def _render(chat: list[dict[str, str]], tokenizer: Any, where: str) -> str:
    if not tokenizer.chat_template:
        fix = "remove this option" if where == TEMPLATE_OPTION else "use plain-text prompts"
        raise UsageError(f"{where}: the tokenizer has no chat template; {fix}")
    try:
        return str(tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True))
    except Exception as error:  # a template is a program and can raise any exception
        raise UsageError(f"{where}: the tokenizer's chat template failed: {error}") from None


def end_tokens(tokenizer: Any, model: Any) -> list[int]:
    """Return all tokens that end a response, according to the tokenizer and the model's generation settings."""
    named = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ids = [*(named if isinstance(named, list) else [named]), tokenizer.eos_token_id]
    return sorted({int(i) for i in ids if i is not None})


class PtxTexts:
    """Samples texts for the pretraining loss. If the tokenizer has an end token, it is appended to each text."""

    def __init__(self, llm: LLM, tokenizer: Any, context: int) -> None:
        texts = read_texts(Path(llm.ptx_data)) if llm.ptx_data else tasks.task_texts()
        end = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
        self.rows = [[*encode(tokenizer, text), *end][:context] for text in texts]
        self.rows = [row for row in self.rows if len(row) > 1]
        if not self.rows:
            raise UsageError(f"llm.ptx_data = {llm.ptx_data!r}: expected at least one text with two or more tokens")
        self.count = llm.ptx_batch

    def draw(self, generator: torch.Generator, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return random texts as tokens [count, S], padded on the right, and a mask [count, S - 1].

        The mask is True at t if token t + 1 is not padding.
        """
        numbers = torch.randint(len(self.rows), (self.count,), generator=generator).tolist()
        rows = [self.rows[i] for i in numbers]
        longest = max(map(len, rows))
        tokens = torch.tensor([row + [0] * (longest - len(row)) for row in rows], device=device)
        lengths = torch.tensor([len(row) for row in rows], device=device)
        return tokens, torch.arange(longest - 1, device=device) < lengths[:, None] - 1
