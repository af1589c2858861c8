"""What can be done to runs from outside: start, resume, rename, delete, annotate, tell their story. No torch.

The command line and the terminal UI both call these; a run is always trained by a process of its own.
"""

from __future__ import annotations

import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from pathlib import Path
from typing import NamedTuple

from ppo_unified.errors import UsageError
from ppo_unified.parsing import open_file
from ppo_unified.runs import processes
from ppo_unified.runs.folder import (
    ACTIVE,
    LOCK,
    STALLED_S,
    Run,
    Status,
    check_name,
    hidden_name,
    read_warnings,
    write_atomically,
)
from ppo_unified.text import format_number

LAST_BYTES, LAST_LINES = 8192, 20  # of the log of a run that ended without a word
LONGEST_NOTE = 1 << 16  # characters; the rest is not read


class Event(NamedTuple):
    """Something that happened to a run. Time in seconds since the epoch; None where run.json does not say."""

    time: float | None
    step: int | None
    what: str
    text: str  # may have several lines


def start(arguments: Sequence[str], runs: Path, on_created: Callable[[Run], object] | None = None) -> Run:
    """Start `ppo-unified train ARGUMENTS` in the background and wait until it trains.

    `on_created` is called with the run as soon as its folder exists. Raises UsageError with the message of a process
    that refuses.
    """
    run, _ = processes.detach(["train", *arguments, "--runs", str(runs)], on_created=on_created)
    return run


def resume(run: Run, *flags: str) -> Run:
    """Go on with a run in the background and wait until it trains; `flags` as of the command `resume`.

    Raises UsageError with what the process said if it refused.
    """
    processes.detach(["resume", str(run.path.resolve()), *flags], resumed=run)
    return run


def rename(run: Run, name: str) -> Run:
    """The run under another name in the same folder; of a symbolic link the link itself is renamed.

    Raises UsageError while it is trained, and where the name is unfit or taken.
    """
    check_name(name)
    path = run.path.with_name(name)
    with _hold_idle(run, "renamed"):
        if os.path.lexists(path):
            raise UsageError(f"{path} exists already; choose another name")
        linked = run.path.is_symlink()
        try:
            run.path.rename(path)
        except OSError as error:
            raise UsageError(f"{run.path}: cannot be renamed ({error.strerror})") from None
        renamed = Run(path)
        if not linked:
            with suppress(UsageError):  # a damaged run.json stays as it is
                status = renamed.read_status()
                status.name = name
                renamed.write_status(status)
    return renamed


def delete(run: Run) -> None:
    """Remove a run's folder; of a symbolic link the link alone.

    Raises UsageError while it is trained, for what is no run, and where something cannot be removed.
    """
    if not (run.path / "run.json").is_file():
        raise UsageError(f"{run.path}: holds no run.json, so it is not taken for a run; nothing was deleted")
    with _hold_idle(run, "deleted"):
        try:
            if run.path.is_symlink():
                run.path.unlink()
            else:
                _remove(run.path)
        except OSError as error:
            raise UsageError(f"{error.filename or run.path}: cannot be deleted ({error.strerror})") from None


def _remove(path: Path) -> None:
    """Remove a run's folder, out of sight: nobody finds half a run. Raises OSError; what is left is a run again."""
    aside = path.with_name(hidden_name())
    path.rename(aside)
    try:
        for entry in list(os.scandir(aside)):
            if entry.name not in ("run.json", LOCK):  # go last: what is left of a failed deletion is still a run
                shutil.rmtree(entry) if entry.is_dir(follow_symlinks=False) else Path(entry).unlink()
        shutil.rmtree(aside)
    except OSError as error:
        with suppress(OSError):
            aside.rename(path)
            error.filename = str(error.filename).replace(str(aside), str(path))
        raise


@contextmanager
def _hold_idle(run: Run, what: str) -> Iterator[None]:
    """Inside the block nobody can begin to train the run. Raises UsageError where somebody does."""
    _check_idle(run, what)
    held = Run(run.path)
    if not (run.path / LOCK).is_symlink():  # nobody trains where the lock leads elsewhere
        held.acquire()
    try:
        yield
    finally:
        held.release()


