"""What a response is worth: the reward that a reference names, and the check of what it gave. No torch."""

from __future__ import annotations

import importlib
import inspect
import math
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

from envs.llm.data import shorten
from envs.llm.rewards.errors import RewardError
from ppo_unified.errors import UsageError, did_you_mean
from ppo_unified.text import clean

VERIFIERS = ("exact", "numeric", "regex:PATTERN", "length:N")
TASK_REWARDS = ("arithmetic", "sentiment", "sentiment-gold")
HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")

# reward(prompts, responses, **columns) -> a number per response; columns: what else the prompts' records hold
Reward = Callable[..., Any]

_NUMBER = re.compile(
    r"(?:(?<![\w)\]])[-+\u2212])?"  # a sign, not the minus of '5-3'; U+2212 is the typeset minus
    r"(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?"
)


def load_reward(reference: str, device: Any = "cpu", dtype: str = "float32", option: str = "llm.reward") -> Reward:
    """The reward that `reference` means; a reward model is loaded onto `device`. Raises UsageError.

    A built-in task's; exact, numeric, regex:PATTERN, length:N; module:function; or the folder or hub id of a
    sequence-classification model.
    """
    function = find_function(reference, option)
    if function is not None:
        return _limit_columns(function)
    from envs.llm.rewards.reward_model import RewardModel

    return RewardModel(reward_model_source(reference), device, dtype, option)


def check_reward(reference: str, option: str = "llm.reward") -> None:
    """Raises UsageError for what `load_reward` would refuse, without reading a reward model's weights."""
    if find_function(reference, option) is None:
        from envs.llm.rewards.reward_model import load_reward_model_parts

        load_reward_model_parts(reward_model_source(reference), option)


def reward_model_source(reference: str) -> str:
    """The folder or hub id of a reward model that is no function; the built-in one is made at first use."""
    if reference == "sentiment":
        from envs.llm.tiny import sentiment_reward_model

        return str(sentiment_reward_model())
    return reference


def find_function(reference: str, option: str = "llm.reward") -> Reward | None:
    """The function that `reference` means; None where it means a reward model, which is not looked at.

    Raises UsageError for what can be neither.
    """
    if not reference:
        raise UsageError(f"{option}: no reward is given; use {', '.join(VERIFIERS)}, module:function or a folder")
    kind, _, argument = reference.partition(":")
    if reference in ("arithmetic", "sentiment-gold"):
        from envs.llm import tasks

        task: Reward = getattr(tasks, reference.replace("-", "_"))
        return task
    if reference in ("exact", "numeric"):
        return exact if reference == "exact" else numeric
    if kind in ("regex", "length") and reference != kind:
        return Regex(argument, option) if kind == "regex" else Length(argument, option)
    if reference == "sentiment" or Path(reference).is_dir():
        return None
    if argument:
        return _import(reference, option)
    if HUB_ID.fullmatch(reference):
        return None
    known = did_you_mean(reference, (*TASK_REWARDS, "exact", "numeric", "regex", "length"))
    raise UsageError(
        f"{option} = {reference!r}: no built-in reward, module:function, existing folder or hub id (owner/name){known}"
    )


def _import(reference: str, option: str) -> Reward:
    """The function `module:name`, with the current folder among those that modules come from. Raises UsageError."""
    module, _, name = reference.rpartition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        found = importlib.import_module(module)
    except (Exception, SystemExit) as error:
        why = clean(f"{type(error).__name__}: {error}")
        raise UsageError(f"{option} = {reference!r}: module {module!r} cannot be imported ({why})") from None
    if not hasattr(found, name):
        known = did_you_mean(name, (other for other in vars(found) if callable(getattr(found, other))))
        raise UsageError(f"{option} = {reference!r}: module {module!r} has no {name!r}{known}")
    function = getattr(found, name)
    if inspect.isclass(function) or not callable(function):
        kind = "a class" if inspect.isclass(function) else _describe_value(function)
        raise UsageError(f"{option} = {reference!r} is {kind}, where a function is meant")
    if inspect.iscoroutinefunction(function):
        raise UsageError(f"{option} = {reference!r} is async; a reward gives its scores when it is called")
    reward: Reward = function
    return reward


