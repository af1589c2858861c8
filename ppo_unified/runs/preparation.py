"""Preparing a folder to be trained in, before torch is imported: a new run, a resumed one, a refused one."""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import socket
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

from ppo_unified.config import presets
from ppo_unified.config.schema import RunConfig
from ppo_unified.runs.folder import ACTIVE, Run, Status, create
from ppo_unified.runs.handshake import is_detached, report_descriptor, report_folder

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
