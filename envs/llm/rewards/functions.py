"""Finds and loads the reward function or model that an option names, and checks that the prompts fit it.

This module does not import torch.
"""

from __future__ import annotations

import importlib
import inspect
import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from envs.llm.data import shorten
from envs.llm.options import REASONING
from envs.llm.reasoning import check_tasks, reasoning_gym
from envs.llm.rewards.math_verifier import REWARD as MATH
from envs.llm.rewards.math_verifier import check_math
from envs.llm.rewards.math_verifier import math as math_reward
from ppo_unified.errors import UsageError, closest_match, did_you_mean, explain_hidden
from ppo_unified.text import clean

VERIFIERS = ("exact", "numeric", "math", "regex:PATTERN", "length:N", "reasoning-gym")
TASK_REWARDS = ("arithmetic", "sentiment", "sentiment-gold", "vader")
HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")

# reward(prompts, responses, **columns) -> one `scoring.Score` per response; columns are the other keys of the prompts'
# records
Reward = Callable[..., Any]
EXTRAS = ("messages", "raw_prompts", "tokens", "token_ids")  # keyword arguments for functions that name them

_NUMBER = re.compile(
    r"(?:(?<![\w)\]])[-+\u2212])?"  # a sign, but not the minus in '5-3'; U+2212 is the Unicode minus
    r"(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?"
)


def load_reward(reference: str, device: Any = "cpu", dtype: str = "float32", option: str = "llm.reward") -> Reward:
    """Load the reward function or reward model that `reference` names. A reward model is loaded onto `device`.

    A reference is a name in TASK_REWARDS or VERIFIERS, `module:function`, or the folder or hub id of a reward model (a
    sequence-classification model with one label). Raises UsageError if `llm.reward` is malformed, or if the function or
    model cannot be loaded.
    """
    function = find_function(reference, option)
    if function is not None:
        return Function(function)
    from envs.llm.rewards.reward_model import RewardModel

    return RewardModel(reward_model_source(reference), device, dtype, option)


def check_reward(reference: str, option: str = "llm.reward") -> None:
    """Raise the UsageError that `load_reward` would raise, but do not read the weights of a reward model."""
    if find_function(reference, option) is None:
        from envs.llm.rewards.reward_model import load_reward_model_parts

        load_reward_model_parts(reward_model_source(reference), option)


def reward_model_source(reference: str) -> str:
    """Return the folder or hub id of a reward model. The built-in reward model is trained on first use."""
    if reference == "sentiment":
        from envs.llm.tiny import sentiment_reward_model

        return str(sentiment_reward_model())
    return reference


def find_function(reference: str, option: str = "llm.reward") -> Reward | None:
    """Return the function that `reference` names, or None if `reference` has the form of a reward model's name.

    Raises UsageError if `reference` is invalid or its function cannot be imported. Whether a reward model can be loaded
    is not checked.
    """
    if not reference:
        raise UsageError(f"{option} is required: use {', '.join(VERIFIERS)}, module:function or a reward model")
    kind, _, argument = reference.partition(":")
    if reference in ("arithmetic", "sentiment-gold"):
        from envs.llm import tasks

        task: Reward = getattr(tasks, reference.replace("-", "_"))
        return task
    if reference == "vader":
        from envs.llm.rewards.vader import check_installed, vader

        check_installed(option)
        return vader
    if reference in NAMED:
        return NAMED[reference]
    if kind in ("regex", "length") and reference != kind:
        return Regex(argument, option) if kind == "regex" else Length(argument, option)
    if reference == "sentiment" or Path(reference).is_dir():
        return None
    if argument:
        return _import(reference, option)
    if HUB_ID.fullmatch(reference):
        return None
    names = {name.partition(":")[0]: name for name in (*TASK_REWARDS, *VERIFIERS)}
    match = closest_match(reference, names)
    known = f"; did you mean {names[match]!r}?" if match else ""
    raise UsageError(
        f"{option} = {reference!r}: expected a built-in reward, module:function, a folder or a hub id{known}"
    )


