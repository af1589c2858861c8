"""Logs of other programs, written by SummaryWriter: their sub-folders, last steps, and data that charts cannot show."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from torch.utils.tensorboard import SummaryWriter

from ppo_unified.runs import event_reader
from ppo_unified.runs.event_reader import EventReader
from ppo_unified.runs.event_writer import EventWriter
from ppo_unified.runs.folder import Run, Status
from tests.scenes import screen_text
from tui import log_record
from tui.app import Terminal
from tui.folder_scanner import FolderScanner
from tui.runs.entries import describe_not_shown
from tui.store import Store


class Clock:
    """A clock that tests control."""

    now = 1e9

    def __call__(self) -> float:
        return self.now


@contextmanager
def writer(folder: Path) -> Iterator[SummaryWriter]:
    it = SummaryWriter(folder)
    yield it
    it.close()


def write_scalars(folder: Path, tag: str = "loss", steps: range = range(1, 11)) -> None:
    with writer(folder) as it:
        for step in steps:
            it.add_scalar(tag, step, step)


def read_all(store: Store) -> Store:
    while store.update().pending:
        pass
    return store


def read_log(folder: Path, key: str) -> Store:
    store = Store(folder)
    store.watch([key])
    return read_all(store)


# sub-folders


def test_sub_folders_of_one_log_are_one_entry(tmp_path: Path) -> None:
    with writer(tmp_path / "torch") as it:
        for step in range(5):
            it.add_scalar("lr", 0.1, step)
            it.add_scalars("run/loss", {"train": step, "val": 2 * step}, 10 * step)
        it.add_hparams({"lr": 0.1}, {"hparam/accuracy": 0.5}, run_name="trial")
    for split in ("train", "validation"):
        write_scalars(tmp_path / "keras" / "fit" / split, "epoch_loss")
    for number in (1, 2):
        write_scalars(tmp_path / "sb3" / f"PPO_{number}", "rollout/ep_rew_mean")
    store = read_log(tmp_path, "torch")
    assert list(store.entries) == ["keras/fit", "sb3/PPO_1", "sb3/PPO_2", "torch"]
    assert store.tags("torch") == ["hparam/accuracy (trial)", "lr", "run/loss (train)", "run/loss (val)"]
    curve = store.curve("torch", "run/loss (val)")
    assert curve is not None
    assert (curve.steps.tolist(), curve.values.tolist()) == ([0, 10, 20, 30, 40], [0, 2, 4, 6, 8])
    assert store.entries["torch"].status.step == 40
    assert read_log(tmp_path, "keras/fit").tags("keras/fit") == ["epoch_loss (train)", "epoch_loss (validation)"]


def test_runs_of_a_folder_are_not_merged(tmp_path: Path) -> None:
    """The runs folder has its own event file, a folder of splits contains another log, and a run is called `test`."""
    write_scalars(tmp_path)
    write_scalars(tmp_path / "test")
    for name in ("mixed/train", "mixed/PPO_1", "nested/train/PPO_1"):
        write_scalars(tmp_path / name)
    write_scalars(tmp_path / "log")
    write_scalars(tmp_path / "log" / "ours")
    Run(tmp_path / "log" / "ours").write_status(Status(name="ours", state="finished", reason="solved", step=3))
    store = read_all(Store(tmp_path))
    expected = [".", "log", "log/ours", "mixed/PPO_1", "mixed/train", "nested/train/PPO_1", "test"]
    assert list(store.entries) == expected
    assert store.entries["log/ours"].state == "solved"
    (tmp_path / "splits").mkdir()
    assert not read_all(Store(tmp_path / "splits")).entries
    for split in ("train", "eval"):
        write_scalars(tmp_path / "splits" / split)
    assert list(read_all(Store(tmp_path / "splits")).entries) == ["."]


def test_sub_folders_appear_grow_and_disappear(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_scalars(tmp_path / "log")
    store = Store(tmp_path, clock := Clock())
    store.watch(["log"])

    def tags() -> list[str]:
        clock.now += 5
        read_all(store)
        assert list(store.entries) == ["log"]
        return store.tags("log")

    assert tags() == ["loss"]
    write_scalars(tmp_path / "log" / "eval")
    assert tags() == ["loss", "loss (eval)"]
    write_scalars(tmp_path / "log" / "eval", steps=range(11, 31))
    assert tags() == ["loss", "loss (eval)"]
    curve = store.curve("log", "loss (eval)")
    assert curve is not None
    assert curve.steps.tolist() == list(range(1, 31))
    assert store.entries["log"].status.step == 30
    (tmp_path / "log" / "eval").rename(tmp_path / "log" / "test")
    assert tags() == ["loss", "loss (test)"]
    shutil.rmtree(tmp_path / "log" / "test")
    assert tags() == ["loss"]
    assert store.entries["log"].status.step == 10


def test_every_sub_folder_is_read_in_short_turns(tmp_path: Path) -> None:
    for number in range(30):
        write_scalars(tmp_path / "log" / f"part-{number:02}")
    write_scalars(tmp_path / "log")
    store = Store(tmp_path)
    store.watch(["log"])
    turns = 0
    while store.update(0.0).pending:
        turns += 1
        assert turns < 100
    assert len(store.tags("log")) == 31


def test_curves_of_two_sub_folders_have_different_names(tmp_path: Path) -> None:
    for part in ("train", "loss_train", "loss_other"):
        write_scalars(tmp_path / "log" / part)
    write_scalars(tmp_path / "log")
    assert read_log(tmp_path, "log").tags("log") == ["loss", "loss (loss_train)", "loss (other)", "loss (train)"]


# last steps


def test_unwatched_logs_show_last_step_and_score(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the end of each file is read. The best score remains unknown until the whole log has been read."""
    monkeypatch.setattr(log_record, "TAIL", 4096)
    monkeypatch.setattr(event_reader.EventReader, "_read", _limit_reads(monkeypatch))
    write_scalars(tmp_path / "long", "rollout/ep_rew_mean", range(5000))
    with writer(tmp_path / "images") as it:
        it.add_image("picture", np.zeros((3, 8, 8), np.uint8), 77)
    clock = Clock()
    store = read_all(Store(tmp_path, clock))
    status = store.entries["long"].status
    assert (status.step, status.score, status.best_score) == (4999, 4999, None)
    assert store.entries["long"].partial
    assert not store.entries["images"].partial
    assert store.entries["images"].status.step == 77
    for first in (5000, 5003):
        write_scalars(tmp_path / "long", "rollout/ep_rew_mean", range(first, first + 3))
        clock.now += 5
        read_all(store)
    assert store.entries["long"].status.step == 5005
    found = Mock(side_effect=AssertionError("the end of a growing file is found only once"))
    monkeypatch.setattr(event_reader, "find_last_records", lambda path, size, tail: found() if size > tail else 0)
    (file, *_) = (tmp_path / "long").iterdir()
    os.utime(file)
    clock.now += 5
    read_all(store)
    assert store.entries["long"].status.step == 5005
    monkeypatch.undo()
    store.watch(["long"])
    read_all(store)
    assert store.entries["long"].status.best_score == 5005
    store.watch([])
    store._drop("long")
    shutil.rmtree(tmp_path / "long")
    write_scalars(tmp_path / "long", "rollout/ep_len_mean", range(4))  # another log with the same name
    clock.now += 5
    status = read_all(store).entries["long"].status
    assert (status.step, status.score, status.best_score) == (3, None, None)


