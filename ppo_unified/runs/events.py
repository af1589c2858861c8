"""TensorBoard event files: the only metrics log of a run, written here and read back here. No torch.

One Event per iteration carries all its values. A SessionLog.START opens every file; readers drop what an earlier
file logged at or after its step, so a resumed run draws one curve. Counters live in `event.step`, because scalars
are float32.
"""

from __future__ import annotations

import os
import re
import socket
import stat
import struct
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

import google_crc32c
import numpy as np
from google.protobuf.message import DecodeError
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import HistogramProto, Summary, SummaryMetadata

from ppo_unified.runs.metrics import describe
from ppo_unified.runs.scalar_layout import Layout
from ppo_unified.runs.series import Chunk, Curves, Series

PREFIX = "events.out.tfevents"
_STAMPED = re.compile(re.escape(PREFIX) + r"\.(\d{10}\.\d{6})\.")  # files named as ours are
_HEADER = struct.Struct("<QI")  # length of the payload, masked crc of these 8 bytes
_CRC = struct.Struct("<I")
_FLOAT = struct.Struct("<f")
_LONGEST = 1 << 28  # bytes; a longer record is damage, not data
_MOST_WAITING = 1 << 24  # bytes of records that wait for room on the disk; later ones are lost
_BLOCK = 1 << 18  # bytes read at once, unless one record is longer
_HEAD = 1 << 10  # bytes at a file's start by which it is known again
_MOST_HEADERS = 4096  # kept: those whose checksum was right
_MOST_LAYOUTS, _MOST_LENGTHS = 64, 512  # kept: layouts of one length, and lengths
_LONGEST_LAYOUT = 1 << 16  # bytes; longer records are not compared byte by byte
_LONGEST_CELL = 2000  # characters of a table's cell; longer ones are cut
_UNPRINTABLE = {"\n": "\u21b5 ", "\r": "\u21b5 ", "\t": "\u21e5 "}  # shown as arrows; other ones as U+FFFD


def _masked_crc(data: bytes) -> int:
    crc = int(google_crc32c.value(data))
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _masked_crcs(payloads: Sequence[bytes]) -> np.ndarray:
    """The masked checksums [K] of K records."""
    crcs = np.fromiter(map(google_crc32c.value, payloads), np.uint32, len(payloads))
    return (crcs >> np.uint32(15) | crcs << np.uint32(17)) + np.uint32(0xA282EAD8)


