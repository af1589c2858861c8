"""The logic of the form for a new run: targets, options, validation and the command line. It contains no widgets.

Option values are passed as text, exactly as the user types them.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from pydantic.fields import FieldInfo

from ppo_unified.config import presets
from ppo_unified.config.recipes import all_recipes, apply_recipe
from ppo_unified.config.registry import find_adapter, load
from ppo_unified.config.schema import RECORDS, RunConfig, known_options, typed_options, validate
from ppo_unified.config.sweep import Combination, combine, split_values
from ppo_unified.config.values import (
    Kind,
    choices_of,
    describe,
    flag_name,
    format_flag,
    format_value,
    kind_of,
    read_value,
)
from ppo_unified.errors import UsageError
from ppo_unified.runs.folder import Run, check_name, free_name
from ppo_unified.runs.preparation import run_name

WHERE = "command line"  # location in error messages: the same as for a command
NAME, RECIPE = "name", "recipe"  # keys in `typed` besides options: the run's name and the recipe
RUNS = Path("runs")  # the default runs folder
FIRST = "cartpole"  # the first target in the list, because it trains fastest
MATTERS = (  # important options, besides those that a preset sets
    "seed", "total_steps", "optim.lr", "gym.num_envs", "llm.model", "llm.prompts", "llm.reward",
)  # fmt: skip


class TargetChoice(NamedTuple):
    """A line in the list of targets. An empty `target` marks a group of presets, or a hint for the user to type one."""

    target: str
    title: str
    score: str = ""
    time: str = ""
    group: str = ""  # the group to which a preset belongs
    search: str = ""  # the start of the names of a group's presets


class Field(NamedTuple):
    """One option of a target, as a form shows it."""

    name: str  # dotted, such as 'ppo.clip'
    section: str  # such as 'ppo', or '' at the top level
    kind: Kind
    description: str
    expected: str  # the type and range of valid values
    choices: tuple[str, ...]
    default: str  # the value of the target and the recipe, as text
    matters: bool  # shown at the top of the form


class Difference(NamedTuple):
    """An option whose value differs from the target's, or whose value in the target differs from the default."""

    option: str
    before: str
    after: str


@dataclass(frozen=True)
class Verdict:
    """The result of validating a form. If the input is invalid, `config` is None and `command` is empty."""

    problems: Mapping[str, str]  # option -> error
    general: tuple[str, ...]  # errors that concern no single option
    differences: tuple[Difference, ...]
    config: RunConfig | None  # configuration of the first run
    runs: int
    command: str

    @property
    def good(self) -> bool:
        """True if the input is valid."""
        return self.config is not None


def list_choices() -> list[TargetChoice]:
    """Return all presets, the fastest first, followed by hints for other targets."""
    found = [TargetChoice(a.name, a.title, a.score, a.time, a.group) for a in presets.list_presets()]
    return [
        *sorted(found, key=lambda choice: choice.target != FIRST),
        TargetChoice("llm", "A Hugging Face model with your prompts and reward"),
        TargetChoice("", "Any Gymnasium environment: type its id or file (Name-v1, my_env.py:Name)"),
        TargetChoice("", "Any TOML file: type its path (runs/a1/config.toml)"),
    ]


def fold_groups(choices: Sequence[TargetChoice]) -> list[TargetChoice]:
    """Return the choices with one line in place of each group of presets, whose names begin with the same word."""
    names: dict[str, list[str]] = {}
    for choice in choices:
        names.setdefault(choice.group, []).append(choice.target)
    lines = []
    for choice in choices:
        members = names[choice.group] if choice.group else []
        if not members:
            lines.append(choice)
        elif choice.target == members[0]:
            start = choice.target.partition("-")[0] + "-"
            lines.append(TargetChoice("", f"{choice.group} ({len(members)} presets)", search=start))
    return lines


def find_choice(target: str) -> TargetChoice:
    """Return the list entry of a target, or a new entry without a title if the target is not in the list."""
    return next((choice for choice in list_choices() if choice.target == target), TargetChoice(target, ""))


