"""Files that survive a crash: written whole, pushed to the disk, checked by reading them back.

Every operation is a system call made through `os`, so that a test can count them and let each one fail in turn.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import google_crc32c

_BLOCK = 1 << 22  # bytes written or read at once


class Checksum(NamedTuple):
    """What a file is known by. CRC-32C finds damage, not malice, at 12 GB/s where SHA-256 does 1."""

    size: int  # bytes
    crc32c: int


def write_file(path: Path, chunks: Iterable[bytes | memoryview]) -> Checksum:
    """Write a file that must not exist yet and push it to the disk. Raises OSError, leaving what was written."""
    size, crc = 0, 0
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        for chunk in chunks:
            view = memoryview(chunk)
            for start in range(0, len(view), _BLOCK):
                block = bytes(view[start : start + _BLOCK])
                crc, size = google_crc32c.extend(crc, block), size + len(block)
                _write_all(descriptor, block)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return Checksum(size, crc)


def _write_all(descriptor: int, block: bytes) -> None:
    """A system call may take a part only."""
    view = memoryview(block)
    while view:
        written = os.write(descriptor, view)
        if written <= 0:
            raise OSError(errno.EIO, "nothing was written")
        view = view[written:]


def checksum(path: Path) -> Checksum:
    """The sum of a file as it is read now. Raises OSError."""
    size, crc = 0, 0
    descriptor = os.open(path, os.O_RDONLY)
    try:
        while block := os.read(descriptor, _BLOCK):
            crc, size = google_crc32c.extend(crc, block), size + len(block)
    finally:
        os.close(descriptor)
    return Checksum(size, crc)


def read_prefix(path: Path, most: int) -> bytes:
    """A file's first `most` bytes and one more, by which a longer file is known. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe that nobody writes to is an empty file
    try:
        read = b""
        while len(read) <= most and (block := os.read(descriptor, most + 1 - len(read))):
            read += block
    finally:
        os.close(descriptor)
    return read


def sync_folder(path: Path) -> None:
    """Push a folder's names to the disk: without it a rename may be forgotten, or outrun what it names."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def rename(path: Path, to: Path) -> None:
    """Give a folder another name, on the disk too. Raises OSError."""
    path.rename(to)
    sync_folder(to.parent)


def remove(folder: Path) -> None:
    """Remove a folder with all that is in it. Raises OSError where something stays."""
    shutil.rmtree(folder)
