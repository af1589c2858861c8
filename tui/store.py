"""The data that the UI has read from a runs folder. A reader thread calls `update`; other threads read the results.

No locks are needed because published data never changes: entries are frozen, the mapping that contains them is replaced
as a whole, and curves are views of rows that are not written again.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from ppo_unified.errors import UsageError
from ppo_unified.runs.folder import ACTIVE, ALIVE, Run, Status, ended_state, has_stalled
from ppo_unified.runs.metrics import AWAITED, sort_tags
from ppo_unified.runs.notes import read_note_line
from ppo_unified.runs.progress import steps_left
from ppo_unified.runs.signals import why_ended
from tui.folder_scanner import Folder, FolderScanner, Stamp, stamp_if_any
from tui.log_record import CurveReader, LogRecord
from tui.runs.entries import UNREADABLE, Entry, entry_options

SCAN_S, LOOK_S = 1.0, 0.4  # interval between scans of the folder, and between checks of active runs
SCAN_SHARE = 100  # scans use at most 1/100 of a processor, so a large tree is scanned less often
PACE_S = 10.0  # the speed is averaged over this time
CACHED = 200_000_000  # maximum bytes of curves that are no longer watched
_LOOKS = 3  # attempts to read a run.json that changes during the check


class Curve(NamedTuple):
    """The points of one tag, read-only and with ascending steps."""

    steps: np.ndarray  # [P] int64
    walls: np.ndarray  # [P] float64, s since the epoch
    values: np.ndarray  # [P] float32


class Changes(NamedTuple):
    """The result of an update."""

    listed: bool  # an entry was added, removed or changed, or the damage in event files has changed
    advanced: frozenset[str]  # keys of runs with new points, or that turned out to have none
    pending: bool  # there is more to read

    @property
    def is_news(self) -> bool:
        """True if the UI must show something new."""
        return self.listed or bool(self.advanced)

    def merge(self, later: Changes) -> Changes:
        """Combine the results of this update and a later one."""
        return Changes(self.listed or later.listed, self.advanced | later.advanced, later.pending)


class Store:
    """The runs of a folder and the curves of the watched ones."""

    def __init__(self, folder: Path, clock: Callable[[], float] = time.time) -> None:
        self.folder = folder
        self.problem = ""  # why the folder cannot be scanned completely
        self.entries: Mapping[str, Entry] = MappingProxyType({})
        self.damage: Mapping[str, str] = MappingProxyType({})  # key -> description of damage in its event files
        self.clock = clock
        self._folders = FolderScanner(folder)
        self._scanned = self._looked = -math.inf
        self._scan_s = SCAN_S
        self._runs: dict[str, _RunRecord] = {}
        self._logs: dict[str, LogRecord] = {}
        self._watched: tuple[str, ...] = ()
        self._trimmed_for: tuple[str, ...] = ()  # the watched runs when the cache was last trimmed
        self._unread: frozenset[str] = frozenset()  # watched runs that the last update had no time to read
        self._readers: OrderedDict[str, CurveReader] = OrderedDict()  # least recently watched first
        self._curves: dict[str, Mapping[str, Curve]] = {}

    # methods for any thread

    def watch(self, keys: Iterable[str]) -> bool:
        """Read the curves of only these runs from now on. Return True if the curves of a new run must be read first."""
        before, self._watched = self._watched, tuple(dict.fromkeys(keys))
        return any(key not in before and key not in self._curves for key in self._watched)

    def tags(self, key: str) -> list[str]:
        """Return the tags of a run's curves."""
        return sorted(self._curves.get(key, ()))

    def chart_tags(self, keys: Iterable[str]) -> list[str]:
        """Return the metrics of these runs in display order.

        If a run is active and no run has a point yet, return the metrics that the engine will log.
        """
        keys = list(keys)
        known = {tag for key in keys for tag in self._curves.get(key, ())}
        seen, readers = self._without_points(keys), self._readers
        awaited = any(entry.key in readers and entry.state in ALIVE for entry in seen)
        return sort_tags(known or (AWAITED if awaited else ()))

    def _without_points(self, keys: Iterable[str]) -> list[Entry]:
        """Return the entries of the runs in `keys` of which no point has been read yet."""
        entries = self.entries
        return [entries[key] for key in keys if key in entries and not self._curves.get(key)]

    def curve(self, key: str, tag: str) -> Curve | None:
        """Return the curve of one of a run's tags, or None if the run has no such curve."""
        return self._curves.get(key, {}).get(tag)

    def request_scan(self) -> None:
        """Make the next update scan the folder, even if no scan is due."""
        self._scanned = -math.inf

    # methods for the reader thread only

    def update(self, budget_s: float = 0.05) -> Changes:
        """Scan the folder if a scan is due, then read curves for about `budget_s`. Invalid files raise no errors."""
        now = self.clock()
        if _is_due(now, self._scanned, self._scan_s):
            self._scanned = self._looked = now
            self._scan()
        elif _is_due(now, self._looked, LOOK_S):
            self._looked = now
            for record in self._runs.values():
                if record.status.state in ACTIVE:
                    record.refresh(now)
        advanced, pending = self._read(budget_s)
        unread = self._read_options(budget_s)
        self._trim_cache()
        return Changes(self._publish(), frozenset(advanced), pending or unread)

    def awaits_first_point(self) -> bool:
        """Return True if a watched run is active and no point of it has been read yet."""
        return any(entry.state in ACTIVE for entry in self._without_points(self._watched))

    def _scan(self) -> None:
        started = time.thread_time()
        found = self._folders.scan()
        self.problem = self._folders.problem
        runs, logs, now = {}, {}, self.clock()
        for folder in found:
            if folder.stamp is None:
                log = logs[folder.key] = self._logs.get(folder.key) or LogRecord(folder)
                log.update(folder)
            else:
                record = runs[folder.key] = self._runs.get(folder.key) or _RunRecord(folder)
                if record.has_changed(folder.stamp):
                    record.refresh(now)
        self._runs, self._logs = runs, logs
        for key in [key for key in self._readers if key not in runs and key not in logs]:
            self._drop(key)
        for key, reader in self._readers.items():
            reader.set_parts(self._parts(key))
        self._scan_s = max(SCAN_S, SCAN_SHARE * (time.thread_time() - started))

    def _read(self, budget_s: float) -> tuple[set[str], bool]:
        """Continue reading the watched runs, each for its share of the time, then the ends of the other logs.

        Return the runs with new points, and True if there is more to read. Runs that were not read because time ran out
        come first in the next update.
        """
        deadline, advanced = time.monotonic() + budget_s, set()
        keys = [key for key in self._watched if key in self._runs or key in self._logs]
        left = [key for key in keys if key in self._unread] or list(keys)
        while left:
            remaining = deadline - time.monotonic()
            if self._read_one(left[0], remaining / len(left)):
                advanced.add(left[0])
            del left[0]
            if remaining <= 0:
                break
        self._unread = frozenset(left)
        pending = bool(left) or any(key not in self._readers or self._readers[key].pending for key in keys)
        return advanced, pending or self._read_ends(deadline)

    def _read_one(self, key: str, budget_s: float) -> bool:
        """Continue reading one run. Return True if it had new points or was read for the first time."""
        new = key not in self._readers
        if new:
            self._readers[key] = CurveReader(self.folder / key, self._parts(key))
        self._readers.move_to_end(key)
        return self._poll(key, budget_s) or new

    def _poll(self, key: str, budget_s: float) -> bool:
        """Read new points of a run that has a reader. Return True if there are any."""
        reader, log = self._readers[key], self._logs.get(key)
        changed = reader.poll(budget_s)
        if changed:
            self._curves[key] = {tag: Curve(*series.numpy()) for tag, series in reader.series.items()}
        if log is not None:
            log.is_stale |= changed
            if log.is_stale and not reader.pending:  # the last step is unknown before everything has been read
                log.update_from(reader)
        return changed

    def _parts(self, key: str) -> tuple[str, ...]:
        """Return the subfolders that contain a run's curves."""
        return self._logs[key].parts if key in self._logs else ("",)

    def _read_ends(self, deadline: float) -> bool:
        """Read the end of each log that is not watched and has changed. Return True if there are more such logs."""
        watched = set(self._watched)
        for key, log in self._logs.items():
            if key in watched or not log.is_stale:
                continue
            if time.monotonic() >= deadline:
                return True
            if key in self._readers:
                self._poll(key, deadline - time.monotonic())
            elif not log.read_end(deadline - time.monotonic()):
                return True
        return False

    def _read_options(self, budget_s: float) -> bool:
        """Read the options of runs whose config.toml may have changed. Return True if there is more to read."""
        unread, deadline = [r for r in self._runs.values() if r.has_unread_options], time.monotonic() + budget_s
        while unread and self.entries:  # the first update only lists the runs
            unread.pop().read_options()
            if time.monotonic() > deadline:
                break
        return bool(unread)

    def _trim_cache(self) -> None:
        """Drop the least recently watched curves until the unwatched ones fit into the cache."""
        watched = self._watched
        if watched == self._trimmed_for:
            return
        self._trimmed_for = watched
        idle = [key for key in self._readers if key not in watched]
        size = sum(self._readers[key].nbytes for key in idle)
        for key in idle:
            if size <= CACHED:
                break
            size -= self._readers[key].nbytes
            self._drop(key)

    def _drop(self, key: str) -> None:
        del self._readers[key]
        self._curves.pop(key, None)

    def _publish(self) -> bool:
        """Publish the results. Return True if an entry or the damage has changed."""
        damage = {key: "; ".join(found) for key, reader in self._readers.items() if (found := reader.damage)}
        if damaged := damage != self.damage:
            self.damage = MappingProxyType(damage)
        entries = {key: record.entry for key, record in self._runs.items()}
        entries |= {key: log.entry for key, log in self._logs.items()}
        if entries == self.entries:
            return damaged
        self.entries = MappingProxyType(dict(sorted(entries.items())))
        return True


