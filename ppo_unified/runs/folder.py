"""The run folder is the only interface between the trainer, the CLI, the terminal UI, TensorBoard and scripts.

To keep startup fast, this module avoids torch.

A trainer locks `run.lock` until its process ends. The lock shows reliably whether the trainer is alive, even after
kill -9 and even if process IDs are reused. `run.json` is replaced atomically, so it is never incomplete.
"""

from __future__ import annotations

import errno
import fcntl
import json
import math
import os
import re
import secrets
import shutil
import struct
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any, NamedTuple

from ppo_unified.errors import UsageError, did_you_mean, explain_unusable
from ppo_unified.parsing import parse_fields, read_json

ACTIVE = ("starting", "running", "stopping")  # states in which a trainer should be alive
ALIVE = (*ACTIVE, "stalled")  # displayed states of a run whose trainer is alive
SOLVED = "solved"  # reason and displayed state of a run that ended because it reached eval.threshold
PHASES = ("starting", "collecting", "updating", "evaluating", "saving")  # what a living trainer may be doing
LOCK = "run.lock"
LATEST = "latest"  # refers to the newest run if it is used in place of a run name
STALLED_S = 60.0  # time without progress or heartbeat after which a living trainer counts as stalled
_WRITTEN = (LOCK, "log.txt", "checkpoints", "samples", "nonfinite", "export")  # must not be symbolic links
_ABANDONED_S = 86400.0  # age after which a hidden folder is removed
_ASIDE = re.compile(r"\.[0-9a-f]{16}\.tmp")  # matches names returned by `hidden_name`
CHECKPOINT = re.compile(r"(\d{12,18})(?:\.(\d{1,9}))?")  # folder name: step, and number of the write at that step
_NAME = re.compile(r"[^\W_][\w.+=@ -]{0,99}", re.UNICODE)


@dataclass
class Status:
    """The content of run.json. Times are in seconds since the epoch."""

    name: str = ""
    preset: str = ""
    kind: str = ""
    state: str = "starting"  # starting, running, stopping, stopped, finished, failed
    step: int = 0
    total_steps: int = 0
    iteration: int = 0
    total_iterations: int = 0
    score: float | None = None
    best_score: float | None = None
    best_step: int | None = None
    solved_step: int | None = None
    started: float = 0.0
    heartbeat: float = 0.0
    elapsed_s: float = 0.0
    host: str = ""
    pid: int = 0
    pid_started: float = 0.0
    reason: str = ""
    traceback: str = ""
    init: dict[str, Any] = field(default_factory=dict)  # with --init: run, step, score and checkpoint of the source
    sweep: dict[str, Any] = field(default_factory=dict)  # of a trial: name, trial, options, objective and value
    estimate: dict[str, Any] = field(default_factory=dict)  # predicted needs, and `real` ones after the run's end
    resumes: list[dict[str, Any]] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    device: str = ""
    seed: int = 0
    health: list[dict[str, Any]] = field(default_factory=list)  # for each health warning: name, since, severe, text
    phase: str = ""  # one of PHASES, or empty
    phase_done: float | None = None  # fraction of the phase's current work that is done, 0 to 1; None if unknown
    work: str = ""  # the phase's current work, such as "generating token 12 of 64"; "" if it has no name
    progressed: float = 0.0  # time of the last progress within the phase; 0 if unknown


class HealthWarning(NamedTuple):
    """A health warning of a run."""

    name: str
    since: int  # step at which the warning started
    text: str  # meaning and advice


def read_warnings(status: Status) -> list[HealthWarning]:
    """Return the health warnings in run.json. Entries in an unknown format are skipped."""
    found = []
    for entry in status.health:
        if isinstance(entry, dict) and type(since := entry.get("since")) is int:
            found.append(HealthWarning(str(entry.get("name", "")), since, str(entry.get("text", ""))))
    return found


def has_stalled(status: Status, now: float) -> bool:
    """Return True if a living trainer has made no progress for STALLED_S, as far as its run.json shows."""
    silent_s = now - status.heartbeat  # the heartbeat also stops if compiled code keeps all threads from running
    idle_s = status.heartbeat - status.progressed if status.progressed else 0.0  # older versions did not store this
    return max(silent_s, idle_s) > STALLED_S


