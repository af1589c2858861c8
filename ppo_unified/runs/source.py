"""Find the run or checkpoint that a new run starts from. To keep startup fast, this module avoids torch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from ppo_unified.errors import UsageError
from ppo_unified.runs.folder import CHECKPOINT, LATEST, Run, Status, find


class Reference(NamedTuple):
    """A run, or one checkpoint of a run, that another run starts from."""

    run: Run
    checkpoint: Path | None  # the folder of a checkpoint, or None for the run's best checkpoint
    word: str  # the run's name, or an absolute path; unlike 'latest', it always means the same run


def describe_source(status: Status) -> str:
    """Describe the checkpoint that a run started from, such as 'cp, step 1,490'. Return "" if it had random weights."""
    source, step = status.init.get("run"), status.init.get("step")
    return f"{source}, step {step:,}" if type(source) is str and type(step) is int else ""


def find_reference(text: str, runs: Path) -> Reference:
    """Find the run for a name in `runs`, a path of a run folder or a checkpoint folder, or 'latest'.

    Raises UsageError if there is no such run or checkpoint.
    """
    if not text:
        raise UsageError("init: expected a run or the folder of a checkpoint, got an empty name")
    path = Path(text).resolve()
    if CHECKPOINT.fullmatch(path.name) and path.is_dir() and not (path / "run.json").exists():
        run = Run(path.parent.parent)
        if not run.config.is_file():
            raise UsageError(
                f"init: {path}: expected a checkpoint in a run folder, but {run.config} does not exist; copy the "
                "complete run folder"
            )
        return Reference(run, path, str(path))
    try:
        run = find(text, runs)
    except UsageError as error:
        if inside := next((folder for folder in Path(text).parents[:-1] if (folder / "run.json").is_file()), None):
            raise UsageError(
                f"init: {text!r} is neither a run folder nor a checkpoint folder; use {inside} or "
                f"{inside / 'checkpoints' / 'STEP'}"
            ) from None
        raise UsageError(f"init: {error}") from None
    own = text == LATEST or run.path == runs / text
    return Reference(run, None, run.name if own and os.sep not in text else str(run.path.resolve()))
