"""Training continues while the disk is full, and ends if the run folder is removed."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ppo_unified.runs import samples
from ppo_unified.runs.event_reader import EventReader
from ppo_unified.runs.event_writer import EventWriter
from ppo_unified.runs.folder import FolderLostError, Run, Status
from ppo_unified.runs.log_tee import Tee, open_log
from ppo_unified.runs.preparation import prepare
from ppo_unified.runs.signals import StopRequest
from ppo_unified.training.session import train_in
from tests.sequences import make_config, sequences

__all__ = ["sequences"]  # a fixture that tests request by name

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

LIMITED = """
import resource, sys
from pathlib import Path
from ppo_unified.runs.event_reader import EventReader
from ppo_unified.runs.event_writer import EventWriter
folder = Path(sys.argv[1])
writer = EventWriter(folder)
refused, size = 0, 3000
resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
for step in range(200):
    if step == 150:
        reader = EventReader(folder)
        reader.poll()
        assert not reader.damage and max(reader.series["a"].steps) < 149
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    try:
        writer.scalars(step, {"a": step})
    except OSError:
        refused += 1
writer.close()
print(refused)
"""


def test_event_file_recovers_from_a_write_cut_short(tmp_path: Path) -> None:
    """A file size limit makes the last write incomplete, like a full disk."""
    done = subprocess.run([sys.executable, "-c", LIMITED, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert 0 < int(done.stdout) < 150
    reader = EventReader(tmp_path)
    reader.poll()
    assert not reader.damage
    assert reader.series["a"].steps.tolist() == list(range(200))


@pytest.mark.usefixtures("sequences")
def test_run_survives_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    full = [True]

    def fail_while_full(original: Any) -> Any:
        def write(*arguments: Any) -> Any:
            if full[0]:
                raise FULL
            return original(*arguments)

        return write

    monkeypatch.setattr("ppo_unified.training.reporting.REPORT_S", 0.0)
    config = make_config(eval={"every_steps": 80, "episodes": 2})
    run = prepare(config, tmp_path, "a")
    for owner, name in ((Run, "write_status"), (samples, "write"), (samples, "append_responses")):
        monkeypatch.setattr(owner, name, fail_while_full(getattr(owner, name)))
    monkeypatch.setattr(EventWriter, "_append", fail_while_full(EventWriter._append))
    monkeypatch.setattr(EventWriter, "hyperparameters", lambda self, options: None)
    monkeypatch.setattr(EventWriter, "_write", allow_first_records(full, EventWriter._write))

    def report(status: Status, metrics: dict[str, float]) -> None:
        full[0] = status.iteration < 5

    assert train_in(run, config, StopRequest(), report).state == "finished"
    output = capsys.readouterr().err.splitlines()
    for what in ("run.json", "the event file", "samples/"):
        assert len([line for line in output if f"cannot write {what} (No space left" in line]) == 1
        assert len([line for line in output if f"writing {what} works again" in line]) == 1
    reader = EventReader(run.path)
    reader.poll()
    assert len(reader.series["policy/kl"].steps) == 8  # failed writes were retried later
    assert samples.iterations(run) == [6, 8]


def allow_first_records(full: list[bool], write: Any) -> Any:
    """Wrap `write` so that the disk is not full before the first two records of the event file are written."""
    count = [0]

    def writing(self: EventWriter, event: Any) -> None:
        count[0] += 1
        full[0], before = full[0] and count[0] > 2, full[0]
        try:
            write(self, event)
        finally:
            full[0] = before

    return writing


@pytest.mark.usefixtures("sequences")
@pytest.mark.parametrize("replaced", [False, True])
def test_removed_folder_ends_run_and_is_not_recreated(
    replaced: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ppo_unified.training.reporting.REPORT_S", 0.0)
    config = make_config(checkpoint={"every_s": 1e-6})
    run = prepare(config, tmp_path, "a")

    def report(status: Status, metrics: dict[str, float]) -> None:
        if status.iteration == 2:
            shutil.rmtree(run.path)
            if replaced:
                prepare(config, tmp_path, "a").release()

    with pytest.raises(FolderLostError, match="was removed or replaced during training"):
        train_in(run, config, StopRequest(), report)
    assert (run.path / "run.json").exists() == replaced
    assert not run.checkpoints.exists()
    if replaced:
        assert run.read_status().state == "starting"  # the status of the new run is unchanged


def test_log_ignores_full_disk_and_closed_terminal(tmp_path: Path) -> None:
    with open_log(Path("/dev/full")) as log:
        print("lost", file=log, flush=True)

    class Closed:
        def write(self, text: str) -> int:
            raise OSError(errno.EIO, "Input/output error")

    with open_log(tmp_path / "log.txt") as log:
        print("kept", file=Tee(Closed(), log))  # type: ignore[arg-type]
    assert (tmp_path / "log.txt").read_text() == "kept\n"


@pytest.mark.usefixtures("sequences")
def test_clock_set_back_does_not_change_durations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(10**9, 0, -10_000))
    run = prepare(make_config(), tmp_path, "a")
    monkeypatch.setattr("ppo_unified.training.reporting.time.time", lambda: float(next(now)))
    speeds: list[float] = []
    status = train_in(run, make_config(), StopRequest(), lambda _, m: speeds.append(m["time/steps_per_second"]))
    assert 0 < status.elapsed_s < 600
    assert all(0 < speed < 1e7 for speed in speeds)
