"""The folder of cached models, such as `tiny` and `smollm2`. This module does not import torch."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from ppo_unified.errors import UsageError

CACHE_VARIABLE = "PPO_UNIFIED_CACHE"


def cache_folder() -> Path:
    """Return the cache folder for built-in models.

    The folder is $PPO_UNIFIED_CACHE if set; otherwise it is `ppo-unified` in the user's cache folder.
    """
    if given := os.environ.get(CACHE_VARIABLE):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ppo-unified"


def cached_model(name: str, recipe: str) -> Path:
    """Return the folder of the model `name`, which may not exist yet.

    The folder's name contains a hash of `recipe`, which must determine the model's files.
    """
    return cache_folder() / f"{name}-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}"


def find_or_make(name: str, recipe: str, make: Callable[[Path], None]) -> Path:
    """Return the cached folder of the model `name`. If it does not exist, create it with `make`.

    `make` fills a temporary folder, which is then renamed. If another process is creating the same folder, wait until
    it is done. Raises UsageError if the cache folder cannot be written.
    """
    folder = cached_model(name, recipe)
    if folder.exists():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _hold_lock(folder.with_suffix(".lock")):
            if not folder.exists():
                _make_aside(folder, make)
    except OSError as error:
        raise UsageError(
            f"{folder.parent}: cannot save the model {name} ({error.strerror}); set ${CACHE_VARIABLE} to a writable "
            "folder"
        ) from None
    return folder


def _make_aside(folder: Path, make: Callable[[Path], None]) -> None:
    prefix = f".{folder.name}-"
    # Remove leftovers of a killed process; the lock ensures that no other process is writing
    for leftover in folder.parent.glob(f"{prefix}*"):
        shutil.rmtree(leftover, ignore_errors=True)
    aside = Path(tempfile.mkdtemp(prefix=prefix, dir=folder.parent))
    try:
        make(aside)
        aside.chmod(0o755)  # mkdtemp creates it with 0o700
        aside.rename(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


@contextlib.contextmanager
def _hold_lock(lock: Path) -> Iterator[None]:
    """Hold a file lock inside the `with` block.

    If another process holds the lock, print a message and wait.
    """
    with lock.open("a") as handle:
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"{lock.stem}: another process is building this model; waiting", file=sys.stderr, flush=True)
            fcntl.lockf(handle, fcntl.LOCK_EX)
        yield
