"""The table of what can be trained. Everything is named by strings and imported only when a run needs it."""

from __future__ import annotations

import sys
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from ppo_unified.config.schema import RunConfig
from ppo_unified.config.spec import AdapterSpec
from ppo_unified.errors import UsageError, did_you_mean

ENTRY_POINT_GROUP = "ppo_unified.adapters"


BUILT_IN = {
    "gym": AdapterSpec(
        config="envs.gym.options:GymConfig",
        build="envs.gym.vector:build",
        check="envs.gym.options:check",
        target="envs.gym.options:from_target",
        presets="envs.presets",
        export="envs.gym.export:export",
        explain="envs.gym.explain:explain",
        play="envs.gym.play:play",
        score_tag="eval/return",
    ),
    "llm": AdapterSpec(
        config="envs.llm.options:LLMConfig",
        build="envs.llm.adapter:build",
        missing="envs.llm.options:check_required",
        check="envs.llm.checks:check",
        target="envs.llm.options:from_target",
        presets="envs.presets",
        recipes="envs.recipes",
        export="envs.llm.export:export",
        export_merged="envs.llm.export:export_merged",
        report="envs.llm.evaluation:report",
        explain="envs.llm.explain:explain",
        chat="envs.llm.play:chat",
        episodes="prompts",
        prefers_gpu=True,
    ),
}


def all_adapters() -> dict[str, AdapterSpec]:
    """Built-in adapters and those of installed packages, by kind. Raises UsageError where an entry point is broken."""
    found = dict(BUILT_IN)
    for point in _entry_points(tuple(sys.path)):
        try:
            spec = point.load()
        except Exception as error:
            raise UsageError(
                f"entry point {point.name} = {point.value!r} in {ENTRY_POINT_GROUP} cannot be loaded: {error}"
            ) from error
        if not isinstance(spec, AdapterSpec):
            raise UsageError(
                f"entry point {point.name} = {point.value!r} must be an AdapterSpec, not {type(spec).__name__}"
            )
        found[point.name] = spec
    return found


@cache
def _entry_points(_path: tuple[str, ...]) -> tuple[EntryPoint, ...]:
    """The entry points of packages on this `sys.path`, as they are at first: looking through them takes 10 ms."""
    return tuple(entry_points(group=ENTRY_POINT_GROUP))


def find_adapter(kind: str) -> AdapterSpec:
    """The adapter of that name. Raises UsageError naming the nearest one."""
    if kind in BUILT_IN:
        return BUILT_IN[kind]
    found = all_adapters()
    if kind not in found:
        raise UsageError(f"there is no adapter {kind!r}{did_you_mean(kind, found)}; known: {', '.join(found)}")
    return found[kind]


def toml_files(part: Literal["presets", "recipes"]) -> dict[str, Path]:
    """Name and path of every TOML file in the packages that adapters name for `part`, sorted by name."""
    packages = {package: None for spec in all_adapters().values() if (package := getattr(spec, part))}
    paths = (Path(str(f)) for package in packages for f in files(package).iterdir() if f.name.endswith(".toml"))
    return dict(sorted((path.stem, path) for path in paths))


def config_model(kind: str) -> type[RunConfig]:
    model: type[RunConfig] = load(find_adapter(kind).config)
    return model


def load(reference: str) -> Any:
    """The object that 'module:attribute' names."""
    module, _, attribute = reference.partition(":")
    return getattr(import_module(module), attribute)