class EventWriter:
    """Appends to one event file in `folder`; every call is in the system's hands when it returns.

    A call that cannot write raises OSError. Its record waits for the next one, and the file ends with a whole record.
    """

    def __init__(self, folder: Path, first_step: int = 0) -> None:
        """`first_step`: 0 for a new run, the last kept step + 1 when resuming."""
        name = f"{PREFIX}.{_stamp(folder):.6f}.{socket.gethostname()}.{os.getpid()}"
        self._file: IO[bytes] = open(folder / name, "ab", buffering=0)  # noqa: SIM115 - closed by close()
        self.folder = folder
        self._described: set[str] = set()
        self._size = 0  # of the whole records in the file
        self._waiting = b""  # records that could not be written yet
        self._write(Event(wall_time=time.time(), file_version="brain.Event:2"))
        self._write(Event(wall_time=time.time(), step=first_step, session_log=SessionLog(status=SessionLog.START)))

    def scalars(
        self, step: int, values: Mapping[str, float], histograms: Mapping[str, np.ndarray] | None = None
    ) -> None:
        """All of an iteration's numbers as one Event; histograms are arrays of raw samples."""
        summary = Summary()
        for tag, value in values.items():
            summary.value.add(tag=tag, simple_value=value, metadata=self._metadata(tag))
        for tag, samples in (histograms or {}).items():
            if samples.size:
                summary.value.add(tag=tag, histo=_histogram(samples), metadata=self._metadata(tag))
        self._write(Event(wall_time=time.time(), step=step, summary=summary))

    def text(self, step: int, tag: str, markdown: str) -> None:
        """A text for TensorBoard's TEXT tab, which renders Markdown; data in it must be escaped, as `as_table` does."""
        from tensorboard.compat.proto.tensor_pb2 import TensorProto
        from tensorboard.compat.proto.types_pb2 import DT_STRING
        from tensorboard.plugins.text.metadata import create_summary_metadata

        summary = Summary()
        tensor = TensorProto(dtype=DT_STRING, string_val=[markdown.encode("utf-8", "replace")])
        summary.value.add(tag=tag, tensor=tensor, metadata=create_summary_metadata(tag, ""))
        self._write(Event(wall_time=time.time(), step=step, summary=summary))

    def hyperparameters(self, options: Mapping[str, Any]) -> None:
        """Every option, for TensorBoard's HPARAMS tab."""
        from tensorboard.plugins.hparams.summary_v2 import hparams_pb

        plain = {key: x if isinstance(x, (bool, int, float, str)) else str(x) for key, x in options.items()}
        self._write(Event(wall_time=time.time(), summary=hparams_pb(plain, trial_id=self.folder.name)))

    def sync(self) -> None:
        """Push what was written to the disk, and what waits to be. Raises OSError."""
        self._append()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Raises nothing: what still cannot be written is lost."""
        with suppress(OSError):
            self._append()
        self._file.close()

    def _metadata(self, tag: str) -> SummaryMetadata | None:
        if tag in self._described:  # TensorBoard keeps the first one it sees
            return None
        self._described.add(tag)
        return SummaryMetadata(display_name=tag, summary_description=describe(tag))

    def _write(self, event: Any) -> None:
        data = event.SerializeToString()
        length = struct.pack("<Q", len(data))
        record = length + _CRC.pack(_masked_crc(length)) + data + _CRC.pack(_masked_crc(data))
        if len(self._waiting) + len(record) <= _MOST_WAITING:
            self._waiting += record
        self._append()

    def _append(self) -> None:
        """Write what waits, or leave the file as it was: behind a torn record no reader would find another."""
        if os.fstat(self._file.fileno()).st_size > self._size:
            self._file.truncate(self._size)  # torn, and could not be cut off at once
        rest = memoryview(self._waiting)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError:
            with suppress(OSError):
                self._file.truncate(self._size)
            raise
        self._size, self._waiting = self._size + len(self._waiting), b""


def _stamp(folder: Path) -> float:
    """Now, but after every file that is there: readers take files by name, and the clock may have been put back."""
    found = [_STAMPED.match(name) for name in os.listdir(folder)]
    return max([time.time(), *(float(match[1]) + 1e-6 for match in found if match)])


def as_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A Markdown table of any data, a column for every key; no cell can become markup or leave its cell."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = [columns, ["---"] * len(columns), *([row.get(key, "") for key in columns] for row in rows)]
    cells = [[cell if number == 1 else _escaped(cell) for cell in line] for number, line in enumerate(lines)]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def _escaped(value: Any) -> str:
    """Any value as text that Markdown and HTML leave alone: whatever could be markup is written as a reference."""
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    if len(text) > _LONGEST_CELL:
        text = text[:_LONGEST_CELL] + " ..."
    return "".join(
        c if c in " ,;" or c.isalnum() else f"&#{ord(c)};" if c.isprintable() else _UNPRINTABLE.get(c, "\ufffd")
        for c in text.replace("\r\n", "\n")
    )


def _histogram(samples: np.ndarray) -> Any:
    finite = samples[np.isfinite(samples)].astype(np.float64).ravel()
    counts, edges = np.histogram(finite, bins=30)
    return HistogramProto(
        min=finite.min(initial=0),
        max=finite.max(initial=0),
        num=finite.size,
        sum=finite.sum(),
        sum_squares=np.square(finite).sum(),
        bucket_limit=edges[1:].tolist(),
        bucket=counts.tolist(),
    )


class _Records(NamedTuple):
    """The whole records at the start of a block."""

    payloads: list[bytes]
    lengths: np.ndarray  # [K] int64, of the payloads
    starts: np.ndarray  # [K] int64, where each record starts in the block
    intact: np.ndarray  # [K] bool: the payload has its checksum
    end: int  # where the last one ends
    needed: int  # bytes that the next one takes with its frame; 0 where its length is damaged


@dataclass
class _File:
    """How far a file was read, and what it is known by."""

    identity: tuple[int, int]  # device and inode
    head: bytes = b""
    offset: int = 0
    ended: bool = False  # by a damaged length: nothing after it can be found


class EventReader:
    """Follows the event files of a folder, our own or any other program's; `poll` reads only what is new.

    A torn record at the end is left for the next poll. A record with a bad payload is skipped; one with a bad length
    ends its file. Either is said in `damage`, with file and byte. Where a file shrank, or another took its place,
    everything is read anew.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.damage: dict[str, str] = {}  # file name -> what is damaged and where
        self.pending = False  # whether the last poll's time was up before everything was read
        self._curves = Curves()
        self._files: dict[str, _File] = {}
        self._closed: set[str] = set()  # files that could not be opened
        self._frames: dict[bytes, int] = {}  # header whose checksum is right -> bytes of payload and its checksum
        self._layouts: dict[int, list[Layout]] = {}  # by length of the payload

    @property
    def series(self) -> dict[str, Series]:
        return self._curves.series

    @property
    def nbytes(self) -> int:
        """Memory that the points take."""
        return self._curves.nbytes

    def poll(self, budget_s: float | None = None) -> bool:
        """Read what was appended since the last call; whether there was anything, or what was read before is gone.

        With a budget, return after about that time, at least one block later, and leave the rest for the next call.
        """
        deadline = time.monotonic() + budget_s if budget_s is not None else float("inf")
        self.pending = False
        grown = self._grown()
        found = grown is None
        if grown is None:
            self._files, self._curves = {}, Curves()
            self._closed.clear()
            self.damage.clear()
            grown = self._grown()
        for name in grown or ():
            try:
                for has_events in self._read(name):
                    found |= has_events
                    if time.monotonic() >= deadline:
                        self.pending = True
                        return found
            except OSError as error:
                self._cannot_read(name, error)
        return found

    def _grown(self) -> list[str] | None:
        """The files with unread bytes, by name; None where one is not the file that was read."""
        names: list[str] = []
        with suppress(OSError):
            names = sorted(name for name in os.listdir(self.folder) if PREFIX in name)
        grown = []
        for name in names:
            try:
                found = (self.folder / name).stat()
                if not stat.S_ISREG(found.st_mode):
                    continue
                file = self._files.setdefault(name, _File((found.st_dev, found.st_ino)))
                if self._is_another(name, file, found):
                    return None
                if found.st_size > file.offset and not file.ended:
                    grown.append(name)
            except OSError as error:
                self._cannot_read(name, error)
        return grown

    def _is_another(self, name: str, file: _File, found: os.stat_result) -> bool:
        """Whether a file shrank or starts otherwise than before; a copy that replaces its original may be longer."""
        if found.st_size < file.offset:
            return True
        identity = (found.st_dev, found.st_ino)
        if identity != file.identity:
            file.identity = identity
            with open(self.folder / name, "rb") as opened:
                return opened.read(len(file.head)) != file.head
        return False

    def _cannot_read(self, name: str, error: OSError) -> None:
        self._closed.add(name)
        self.damage[name] = f"{self.folder / name}: cannot be read ({error.strerror})"

    def _read(self, name: str) -> Iterator[bool]:
        """Read a file block by block, to its end as it is now; yields whether a block held events."""
        file, size = self._files[name], _BLOCK
        with open(self.folder / name, "rb", buffering=0) as opened:
            if name in self._closed:
                self._closed.discard(name)
                del self.damage[name]
            while True:
                opened.seek(file.offset)
                data = opened.read(size)
                records = self._records(data)
                if records.end:
                    if len(file.head) < _HEAD and len(file.head) == file.offset:
                        file.head += data[: min(records.end, _HEAD - len(file.head))]
                    has_events = self._take(name, file.offset, records)
                    file.offset, size = file.offset + records.end, _BLOCK
                    yield has_events
                elif not records.needed:
                    # zeros to the end: the file grew before its bytes arrived, and they may still come
                    if not _is_blank(opened, file.offset):
                        file.ended = True
                        where = f"damaged at byte {file.offset}; the rest of this file is not shown"
                        self.damage[name] = f"{self.folder / name}: {where}"
                    return
                elif len(data) < size:
                    return
                else:
                    size = records.needed

    def _records(self, data: bytes) -> _Records:
        frames = self._frames
        if len(frames) > _MOST_HEADERS:
            frames.clear()
        payloads: list[bytes] = []
        position, size, needed = 0, len(data), _HEADER.size
        while size - position >= _HEADER.size:
            start = position + _HEADER.size
            framed = frames.get(data[position:start])
            if framed is None:
                length, crc = _HEADER.unpack_from(data, position)
                if _masked_crc(data[position : position + 8]) != crc or length > _LONGEST:
                    needed = 0
                    break
                framed = frames[data[position:start]] = length + _CRC.size
            end = start + framed
            if end > size:
                needed = end - position
                break
            payloads.append(data[start : end - _CRC.size])
            position = end
        lengths = np.fromiter(map(len, payloads), np.int64, len(payloads))
        ends = np.cumsum(lengths + (_HEADER.size + _CRC.size))
        stored = np.frombuffer(data, np.uint8)[ends[:, None] + np.arange(-_CRC.size, 0)].view("<u4").ravel()
        intact = _masked_crcs(payloads) == stored
        return _Records(payloads, lengths, ends - lengths - (_HEADER.size + _CRC.size), intact, position, needed)

    def _take(self, name: str, offset: int, records: _Records) -> bool:
        """Add the events of a block at `offset` of its file; whether there were any."""
        if len(self._layouts) > _MOST_LENGTHS:
            self._layouts.clear()
        block = _Block(self._layouts)
        lengths, rows = records.lengths, np.flatnonzero(records.intact)
        rows = rows[np.argsort(lengths[rows], kind="stable")]
        for several in np.split(rows, np.flatnonzero(np.diff(lengths[rows])) + 1):
            if several.size:
                block.decode(several, records.payloads)
        damaged = [*np.flatnonzero(~records.intact).tolist(), *block.damaged]
        if damaged:
            where = f"the record at byte {offset + int(records.starts[max(damaged)])} is damaged and was skipped"
            self.damage[name] = f"{self.folder / name}: {where}"
        block.add_to(self._curves)
        return len(damaged) < len(records.payloads)


