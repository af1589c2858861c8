"""Finds the runs under the runs folder.

A folder with a run.json is a run of this program. A folder with event files but no run.json is a log of another
program. Other programs write some curves of a log to subfolders, which therefore belong to the log. A repeated scan
costs one `stat` per folder, because only folders with a new modification time are listed.
"""

from __future__ import annotations

import os
import re
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeAlias

from ppo_unified.runs.event_format import PREFIX, TAIL_FILES

DEPTH = 4  # levels of subfolders that are scanned
_MOST = 5000  # folders that are scanned; a larger tree is probably not a runs folder
SPLITS = frozenset(("train", "training", "val", "valid", "validation", "eval", "evaluation", "test"))
_SETTLED_NS = 2_000_000_000  # a folder changed more recently may change again without a new modification time
_STAMP = re.compile(re.escape(PREFIX) + r"\.(\d{9,11})(?:\.|$)")


Stamp: TypeAlias = tuple[int, int, int]  # mtime in ns, inode and size, which together identify a file's version


class Folder(NamedTuple):
    """A folder that the list of runs shows."""

    key: str  # path relative to the runs folder
    path: str
    stamp: Stamp | None  # of run.json; None for a log of another program
    started: float = 0.0  # creation time of the oldest event file; 0 for a run of this program
    problem: str = ""
    files: tuple[str, ...] = ()  # relative paths of the newest event files of a log in each of its folders


@dataclass
class _Listing:
    """The content of a folder when it was last listed."""

    stamp: tuple[int, int]  # mtime in ns and inode
    settled: bool  # a later change will change the stamp
    folders: tuple[str, ...]
    files: tuple[str, ...]  # the newest event files
    started: float  # creation time of the oldest event file; 0 without event files


class FolderScanner:
    """Scans the tree under `root` repeatedly."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.problem = ""  # why the last scan of the runs folder failed or is incomplete
        self._listings: dict[str, _Listing] = {}
        self._walked: dict[str, _Listing] = {}
        self._seen: set[tuple[int, int]] = set()

    def scan(self) -> list[Folder]:
        """Return all runs, logs of other programs, and unreadable folders. Never raises."""
        self._walked, self._seen, self.problem = {}, set(), ""
        found = self._walk(str(self.root), "", 0)
        if len(self._seen) >= _MOST:
            self.problem = f"{self.root}: more than {_MOST:,} folders; only the first {_MOST:,} were scanned"
        self._listings = self._walked
        return found

    def _walk(self, path: str, key: str, depth: int) -> list[Folder]:
        try:
            stamp = stamp_of(f"{path}/run.json") if key else None
            if stamp is not None:
                return [Folder(key, path, stamp)]
            listing = self._listing(path)
        except FileNotFoundError:
            return []
        except OSError as error:
            problem = f"{path}: cannot read the folder ({error.strerror})"
            if key:
                return [Folder(key, path, None, problem=problem)]
            self.problem = problem
            return []
        if listing is None:
            return []
        below: list[Folder] = []
        for name in listing.folders if depth < DEPTH else ():
            below += self._walk(f"{path}/{name}", f"{key}/{name}" if key else name, depth + 1)
        if not listing.files and not any(folder.files for folder in below):
            return below
        return _merge_log(path, key, listing, below)

    def _listing(self, path: str) -> _Listing | None:
        """Return a folder's listing, or None if it was already listed through a link or the limit is reached."""
        found = os.stat(path)  # noqa: PTH116 - creating Path objects would take longer than the call
        identity = (found.st_dev, found.st_ino)
        if identity in self._seen or len(self._seen) >= _MOST:
            return None
        self._seen.add(identity)
        stamp = (found.st_mtime_ns, found.st_ino)
        listing = self._listings.get(path)
        if listing is None or listing.stamp != stamp or not listing.settled:
            folders, files, started = _read_folder(path)
            settled = time.time_ns() - found.st_mtime_ns > _SETTLED_NS
            listing = _Listing(stamp, settled, tuple(sorted(folders)), tuple(sorted(files)[-TAIL_FILES:]), started)
        self._walked[path] = listing
        return listing


def _merge_log(path: str, key: str, listing: _Listing, below: list[Folder]) -> list[Folder]:
    """Return the folders in and below a folder. Subfolders that belong to the folder's own log are merged into it.

    If the folder contains event files, the logs below it belong to it: `SummaryWriter.add_scalars` and `add_hparams`
    create them. The runs folder is an exception, because it contains separate runs. If the folder contains no event
    files, and its subfolders are all named like data set splits (as written by Keras), they form one log.
    """
    logs = [folder for folder in below if folder.files]
    names = [folder.key[len(key) + 1 if key else 0 :] for folder in logs]
    if listing.files:
        merged = bool(key)
    else:
        are_splits = len(logs) == len(below) and all(name.lower() in SPLITS for name in names)
        merged = are_splits and (bool(key) or len(logs) > 1)  # a run may have the name `test`
    files, started = list(listing.files), [listing.started] if listing.files else []
    if merged:
        below = [folder for folder in below if not folder.files]
        files += [f"{name}/{file}" for name, folder in zip(names, logs, strict=True) for file in folder.files]
        started += [folder.started for folder in logs]
    return [Folder(key or ".", path, None, min(started), files=tuple(files)), *below] if files else below


def stamp_of(path: str | Path) -> Stamp | None:
    """Return a file's stamp, or None if the file does not exist. Raises OSError if its folder cannot be accessed."""
    try:
        found = os.stat(path)  # noqa: PTH116 - creating Path objects would take longer than the call
    except FileNotFoundError:
        return None
    return found.st_mtime_ns, found.st_ino, found.st_size


def stamp_if_any(path: str | Path) -> Stamp | None:
    """Return the stamp of a file or folder, or None if it does not exist or cannot be accessed."""
    try:
        return stamp_of(path)
    except OSError:
        return None


def _read_folder(path: str) -> tuple[list[str], list[str], float]:
    """Return the names of the subfolders and event files, and the creation time of the oldest event file."""
    folders, files, made = list[str](), list[str](), list[float]()
    with os.scandir(path) as entries:
        for entry in entries:
            with suppress(OSError):
                if PREFIX in entry.name and entry.is_file():
                    match = _STAMP.search(entry.name)  # TensorBoard writers put the creation time in the name
                    made.append(float(match[1]) if match else entry.stat().st_mtime)
                    files.append(entry.name)
                elif not entry.name.startswith(".") and entry.is_dir():
                    folders.append(entry.name)
    return folders, files, min(made, default=0.0)
