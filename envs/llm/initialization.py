"""Starts a run with the policy of another run: checks that the model is the same, and loads the score statistics."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from envs.llm.adapter import LLMAdapter
from envs.llm.model import load_config
from envs.llm.options import LLMConfig
from envs.llm.structure import encoder_prefixes
from ppo_unified.errors import UsageError

MODEL = "network.model."  # prefix of the names of the model's weights in the policy


def check_init(
    config: LLMConfig, source: LLMConfig, shapes: Mapping[str, tuple[int, ...]], state: Mapping[str, Any]
) -> None:
    """Compare the shapes of the model's weights with the source's. Raises UsageError if they differ.

    LoRA weights are compared when they are loaded.
    """
    if config.llm.lora_rank or config.llm.model == source.llm.model:
        return
    model_config = load_config(config.llm.model, merges_lora=True)
    with torch.device("meta"):  # creates no weights
        model = AutoModelForCausalLM.from_config(model_config)
    encoders = encoder_prefixes(model)  # only checkpoints of older versions contain these weights
    own = {name: tuple(x.shape) for name, x in model.state_dict().items()}
    theirs = {name.removeprefix(MODEL): shape for name, shape in shapes.items() if name.startswith(MODEL)}
    own, theirs = ({name: x for name, x in part.items() if not name.startswith(encoders)} for part in (own, theirs))
    if own != theirs:
        name = next(name for name in sorted(own | theirs) if own.get(name) != theirs.get(name))
        found, needed = (list(x[name]) if name in x else "no such weights" for x in (own, theirs))
        raise UsageError(
            f"llm.model = {config.llm.model!r} does not fit, because the policy was trained from llm.model = "
            f"{source.llm.model!r}, which has a different shape ({name}: expected {needed}, got "
            f"{found}); use a model of the same shape"
        )


def load_statistics(adapter: LLMAdapter, state: Mapping[str, Any], source: LLMConfig) -> None:
    """Load the running statistics of the scores if both runs normalize the scores of the same reward.

    Raises UsageError if the policy consists of LoRA weights for a different base model.
    """
    own, theirs = adapter.config.llm, source.llm
    if own.lora_rank:
        frozen = ("llm.dtype", "llm.quantize", "llm.reference", "llm.reference_dtype")
        before, now = source.flatten(), adapter.config.flatten()
        tolerance = 1e-6 if all(before[name] == now[name] for name in frozen) else 1e-2  # rounding changes the sum
        if not math.isclose(state["reference"], adapter.fingerprint, rel_tol=tolerance):
            raise UsageError(
                f"llm.model = {own.model!r} differs from the base model for which the LoRA weights were trained "
                f"(llm.model = {theirs.model!r}); use that base model"
            )
    if own.score_normalize == theirs.score_normalize == "running" and own.rewards == theirs.rewards:
        adapter.scores.load_state_dict(state["scores"])
