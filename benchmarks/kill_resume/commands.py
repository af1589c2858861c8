"""Run commands in separate processes, which are killed from outside or kill themselves at a file operation.

A new interpreter spends seconds on imports, and a kill during that time tests nothing. Therefore, most processes are
forked from one that has imported everything; each of them has its own folder, lock, log and signals.
"""

from __future__ import annotations

import builtins
import io
import json
import math
import os
import random
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import IO, Any, NamedTuple, NoReturn, TypeVar

from ppo_unified.config.registry import find_adapter, load

OUTPUT = "output.txt"  # output of a command, in its folder
KINDS = ("checkpoints", "samples", "run.json", "events", "log", "start")  # kinds of files, see `file_kind`
WHENS = ("before", "within", "after")
_ON_PATHS = ("rename", "replace", "mkdir", "unlink", "remove", "rmdir", "link", "truncate")
_ON_DESCRIPTORS = ("fsync", "write", "ftruncate")

T = TypeVar("T")


class KillPoint(NamedTuple):
    """A file operation at which a process kills itself."""

    kind: str  # of the file
    number: int  # index of the operation among those on files of this kind, from 0
    when: str  # "before", "within" (half of the bytes are written) or "after" the operation


class Command(NamedTuple):
    """A ppo-unified command line."""

    arguments: Sequence[str]
    folder: Path  # working directory
    kill_at: KillPoint | None = None
    counts: Path | None = None  # file for the number of operations per kind


def import_for(adapters: Iterable[str]) -> None:
    """Import everything that training with these adapters needs, so that a fork starts immediately.

    Limits torch to one thread, because a fork copies only one.
    """
    import torch

    import_module("ppo_unified.training.session")
    for name in adapters:
        load(find_adapter(name).build)
    torch.set_num_threads(1)


class Process:
    """A command that runs in a fork of this process or, if `fresh`, in a new interpreter."""

    def __init__(self, command: Command, fresh: bool = False) -> None:
        self.code: int | None = None  # exit code after `wait`; negative if a signal ended the process
        self.pid = os.fork()
        if self.pid == 0:
            _run_child(command, fresh)

    def wait(self, seconds: float = math.inf) -> int | None:
        """Wait for the process. Return its exit code, or None if it still runs after so many seconds."""
        deadline = time.monotonic() + seconds
        while self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
            elif time.monotonic() >= deadline:
                return None
            else:
                time.sleep(0.001)
        return self.code

    def signal(self, number: int) -> None:
        """Send a signal. The process ID cannot be reused before `wait` has returned the exit code."""
        if self.code is None:
            os.kill(self.pid, number)


def _run_child(command: Command, fresh: bool) -> NoReturn:
    """Run a command in this forked process, and exit."""
    code = 1
    try:
        os.chdir(command.folder)
        _redirect_output(command.folder / OUTPUT)
        if fresh:
            os.execv(sys.executable, [sys.executable, "-P", "-m", "ppo_unified", *command.arguments])
        code = _run(command)
    except BaseException:
        traceback.print_exc()
    finally:  # never return into the code of the parent process
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _run(command: Command) -> int:
    """Run the command and return its exit code. Reseeds random generators, so that forks do not share their state."""
    import torch

    from ppo_unified.cli.main import main

    torch.seed()
    random.seed()
    operations = Operations(command.kill_at)
    operations.watch()
    code = main(command.arguments)
    if command.counts is not None:
        command.counts.write_text(json.dumps(operations.counts), encoding="utf-8")
    return code


def _redirect_output(path: Path) -> None:
    """Redirect the output of this process to the end of a file."""
    sys.stdout.flush()
    sys.stderr.flush()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)


def file_kind(path: str) -> str | None:
    """Return which of KINDS a file in a run folder belongs to, or None for any other file."""
    parts = Path(path).parts
    if "runs" not in parts:
        return None
    inside = "/".join(parts[parts.index("runs") + 1 :])
    return next((kind for kind in KINDS if kind in inside), "start")


