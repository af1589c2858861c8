"""Read and write .npz files. Reading executes no code, and the memory that it takes is limited."""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO

import numpy as np

from ppo_unified.parsing import open_file

LEVEL = 1  # of compression: about three times as fast as the default, for files that are a few percent larger
LARGE = 1 << 18  # bytes; smaller arrays are always compressed
PROBE = 1 << 14  # bytes that decide whether a large array is compressed
WORTHWHILE = 0.8  # a large array is compressed if its first bytes shrink to at most this fraction


def write_arrays(file: IO[bytes], arrays: Mapping[str, np.ndarray]) -> None:
    """Write a .npz file that `numpy.load` can read.

    A large array whose first bytes hardly become smaller is not compressed. Log-probs, for example, often become only
    10 % smaller, but reading and writing them takes several times as long.
    """
    with zipfile.ZipFile(file, "w", compresslevel=LEVEL) as archive:
        for name, array in arrays.items():
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, array, allow_pickle=False)
            data = buffer.getvalue()
            compresses = len(data) < LARGE or len(zlib.compress(data[:PROBE], LEVEL)) <= WORTHWHILE * PROBE
            archive.writestr(f"{name}.npy", data, zipfile.ZIP_DEFLATED if compresses else zipfile.ZIP_STORED)


def read_arrays(path: Path, max_bytes: int) -> dict[str, np.ndarray]:
    """Return the arrays in a file. Raises ValueError if it cannot be read or would need more than `max_bytes`."""
    try:
        with open_file(path) as file:
            with zipfile.ZipFile(file) as archive:
                size = sum(member.file_size for member in archive.infolist())
            if size > max_bytes:
                raise ValueError(f"its uncompressed size is {size:,} bytes, the limit is {max_bytes:,}")
            file.seek(0)
            with np.load(file, allow_pickle=False) as arrays:
                return {name: arrays[name] for name in arrays.files}
    except Exception as error:  # numpy and zipfile raise many kinds of exceptions for a damaged file
        raise ValueError(error) from None
