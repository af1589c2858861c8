"""The reward `vader`: the sentiment of a response, according to the lexicon and rules of VADER."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from typing import Any

from ppo_unified.errors import UsageError


def check_installed(option: str) -> None:
    """Raise UsageError if the package vaderSentiment is not installed."""
    if find_spec("vaderSentiment") is None:
        raise UsageError(f"{option} = 'vader' needs the package vaderSentiment: pip install 'ppo-unified[vader]'")


@cache
def _analyzer() -> Any:
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    return SentimentIntensityAnalyzer()


def vader(prompts: Sequence[str], responses: Sequence[str], **columns: Any) -> list[float]:
    """Score how positive each response is, from -1 to 1 (ojs.aaai.org/index.php/ICWSM/article/view/14550).

    The score is the compound score of the response without its prompt. A response without words of the lexicon scores
    0.
    """
    return [float(_analyzer().polarity_scores(response)["compound"]) for response in responses]