def exact(prompts: list[str], responses: list[str], *, answer: list[Any], **columns: Any) -> list[float]:
    """1 where the response is the column `answer`, space around both aside; else 0."""
    return [float(response.strip() == str(a).strip()) for response, a in zip(responses, answer, strict=True)]


def numeric(prompts: list[str], responses: list[str], *, answer: list[Any], **columns: Any) -> list[float]:
    """1 where the last number in the response is the last one in the column `answer`, to 1e-6 of its size; else 0."""
    scores = []
    for response, a in zip(responses, answer, strict=True):
        given, wanted = last_number(response), last_number(str(a))
        right = given is not None and wanted is not None and math.isclose(given, wanted, rel_tol=1e-6)
        scores.append(float(right))
    return scores


def last_number(text: str) -> float | None:
    """The last finite number in a text ('1,234.5', '-3', '.5', '2e3'); None without one."""
    numbers = (float(found.replace(",", "").replace("\u2212", "-")) for found in _NUMBER.findall(text))
    return next((number for number in reversed(list(numbers)) if math.isfinite(number)), None)


class Regex:
    """1 where a regular expression is found anywhere in the response; else 0."""

    def __init__(self, pattern: str, option: str) -> None:
        if not pattern:
            raise UsageError(f"{option} = 'regex:' has no pattern; write one after the colon")
        try:
            self.pattern = re.compile(pattern)
        except re.error as error:
            raise UsageError(f"{option}: {pattern!r} is no regular expression ({error})") from None

    def __call__(self, prompts: list[str], responses: list[str], /, **columns: Any) -> list[float]:
        return [float(self.pattern.search(response) is not None) for response in responses]


class Length:
    """0 where the response has `target` characters, falling linearly to -1 at none and at twice as many.

    Characters, because a reward sees texts: words would not do in Chinese, and tokens are the model's own.
    """

    def __init__(self, target: str, option: str) -> None:
        if not re.fullmatch(r"0*[1-9][0-9]{0,8}", target):
            raise UsageError(f"{option} = {'length:' + target!r}: not a positive whole number of characters")
        self.target = int(target)

    def __call__(self, prompts: list[str], responses: list[str], /, **columns: Any) -> list[float]:
        return [-min(1.0, abs(len(response) - self.target) / self.target) for response in responses]


def check_columns(reference: str, columns: Mapping[str, Sequence[Any]], where: str, option: str = "llm.reward") -> None:
    """Raises UsageError where the records of `where` lack a key that the reward needs, or hold one it can't take."""
    function = find_function(reference, option)
    parameters = _parameters(function)
    if function is None or parameters is None:
        return
    missing = [name for name in needed_columns(reference, option) if name not in columns]
    if missing:
        found = f"found beside the prompt: {', '.join(map(repr, columns)) or 'none'}"
        known = did_you_mean(missing[0], columns)
        raise UsageError(f"{where}: no key {missing[0]!r}, which {option} = {reference!r} needs ({found}){known}")
    try:
        inspect.signature(function).bind([], [], **_select_columns(parameters, columns))
    except TypeError as error:
        raise UsageError(
            f"{where}: {option} = {reference!r} can't be called as reward(prompts, responses, **columns): {error}"
        ) from None
    if reference in ("exact", "numeric"):
        _check_answers(reference, columns["answer"], where)


def needed_columns(reference: str, option: str = "llm.reward") -> list[str]:
    """The columns without which a reward is known to fail; one with `**columns` alone may want others."""
    parameters = _parameters(find_function(reference, option)) or []
    return [p.name for p in parameters[2:] if _is_required(p)]


def _check_answers(reference: str, answers: Sequence[Any], where: str) -> None:
    """An answer that no response can match would be a silent 0 for ever."""
    for number, answer in enumerate(answers, 1):
        if isinstance(answer, bool) or not isinstance(answer, str | int | float):
            raise UsageError(
                f"{where}: 'answer' of prompt {number} is {_describe_value(answer)}, not a text or a number"
            )
        if reference == "numeric" and last_number(str(answer)) is None:
            raise UsageError(f"{where}: 'answer' of prompt {number} holds no number ({shorten(str(answer))!r})")


