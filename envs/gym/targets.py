"""Finds environments that do not come with Gymnasium: in a module or a Python file, registered there or not.

This module does not import torch.
"""

from __future__ import annotations

import copy
import importlib
import importlib.util
import inspect
import re
import sys
import zlib
from functools import cache
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from envs.gym.errors import describe_error
from ppo_unified.errors import UsageError, closest_match, did_you_mean, explain_hidden

MOST_LISTED = 8  # environments that an error message lists
PACKAGES = {  # start of an environment id -> the module that registers it, and the package to install
    "ALE/": ("ale_py", "'ppo-unified[atari]'"),
    "MiniGrid-": ("minigrid", "'ppo-unified[minigrid]'"),
    "BabyAI-": ("minigrid", "'ppo-unified[minigrid]'"),
    "mo-": ("mo_gymnasium", "mo-gymnasium"),
    "highway-": ("highway_env", "highway-env"),
    "Fetch": ("gymnasium_robotics", "gymnasium-robotics"),
    "Panda": ("panda_gym", "panda-gym"),
    "gym_pusht/": ("gym_pusht", "gym-pusht"),
}


class Source(NamedTuple):
    """An imported module or file, and the environments that it registered when it was imported, by id."""

    module: ModuleType
    specs: dict[str, Any]


def split_reference(reference: str) -> tuple[str, str]:
    """Split 'module:Name' or 'FILE.py:Name' into source and name. For 'FILE.py', the name is empty."""
    if reference.endswith(".py"):
        return reference, ""
    source, _, name = reference.rpartition(":")
    return source, name


def resolve_source_target(env_id: str) -> Any:
    """Return the specification of an environment in a module or a Python file.

    The name can be a registered id, a subclass of gymnasium.Env, or a function that creates an environment. Without a
    name, the file must contain exactly one environment. Raises UsageError if there is no such environment.
    """
    source_name, name = split_reference(env_id)
    where = f"gym.env_id = {env_id!r}"
    source = import_source(source_name, name, where)
    return _find_by_name(source, source_name, name, where) if name else _find_only(source, source_name, where)


def import_source(source: str, name: str, where: str) -> Source:
    """Import a module or execute a Python file, with the current directory on sys.path.

    Raises UsageError if this fails. `name` is the object that the user wants, and `where` the start of the message.
    """
    _add_to_path(Path.cwd())
    is_file = source.endswith(".py")
    if is_file and not Path(source).is_file():
        folder = Path(source).absolute().parent
        known = did_you_mean(Path(source).name, [path.name for path in folder.glob("*.py")])
        raise UsageError(f"{where}: no file {Path(source).name!r} in {folder}{known}")
    try:
        return load_file(Path(source).resolve()) if is_file else Source(importlib.import_module(source), {})
    except (Exception, SystemExit) as error:
        kind = "file" if is_file else "module"
        why = _suggest_file(source, name, error) or _suggest_package(source, error) or f" ({describe_error(error)})"
        raise UsageError(f"{where}: cannot import {kind} {source!r}{why}") from error