def _import(reference: str, option: str) -> Reward:
    """Import `module:function`; the module may be in the current folder. Raises UsageError if the import fails."""
    module, _, name = reference.rpartition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        found = importlib.import_module(module)
    except (Exception, SystemExit) as error:
        why = explain_hidden(error) or f" ({clean(f'{type(error).__name__}: {error}')})"
        kind, _, argument = reference.partition(":")
        match = closest_match(kind, ("regex", "length"))
        known = f"; did you mean '{match}:{clean(argument)}'?" if match else ""
        raise UsageError(f"{option} = {reference!r}: cannot import module {module!r}{why}{known}") from None
    if not hasattr(found, name):
        known = did_you_mean(name, (other for other in vars(found) if callable(getattr(found, other))), f"{module}:")
        raise UsageError(f"{option} = {reference!r}: module {module!r} has no {name!r}{known}")
    function = getattr(found, name)
    if inspect.isclass(function) or not callable(function):
        kind = "a class" if inspect.isclass(function) else describe_value(function)
        raise UsageError(f"{option} = {reference!r}: expected a function, got {kind}")
    if inspect.iscoroutinefunction(function):
        raise UsageError(f"{option} = {reference!r}: expected a function that is not async; remove 'async'")
    reward: Reward = function
    return reward


def exact(prompts: list[str], responses: list[str], *, answer: list[Any], **columns: Any) -> list[float]:
    """Score each response 1 if it equals its `answer`, ignoring surrounding whitespace, and 0 otherwise."""
    return [float(response.strip() == str(a).strip()) for response, a in zip(responses, answer, strict=True)]


def numeric(prompts: list[str], responses: list[str], *, answer: list[Any], **columns: Any) -> list[float]:
    """Score each response 1 if its last number equals the last number in its `answer`, and 0 otherwise.

    The numbers are compared with a relative tolerance of 1e-6.
    """
    scores = []
    for response, a in zip(responses, answer, strict=True):
        given, expected = last_number(response), last_number(str(a))
        is_right = given is not None and expected is not None and math.isclose(given, expected, rel_tol=1e-6)
        scores.append(float(is_right))
    return scores


def last_number(text: str) -> float | None:
    """Return the last finite number in `text` ('1,234.5', '-3', '.5', '2e3'), or None if there is no number."""
    numbers = (float(found.replace(",", "").replace("\u2212", "-")) for found in _NUMBER.findall(text))
    return next((number for number in reversed(list(numbers)) if math.isfinite(number)), None)


NAMED: dict[str, Reward] = {"exact": exact, "numeric": numeric, MATH: math_reward, REASONING: reasoning_gym}


class Regex:
    """Scores each response 1 if a regular expression matches anywhere in it, and 0 otherwise."""

    def __init__(self, pattern: str, option: str) -> None:
        if not pattern:
            raise UsageError(f"{option} = 'regex:': expected a pattern after the colon")
        try:
            self.pattern = re.compile(pattern)
        except re.error as error:
            raise UsageError(f"{option}: invalid regular expression {pattern!r} ({error})") from None

    def __call__(self, prompts: list[str], responses: list[str], /, **columns: Any) -> list[float]:
        return [float(self.pattern.search(response) is not None) for response in responses]


class Length:
    """Scores each response by its length. The score is 0 for exactly `target` characters, and otherwise negative.

    The score falls linearly to its minimum of -1 at length 0 and at twice the target. Length is measured in characters,
    because words are hard to count in Chinese and the number of tokens depends on the model.
    """

    def __init__(self, target: str, option: str) -> None:
        if not re.fullmatch(r"0*[1-9][0-9]{0,8}", target):
            raise UsageError(f"{option}: expected 'length:N' with an integer N >= 1, got {'length:' + target!r}")
        self.target = int(target)

    def __call__(self, prompts: list[str], responses: list[str], /, **columns: Any) -> list[float]:
        return [-min(1.0, abs(len(response) - self.target) / self.target) for response in responses]


