"""Curves that grow, stored in numpy columns. Tags that are logged together share columns. Views never change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

_LEAST = 64  # number of rows in the smallest table


class Chunk(NamedTuple):
    """Points of tags that were logged in the same K events, in file order."""

    order: np.ndarray  # [K] int64, ascending: positions of the events in the file
    steps: np.ndarray  # [K] int64
    walls: np.ndarray  # [K] float64
    values: Mapping[str, np.ndarray]  # tag -> [K] float32

    def between(self, first: int, end: int) -> Chunk:
        """Return the points of the events at positions first <= position < end."""
        rows = slice(*np.searchsorted(self.order, (first, end)).tolist())
        return Chunk(
            self.order[rows], self.steps[rows], self.walls[rows], {tag: x[rows] for tag, x in self.values.items()}
        )


class _Table:
    """Tags with the same steps and wall times, which are stored once.

    Rows that a view may show are never overwritten: growing and truncating copy the points to new columns.
    """

    def __init__(self, tags: Sequence[str] = ()) -> None:
        self.steps, self.walls = np.empty(0, np.int64), np.empty(0, np.float64)
        self.values = {tag: np.empty(0, np.float32) for tag in tags}
        self.size = 0
        self.viewed = 0  # number of rows that views may show

    @property
    def nbytes(self) -> int:
        return self.steps.nbytes + self.walls.nbytes + sum(column.nbytes for column in self.values.values())

    def append(self, steps: np.ndarray, walls: np.ndarray, values: Mapping[str, np.ndarray]) -> None:
        """Append [K] points of each tag. If the step decreases, drop earlier points at or after the new step."""
        edges = [0, *(np.flatnonzero(np.diff(steps) < 0) + 1).tolist(), len(steps)]
        for first, end in pairwise(edges):
            if first == end:
                continue
            self.truncate(int(steps[first]) if self.size and steps[first] < self.steps[self.size - 1] else None)
            rows = slice(self.size, self.size + end - first)
            if rows.stop > len(self.steps):
                self._move(max(_LEAST, 2 * len(self.steps), rows.stop))
            self.steps[rows], self.walls[rows] = steps[first:end], walls[first:end]
            for tag, column in self.values.items():
                column[rows] = values[tag][first:end]
            self.size = rows.stop

    def truncate(self, step: int | None) -> None:
        """Drop every point at or after `step`. If `step` is None, drop nothing."""
        if step is None:
            return
        self.size = int(np.searchsorted(self.steps[: self.size], step))
        if self.size < self.viewed:
            self._move(len(self.steps))

    def split(self, tags: Sequence[str]) -> _Table:
        """Move the given tags and their points to a new table, and return it."""
        other = _Table()
        other.steps, other.walls = self.steps.copy(), self.walls.copy()
        other.values = {tag: self.values.pop(tag) for tag in tags}
        other.size, other.viewed = self.size, self.viewed
        return other

    def _move(self, rows: int) -> None:
        """Copy the points to new columns with room for `rows` points."""

        def move(column: np.ndarray) -> np.ndarray:
            larger = np.empty(rows, column.dtype)
            larger[: self.size] = column[: self.size]
            return larger

        self.steps, self.walls = move(self.steps), move(self.walls)
        self.values = {tag: move(column) for tag, column in self.values.items()}
        self.viewed = 0


class Series:
    """The steps (int64), wall times (seconds since the epoch) and values (float32) of one tag, ordered by step."""

    def __init__(self, tag: str, table: _Table) -> None:
        self.tag, self.table = tag, table

    def __len__(self) -> int:
        return self.table.size

    @property
    def steps(self) -> np.ndarray:
        return self.numpy()[0]

    @property
    def walls(self) -> np.ndarray:
        return self.numpy()[1]

    @property
    def values(self) -> np.ndarray:
        return self.numpy()[2]

    def numpy(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the current steps, wall times and values as read-only views. Later points do not change the views."""
        table = self.table
        table.viewed = table.size
        columns = table.steps[: table.size], table.walls[: table.size], table.values[self.tag][: table.size]
        for column in columns:
            column.flags.writeable = False
        return columns


class Curves:
    """The series of a folder's event files."""

    def __init__(self) -> None:
        self.series: dict[str, Series] = {}

    @property
    def nbytes(self) -> int:
        return sum(table.nbytes for table in self._tables())

    def add(self, chunks: Sequence[Chunk]) -> None:
        """Append chunks, whose events may alternate in the file. Each tag's points are added in file order."""
        sources: dict[str, list[int]] = {}
        for number, chunk in enumerate(chunks):
            for tag in chunk.values if len(chunk.order) else ():
                sources.setdefault(tag, []).append(number)
        groups: dict[tuple[int, ...], list[str]] = {}
        for tag, numbers in sources.items():
            groups.setdefault(tuple(numbers), []).append(tag)
        for numbers_key, tags in groups.items():
            steps, walls, values = _merge([chunks[number] for number in numbers_key], tags)
            if not np.isfinite(walls).all():  # a damaged file, or one from another program, may contain such times
                walls = np.nan_to_num(walls, nan=0.0, posinf=0.0, neginf=0.0)
            for table in self._find_tables(tags):
                table.append(steps, walls, values)

    def truncate(self, step: int) -> None:
        """Drop the points of all tags at or after `step`. A resumed run writes them again."""
        for table in self._tables():
            table.truncate(step)

    def _tables(self) -> list[_Table]:
        return list({id(series.table): series.table for series in self.series.values()}.values())

    def _find_tables(self, tags: Sequence[str]) -> list[_Table]:
        """Return tables that together contain exactly `tags`. Create and split tables if necessary."""
        new = [tag for tag in tags if tag not in self.series]
        if new:
            table = _Table(new)
            self.series.update((tag, Series(tag, table)) for tag in new)
        members: dict[int, list[Series]] = {}
        for tag in tags:
            series = self.series[tag]
            members.setdefault(id(series.table), []).append(series)
        tables = []
        for several in members.values():
            table = several[0].table
            if len(several) < len(table.values):
                table = table.split([series.tag for series in several])
                for series in several:
                    series.table = table
            tables.append(table)
        return tables


def _merge(chunks: Sequence[Chunk], tags: Sequence[str]) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Merge, in file order, the points of tags that every chunk contains. Return steps, wall times and values."""
    if len(chunks) == 1:
        return chunks[0].steps, chunks[0].walls, {tag: chunks[0].values[tag] for tag in tags}
    order = np.argsort(np.concatenate([chunk.order for chunk in chunks]), kind="stable")
    steps, walls = (np.concatenate([getattr(chunk, name) for chunk in chunks])[order] for name in ("steps", "walls"))
    return steps, walls, {tag: np.concatenate([chunk.values[tag] for chunk in chunks])[order] for tag in tags}