def test_ends_of_logs_are_read_in_short_turns(tmp_path: Path) -> None:
    for number in range(30):
        write_scalars(tmp_path / "log" / f"loss_{number:02}")
    write_scalars(tmp_path / "log")
    log, turns = log_record.LogRecord(folder := FolderScanner(tmp_path).scan()[0]), 0
    log.update(folder)
    while not log.read_end(0.0):
        assert log.entry.status.step == 0
        turns += 1
    assert turns >= 30
    assert log.entry.status.step == 10


def _limit_reads(monkeypatch: pytest.MonkeyPatch) -> object:
    """Return a replacement of EventReader._read that fails if more than the end of a file is read."""
    read = event_reader.EventReader._read

    def check(self: EventReader, name: str) -> Iterator[bool]:
        assert (self.folder / name).stat().st_size - self._files[name].offset <= log_record.TAIL
        yield from read(self, name)

    return check


@pytest.mark.parametrize("seed", range(5))
def test_any_tail_contains_the_last_records(tmp_path: Path, seed: int) -> None:
    """The tail starts at a record, wherever it starts in the file; a record larger than the tail is found too."""
    rng = random.Random(seed)
    with writer(tmp_path) as it:
        for step in range(40):
            it.add_scalar("loss", step, step)
            it.add_text("note", "x" * rng.randrange(3000), step)
    (path,) = tmp_path.iterdir()
    size = path.stat().st_size
    for tail in (50, 1000, size - 1, size, size + 1):
        reader = EventReader(tmp_path, tail)
        reader.poll()
        assert not reader.damage
        assert reader.others.step == 39
        assert "loss" not in reader.series or reader.series["loss"].steps[-1] == 39
        assert reader.is_partial == (tail < size)


