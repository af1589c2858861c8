"""Create, reopen or discard a run folder. This happens before torch is imported, so that errors appear quickly.

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
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any

import psutil

from ppo_unified.config import presets
from ppo_unified.config.schema import RunConfig
from ppo_unified.runs.folder import ACTIVE, Run, Status, create

LEAVING_S = 10.0  # maximum seconds to wait for an ending trainer to release its lock
PACKAGES = ("ppo-unified", "torch", "gymnasium", "transformers", "numpy", "tensorboard")


def prepare(
    config: RunConfig,
    runs: Path,
    name: str = "",
    command: Sequence[str] = (),
    init: Mapping[str, Any] | None = None,
    checking: AbstractContextManager[None] | None = None,
) -> Run:
    """Create and lock a run folder that contains config.toml, command.txt and run.json.

    `init` is the entry of that name in run.json: the checkpoint that the run starts from.
    If the adapter rejects the options or the folder cannot be created, raises UsageError and leaves no folder behind.
    The adapter's check, which may create an environment, runs inside the context manager `checking`.
    """
    report_descriptor()  # called first, so that child processes of the checks do not inherit the variable
    with checking or nullcontext():
        presets.check(config)

    def fill(run: Run, final_name: str) -> None:
        run.acquire()
        run.config.write_text(config.to_toml(), encoding="utf-8")
        if command:
            run.command.write_text(shlex.join(command) + "\n", encoding="utf-8", errors="surrogateescape")
        status = Status(
            name=final_name, preset=config.origin, kind=config.kind, seed=config.seed, init=dict(init or {})
        )
        run.write_status(claim(status, config))

    run = create(runs, name, default_name(config), fill)
    report_folder(run.path)
    return run


def default_name(config: RunConfig) -> str:
    """Return the default name of a run, such as 'cartpole-s1'. It is used if --name is not given."""
    return f"{config.origin}-s{config.seed}"


def reopen(run: Run) -> Status:
    """Lock an existing run to resume it, and return its status.

    Raises UsageError if another process trains the run, or if training would write through a symbolic link. If the
    trainer has written its final state but not yet released the lock, this function waits for it.
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
    """Set the fields of `status` for a run that starts in this process, and return it."""
    status.state, status.reason, status.traceback = "starting", "", ""
    status.total_steps, status.total_iterations = config.total_steps, config.total_iterations
    status.host, status.pid = socket.gethostname(), os.getpid()
    status.pid_started = psutil.Process().create_time()
    status.started = status.started or time.time()
    status.heartbeat = status.progressed = time.time()
    status.phase, status.phase_done = "starting", None
    status.versions = {"python": platform.python_version()} | _versions()
    return status


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # for example, this project itself if it runs from source
            continue
    return found


def discard(run: Run) -> None:
    """Remove the folder of a run that failed before training, unless it contains checkpoints.

    A detached process does not remove it. The process that started it does so after reading the error.
    """
    if not run.checkpoints.exists() and not is_detached():
        shutil.rmtree(run.path, ignore_errors=True)
    run.release()


# A detached process reports its folder to `processes.detach`, which passes it an open file and puts the file's
# descriptor into its environment. A pipe would break if the starting process ended first.

DETACHED_VARIABLE = "PPO_UNIFIED_DETACHED"  # contains the file descriptor's number


@cache
def report_descriptor() -> int | None:
    """Return the file descriptor to which a detached process reports its folder, or None if it is not detached.

    This also removes the variable from the environment, because child processes would otherwise seem detached.
    """
    text = os.environ.pop(DETACHED_VARIABLE, "")
    with suppress(OSError, ValueError, OverflowError):
        if (descriptor := int(text)) > 2 and stat.S_ISREG(os.fstat(descriptor).st_mode):
            return descriptor
    return None


def is_detached() -> bool:
    """Return True if another process started this one in the background and reads its errors."""
    return report_descriptor() is not None


def report_folder(folder: Path) -> None:
    """Report this run's folder to the process that started this one, if this process is detached."""
    descriptor = report_descriptor()
    if descriptor is not None:
        os.write(descriptor, os.fsencode(folder) + b"\0")


def read_reported_folder(file: IO[bytes]) -> Path | None:
    """Return the folder that a detached process reported in `file`, or None if it has not reported yet."""
    path = os.pread(file.fileno(), 1 << 16, 0)  # pread, because the child process shares the file offset
    return Path(os.fsdecode(path[:-1])) if path.endswith(b"\0") else None
