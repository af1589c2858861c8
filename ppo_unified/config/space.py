"""Parse the space of a hyperparameter search: for each searched option, a range or a list of values.

optim.lr=1e-4..1e-2 log           a number in the range, whose logarithm is sampled uniformly
ppo.epochs=4..20                  an integer in the range, including both ends
policy.activation=tanh,relu       one of the values
policy.hidden=64 64,256 256       one of the lists
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from pydantic.fields import FieldInfo

from ppo_unified.config.schema import RunConfig, read_toml, typed_options, validate
from ppo_unified.config.suggestions import suggest
from ppo_unified.config.values import describe, flag_name, format_value, kind_of, read_value
from ppo_unified.errors import UsageError

WHERE = "--space"
DIGITS = 4  # significant digits of a sampled number
_RANGE = re.compile(r"\s*(\S+?)\s*\.\.\s*(\S+?)(\s+log)?\s*")
_PROBES = 512  # number of combinations that are tried before a space counts as invalid
_UNSEARCHABLE = {
    "seed": "trials with different seeds are not comparable",
    "eval": "the scores of trials with different evaluations are not comparable",
    "checkpoint": "it does not change what is learned",
    "log": "it does not change what is learned",
    "device": "it does not change what is learned",
    "threads": "it does not change what is learned",
    "stop_when_solved": "the scores of trials that end at different times are not comparable",
}

C = TypeVar("C", bound=RunConfig)


class Range(NamedTuple):
    """The numbers from `low` to `high`."""

    low: float
    high: float
    log: bool  # the logarithm is sampled uniformly
    is_integer: bool  # sampled numbers are integers

    def __contains__(self, value: object) -> bool:
        return type(value) in (int, float) and self.low <= value <= self.high  # type: ignore[operator]

    def format(self, number: float) -> str:
        """Return a sampled number as text, with DIGITS significant digits."""
        if self.is_integer:
            return str(int(number))
        return format_value(min(max(float(f"{number:.{DIGITS}g}"), self.low), self.high))

    @property
    def ends(self) -> tuple[str, str]:
        return self.format(self.low), self.format(self.high)


class Choices(NamedTuple):
    """A list of values, as text."""

    values: Sequence[str]

    @property
    def ends(self) -> Sequence[str]:
        return self.values


Space = Mapping[str, Range | Choices]  # the full name of an option -> its values


def parse_space(words: Sequence[str], config: RunConfig) -> dict[str, Range | Choices]:
    """Return the space that the words `OPTION=VALUES` or the TOML files in `words` describe, for the target's `config`.

    Raises a one-line UsageError for an unknown option, for values that the option does not accept, and if no
    combination of the values is valid.
    """
    declared, space = typed_options(type(config)), dict[str, Range | Choices]()
    for option, text in (pair for word in words for pair in _read_word(word, declared)):
        name = _find_option(option, declared)
        if name in space:
            raise UsageError(f"{WHERE}: {name} is given twice; remove one of the two")
        try:
            space[name] = _parse_values(text, declared[name])
        except ValueError as error:
            raise UsageError(f"{WHERE}: {name}: {error}") from None
    if not space:
        raise UsageError(f"{WHERE}: expected at least one option, such as optim.lr=1e-4..1e-2")
    _check_combinations(space, config)
    return space


def apply_values(config: C, values: Mapping[str, str], where: str) -> C:
    """Return `config` with other values of some options, given as text. Raises UsageError if the result is invalid."""
    declared = typed_options(type(config))
    changes = {option: read_value(text, declared[option]) for option, text in values.items()}
    return validate(type(config), config.replace(changes).model_dump(), where)


def drop_ignored(config: RunConfig, values: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """Return the values without those of options that have no effect because of the others, and the reason of each.

    If such an option is not at its default in `config`, which would be an error, it gets its default value.
    """
    declared, kept, reasons = typed_options(type(config)), dict(values), dict[str, str]()
    while True:
        changed = config.replace({option: read_value(text, declared[option]) for option, text in kept.items()})
        ignored = ((option, why) for option, is_ignored, why in changed.ignored_options() if is_ignored)
        option, why = next((pair for pair in ignored if pair[0] in values and pair[0] not in reasons), ("", ""))
        if not option:
            return kept, reasons
        reasons[option] = why
        del kept[option]
        owner, name = config.owner(option)
        if not owner.is_default(name):
            kept[option] = format_value(declared[option].get_default(call_default_factory=True), declared[option])


def find_values(space: Space, config: RunConfig) -> dict[str, str] | None:
    """Return the values that the searched options have in `config`, as text, or None if the space lacks one of them."""
    options, declared, found = config.flatten(), typed_options(type(config)), {}
    for option, values in space.items():
        if isinstance(values, Range):
            if options[option] not in values:
                return None
            found[option] = values.format(options[option])
        else:
            equal = [text for text in values.values if read_value(text, declared[option]) == options[option]]
            if not equal:
                return None
            found[option] = equal[0]
    return found


def _read_word(word: str, declared: Mapping[str, FieldInfo]) -> Iterable[tuple[str, str | list[Any]]]:
    """Yield the options and values of a word `OPTION=VALUES` or of a TOML file."""
    option, equals, text = word.partition("=")
    if equals:
        yield option.strip(), text
    elif word.endswith(".toml"):
        for name, value in read_toml(Path(word)).items():
            if isinstance(value, Mapping):
                yield from ((f"{name}.{key}", inner) for key, inner in value.items())
            else:
                yield name, value
    else:
        raise UsageError(f"{WHERE}: expected OPTION=VALUES, such as optim.lr=1e-4..1e-2, or a TOML file, got {word!r}")


def _find_option(text: str, declared: Mapping[str, FieldInfo]) -> str:
    """Return the full name of an option. Raises UsageError if it does not exist or cannot be searched."""
    name = text.removeprefix("--").replace("-", "_")
    if name not in declared:
        found = suggest(name, declared)
        note = f" ({found.note})" if found and found.note else ""
        hint = f"; did you mean {found.option!r}?{note}" if found else "; see ppo-unified train TARGET --help"
        raise UsageError(f"{WHERE}: unknown option {text!r}{hint}")
    why = _UNSEARCHABLE.get(name, _UNSEARCHABLE.get(name.partition(".")[0], ""))
    if why:
        raise UsageError(f"{WHERE}: {name} cannot be searched, because {why}; set it with {flag_name(name)}")
    return name


def _parse_values(text: object, declared: FieldInfo) -> Range | Choices:
    """Parse the values of one option. Raises ValueError with the expected and the actual values."""
    if isinstance(text, list):
        return _parse_choices([format_value(value, declared) for value in text], declared)
    if not isinstance(text, str):
        raise ValueError(f"expected a range such as '1..2', or a list of values, got {text!r}")
    if (match := _RANGE.fullmatch(text)) is None:
        if ".." in text and kind_of(declared) in ("int", "float"):
            raise ValueError(f"expected a range such as '1..2' or '1..2 log', got {text!r}")
        return _parse_choices([part.strip() for part in text.split(",")], declared)
    if kind_of(declared) not in ("int", "float"):
        raise ValueError(f"expected values separated by commas ({describe(declared)}), got the range {text!r}")
    low, high = (read_value(end, declared) for end in (match[1], match[2]))
    if not low < high:
        raise ValueError(f"expected a range from the smaller to the larger number, got {text!r}")
    if match[3] and low <= 0:
        raise ValueError(f"expected a range above 0, because of 'log', got {text!r}")
    return Range(low, high, bool(match[3]), kind_of(declared) == "int")


def _parse_choices(parts: Sequence[str], declared: FieldInfo) -> Choices:
    values = [read_value(part, declared) for part in parts]
    distinct = [part for number, part in enumerate(parts) if values[number] not in values[:number]]
    if len(distinct) < 2:
        kind = kind_of(declared)
        shown = ",".join(parts)
        example = "a range such as 1..2, or " if kind in ("int", "float") else ""
        raise ValueError(f"expected {example}at least two different values separated by commas, got {shown!r}")
    return Choices(distinct)


def _check_combinations(space: Space, config: RunConfig) -> None:
    """Try combinations of the ends of ranges and of listed values.

    Raises UsageError if none of them is valid, or if a searched option has no effect in any of them.
    """
    generator, problem, effective, reasons = random.Random(0), "", set[str](), dict[str, str]()
    for _ in range(_PROBES):
        values = {option: generator.choice(among.ends) for option, among in space.items()}
        kept, ignored = drop_ignored(config, values)
        reasons = ignored | reasons
        try:
            apply_values(config, kept, "")
            effective |= space.keys() - ignored.keys()
        except UsageError as error:
            problem = problem or str(error).partition("\n")[0].removeprefix(": ")
        if effective == space.keys():
            return
    for option, why in reasons.items():
        if option not in effective:
            raise UsageError(f"{WHERE}: {option} has no effect because {why}; remove it")
    raise UsageError(
        f"{WHERE}: none of {_PROBES} tried combinations is valid; first error: {problem}; change or narrow these values"
    )