def _add_to_path(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


def _suggest_file(source: str, name: str, error: BaseException) -> str:
    """If a package shadows a module's folder, or if `source` is a path without '.py', suggest the file's path."""
    path, hidden = Path(source.replace(".", "/") + ".py"), explain_hidden(error)
    if isinstance(error, ModuleNotFoundError) and error.name == source and path.is_file():
        return f"{hidden} or use {path}:{name}" if hidden else f"; use {path}:{name}"
    return hidden


def _suggest_package(source: str, error: BaseException) -> str:
    """If the module belongs to a package in PACKAGES that is not installed, suggest the command that installs it."""
    module = source.partition(".")[0]
    package = dict(PACKAGES.values()).get(module)
    missing = isinstance(error, ModuleNotFoundError) and error.name == module
    return f"; to install it: pip install {package}" if missing and package else ""


@cache
def load_file(path: Path) -> Source:
    """Execute a Python file as a module, with its folder on sys.path. Each file is executed once per process.

    The module's name is the file's name, or, if another module has that name, the file's name and a checksum of its
    path.
    """
    import gymnasium

    _add_to_path(path.parent)
    existing = sys.modules.get(path.stem)
    if existing is not None and getattr(existing, "__file__", None) == str(path):
        return Source(existing, {env_id: gymnasium.registry[env_id] for env_id in _registered_by(path.stem)})
    free = existing is None and path.stem not in sys.stdlib_module_names and "." not in path.stem
    name = path.stem if free else f"{path.stem}_{zlib.crc32(str(path).encode()):08x}".replace(".", "_")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None, path  # the name of the file ends in .py
    assert spec.loader is not None, path
    module, before = importlib.util.module_from_spec(spec), dict(gymnasium.registry)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    new = {env_id: spec for env_id, spec in gymnasium.registry.items() if before.get(env_id) is not spec}
    return Source(module, {env_id: _with_own_objects(spec, module, path.stem) for env_id, spec in new.items()})


def _with_own_objects(spec: Any, module: ModuleType, stem: str) -> Any:
    """Return `spec` with entry points such as 'my_env:MyEnv' replaced by the objects in `module`.

    Importing the entry point could find another module of the same name, and would execute the file again.
    """
    spec = copy.copy(spec)
    for key in ("entry_point", "vector_entry_point"):
        source, _, name = getattr(spec, key).partition(":") if isinstance(getattr(spec, key), str) else ("", "", "")
        if source.rpartition(".")[2] in (stem, "__main__", module.__name__) and hasattr(module, name):
            setattr(spec, key, getattr(module, name))
    return spec


def _find_only(source: Source, path: str, where: str) -> Any:
    """Return the only environment of a file: a registered one or, if none is registered, the only class."""
    from gymnasium.envs.registration import EnvSpec

    module, registered = source
    own = {env_id: spec for env_id, spec in registered.items() if _module_of(spec) == module.__name__}
    found = own or registered or {cls: EnvSpec(cls, entry_point=getattr(module, cls)) for cls in _classes(module)}
    if len(found) == 1:
        return next(iter(found.values()))
    if not found:
        raise UsageError(f"{where}: the file contains no subclass of gymnasium.Env and registers no environment")
    listed = ", ".join(f"{path}:{name}" for name in sorted(found)[:MOST_LISTED])
    more = ", ..." if len(found) > MOST_LISTED else ""
    raise UsageError(f"{where}: the file contains {len(found)} environments; use one of {listed}{more}")


def _find_by_name(source: Source, source_name: str, name: str, where: str) -> Any:
    """Return the environment with this id, or create a specification for the class or function with this name."""
    import gymnasium
    from gymnasium.envs.registration import EnvSpec

    module, known = source.module, {**gymnasium.registry, **source.specs}
    if name in known:
        return known[name]
    member = getattr(module, name, None)
    newest = known.get(newest_version(name, known))
    if newest is not None and (not _creates_environment(member) or _is_created_by(newest, member)):
        return newest
    if _creates_environment(member):
        return EnvSpec(name, entry_point=member)
    raise UsageError(f"{where}: {explain_unregistered(source, source_name, name)}")


def newest_version(name: str, known: Any) -> str:
    """Return the id of the newest version of an environment, such as 'Ant-v5' for 'Ant', or "" if there is none."""
    versions = [env_id for env_id in known if re.fullmatch(rf"{re.escape(name)}-v\d+", env_id)]
    return max(versions, key=lambda env_id: int(env_id.rpartition("-v")[2]), default="")


def _creates_environment(member: Any) -> bool:
    return _is_env_class(member) or (callable(member) and not inspect.isclass(member))


def _is_env_class(member: Any) -> bool:
    import gymnasium

    return inspect.isclass(member) and issubclass(member, gymnasium.Env) and not issubclass(member, gymnasium.Wrapper)


def _is_created_by(spec: Any, member: Any) -> bool:
    return spec.entry_point in (member, f"{member.__module__}:{member.__qualname__}")


def _classes(module: ModuleType) -> list[str]:
    """Return the names of the environment classes that a module defines. Imported and abstract classes are omitted."""
    return [
        name
        for name, member in vars(module).items()
        if _is_env_class(member) and member.__module__ == module.__name__ and not inspect.isabstract(member)
    ]


def _module_of(spec: Any) -> str:
    point = spec.entry_point or spec.vector_entry_point
    return point.partition(":")[0] if isinstance(point, str) else getattr(point, "__module__", "")


def _registered_by(package: str) -> list[str]:
    """Return the ids of the registered environments whose code is in `package`."""
    import gymnasium

    return [env_id for env_id, spec in gymnasium.registry.items() if _module_of(spec).partition(".")[0] == package]


def explain_unregistered(source: Source, source_name: str, name: str) -> str:
    """Explain that a module or file contains no environment `name`. Suggest environments that it contains."""
    kind = "file" if source_name.endswith(".py") else "module"
    text = f"{kind} {source_name!r} does not register the environment {name!r}"
    registered = _registered_by(source.module.__name__.partition(".")[0])
    registered += [env_id for env_id in source.specs if env_id not in registered]
    if not registered:
        registered = _classes(source.module)
    if not registered:
        return f"{text}; call gymnasium.register() in the {kind}"
    if len(registered) <= MOST_LISTED:
        return f"{text}; use {' or '.join(f'{source_name}:{env_id}' for env_id in sorted(registered))}"
    names = {env_id.rpartition("-v")[0] or env_id: env_id for env_id in registered}  # versions would seem similar
    match = closest_match(name.rpartition("-v")[0] or name, names)
    return f"{text}; did you mean {f'{source_name}:{names[match]}'!r}?" if match else text


def explain_unknown(env_id: str) -> str:
    """Return the error message for an id that is not registered. Suggest how to import the package that registers it.

    The package is the one in PACKAGES, or an installed one that requires Gymnasium and has the name of the namespace.
    """
    import gymnasium

    text = f"gym.env_id = {env_id!r}: unknown Gymnasium environment"
    known = {start: names for start, names in PACKAGES.items() if env_id.startswith(start)}
    namespace = env_id.partition("/")[0]
    module, package = next(iter(known.values()), (namespace.replace("-", "_"), namespace))
    if known and importlib.util.find_spec(module) is None:
        return f"{text}; to install it: pip install {package}; then use {module}:{env_id}"
    if known or ("/" in env_id and _requires_gymnasium(package)):
        source = import_source(module, env_id, f"gym.env_id = {env_id!r}")
        if env_id in gymnasium.registry:
            return f"{text}; use {module}:{env_id}, which imports the package that registers it"
        return f"gym.env_id = {env_id!r}: {explain_unregistered(source, module, env_id)}"
    similar = did_you_mean(env_id, gymnasium.registry)
    return f"{text}{similar} (if your own code registers it, use module:EnvId or FILE.py:EnvId)"


def _requires_gymnasium(package: str) -> bool:
    try:
        return any(re.match(r"gymnasium\b", line) for line in requires(package) or [])
    except (PackageNotFoundError, ValueError):
        return False
