"""The registry of adapters. Adapter modules are imported only when they are needed."""

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
        check="envs.gym.make:check",
        target="envs.gym.options:from_target",
        presets="envs.presets",
        export="envs.gym.export:export",
        report="envs.gym.vector:report",
        check_init="envs.gym.initialization:check_init",
        init="envs.gym.initialization:load_statistics",
        explain="envs.gym.explain:explain",
        explain_mismatch="envs.gym.explain:explain_mismatch",
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
        check_init="envs.llm.initialization:check_init",
        init="envs.llm.initialization:load_statistics",
        export="envs.llm.export:export",
        export_merged="envs.llm.export:export_merged",
        report="envs.llm.evaluation:report",
        explain="envs.llm.explain:explain",
        chat="envs.llm.play:chat",
        episodes="responses",
        prefers_gpu=True,
    ),
}


def all_adapters() -> dict[str, AdapterSpec]:
    """Return the built-in adapters and those of installed packages, by kind.

    Raises UsageError if an entry point cannot be loaded.
    """
    found = dict(BUILT_IN)
    for point in _entry_points(tuple(sys.path)):
        try:
            spec = point.load()
        except Exception as error:
            raise UsageError(
                f"entry point {point.name} = {point.value!r} in {ENTRY_POINT_GROUP}: cannot load it ({error})"
            ) from error
        if not isinstance(spec, AdapterSpec):
            raise UsageError(
                f"entry point {point.name} = {point.value!r}: expected an AdapterSpec, got {type(spec).__name__}"
            )
        found[point.name] = spec
    return found


@cache
def _entry_points(_path: tuple[str, ...]) -> tuple[EntryPoint, ...]:
    """Return the adapter entry points of all packages on `sys.path`. They are cached because the search takes 10 ms."""
    return tuple(entry_points(group=ENTRY_POINT_GROUP))


def find_adapter(kind: str, where: str = "") -> AdapterSpec:
    """Return an adapter by its kind. Raises UsageError for an unknown kind and suggests the most similar one.

    `where` says where the kind was specified, for example in which file. Error messages start with it.
    """
    if kind in BUILT_IN:
        return BUILT_IN[kind]
    found = all_adapters()
    if kind not in found:
        at, installed = f"{where}: kind: " if where else "", ", ".join(found)
        raise UsageError(f"{at}unknown adapter {kind!r}{did_you_mean(kind, found)} (installed: {installed})")
    return found[kind]


def toml_files(part: Literal["presets", "recipes"]) -> dict[str, Path]:
    """Return the files of all adapters' presets or recipes by name, sorted by name."""
    packages = {package: None for spec in all_adapters().values() if (package := getattr(spec, part))}
    paths = (Path(str(f)) for package in packages for f in files(package).iterdir() if f.name.endswith(".toml"))
    return dict(sorted((path.stem, path) for path in paths))


def config_model(kind: str, where: str = "") -> type[RunConfig]:
    """Return an adapter's configuration class. `where` has the same meaning as in `find_adapter`."""
    model: type[RunConfig] = load(find_adapter(kind, where).config)
    return model


def load(reference: str) -> Any:
    """Import and return the object named by a reference of the form 'module:attribute'."""
    module, _, attribute = reference.partition(":")
    return getattr(import_module(module), attribute)
