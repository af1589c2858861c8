"""Read the event files of a folder while they grow. They may have been written by this program or another one.

To keep startup fast, this module avoids torch.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple

import google_crc32c
import numpy as np

from ppo_unified.runs.event_decoder import Block, OtherData
from ppo_unified.runs.event_format import CRC, HEADER, PREFIX, TAIL_FILES, masked_crc
from ppo_unified.runs.scalar_layout import Layout
from ppo_unified.runs.series import Curves, Series

_LONGEST = 1 << 28  # maximum bytes of a record; if its length field is larger, the record is damaged
_BLOCK = 1 << 18  # number of bytes to read at once; a longer record is still read completely
_HEAD = 1 << 10  # number of bytes at the start of a file that identify its content
_MAX_HEADERS = 4096  # maximum number of valid record headers to cache
_WIDER = (1, 8, 64)  # factors by which more of a file's end is read until it contains the start of a record
_MAX_LENGTHS = 512  # maximum number of payload lengths whose layouts are cached


class _Records(NamedTuple):
    """The complete records at the start of a block."""

    payloads: list[bytes]
    lengths: np.ndarray  # [K] int64, lengths of the payloads
    starts: np.ndarray  # [K] int64, offset of each record in the block
    intact: np.ndarray  # [K] bool: True if the payload's checksum is correct
    end: int  # offset at which the last record ends
    needed: int  # size of the next record in bytes; 0 if its length is damaged


@dataclass
class _File:
    """The read position in a file, and data that identifies the file."""

    identity: tuple[int, int]  # device and inode
    head: bytes = b""
    offset: int = 0
    ended: bool = False  # True after a damaged length, which hides all later records


class EventReader:
    """Reads the event files of a folder. `poll` reads only new records.

    An incomplete record at the end of a file is left for the next poll. A record with a damaged payload is skipped.
    After a record with a damaged length, the rest of the file is ignored. `damage` contains the file name and position
    of damaged records. If a file shrinks or is replaced, all files are read again.

    With `tail`, only about the last `tail` bytes of each of the newest files are read.
    """

    def __init__(self, folder: Path, tail: int = 0) -> None:
        self.folder, self.tail = folder, tail
        self.is_partial = False  # True if `tail` has excluded the start of a file
        self.damage: dict[str, str] = {}  # file name -> description of the damage
        self.pending = False  # True if the last poll ran out of time
        self.others = OtherData()
        self._curves = Curves()
        self._files: dict[str, _File] = {}
        self._unreadable: set[str] = set()  # files that could not be opened
        self._frames: dict[bytes, int] = {}  # valid header -> size of the payload with its checksum
        self._layouts: dict[int, list[Layout]] = {}  # layouts by payload length

    @property
    def series(self) -> dict[str, Series]:
        return self._curves.series

    @property
    def nbytes(self) -> int:
        """Memory used by the points, in bytes."""
        return self._curves.nbytes

    def poll(self, budget_s: float | None = None) -> bool:
        """Read the records appended since the last call. Return True if the curves changed.

        If `budget_s` is given, return after about that many seconds and leave the rest for the next call. At least one
        block is read.
        """
        deadline = time.monotonic() + budget_s if budget_s is not None else float("inf")
        self.pending = False
        grown = self._grown_files()
        found = grown is None
        if grown is None:
            self._files, self._curves, self.others = {}, Curves(), OtherData()
            self._unreadable.clear()
            self.damage.clear()
            grown = self._grown_files()
        for name in grown or ():
            try:
                for has_events in self._read(name):
                    found |= has_events
                    if time.monotonic() >= deadline:
                        self.pending = True
                        return found
            except OSError as error:
                self._report_unreadable(name, error)
        return found

    def _grown_files(self) -> list[str] | None:
        """Return the names of files with unread bytes, or None if a file that was read has since been replaced."""
        names: list[str] = []
        with suppress(OSError):
            names = sorted(name for name in os.listdir(self.folder) if PREFIX in name)
        if self.tail and len(names) > TAIL_FILES:
            names, self.is_partial = names[-TAIL_FILES:], True
        grown = []
        for name in names:
            try:
                found = (self.folder / name).stat()
                if not stat.S_ISREG(found.st_mode):
                    continue
                file = self._files.get(name)
                if file is None:
                    first = find_last_records(self.folder / name, found.st_size, self.tail) if self.tail else 0
                    file = self._files[name] = _File((found.st_dev, found.st_ino), offset=first)
                    self.is_partial |= first > 0
                if self._is_replaced(name, file, found):
                    return None
                if found.st_size > file.offset and not file.ended:
                    grown.append(name)
            except OSError as error:
                self._report_unreadable(name, error)
        return grown

    def _is_replaced(self, name: str, file: _File, found: os.stat_result) -> bool:
        """Return True if a file shrank or its first bytes changed. A longer copy of a file counts as the same file."""
        if found.st_size < file.offset:
            return True
        identity = (found.st_dev, found.st_ino)
        if identity != file.identity:
            file.identity = identity
            with open(self.folder / name, "rb") as opened:
                return opened.read(len(file.head)) != file.head
        return False

    def _report_unreadable(self, name: str, error: OSError) -> None:
        self._unreadable.add(name)
        self.damage[name] = f"{self.folder / name}: cannot read the file ({error.strerror})"

    def _read(self, name: str) -> Iterator[bool]:
        """Read a file block by block to its current end. For each block, yield True if it contains events."""
        file, size = self._files[name], _BLOCK
        with open(self.folder / name, "rb", buffering=0) as opened:
            if name in self._unreadable:
                self._unreadable.discard(name)
                del self.damage[name]
            while True:
                opened.seek(file.offset)
                data = opened.read(size)
                records = self._records(data)
                if records.end:
                    if len(file.head) < _HEAD and len(file.head) == file.offset:
                        file.head += data[: min(records.end, _HEAD - len(file.head))]
                    has_events = self._add_block(name, file.offset, records)
                    file.offset, size = file.offset + records.end, _BLOCK
                    yield has_events
                elif not records.needed:
                    # only zeros follow: the file was extended before its data was written, so the data may still come
                    if not _is_blank(opened, file.offset):
                        file.ended = True
                        where = f"the file is damaged at byte {file.offset}; the rest of this file is not shown"
                        self.damage[name] = f"{self.folder / name}: {where}"
                    return
                elif len(data) < size:
                    return
                else:
                    size = records.needed

    def _records(self, data: bytes) -> _Records:
        frames = self._frames
        if len(frames) > _MAX_HEADERS:
            frames.clear()
        payloads: list[bytes] = []
        position, size, needed = 0, len(data), HEADER.size
        while size - position >= HEADER.size:
            start = position + HEADER.size
            framed = frames.get(data[position:start])
            if framed is None:
                length, crc = HEADER.unpack_from(data, position)
                if masked_crc(data[position : position + 8]) != crc or length > _LONGEST:
                    needed = 0
                    break
                framed = frames[data[position:start]] = length + CRC.size
            end = start + framed
            if end > size:
                needed = end - position
                break
            payloads.append(data[start : end - CRC.size])
            position = end
        lengths = np.fromiter(map(len, payloads), np.int64, len(payloads))
        ends = np.cumsum(lengths + (HEADER.size + CRC.size))
        stored = np.frombuffer(data, np.uint8)[ends[:, None] + np.arange(-CRC.size, 0)].view("<u4").ravel()
        intact = _masked_crcs(payloads) == stored
        return _Records(payloads, lengths, ends - lengths - (HEADER.size + CRC.size), intact, position, needed)

    def _add_block(self, name: str, offset: int, records: _Records) -> bool:
        """Add the events of the block at `offset` in a file. Return True if the block contains events."""
        if len(self._layouts) > _MAX_LENGTHS:
            self._layouts.clear()
        block = Block(self._layouts)
        lengths, rows = records.lengths, np.flatnonzero(records.intact)
        rows = rows[np.argsort(lengths[rows], kind="stable")]
        for several in np.split(rows, np.flatnonzero(np.diff(lengths[rows])) + 1):
            if several.size:
                block.decode(several, records.payloads)
        damaged = [*np.flatnonzero(~records.intact).tolist(), *block.damaged]
        if damaged:
            where = f"the record at byte {offset + int(records.starts[max(damaged)])} is damaged and was skipped"
            self.damage[name] = f"{self.folder / name}: {where}"
        block.add_to(self._curves, self.others)
        return len(damaged) < len(records.payloads)


def find_last_records(path: Path, size: int, tail: int) -> int:
    """Return the offset of the first record that starts in the last `tail` bytes of a file.

    If no record starts there, search more of the file. If there is still none, return the file's `size`.
    """
    with open(path, "rb", buffering=0) as file:
        for span in (tail * factor for factor in _WIDER):
            if size <= span:
                return 0
            file.seek(size - span)
            data = file.read(span)
            for start in _possible_headers(data):
                _, crc = HEADER.unpack_from(data, start)
                if masked_crc(data[start : start + 8]) == crc:
                    return size - span + int(start)
    return size


def _possible_headers(data: bytes) -> np.ndarray:
    """Return the ascending positions in `data` at which a valid length could start, with a header that is complete."""
    found = []
    for shift in range(4):
        words = np.frombuffer(data, "<u4", (len(data) - shift) // 4, shift)
        low, high = words[:-2], words[1:-1]  # halves of the length; a checksum follows
        found.append(4 * np.flatnonzero((low != 0) & (low <= _LONGEST) & (high == 0)) + shift)
    return np.sort(np.concatenate(found))


def _is_blank(file: IO[bytes], offset: int) -> bool:
    """Return True if the rest of the file contains only zeros."""
    file.seek(offset)
    while block := file.read(_BLOCK):
        if block.count(0) < len(block):
            return False
    return True


def _masked_crcs(payloads: Sequence[bytes]) -> np.ndarray:
    """Return the masked checksums [K] of K payloads."""
    crcs = np.fromiter(map(google_crc32c.value, payloads), np.uint32, len(payloads))
    return (crcs >> np.uint32(15) | crcs << np.uint32(17)) + np.uint32(0xA282EAD8)
