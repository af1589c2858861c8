"""Start, resume, rename and delete runs, and list their events, from other processes.

The command line and the terminal UI both call these functions. Each run is trained in a separate process. To keep
startup fast, this module avoids torch.
"""

from __future__ import annotations

import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from ppo_unified.errors import UsageError
from ppo_unified.parsing import open_file
from ppo_unified.runs import processes
from ppo_unified.runs.background import Standby
from ppo_unified.runs.folder import (
    ACTIVE,
    LOCK,
    PHASES,
    SOLVED,
    STALLED_S,
    Run,
    Status,
    check_name,
    hidden_name,
    read_warnings,
)
from ppo_unified.runs.signals import UNRECORDED, why_ended
from ppo_unified.text import format_number

LAST_BYTES, LAST_LINES = 8192, 20  # how much is shown of the end of a crashed run's log


class Event(NamedTuple):
    """An event in a run's history. `time` is in seconds since the epoch. Values missing from run.json are None."""

    time: float | None
    step: int | None
    what: str
    text: str  # may have several lines


def start(
    arguments: Sequence[str],
    runs: Path,
    on_created: Callable[[Run], object] | None = None,
    standby: Standby | None = None,
) -> Run:
    """Start `ppo-unified train ARGUMENTS` in the background, in the standby process if there is one, and wait until
    training has started.

    `on_created` is called with the run as soon as its folder exists. If the process ends before training starts, raises
    UsageError with the process's error message.
    """
    words = ["train", *arguments, "--runs", str(runs)]
    run, _ = processes.detach(words, on_created=on_created, standby=standby)
    return run


def resume(run: Run, *flags: str) -> Run:
    """Resume a run in the background and wait until training has started. `flags` are passed to the command `resume`.

    A run without a checkpoint restarts at step 0; `describe_restart` returns what this discards. If the process ends
    before training starts, raises UsageError with the process's error message.
    """
    processes.detach(["resume", str(run.path.resolve()), "--yes", *flags], resumed=run)
    return run


def describe_restart(run: Run, status: Status) -> str:
    """Describe what resuming the run discards because it has no checkpoint, or return "" if it discards nothing."""
    if not status.step or run.checkpoint_folders():
        return ""
    what = f"discards the curves and samples of {status.step:,} steps"
    return f"{run.name} has no checkpoint, so resuming restarts the training at step 0 and {what}"


def rename(run: Run, name: str) -> Run:
    """Rename a run's folder and return the renamed run. For a symbolic link, only the link is renamed.

    Raises UsageError if the run is training, or if the name is invalid or taken.
    """
    check_name(name)
    path = run.path.with_name(name)
    with _exclude_trainers(run, "renamed"):
        if os.path.lexists(path):
            raise UsageError(f"{path} already exists; choose another name")
        linked = run.path.is_symlink()
        try:
            run.path.rename(path)
        except OSError as error:
            raise UsageError(f"{run.path}: cannot rename the folder ({error.strerror})") from None
        renamed = Run(path)
        if not linked:
            with suppress(UsageError):  # a damaged run.json is left unchanged
                status = renamed.read_status()
                status.name = name
                renamed.write_status(status)
    return renamed


def delete(run: Run) -> None:
    """Delete a run's folder. For a symbolic link, only the link is deleted.

    Raises UsageError if the run is training, if the folder is not a run folder, or if a file cannot be deleted.
    """
    if not (run.path / "run.json").is_file():
        raise UsageError(f"{run.path}: not a run folder, because it contains no run.json; nothing was deleted")
    with _exclude_trainers(run, "deleted"):
        try:
            if run.path.is_symlink():
                run.path.unlink()
            else:
                _remove(run.path)
        except OSError as error:
            raise UsageError(f"{error.filename or run.path}: deletion failed ({error.strerror})") from None


def _remove(path: Path) -> None:
    """Hide a run's folder before removing it, so that no partial run is visible. On OSError, make it visible again."""
    aside = path.with_name(hidden_name())
    path.rename(aside)
    try:
        for entry in list(os.scandir(aside)):
            if entry.name not in ("run.json", LOCK):  # these come last: if deletion fails, a run remains
                shutil.rmtree(entry) if entry.is_dir(follow_symlinks=False) else Path(entry).unlink()
        shutil.rmtree(aside)
    except OSError as error:
        with suppress(OSError):
            aside.rename(path)
            error.filename = str(error.filename).replace(str(aside), str(path))
        raise


@contextmanager
def _exclude_trainers(run: Run, what: str) -> Iterator[None]:
    """Prevent other processes from training the run inside the block. Raises UsageError if the run is training."""
    _check_idle(run, what)
    held = Run(run.path)
    if not (run.path / LOCK).is_symlink():  # a run whose lock is a link cannot be trained
        held.acquire()
    try:
        yield
    finally:
        held.release()


