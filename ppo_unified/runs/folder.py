"""The run directory: the one interface between trainer, CLI, TUI, TensorBoard and scripts. No torch.

A trainer holds `run.lock` for life, so "is it alive" survives kill -9 and reused process ids; `run.json` is replaced
atomically and never half-written.
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

from ppo_unified.errors import UsageError, did_you_mean
from ppo_unified.parsing import parse_fields, read_json

ACTIVE = ("starting", "running", "stopping")  # states that claim a living trainer
LOCK = "run.lock"
LATEST = "latest"  # instead of a run's name: the newest
STALLED_S = 60.0  # a living trainer that has not written run.json for this long
_WRITTEN = (LOCK, "log.txt", "checkpoints", "samples", "nonfinite", "export")  # to what a link would lead outside
_ABANDONED_S = 86400.0  # a folder aside that nobody has touched for so long
_ASIDE = re.compile(r"\.[0-9a-f]{16}\.tmp")  # what `hidden_name` gives
CHECKPOINT = re.compile(r"(\d{12,18})(?:\.(\d{1,9}))?")  # a folder: the step, and which writing of that step it is
_NAME = re.compile(r"[^\W_][\w.+=@ -]{0,99}", re.UNICODE)


@dataclass
class Status:
    """What run.json holds; times in seconds since the epoch."""

    name: str = ""
    preset: str = ""
    kind: str = ""
    state: str = "starting"  # starting, running, stopping, stopped, finished, failed
    step: int = 0
    total_steps: int = 0
    iteration: int = 0
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
    resumes: list[dict[str, Any]] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    device: str = ""
    seed: int = 0
    health: list[dict[str, Any]] = field(default_factory=list)  # of each check that fires: name, since, severe, text


class HealthWarning(NamedTuple):
    """A health check that fires."""

    name: str
    since: int  # step
    text: str  # what it means and what to change


def read_warnings(status: Status) -> list[HealthWarning]:
    """The health checks that fire as run.json tells them; entries of another form are passed over."""
    found = []
    for entry in status.health:
        if isinstance(entry, dict) and type(since := entry.get("since")) is int:
            found.append(HealthWarning(str(entry.get("name", "")), since, str(entry.get("text", ""))))
    return found


def format_percent(status: Status) -> str:
    """How much of its steps a run has taken: '61%', and '100%' only with the last one; '-' where it has no number."""
    return f"{min(100, 100 * status.step // status.total_steps)}%" if status.total_steps else "-"


class Run:
    """One run's folder. Making the object touches nothing on disk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.name
        self.config = path / "config.toml"
        self.original_config = path / "config.begun.toml"  # as it was before the first change
        self.command = path / "command.txt"
        self.log = path / "log.txt"
        self.checkpoints = path / "checkpoints"
        self.samples = path / "samples"
        self.export = path / "export"
        self.note = path / "note.txt"  # written by people
        self._lock: IO[str] | None = None

    def checkpoint_folders(self) -> list[tuple[int, int, Path]]:
        """(step, writing, folder) of all checkpoints, the oldest first; of one step the last writing is valid."""
        try:
            named = [(CHECKPOINT.fullmatch(path.name), path) for path in self.checkpoints.iterdir()]
        except FileNotFoundError:  # any other error is one: a run is not to start anew because its folder can't be read
            return []
        return sorted((int(found[1]), int(found[2] or 0), path) for found, path in named if found)

    def write_status(self, status: Status) -> None:
        write_atomically(self.path / "run.json", to_json(asdict(status)))

    def read_status(self) -> Status:
        """run.json; unknown keys are ignored, missing ones keep their defaults. Raises UsageError if unreadable."""
        path = self.path / "run.json"
        try:
            return Status(**parse_fields(read_json(path), Status))
        except (OSError, ValueError) as error:
            raise UsageError(f"{path}: cannot be read as a run's status ({error})") from None

    def state(self, status: Status) -> str:
        """What to show: the state of run.json, corrected by whether a trainer is alive ('crashed', 'stalled')."""
        if status.state not in ACTIVE:
            return status.state
        if not self.is_locked():
            return "crashed"
        return "stalled" if time.time() - status.heartbeat > STALLED_S else status.state

    def acquire(self) -> None:
        """Become this folder's only trainer until the process ends. Raises UsageError if there is one.

        Whoever is it already stays it. lockf and not flock: a forked environment worker would keep a flock after the
        trainer is gone.
        """
        if self._lock is not None:
            return
        path = self.path / LOCK
        try:
            file = open(path, "a+")  # noqa: SIM115 - any close of this file in this process drops the lock
        except OSError as error:
            raise UsageError(f"{path}: cannot be locked ({error.strerror})") from None
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.close()
            if error.errno not in (errno.EACCES, errno.EAGAIN):  # not taken: a file system without locks, say
                raise UsageError(f"{path}: cannot be locked ({error.strerror})") from None
            raise UsageError(
                f"{self.path}: another process is training in this folder; stop it first: ppo-unified stop {self.name}"
            ) from None
        self._lock = file

    def mark_stopping(self) -> None:
        """Tell other processes that this trainer was asked to stop. Safe in a signal handler, and on a full disk.

        The lock covers every byte that the file might have; from now on it covers the first alone.
        """
        if self._lock is not None:
            fcntl.lockf(self._lock, fcntl.LOCK_UN, 0, 1)

    def is_stopping(self) -> bool:
        """Whether another process trains here and was asked to stop."""
        return self.holder() is not None and self._holder_from(1) is None

    def check_no_links(self) -> None:
        """Raises UsageError where a trainer would write through a symbolic link: a folder from somebody else may hold
        one that leads anywhere."""
        for name in _WRITTEN:
            path = self.path / name
            if path.is_symlink():
                raise UsageError(
                    f"{path} is a symbolic link to {str(path.readlink())!r}, and nothing is written through one; put "
                    "what it leads to in its place, or let the run's whole folder be the link"
                )

    def release(self) -> None:
        """Give the folder up."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def move(self, path: Path) -> Run:
        """The run once its folder has another path; the lock goes along. Raises OSError."""
        self.path.rename(path)
        run = Run(path)
        run._lock, self._lock = self._lock, None
        return run

    def holds_lock(self) -> bool:
        """Whether the folder's lock is the one that this process took: not where the folder was removed or replaced."""
        try:
            there = (self.path / "run.lock").stat()
        except OSError:
            return False
        return self._lock is not None and os.path.samestat(there, os.fstat(self._lock.fileno()))

    def is_locked(self) -> bool:
        """Whether a trainer lives, asked without taking the lock: that could make a starting trainer fail."""
        return self.holder() is not None

    def holder(self) -> int | None:
        """The process that trains here, by the kernel's own word; None where there is none but perhaps this one."""
        return self._holder_from(0)

    def _holder_from(self, byte: int) -> int | None:
        """The other process that has the lock's bytes from one on, or some of them."""
        try:
            with open(self.path / LOCK, "rb") as file:
                kind, pid = _kind_and_pid(fcntl.fcntl(file, fcntl.F_GETLK, _flock(fcntl.F_WRLCK, byte)))
        except OSError:
            return None
        return None if kind == fcntl.F_UNLCK else pid


