"""Whole commands in processes of their own, which are killed at a moment or kill themselves at a file operation.

A fresh interpreter spends seconds on its imports, in which there is nothing to lose. So most processes are forked from
one that has imported everything; each then is a process like any other, with its own folder, lock, log and signals.
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

OUTPUT = "output.txt"  # of a command, in its folder
KINDS = ("checkpoints", "samples", "run.json", "events", "log", "start")  # of files, as `kind_of` tells them apart
WHENS = ("before", "within", "after")
_ON_PATHS = ("rename", "replace", "mkdir", "unlink", "remove", "rmdir", "link", "truncate")
_ON_DESCRIPTORS = ("fsync", "write", "ftruncate")

T = TypeVar("T")


class KillPoint(NamedTuple):
    """A file operation at which a process kills itself."""

    kind: str  # of the file
    number: int  # of the operation among those on files of this kind, from 0
    when: str  # "before" it, "within" it (a write: half of the bytes are written) or "after" it


class Command(NamedTuple):
    """A command of ppo-unified."""

    arguments: Sequence[str]
    folder: Path  # where it works
    kill_at: KillPoint | None = None
    counts: Path | None = None  # where to write how many operations there were of each kind


def import_for(adapters: Iterable[str]) -> None:
    """Import what commands need that train with these adapters: a fork then starts at once.

    One thread, as a fork has no others.
    """
    import torch

    import_module("ppo_unified.training.session")
    for name in adapters:
        load(find_adapter(name).build)
    torch.set_num_threads(1)


class Process:
    """A command, run by a fork of this process or, if `fresh`, by an interpreter of its own."""

    def __init__(self, command: Command, fresh: bool = False) -> None:
        self.code: int | None = None  # its exit code once it was waited for, negative if a signal ended it
        self.pid = os.fork()
        if self.pid == 0:
            _run_child(command, fresh)

    def wait(self, seconds: float = math.inf) -> int | None:
        """Its exit code; None if it lives on after so many seconds."""
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
        """Send a signal; until it was waited for, nobody else can have its process id."""
        if self.code is None:
            os.kill(self.pid, number)


def _run_child(command: Command, fresh: bool) -> NoReturn:
    """Use this process for a command."""
    code = 1
    try:
        os.chdir(command.folder)
        _redirect_output(command.folder / OUTPUT)
        if fresh:
            os.execv(sys.executable, [sys.executable, "-P", "-m", "ppo_unified", *command.arguments])
        code = _run(command)
    except BaseException:
        traceback.print_exc()
    finally:  # nothing of the parent's may run in its copy
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _run(command: Command) -> int:
    """The command's exit code. No random state is shared with other forks, as it is not between interpreters."""
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
    """Append the output of this process to a file."""
    sys.stdout.flush()
    sys.stderr.flush()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)


def file_kind(path: str) -> str | None:
    """Which of KINDS a file of a run belongs to; None for any other file."""
    parts = Path(path).parts
    if "runs" not in parts:
        return None
    inside = "/".join(parts[parts.index("runs") + 1 :])
    return next((kind for kind in KINDS if kind in inside), "start")


class Operations:
    """Counts this process's operations that change files of a run, and ends it at one of them.

    What Python's own functions do is seen; what a library writes by itself is hit by kills at a moment only.
    """

    def __init__(self, kill_at: KillPoint | None) -> None:
        self.counts: Counter[str] = Counter()
        self._kill_at = kill_at
        self._os = {name: getattr(os, name) for name in (*_ON_PATHS, *_ON_DESCRIPTORS, "open")}
        self._open = io.open

    def watch(self) -> None:
        """From here on every operation passes through this object."""
        for name in (*_ON_PATHS, *_ON_DESCRIPTORS):
            setattr(os, name, self._watch_call(name))
        os.open = self._os_open
        builtins.open = io.open = self._open_file  # type: ignore[assignment]

    def perform(self, path: str, operation: Callable[[], T], half: Callable[[], object] | None = None) -> T:
        """Do it; if it is the one, kill this process before, within or after it. `half` does a part of it."""
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
        """As `open`, but that writes go through `perform`, and so does making the file."""
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
    """A file whose writes are operations."""

    def __init__(self, operations: Operations, path: str, mode: str) -> None:
        super().__init__(path, mode)
        self._operations, self._path = operations, path

    def write(self, data: Any) -> int:
        view, write = memoryview(data).cast("B"), super().write
        return self._operations.perform(self._path, lambda: write(view), lambda: write(view[: len(view) // 2]))


def _resolve_path(target: Any, folder: int | None) -> str:
    """The path behind a path or a descriptor, absolute; `folder` is the descriptor that a path is relative to."""
    if isinstance(target, int):
        with suppress(OSError):
            return str(Path(f"/proc/self/fd/{target}").readlink())
        return ""
    within = _resolve_path(folder, None) if folder is not None else str(Path.cwd())
    return os.path.join(within, os.fsdecode(target))  # noqa: PTH118 - either may be absolute


def read_counts(path: Path) -> dict[str, int]:
    counts: dict[str, int] = json.loads(path.read_text(encoding="utf-8"))
    return counts
