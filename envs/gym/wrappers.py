"""Parses and applies the wrappers that `gym.wrappers` lists. This module does not import torch."""

from __future__ import annotations

import ast
import inspect
import re
import warnings
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from envs.gym.errors import close_env, describe_error
from envs.gym.targets import import_source, split_reference
from ppo_unified.errors import UsageError, did_you_mean

LIBRARY = "gymnasium.wrappers"
LONGEST = 1000  # maximum number of characters of a wrapper with its arguments
EXAMPLE = "FrameStackObservation(stack_size=4)"
_CALL = re.compile(r"(?P<name>(?:.+?:)?[^\W\d]\w*)(?P<arguments>\(.*\))?", re.DOTALL)
_FUNCTION = "it needs a function as an argument; write a subclass of it and use module:Class"
_BASE = "it is a base class; write a subclass of it and use module:Class"
_NUMPY = "observations must be NumPy arrays"
REJECTED = {  # class -> reason; its subclasses are accepted
    "TransformObservation": _FUNCTION,
    "TransformAction": _FUNCTION,
    "TransformReward": _FUNCTION,
    "ArrayConversion": "it needs modules as arguments; write a subclass of it and use module:Class",
    "NumpyToTorch": _NUMPY,
    "JaxToTorch": _NUMPY,
    "Wrapper": _BASE,
    "ObservationWrapper": _BASE,
    "ActionWrapper": _BASE,
    "RewardWrapper": _BASE,
}
REJECTED_WITH_SUBCLASSES = {
    "NormalizeObservation": "evaluations and exports do not receive its statistics; use gym.normalize_obs = true",
    "NormalizeReward": "evaluations would report normalized rewards as the score; use gym.normalize_reward = true",
    "Autoreset": "the environments are already reset after each episode",
    "RecordVideo": "each environment would record videos; use ppo-unified eval RUN --video",
    "HumanRendering": "each environment would open a window; use ppo-unified play RUN",
    "RenderCollection": "it collects frames that are never used",
    "VectorWrapper": "it wraps vector environments; use a wrapper for single environments",
}


class WrapperCall(NamedTuple):
    """A wrapper and its arguments. `name` is a name in gymnasium.wrappers, module:Class or FILE.py:Class."""

    name: str
    arguments: dict[str, Any]


class LoadedWrapper(NamedTuple):
    """A wrapper whose arguments have the types that it requires."""

    call: WrapperCall
    create: Any  # (env, **arguments) -> env
    arguments: dict[str, Any]


