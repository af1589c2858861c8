"""Prompts and rewards of reasoning-gym, a package with about 100 tasks that generate problems and verify answers.

`reasoning-gym:NAME,KEY=VALUE,...` names a task and its settings. This module does not import torch.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

from envs.llm.data import PromptData, shorten
from envs.llm.options import REASONING as REWARD
from ppo_unified.errors import UsageError, did_you_mean
from ppo_unified.parsing import parse_toml

PREFIX = f"{REWARD}:"
SIZE, SEED = 1000, 0  # the default number of training problems, and the seed of the first one
HELD_OUT = 10  # one held-out problem per this many training problems, but at least SMALLEST
SMALLEST = 100

# Their verifiers pass answers to Python's `eval`, directly or in sympy, so a response could run code
UNSAFE = (
    "binary_matrix",
    "countdown",
    "intermediate_integration",
    "n_queens",
    "polynomial_multiplication",
    "puzzle24",
    "simple_integration",
    "spiral_matrix",
    "string_insertion",
)


def problems(name: str) -> tuple[PromptData, PromptData]:
    """Return the training and the held-out problems of `reasoning-gym:NAME,KEY=VALUE,...`.

    The held-out problems come from other seeds, and none of them is a training problem unless the task has no others.
    Raises UsageError if the package is missing, or if the task or a setting is unknown.
    """
    task = name.removeprefix(PREFIX)
    dataset = _create(task, name)
    count, seed = len(dataset), dataset.seed
    training = _generate(dataset, name)
    other = _create(task, name, size=max(SMALLEST, count // HELD_OUT), seed=seed + count)
    held_out = _generate(other, name)
    known = {str(entry["question"]) for entry in training}
    unseen = [entry for entry in held_out if str(entry["question"]) not in known]
    return _prompts(task, name, training), _prompts(task, name, unseen or held_out)


def _prompts(task: str, name: str, entries: Sequence[dict[str, Any]]) -> PromptData:
    columns = {
        "answer": [entry["answer"] for entry in entries],
        "metadata": [entry["metadata"] for entry in entries],
        "task": [task] * len(entries),
    }
    return PromptData(
        [str(entry["question"]) for entry in entries], columns, name, list(range(1, len(entries) + 1)), unit="problem"
    )


def _generate(dataset: Any, name: str) -> list[dict[str, Any]]:
    try:
        return [dataset[number] for number in range(len(dataset))]
    except Exception as error:  # settings that the task accepts, but that it cannot fulfil
        raise UsageError(
            f"{name}: the task failed to generate a problem ({_explain(error)}); change its settings"
        ) from None


@lru_cache(maxsize=8)
def _verifier(task: str) -> Any:
    """Return the data set whose method `score_answer` verifies the answers to the problems of `task`."""
    return _create(task, PREFIX + task, size=1)


def _create(task: str, where: str, **changes: int) -> Any:
    """Create a data set. `task` is 'NAME,KEY=VALUE,...', and `changes` replaces some of these settings."""
    if find_spec("reasoning_gym") is None:
        raise UsageError(f"{where}: requires reasoning-gym: pip install 'ppo-unified[reasoning]'")
    from reasoning_gym.factory import DATASETS

    name, _, rest = task.partition(",")
    settings = _parse_settings(rest, where)
    if name not in DATASETS:
        raise UsageError(f"{where}: unknown task {name!r} of reasoning-gym{did_you_mean(name, DATASETS)}")
    kind, config = DATASETS[name]
    known = [field.name for field in fields(config)]
    for key in settings:
        if key not in known:
            more = did_you_mean(key, known) or f"; expected one of {shorten(', '.join(known), 200)}"
            raise UsageError(f"{where}: the task has no setting {key!r}{more}")
    try:
        given = config(**{"size": SIZE, "seed": SEED} | settings | changes)
        given.validate()
        return kind(given)
    except Exception as error:  # the checks of the settings are assertions, and some types are not checked
        raise UsageError(f"{where}: invalid settings ({_explain(error)})") from None


def _parse_settings(text: str, where: str) -> dict[str, Any]:
    """Parse 'KEY=VALUE,...', in which the values are written as in TOML."""
    try:
        settings = parse_toml(f"settings = {{{text}}}")["settings"]
    except ValueError:
        raise UsageError(
            f"{where}: expected settings such as 'size=500,min_terms=2', in which text is in double quotes, got "
            f"{shorten(text)!r}"
        ) from None
    for key, smallest in (("size", 1), ("seed", 0)):
        value = settings.get(key, smallest)
        if isinstance(value, bool) or not isinstance(value, int) or value < smallest:
            raise UsageError(f"{where}: {key}: expected an integer >= {smallest}, got {shorten(repr(value))}")
    return dict(settings)


def _explain(error: Exception) -> str:
    return shorten(f"{type(error).__name__}: {error}".removesuffix(": "), 160)


def check_tasks(columns: Mapping[str, Sequence[Any]], where: str, option: str) -> None:
    """Raise UsageError if the records are not problems of reasoning-gym, or if it is unsafe to verify their answers."""
    if not where.startswith(PREFIX):
        raise UsageError(
            f"{where}: {option} = {REWARD!r} requires problems of reasoning-gym, such as {PREFIX}chain_sum"
        )
    for task in set(columns["task"]):
        name = task.partition(",")[0]
        if name in UNSAFE:
            raise UsageError(
                f"{where}: {option} = {REWARD!r} is not supported for {name}, because its verifier runs responses as "
                "Python code; set llm.reward to your own function"
            )


def reasoning_gym(
    prompts: list[str], responses: list[str], *, answer: list[Any], metadata: list[Any], task: list[str], **columns: Any
) -> list[float]:
    """Score each response with the verifier of its task, from 0 (wrong) to 1 (right)."""
    scores = []
    for prompt, response, name, expected, about in zip(prompts, responses, task, answer, metadata, strict=True):
        entry = {"question": prompt, "answer": expected, "metadata": about}
        scores.append(_score(_verifier(name), extract_answer(response), entry))
    return scores


def extract_answer(response: str) -> str:
    """Return the text of the last <answer> tag in a response, or the whole response if it has no such tag."""
    from reasoning_gym.utils import extract_answer as extract

    found: str | None = extract(response)
    return response.strip() if found is None else found


def _score(verifier: Any, answer: str, entry: dict[str, Any]) -> float:
    try:
        with warnings.catch_warnings(action="ignore"):
            return float(verifier.score_answer(answer, entry))
    except Exception:  # many verifiers expect the right format, and raise an exception for any other text
        return 0.0