def _check_idle(run: Run, what: str) -> None:
    """Raises UsageError while a trainer lives, here or, as far as its heartbeat tells, on another machine."""
    status = Status()
    with suppress(UsageError):
        status = run.read_status()
    elsewhere = status.state in ACTIVE and status.host != socket.gethostname()
    if run.is_locked() or (elsewhere and time.time() - status.heartbeat < STALLED_S):
        where = f" on {status.host}" if elsewhere else ""
        raise UsageError(f"{run.name} is training{where}; stop it before it is {what}: ppo-unified stop {run.name}")


def read_note(run: Run) -> str:
    """What somebody wrote about the run; empty without a note."""
    try:
        with TextIOWrapper(open_file(run.note), encoding="utf-8", errors="replace") as file:
            return file.read(LONGEST_NOTE).strip()
    except OSError:
        return ""


def write_note(run: Run, text: str) -> None:
    """Keep `text` beside the run; an empty one removes the note. Raises UsageError where it cannot be written."""
    try:
        if text.strip():
            write_atomically(run.note, text.strip() + "\n")
        else:
            run.note.unlink(missing_ok=True)
    except UnicodeEncodeError:
        raise UsageError(f"{run.name}: the note is no UTF-8 text; nothing was written") from None
    except OSError as error:
        raise UsageError(f"{run.note}: cannot be written ({error.strerror})") from None


def list_events(run: Run, status: Status) -> list[Event]:
    """A run's story by step, from run.json; of one that ended without a word, the end of its log."""
    about = [status.preset, f"seed {status.seed}", f"process {status.pid} on {status.host}", status.device]
    versions = ", ".join(f"{package} {version}" for package, version in status.versions.items())
    began = ", ".join(filter(None, about)) + (f"\n{versions}" if versions else "")
    middle = [_resume_event(entry) for entry in status.resumes]
    if status.best_step is not None:
        middle.append(Event(None, status.best_step, "best score", format_number(status.best_score)))
    if status.solved_step is not None:
        middle.append(Event(None, status.solved_step, "solved", "both further evaluations reached the threshold"))
    middle.sort(key=lambda event: event.step or 0)
    middle.extend(_warning_events(status))
    middle.sort(key=lambda event: event.step or 0)
    return [Event(status.started or None, 0, "started", began), *middle, *_end_events(run, status)]


def _warning_events(status: Status) -> Iterator[Event]:
    """The health checks that fire, each from the step on at which it began."""
    for warning in read_warnings(status):
        yield Event(None, warning.since, "warning", f"{warning.name}: {warning.text}")


def _resume_event(entry: dict[str, object]) -> Event:
    """From one of run.json's `resumes`, whose values may be anything."""
    when, step, before = entry.get("time"), entry.get("step"), entry.get("from_state")
    known = isinstance(when, int | float), isinstance(step, int)
    text = "without a word before" if before in ACTIVE else f"it had {before}" if before else ""
    changed, restored = entry.get("changed"), entry.get("restored", "exact")
    if restored != "exact":
        text += f"\nnot exactly: {restored}"
    if isinstance(changed, dict):
        for name, values in changed.items():
            text += f"\n{name}: {' -> '.join(map(str, values)) if isinstance(values, list) else values}"
    return Event(when if known[0] else None, step if known[1] else None, "resumed", text)  # type: ignore[arg-type]


def _end_events(run: Run, status: Status) -> list[Event]:
    """How the run ended, if it has."""
    state, text = run.state(status), status.reason
    if state in ACTIVE:
        return []
    if state == "crashed":
        tail = last_lines(run.log)
        text = "Its process is gone and left no reason: killed, out of memory, or the machine went down."
        text += f"\nThe end of {run.log.name}:\n{tail}" if tail else ""
    elif state == "stalled":
        text = "Its process lives but has not been heard of since."
    elif status.traceback:
        text += f"\n{status.traceback.rstrip()}"
    return [Event(status.heartbeat or None, status.step, state, text)]


def last_lines(path: Path) -> str:
    """The last lines of a text file, however long it is; empty where there is none."""
    with suppress(OSError), open_file(path) as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - LAST_BYTES))
        return "\n".join(file.read().decode(errors="replace").splitlines()[-LAST_LINES:])
    return ""
