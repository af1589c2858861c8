"""Decode many events with the same byte layout at once. A trainer's events all contain the same tags, and only the
numbers differ. The wire format is described at https://protobuf.dev/programming-guides/encoding."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

# keys of fields: number << 3 | wire type
_WALL, _STEP, _SUMMARY = 0x09, 0x10, 0x2A  # in an Event
_VALUE = 0x0A  # in a Summary
_TAG, _SIMPLE_VALUE = 0x0A, 0x15  # in a Summary.Value
_VARINT, _EIGHT, _BYTES, _FOUR = 0, 1, 2, 5  # wire types


class Layout:
    """The byte offsets of the wall time, step and floats in a group of records whose other bytes are all equal."""

    def __init__(self, payload: bytes) -> None:
        """Parse the layout of `payload`. Raises ValueError if it is not an event or contains more than scalars."""
        self._wall: int | None = None
        self._step: slice | None = None
        self._floats: dict[str, int] = {}  # tag -> offset
        for key, start, end in _fields(payload, 0, len(payload)):
            if key == _WALL:  # if a field occurs twice, the last one is valid
                self._wall = start
            elif key == _STEP:
                self._step = slice(start, end)
            elif key == _SUMMARY:
                self._add_values(payload, start, end)
            else:
                raise ValueError("the event contains more than scalars")
        if not self._floats:
            raise ValueError("the event contains no scalars")
        self._mask = self._compared_bits(len(payload))
        self._fixed = np.frombuffer(payload, np.uint8) & self._mask

    def _add_values(self, payload: bytes, start: int, end: int) -> None:
        for key, first, last in _fields(payload, start, end):
            parts = list(_fields(payload, first, last))
            if key != _VALUE or [part[0] for part in parts] != [_TAG, _SIMPLE_VALUE]:
                raise ValueError("the value is not a plain scalar")
            tag = payload[slice(*parts[0][1:])].decode()
            if tag in self._floats:
                raise ValueError("duplicate tag")
            self._floats[tag] = parts[1][1]

    def _compared_bits(self, size: int) -> np.ndarray:
        """Return a bit mask [size] of the bits that are equal in all records of this layout."""
        mask = np.full(size, 0xFF, np.uint8)
        if self._wall is not None:
            mask[self._wall : self._wall + 8] = 0
        if self._step is not None:
            mask[self._step] = 0x80  # the bit that shows whether the varint continues
        for offset in self._floats.values():
            mask[offset : offset + 4] = 0
        return mask

    def matches(self, records: np.ndarray) -> np.ndarray:
        """Return a mask [K] of the records [K, size] that have this layout."""
        hits: np.ndarray = ((records & self._mask) == self._fixed).all(axis=1)
        return hits

    def decode(self, records: np.ndarray) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        """Decode records [K, size] with this layout. Return the steps, wall times and each tag's values, each [K]."""
        steps = np.zeros(len(records), np.int64)
        if self._step is not None:
            for place, column in enumerate(range(self._step.start, self._step.stop)):
                steps |= (records[:, column] & 0x7F).astype(np.int64) << (7 * place)
        walls = np.zeros(len(records)) if self._wall is None else _numbers(records, self._wall, "<f8")
        return steps, walls, {tag: _numbers(records, offset, "<f4") for tag, offset in self._floats.items()}


def _numbers(records: np.ndarray, offset: int, kind: str) -> np.ndarray:
    """Return the numbers [K] at the same offset of every record."""
    width = np.dtype(kind).itemsize
    return np.ascontiguousarray(records[:, offset : offset + width]).view(kind).ravel()


def _fields(data: bytes, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield each field's key and the start and end of its content. Raises ValueError for unsupported fields."""
    while start < end:
        key, start = data[start], start + 1
        kind = key & 7
        if kind == _VARINT:
            stop = _varint(data, start)[1]
        elif kind == _EIGHT:
            stop = start + 8
        elif kind == _FOUR:
            stop = start + 4
        elif kind == _BYTES:
            length, start = _varint(data, start)
            stop = start + length
        else:
            raise ValueError("unknown wire type")
        if key >= 0x80 or stop > end:
            raise ValueError("field number too large, or field longer than its message")
        yield key, start, stop
        start = stop


def _varint(data: bytes, start: int) -> tuple[int, int]:
    """Decode the varint at `start`. Return the number and the offset after it."""
    number = 0
    for place, byte in enumerate(data[start : start + 10]):
        number |= (byte & 0x7F) << (7 * place)
        if byte < 0x80:
            return number, start + place + 1
    raise ValueError("varint without an end")
