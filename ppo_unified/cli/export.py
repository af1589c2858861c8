"""`export`: save a policy in a form that can be used without this program."""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Iterator
from contextlib import closing
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ppo_unified.cli.common import add_checkpoint, add_run, add_runs_folder, foreign_code
from ppo_unified.cli.policy import LoadedPolicy, load_policy
from ppo_unified.config.registry import find_adapter, load
from ppo_unified.errors import UsageError, explain_unusable
from ppo_unified.parsing import read_json
from ppo_unified.text import clean, print_out

DESCRIPTION = "policy.json"  # marks an exported folder and lists its files
FORMAT = "ppo-unified policy 1"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_run(parser)
    add_checkpoint(parser)
    parser.add_argument(
        "--to",
        required=True,
        type=Path,
        metavar="DIR",
        help="output folder: a new or empty folder, or an earlier export",
    )
    parser.add_argument("--merged", action="store_true", help="export the model with its LoRA weights merged into it")
    add_runs_folder(parser)


def run(options: argparse.Namespace) -> int:
    """Save a run's policy in a form that can be used without this program, and print the paths of the files."""
    with foreign_code():
        files = _export(options, options.to)
    for name in files:
        print_out(clean(options.to / name))
    return 0


def _export(options: argparse.Namespace, folder: Path) -> list[str]:
    """Write the policy to `folder` and return the names of the files."""
    loaded = load_policy(options)
    with closing(loaded.adapter):
        spec = find_adapter(loaded.config.kind)
        if not spec.export:
            raise UsageError(f"{loaded.run.name}: policies of kind {loaded.config.kind!r} cannot be exported")
        if options.merged and not spec.export_merged:
            raise UsageError(f"--merged: policies of kind {loaded.config.kind!r} have nothing to merge; omit --merged")
        _check_target(folder, loaded.run.name)
        about = _describe(loaded)
        try:
            with TemporaryDirectory(dir=folder, prefix=".writing-") as aside:
                new, old = Path(aside, "new"), Path(aside, "old")
                new.mkdir()
                facts = load(spec.export_merged if options.merged else spec.export)(loaded.adapter, new, about)
                written = (path.relative_to(new).as_posix() for path in new.rglob("*") if path.is_file())
                files = sorted([*written, DESCRIPTION])
                description = json.dumps(
                    {"format": FORMAT, **about, **facts, "files": files}, indent=1, allow_nan=False
                )
                (new / DESCRIPTION).write_text(description, encoding="utf-8")
                _check_target(folder, loaded.run.name, Path(aside).name)  # again: writing a model takes minutes
                _replace(folder, new, old)
        except OSError as error:
            why = error.strerror or error
            raise UsageError(f"--to {folder}: cannot write the policy ({why}); choose another folder") from None
    return files


def _replace(folder: Path, new: Path, old: Path) -> None:
    """Move the contents of `folder` to `old` and the contents of `new` to `folder`.

    `old` and `new` are inside `folder`, so every move is a rename.
    """
    old.mkdir()
    for source, target in ((folder, old), (new, folder)):
        for name in sorted(os.listdir(source), key=lambda name: name != DESCRIPTION):  # moved first
            if name != new.parent.name:
                (source / name).rename(target / name)


def _check_target(folder: Path, run: str, aside: str = "") -> None:
    """Create the folder, and check that it contains only an earlier export of `run` and the entry `aside`.

    Raises UsageError if it contains anything else or cannot be created.
    """
    try:
        str(folder).encode("utf-8")
    except UnicodeEncodeError:  # safetensors accepts only UTF-8, and a failure there ends the process
        raise UsageError(f"--to {folder}: expected a path in UTF-8; choose another folder") from None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        others = sorted(_find_others(folder, _find_exported(folder, run) | {aside}))
    except OSError as error:
        raise UsageError(f"--to {folder}: {explain_unusable(folder, error)}; choose another path") from None
    if others and (other := _exported_run(folder)) not in ("", run):
        raise UsageError(
            f"--to {folder}: the folder contains an export of {clean(other)}; choose another folder or delete it"
        )
    if others:
        named = ", ".join(clean(name) for name in others[:5]) + (", ..." if len(others) > 5 else "")
        raise UsageError(
            f"--to {folder}: the folder contains other files ({named}); choose an empty folder or a new one"
        )


def _find_others(folder: Path, known: set[str], within: str = "") -> Iterator[str]:
    """Yield the entries of a folder that are not in `known`.

    Subfolders without known files are not searched, because searching all of `--to ~` would take too long.
    """
    for entry in os.scandir(folder):
        name = within + entry.name
        if entry.is_dir(follow_symlinks=False) and any(path.startswith(f"{name}/") for path in known):
            yield from _find_others(Path(entry), known, f"{name}/")
        elif name not in known:
            yield name


def _find_exported(folder: Path, run: str) -> set[str]:
    """Return the files of an earlier export of the same run, which may be replaced."""
    try:
        names = read_json(folder / DESCRIPTION)["files"] if _exported_run(folder) == run else []
        return {name for name in names if isinstance(name, str)}
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def _exported_run(folder: Path) -> str:
    """Return the name of the run whose export the folder contains, or '' if it contains no export."""
    try:
        description = read_json(folder / DESCRIPTION)
        return str(description["run"]) if description["format"] == FORMAT else ""
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _describe(loaded: LoadedPolicy) -> dict[str, Any]:
    """Describe the origin of an exported policy. `score` is None unless the policy is from the best checkpoint."""
    from ppo_unified.training import checkpoint

    best = loaded.step == checkpoint.best_step(loaded.run)
    versions = {name: version(name) for name in ("ppo-unified", "torch")}
    return {
        "run": loaded.run.name,
        "kind": loaded.config.kind,
        "step": loaded.step,
        "score": loaded.run.read_status().best_score if best else None,
        "versions": {"python": platform.python_version(), **versions},
    }