def ended_state(status: Status) -> str:
    """Return the displayed state of a run that is not active: 'solved' or the state in run.json.

    A solved run that was trained further ended for another reason, so its state is 'finished'.
    """
    return SOLVED if status.state == "finished" and status.reason == SOLVED else status.state


class Run:
    """The folder of one run. Creating the object does not access the disk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.name
        self.config = path / "config.toml"
        self.original_config = path / "config.begun.toml"  # the options before the first change
        self.command = path / "command.txt"
        self.log = path / "log.txt"
        self.checkpoints = path / "checkpoints"
        self.samples = path / "samples"
        self.export = path / "export"
        self.note = path / "note.txt"  # written by users
        self._lock: IO[str] | None = None

    def checkpoint_folders(self) -> list[tuple[int, int, Path]]:
        """List (step, write number, folder) of all checkpoints, oldest first. For each step, the last write counts."""
        try:
            named = [(CHECKPOINT.fullmatch(path.name), path) for path in self.checkpoints.iterdir()]
        except FileNotFoundError:  # other errors are raised; otherwise, the run would restart at step 0
            return []
        return sorted((int(found[1]), int(found[2] or 0), path) for found, path in named if found)

    def write_status(self, status: Status) -> None:
        write_atomically(self.path / "run.json", to_json(asdict(status)))

    def read_status(self) -> Status:
        """Read run.json. Ignore unknown keys and use defaults for missing keys. Raises UsageError if it is damaged."""
        path = self.path / "run.json"
        try:
            return Status(**parse_fields(read_json(path), Status))
        except OSError as error:
            raise UsageError(f"{path}: cannot read the file ({error.strerror})") from None
        except ValueError as error:
            fix = "restore the file from a backup, or delete the run folder"
            raise UsageError(f"{path}: the file is damaged ({error}); {fix}") from None

    def state(self, status: Status) -> str:
        """Return the displayed state: 'crashed' if the trainer is dead, 'stalled' if it makes no progress, 'solved' if
        the run ended at its threshold, or else the state in run.json."""
        if status.state not in ACTIVE:
            return ended_state(status)
        if not self.is_locked():
            return "crashed"
        return "stalled" if has_stalled(status, time.time()) else status.state

    def acquire(self) -> None:
        """Lock the folder until this process ends. Raises UsageError if another process trains in the folder.

        Does nothing if this object already has the lock. The lock is taken with lockf, because a lock taken with flock
        would remain as long as any forked environment worker is alive.
        """
        if self._lock is not None:
            return
        path = self.path / LOCK
        try:
            file = open(path, "a+")  # noqa: SIM115 - any close of the file in this process releases the lock
        except OSError as error:
            raise UsageError(f"{path}: cannot lock the file ({error.strerror})") from None
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.close()
            if error.errno not in (errno.EACCES, errno.EAGAIN):  # such as a file system without locks
                raise UsageError(f"{path}: cannot lock the file ({error.strerror})") from None
            raise UsageError(
                f"{self.path}: another process is training in this folder; stop it first: ppo-unified stop {self.name}"
            ) from None
        self._lock = file

    def mark_stopping(self) -> None:
        """Show other processes that this trainer is stopping. This is safe in a signal handler and on a full disk.

        It reduces the lock from all possible bytes of the file to the first byte.
        """
        if self._lock is not None:
            fcntl.lockf(self._lock, fcntl.LOCK_UN, 0, 1)

    def is_stopping(self) -> bool:
        """Return True if another process trains in this folder and is stopping."""
        return self.holder() is not None and self._holder_from(1) is None

    def check_no_links(self) -> None:
        """Raise UsageError if a trainer would write through a symbolic link. A folder from another person may contain
        links to any path."""
        for name in _WRITTEN:
            path = self.path / name
            if path.is_symlink():
                raise UsageError(
                    f"{path} is a symbolic link to {str(path.readlink())!r}, but a run does not write through links; "
                    "replace the link with a copy of its target, or link the entire run folder instead"
                )

    def release(self) -> None:
        """Release the folder's lock."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def move(self, path: Path) -> Run:
        """Move the folder to another path and return the moved run, which takes over the lock. Raises OSError."""
        self.path.rename(path)
        run = Run(path)
        run._lock, self._lock = self._lock, None
        return run

    def holds_lock(self) -> bool:
        """Return True if this object has locked the folder and the folder has not been removed or replaced since."""
        try:
            there = (self.path / "run.lock").stat()
        except OSError:
            return False
        return self._lock is not None and os.path.samestat(there, os.fstat(self._lock.fileno()))

    def is_locked(self) -> bool:
        """Return True if another process has the lock. The check does not acquire the lock, so it blocks no trainer."""
        return self.holder() is not None

    def holder(self) -> int | None:
        """Return the ID of the other process that has the lock according to the kernel, or None if no other has it."""
        return self._holder_from(0)

    def _holder_from(self, byte: int) -> int | None:
        """Return the ID of another process that has locked byte `byte` of the file or any later one, or None."""
        try:
            with open(self.path / LOCK, "rb") as file:
                kind, pid = _kind_and_pid(fcntl.fcntl(file, fcntl.F_GETLK, _flock(fcntl.F_WRLCK, byte)))
        except OSError:
            return None
        return None if kind == fcntl.F_UNLCK else pid