class _Block:
    """The events of one block, as they are decoded: those of one layout together, the others one by one."""

    def __init__(self, layouts: dict[int, list[Layout]]) -> None:
        self._layouts = layouts
        self.damaged: list[int] = []  # rows whose bytes never were an event
        self._chunks: list[Chunk] = []
        self._starts: list[tuple[int, int]] = []  # row and step of every SessionLog.START
        self._single: dict[str, list[tuple[int, int, float, float]]] = {}  # tag -> row, step, wall, value

    def decode(self, rows: np.ndarray, payloads: Sequence[bytes]) -> None:
        """Decode the records at `rows`, which are all of one length."""
        several = [payloads[row] for row in rows.tolist()]
        length = len(several[0])
        records = np.frombuffer(b"".join(several), np.uint8).reshape(len(several), length)
        left = np.arange(len(several))
        known = self._layouts.setdefault(length, [])
        for layout in known:
            if not left.size:
                return
            left = self._decode_alike(layout, rows, records, left)
        while left.size:
            layout_or_none = _layout(several[left[0]]) if len(known) < _MOST_LAYOUTS else None
            if layout_or_none is None:
                self._decode_one(int(rows[left[0]]), several[left[0]])
                left = left[1:]
            else:
                known.append(layout_or_none)
                left = self._decode_alike(layout_or_none, rows, records, left)

    def _decode_alike(self, layout: Layout, rows: np.ndarray, records: np.ndarray, left: np.ndarray) -> np.ndarray:
        """Decode what has the layout among the records `left`; those that have not."""
        part = records if len(left) == len(records) else records[left]
        hits = layout.matches(part)
        if hits.any():
            everything = hits.all()
            chosen = left if everything else left[hits]
            self._chunks.append(Chunk(rows[chosen], *layout.decode(part if everything else part[hits])))
        others: np.ndarray = left[~hits]
        return others

    def _decode_one(self, row: int, payload: bytes) -> None:
        event = _event(payload)
        if event is None:
            self.damaged.append(row)
            return
        if event.HasField("session_log") and event.session_log.status == SessionLog.START:
            self._starts.append((row, event.step))
        for value in event.summary.value:
            number = _number(value)
            if number is not None:
                self._single.setdefault(value.tag, []).append((row, event.step, event.wall_time, number))

    def add_to(self, curves: Curves) -> None:
        """Append everything, in the order of the file; each START cuts what an earlier process logged from there on."""
        chunks = [*self._chunks, *self._singles()]
        first = 0
        for row, step in sorted(self._starts):
            curves.add([chunk.between(first, row) for chunk in chunks])
            curves.cut(step)
            first = row
        curves.add([chunk.between(first, 1 << 62) for chunk in chunks] if first else chunks)

    def _singles(self) -> Iterator[Chunk]:
        """What was decoded one by one, tags of the same events together."""
        alike: dict[tuple[int, ...], list[str]] = {}
        for tag, points in self._single.items():
            points.sort(key=lambda point: point[0])
            alike.setdefault(tuple(point[0] for point in points), []).append(tag)
        for rows, tags in alike.items():
            _, steps, walls, _ = zip(*self._single[tags[0]], strict=True)
            values = {tag: np.array([point[3] for point in self._single[tag]], np.float32) for tag in tags}
            yield Chunk(np.array(rows, np.int64), np.array(steps, np.int64), np.array(walls, np.float64), values)


