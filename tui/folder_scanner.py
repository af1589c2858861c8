"""Which folders under the runs folder are runs: ours hold a run.json, those of other programs event files alone.

Looking again costs a `stat` for each folder: a folder is listed anew only when its own time stamp has moved.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeAlias

from ppo_unified.runs.event_format import PREFIX

DEPTH = 4  # how far below the runs folder is looked
_MOST = 5000  # folders that are looked into; beyond them this is no folder of runs
_SETTLED_NS = 2_000_000_000  # a folder that changed less than this ago may change again within one tick of its stamp
_STAMP = re.compile(re.escape(PREFIX) + r"\.(\d{9,11})(?:\.|$)")


Stamp: TypeAlias = tuple[int, int, int]  # what changes when a file is written: mtime in ns, inode and size


class Folder(NamedTuple):
    """A folder to list."""

    key: str  # its path from the runs folder
    path: str
    stamp: Stamp | None  # run.json's; None for a foreign one
    started: float = 0.0  # of a foreign one: when its oldest event file was made
    problem: str = ""


@dataclass
class _Listing:
    """What a folder held when it was listed."""

    stamp: tuple[int, int]  # mtime in ns and inode
    settled: bool
    folders: tuple[str, ...]
    started: float | None  # None: no event files


class FolderScanner:
    """Walks the tree under `root` again and again."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.problem = ""  # why the runs folder itself could not be looked through
        self._listings: dict[str, _Listing] = {}
        self._walked: dict[str, _Listing] = {}
        self._seen: set[tuple[int, int]] = set()

    def scan(self) -> list[Folder]:
        """Every run of ours, log of other programs, and folder that cannot be looked into. Raises nothing."""
        self._walked, self._seen, self.problem = {}, set(), ""
        found = list(self._walk(str(self.root), "", 0))
        if len(self._seen) >= _MOST:
            self.problem = f"{self.root}: only the first {_MOST:,} folders were looked into"
        self._listings = self._walked
        return found

    def _walk(self, path: str, key: str, depth: int) -> Iterator[Folder]:
        try:
            stamp = stamp_of(f"{path}/run.json") if key else None
            if stamp is not None:
                yield Folder(key, path, stamp)
                return
            listing = self._listing(path)
        except FileNotFoundError:
            return
        except OSError as error:
            problem = f"{path}: cannot be read ({error.strerror})"
            if key:
                yield Folder(key, path, None, problem=problem)
            else:
                self.problem = problem
            return
        if listing is None:
            return
        if listing.started is not None:
            yield Folder(key or ".", path, None, listing.started)
        if depth < DEPTH:
            for name in listing.folders:
                yield from self._walk(f"{path}/{name}", f"{key}/{name}" if key else name, depth + 1)

    def _listing(self, path: str) -> _Listing | None:
        """A folder's listing; None where a link leads to a folder that was listed already, or there are too many."""
        found = os.stat(path)  # noqa: PTH116 - making Paths would cost more than looking
        identity = (found.st_dev, found.st_ino)
        if identity in self._seen or len(self._seen) >= _MOST:
            return None
        self._seen.add(identity)
        stamp = (found.st_mtime_ns, found.st_ino)
        listing = self._listings.get(path)
        if listing is None or listing.stamp != stamp or not listing.settled:
            folders, started = _read_folder(path)
            settled = time.time_ns() - found.st_mtime_ns > _SETTLED_NS
            listing = _Listing(stamp, settled, tuple(sorted(folders)), started)
        self._walked[path] = listing
        return listing


def stamp_of(path: str | Path) -> Stamp | None:
    """A file's stamp; None where there is no file. Raises OSError where its folder cannot be looked into."""
    try:
        found = os.stat(path)  # noqa: PTH116 - making Paths would cost more than looking
    except FileNotFoundError:
        return None
    return found.st_mtime_ns, found.st_ino, found.st_size


def stamp_if_any(path: str | Path) -> Stamp | None:
    """A file's or folder's stamp; None where it cannot be had, for whatever reason."""
    try:
        return stamp_of(path)
    except OSError:
        return None


def _read_folder(path: str) -> tuple[list[str], float | None]:
    """The names of the folders in a folder, and when the oldest of its event files was made."""
    folders, started = [], None
    with os.scandir(path) as entries:
        for entry in entries:
            with suppress(OSError):
                if PREFIX in entry.name and entry.is_file():
                    match = _STAMP.search(entry.name)  # writers put the time into the name
                    made = float(match[1]) if match else entry.stat().st_mtime
                    started = made if started is None else min(started, made)
                elif not entry.name.startswith(".") and entry.is_dir():
                    folders.append(entry.name)
    return folders, started
