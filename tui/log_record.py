"""Logs of other programs: reads the curves of a log and its subfolders, and determines its last step and score."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from ppo_unified.runs.event_reader import EventReader
from ppo_unified.runs.folder import Status
from ppo_unified.runs.series import Series
from tui.folder_scanner import Folder, Stamp, stamp_if_any
from tui.runs.entries import LOG, UNREADABLE, Entry

TAIL = 1 << 18  # bytes at the end of each event file that are read if the log's curves are not shown
SCORES = (  # metrics that other programs use as their score, in order of preference
    "eval/score",
    "eval/mean_reward",
    "rollout/ep_rew_mean",
    "charts/episodic_return",
    "objective/scores",
    "train/objective/scores",
    "train/reward",
    "train/rewards/mean",
)


class CurveReader:
    """Reads the event files of a folder and of those subfolders that belong to it, while they grow.

    Each subfolder has its own curves, whose names contain the subfolder, because its steps are independent of those in
    the other subfolders.
    """

    def __init__(self, folder: Path, parts: tuple[str, ...], tail: int = 0) -> None:
        """Create a reader of the subfolders `parts`; "" is the folder itself. `tail` is passed to the event readers."""
        self.folder, self._tail = folder, tail
        self.pending = False  # True if the last poll ran out of time
        self._readers: dict[str, EventReader] = {}
        self._left: list[str] = []  # the subfolders that the last poll had no time to read
        self._changed = False
        self.set_parts(parts)

    def set_parts(self, parts: tuple[str, ...]) -> None:
        """Change the subfolders. The curves of removed subfolders are dropped."""
        if parts == tuple(self._readers):
            return
        self._changed = bool(self._readers)
        self._readers = {part: self._readers.get(part) or EventReader(self.folder / part, self._tail) for part in parts}

    def poll(self, budget_s: float | None = None) -> bool:
        """Read new records for about `budget_s` seconds. Return True if the curves changed."""
        deadline = time.monotonic() + budget_s if budget_s is not None else float("inf")
        found, self._changed = self._changed, False
        left = self._left = [part for part in self._left if part in self._readers] or list(self._readers)
        while left:
            reader = self._readers[left[0]]
            found |= reader.poll(None if budget_s is None else max(0.0, deadline - time.monotonic()))
            if not reader.pending:
                del left[0]
            if time.monotonic() >= deadline:
                break
        self.pending = bool(left)
        return found

    @property
    def series(self) -> dict[str, Series]:
        """The curves by name: 'tag' in the folder itself, and 'tag (subfolder)' in a subfolder."""
        curves = [(tag, part, one) for part, reader in self._readers.items() for tag, one in reader.series.items()]
        names = [_curve_name(tag, part) for tag, part, _ in curves]
        uses = Counter(names)
        return {
            name if uses[name] == 1 or not part else f"{tag} ({part})": one
            for name, (tag, part, one) in zip(names, curves, strict=True)
        }

    @property
    def damage(self) -> list[str]:
        """Descriptions of the damage in all files."""
        return [text for reader in self._readers.values() for text in reader.damage.values()]

    @property
    def nbytes(self) -> int:
        """Memory used by the points, in bytes."""
        return sum(reader.nbytes for reader in self._readers.values())

    @property
    def is_partial(self) -> bool:
        """True if only the end of the files was read."""
        return any(reader.is_partial for reader in self._readers.values())

    @property
    def others(self) -> Counter[str]:
        """The number of values of each kind that charts cannot show."""
        return sum((reader.others.counts for reader in self._readers.values()), Counter())

    @property
    def other_step(self) -> int:
        """The largest step of the values that charts cannot show, or 0."""
        return max((reader.others.step for reader in self._readers.values()), default=0)


class LogRecord:
    """The data read from one log of another program."""

    def __init__(self, folder: Folder) -> None:
        state = UNREADABLE if folder.problem else LOG
        status = Status(name=Path(folder.path).name, state=state, started=folder.started)
        self.entry = Entry(folder.key, Path(folder.path), True, status, state, problem=folder.problem)
        self._files: tuple[str, ...] = ()
        self._stamps: tuple[Stamp | None, ...] = ()  # of the newest files
        self._tail: CurveReader | None = None  # the reader of a growing log's end
        self._grows = False
        self.is_stale = False  # True if the files have changed since the entry was last updated from them

    @property
    def parts(self) -> tuple[str, ...]:
        """The subfolders with event files; "" is the folder itself."""
        return tuple(dict.fromkeys(file.rpartition("/")[0] for file in self._files))

    def update(self, folder: Folder) -> None:
        """Update the entry after a scan."""
        stamps = tuple(stamp_if_any(f"{folder.path}/{file}") for file in folder.files)
        entry = self.entry
        if self._files and (folder.started != entry.status.started or not set(self._files) & set(folder.files)):
            entry = self._forget()
        if (folder.files, stamps) != (self._files, self._stamps):
            self._grows = bool(self._files)
            self._files, self._stamps, self.is_stale = folder.files, stamps, True
        if (entry.status.started, entry.problem) != (folder.started, folder.problem):
            state = UNREADABLE if folder.problem else LOG
            status = replace(entry.status, state=state, started=folder.started)
            self.entry = replace(entry, status=status, state=state, problem=folder.problem)

    def _forget(self) -> Entry:
        """Drop everything that was read, because another log has replaced this one. Return the new entry."""
        entry = self.entry
        status = Status(name=entry.status.name, state=entry.state)
        self.entry = replace(entry, status=status, score_tag="", partial=False, not_shown="")
        self._files, self._tail, self.is_stale = (), None, True
        return self.entry

    def read_end(self, budget_s: float) -> bool:
        """Read the end of the files for about `budget_s` seconds. Small files are read completely.

        When everything has been read, update the entry and return True. The reader of a log that grows is kept, so that
        only new data is read.
        """
        reader = self._tail = self._tail or CurveReader(self.entry.path, self.parts, TAIL)
        reader.set_parts(self.parts)
        reader.poll(budget_s)
        if not reader.pending:
            self.update_from(reader)
            self._tail = reader if self._grows else None
        return not reader.pending

    def update_from(self, reader: CurveReader) -> None:
        """Update the entry with the last step, duration, score and kinds of other data that a reader has found."""
        self.is_stale, self._tail, before = False, None, self.entry.status
        series = {name: one.numpy() for name, one in reader.series.items() if len(one)}
        status = replace(before, step=max([reader.other_step, *(int(steps[-1]) for steps, _, _ in series.values())]))
        if series:
            first = min(float(walls[0]) for _, walls, _ in series.values())
            status.heartbeat = max(float(walls[-1]) for _, walls, _ in series.values())
            status.elapsed_s = max(0.0, status.heartbeat - (before.started if reader.is_partial else first))
        if reader.is_partial:
            tag = _update_score(status, series) or self.entry.score_tag
            self.entry = replace(self.entry, status=status, score_tag=tag, partial=True)
            return
        status.score = status.best_score = status.best_step = None
        tag = _update_score(status, series, complete=True)
        not_shown = _format_counts(reader.others)
        self.entry = replace(self.entry, status=status, score_tag=tag, partial=False, not_shown=not_shown)


def _curve_name(tag: str, part: str) -> str:
    """Return 'loss (train)' for the tag 'loss' in the subfolder 'train'.

    The names of the subfolders that `SummaryWriter.add_scalars` creates start with the tag; the curve name does not
    repeat it.
    """
    return f"{tag} ({part.removeprefix(tag.replace('/', '_') + '_')})" if part else tag


def _update_score(
    status: Status, series: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray]], complete: bool = False
) -> str:
    """Set the last score and, if the curve is complete or the best score was known before, the best score.

    Return the metric that is the score, or "" if no metric is known as a score.
    """
    names = [name for tag in SCORES for name in series if name == tag or name.startswith(f"{tag} (")]
    if not names:
        return ""
    steps, _, values = series[names[0]]
    finite = np.flatnonzero(np.isfinite(values))
    if finite.size:
        best = finite[np.argmax(values[finite])]
        status.score = float(values[finite[-1]])
        if complete or (status.best_score is not None and values[best] > status.best_score):
            status.best_score, status.best_step = float(values[best]), int(steps[best])
    return names[0]


def _format_counts(counts: Counter[str]) -> str:
    """Format numbers of values, such as '3 images, 1 histogram'."""
    return ", ".join(f"{number:,} {_plural(kind) if number != 1 else kind}" for kind, number in sorted(counts.items()))


def _plural(kind: str) -> str:
    first, space, rest = kind.partition(" of ")  # sets of hyperparameters
    return f"{first}{'es' if first.endswith('sh') else 's'}{space}{rest}"
