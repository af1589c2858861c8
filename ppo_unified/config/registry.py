"""The registry of adapters. Adapter modules are imported only when they are needed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from ppo_unified.config.schema import RunConfig
from ppo_unified.config.spec import AdapterSpec
from ppo_unified.errors import UsageError, did_you_mean
from ppo_unified.text import print_err

if TYPE_CHECKING:
    import torch

ENTRY_POINT_GROUP = "ppo_unified.adapters"


BUILT_IN = {
    "gym": AdapterSpec(
        config="envs.gym.options:GymConfig",
        build="envs.gym.vector:build",
        build_text="creating the environments",
        check="envs.gym.make:check",
        target="envs.gym.options:from_target",
        presets="envs.presets",
        export="envs.gym.export:export",
        check_init="envs.gym.initialization:check_init",
        init="envs.gym.initialization:load_statistics",
        explain="envs.gym.explain:explain",
        alternatives="envs.gym.vector:alternatives",
        record="envs.gym.vector:record",
        replay="envs.gym.replay:replay",
        code="envs.gym.options:named_code",
        explain_mismatch="envs.gym.explain:explain_mismatch",
        play="envs.gym.play:play",
        score_tag="eval/return",
    ),
    "llm": AdapterSpec(
        config="envs.llm.options:LLMConfig",
        build="envs.llm.adapter:build",
        build_text="loading the model",
        missing="envs.llm.options:check_required",
        check="envs.llm.checks:check",
        choose="envs.llm.defaults:choose",
        target="envs.llm.options:from_target",
        presets="envs.presets",
        recipes="envs.recipes",
        check_init="envs.llm.initialization:check_init",
        init="envs.llm.initialization:load_statistics",
        export="envs.llm.export:export",
        export_merged="envs.llm.export:export_merged",
        estimate="envs.llm.estimate:estimate",
        report="envs.llm.evaluation:report",
        explain="envs.llm.explain:explain",
        alternatives="envs.llm.explain:alternatives",
        action_texts="envs.llm.explain:action_texts",
        chat="envs.llm.play:chat",
        episodes="responses",
        prefers_gpu=True,
    ),
}


class _Installed(NamedTuple):
    """The adapters of installed packages, by kind."""

    specs: dict[str, AdapterSpec]
    errors: dict[str, str]  # adapters that cannot be loaded
    packages: dict[str, str]


def all_adapters() -> dict[str, AdapterSpec]:
    """Return the built-in adapters and those of installed packages, by kind.

    An adapter that cannot be loaded is left out. A warning that names its package is printed once.
    """
    installed = _load_installed(tuple(sys.path))
    for error in installed.errors.values():
        _warn_once(error)
    return BUILT_IN | installed.specs


@cache
def _load_installed(_path: tuple[str, ...]) -> _Installed:
    """Load the adapter entry points of all packages on `sys.path`. They are cached because the search takes 10 ms."""
    found = _Installed({}, {}, {})
    for point in entry_points(group=ENTRY_POINT_GROUP):
        found.packages[point.name] = point.dist.name if point.dist else "unknown"
        try:
            spec = point.load()
            if not isinstance(spec, AdapterSpec):
                raise TypeError(f"expected an AdapterSpec, got {type(spec).__name__}")
            found.specs[point.name] = spec
        except (Exception, SystemExit) as error:
            found.errors[point.name] = _explain_broken(found, point.name, f"load {point.value!r}", error)
    return found


def _explain_broken(installed: _Installed, kind: str, what: str, error: BaseException) -> str:
    package = installed.packages.get(kind, "unknown")
    why = f"{type(error).__name__}: {error}"
    return f"adapter {kind!r} of the package {package!r}: cannot {what} ({why}); update or uninstall the package"


@contextmanager
def skip_broken(kind: str, what: str) -> Iterator[None]:
    """If the code of an installed adapter raises an exception in the block, print one warning and ignore the adapter.

    `what` completes the message "cannot ...". Exceptions of built-in adapters, and UsageError, are not caught.
    """
    try:
        yield
    except (Exception, SystemExit) as error:
        if kind in BUILT_IN or isinstance(error, UsageError):
            raise
        _warn_once(_explain_broken(_load_installed(tuple(sys.path)), kind, what, error))


@cache
def _warn_once(text: str) -> None:
    print_err(f"warning: {text}")


def find_adapter(kind: str, where: str = "") -> AdapterSpec:
    """Return an adapter by its kind. Raises UsageError for an unknown kind and suggests the most similar one.

    `where` says where the kind was specified, for example in which file. Error messages start with it.
    """
    if kind in BUILT_IN:
        return BUILT_IN[kind]
    installed = _load_installed(tuple(sys.path))
    found = BUILT_IN | installed.specs
    if kind in installed.errors:
        raise UsageError(installed.errors[kind])
    if kind not in found:
        at, known = f"{where}: kind: " if where else "", ", ".join(found)
        raise UsageError(f"{at}unknown adapter {kind!r}{did_you_mean(kind, found)} (installed: {known})")
    return found[kind]


def toml_files(part: Literal["presets", "recipes"]) -> dict[str, Path]:
    """Return the files of all adapters' presets or recipes by name, sorted by name."""
    packages = {package: kind for kind, spec in all_adapters().items() if (package := getattr(spec, part))}
    paths: list[Path] = []
    for package, kind in packages.items():
        with skip_broken(kind, f"find its {part} in the package {package!r}"):
            paths += [Path(str(file)) for file in files(package).iterdir() if file.name.endswith(".toml")]
    return dict(sorted((path.stem, path) for path in paths))


def config_model(kind: str, where: str = "") -> type[RunConfig]:
    """Return an adapter's configuration class. `where` has the same meaning as in `find_adapter`."""
    model: type[RunConfig] = load(find_adapter(kind, where).config)
    return model


def config_models() -> dict[str, type[RunConfig]]:
    """Return the configuration classes of all adapters, by kind."""
    found: dict[str, type[RunConfig]] = {}
    for kind, spec in all_adapters().items():
        with skip_broken(kind, f"import {spec.config!r}"):
            found[kind] = config_model(kind)
    return found


def load(reference: str) -> Any:
    """Import and return the object named by a reference of the form 'module:attribute'."""
    module, _, attribute = reference.partition(":")
    return getattr(import_module(module), attribute)


def resolve_device(config: RunConfig) -> torch.device:
    """Return the device for `config.device`. Raises UsageError if it is "cuda" and torch cannot find a GPU."""
    import torch

    if config.device == "cuda" and not torch.cuda.is_available():
        raise UsageError("device = 'cuda': torch cannot find a GPU; to find out why, run: ppo-unified doctor")
    if config.device == "auto":
        return torch.device("cuda" if find_adapter(config.kind).prefers_gpu and torch.cuda.is_available() else "cpu")
    return torch.device(config.device)