def is_target(word: str) -> bool:
    """Return True if a word looks like an environment id, or the path of a TOML or Python file."""
    identifier = re.fullmatch(r"(?:[\w.]+:)?(?:[\w.-]+/)?[\w.-]+-v\d+|(?:[\w.]+|.+\.py):[\w./-]+", word)
    return identifier is not None or word.endswith((".toml", ".py"))


class _Target(NamedTuple):
    config: RunConfig  # if a recipe was applied, not yet validated as a whole
    named: RunConfig  # the configuration that the names of runs are relative to
    fields: Mapping[str, Field]
    declared: Mapping[str, FieldInfo]


def fields(target: str, recipe: str = "") -> Mapping[str, Field]:
    """Return the target's options by name, in the schema's order. Raises UsageError for unknown targets and recipes."""
    return _load(target, recipe).fields


def recipes_for(target: str) -> list[tuple[str, str]]:
    """Return the name and title of each recipe that applies to a target."""
    kind = _load(target, "").config.kind
    return [(recipe.name, recipe.title) for recipe in all_recipes() if recipe.kind == kind]


def preset_options(target: str) -> list[Difference]:
    """Return the options that a target sets to values other than the schema's defaults. Raises UsageError."""
    config = _load(target, "").config
    found = []
    for option, value in config.flatten().items():
        owner, name = config.owner(option)
        if option not in RECORDS and not owner.is_default(name):
            declared = type(owner).model_fields[name]
            default = declared.get_default(call_default_factory=True)
            found.append(Difference(option, format_value(default, declared), format_value(value, declared)))
    return found


def _load(target: str, recipe: str) -> _Target:
    path = _presets().get(target, Path(target))
    return _load_at(target, recipe, path.stat().st_mtime_ns if presets.is_file(path) else 0)


@lru_cache(maxsize=1)
def _presets() -> dict[str, Path]:
    """Return the paths of all presets. The search is cached because it is slow."""
    return presets.preset_files()


@lru_cache(maxsize=16)
def _load_at(target: str, recipe: str, stamp: int) -> _Target:
    """Load a target. The result is cached for each `stamp`, the modification time of the file."""
    config = presets.load_target(target)
    if recipe:
        config = apply_recipe(config, recipe)
    declared = typed_options(type(config))
    values, matters = config.flatten(), _important_options(presets.load_target(target))
    found = {name: _field(name, info, values[name], name in matters) for name, info in declared.items()}
    return _Target(config, presets.naming_base(target, config), found, declared)


def _important_options(config: RunConfig) -> set[str]:
    """Return the options in MATTERS and those that the target sets to a non-default value."""
    options = known_options(type(config))
    owned = ((option, *config.owner(option)) for option in options)
    return {option for option, owner, name in owned if option in MATTERS or not owner.is_default(name)}


def _field(name: str, info: FieldInfo, value: Any, matters: bool) -> Field:
    section, text = name.rpartition(".")[0], info.description or ""
    return Field(
        name, section, kind_of(info), text, describe(info), choices_of(info), format_value(value, info), matters
    )


def check_typed(target: str, recipe: str, typed: Mapping[str, str], runs: Path = RUNS) -> Verdict:
    """Validate the typed options, applied on top of the target and the recipe, for runs in the folder `runs`.

    `typed` maps each changed option to its text, and NAME to the name of the runs.
    """
    try:
        base = _load(target, recipe)
    except UsageError as error:
        return Verdict({}, tuple(str(error).split("\n")), (), None, 0, "")
    options = _TypedOptions(base, typed)
    configs = options.configs()
    options.check_names(configs, typed.get(NAME, ""), runs)
    varied = options.combinations[0].varied if options.combinations else {}
    differences = tuple(_differences(base, configs[0], typed, varied)) if configs else ()
    if options.problems or options.general:
        return Verdict(options.problems, tuple(options.general), differences, None, 0, "")
    words = ["ppo-unified", "train", target, *(["--recipe", recipe] if recipe else [])]
    words += _flags(base, configs[0], {option: typed[option] for option in varied})
    words += ["--name", typed[NAME]] if typed.get(NAME) else []
    words += [] if runs.absolute() == RUNS.absolute() else ["--runs", str(runs)]
    return Verdict({}, (), differences, configs[0], len(configs), shlex.join(words))