def _flock(kind: int, first: int) -> bytes:
    """struct flock over a file's bytes from one on, as this system lays it out."""
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
    """JSON text; NaN and infinities become null, as JSON has no word for them."""
    return json.dumps(_replace_nonfinite(document), indent=indent, allow_nan=False)


def _replace_nonfinite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _replace_nonfinite(x) for key, x in value.items()}
    if isinstance(value, (list, tuple)):
        return [_replace_nonfinite(x) for x in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def check_name(name: str) -> None:
    """Raises UsageError unless `name` can be a folder directly under the runs folder and means nothing else."""
    if name == LATEST:
        raise UsageError(f"run name {name!r} means the newest run in every command; choose another --name")
    if not _NAME.fullmatch(name) or name.endswith((" ", ".")):
        raise UsageError(
            f"run name {name!r}: use letters, digits and . _ + = @ - (at most 100, a letter or digit first); "
            "it names a folder inside the runs folder"
        )


def create(runs: Path, name: str, default: str, fill: Callable[[Run, str], object] | None = None) -> Run:
    """Make a new run folder: `name`, or if empty the first free of default, default-2, ...

    `fill` is given the folder and the name it will have, and puts in what a run needs to be one. Only then does the
    folder get its name: whoever is killed meanwhile leaves a hidden folder, never half a run that keeps a name taken.
    Raises UsageError when the name is unfit or taken, or the folder can't be made.
    """
    try:
        check_name(name or default)
    except UsageError as error:
        typed = "" if name else "; it comes from what is trained: give another with --name NAME"
        raise UsageError(f"{error}{typed}") from None
    _remove_abandoned(runs)
    aside = Run(runs / hidden_name())
    try:
        aside.path.mkdir(parents=True)
        (aside.path / LOCK).touch()  # no folder of a run is empty: an empty one could be replaced by a rename
        while True:
            path = runs / (name or free_name(runs, default))
            if not os.path.lexists(path):
                if fill is not None:
                    fill(aside, path.name)
                if run := _move_into_place(aside, path):
                    return run
            if name:  # without one, the next free one will do
                raise UsageError(
                    f"{path} exists already; resume it (ppo-unified resume {name}) or choose another --name"
                )
    except OSError as error:
        raise UsageError(
            f"{runs}: the runs folder cannot be written ({error.strerror}); choose another with --runs DIR"
        ) from None
    finally:
        if aside.path.exists():
            aside.release()
            shutil.rmtree(aside.path, ignore_errors=True)


def hidden_name() -> str:
    """A name for a folder that is not yet a run, or no longer: what a kill leaves under it is swept a day later."""
    return f".{secrets.token_hex(8)}.tmp"


def _remove_abandoned(runs: Path) -> None:
    """Remove what was left aside where a process was killed: folders of such names, old, and without a trainer."""
    for path in runs.glob(".*.tmp"):
        with suppress(OSError):
            old = time.time() - path.stat().st_mtime > _ABANDONED_S
            if old and _ASIDE.fullmatch(path.name) and not Run(path).is_locked():
                shutil.rmtree(path, ignore_errors=True)


def _move_into_place(aside: Run, path: Path) -> Run | None:
    """A new run under its name; None where another process has taken that meanwhile. Raises UsageError for a name too
    long: how long one may be, in bytes, depends on the file system."""
    try:
        return aside.move(path)
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
            return None
        if error.errno == errno.ENAMETOOLONG:
            size = len(os.fsencode(path.name))
            raise UsageError(
                f"run name {path.name!r}: has {size} bytes, too long for this file system; choose a shorter --name"
            ) from None
        raise


def free_name(runs: Path, default: str) -> str:
    """The first of default, default-2, ... that is not there; another process may still take it first."""
    number = 1
    while os.path.lexists(runs / (name := default if number == 1 else f"{default}-{number}")):
        number += 1
    return name


def all_runs(runs: Path, damaged: list[str] | None = None) -> Iterator[tuple[Run, Status]]:
    """Every readable run under `runs`, the newest first; hidden folders and those without a run.json are passed over.

    What is wrong with a run.json that can't be read is added to `damaged`.
    """
    found = []
    with suppress(OSError):
        for entry in os.scandir(runs):
            if entry.name.startswith("."):  # `create` is at work there
                continue
            run = Run(Path(entry.path))
            try:
                found.append((run, run.read_status()))
            except UsageError as error:
                if damaged is not None and (run.path / "run.json").exists():
                    damaged.append(str(error))
    yield from sorted(found, key=lambda pair: pair[1].started, reverse=True)


def find(reference: str, runs: Path) -> Run:
    """The run that `reference` means: a name under `runs`, a path, or 'latest'. Raises UsageError if there is none."""
    if reference == LATEST:
        newest = next(all_runs(runs), None)
        if newest is None:
            raise UsageError(f"{runs}: there is no run yet; start one with: ppo-unified train cartpole")
        return newest[0]
    for path in (runs / reference, Path(reference)):
        with suppress(OSError):  # a name too long for the file system, say, names no run either
            if (path / "run.json").is_file():
                return Run(path if path.name else path.resolve())  # '.' has no name of its own
    names = [run.name for run, _ in all_runs(runs)]
    listing = "ppo-unified runs" + ("" if runs == Path("runs") else f" --runs {runs}")
    raise UsageError(f"no run {reference!r} in {runs}{did_you_mean(reference, names)} (list: {listing})")


@contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; the file that the block writes there replaces `path` when the block ends.

    If the block raises, `path` keeps its content and the temporary file is removed. A killed process may leave one
    behind, named .NAME.PID.tmp.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def write_atomically(path: Path, text: str) -> None:
    """Replace the content of a text file. Raises OSError, and UnicodeEncodeError for text that is not valid Unicode."""
    with replace_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


class FolderLostError(Exception):
    """The run folder is gone, or another one has its name: there is nothing to write to any more."""


def check_folder(run: Run) -> None:
    """Raises FolderLostError where the folder is no longer the one that this process locked."""
    if not run.holds_lock():
        raise FolderLostError(
            f"{run.path} was removed or replaced while it trained; what it held is lost, and nothing was written in "
            "its place"
        )
