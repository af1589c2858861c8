"""Create synthetic runs: finished ones of any length, and one that is written like a run in training."""

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

POINTS, METRICS_EACH = 2_000, 20  # points per curve and metrics per run
TAGS = [*USUAL, *(tag for tag in METRICS if tag not in USUAL)][:METRICS_EACH]
LAST = 4321.0  # the last value of every curve; a chart that shows it is complete
EVENTS_S = 20  # events per second of a run in training


class Repeater(EventWriter):
    """Stores events and writes them repeatedly with new steps, because creating a million events takes minutes."""

    def __init__(self, folder: Path) -> None:
        self.kept: list[Any] | None = None
        super().__init__(folder)

    def _write(self, event: Any) -> None:
        if self.kept is None:
            super()._write(event)
        else:
            self.kept.append(event)

    def repeat(self, points: int) -> None:
        """Write the stored events in turn until there are `points` events, the last of them at the end."""
        kept, self.kept = self.kept or [], None
        began = time.time() - points * 0.05
        for point in range(points):
            event = kept[point % (len(kept) - 1)] if point < points - 1 else kept[-1]
            event.step, event.wall_time = 256 * (point + 1), began + 0.05 * point
            self._write(event)


def write_events(folder: Path, points: int) -> None:
    """Write an event file like that of a run, with values that repeat after 256 events."""
    writer = Repeater(folder)
    writer.kept = []
    for values in np.random.default_rng(0).normal(size=(256, METRICS_EACH)).tolist():
        writer.scalars(0, dict(zip(TAGS, values, strict=True)))
    writer.scalars(0, dict.fromkeys(TAGS, LAST))
    writer.repeat(points)
    writer.close()


def make_run(folder: Path, points: int, events: Path | None = None) -> None:
    """Create a finished run, with a copy of the event files in `events` if given."""
    folder.mkdir(parents=True)
    if events is None:
        write_events(folder, points)
    else:
        for path in events.glob("events*"):
            shutil.copy(path, folder)
    now = time.time()
    status = Status(
        folder.name, "cartpole", "gym", "finished", 256 * points, 256 * points, points, score=480.0, best_score=500.0
    )
    status.started, status.heartbeat, status.elapsed_s = now - 0.05 * points, now, 0.05 * points
    Run(folder).write_status(status)


def make_runs(folder: Path, count: int) -> list[str]:
    """Create the runs run-000, run-001, ... with POINTS points each, and return their names."""
    names = [f"run-{number:03}" for number in range(count)]
    for name in names:
        make_run(folder / name, POINTS, folder / names[0] if name != names[0] else None)
    return names


def act_as_trainer(folder: Path) -> None:
    """Lock a run and write events and run.json like a trainer until stdin is closed."""
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