class Operations:
    """Counts the operations by which this process changes files of a run, and kills the process at one of them.

    Only operations through Python's own functions are counted. Native code of libraries is tested by timed kills only.
    """

    def __init__(self, kill_at: KillPoint | None) -> None:
        self.counts: Counter[str] = Counter()
        self._kill_at = kill_at
        self._os = {name: getattr(os, name) for name in (*_ON_PATHS, *_ON_DESCRIPTORS, "open")}
        self._open = io.open

    def watch(self) -> None:
        """Patch `os` and `open` so that all operations pass through this object."""
        for name in (*_ON_PATHS, *_ON_DESCRIPTORS):
            setattr(os, name, self._watch_call(name))
        os.open = self._os_open
        builtins.open = io.open = self._open_file  # type: ignore[assignment]

    def perform(self, path: str, operation: Callable[[], T], half: Callable[[], object] | None = None) -> T:
        """Run an operation. At the kill point, kill this process before, within (after `half`) or after it."""
        kind = file_kind(path)
        if kind is None:
            return operation()
        number, kill_at = self.counts[kind], self._kill_at
        self.counts[kind] += 1
        if kill_at is None or (kind, number) != (kill_at.kind, kill_at.number):
            return operation()
        if kill_at.when == "within" and half is not None:
            half()
        elif kill_at.when != "before":
            operation()
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("a process cannot survive SIGKILL")

    def _watch_call(self, name: str) -> Callable[..., Any]:
        original = self._os[name]

        def watched(target: Any, *others: Any, **more: Any) -> Any:
            path = _resolve_path(target, more.get("dir_fd"))
            half = (lambda: original(target, others[0][: len(others[0]) // 2])) if name == "write" else None
            return self.perform(path, lambda: original(target, *others, **more), half)

        return watched

    def _os_open(self, path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        def operation() -> int:
            return int(self._os["open"](path, flags, mode, dir_fd=dir_fd))

        return self.perform(_resolve_path(path, dir_fd), operation) if flags & os.O_CREAT else operation()

    def _open_file(self, file: Any, mode: str = "r", buffering: int = -1, *others: Any, **more: Any) -> IO[Any]:
        """Open a file like `open`, but create it and write to it through `perform`."""
        if not set(mode) & set("wax+") or isinstance(file, int):
            return self._open(file, mode, buffering, *others, **more)
        path, text = os.fspath(file), "b" not in mode
        plain = "".join(letter for letter in mode if letter not in "bt")
        raw = self.perform(path, lambda: _WatchedFile(self, path, plain))
        if buffering == 0:
            return raw
        size = buffering if buffering > 1 else io.DEFAULT_BUFFER_SIZE
        binary = io.BufferedRandom(raw, size) if "+" in mode else io.BufferedWriter(raw, size)
        if not text:
            return binary
        more["line_buffering"] = buffering == 1
        return io.TextIOWrapper(binary, *others, **more)


class _WatchedFile(io.FileIO):
    """A file that passes its writes to `Operations.perform`."""

    def __init__(self, operations: Operations, path: str, mode: str) -> None:
        super().__init__(path, mode)
        self._operations, self._path = operations, path

    def write(self, data: Any) -> int:
        view, write = memoryview(data).cast("B"), super().write
        return self._operations.perform(self._path, lambda: write(view), lambda: write(view[: len(view) // 2]))


def _resolve_path(target: Any, folder: int | None) -> str:
    """Return the absolute path of a path or file descriptor. `folder` is the descriptor of a relative path's parent."""
    if isinstance(target, int):
        with suppress(OSError):
            return str(Path(f"/proc/self/fd/{target}").readlink())
        return ""
    within = _resolve_path(folder, None) if folder is not None else str(Path.cwd())
    return os.path.join(within, os.fsdecode(target))  # noqa: PTH118 - either may be absolute


def read_counts(path: Path) -> dict[str, int]:
    counts: dict[str, int] = json.loads(path.read_text(encoding="utf-8"))
    return counts