def parse_wrapper(text: str) -> WrapperCall:
    """Parse 'Name' or 'Name(key=literal, ...)'. Raises ValueError with a complete error message."""
    expected = f"gym.wrappers: expected Name or Name(key=value, ...), got {text[:LONGEST]!r}"
    match = _CALL.fullmatch(text)
    if match is None or len(text) > LONGEST:
        raise ValueError(f"{expected}; write for example {EXAMPLE}")
    if match["arguments"] is None:
        return WrapperCall(text, {})
    code = f"f{match['arguments']}"
    try:
        with warnings.catch_warnings(action="ignore"):  # about backslashes in strings
            call = ast.parse(code, mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        raise ValueError(f"{expected}; write for example {EXAMPLE}") from None
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
        raise ValueError(f"{expected}; write for example {EXAMPLE}")
    keys = [keyword.arg for keyword in call.keywords]
    if call.args or None in keys or len(set(keys)) < len(keys):
        raise ValueError(f"{expected}; name each argument once, for example {EXAMPLE}")
    arguments = {}
    for keyword in call.keywords:
        try:
            arguments[str(keyword.arg)] = ast.literal_eval(keyword.value)
        except (ValueError, TypeError, MemoryError, RecursionError):
            literal = "expected a Python literal, such as 4, True, 'text' or [0.5, 0.5]"
            found = ast.get_source_segment(code, keyword.value)
            raise ValueError(f"gym.wrappers: {match['name']}: {keyword.arg}: {literal}, got {found!r}") from None
    return WrapperCall(match["name"], arguments)


def apply_wrappers(env: Any, wrappers: Sequence[LoadedWrapper], env_id: str) -> Any:
    """Apply the wrappers to an environment, the first wrapper innermost. Raises UsageError if one fails."""
    import gymnasium

    for call, create, arguments in wrappers:
        where = f"gym.wrappers: cannot apply {_format_call(call)} to {env_id}"
        try:
            env = create(env, **arguments)
        except (Exception, SystemExit) as error:
            raise UsageError(f"{where} ({describe_error(error)})") from error
        if not isinstance(env, gymnasium.Env):
            raise UsageError(f"{where}: expected a gymnasium.Env as the result, got {type(env).__name__}")
    return env


def _format_call(call: WrapperCall) -> str:
    arguments = ", ".join(f"{key}={value!r}" for key, value in call.arguments.items())
    return f"{call.name}({arguments})" if arguments else call.name


def load_wrappers(texts: Iterable[str]) -> list[LoadedWrapper]:
    """Load the wrapper classes that `gym.wrappers` lists.

    Raises UsageError if a wrapper is unknown, cannot be used in this program, or does not accept its arguments.
    """
    return [_load_wrapper(parse_wrapper(text)) for text in texts]


def _load_wrapper(call: WrapperCall) -> LoadedWrapper:
    source_name, name = split_reference(call.name)
    source = import_source(source_name or LIBRARY, name, f"gym.wrappers = {call.name!r}").module
    try:
        wrapper = getattr(source, name, None)
    except Exception as error:  # gymnasium.wrappers imports some wrappers on access, and they need other packages
        raise UsageError(f"gym.wrappers: cannot load {name!r} ({describe_error(error)})") from None
    if not callable(wrapper):
        usable = [other for other in dir(source) if _is_usable(getattr(source, other, None))]
        known = did_you_mean(name, usable) or ("" if source_name else "; for your own wrapper, use module:Class")
        raise UsageError(f"gym.wrappers: no wrapper {name!r} in {source_name or LIBRARY}{known}")
    if reason := _reject(wrapper):
        raise UsageError(f"gym.wrappers: {call.name} cannot be used: {reason}")
    return LoadedWrapper(call, wrapper, _check_arguments(call, wrapper))


def _is_usable(member: Any) -> bool:
    """Return True if `member` is a wrapper class that `gym.wrappers` accepts."""
    import gymnasium

    return inspect.isclass(member) and issubclass(member, gymnasium.Wrapper) and not _reject(member)


def _reject(wrapper: Any) -> str:
    """Return the reason why a wrapper cannot be used, or "" if it can."""
    classes = inspect.getmro(wrapper) if inspect.isclass(wrapper) else ()
    for cls in (cls for cls in classes if cls.__module__.startswith("gymnasium.")):
        reasons = REJECTED | REJECTED_WITH_SUBCLASSES if cls is wrapper else REJECTED_WITH_SUBCLASSES
        if cls.__name__ in reasons:
            return reasons[cls.__name__]
    return ""


def _check_arguments(call: WrapperCall, wrapper: Any) -> dict[str, Any]:
    """Check the names of the arguments, and convert lists to the types that the wrapper requires."""
    try:
        parameters = list(inspect.signature(wrapper).parameters.values())[1:]  # the first one is the environment
    except (TypeError, ValueError):  # some classes written in C or Cython have no signature
        return call.arguments
    named = {p.name: p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    accepted = f"it accepts {', '.join(named)}" if named else "it accepts no arguments"
    unknown = [key for key in call.arguments if key not in named]
    if unknown and not any(p.kind is p.VAR_KEYWORD for p in parameters):
        raise UsageError(f"gym.wrappers: {call.name} has no parameter {unknown[0]!r}; {accepted}")
    missing = [p.name for p in named.values() if p.default is p.empty and p.name not in call.arguments]
    if missing:
        example = f"{call.name}({', '.join(f'{key}=...' for key in missing)})"
        raise UsageError(f"gym.wrappers: {call.name} requires the parameter {missing[0]!r}; write {example}")
    return {
        key: _convert(value, named[key].annotation if key in named else "") for key, value in call.arguments.items()
    }


def _convert(value: Any, annotation: Any) -> Any:
    """Convert a list to an array or a tuple if the parameter's annotation names that type, because TOML has neither."""
    import numpy as np

    types = str(annotation).lower()
    if not isinstance(value, list) or "list" in types or "sequence" in types:
        return value
    return np.array(value) if "ndarray" in types else tuple(value) if "tuple" in types else value


def format_arguments(loaded: LoadedWrapper) -> str:
    """Return the arguments as Python code that follows the environment in a call, such as ', stack_size=4'.

    The code refers to NumPy as `np`.
    """
    import numpy as np

    return "".join(
        f", {key}={f'np.array({x.tolist()!r})' if isinstance(x, np.ndarray) else repr(x)}"
        for key, x in loaded.arguments.items()
    )


def check_training_wrappers(env: Any, plain: Any) -> None:
    """Raise UsageError if an environment with `gym.training_wrappers` has other spaces than `plain`. Close `plain`."""
    try:
        for what in ("observation_space", "action_space"):
            found, expected = getattr(env, what), getattr(plain, what)
            if found != expected:
                raise UsageError(
                    f"gym.training_wrappers: expected the {what.replace('_', ' ')} {expected} of evaluations, got "
                    f"{found}; move wrappers that change it to gym.wrappers"
                )
    finally:
        close_env(plain)
