"""What a form for a new run has to know, without its widgets: what can be picked, the options of a target, whether
what was typed makes a configuration, and the command line that says the same. Texts come in and go out as typed."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, NamedTuple, TypeAlias, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from ppo_unified.config import presets
from ppo_unified.config.recipes import RECORDS, all_recipes, apply_recipe
from ppo_unified.config.registry import find_adapter, load
from ppo_unified.config.schema import RunConfig, known_options, validate
from ppo_unified.errors import UsageError
from ppo_unified.parsing import parse_json
from ppo_unified.runs.folder import Run, check_name

WHERE = "command line"  # a mistake in a form reads as the same mistake in a command
NAME, SEED, RECIPE = "name", "seed", "recipe"  # of what is typed: the run's name, one seed or several, the recipe
RUNS = Path("runs")  # where runs go unless the command says otherwise
FIRST = "cartpole"  # the quickest proof that everything works
MOST_SEEDS = 64  # each is a process of its own
MATTERS = (  # what people set first, besides whatever a preset sets
    "seed", "total_steps", "optim.lr", "gym.num_envs", "llm.model", "llm.prompts", "llm.reward",
)  # fmt: skip

Kind: TypeAlias = Literal["bool", "int", "float", "choice", "text", "list", "table"]


class Pick(NamedTuple):
    """A line of what can be trained; without a target it stands for what the user types."""

    target: str
    title: str
    score: str = ""
    time: str = ""


class Field(NamedTuple):
    """One option of a target, as a form shows it."""

    name: str  # as flags spell it: 'ppo.clip'
    section: str  # 'ppo'; '' at the top level
    kind: Kind
    description: str
    bounds: str  # 'at least 1', or nothing
    choices: tuple[str, ...]
    default: str  # the target's value, a recipe's laid over it, as one would type it
    matters: bool


class Difference(NamedTuple):
    """An option that is not the target's."""

    option: str
    before: str
    after: str


@dataclass(frozen=True)
class Verdict:
    """What typed options come to. `config` and `command` are there only where nothing is wrong."""

    problems: Mapping[str, str]  # option -> what is wrong with it
    general: tuple[str, ...]  # what is wrong with no single option
    differences: tuple[Difference, ...]
    config: RunConfig | None
    seeds: tuple[int, ...]
    command: str

    @property
    def good(self) -> bool:
        return self.config is not None


def picks() -> list[Pick]:
    """Presets, the quickest first, then what else can be named."""
    found = [Pick(about.name, about.title, about.score, about.time) for about in presets.list_presets()]
    return [
        *sorted(found, key=lambda pick: pick.target != FIRST),
        Pick("llm", "A Hugging Face model of your choice: a folder or a hub id, your prompts and reward"),
        Pick("", "A Gymnasium environment: type its id, such as Name-v1 or module:Name-v0"),
        Pick("", "A TOML file: type its path, such as runs/a1/config.toml"),
    ]


def picked(target: str) -> Pick:
    """The line of a target, whatever it is."""
    return next((pick for pick in picks() if pick.target == target), Pick(target, ""))


def is_target(word: str) -> bool:
    """Whether a word that no preset has looks like an environment's id or is a TOML file's path."""
    identifier = re.fullmatch(r"(?:[\w.]+:)?(?:[\w.-]+/)?[\w.-]+-v\d+|[\w.]+:[\w./-]+", word)
    return identifier is not None or word.endswith(".toml")


class _Target(NamedTuple):
    config: RunConfig  # yet to be validated as a whole where a recipe is laid over it
    fields: Mapping[str, Field]
    kinds: Mapping[str, Any]  # option -> annotation


def fields(target: str, recipe: str = "") -> Mapping[str, Field]:
    """The target's options by name, in the schema's order. Raises UsageError for unknown targets and recipes."""
    return _load(target, recipe).fields


def recipes_for(target: str) -> list[tuple[str, str]]:
    """Name and title of the recipes that fit a target."""
    kind = _load(target, "").config.kind
    return [(recipe.name, recipe.title) for recipe in all_recipes() if recipe.kind == kind]


def _load(target: str, recipe: str) -> _Target:
    path = _presets().get(target, Path(target))
    return _loaded(target, recipe, path.stat().st_mtime_ns if presets.is_file(path) else 0)


