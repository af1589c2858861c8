"""Scores mathematical answers with the package math-verify. This module does not import torch."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

from envs.llm.data import shorten
from ppo_unified.errors import UsageError

REWARD = "math"
TIMEOUT = 2.0  # seconds of processor time for parsing or comparing an answer; 9^9^9^9, for example, would take years
DELIMITERS = ("$", r"\(", r"\[", r"\boxed", r"\begin")


def math(prompts: list[str], responses: list[str], *, answer: list[Any], **columns: Any) -> list[float]:
    """Score each response 1 if its final answer is mathematically equal to the record's `answer`, and 0 otherwise."""
    with _silence_math_verify():
        return [
            float(_are_equal(_parse_answer(str(a)), _parse(response)))
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

    with _limit_time():
        return list(parse(text, parsing_timeout=None))
    return []


def _are_equal(answer: Sequence[Any], found: list[Any]) -> bool:
    from math_verify import verify

    with _limit_time():
        return bool(verify(list(answer), found, timeout_seconds=None))
    return False


@contextmanager
def _limit_time() -> Iterator[None]:
    """End the block after TIMEOUT seconds of processor time. Outside the main thread, signals cannot limit the time.

    math-verify limits the elapsed time, so other programs on a busy computer would change the scores.
    """
    from math_verify.errors import TimeoutException

    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: object) -> None:
        raise TimeoutException("the time limit is reached")

    handler = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, TIMEOUT, TIMEOUT)  # repeatedly, because math-verify handles the exception
    try:
        with suppress(TimeoutException):
            yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, handler)


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
