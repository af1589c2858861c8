"""Calls a run's reward functions and models, validates what they return, and adds up their scores.

This module does not import torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, TypeAlias

from envs.llm.data import Prompt, shorten
from envs.llm.options import RewardChoice
from envs.llm.rewards.errors import RewardError
from envs.llm.rewards.functions import Reward, describe_value
from ppo_unified.config.spec import WorkCounter

# one number for the response, one for each of its tokens, or None if the reward does not apply to the response
Score: TypeAlias = float | list[float] | None


@dataclass(frozen=True)
class Exchanges:
    """Prompts with one response each, in all forms that a reward can receive."""

    prompts: list[str]  # as the policy reads them: after a chat template
    responses: list[str]  # without special tokens
    columns: Mapping[str, list[Any]]  # the other keys of the prompts' records
    raw_prompts: list[Prompt]  # as in the file
    chats: list[
        list[dict[str, str]] | None
    ]  # the messages that the policy's chat template formats; None for plain text
    token_ids: list[list[int]]  # of each response; includes its end token
    decode: Callable[[int], str]  # returns a token as text

    def extra(self, name: str) -> list[Any]:
        """Return a keyword argument for reward functions that name it, one value per response."""
        if name == "messages":
            plain = ([{"role": "user", "content": prompt}] for prompt in self.raw_prompts)
            return [chat or message for chat, message in zip(self.chats, plain, strict=True)]
        if name == "tokens":
            texts = {i: self.decode(i) for i in {i for row in self.token_ids for i in row}}
            return [[texts[i] for i in row] for row in self.token_ids]
        values: list[Any] = getattr(self, name)
        return values


@dataclass(frozen=True)
class Scores:
    """The scores of n responses."""

    totals: list[float | None]  # [n] weighted sums; None for a response without a score
    parts: dict[str, list[float | None]]  # name -> [n] numbers of each reward before weighting; {} for a single reward
    tokens: list[list[float]] | None  # the part of each total that token-level rewards give to each token of a response

    @property
    def kept(self) -> list[bool]:
        """True for each response that has a score."""
        return [total is not None for total in self.totals]

    @property
    def numbers(self) -> list[float]:
        """The scores of the responses that have one."""
        return [total for total in self.totals if total is not None]

    def leave_out(self, kept: Sequence[bool]) -> Scores:
        """Return the scores without those of the responses for which `kept` [n] is False."""

        def select(numbers: list[float | None]) -> list[float | None]:
            return [x if keep else None for x, keep in zip(numbers, kept, strict=True)]

        return replace(self, totals=select(self.totals), parts={name: select(x) for name, x in self.parts.items()})

    def means(self, area: str) -> dict[str, float]:
        """Return the mean of each reward as metrics in an area, such as `reward`. They are absent for a single reward,
        and a reward that applies to no response has no mean."""
        known = {name: [x for x in values if x is not None] for name, values in self.parts.items()}
        return {f"{area}/{name}": math.fsum(values) / len(values) for name, values in known.items() if values}


class Rewards:
    """The rewards of a run and their weights."""

    def __init__(self, choices: Sequence[RewardChoice], load: Callable[[str, int], Reward]) -> None:
        """Load the rewards. `load` is called with the source and the index of each reward."""
        self.choices = list(choices)
        self.functions = [load(choice.source, index) for index, choice in enumerate(choices)]

    def __call__(self, exchanges: Exchanges, counter: WorkCounter) -> Scores:
        """Score the responses. `counter` names the reward that is being computed.

        The score of a response is the weighted sum of the rewards that apply to it. Raises RewardError if a reward
        fails or returns an invalid value.
        """
        found = []
        for choice, function in zip(self.choices, self.functions, strict=True):
            counter.begin(f"scoring with {choice.name}")
            extras = {name: exchanges.extra(name) for name in getattr(function, "extras", ())}
            columns = extras | dict(exchanges.columns)  # a key of the prompt file replaces an extra of the same name
            name = "llm.reward" if len(self.choices) == 1 else f"llm.reward = {choice.source!r}"
            lengths = [len(ids) for ids in exchanges.token_ids]
            found.append(score(function, name, exchanges.prompts, exchanges.responses, columns, lengths))
        return self._combine(found, exchanges.token_ids)

    def _combine(self, found: Sequence[Sequence[Score]], token_ids: Sequence[Sequence[int]]) -> Scores:
        """Add up the scores of each reward, in the order of the rewards."""
        weights, rows = [choice.weight for choice in self.choices], list(zip(*found, strict=True))
        names = [choice.name for choice in self.choices]
        has_tokens = any(isinstance(x, list) for row in rows for x, weight in zip(row, weights, strict=True) if weight)
        tokens = [_add_up_tokens(weights, row, len(ids)) for row, ids in zip(rows, token_ids, strict=True)]
        parts = {name: [add_tokens(x) for x in column] for name, column in zip(names, found, strict=True)}
        totals = [_add_up(weights, row) for row in rows]
        return Scores(totals, parts if len(names) > 1 else {}, tokens if has_tokens else None)


def add_tokens(value: Score) -> float | None:
    """Return a response's score as one number: the sum over its tokens if there is one number for each token."""
    return math.fsum(value) if isinstance(value, list) else value


