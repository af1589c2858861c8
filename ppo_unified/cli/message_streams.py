"""Reads requests from stdin, and writes replies with pictures, for `play --serve` and `inspect --serve`."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from queue import SimpleQueue
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from ppo_unified.errors import UsageError
from ppo_unified.runs.play_messages import FrameRequest, ReplayRequest, Reply, Request, decode, encode
from ppo_unified.terminal.frames import fit

GRACE_S = 2.0  # if an environment hangs when stdin is closed, the process ends after this time
MAX_TEXT = 100_000  # characters of a frame that is text


def read_requests() -> Iterator[bytes]:
    """Yield lines that a thread reads from stdin, until stdin is closed.

    Environment code sees an empty stdin instead. When stdin is closed, the process exits after a short time, even if it
    hangs.
    """
    own = os.dup(0)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    lines: SimpleQueue[bytes] = SimpleQueue()

    def read() -> None:
        with open(own, "rb") as stdin:
            for line in stdin:
                lines.put(line)
        lines.put(b"")
        time.sleep(GRACE_S)
        os._exit(1)

    threading.Thread(target=read, name="requests", daemon=True).start()
    return iter(lines.get, b"")


def decode_request(line: bytes, kind: type[Request]) -> Any:
    """Return the request in a line. Raises UsageError if it is not a message of type `kind`."""
    try:
        return decode(line, kind.__name__)
    except ValueError as error:
        raise UsageError(f"stdin: {error}; see ppo_unified/runs/play_messages.py") from None


def send(stream: BinaryIO, reply: Reply, pixels: bytes = b"") -> None:
    """Write a reply, followed by the pixels of its picture."""
    stream.write(encode(reply) + pixels)
    stream.flush()


class FittedFrame(NamedTuple):
    """A frame in the size that a request has specified."""

    columns: int  # of the picture in pixels; 0 if the frame is a text
    lines: int
    text: str
    pixels: bytes


def fit_frame(picture: np.ndarray | str, request: FrameRequest | ReplayRequest) -> FittedFrame:
    """Resize a picture to the size that `request` specifies. A text keeps its size."""
    if isinstance(picture, str):
        return FittedFrame(0, 0, picture[:MAX_TEXT], b"")
    fitted = fit(picture, max(1, request.columns), max(1, request.lines), request.blocks)
    return FittedFrame(fitted.shape[1], len(fitted), "", np.ascontiguousarray(fitted).tobytes())