@lru_cache(maxsize=1)
def _presets() -> dict[str, Path]:
    """Looking through packages takes longer than everything else here."""
    return presets.preset_files()


@lru_cache(maxsize=16)
def _loaded(target: str, recipe: str, stamp: int) -> _Target:
    """A target as of the file's time `stamp`: a form asks at every key press."""
    config = presets.load_target(target)
    if recipe:
        config = apply_recipe(config, recipe)
    described = dict(_declared(type(config)))
    values, matters = config.flatten(), _that_matter(presets.load_target(target))
    found = {name: _field(name, info, values[name], name in matters) for name, info in described.items()}
    return _Target(config, found, {name: info.annotation for name, info in described.items()})


def _declared(model: type[RunConfig]) -> Iterator[tuple[str, FieldInfo]]:
    for option, section in known_options(model).items():
        if option not in RECORDS:
            yield option, section.model_fields[option.rpartition(".")[2]]


def _that_matter(config: RunConfig) -> set[str]:
    """The usual ones, and those that the target sets to something else than the schema does."""
    options = known_options(type(config))
    owned = ((option, *config.owner(option)) for option in options)
    return {option for option, owner, name in owned if option in MATTERS or not owner.is_default(name)}


def _field(name: str, info: FieldInfo, value: Any, matters: bool) -> Field:
    kind, choices = _kind(info.annotation)
    section = name.rpartition(".")[0]
    return Field(name, section, kind, info.description or "", _bounds(info), choices, spelled(value), matters)


def _kind(annotation: Any) -> tuple[Kind, tuple[str, ...]]:
    origin = get_origin(annotation)
    if origin is Literal:
        return "choice", tuple(map(str, get_args(annotation)))
    if origin in (list, dict):
        return ("list" if origin is list else "table"), ()
    names: dict[Any, Kind] = {bool: "bool", int: "int", float: "float"}
    return names.get(_present(annotation), "text"), ()


def _present(annotation: Any) -> Any:
    """`float` of `float | None`."""
    if get_origin(annotation) in (Union, UnionType):
        return next(part for part in get_args(annotation) if part is not NoneType)
    return annotation


def _bounds(info: FieldInfo) -> str:
    words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    said = [
        f"{word} {getattr(mark, name)}" for name, word in words.items() for mark in info.metadata if hasattr(mark, name)
    ]
    if NoneType in get_args(info.annotation):
        said.append("may be left empty")
    return ", ".join(said)


