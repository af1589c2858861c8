"""Tests of the memory that is available to a process on a CPU."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from ppo_unified.config import devices

CPU = torch.device("cpu")


@pytest.mark.parametrize("version", [1, 2])
def test_container_limit_counts_what_others_use(version: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 1000 bytes, 700 are used, of which 50 are file cache and 200 belong to this process."""
    (tmp_path / "groups").write_text("5:cpu,cpuacct:/x\n4:memory:/a/b\n0::/\n" if version == 1 else "0::/a/b\n")
    root, names, group = (
        (tmp_path / "memory", devices.V1_FILES, "")  # inside a container, the folder a/b does not exist
        if version == 1
        else (tmp_path, devices.V2_FILES, "a")
    )
    (root / group).mkdir(parents=True)
    for name, text in zip((*names[:2], "memory.stat"), ("1000\n", "700\n", f"file 60\n{names[2]} 50\n"), strict=True):
        (root / group / name).write_text(text)
    monkeypatch.setattr(devices, "GROUPS", tmp_path / "groups")
    monkeypatch.setattr(devices, "V1", tmp_path / "memory")
    monkeypatch.setattr(devices, "V2", tmp_path)
    monkeypatch.setattr(devices, "process_bytes", lambda _: 200)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=10_000))
    assert devices.available_bytes(CPU) == 1000 - 700 + 50 + 200
    (root / group / names[0]).write_text("max\n")
    assert devices.available_bytes(CPU) == 10_200
