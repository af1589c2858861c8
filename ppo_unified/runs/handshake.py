"""How a detached training process tells the process that started it which run folder it made.

`processes.detach` passes an open file to the new process and names its descriptor in the environment; the new process
writes the folder's path there. It is a file and not a pipe: the starting process may be gone by then.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import IO

VARIABLE = "PPO_UNIFIED_DETACHED"  # holds the number of the descriptor


@cache
def report_descriptor() -> int | None:
    """The file in which the starting process looks for our folder; None where this process is not detached.

    The variable is removed from the environment at once: a child of this process would take it for its own.
    """
    text = os.environ.pop(VARIABLE, "")
    with suppress(OSError, ValueError, OverflowError):
        if (descriptor := int(text)) > 2 and stat.S_ISREG(os.fstat(descriptor).st_mode):
            return descriptor
    return None


def is_detached() -> bool:
    """Whether another process started this one in the background and reads its errors."""
    return report_descriptor() is not None


def report_folder(folder: Path) -> None:
    """Tell the starting process, if there is one, which folder this process made."""
    descriptor = report_descriptor()
    if descriptor is not None:
        os.write(descriptor, os.fsencode(folder) + b"\0")


def read_reported_folder(file: IO[bytes]) -> Path | None:
    """The folder that a detached process has reported in `file`; None before it has."""
    path = os.pread(file.fileno(), 1 << 16, 0)  # the child shares the offset: reading must not move it
    return Path(os.fsdecode(path[:-1])) if path.endswith(b"\0") else None