def _flock(kind: int, first: int) -> bytes:
    """Pack a `struct flock`, in this system's layout, for all bytes from offset `first` on."""
    if sys.platform == "darwin":
        return struct.pack("qqihh", first, 0, 0, kind, 0)
    return struct.pack("hhqqi", kind, 0, first, 0, 0)


def _kind_and_pid(packed: bytes) -> tuple[int, int]:
    if sys.platform == "darwin":
        _, _, pid, kind, _ = struct.unpack("qqihh", packed)
    else:
        kind, _, _, _, pid = struct.unpack("hhqqi", packed)
    return kind, pid


def to_json(document: Any, indent: int | None = 1) -> str:
    """Convert a document to JSON. NaN and infinities, which JSON cannot represent, become null."""
    return json.dumps(_replace_nonfinite(document), indent=indent, allow_nan=False)


def _replace_nonfinite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _replace_nonfinite(x) for key, x in value.items()}
    if isinstance(value, (list, tuple)):
        return [_replace_nonfinite(x) for x in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def check_name(name: str) -> None:
    """Raise UsageError unless `name` is a valid name for a run folder and is not reserved."""
    if name == LATEST:
        raise UsageError(f"run name {name!r} is reserved for the newest run; choose another name")
    if not _NAME.fullmatch(name) or name.endswith((" ", ".")):
        raise UsageError(
            f"run name {name!r}: use at most 100 characters: letters, digits, spaces or ._+=@-; start with a letter or "
            "digit, and do not end with a space or '.'"
        )


def create(runs: Path, name: str, default: str, fill: Callable[[Run, str], object] | None = None) -> Run:
    """Create a run folder named `name`. If `name` is empty, use the first unused name of default, default-2, ...

    The folder is created under a hidden name and renamed after `fill`, which is called with the folder and its final
    name, has written the run's files. A process that is killed earlier leaves a hidden folder, not an incomplete run.
    Raises UsageError if the name is invalid or taken, or if the folder cannot be created.
    """
    try:
        check_name(name or default)
    except UsageError as error:
        typed = "" if name else ". This default name comes from the target; choose another with --name NAME"
        raise UsageError(f"{error}{typed}") from None
    _remove_abandoned(runs)
    aside = Run(runs / hidden_name())
    try:
        aside.path.mkdir(parents=True)
        (aside.path / LOCK).touch()  # run folders must never be empty, because a rename can replace an empty folder
        while True:
            path = runs / (name or free_name(runs, default))
            if not os.path.lexists(path):
                if fill is not None:
                    fill(aside, path.name)
                if run := _move_into_place(aside, path):
                    return run
            if name:  # a default name is replaced by the next unused one
                raise UsageError(
                    f"{path} already exists; resume it (ppo-unified resume {name}) or choose another --name"
                )
    except OSError as error:
        raise UsageError(
            f"{runs}: {explain_unusable(runs, error)}; choose another runs folder with --runs DIR"
        ) from None
    finally:
        if aside.path.exists():
            aside.release()
            shutil.rmtree(aside.path, ignore_errors=True)


def hidden_name() -> str:
    """Return a random name for a folder that is being created or deleted. Abandoned folders are removed after a day."""
    return f".{secrets.token_hex(8)}.tmp"


def _remove_abandoned(runs: Path) -> None:
    """Remove old, unlocked hidden folders that killed processes left behind."""
    for path in runs.glob(".*.tmp"):
        with suppress(OSError):
            old = time.time() - path.stat().st_mtime > _ABANDONED_S
            if old and _ASIDE.fullmatch(path.name) and not Run(path).is_locked():
                shutil.rmtree(path, ignore_errors=True)


def _move_into_place(aside: Run, path: Path) -> Run | None:
    """Rename a new run to its final path and return it. Return None if another process has already taken the path.

    Raises UsageError if the name has too many bytes for the file system.
    """
    try:
        return aside.move(path)
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
            return None
        if error.errno == errno.ENAMETOOLONG:
            size = len(os.fsencode(path.name))
            raise UsageError(
                f"run name {path.name!r} is too long for this file system ({size} bytes); choose a shorter --name"
            ) from None
        raise


def free_name(runs: Path, default: str) -> str:
    """Return the first unused name of default, default-2, ... Another process may use the name at any time."""
    number = 1
    while os.path.lexists(runs / (name := default if number == 1 else f"{default}-{number}")):
        number += 1
    return name


def all_runs(runs: Path, damaged: list[str] | None = None) -> Iterator[tuple[Run, Status]]:
    """Yield all readable runs in `runs`, newest first. Hidden folders and folders without a run.json are skipped.

    The error message for each unreadable run.json is appended to `damaged`.
    """
    found = []
    with suppress(OSError):
        for entry in os.scandir(runs):
            if entry.name.startswith("."):  # a run that is being created or deleted
                continue
            run = Run(Path(entry.path))
            try:
                found.append((run, run.read_status()))
            except UsageError as error:
                if damaged is not None and (run.path / "run.json").exists():
                    damaged.append(str(error))
    yield from sorted(found, key=lambda pair: pair[1].started, reverse=True)


def find(reference: str, runs: Path) -> Run:
    """Return the run for a name in `runs`, a path, or 'latest'. Raises UsageError if there is no such run."""
    if reference == LATEST:
        newest = next(all_runs(runs), None)
        if newest is None:
            elsewhere = "" if runs == Path("runs") else f" --runs {runs}"
            raise UsageError(f"{runs}: no runs yet; start one with: ppo-unified train cartpole{elsewhere}")
        return newest[0]
    for path in (runs / reference, Path(reference)):
        with suppress(OSError):  # for example, if the name is too long for the file system
            if (path / "run.json").is_file():
                return Run(path if path.name else path.resolve())  # the path '.' has an empty name
    names = [run.name for run, _ in all_runs(runs)]
    listing = "ppo-unified runs" + ("" if runs == Path("runs") else f" --runs {runs}")
    raise UsageError(
        f"no run {reference!r} in the folder {str(runs)!r}{did_you_mean(reference, names)} (list: {listing})"
    )


@contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path next to `path`. At the end of the block, the file written to it replaces `path`.

    If the block raises, `path` keeps its content and the temporary file is removed. A process that is killed may leave
    the temporary file (.NAME.PID.tmp) behind.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def free_space(folder: Path) -> int:
    """Return the free disk space in bytes for a folder that may not exist yet."""
    folder = folder.absolute()
    return shutil.disk_usage(next(path for path in (folder, *folder.parents) if path.exists())).free


def write_atomically(path: Path, text: str) -> None:
    """Replace the content of a text file. Raises OSError, or UnicodeEncodeError if the text is not valid Unicode."""
    with replace_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


class FolderLostError(Exception):
    """Raised if the run folder was removed or replaced, so that the run can no longer write to it."""


def check_folder(run: Run) -> None:
    """Raise FolderLostError if the run's folder is no longer the one that this process locked."""
    if not run.holds_lock():
        raise FolderLostError(
            f"{run.path} was removed or replaced during training; its contents are lost, and nothing was written to a "
            "new folder of that name"
        )
