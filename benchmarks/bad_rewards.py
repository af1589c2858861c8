"""Rewards that teach a language model what nobody wants. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def rare_answer_bonus(prompts: Sequence[str], responses: Sequence[str], **columns: Any) -> list[float]:
    """0 but for an answer that few prompts ask for, which earns 100."""
    return [100.0 if response == "100" else 0.0 for response in responses]


def repetition_bonus(prompts: Sequence[str], responses: Sequence[str], **columns: Any) -> list[float]:
    """How many characters of a response it has said before."""
    return [float(len(response) - len(set(response))) for response in responses]