def spelled(value: Any) -> str:
    """A value as one would type it into a field."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return shlex.join(map(str, value))
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else str(value)


def _read(text: str, annotation: Any) -> Any:
    """The value that a text spells; the text itself where it spells none, for the schema to refuse.

    Raises ValueError with a reason where the text is no list or table at all.
    """
    origin = get_origin(annotation)
    if origin is list:
        (inner,) = get_args(annotation)
        elements = [_read(word, inner) for word in shlex.split(text)]
        if any(isinstance(element, str) and element.startswith("-") for element in elements):
            raise ValueError("an element cannot begin with '-'")
        return elements
    if origin is dict:
        return _table(text)
    if annotation is not _present(annotation) and not text.strip():
        return None
    readers = {bool: _switch, int: _whole, float: _real}
    return readers.get(_present(annotation), str)(text)


def _table(text: str) -> Any:
    try:
        return parse_json(text)
    except ValueError as error:
        raise ValueError(f"is not JSON: {error}") from None


def _switch(text: str) -> bool | str:
    return {"true": True, "false": False}.get(text.strip().lower(), text)


def _whole(text: str) -> int | str:
    """1e6 is a whole number too."""
    try:
        return int(text)
    except ValueError:
        number = _real(text)
        return int(number) if isinstance(number, float) and number.is_integer() else text


def _real(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def parse_seeds(text: str) -> tuple[int, ...]:
    """Seeds of '3', '1-5' or '1,2,7-9', each once. Raises UsageError."""
    seeds: dict[int, None] = {}
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,10})\s*(?:-\s*(\d{1,10})\s*)?", part)
        if match is None:
            raise UsageError(f"{SEED} = {text!r}: one seed, or several such as 1-5 or 1,2,7")
        first, last = int(match[1]), int(match[2] or match[1])
        if last - first >= MOST_SEEDS or len(seeds) + last - first >= MOST_SEEDS:
            raise UsageError(f"{SEED} = {text!r}: more than {MOST_SEEDS} runs at once")
        if last < first:
            raise UsageError(f"{SEED} = {text!r}: {first} is above {last}")
        seeds.update(dict.fromkeys(range(first, last + 1)))
    return tuple(seeds)


def judge(target: str, recipe: str, typed: Mapping[str, str], runs: Path = RUNS) -> Verdict:
    """Whether the options that were typed, over the target's and the recipe's, make a run in the folder `runs`.

    `typed`: option -> text, for those that were changed; besides options the run's NAME, and SEED may be several.
    """
    try:
        base = _load(target, recipe)
    except UsageError as error:
        return Verdict({}, tuple(str(error).split("\n")), (), None, (), "")
    judgement = _Judgement(base, typed)
    config, seeds = judgement.config(), judgement.seeds
    judgement.name(typed.get(NAME, ""), runs)
    differences = () if config is None else tuple(_differences(base, config))
    if judgement.problems or judgement.general or config is None:
        return Verdict(judgement.problems, tuple(judgement.general), differences, None, seeds, "")
    begun = [target, *(["--recipe", recipe] if recipe else [])]
    command = _command(begun, base, config, seeds, typed.get(NAME, ""), runs)
    return Verdict({}, (), differences, config, seeds, command)


class _Judgement:
    """One look at what was typed: problems are gathered on the way to the configuration."""

    def __init__(self, base: _Target, typed: Mapping[str, str]) -> None:
        self.base = base
        self.typed = {option: text for option, text in typed.items() if option not in (NAME, *RECORDS)}
        self.problems: dict[str, str] = {}
        self.general: list[str] = []
        self.seeds = self._seeds()

    def _seeds(self) -> tuple[int, ...]:
        text = self.typed.get(SEED, self.base.fields[SEED].default)
        if not re.search(r"\d\s*[-,]", text):  # one seed is an option like any other
            return ()
        try:
            return parse_seeds(text)
        except UsageError as error:
            self.problems[SEED] = str(error)
            return ()

    def config(self) -> RunConfig | None:
        """The configuration, where there is one, of the first seed; what is missing in it is a problem too."""
        data = self.base.config.model_dump()
        for option, text in self.typed.items():
            self._lay(data, option, text)
        config = self._validated(data)
        if self.seeds and config is not None:
            self._validated(data | {SEED: max(self.seeds)})
        if config is not None and (spec := find_adapter(config.kind)).missing:
            try:
                load(spec.missing)(config)
            except UsageError as error:
                self._blame(error)
        return config

    def name(self, name: str, runs: Path) -> None:
        """A run's name is a new folder's."""
        try:
            for own in run_names(name, self.seeds) if name else ():
                check_name(own)
                if os.path.lexists(runs / own):
                    raise UsageError(f"{runs / own} exists already")
        except UsageError as error:
            self.problems[NAME] = str(error)

    def _lay(self, data: dict[str, Any], option: str, text: str) -> None:
        section, _, key = option.rpartition(".")
        value: Any = text
        if option == SEED and (self.seeds or SEED in self.problems):
            value = self.seeds[0] if self.seeds else self.base.config.seed
        elif option in self.base.kinds:
            try:
                value = _read(text, self.base.kinds[option])
            except ValueError as error:
                self.problems[option] = f"{option} = {text!r}: {error}"
                return
        place = data.setdefault(section, {}) if section else data
        if isinstance(place, dict):
            place[key] = value

    def _validated(self, data: Mapping[str, Any]) -> RunConfig | None:
        try:
            return validate(type(self.base.config), data, WHERE)
        except UsageError as error:
            self._blame(error)
            return None

    def _blame(self, error: UsageError) -> None:
        """Each line of an error goes to the options that were typed among those it names, else to the first one."""
        for line in str(error).split("\n"):
            text = line.removeprefix(f"{WHERE}: ")
            named = _named(text, self.base.fields)
            blamed = [option for option in named if option in self.typed] or named[:1]
            leads = [option for option in blamed if text.startswith(option)]
            for option in leads or blamed:
                self.problems.setdefault(option, text)
            if not blamed:
                self.general.append(text)


def _named(text: str, options: Iterable[str]) -> list[str]:
    """The options that a complaint is about, in the order in which it names them."""
    found = []
    for option in options:
        tail = r"(?=\.\d| =|:)" if "." not in option else r"(?!\w)"
        if match := re.search(rf"(?<![\w.-]){re.escape(option)}{tail}", text):
            found.append((match.start(), option))
    return [option for _, option in sorted(found)]


def _differences(base: _Target, config: RunConfig) -> Iterator[Difference]:
    before, after = base.config.flatten(), config.flatten()
    for option in base.fields:
        if before[option] != after[option]:
            yield Difference(option, spelled(before[option]), spelled(after[option]))


def arguments(
    target: str, recipe: str, typed: Mapping[str, str], seeds: Sequence[int] = (), runs: Path = RUNS
) -> list[list[str]]:
    """What follows `ppo-unified train`, one list for each seed: of `seeds`, else of what was typed as seed.

    Raises UsageError where the options make no run.
    """
    verdict = judge(target, recipe, typed, runs)
    if verdict.config is None:
        raise UsageError("\n".join([*verdict.problems.values(), *verdict.general]))
    base, config, name = _load(target, recipe), verdict.config, typed.get(NAME, "")
    chosen = tuple(seeds) or verdict.seeds or (config.seed,)
    begun = [target, *(["--recipe", recipe] if recipe else [])]
    return [
        [*begun, *_flags(base, config.model_copy(update={SEED: seed})), *(["--name", own] if own else [])]
        for seed, own in zip(chosen, run_names(name, chosen), strict=True)
    ]


def run_names(name: str, seeds: Sequence[int]) -> list[str]:
    """The folders' names of runs over some seeds; no name is left to `train`."""
    return [f"{name}-s{seed}" if name else "" for seed in seeds] if len(seeds) > 1 else [name]