class _TypedOptions:
    """Builds the configurations from the typed options and collects all errors."""

    def __init__(self, base: _Target, typed: Mapping[str, str]) -> None:
        self.base = base
        self.typed = {option: text for option, text in typed.items() if option not in (NAME, *RECORDS)}
        self.problems: dict[str, str] = {}
        self.general: list[str] = []
        self.values: dict[tuple[str, str], Any] = {}  # (option, valid text) -> value
        self.combinations = self._combine()

    def _combine(self) -> list[Combination]:
        """Return one combination of options per run. Options with invalid values are omitted."""
        lists = {}
        for option in (name for name in self.base.declared if name in self.typed):
            try:
                lists[option] = self._read_list(option)
            except (UsageError, ValueError) as error:
                self.problems[option] = str(error) if isinstance(error, UsageError) else f"{option}: {error}"
        readable = {option: text for option, text in self.typed.items() if option not in self.problems}
        try:
            return combine(readable, lists)
        except UsageError as error:
            self.general.append(str(error))
            return []

    def _read_list(self, option: str) -> list[str]:
        """Split an option's text into valid values. Raises UsageError or ValueError if one is invalid."""
        declared = self.base.declared[option]
        texts = split_values(option, self.typed[option], declared)
        self.values |= {(option, text): read_value(text, declared) for text in texts}
        return texts

    def configs(self) -> list[RunConfig]:
        """Return the configurations of the runs, up to the first invalid one, and record missing options."""
        found: list[RunConfig] = []
        for combination in self.combinations:
            config = self._validate(self._make_tables(combination))
            if config is None:
                break
            found.append(config)
        if found and (spec := find_adapter(found[0].kind)).missing:
            try:
                load(spec.missing)(found[0])
            except UsageError as error:
                self._assign_error(error)
        return found

    def check_names(self, configs: Sequence[RunConfig], name: str, runs: Path) -> None:
        """Check that each run has a valid name and that no folder of that name exists."""
        pairs = zip(self.combinations, configs, strict=False)  # `configs` is shorter if one is invalid
        names = [_run_name(self.base, combination, config, name) for combination, config in pairs]
        try:
            for own in names:
                check_name(own)
                if name and os.path.lexists(runs / own):
                    raise UsageError(f"{runs / own} already exists; choose another name")
        except UsageError as error:
            self.problems[NAME] = str(error)

    def _make_tables(self, combination: Combination) -> dict[str, Any]:
        data = self.base.config.model_dump()
        for option, text in combination.typed.items():
            section, _, key = option.rpartition(".")
            place = data.setdefault(section, {}) if section else data
            if isinstance(place, dict):
                place[key] = self.values.get((option, text), text)
        return data

    def _validate(self, data: Mapping[str, Any]) -> RunConfig | None:
        try:
            return validate(type(self.base.config), data, WHERE)
        except UsageError as error:
            self._assign_error(error)
            return None

    def _assign_error(self, error: UsageError) -> None:
        """Assign each line of an error to the typed options that it names, otherwise to the first option it names."""
        for line in str(error).split("\n"):
            text = line.removeprefix(f"{WHERE}: ")
            named = _find_options(text, self.base.fields)
            blamed = [option for option in named if option in self.typed] or named[:1]
            leads = [option for option in blamed if text.startswith(option)]
            for option in leads or blamed:
                self.problems.setdefault(option, text)
            if not blamed:
                self.general.append(text)