class _RunRecord:
    """The data read from one run of this program, and its recent speed."""

    def __init__(self, folder: Folder) -> None:
        self._key, self._run = folder.key, Run(Path(folder.path))
        self._status_path, self._note_path = f"{folder.path}/run.json", f"{folder.path}/note.txt"
        self.status, self._problem, self._note = Status(name=self._run.name), "", ""
        self._stamp: Stamp | None = None
        self._note_stamp: Stamp | None = None
        self._checkpoints_stamp: Stamp | None = None
        self._has_checkpoint = False
        self._pace: deque[tuple[float, int]] = deque()  # heartbeat and step of recent changes of the step
        self._trainer: tuple[int, float] = (0, 0.0)
        self.has_unread_options = False  # run.json has changed, so that config.toml may have changed too
        self.entry = Entry(folder.key, self._run.path, False, self.status, self.status.state)

    def has_changed(self, stamp: Stamp) -> bool:
        """Return True if the run is active, or if run.json or the note has a new stamp."""
        return self.status.state in ACTIVE or stamp != self._stamp or stamp_if_any(self._note_path) != self._note_stamp

    def refresh(self, now: float) -> None:
        """Update the entry.

        A trainer writes its final state before it releases the lock. The run has crashed only if run.json is unchanged
        after the lock was found free.
        """
        crashed = False
        for _ in range(_LOOKS):
            alive = self.status.state in ACTIVE and self._run.is_locked()
            changed = self._read_status()
            crashed = not (alive or changed)
            if alive or not changed:
                break
        self._read_note()
        self._look_for_checkpoint()
        self._update_entry(self._state(crashed, now))

    def _state(self, crashed: bool, now: float) -> str:
        if self._problem:
            return UNREADABLE
        if self.status.state not in ACTIVE:
            return ended_state(self.status)
        return "crashed" if crashed else "stalled" if has_stalled(self.status, now) else self.status.state

    def _update_entry(self, state: str) -> None:
        speed, status = self._speed(state), self.status
        left, eta_s = steps_left(status), None
        if speed and left and state in ("starting", "running"):
            waited = status.heartbeat - self._pace[-1][0] if self._pace else 0.0  # time since the last iteration ended
            eta_s = left / speed - waited if left / speed > waited else None  # None if the iteration is overdue
        if state == "crashed":
            status = replace(status, reason=self._crash_reason())
        entry = Entry(
            self._key,
            self._run.path,
            False,
            status,
            state,
            self._note,
            speed,
            eta_s,
            self._problem,
            has_checkpoint=self._has_checkpoint,
            options=self.entry.options,
        )
        if entry != self.entry:
            self.entry = entry

    def read_options(self) -> None:
        """Read the options into the entry."""
        self.has_unread_options = False
        options = entry_options(self.entry)
        if options != self.entry.options:
            self.entry = replace(self.entry, options=options)

    def _crash_reason(self) -> str:
        """Return why the run's process ended. The reason why a process crashed is determined only once."""
        before = self.entry
        if before.state == "crashed" and before.status.pid_started == self.status.pid_started:
            return before.status.reason
        return why_ended(self._run, self.status, "crashed")

    def _speed(self, state: str) -> float | None:
        """Return the speed in steps/s over the last iterations.

        If the run has ended, or if fewer than two iterations were seen, return the overall speed.
        """
        if state == "stalled":
            return None
        if state in ACTIVE and len(self._pace) > 1:
            (first, before), (last, after) = self._pace[0], self._pace[-1]
            return (after - before) / (last - first)
        return self.status.step / self.status.elapsed_s if self.status.elapsed_s > 0 else None

    def _read_status(self) -> bool:
        """Read run.json if it has changed. Return True if it has."""
        stamp = stamp_if_any(self._status_path)
        if stamp == self._stamp or stamp is None:
            return False
        self._stamp, self.has_unread_options = stamp, True
        try:
            self.status, self._problem = self._run.read_status(), ""
        except UsageError as error:
            self._problem = str(error)
            if isinstance(error.__context__, OSError):  # retry: access may be granted later without a new stamp
                self._stamp = None
            if not self.status.started:
                self.status = replace(self.status, started=stamp[0] / 1e9)
        self._record_pace()
        return True

    def _record_pace(self) -> None:
        status, pace = self.status, self._pace
        trainer = (status.pid, status.pid_started)
        if trainer != self._trainer or (pace and (status.heartbeat < pace[-1][0] or status.step < pace[-1][1])):
            pace.clear()  # a new process, or the clock was set back
        self._trainer = trainer
        if not pace or (status.heartbeat > pace[-1][0] and status.step > pace[-1][1]):
            pace.append((status.heartbeat, status.step))
        while len(pace) > 2 and pace[-1][0] - pace[1][0] >= PACE_S:
            pace.popleft()

    def _look_for_checkpoint(self) -> None:
        """List the folder of checkpoints if it has changed."""
        stamp = stamp_if_any(self._run.checkpoints)
        if stamp != self._checkpoints_stamp:
            self._checkpoints_stamp = stamp
            try:
                self._has_checkpoint = bool(self._run.checkpoint_folders())
            except OSError:
                self._has_checkpoint = True  # the error is shown when the checkpoint is used

    def _read_note(self) -> None:
        stamp = stamp_if_any(self._note_path)
        if stamp == self._note_stamp:
            return
        self._note, self._note_stamp = read_note_line(self._run), stamp


def _is_due(now: float, last: float, interval_s: float) -> bool:
    """Return True if an interval is over, or if the clock was set back."""
    return not 0 <= now - last < interval_s
