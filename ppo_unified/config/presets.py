"""Load the configuration of a target: a preset, a TOML file, or a word that an adapter recognizes."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from ppo_unified.config.recipes import apply_recipe
from ppo_unified.config.registry import all_adapters, config_model, find_adapter, load, skip_broken, toml_files
from ppo_unified.config.schema import RECORDS, RunConfig, overlay, read_toml, validate
from ppo_unified.config.spec import Choice
from ppo_unified.config.values import Auto
from ppo_unified.errors import UsageError, did_you_mean
from ppo_unified.text import print_err

RUN_CONFIG = "config.toml"  # the name of the options in a run folder; their `preset` names the run's target
ABOUT = ("title", "score", "time", "group")  # the keys of [about] that lists of presets show


class PresetSummary(NamedTuple):
    """A preset's entry in a list of presets."""

    name: str
    kind: str
    title: str
    score: str  # the expected score
    time: str  # the expected duration
    group: str  # description of the presets that belong together, or ""


class PresetDifference(NamedTuple):
    """An option whose value differs from the preset's."""

    option: str  # the full name, such as 'ppo.clip'
    preset_value: Any
    value: Any


def preset_files() -> dict[str, Path]:
    """Return the files of all adapters' presets, by preset name."""
    return toml_files("presets")


def list_presets() -> Iterator[PresetSummary]:
    """Yield all presets, those of a group last. An invalid file of an installed package is skipped with a warning."""
    grouped = []
    for name, path in preset_files().items():
        try:
            table = read_toml(path)
        except UsageError as error:
            print_err(f"warning: {error}")
            continue
        about = table.get("about")
        texts = about if isinstance(about, dict) else {}
        values = (table.get("kind", ""), *(texts.get(key, "") for key in ABOUT))
        summary = PresetSummary(name, *map(str, values))
        if summary.group:
            grouped.append(summary)
        else:
            yield summary
    yield from sorted(grouped, key=lambda summary: summary.group)


def is_file(path: str | Path) -> bool:
    """Return True if `path` is a file. A name that is too long for the file system is not an error."""
    try:
        return Path(path).is_file()
    except OSError:
        return False


def load_target(target: str) -> RunConfig:
    """Return the configuration of a preset, a TOML file, or a word that an adapter recognizes, such as a Gymnasium id.

    The configuration's `preset` is set to the target's name, which becomes part of run names. Raises UsageError for an
    unknown target.
    """
    presets = preset_files()
    if target in presets:
        return _set_preset_name(target, from_file(presets[target]))
    if target.endswith(".toml") or (is_file(target) and not target.endswith((".py", ".ipynb"))):
        path = Path(target)
        config = from_file(path)
        if path.name != RUN_CONFIG:
            return _set_preset_name(path.stem, config)
        return _set_preset_name(config.preset or path.resolve().parent.name, config)
    specs = all_adapters()
    # try the adapter with the target's name first, so that the other adapters' modules are not imported
    for kind, spec in sorted(specs.items(), key=lambda item: item[0] != target):
        table = None
        with skip_broken(kind, f"decide whether {target!r} is a target"):
            table = load(spec.target)(target) if spec.target else None
        if table is not None:
            return _set_preset_name(_short_name(target), from_table({"kind": kind, **table}, target))
    raise UsageError(_explain_unknown(target, presets))


def _explain_unknown(target: str, presets: Mapping[str, Path]) -> str:
    """Return the error message for an unknown target. Suggest a file or a preset."""
    if target.endswith(".ipynb"):
        return f"{target}: expected a Python file, got a notebook; copy the environment's class to a file FILE.py"
    if Path(target, "config.toml").is_file():
        return f"{target} is a run folder; to start a new run with its options, use {Path(target, 'config.toml')}"
    files = [f"{target}{suffix}" for suffix in (".py", ".toml") if is_file(f"{target}{suffix}")]
    if not files and Path(target).is_dir():
        files = sorted(str(path) for suffix in ("py", "toml") for path in Path(target).glob(f"[!_]*.{suffix}"))
        example = f", such as {files[0]}" if files else ""
        return f"{target} is a folder; expected a preset, an environment id, or a TOML or Python file{example}"
    similar = f"; did you mean {files[0]!r}?" if files else did_you_mean(target, presets)
    return f"no preset, file or environment is named {target!r}{similar} (list: ppo-unified envs)"


def _short_name(word: str) -> str:
    """Return the part of a target or of an option that names runs: 'module:Env-v0' -> 'Env-v0', 'dir/my.py' -> 'my'."""
    return Path(word).stem if word.endswith(".py") else word.split(":")[-1]


def _set_preset_name(text: str, config: RunConfig) -> RunConfig:
    return config.model_copy(update={"preset": _preset_name(text)})


def _preset_name(text: str) -> str:
    """Return `text` with a hyphen in place of characters that are invalid in run names."""
    return re.sub(r"[^\w.+=@-]+", "-", text).strip("-. ") or "run"


def from_file(path: Path) -> RunConfig:
    """Return the configuration in a TOML file: a preset, a run's config.toml, or a user's file."""
    return from_table(read_toml(path), str(path), stored=is_file(path.with_name("run.json")))