def _event(payload: bytes) -> Any:
    """The event in a record; None where its bytes never were one."""
    try:
        return Event.FromString(payload)
    except DecodeError:
        return None


def _layout(payload: bytes) -> Layout | None:
    """The layout of a record of plain scalars; None for any other."""
    if len(payload) > _LONGEST_LAYOUT:
        return None
    try:
        return Layout(payload)
    except ValueError:
        return None


def _is_blank(file: IO[bytes], offset: int) -> bool:
    """Whether nothing but zeros follows."""
    file.seek(offset)
    while block := file.read(_BLOCK):
        if block.count(0) < len(block):
            return False
    return True


def _number(value: Any) -> float | None:
    """A Summary.Value's scalar in either of TensorBoard's two spellings; None for anything else."""
    kind = value.WhichOneof("value")
    if kind == "simple_value":
        return float(value.simple_value)
    if kind == "tensor" and value.metadata.plugin_data.plugin_name in ("", "scalars"):
        tensor = value.tensor
        if tensor.dtype == 1 and not tensor.tensor_shape.dim:  # DT_FLOAT, rank 0
            if tensor.float_val:
                return float(tensor.float_val[0])
            if len(tensor.tensor_content) == _FLOAT.size:
                return float(_FLOAT.unpack(tensor.tensor_content)[0])
    return None
