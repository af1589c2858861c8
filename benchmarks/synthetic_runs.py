"""Made-up folders of runs: ended ones of any length, and one that is written as a trainer writes it."""

from __future__ import annotations

import os
import select
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from ppo_unified.runs.event_writer import EventWriter
from ppo_unified.runs.folder import Run, Status
from ppo_unified.runs.metrics import METRICS, USUAL

POINTS, METRICS_EACH = 2_000, 20  # of a run
TAGS = [*USUAL, *(tag for tag in METRICS if tag not in USUAL)][:METRICS_EACH]
LAST = 4321.0  # the last value of every curve, by which a chart is known to be drawn to its end
EVENTS_S = 20  # of a run that is written


class Repeater(EventWriter):
    """Keeps events and writes them again with other steps: to make a million anew would take minutes."""

    def __init__(self, folder: Path) -> None:
        self.kept: list[Any] | None = None
        super().__init__(folder)

    def _write(self, event: Any) -> None:
        if self.kept is None:
            super()._write(event)
        else:
            self.kept.append(event)

    def repeat(self, points: int) -> None:
        """Write the kept events in turn, the last one only at the end."""
        kept, self.kept = self.kept or [], None
        began = time.time() - points * 0.05
        for point in range(points):
            event = kept[point % (len(kept) - 1)] if point < points - 1 else kept[-1]
            event.step, event.wall_time = 256 * (point + 1), began + 0.05 * point
            self._write(event)


def write_events(folder: Path, points: int) -> None:
    """One run's event file as a run writes it, but that values repeat after 256 events."""
    writer = Repeater(folder)
    writer.kept = []
    for values in np.random.default_rng(0).normal(size=(256, METRICS_EACH)).tolist():
        writer.scalars(0, dict(zip(TAGS, values, strict=True)))
    writer.scalars(0, dict.fromkeys(TAGS, LAST))
    writer.repeat(points)
    writer.close()


def make_run(folder: Path, points: int, events: Path | None = None) -> None:
    """A run that has ended; with a copy of another one's events where they are given."""
    folder.mkdir(parents=True)
    if events is None:
        write_events(folder, points)
    else:
        for path in events.glob("events*"):
            shutil.copy(path, folder)
    now = time.time()
    status = Status(folder.name, "cartpole", "gym", "finished", 256 * points, 256 * points, points, 480.0, 500.0)
    status.started, status.heartbeat, status.elapsed_s = now - 0.05 * points, now, 0.05 * points
    Run(folder).write_status(status)


def make_runs(folder: Path, count: int) -> list[str]:
    """Runs run-000, run-001, ... of POINTS points."""
    names = [f"run-{number:03}" for number in range(count)]
    for name in names:
        make_run(folder / name, POINTS, folder / names[0] if name != names[0] else None)
    return names


def act_as_trainer(folder: Path) -> None:
    """Be the trainer of a run until standard input ends."""
    run = Run(folder)
    run.acquire()
    status = run.read_status()
    status.state, status.pid, status.total_steps = "running", os.getpid(), 10 * status.step
    writer, rng, beaten = EventWriter(folder, status.step + 1), np.random.default_rng(os.getpid()), 0.0
    while not select.select([sys.stdin], [], [], 1 / EVENTS_S)[0]:
        status.step += 256
        status.iteration += 1
        writer.scalars(status.step, dict(zip(TAGS, rng.normal(size=METRICS_EACH).tolist(), strict=True)))
        if time.time() - beaten >= 1:
            status.heartbeat = beaten = time.time()
            run.write_status(status)