def from_table(table: Mapping[str, Any], where: str, stored: bool = False) -> RunConfig:
    """Build a configuration from a table of options.

    `where` says where the table comes from, for example from which file. Error messages start with it. If `stored` is
    true, the table is from a run folder, so options that it lacks keep the behavior of the version that wrote it.
    """
    options = {key: value for key, value in table.items() if key != "about"}
    kind = options.get("kind", "")
    if not isinstance(kind, str) or not kind:
        found = f"kind: expected the name of an adapter, got {kind!r}" if kind else "missing option 'kind'"
        raise UsageError(f'{where}: {found}; name the adapter with a line such as: kind = "gym"')
    model = config_model(kind, where)
    if stored:
        return validate(model.model_of_stored(options), model.convert_stored(options), where)
    return validate(model, options, where)


C = TypeVar("C", bound=RunConfig)


def apply_changes(config: C, changes: Mapping[str, Any], where: str) -> C:
    """Apply `changes` (nested tables) on top of `config` and validate the result. Error messages start with `where`."""
    return validate(type(config), overlay(config.model_dump(), changes), where)


def load_preset(name: str, *, recipe: str = "", **changes: Any) -> RunConfig:
    """Return the configuration of a preset, TOML file or environment id, with the given changes.

    Example: `load_preset("cartpole", seed=1, ppo={"clip": 0.1})`. A recipe is applied on top of the preset, and the
    changes are applied last. Raises UsageError for unknown names, unknown options and invalid values.
    """
    config = load_target(name)
    return apply_changes(apply_recipe(config, recipe) if recipe else config, changes, f"load_preset({name!r})")


def reload_target(config: RunConfig) -> RunConfig:
    """Return the configuration of the target and recipe that `config` was made from.

    The target is known if it is a preset, an environment, or the value of an option such as `gym.env_id`. Otherwise,
    for example if it is a TOML file, return `config` itself.
    """
    return _load_base(config, [*_recorded_words(config), config.preset]) or config


def _recorded_words(config: RunConfig) -> list[str]:
    """Return the words in `config` that may be its target. None of them requires the import of an environment."""
    if config.preset in preset_files():
        return [config.preset]
    return [text for option, text in config.flatten().items() if isinstance(text, str) and option != "preset"]


def _load_base(config: RunConfig, words: Iterable[str]) -> RunConfig | None:
    for word in words:
        if _preset_name(_short_name(word)) == config.preset:
            with suppress(UsageError):
                base = load_target(word)
                return apply_recipe(base, config.recipe) if config.recipe else base
    return None


def preset_differences(config: RunConfig) -> list[PresetDifference] | None:
    """Return the options whose values differ from those of the preset and recipe of `config`, in the schema's order.

    Options that are 'auto' in the preset are left out, because the run contains the numbers chosen for them. The preset
    may also be an environment id. Return None if the options of the preset or the recipe are unknown, for example if
    the run's target was a TOML file. `explain_no_differences` returns the reason.
    """
    base = _load_base(config, _recorded_words(config))
    if type(base) is not type(config):
        return None
    before = use_chosen_numbers(base, config).flatten()
    return [
        PresetDifference(option, before[option], value)
        for option, value in config.flatten().items()
        if option not in RECORDS and value != before[option]
    ]


def explain_no_differences(config: RunConfig) -> str:
    """Return why `preset_differences` returns None for `config`."""
    return f"the options of {config.origin} are unknown" if config.preset else "this run has no preset"


def naming_base(target: str, config: RunConfig) -> RunConfig:
    """Return the configuration relative to which the runs of a target are named.

    This is `config`, which contains the target's options and those of a recipe. The exception is the config.toml of a
    run, whose names are relative to the target of that run.
    """
    if Path(target).name != RUN_CONFIG:
        return config
    return use_chosen_numbers(reload_target(config), config)


def use_chosen_numbers(base: C, config: RunConfig, typed: Container[str] = ()) -> C:
    """Return `base` with the numbers of a run's `config` in place of each 'auto', so that they do not count as changes.

    The options `typed` are known to be chosen by the user, and remain 'auto'.
    """
    values = config.flatten()
    autos = [option for option, value in base.flatten().items() if isinstance(value, Auto) and option not in typed]
    return base.replace({option: values[option] for option in autos})


def complete(config: C) -> tuple[C, str]:
    """Check a configuration, and return it with a number in place of each 'auto' that its adapter chooses.

    The second result is a note that lists these numbers, or "" if there are none. Call this before a run folder is
    created. Raises UsageError if the configuration is invalid.
    """
    spec, note = find_adapter(config.kind), ""
    if spec.missing:
        load(spec.missing)(config)
    choice: Choice | None = load(spec.choose)(config) if spec.choose else None
    if choice is not None and choice.values:
        found = ", ".join(f"{option} = {value}" for option, value in choice.values.items())
        config = validate(type(config), config.replace(choice.values).model_dump(), f"with {found}")
        note = f"chosen for {choice.reason}: {found}; to change one, set it"
    if spec.check:
        load(spec.check)(config)
    return config, note
