"""Finds out how much memory of a device a process uses, and how much is available to it."""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import torch

GROUPS = Path("/proc/self/cgroup")  # lists the control groups of this process
V1, V2 = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")  # folders of control groups, by their version
V1_FILES = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")  # and a key of memory.stat
V2_FILES = ("memory.max", "memory.current", "inactive_file")


def process_bytes(device: torch.device) -> int:
    """Return the memory that this process uses on a device."""
    return torch.cuda.memory_reserved(device) if device.type == "cuda" else int(psutil.Process().memory_info().rss)


def peak_bytes(device: torch.device) -> int:
    """Return the largest amount of memory that this process has used on a device so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def available_bytes(device: torch.device) -> int:
    """Return the memory that this process may use on a device, including what it already uses.

    On a CPU, the limit of a container counts too.
    """
    own = process_bytes(device)
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0]) + own
    return min([int(psutil.virtual_memory().available), *_free_in_groups()]) + own


def _free_in_groups() -> Iterator[int]:
    """Yield how much memory each control group of this process has left, if it has a limit.

    The cache of files that were not used recently counts as free, because the kernel frees it first.
    """
    try:
        lines = GROUPS.read_text(encoding="utf-8").splitlines()
    except OSError:  # not on Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root, (limit, usage, key) = (V1, V1_FILES) if controllers else (V2, V2_FILES)
        folder = root / path.lstrip("/")
        for group in (folder, *folder.parents):
            if group.is_relative_to(root) and (maximum := _read(group / limit)).isdigit():
                cache = [x.split()[1] for x in _read(group / "memory.stat").splitlines() if x.split()[0] == key]
                yield max(0, int(maximum) - int(_read(group / usage) or 0) + sum(map(int, cache)))


def _read(file: Path) -> str:
    """Return the text of a file, or "" if it cannot be read. Some files do not exist inside a container."""
    try:
        return file.read_text(encoding="utf-8").strip()
    except OSError:
        return ""