def _parameters(function: Any) -> list[inspect.Parameter] | None:
    """A reward's parameters; None for what keeps them to itself, as some functions written in C do."""
    try:
        return list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return None


def _is_required(parameter: inspect.Parameter) -> bool:
    gathers = parameter.kind in (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    return not gathers and parameter.default is inspect.Parameter.empty


def _select_columns(parameters: list[inspect.Parameter], columns: Mapping[str, Any]) -> dict[str, Any]:
    """The columns that a reward takes: all with `**columns`, else those it names."""
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
        return dict(columns)
    names = {p.name for p in parameters}
    return {name: values for name, values in columns.items() if name in names}


def _limit_columns(function: Reward) -> Reward:
    """`function`, given only the columns that it names where it has no `**columns`."""
    parameters = _parameters(function)
    if parameters is None or any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
        return function

    def reward(prompts: list[str], responses: list[str], /, **columns: Any) -> Any:
        return function(prompts, responses, **_select_columns(parameters, columns))

    return reward


def score(
    reward: Reward, name: str, prompts: Sequence[str], responses: Sequence[str], columns: Mapping[str, Sequence[Any]]
) -> list[float]:
    """One finite number per response. Raises RewardError where the reward fails or gives anything else.

    A list, tuple, generator, tensor or array will do, of Python's numbers or a tensor's. `name` begins the message.
    """
    if not responses:
        return []
    try:
        given = reward(list(prompts), list(responses), **{key: list(values) for key, values in columns.items()})
        values = _to_list(given, len(responses))
    except RewardError:
        raise
    except (Exception, SystemExit) as error:  # a reward that ends the process is a reward that failed
        why, first = shorten(f"{type(error).__name__}: {error}", 200), _describe(prompts, responses, 0)
        raise RewardError(f"{name} failed on {len(responses)} responses ({why}); the first: {first}") from error
    if values is None:
        raise RewardError(
            f"{name} gave {_describe_value(given)} instead of a list of numbers; {_describe(prompts, responses, 0)}"
        )
    if len(values) > len(responses):
        last = _describe(prompts, responses, -1)
        raise RewardError(f"{name} gave more than one score for each of {len(responses)} responses; the last: {last}")
    if len(values) < len(responses):
        first = _describe(prompts, responses, len(values))
        raise RewardError(f"{name} gave {len(values)} scores for {len(responses)} responses; without one: {first}")
    numbers = [_to_float(value) for value in values]
    for index, (number, value) in enumerate(zip(numbers, values, strict=True)):
        if number is None or not math.isfinite(number):
            found = _describe_value(value) if number is None else str(number)
            raise RewardError(f"{name} gave {found}, not a finite number; {_describe(prompts, responses, index)}")
    return [number for number in numbers if number is not None]


def _to_list(given: Any, count: int) -> list[Any] | None:
    """What a reward gave as a list, of at most one value too many; None where it has no order or no values."""
    if hasattr(given, "tolist"):  # a tensor or an array, on whatever device
        given = given.tolist()
    if isinstance(given, (str, bytes, Mapping, set, frozenset)) or not isinstance(given, Iterable):
        return None
    return list(islice(given, count + 1))


def _to_float(value: Any) -> float | None:
    """A real number of Python's or of a tensor or array library; None for anything else."""
    with suppress(ValueError, RuntimeError, TypeError):  # what tensors and arrays of several values raise
        value = value.item() if hasattr(value, "item") else value
    if not isinstance(value, (int, float)):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _describe(prompts: Sequence[str], responses: Sequence[str], index: int) -> str:
    return f"prompt {shorten(prompts[index], 60)!r}, response {shorten(responses[index], 60)!r}"


def _describe_value(value: Any) -> str:
    """A value in a few words: its type, and itself where that is short."""
    if value is None:
        return "None"
    shown = shorten(repr(value)) if isinstance(value, (str, int, float, list, dict, tuple)) else ""
    return f"a value of type {type(value).__name__}" + (f" ({shown})" if shown else "")
