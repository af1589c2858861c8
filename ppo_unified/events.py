"""TensorBoard event files: the only metrics log of a run, written here and read back here. No torch.

One Event per iteration carries all its values. A SessionLog.START opens every file; readers drop what an earlier
file logged at or after its step, so a resumed run draws one curve. Counters live in `event.step`, because scalars
are float32.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from array import array
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import google_crc32c
import numpy as np
from google.protobuf.message import DecodeError
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import HistogramProto, Summary, SummaryMetadata

from ppo_unified.metrics import describe

PREFIX = "events.out.tfevents"
_HEADER = struct.Struct("<QI")  # length of the payload, masked crc of these 8 bytes
_CRC = struct.Struct("<I")
_FLOAT = struct.Struct("<f")
_LONGEST = 1 << 28  # bytes; a longer record is damage, not data
_LONGEST_CELL = 2000  # characters of a table's cell; longer ones are cut
_UNPRINTABLE = {"\n": "\u21b5 ", "\r": "\u21b5 ", "\t": "\u21e5 "}  # shown as arrows; other ones as U+FFFD


def _masked_crc(data: bytes) -> int:
    crc = int(google_crc32c.value(data))
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


class EventWriter:
    """Appends to one event file in `folder`; every call is on disk (not fsynced) when it returns."""

    def __init__(self, folder: Path, first_step: int = 0) -> None:
        """`first_step`: 0 for a new run, the last kept step + 1 when resuming."""
        stamp = f"{PREFIX}.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}"
        self._file: IO[bytes] = open(folder / stamp, "ab", buffering=0)  # noqa: SIM115 - closed by close()
        self.folder = folder
        self._described: set[str] = set()
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

    def close(self) -> None:
        self._file.close()

    def _metadata(self, tag: str) -> SummaryMetadata | None:
        if tag in self._described:  # TensorBoard keeps the first one it sees
            return None
        self._described.add(tag)
        return SummaryMetadata(display_name=tag, summary_description=describe(tag))

    def _write(self, event: Any) -> None:
        data = event.SerializeToString()
        length = struct.pack("<Q", len(data))
        self._file.write(length + _CRC.pack(_masked_crc(length)) + data + _CRC.pack(_masked_crc(data)))


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


class Series:
    """One tag's points: steps (int64), wall times (s since the epoch) and values (float32), step ascending."""

    def __init__(self) -> None:
        self.steps, self.walls, self.values = array("q"), array("d"), array("f")

    def add(self, step: int, wall: float, value: float) -> None:
        self.steps.append(step)
        self.walls.append(wall)
        self.values.append(value)

    def cut(self, step: int) -> None:
        """Drop every point at or after `step`: a resumed run writes them again."""
        while self.steps and self.steps[-1] >= step:
            for column in (self.steps, self.walls, self.values):
                column.pop()

    def numpy(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Copies of steps, walls and values."""
        return np.array(self.steps, np.int64), np.array(self.walls, np.float64), np.array(self.values, np.float32)


class EventReader:
    """Follows the event files of a folder, our own or any other program's; `poll` reads only what is new.

    A torn record at the end is left for the next poll. A record with a bad payload is skipped; one with a bad length
    ends its file. Either is said in `damage`, with file and byte.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.series: dict[str, Series] = {}
        self.damage: dict[str, str] = {}  # file name -> what is damaged and where
        self._offsets: dict[str, int] = {}

    def poll(self) -> bool:
        """Read what was appended since the last call; whether there was anything."""
        found = False
        for path in sorted(self.folder.glob(f"*{PREFIX}*")):
            for event in self._events(path):
                self._take(event)
                found = True
        return found

    def _take(self, event: Any) -> None:
        if event.HasField("session_log") and event.session_log.status == SessionLog.START:
            for series in self.series.values():
                series.cut(event.step)
        for value in event.summary.value:
            number = _number(value)
            if number is None:
                continue
            series = self.series.setdefault(value.tag, Series())
            if series.steps and event.step < series.steps[-1]:
                series.cut(event.step)
            series.add(event.step, event.wall_time, number)

    def _events(self, path: Path) -> Iterator[Any]:
        name = path.name
        offset = self._offsets.get(name, 0)
        try:
            if path.stat().st_size <= offset:
                return
            with open(path, "rb") as file:
                file.seek(offset)
                data = file.read()
        except OSError as error:
            self.damage[name] = f"{path}: cannot be read ({error.strerror})"
            return
        position = 0
        while len(data) - position >= _HEADER.size:
            length, length_crc = _HEADER.unpack_from(data, position)
            if _masked_crc(data[position : position + 8]) != length_crc or length > _LONGEST:
                if not data[position:].strip(b"\0"):
                    return  # the file grew before its bytes arrived: they may still come
                self.damage[name] = f"{path}: damaged at byte {offset + position}; the rest of this file is not shown"
                self._offsets[name] = 1 << 62  # nothing after a bad length can be found again
                return
            end = position + _HEADER.size + length + _CRC.size
            if end > len(data):
                break
            payload = data[position + _HEADER.size : end - _CRC.size]
            event = _parse(payload, *_CRC.unpack_from(data, end - _CRC.size))
            if event is None:
                self.damage[name] = f"{path}: the record at byte {offset + position} is damaged and was skipped"
            else:
                yield event
            position = end
            self._offsets[name] = offset + position


def _parse(payload: bytes, crc: int) -> Any:
    """The event in a record; None where its bytes are not those that were written, or never were an event."""
    if _masked_crc(payload) != crc:
        return None
    try:
        return Event.FromString(payload)
    except DecodeError:
        return None


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