def _find_options(text: str, options: Iterable[str]) -> list[str]:
    """Return the options that an error message names, in the same order."""
    found = []
    for option in options:
        tail = r"(?=\.\d| =|:)" if "." not in option else r"(?!\w)"
        if match := re.search(rf"(?<![\w.-]){re.escape(option)}{tail}", text):
            found.append((match.start(), option))
    return [option for _, option in sorted(found)]


def _differences(
    base: _Target, config: RunConfig, typed: Mapping[str, str], varied: Collection[str] = ()
) -> Iterator[Difference]:
    """Yield the options that differ from the target, with the typed text for options that vary between runs."""
    before, after = base.config.flatten(), config.flatten()
    for option in base.fields:
        if option in varied or before[option] != after[option]:
            declared = base.declared[option]
            text = typed[option] if option in varied else format_value(after[option], declared)
            yield Difference(option, format_value(before[option], declared), text)


def train_arguments(target: str, recipe: str, typed: Mapping[str, str], runs: Path = RUNS) -> list[list[str]]:
    """Return the arguments of `ppo-unified train`, one list per run. Raises UsageError if the options are invalid."""
    verdict = check_typed(target, recipe, typed, runs)
    if verdict.config is None:
        raise UsageError("\n".join([*verdict.problems.values(), *verdict.general]))
    base, name, found = _load(target, recipe), typed.get(NAME, ""), []
    options = _TypedOptions(base, typed)
    for combination, config in zip(options.combinations, options.configs(), strict=True):
        own = _run_name(base, combination, config, name) if combination.varied else name
        if not name:  # the process knows only its own options; it may derive the same name from them
            own = free_name(runs, own) if own and own != run_name(config, base.named) else ""
        words = [target, *(["--recipe", recipe] if recipe else []), *_flags(base, config)]
        found.append([*words, *(["--name", own] if own else [])])
    return found


def _run_name(base: _Target, combination: Combination, config: RunConfig, name: str) -> str:
    """Return a run's name or, if `name` is empty, the default name that `train` generates from the same options."""
    return run_name(config, base.named, combination.varied, name)


def _flags(base: _Target, config: RunConfig, varied: Mapping[str, str] = {}) -> Iterator[str]:
    """Yield flags for the changed options, in the schema's order; varied options get their list of values."""
    before, after = base.config.flatten(), config.flatten()
    for option in base.fields:
        if option in varied:
            text = re.sub(r"\s", "", varied[option])
            yield from [f"{flag_name(option)}={text}"] if text.startswith("-") else [flag_name(option), text]
        elif before[option] != after[option]:
            yield from format_flag(option, after[option], base.declared[option])


def form_input(run: Run) -> tuple[str, str, dict[str, str]]:
    """Return the target, recipe and typed options from which a form reproduces this run's configuration.

    Raises UsageError if config.toml cannot be read.
    """
    config, words = presets.from_file(run.config), _command_words(run)
    flags = {word.partition("=")[0] for word in words}
    typed = {option for option in typed_options(type(config)) if flag_name(option) in flags}
    for target in (*_possible_targets(words, config), str(run.config)):
        for recipe in dict.fromkeys((config.recipe, "")):
            try:
                base = _load(target, recipe)
            except UsageError:
                continue
            if type(base.config) is type(config):
                base = base._replace(config=presets.use_chosen_numbers(base.config, config, typed))
                return target, recipe, {d.option: d.after for d in _differences(base, config, {})}
    raise UsageError(f"{run.config}: cannot start a new run from these options, because no target matches them")


def _command_words(run: Run) -> list[str]:
    """Return the words of the command that started the run, or [] if they are unknown."""
    try:
        return shlex.split(run.command.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []


def _possible_targets(words: Sequence[str], config: RunConfig) -> Iterator[str]:
    """Yield possible targets of the run, first the one in its command, then its preset."""
    if words[1:2] == ["train"] and len(words) > 2 and (words[2] in _presets() or is_target(words[2])):
        yield words[2]
    if config.preset in _presets():
        yield config.preset
