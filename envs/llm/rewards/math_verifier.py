"""Scores mathematical answers with the package math-verify. This module does not import torch."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

from envs.llm.data import shorten
from ppo_unified.errors import UsageError

REWARD = "math"
TIMEOUT = 2  # seconds for parsing or comparing an answer; 9^9^9^9, for example, would take years
DELIMITERS = ("$", r"\(", r"\[", r"\boxed", r"\begin")


def math(prompts: list[str], responses: list[str], *, answer: list[Any], **columns: Any) -> list[float]:
    """Score each response 1 if its final answer is mathematically equal to the record's `answer`, and 0 otherwise."""
    from math_verify import verify

    with _silence_math_verify():
        return [
            float(verify(list(_parse_answer(str(a))), _parse(response), timeout_seconds=_timeout()))
            for response, a in zip(responses, answer, strict=True)
        ]


def check_math(answers: Sequence[Any], where: str, option: str) -> None:
    """Raise UsageError if math-verify is missing, or if an answer contains no mathematical expression."""
    if find_spec("math_verify") is None:
        raise UsageError(f"{option} = {REWARD!r} requires math-verify: pip install 'ppo-unified[math]'")
    with _silence_math_verify():
        for number, answer in enumerate(answers, 1):
            if not _parse_answer(str(answer)):
                raise UsageError(
                    f"{where}: 'answer' of prompt {number}: expected a number or an expression, got "
                    f"{shorten(str(answer))!r}; write expressions in LaTeX, such as '$x^2+1$'"
                )


@lru_cache(maxsize=65536)
def _parse_answer(answer: str) -> tuple[Any, ...]:
    """Return the expressions in a record's answer. LaTeX commands without delimiters are read as a formula."""
    is_formula = "\\" in answer and not any(mark in answer for mark in DELIMITERS)
    return tuple(_parse(f"${answer}$" if is_formula else answer))


def _parse(text: str) -> list[Any]:
    from math_verify import parse

    found: list[Any] = parse(text, parsing_timeout=_timeout())
    return found


def _timeout() -> int | None:
    """Return the time limit in seconds. Outside the main thread there is none, because math-verify uses signals."""
    return TIMEOUT if threading.current_thread() is threading.main_thread() else None


@contextmanager
def _silence_math_verify() -> Iterator[None]:
    """Disable the log messages about answers that cannot be parsed."""
    logger = logging.getLogger("math_verify")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