def check_columns(reference: str, columns: Mapping[str, Sequence[Any]], where: str, option: str = "llm.reward") -> None:
    """Raise UsageError if `columns` lacks a key that the reward function needs, or contains an invalid answer.

    `where` is the file or built-in task that contains the prompts. Error messages start with it.
    """
    function = find_function(reference, option)
    parameters = _parameters(function)
    if function is None or parameters is None:
        return
    if reference == REASONING:
        check_tasks(columns, where, option)
    missing = [name for name in needed_columns(reference, option) if name not in columns]
    if missing:
        others = f" (found: {', '.join(map(repr, columns))})" if columns else ""
        similar = closest_match(missing[0], columns)
        known = f"; rename {similar!r} to {missing[0]!r}" if similar else ""
        raise UsageError(f"{where}: missing key {missing[0]!r}, which {option} = {reference!r} needs{others}{known}")
    try:
        named: dict[str, Any] = {p.name: [] for p in parameters if p.name in EXTRAS}
        inspect.signature(function).bind([], [], **named | _select_columns(parameters, columns))
    except TypeError as error:
        raise UsageError(
            f"{where}: {option} = {reference!r} cannot be called as reward(prompts, responses, **columns): {error}"
        ) from None
    if reference in ("exact", "numeric", MATH):
        _check_answers(reference, columns["answer"], where)
    if reference == MATH:
        check_math(columns["answer"], where, option)


def needed_columns(reference: str, option: str = "llm.reward") -> list[str]:
    """Return the columns that a reward function's signature requires. A function with `**columns` may need more."""
    parameters = _parameters(find_function(reference, option)) or []
    return [p.name for p in parameters[2:] if _is_required(p) and p.name not in EXTRAS]


def _check_answers(reference: str, answers: Sequence[Any], where: str) -> None:
    """Raise UsageError if an answer cannot match any response, because its scores would always be 0."""
    for number, answer in enumerate(answers, 1):
        if isinstance(answer, bool) or not isinstance(answer, str | int | float):
            raise UsageError(
                f"{where}: 'answer' of prompt {number}: expected text or a number, got {describe_value(answer)}"
            )
        if reference == "numeric" and last_number(str(answer)) is None:
            raise UsageError(f"{where}: 'answer' of prompt {number}: expected a number, got {shorten(str(answer))!r}")


def _parameters(function: Any) -> list[inspect.Parameter] | None:
    """Return a reward function's parameters, or None if they are unknown, as for some functions written in C."""
    try:
        return list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return None


def _is_required(parameter: inspect.Parameter) -> bool:
    is_variadic = parameter.kind in (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    return not is_variadic and parameter.default is inspect.Parameter.empty


def _select_columns(parameters: list[inspect.Parameter], columns: Mapping[str, Any]) -> dict[str, Any]:
    """Return the columns that a function accepts: all of them if it has `**columns`, otherwise those that it names."""
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
        return dict(columns)
    names = {p.name for p in parameters}
    return {name: values for name, values in columns.items() if name in names}


class Function:
    """A reward function. It receives the columns that it accepts and the extras that it names."""

    def __init__(self, function: Reward) -> None:
        self.function, self.parameters = function, _parameters(function)
        self.extras = [p.name for p in self.parameters or () if p.name in EXTRAS]

    def __call__(self, prompts: list[str], responses: list[str], /, **columns: Any) -> Any:
        known = columns if self.parameters is None else _select_columns(self.parameters, columns)
        return self.function(prompts, responses, **known)


def describe_value(value: Any) -> str:
    """Describe a value by its type and, if it is simple, its content."""
    if value is None:
        return "None"
    shown = shorten(repr(value)) if isinstance(value, (str, int, float, list, dict, tuple)) else ""
    return f"a value of type {type(value).__name__}" + (f" ({shown})" if shown else "")