def test_zeros_at_the_end_of_a_file_are_no_records(tmp_path: Path) -> None:
    write_scalars(tmp_path)
    (path,) = tmp_path.iterdir()
    data = path.read_bytes()
    assert event_reader._possible_headers(bytes(1 << 20)).size == 0
    assert event_reader._possible_headers(data + bytes(1 << 20)).size < len(data)
    for shift in range(4):  # at any alignment, and only if the header is complete
        for size in (11, 12):
            found = event_reader._possible_headers(b"\xff" * shift + data[:size])
            assert (shift in found) == (size == 12)


def test_folder_with_many_files_is_read_from_the_newest(tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    for number in range(20):
        file = EventWriter(tmp_path / "log", number)
        file.scalars(number, {"eval/score": float(number)})
        file.close()
    store = read_all(Store(tmp_path))
    status = store.entries["log"].status
    assert (status.step, status.score, status.best_score) == (19, 19, None)


# data that charts cannot show


def test_kinds_that_are_not_shown_are_counted(tmp_path: Path) -> None:
    with writer(tmp_path / "log") as it:
        for step in range(3):
            it.add_scalar("loss", step, step)
            it.add_image("picture", np.zeros((3, 8, 8), np.uint8), step)
            it.add_histogram("weights", np.arange(9.0), 100 * step)
            it.add_text("note", "text", step)
            it.add_audio("sound", torch.zeros(1, 100), step)
        it.add_pr_curve("curve", np.array([0, 1]), np.array([0.2, 0.7]), 1)
        it.add_mesh("mesh", torch.zeros(1, 3, 3), faces=torch.zeros(1, 1, 3, dtype=torch.int64), global_step=1)
        it._get_file_writer().add_event(Event(graph_def=b"graph"))
        it.add_hparams({"lr": 0.1}, {"hparam/accuracy": 0.5}, run_name="trial")
        it.add_custom_scalars({"a": {"b": ["Multiline", ["loss"]]}})
    write_scalars(tmp_path / "plain")
    store = read_all(Store(tmp_path))
    expected = (
        "1 PR curve, 3 audio clips, 1 graph, 3 histograms, 3 images, 1 mesh, 1 set of hyperparameters, 3 text values"
    )
    assert store.entries["log"].not_shown == expected
    assert store.entries["log"].status.step == 200  # of a histogram
    assert store.entries["plain"].not_shown == describe_not_shown(store.entries["plain"]) == ""
    command = f"ppo-unified tensorboard --runs {tmp_path / 'log'}"
    assert describe_not_shown(store.entries["log"]) == f"Not shown: {expected}. To see all data: {command}"
    store.watch(["log"])
    assert not read_all(store).update().listed
    assert store.entries["log"].not_shown == expected


def test_only_first_value_of_a_tag_names_its_plugin(tmp_path: Path) -> None:
    """TensorBoard's writers may omit the plugin of later values, which are shorter than the first one."""
    (tmp_path / "log").mkdir()
    it = EventWriter(tmp_path / "log")
    for step in range(4):
        value = Summary.Value(tag="pictures")
        value.tensor.dtype = 7  # DT_STRING
        value.tensor.string_val.extend([b"8", b"8", b"png"])
        if not step:
            plugin = SummaryMetadata.PluginData(plugin_name="images")
            value.metadata.CopyFrom(SummaryMetadata(plugin_data=plugin))
        it._write(Event(step=step, summary=Summary(value=[value])))
    it.close()
    assert read_all(Store(tmp_path)).entries["log"].not_shown == "4 images"


@pytest.mark.parametrize("size", [(80, 24), (200, 60)])
def test_page_of_a_log_says_what_is_not_shown(tmp_path: Path, size: tuple[int, int]) -> None:
    import asyncio

    with writer(tmp_path / "log") as it:
        for step in range(12):
            it.add_scalars("loss", {"train": step, "val": 2 * step}, step)
            it.add_image("picture", np.zeros((3, 8, 8), np.uint8), step)

    async def show() -> None:
        app = Terminal(tmp_path)
        async with app.run_test(size=size) as pilot:
            while "loss (val)" not in screen_text(app):
                await pilot.pause(0.02)
            assert "Not shown" not in screen_text(app) or size[0] > 170  # the wide list has a detail pane
            await pilot.press("enter")
            while "Not shown: 12 images. To see all data: ppo-unified tensorboard" not in screen_text(app):
                await pilot.pause(0.02)
            assert "11 steps" in screen_text(app)

    asyncio.run(show())