def _add_up(weights: Sequence[float], values: Sequence[Score]) -> float | None:
    """Return the weighted sum of a response's scores, or None if no reward with a nonzero weight applies."""
    terms = [(weight, add_tokens(value)) for weight, value in zip(weights, values, strict=True) if weight]
    known = [weight * value for weight, value in terms if value is not None]
    return math.fsum(known) if known else None


def _add_up_tokens(weights: Sequence[float], values: Sequence[Score], length: int) -> list[float]:
    """Return the weighted sum of a response's token-level rewards at each of its tokens."""
    rows = [
        [weight * x for x in value] for weight, value in zip(weights, values, strict=True) if isinstance(value, list)
    ]
    return [math.fsum(column) for column in zip(*rows, strict=True)] if rows else [0.0] * length


def score(
    reward: Reward,
    name: str,
    prompts: Sequence[str],
    responses: Sequence[str],
    columns: Mapping[str, Sequence[Any]],
    lengths: Sequence[int] = (),
) -> list[Score]:
    """Call a reward function and return its score of each response, with finite numbers.

    The function may return a list, tuple, generator, tensor or array. `lengths` contains the number of tokens of each
    response; without it, token-level rewards are not supported. Raises RewardError if the function fails or returns
    anything else. Error messages start with `name`.
    """
    if not responses:
        return []
    try:
        given = reward(list(prompts), list(responses), **{key: list(values) for key, values in columns.items()})
        values = _to_list(given, len(responses))
    except RewardError:
        raise
    except (Exception, SystemExit) as error:  # sys.exit in a reward function must not end the process
        why, first = shorten(f"{type(error).__name__}: {error}", 200), _describe(prompts, responses, 0)
        raise RewardError(f"{name} failed on {len(responses)} responses ({why}); first response: {first}") from error
    if values is None:
        first = _describe(prompts, responses, 0)
        raise RewardError(f"{name}: expected a list of numbers, got {describe_value(given)}; first response: {first}")
    if len(values) > len(responses):
        last = _describe(prompts, responses, -1)
        size = len(responses)
        raise RewardError(f"{name} returned more than {size} scores for {size} responses; last response: {last}")
    if len(values) < len(responses):
        first = _describe(prompts, responses, len(values))
        found = f"returned {len(values)} score{'s' * (len(values) != 1)} for {len(responses)} responses"
        raise RewardError(f"{name} {found}; first response without a score: {first}")
    scores: list[Score] = []
    for index, value in enumerate(values):
        try:
            scores.append(_read(value, lengths[index] if lengths else None))
        except ValueError as error:
            raise RewardError(f"{name}: {error} for {_describe(prompts, responses, index)}") from None
    return scores


def _read(value: Any, length: int | None) -> Score:
    """Convert a reward's value for a response of `length` tokens. Raises ValueError if it is invalid."""
    number = _to_float(value)
    if value is None or number is not None:
        return None if number is None else _check_finite(number)
    values = None if length is None else _to_list(value, length)
    if values is None or length is None:
        kinds = "a finite number" if length is None else "a finite number, a list of them or None"
        raise ValueError(f"expected {kinds} for each response, got {describe_value(value)}")
    if len(values) != length:
        found = f"more than {length}" if len(values) > length else str(len(values))
        raise ValueError(
            f"expected one number for each of the response's {length} tokens, which include its end token, got {found}"
        )
    numbers = [_to_float(x) for x in values]
    if None in numbers:
        raise ValueError(f"expected a number for each token, got {describe_value(values[numbers.index(None)])}")
    return [_check_finite(x) for x in numbers if x is not None]


def _check_finite(number: float) -> float:
    if not math.isfinite(number):
        raise ValueError(f"expected a finite number for each response, got {number}")
    return number


def _to_list(given: Any, count: int) -> list[Any] | None:
    """Convert a reward function's result to a list of at most `count` + 1 values.

    Return None if the result is not a collection with a defined order.
    """
    if hasattr(given, "tolist"):  # a tensor or an array
        given = given.tolist()
    if isinstance(given, (str, bytes, Mapping, set, frozenset)) or not isinstance(given, Iterable):
        return None
    return list(islice(given, count + 1))


def _to_float(value: Any) -> float | None:
    """Convert a number, a one-element tensor or a one-element array to a float. Return None for any other value."""
    with suppress(ValueError, RuntimeError, TypeError):  # item() raises these if there are several elements
        value = value.item() if hasattr(value, "item") else value
    if not isinstance(value, (int, float)):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _describe(prompts: Sequence[str], responses: Sequence[str], index: int) -> str:
    return f"prompt {shorten(prompts[index], 60)!r}, response {shorten(responses[index], 60)!r}"