def _check_idle(run: Run, what: str) -> None:
    """Raise UsageError if the run's trainer is alive on this machine or, according to its heartbeat, on another one."""
    status = Status()
    with suppress(UsageError):
        status = run.read_status()
    elsewhere = status.state in ACTIVE and status.host != socket.gethostname()
    if run.is_locked() or (elsewhere and time.time() - status.heartbeat < STALLED_S):
        where = f" on {status.host}" if elsewhere else ""
        stop_it = f"stop it first: ppo-unified stop {run.name}"
        raise UsageError(f"{run.name} cannot be {what} while it is training{where}; {stop_it}")


def list_events(run: Run, status: Status) -> list[Event]:
    """List a run's events from run.json in chronological order. A crashed run's last event quotes its log."""
    about = [status.preset, f"seed {status.seed}", f"process {status.pid} on {status.host}", status.device]
    versions = ", ".join(f"{package} {version}" for package, version in status.versions.items())
    began = ", ".join(filter(None, about)) + (f"\n{versions}" if versions else "")
    results = [*_warning_events(status)]
    if status.solved_step is not None:
        text = "two further evaluations also reached the threshold"
        results.insert(0, Event(None, status.solved_step, "solved", text))
    if status.best_step is not None:
        results.insert(0, Event(None, status.best_step, "best score", format_number(status.best_score)))
    results.sort(key=lambda event: event.step or 0)
    story = [[Event(status.started or None, 0, "started", began)], *map(_resume_events, status.resumes)]
    restored = [-1, *map(_restored_step, status.resumes)]
    for event in results:  # a resume discards later steps, so a result belongs to the last resume before its step
        story[max(k for k, step in enumerate(restored) if step < max(0, event.step or 0))].append(event)
    return [*(event for part in story for event in part), *_end_events(run, status)]


def _warning_events(status: Status) -> Iterator[Event]:
    """Yield an event for each health warning. Its step is the one at which the warning started."""
    for warning in read_warnings(status):
        yield Event(None, warning.since, "warning", f"{warning.name}: {warning.text}")


def _restored_step(entry: dict[str, object]) -> int:
    """Return the step at which a resume continued. Older versions did not record it; they recorded the last step."""
    step = entry.get("checkpoint", entry.get("step"))
    return step if isinstance(step, int) else 0


def _resume_events(entry: dict[str, object]) -> list[Event]:
    """Return the crash that preceded a resume, if there was one, and the resume.

    `entry` is an entry of `resumes` in run.json, whose values may have any type.
    """
    step, before = entry.get("step"), entry.get("from_state")
    step = step if isinstance(step, int) else None
    events = []
    if before in ACTIVE:
        events.append(Event(_number(entry.get("ended")), step, "crashed", str(entry.get("reason") or UNRECORDED)))
    text = "after a crash" if before in ACTIVE else f"previous state: {before}" if before else ""
    if "checkpoint" in entry and entry["checkpoint"] is None:
        text += "; restarted at step 0, because there was no checkpoint"
    changed, restored = entry.get("changed"), entry.get("restored", "exact")
    if restored != "exact":
        text += f"\nnot restored exactly: {restored}"
    if isinstance(changed, dict):
        for name, values in changed.items():
            text += f"\n{name}: {' -> '.join(map(str, values)) if isinstance(values, list) else values}"
    return [*events, Event(_number(entry.get("time")), step, "resumed", text.removeprefix("; "))]


def _number(value: object) -> float | None:
    return value if isinstance(value, int | float) else None


def _end_events(run: Run, status: Status) -> list[Event]:
    """Return a list with the event that describes how the run ended, or an empty list if the run is active."""
    state = run.state(status)
    text = why_ended(run, status, state).removeprefix(f"{state} ")  # "by Ctrl-C" in "stopped by Ctrl-C"
    if state in ACTIVE:
        return []
    if text == UNRECORDED:
        tail = last_lines(run.log)
        text = "The process ended without recording a reason: "
        text += "it was killed or ran out of memory, or the machine went down."
        text += f"\nLast lines of {run.log.name}:\n{tail}" if tail else ""
    elif state == "stalled":
        doing = f" (phase: {status.phase})" if status.phase in PHASES else ""
        text = f"The process is alive but has made no progress for a minute{doing}."
    elif status.traceback:
        text += f"\n{status.traceback.rstrip()}"
    what = status.state if state == SOLVED else state  # the event `solved` is the evaluation that reached the threshold
    return [Event(status.heartbeat or None, status.step, what, text)]


def describe_end(run: Run, status: Status, state: str) -> str:
    """Describe how a run ended in a few words, such as 'solved', 'crashed (killed?)' or 'stopped by Ctrl-C'."""
    reason = why_ended(run, status, state)
    if not reason or reason.startswith(state):
        return reason or state
    return f"{state} ({'killed?' if reason == UNRECORDED else reason})"


def last_lines(path: Path) -> str:
    """Return the last lines of a text file of any size, or an empty string if it cannot be read."""
    with suppress(OSError), open_file(path) as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - LAST_BYTES))
        return "\n".join(file.read().decode(errors="replace").splitlines()[-LAST_LINES:])
    return ""
