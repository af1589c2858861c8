"""Tests for `ppo_unified.runs.arrays`."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest

from ppo_unified.runs.arrays import LARGE, read_arrays, write_arrays

SIZE = LARGE // 4  # elements of a large array


def write(path: Path, **arrays: np.ndarray) -> None:
    with open(path, "wb") as file:
        write_arrays(file, arrays)


def test_only_arrays_that_become_smaller_are_compressed(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).normal(size=SIZE).astype(np.float32)
    arrays = {"noise": noise, "zeros": np.zeros_like(noise), "few": noise[:100]}
    write(tmp_path / "x.npz", **arrays)
    with zipfile.ZipFile(tmp_path / "x.npz") as archive:
        found = {member.filename: member.compress_type for member in archive.infolist()}
    compressed, as_is = zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED
    assert found == {"noise.npy": as_is, "zeros.npy": compressed, "few.npy": compressed}
    read = read_arrays(tmp_path / "x.npz", 1 << 30)
    assert all(np.array_equal(read[name], array) for name, array in arrays.items())


def test_damage_in_an_uncompressed_array_is_found(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    write(path, noise=np.random.default_rng(0).normal(size=SIZE).astype(np.float32))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match="CRC"):
        read_arrays(path, 1 << 30)