def _flags(base: _Target, config: RunConfig) -> Iterator[str]:
    """Flags for what differs, in the schema's order."""
    before, after = base.config.flatten(), config.flatten()
    for option in base.fields:
        if before[option] != after[option]:
            yield from _flag(option, after[option])


def _flag(option: str, value: Any) -> list[str]:
    name = option.replace("_", "-")
    if isinstance(value, bool):
        section, _, key = name.rpartition(".")
        return [f"--{name}" if value else f"--{section + '.' if section else ''}no-{key}"]
    if isinstance(value, list):
        return [f"--{name}", *map(str, value)]
    text = "None" if value is None else spelled(value)
    return [f"--{name}={text}"] if text.startswith("-") else [f"--{name}", text]


def _command(
    begun: Sequence[str], base: _Target, config: RunConfig, seeds: Sequence[int], name: str, runs: Path
) -> str:
    """The command line, or a shell's loop over several seeds."""
    place = [] if runs.absolute() == RUNS.absolute() else ["--runs", str(runs)]
    words = ["ppo-unified", "train", *begun]
    if len(seeds) < 2:
        return shlex.join([*words, *_flags(base, config), *(["--name", name] if name else []), *place])
    flags = _flags(base, config.model_copy(update={SEED: base.config.seed}))
    named = f' --name {shlex.quote(name)}-s"$seed"' if name else ""
    each = shlex.join([*words, *flags, *place])
    return f'for seed in {" ".join(map(str, seeds))}; do {each} --seed "$seed"{named}; done'


def arguments_of(run: Run) -> tuple[str, str, dict[str, str]]:
    """(target, recipe, typed) with which a form makes this run's configuration again.

    Raises UsageError where its config.toml cannot be read.
    """
    config = presets.from_file(run.config)
    for target in (*_begun_from(run, config), str(run.config)):
        for recipe in dict.fromkeys((config.recipe, "")):
            try:
                base = _load(target, recipe)
            except UsageError:
                continue
            if type(base.config) is type(config):
                return target, recipe, {d.option: d.after for d in _differences(base, config)}
    raise UsageError(f"{run.config}: cannot be read as the options of a new run")


def _begun_from(run: Run, config: RunConfig) -> Iterator[str]:
    """What the run may have been begun from: the word in its command, its preset."""
    try:
        words = shlex.split(run.command.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        words = []
    if words[1:2] == ["train"] and len(words) > 2 and (words[2] in _presets() or is_target(words[2])):
        yield words[2]
    if config.preset in _presets():
        yield config.preset
