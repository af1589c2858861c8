"""What can be trained: presets (a task, tuned options, the score and time to expect), files, environment ids."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from ppo_unified.config.recipes import apply_recipe
from ppo_unified.config.registry import all_adapters, config_model, find_adapter, load, toml_files
from ppo_unified.config.schema import RunConfig, overlay, read_toml, validate
from ppo_unified.errors import UsageError, did_you_mean


class PresetSummary(NamedTuple):
    """A preset's line for people."""

    name: str
    kind: str
    title: str
    score: str  # what to expect
    time: str


def preset_files() -> dict[str, Path]:
    """Every preset's name and file, of all adapters."""
    return toml_files("presets")


def list_presets() -> Iterator[PresetSummary]:
    for name, path in preset_files().items():
        table = read_toml(path)
        about = table.get("about", {})
        yield PresetSummary(
            name, table.get("kind", ""), about.get("title", ""), about.get("score", ""), about.get("time", "")
        )


def is_file(path: str | Path) -> bool:
    """Whether there is such a file; False where the file system refuses to look, as for a name too long for it."""
    try:
        return Path(path).is_file()
    except OSError:
        return False


def load_target(target: str) -> RunConfig:
    """The configuration of a preset, a TOML file, or what an adapter recognises, such as a Gymnasium id; its `preset`
    says what it began as, which names its runs. Raises UsageError with the nearest name."""
    presets = preset_files()
    if target in presets:
        return _set_preset_name(target, from_file(presets[target]))
    if target.endswith(".toml") or is_file(target):
        path = Path(target)
        config = from_file(path)
        return _set_preset_name(
            config.preset or (path.resolve().parent.name if path.name == "config.toml" else path.stem), config
        )
    specs = all_adapters()
    for kind, spec in sorted(specs.items(), key=lambda item: item[0] != target):  # a kind's own name needs no other's
        table = load(spec.target)(target) if spec.target else None
        if table is not None:
            return _set_preset_name(target.split(":")[-1], from_table({"kind": kind, **table}, target))
    raise UsageError(
        f"there is no preset, file or environment {target!r}{did_you_mean(target, presets)} (list: ppo-unified envs)"
    )


def _set_preset_name(text: str, config: RunConfig) -> RunConfig:
    """`config` as begun from `text`, what a run's name can't hold replaced."""
    return config.model_copy(update={"preset": re.sub(r"[^\w.+=@-]+", "-", text).strip("-. ") or "run"})


def from_file(path: Path) -> RunConfig:
    """The configuration in a TOML file: a preset, a run's config.toml, or the user's own."""
    return from_table(read_toml(path), str(path))


def from_table(table: Mapping[str, Any], where: str) -> RunConfig:
    options = {key: value for key, value in table.items() if key != "about"}
    kind = options.get("kind", "")
    if not isinstance(kind, str) or not kind:
        raise UsageError(f'{where}: says no adapter; add a line such as: kind = "gym"')
    return validate(config_model(kind), options, where)


C = TypeVar("C", bound=RunConfig)


def apply_changes(config: C, changes: Mapping[str, Any], where: str) -> C:
    """`config` with `changes` (nested tables) laid over it and validated again."""
    return validate(type(config), overlay(config.model_dump(), changes), where)


def load_preset(name: str, *, recipe: str = "", **changes: Any) -> RunConfig:
    """A preset, TOML file or environment id as a configuration: `load_preset("cartpole", seed=1, ppo={"clip": 0.1})`;
    with a recipe's options between the preset's and the changes.

    Raises UsageError for unknown names, unknown options and values out of bounds.
    """
    config = load_target(name)
    return apply_changes(apply_recipe(config, recipe) if recipe else config, changes, f"load_preset({name!r})")


def check(config: RunConfig) -> None:
    """What the adapter can refuse before a run folder exists. Raises UsageError."""
    spec = find_adapter(config.kind)
    for reference in (spec.missing, spec.check):
        if reference:
            load(reference)(config)
