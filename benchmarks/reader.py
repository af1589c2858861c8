"""Measure the speed and peak memory of reading event files, in the layout of this project and in that of torch.

    python benchmarks/reader.py [--steps 100000] [--tags 20]

The file `together` has one event per step with all tags, as written by a run. The file `apart` has one event per tag,
as written by torch's SummaryWriter. Each file is read in a new process, with checksums, in turns of at most 50 ms.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import psutil

from ppo_unified.runs.event_reader import EventReader
from ppo_unified.runs.event_writer import EventWriter
from ppo_unified.runs.metrics import METRICS

BUDGET_S = 0.05


def write_events(folder: Path, steps: int, tags: int, together: bool) -> None:
    """Write an event file of random numbers."""
    names = [*METRICS, *(f"extra/metric_{number}" for number in range(max(0, tags - len(METRICS))))][:tags]
    writer = EventWriter(folder)
    values = np.random.default_rng(0).normal(size=(steps, tags))
    for step, row in enumerate(values.tolist()):
        numbers = dict(zip(names, row, strict=True))
        for part in [numbers] if together else [{tag: value} for tag, value in numbers.items()]:
            writer.scalars(128 * step, part)
    writer.close()


def measure_read(folder: Path) -> str:
    """Read all event files in a folder and return the measurements as a line of a table."""
    process = psutil.Process()
    before = most = process.memory_info().rss
    reader, started, began, longest = EventReader(folder), time.perf_counter(), time.process_time(), 0.0
    polls = 0
    while not polls or reader.pending:
        polled = time.perf_counter()
        reader.poll(BUDGET_S)
        polls += 1
        longest = max(longest, time.perf_counter() - polled)
        most = max(most, process.memory_info().rss)
    seconds, cpu_s = time.perf_counter() - started, time.process_time() - began
    points = sum(map(len, reader.series.values()))
    memory = (most - before) / 2**20
    size = sum(path.stat().st_size for path in folder.iterdir()) / 2**20
    cells = [f"{points:,}", f"{size:,.0f}", f"{seconds:.2f}", f"{cpu_s:.2f}", f"{points / seconds:,.0f}"]
    cells += [f"{points / cpu_s:,.0f}", f"{longest * 1e3:.0f}", f"{memory:,.0f}"]
    return " | ".join(cells)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=100_000, help="number of steps (default: 100000)")
    parser.add_argument("--tags", type=int, default=20, help="number of tags per step (default: 20)")
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.read:
        print(measure_read(options.read))
        return 0
    print(f"{os.cpu_count()} cores, Python {platform.python_version()}, numpy {version('numpy')}\n")
    heads = ("file", "points", "MiB", "s", "CPU s", "points/s", "points/CPU s", "longest turn (ms)", "memory (MiB)")
    print(f"| {' | '.join(heads)} |\n{'|---' * len(heads)}|")
    for name in ("together", "apart"):
        with tempfile.TemporaryDirectory() as folder:
            write_events(Path(folder), options.steps, options.tags, name == "together")
            command = [sys.executable, __file__, "--read", folder]
            line = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        print(f"| {name} | {line.strip()} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
