"""Decode the payloads of event records into points of curves. Records with equal byte layouts are decoded together.

Other data, such as images, is only counted.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterator, Sequence
from operator import itemgetter
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError
from tensorboard.compat.proto.event_pb2 import Event, SessionLog

from ppo_unified.runs.scalar_layout import Layout
from ppo_unified.runs.series import Chunk, Curves

_FLOAT = struct.Struct("<f")
_MAX_LAYOUTS = 64  # maximum number of layouts to cache for each payload length
_LONGEST_LAYOUT = 1 << 16  # maximum bytes of a record with a layout; longer ones are decoded one by one


_KINDS = {  # field of a value or an event, or TensorBoard plugin -> what it contains
    **dict.fromkeys(("image", "images"), "image"),
    **dict.fromkeys(("histo", "histograms"), "histogram"),
    **dict.fromkeys(("graph_def", "meta_graph_def", "graphs", "graph_keras_model"), "graph"),
    "audio": "audio clip",
    "text": "text value",
    "hparams": "set of hyperparameters",
    "pr_curves": "PR curve",
    "mesh": "mesh",
}
_PARTS = {"hparams": "session_start_info", "mesh": "_VERTEX"}  # plugin with several values per item -> tag to count
_AUXILIARY = ("custom_scalars", "graph_run_metadata", "graph_run_metadata_graph")  # plugins without data of their own


class OtherData:
    """Counts the data in event files that is not scalar, such as images."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()  # kind, such as 'image' -> number of values
        self.step = 0  # largest step of an event that contains such data
        self._plugins: dict[str, str] = {}  # tag -> plugin; only the first value of a tag names its plugin

    def add(self, event: Any) -> None:
        """Count what an event contains besides scalars. Events must be added in file order."""
        kinds = [self._kind(value) for value in event.summary.value if _number(value) is None]
        kinds += [_KINDS[field] for field in ("graph_def", "meta_graph_def") if event.HasField(field)]
        if found := [kind for kind in kinds if kind]:
            self.counts.update(found)
            self.step = max(self.step, event.step)

    def _kind(self, value: Any) -> str:
        """Return the kind of a value, or an empty string if the value is only a part of another one."""
        field = value.WhichOneof("value")
        if field in _KINDS:
            return _KINDS[field]
        plugin = self._plugins.setdefault(value.tag, value.metadata.plugin_data.plugin_name)
        if plugin in _AUXILIARY or not value.tag.endswith(_PARTS.get(plugin, "")):
            return ""
        return _KINDS.get(plugin, "other value")


class Block:
    """Decodes the events of one block of a file. Records with the same known layout are decoded together."""

    def __init__(self, layouts: dict[int, list[Layout]]) -> None:
        self._layouts = layouts
        self.damaged: list[int] = []  # rows that do not contain a valid event
        self._chunks: list[Chunk] = []
        self._starts: list[tuple[int, int]] = []  # (row, step) of every SessionLog.START
        self._single: dict[str, list[tuple[int, int, float, float]]] = {}  # tag -> (row, step, wall, value)
        self._others: list[tuple[int, Any]] = []  # (row, event) of events that may contain more than scalars

    def decode(self, rows: np.ndarray, payloads: Sequence[bytes]) -> None:
        """Decode the records at `rows`, which all have the same length."""
        several = [payloads[row] for row in rows.tolist()]
        length = len(several[0])
        records = np.frombuffer(b"".join(several), np.uint8).reshape(len(several), length)
        left = np.arange(len(several))
        known = self._layouts.setdefault(length, [])
        for layout in known:
            if not left.size:
                return
            left = self._decode_matching(layout, rows, records, left)
        while left.size:
            layout_or_none = _layout(several[left[0]]) if len(known) < _MAX_LAYOUTS else None
            if layout_or_none is None:
                self._decode_one(int(rows[left[0]]), several[left[0]])
                left = left[1:]
            else:
                known.append(layout_or_none)
                left = self._decode_matching(layout_or_none, rows, records, left)

    def _decode_matching(self, layout: Layout, rows: np.ndarray, records: np.ndarray, left: np.ndarray) -> np.ndarray:
        """Decode those of the records `left` that match the layout, and return the others."""
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
        has_others = event.WhichOneof("what") != "summary"
        for value in event.summary.value:
            number = _number(value)
            if number is None:
                has_others = True
            else:
                self._single.setdefault(value.tag, []).append((row, event.step, event.wall_time, number))
        if has_others:
            self._others.append((row, event))

    def add_to(self, curves: Curves, others: OtherData) -> None:
        """Append all points to `curves` in file order, and count other data.

        Each START event removes earlier points at or after its step.
        """
        for _, event in sorted(self._others, key=itemgetter(0)):
            others.add(event)
        chunks = [*self._chunks, *self._singles()]
        first = 0
        for row, step in sorted(self._starts):
            curves.add([chunk.between(first, row) for chunk in chunks])
            curves.truncate(step)
            first = row
        curves.add([chunk.between(first, 1 << 62) for chunk in chunks] if first else chunks)

    def _singles(self) -> Iterator[Chunk]:
        """Yield the points that were decoded one by one, in one chunk per group of tags that were logged together."""
        groups: dict[tuple[int, ...], list[str]] = {}
        for tag, points in self._single.items():
            points.sort(key=lambda point: point[0])
            groups.setdefault(tuple(point[0] for point in points), []).append(tag)
        for rows, tags in groups.items():
            _, steps, walls, _ = zip(*self._single[tags[0]], strict=True)
            values = {tag: np.array([point[3] for point in self._single[tag]], np.float32) for tag in tags}
            yield Chunk(np.array(rows, np.int64), np.array(steps, np.int64), np.array(walls, np.float64), values)


def _event(payload: bytes) -> Any:
    """Parse a record's payload as an event. Return None if it is not a valid event."""
    try:
        return Event.FromString(payload)
    except DecodeError:
        return None


def _layout(payload: bytes) -> Layout | None:
    """Return the layout of a record that contains only scalars, or None for any other record."""
    if len(payload) > _LONGEST_LAYOUT:
        return None
    try:
        return Layout(payload)
    except ValueError:
        return None


def _number(value: Any) -> float | None:
    """Return the scalar of a Summary.Value, in either of TensorBoard's two encodings, or None if it is not a scalar."""
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
