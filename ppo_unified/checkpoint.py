"""Checkpoints: a folder per step, written aside, synced and renamed, so that one is either whole or not there."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch

from ppo_unified.errors import UsageError
from ppo_unified.runs import Run, write_atomically
from ppo_unified.untrusted import read_json

POLICY, TRAINER, META, BEST = "policy.pt", "trainer.pt", "meta.json", "best.json"


def save(run: Run, step: int, policy: dict[str, Any], trainer: dict[str, Any], meta: dict[str, Any]) -> Path:
    """Write the checkpoint of `step`; a second save of the same step keeps the first. Returns its folder."""
    final = folder_of(run, step)
    if final.exists():
        return final
    aside = run.checkpoints / f".{final.name}.{os.getpid()}.tmp"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    torch.save(policy, aside / POLICY)
    torch.save(trainer, aside / TRAINER)
    (aside / META).write_text(json.dumps(meta | {"step": step}), encoding="utf-8")
    for path in (*aside.iterdir(), aside):
        _sync(path)
    aside.rename(final)
    _sync(run.checkpoints)
    return final


def mark_best(run: Run, step: int, score: float) -> None:
    write_atomically(run.checkpoints / BEST, json.dumps({"step": step, "score": score}))


def prune(run: Run, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints and the best one; none while it can't be read which is the best."""
    try:
        best = best_step(run)
    except UsageError:
        return
    for step in steps(run)[:-keep]:
        if step != best:
            shutil.rmtree(folder_of(run, step), ignore_errors=True)


def steps(run: Run) -> list[int]:
    """The steps of all checkpoints, ascending."""
    if not run.checkpoints.is_dir():
        return []
    return sorted(int(path.name) for path in run.checkpoints.iterdir() if len(path.name) > 11 and path.name.isdecimal())


def best(run: Run) -> tuple[int, float] | None:
    """Step and score of the best checkpoint, or None before the first evaluation. Raises UsageError if damaged."""
    path = run.checkpoints / BEST
    try:
        table = read_json(path)
        return int(table["step"]), float(table["score"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise UsageError(f"{path}: cannot be read ({error}); it says which checkpoint is best") from None


def best_step(run: Run) -> int | None:
    """The step of the best checkpoint, or None before the first evaluation. Raises UsageError if damaged."""
    found = best(run)
    return found[0] if found else None


def choose(run: Run, which: str) -> int:
    """The step that 'best' (the newest where nothing was evaluated yet), 'latest' or a number means.

    Raises UsageError naming the steps there are.
    """
    there = steps(run)
    if not there:
        raise UsageError(f"{run.checkpoints}: there is no checkpoint yet")
    if which == "latest":
        return there[-1]
    if which == "best":
        step = best_step(run)
        return step if step in there else there[-1]
    if which in map(str, there):
        return int(which)
    raise UsageError(
        f"{run.path}: no checkpoint {which[:40]!r}; there are best, latest and {', '.join(map(str, there))}"
    )


def load_policy(run: Run, step: int, device: torch.device) -> dict[str, Any]:
    return _load(folder_of(run, step) / POLICY, device)


def load_trainer(run: Run, step: int) -> dict[str, Any]:
    return _load(folder_of(run, step) / TRAINER, torch.device("cpu"))


def folder_of(run: Run, step: int) -> Path:
    return run.checkpoints / f"{step:012d}"


def _load(path: Path, device: torch.device) -> dict[str, Any]:
    """Only tensors and plain values: nothing in the file is executed. Raises UsageError where it is damaged."""
    try:
        state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:
        raise UsageError(
            f"{path}: cannot be loaded as a checkpoint ({type(error).__name__}: {str(error)[:200]}); "
            f"delete {path.parent} to go on from the one before"
        ) from error
    return state


def _sync(path: Path) -> None:
    """Push a file or folder to the disk, so that a rename never outruns its content."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
