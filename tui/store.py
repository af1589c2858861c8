"""What the UI knows of a runs folder. A reader thread calls `update`; any thread looks at what it left.

The reader never changes what it has handed out: entries are frozen, their mapping is replaced as a whole, and curves
are views of rows that are not written again. So no one waits for a lock.
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
from ppo_unified.parsing import read_bytes
from ppo_unified.runs.event_reader import EventReader
from ppo_unified.runs.folder import ACTIVE, STALLED_S, Run, Status
from ppo_unified.runs.metrics import AWAITED, sort_tags
from tui.folder_scanner import Folder, FolderScanner, Stamp, stamp_if_any
from tui.runs.entries import LOG, UNREADABLE, Entry

SCAN_S, LOOK_S = 1.0, 0.4  # between two walks through the folder, and two looks whether active runs live
SCAN_SHARE = 100  # a walk takes at most this part of a processor: a large tree is walked less often
PACE_S = 10.0  # the speed is that of this long
CACHED = 200_000_000  # bytes of curves that nobody watches any more
SCORES = (  # what other programs call their score, the best one first
    "eval/score",
    "eval/mean_reward",
    "rollout/ep_rew_mean",
    "charts/episodic_return",
    "objective/scores",
    "train/objective/scores",
    "train/reward",
    "train/rewards/mean",
)
_LOOKS = 3  # at a run.json that changes while it is looked at


class Curve(NamedTuple):
    """One tag's points, steps ascending; read-only."""

    steps: np.ndarray  # [P] int64
    walls: np.ndarray  # [P] float64, s since the epoch
    values: np.ndarray  # [P] float32


class Changes(NamedTuple):
    """What an update found."""

    listed: bool  # an entry came, went or changed, or what is damaged in event files did
    advanced: frozenset[str]  # keys whose curves have new points, or are known now to have none
    pending: bool  # there is more to read at once

    @property
    def is_news(self) -> bool:
        """Whether there is anything to show."""
        return self.listed or bool(self.advanced)

    def merge(self, later: Changes) -> Changes:
        """What this update and a later one found."""
        return Changes(self.listed or later.listed, self.advanced | later.advanced, later.pending)


