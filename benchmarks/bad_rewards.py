"""Reward functions that teach a language model unwanted behaviour, without torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def rare_answer_bonus(prompts: Sequence[str], responses: Sequence[str], **columns: Any) -> list[float]:
    """Return 100 for an answer that is correct for few prompts, and 0 for all others."""
    return [100.0 if response == "100" else 0.0 for response in responses]


def repetition_bonus(prompts: Sequence[str], responses: Sequence[str], **columns: Any) -> list[float]:
    """Return the number of repeated characters in each response."""
    return [float(len(response) - len(set(response))) for response in responses]
