"""Prepare a run folder before torch is imported: a new run, a resumed one, a refused one.

A detached trainer also reports its folder to the process that started it.
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import socket
import stat
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO

import psutil

from ppo_unified.config import presets
from ppo_unified.config.schema import RunConfig
from ppo_unified.runs.folder import ACTIVE, Run, Status, create

LEAVING_S = 10.0  # that an ended trainer may take to release its folder
PACKAGES = ("ppo-unified", "torch", "gymnasium", "transformers", "numpy", "tensorboard")


def prepare(config: RunConfig, runs: Path, name: str = "", command: Sequence[str] = ()) -> Run:
    """A new run folder with config.toml, command.txt and run.json, locked by this process.

    Raises UsageError, leaving no folder behind, for what the adapter refuses and for names and folders that don't do.
    """
    report_descriptor()  # first: nothing that the checks start may inherit the variable
    presets.check(config)

    def fill(run: Run, final_name: str) -> None:
        run.acquire()
        run.config.write_text(config.to_toml(), encoding="utf-8")
        if command:
            run.command.write_text(shlex.join(command) + "\n", encoding="utf-8", errors="surrogateescape")
        status = Status(name=final_name, preset=config.origin, kind=config.kind, seed=config.seed)
        run.write_status(claim(status, config))

    run = create(runs, name, default_name(config), fill)
    report_folder(run.path)
    return run


def default_name(config: RunConfig) -> str:
    return f"{config.origin}-s{config.seed}"


def reopen(run: Run) -> Status:
    """Lock an existing run to resume it, and return its status.

    Raises UsageError if another process trains it, or where it would write through a symbolic link. A trainer that has
    written how it ended holds the lock a moment longer; this waits for it.
    """
    deadline = time.monotonic() + LEAVING_S
    while run.read_status().state not in ACTIVE and run.is_locked() and time.monotonic() < deadline:
        time.sleep(0.02)
    run.check_no_links()
    run.acquire()
    status = run.read_status()
    status.resumes.append({"time": time.time(), "step": status.step, "from_state": status.state})
    return status


def claim(status: Status, config: RunConfig) -> Status:
    """Make `status` that of this process, about to start, and return it."""
    status.state, status.reason, status.traceback = "starting", "", ""
    status.total_steps, status.host, status.pid = config.total_steps, socket.gethostname(), os.getpid()
    status.pid_started = psutil.Process().create_time()
    status.started = status.started or time.time()
    status.heartbeat = time.time()
    status.versions = {"python": platform.python_version()} | _versions()
    return status


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # of this project where it runs from its source without installation
            continue
    return found


def discard(run: Run) -> None:
    """Remove the folder of a run that was refused before it trained; one that holds a checkpoint stays.

    A detached process leaves the removal to the process that started it and has yet to read the reason.
    """
    if not run.checkpoints.exists() and not is_detached():
        shutil.rmtree(run.path, ignore_errors=True)
    run.release()


# reporting the folder to `processes.detach`, which passes an open file to the new process and names its descriptor
# in the environment; it is a file and not a pipe because the starting process may be gone by then

DETACHED_VARIABLE = "PPO_UNIFIED_DETACHED"  # holds the number of the descriptor


@cache
def report_descriptor() -> int | None:
    """The file in which the starting process looks for our folder; None where this process is not detached.

    The variable is removed from the environment at once: a child of this process would take it for its own.
    """
    text = os.environ.pop(DETACHED_VARIABLE, "")
    with suppress(OSError, ValueError, OverflowError):
        if (descriptor := int(text)) > 2 and stat.S_ISREG(os.fstat(descriptor).st_mode):
            return descriptor
    return None


def is_detached() -> bool:
    """Whether another process started this one in the background and reads its errors."""
    return report_descriptor() is not None


def report_folder(folder: Path) -> None:
    """Tell the starting process, if there is one, which folder this process made."""
    descriptor = report_descriptor()
    if descriptor is not None:
        os.write(descriptor, os.fsencode(folder) + b"\0")


def read_reported_folder(file: IO[bytes]) -> Path | None:
    """The folder that a detached process has reported in `file`; None before it has."""
    path = os.pread(file.fileno(), 1 << 16, 0)  # the child shares the offset: reading must not move it
    return Path(os.fsdecode(path[:-1])) if path.endswith(b"\0") else None