class Store:
    """The runs of a folder and the curves of the watched ones."""

    def __init__(self, folder: Path, clock: Callable[[], float] = time.time) -> None:
        self.folder = folder
        self.problem = ""  # why the folder itself cannot be looked through
        self.entries: Mapping[str, Entry] = MappingProxyType({})
        self.damage: Mapping[str, str] = MappingProxyType({})  # key -> what is damaged in its event files
        self.clock = clock
        self._folders = FolderScanner(folder)
        self._scanned = self._looked = -math.inf
        self._scan_s = SCAN_S
        self._runs: dict[str, _RunRecord] = {}
        self._logs: dict[str, Entry] = {}
        self._watched: tuple[str, ...] = ()
        self._trimmed_for: tuple[str, ...] = ()  # what was watched when the cache was last cut
        self._unread: frozenset[str] = frozenset()  # of the watched, those that the last update had no time for
        self._readers: OrderedDict[str, EventReader] = OrderedDict()  # the longest unwatched first
        self._curves: dict[str, Mapping[str, Curve]] = {}

    # for any thread

    def watch(self, keys: Iterable[str]) -> bool:
        """Read the curves of these runs from now on, and of no others; whether a new one has yet to be read."""
        before, self._watched = self._watched, tuple(dict.fromkeys(keys))
        return any(key not in before and key not in self._curves for key in self._watched)

    def tags(self, key: str) -> list[str]:
        return sorted(self._curves.get(key, ()))

    def chart_tags(self, keys: Iterable[str]) -> list[str]:
        """The metrics of these runs, in the order in which one looks at them; while one of them trains and none has a
        point, those that the engine will log."""
        keys = list(keys)
        known = {tag for key in keys for tag in self._curves.get(key, ())}
        return sort_tags(known or (AWAITED if self._awaits_first_point(keys, (*ACTIVE, "stalled")) else ()))

    def _awaits_first_point(self, keys: Iterable[str], states: Iterable[str]) -> bool:
        """Whether one of these runs is in one of these states and, as far as its files were read, has no point yet."""
        entries, readers = self.entries, self._readers
        bare = [entries[key] for key in keys if key in entries and key in readers and not self._curves.get(key)]
        return any(entry.state in states for entry in bare)

    def curve(self, key: str, tag: str) -> Curve | None:
        return self._curves.get(key, {}).get(tag)

    def request_scan(self) -> None:
        """Let the next update look through the folder, whatever the time: something was started or changed there."""
        self._scanned = -math.inf

    # for the reader's thread alone

    def update(self, budget_s: float = 0.05) -> Changes:
        """Look at what is due, then read curves for about `budget_s`. Raises nothing that a folder can cause."""
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
        self._trim_cache()
        return Changes(self._publish(), frozenset(advanced), pending)

    def awaits_first_point(self) -> bool:
        """Whether a run that is drawn trains and has no point yet: somebody waits for the first one."""
        return self._awaits_first_point(self._watched, ACTIVE)

    def _scan(self) -> None:
        started = time.thread_time()
        found = self._folders.scan()
        self.problem = self._folders.problem
        runs, logs, now = {}, {}, self.clock()
        for folder in found:
            if folder.stamp is None:
                logs[folder.key] = _log_entry(folder, self._logs.get(folder.key))
            else:
                record = runs[folder.key] = self._runs.get(folder.key) or _RunRecord(folder)
                if record.has_changed(folder.stamp):
                    record.refresh(now)
        self._runs, self._logs = runs, logs
        for key in [key for key in self._readers if key not in runs and key not in logs]:
            self._drop(key)
        self._scan_s = max(SCAN_S, SCAN_SHARE * (time.thread_time() - started))

    def _read(self, budget_s: float) -> tuple[set[str], bool]:
        """Read on in the watched runs, each for its share of the time; which had something, and whether there is more.

        Those that this update has no time for are the next one's.
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
        return advanced, bool(left) or any(key not in self._readers or self._readers[key].pending for key in keys)

    def _read_one(self, key: str, budget_s: float) -> bool:
        """Read on in one run; whether it had something, or was looked at for the first time."""
        new = key not in self._readers
        if new:
            self._readers[key] = EventReader(self.folder / key)
        reader = self._readers[key]
        self._readers.move_to_end(key)
        if not reader.poll(budget_s):
            return new
        self._curves[key] = {tag: Curve(*series.numpy()) for tag, series in reader.series.items()}
        if key in self._logs:
            self._logs[key] = _with_curves(self._logs[key], self._curves[key])
        return True

    def _trim_cache(self) -> None:
        """Drop the curves that were watched longest ago until the unwatched ones fit into the cache."""
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
        """Hand out what was found; whether an entry changed, or what is damaged."""
        damage = {key: "; ".join(reader.damage.values()) for key, reader in self._readers.items() if reader.damage}
        if damaged := damage != self.damage:
            self.damage = MappingProxyType(damage)
        entries = {key: record.entry for key, record in self._runs.items()} | self._logs
        if entries == self.entries:
            return damaged
        self.entries = MappingProxyType(dict(sorted(entries.items())))
        return True


class _RunRecord:
    """One run of ours: what was read of it, and how fast it went."""

    def __init__(self, folder: Folder) -> None:
        self._key, self._run = folder.key, Run(Path(folder.path))
        self._status_path, self._note_path = f"{folder.path}/run.json", f"{folder.path}/note.txt"
        self.status, self._problem, self._note = Status(name=self._run.name), "", ""
        self._stamp: Stamp | None = None
        self._note_stamp: Stamp | None = None
        self._pace: deque[tuple[float, int]] = deque()  # heartbeat and step of each run.json of the last seconds
        self._trainer: tuple[int, float] = (0, 0.0)
        self.entry = Entry(folder.key, self._run.path, False, self.status, self.status.state)

    def has_changed(self, stamp: Stamp) -> bool:
        """Whether to look: its trainer may have died, or run.json, now with this `stamp`, or the note was written."""
        return self.status.state in ACTIVE or stamp != self._stamp or stamp_if_any(self._note_path) != self._note_stamp

    def refresh(self, now: float) -> None:
        """Bring the entry up to date.

        A trainer writes its end and then lets go of the lock: 'crashed' is said only where run.json stays the same
        after the lock was seen free.
        """
        crashed = False
        for _ in range(_LOOKS):
            alive = self.status.state in ACTIVE and self._run.is_locked()
            changed = self._read_status()
            crashed = not (alive or changed)
            if alive or not changed:
                break
        self._read_note()
        self._update_entry(self._state(crashed, now))

    def _state(self, crashed: bool, now: float) -> str:
        if self._problem:
            return UNREADABLE
        if self.status.state not in ACTIVE:
            return self.status.state
        return "crashed" if crashed else "stalled" if now - self.status.heartbeat > STALLED_S else self.status.state

    def _update_entry(self, state: str) -> None:
        speed, status = self._speed(state), self.status
        left = status.total_steps - status.step
        eta_s = left / speed if speed and left > 0 and state in ("starting", "running") else None
        entry = Entry(self._key, self._run.path, False, status, state, self._note, speed, eta_s, self._problem)
        if entry != self.entry:
            self.entry = entry

    def _speed(self, state: str) -> float | None:
        """Steps/s of the last seconds; of all its time before two heartbeats were seen, and of a run that has ended."""
        if state == "stalled":
            return None
        if state in ACTIVE and len(self._pace) > 1:
            (first, before), (last, after) = self._pace[0], self._pace[-1]
            return (after - before) / (last - first)
        return self.status.step / self.status.elapsed_s if self.status.elapsed_s > 0 else None

    def _read_status(self) -> bool:
        """Read run.json if it is another one than last time; whether it is."""
        stamp = stamp_if_any(self._status_path)
        if stamp == self._stamp or stamp is None:
            return False
        self._stamp = stamp
        try:
            self.status, self._problem = self._run.read_status(), ""
        except UsageError as error:
            self._problem = str(error)
            if isinstance(error.__context__, OSError):  # what the system refuses now it may allow without a trace
                self._stamp = None
            if not self.status.started:
                self.status = replace(self.status, started=stamp[0] / 1e9)
        self._record_pace()
        return True

    def _record_pace(self) -> None:
        status, pace = self.status, self._pace
        trainer = (status.pid, status.pid_started)
        if trainer != self._trainer or (pace and (status.heartbeat < pace[-1][0] or status.step < pace[-1][1])):
            pace.clear()  # another process, or a clock that was set back
        self._trainer = trainer
        if not pace or status.heartbeat > pace[-1][0]:
            pace.append((status.heartbeat, status.step))
        while len(pace) > 2 and pace[-1][0] - pace[1][0] >= PACE_S:
            pace.popleft()

    def _read_note(self) -> None:
        stamp = stamp_if_any(self._note_path)
        if stamp == self._note_stamp:
            return
        self._note, self._note_stamp = "", stamp
        if stamp is not None:
            try:
                lines = read_bytes(Path(self._note_path)).decode("utf-8", "replace").strip().splitlines()
            except ValueError:
                return
            except OSError:
                self._note_stamp = None
                return
            self._note = lines[0] if lines else ""


def _is_due(now: float, last: float, interval_s: float) -> bool:
    """Whether an interval is over; it is where the clock was set back, too."""
    return not 0 <= now - last < interval_s


def _log_entry(folder: Folder, before: Entry | None) -> Entry:
    """A foreign folder's entry, with what was read of its curves before."""
    state = UNREADABLE if folder.problem else LOG
    if before is None:
        status = Status(name=Path(folder.path).name, state=state, started=folder.started)
    elif before.status.started == folder.started and before.problem == folder.problem:
        return before
    else:
        status = replace(before.status, state=state, started=folder.started)
    return Entry(folder.key, Path(folder.path), True, status, state, problem=folder.problem)


def _with_curves(entry: Entry, curves: Mapping[str, Curve]) -> Entry:
    """A foreign entry with the last step, duration and score that its curves tell."""
    there = [curve for curve in curves.values() if len(curve.steps)]
    if not there:
        return entry
    status = replace(
        entry.status,
        step=max(int(curve.steps[-1]) for curve in there),
        heartbeat=max(float(curve.walls[-1]) for curve in there),
        elapsed_s=max(0.0, max(float(c.walls[-1]) for c in there) - min(float(c.walls[0]) for c in there)),
    )
    curve = next((curves[tag] for tag in SCORES if tag in curves and len(curves[tag].steps)), None)
    if curve is not None:
        finite = np.flatnonzero(np.isfinite(curve.values))
        if finite.size:
            best = finite[np.argmax(curve.values[finite])]
            status.score, status.best_score = float(curve.values[finite[-1]]), float(curve.values[best])
            status.best_step = int(curve.steps[best])
    return replace(entry, status=status)
