"""Write a run's metrics to TensorBoard event files. The metrics are stored nowhere else.

Each iteration is one Event with all its metrics. Every file starts with a SessionLog.START event. Readers discard
earlier points at or after the step of this event, so that a resumed run has a single curve. Step counts are stored in
`event.step` because scalars are float32. To keep startup fast, this module avoids torch.
"""

from __future__ import annotations

import os
import re
import socket
import struct
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import (
    DATA_CLASS_SCALAR,
    DATA_CLASS_TENSOR,
    HistogramProto,
    Summary,
    SummaryMetadata,
)

from ppo_unified.runs.event_format import CRC, PREFIX, masked_crc
from ppo_unified.runs.metrics import describe

_STAMPED = re.compile(re.escape(PREFIX) + r"\.(\d{10}\.\d{6})\.")  # matches the names of files written by EventWriter
_MAX_WAITING = 1 << 24  # maximum bytes of records to keep while the disk is full; later ones are lost
_LONGEST_CELL = 2000  # maximum characters in a table cell; longer text is truncated
_UNPRINTABLE = {"\n": "\u21b5 ", "\r": "\u21b5 ", "\t": "\u21e5 "}  # shown as arrows; all others become U+FFFD


class EventWriter:
    """Appends records to one event file in `folder`. When a method returns, the kernel has received its data.

    A method that cannot write raises OSError. The incomplete record is removed, and the next call writes it again.
    """

    def __init__(self, folder: Path, first_step: int = 0) -> None:
        """Create an event file. For a resumed run, `first_step` is the step after the restored checkpoint, else 0."""
        name = f"{PREFIX}.{_stamp(folder):.6f}.{socket.gethostname()}.{os.getpid()}"
        self._file: IO[bytes] = open(folder / name, "ab", buffering=0)  # noqa: SIM115 - closed by close()
        self.folder = folder
        self._described: set[str] = set()
        self._size = 0  # bytes of complete records in the file
        self._waiting = b""  # records that could not be written yet
        self._write(Event(wall_time=time.time(), file_version="brain.Event:2"))
        self._write(Event(wall_time=time.time(), step=first_step, session_log=SessionLog(status=SessionLog.START)))

    def scalars(
        self, step: int, values: Mapping[str, float], histograms: Mapping[str, np.ndarray] | None = None
    ) -> None:
        """Write all metrics of an iteration as one Event. `histograms` contains arrays of raw values."""
        summary = Summary()
        for tag, value in values.items():
            summary.value.add(tag=tag, simple_value=value, metadata=self._metadata(tag, "scalars", DATA_CLASS_SCALAR))
        for tag, samples in (histograms or {}).items():
            if samples.size:
                metadata = self._metadata(tag, "histograms", DATA_CLASS_TENSOR)
                summary.value.add(tag=tag, histo=_histogram(samples), metadata=metadata)
        self._write(Event(wall_time=time.time(), step=step, summary=summary))

    def text(self, step: int, tag: str, markdown: str) -> None:
        """Write text for TensorBoard's TEXT tab, which renders Markdown. `markdown_table` escapes untrusted data."""
        from tensorboard.compat.proto.tensor_pb2 import TensorProto
        from tensorboard.compat.proto.types_pb2 import DT_STRING
        from tensorboard.plugins.text.metadata import create_summary_metadata

        summary = Summary()
        tensor = TensorProto(dtype=DT_STRING, string_val=[markdown.encode("utf-8", "replace")])
        summary.value.add(tag=tag, tensor=tensor, metadata=create_summary_metadata(tag, ""))
        self._write(Event(wall_time=time.time(), step=step, summary=summary))

    def hyperparameters(self, options: Mapping[str, Any]) -> None:
        """Write all options for TensorBoard's HPARAMS tab."""
        from tensorboard.plugins.hparams.summary_v2 import hparams_pb

        plain = {key: x if isinstance(x, (bool, int, float, str)) else str(x) for key, x in options.items()}
        self._write(Event(wall_time=time.time(), summary=hparams_pb(plain, trial_id=self.folder.name)))

    def sync(self) -> None:
        """Write waiting records and flush the file to the disk. Raises OSError."""
        self._append()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Write waiting records and close the file. Records that still cannot be written are silently lost."""
        with suppress(OSError):
            self._append()
        self._file.close()

    def _metadata(self, tag: str, plugin: str, data_class: int) -> SummaryMetadata | None:
        """Return the description of a tag for its first value, and None for later values.

        TensorBoard ignores later metadata. Its default loader also ignores metadata without a data class, and
        EventAccumulator warns about metadata without a plugin.
        """
        if tag in self._described:
            return None
        self._described.add(tag)
        return SummaryMetadata(
            display_name=tag,
            summary_description=describe(tag),
            plugin_data=SummaryMetadata.PluginData(plugin_name=plugin),
            data_class=data_class,
        )

    def _write(self, event: Any) -> None:
        data = event.SerializeToString()
        length = struct.pack("<Q", len(data))
        record = length + CRC.pack(masked_crc(length)) + data + CRC.pack(masked_crc(data))
        if len(self._waiting) + len(record) <= _MAX_WAITING:
            self._waiting += record
        self._append()

    def _append(self) -> None:
        """Write the waiting records. If this fails, restore the file, since a partial record would hide later ones."""
        if os.fstat(self._file.fileno()).st_size > self._size:
            self._file.truncate(self._size)  # removes an incomplete record that could not be removed earlier
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
    """Return the current time or, if the clock was set back, a time after that of all existing event files.

    Readers sort the files by name, which contains the time.
    """
    found = [_STAMPED.match(name) for name in os.listdir(folder)]
    return max([time.time(), *(float(match[1]) + 1e-6 for match in found if match)])


def markdown_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return a Markdown table with one column per key. All cells are escaped, so that no data is rendered as markup."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = [columns, ["---"] * len(columns), *([row.get(key, "") for key in columns] for row in rows)]
    cells = [[cell if number == 1 else _escape(cell) for cell in line] for number, line in enumerate(lines)]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def _escape(value: Any) -> str:
    """Convert a value to text in which character references replace all characters with a meaning in Markdown."""
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
