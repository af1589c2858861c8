"""Event files: TensorBoard reads what we write, we read what its writers write; damage is skipped and said."""

from __future__ import annotations

import math
import re
import struct
from html import unescape
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.proto.event_pb2 import Event, SessionLog

from ppo_unified.events import PREFIX, EventReader, EventWriter, _masked_crc, as_table

Points = dict[str, list[tuple[int, str]]]


def logged(seed: int = 0, steps: range = range(10, 130, 10)) -> list[tuple[int, dict[str, float]]]:
    """Iterations as a trainer logs them: one tag every time, one now and then, one with every odd float."""
    rng = np.random.default_rng(seed)
    odd = [0.0, -0.0, math.nan, math.inf, -math.inf, 1e-40, 3.4e38, -1.5, 1e-7, 0.1, 123456789.0, 7.0]
    return [
        (
            step,
            {"loss/value": float(rng.normal()), "odd": odd[k % len(odd)]}
            | ({"eval/score": 1.0 * k} if k % 3 == 0 else {}),
        )
        for k, step in enumerate(steps)
    ]


def write(folder: Path, entries: list[tuple[int, dict[str, float]]], first_step: int = 0) -> Path:
    """One event file of `entries`; its path."""
    before = set(folder.glob("*"))
    writer = EventWriter(folder, first_step)
    for step, values in entries:
        writer.scalars(step, values)
    writer.close()
    (path,) = set(folder.glob("*")) - before
    return path


def points(reader: EventReader) -> Points:
    """Everything a reader holds, in values that compare equal (NaN is no number's equal, but its text is)."""
    found: Points = {}
    for tag, series in reader.series.items():
        steps, walls, values = series.numpy()
        assert len(steps) == len(walls) == len(values)
        if len(steps):
            found[tag] = list(zip(steps.tolist(), map(repr, values.tolist()), strict=True))
    return found


def read(folder: Path) -> Points:
    reader = EventReader(folder)
    reader.poll()
    assert not reader.damage
    return points(reader)


def records(data: bytes) -> list[tuple[int, int]]:
    """(start, end) of every record of an event file."""
    found, position = [], 0
    while position < len(data):
        end = position + 12 + struct.unpack_from("<Q", data, position)[0] + 4
        found.append((position, end))
        position = end
    return found


def test_our_reader_and_tensorboards_read_the_same_from_our_files(tmp_path: Path) -> None:
    write(tmp_path, logged())
    accumulator = EventAccumulator(str(tmp_path), size_guidance={"scalars": 0, "tensors": 0}).Reload()
    reader = EventReader(tmp_path)
    assert reader.poll()
    assert set(accumulator.Tags()["scalars"]) == set(reader.series) == {"loss/value", "odd", "eval/score"}
    for tag, series in reader.series.items():
        theirs = accumulator.Scalars(tag)
        steps, walls, values = series.numpy()
        assert [x.step for x in theirs] == steps.tolist()
        assert [x.wall_time for x in theirs] == walls.tolist()
        np.testing.assert_array_equal(np.array([x.value for x in theirs], np.float32), values)
    expected = np.array([values["odd"] for _, values in logged()], np.float32)
    np.testing.assert_array_equal(reader.series["odd"].numpy()[2], expected)


def test_tensorboard_reads_our_histograms_descriptions_and_hyperparameters(tmp_path: Path) -> None:
    samples = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    writer = EventWriter(tmp_path)
    writer.hyperparameters({"seed": 1, "ppo.clip": 0.2, "policy.hidden": [64, 64], "optim.anneal": True})
    dirty = np.r_[samples, np.array([np.nan, np.inf], np.float32)]
    writer.scalars(5, {"policy/kl": 0.5}, {"histogram/ratios": dirty, "empty": np.empty(0), "all_nan": dirty[-2:-1]})
    writer.close()
    accumulator = EventAccumulator(str(tmp_path)).Reload()
    (histogram,) = accumulator.Histograms("histogram/ratios")
    assert histogram.histogram_value.num == 1000
    assert histogram.histogram_value.sum == pytest.approx(float(samples.sum()), rel=1e-3)
    assert sum(histogram.histogram_value.bucket) == 1000
    assert "KL(old || new)" in accumulator.SummaryMetadata("policy/kl").summary_description
    assert "_hparams_/session_start_info" in accumulator.summary_metadata
    assert read(tmp_path) == {"policy/kl": [(5, "0.5")]}  # nothing but scalars becomes a curve


NASTY = [
    "a|b | c",
    "two\nlines\r\nand\tmore",
    "![i](http://a/b.png) [l](javascript:alert(1)) <http://a.b>",
    "<img src=x onerror=alert(1)> <b>bold</b> &lt;i&gt;",
    "**bold** _it_ `code` # h ~~s~~ \\| \\\\",
    "\x1b[31mred\x1b[0m \x00 \u202e \ud800",
    "| --- | --- |",
    "\u6e38\u620f \U0001f40d",
    "",
]


def test_tensorboard_shows_our_texts_and_our_reader_passes_them_over(tmp_path: Path) -> None:
    writer = EventWriter(tmp_path)
    for step in (3, 5):
        writer.scalars(step, {"a": 1.0 * step})
        writer.text(step, "eval/responses", as_table([{"response": "six", "score": step / 3}]))
    writer.close()
    accumulator = EventAccumulator(str(tmp_path), size_guidance={"tensors": 0}).Reload()
    assert accumulator.summary_metadata["eval/responses"].plugin_data.plugin_name == "text"
    first, second = accumulator.Tensors("eval/responses")
    assert (first.step, second.step) == (3, 5)
    assert (second.tensor_proto.dtype, len(second.tensor_proto.tensor_shape.dim)) == (7, 0)  # DT_STRING, rank 0
    (text,) = second.tensor_proto.string_val
    assert text.decode() == "| response | score |\n| --- | --- |\n| six | 1&#46;66667 |"
    assert read(tmp_path) == {"a": [(3, "3.0"), (5, "5.0")]}


@pytest.mark.filterwarnings("ignore:html5lib's sanitizer is deprecated:DeprecationWarning")  # TensorBoard's own copy
@pytest.mark.parametrize("text", NASTY)
def test_no_text_becomes_markup_or_leaves_its_cell(text: str) -> None:
    """TensorBoard's own rendering of the table holds one cell for each, and nothing but the text in it."""
    from tensorboard.plugins.text.text_plugin import text_array_to_html

    table = as_table([{"prompt": text, text or "none": 1.0}, {"prompt": "last"}])
    html = text_array_to_html(np.array(table.encode("utf-8", "replace"), dtype=object), True)
    rows = re.findall(r"<tr>\n(.*?)\n</tr>", html, re.S)
    cells = [re.findall(r"<t[hd]>(.*?)</t[hd]>", row, re.S) for row in rows]
    assert [len(row) for row in cells] == [2, 2, 2]
    assert set(re.findall(r"</?(\w+)", html)) == {"table", "thead", "tbody", "tr", "th", "td"}
    shown = unescape(cells[1][0])
    assert shown.isprintable()
    words = [word for word in re.split(r"[\s\x00-\x1f\u202e\ud800]+", text) if word]
    assert all(word in shown for word in words)
    assert "last" in cells[2][0]


def test_a_long_cell_is_cut() -> None:
    assert len(as_table([{"response": "x" * 10**6}])) < 3000


@pytest.mark.parametrize("new_style", [False, True])
def test_our_reader_reads_files_of_torchs_summary_writer(tmp_path: Path, new_style: bool) -> None:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(tmp_path)
    for step, values in logged():
        for tag, value in values.items():
            writer.add_scalar(tag, value, step, new_style=new_style)
        writer.add_histogram("weights", np.arange(10.0), step)
    writer.add_text("notes", "hello", 3)
    writer.close()
    ours = tmp_path / "ours"
    ours.mkdir()
    write(ours, logged())
    assert read(tmp_path) == read(ours)


def test_a_torn_tail_waits_for_its_rest_wherever_it_is_torn(tmp_path: Path) -> None:
    """A reader that sees a file grow byte by byte ends with what one that sees it whole ends with."""
    data = write(tmp_path, logged(steps=range(1, 4))).read_bytes()
    whole = read(tmp_path)
    growing = tmp_path / "growing"
    growing.mkdir()
    path, reader = growing / f"{PREFIX}.1", EventReader(growing)
    ends = {end for _, end in records(data)}
    with open(path, "ab", buffering=0) as file:
        for position, byte in enumerate(data):
            file.write(bytes([byte]))
            assert reader.poll() == (position + 1 in ends)
    assert points(reader) == whole
    assert not reader.damage


def test_a_damaged_payload_costs_its_record_alone_and_is_said(tmp_path: Path) -> None:
    path = write(tmp_path, logged(steps=range(1, 6)))
    data, whole = path.read_bytes(), read(tmp_path)
    start, end = records(data)[4]  # file version, START, then steps 1, 2, 3: this is step 3
    for position in range(start + 12, end):
        path.write_bytes(data[:position] + bytes([data[position] ^ 0x10]) + data[position + 1 :])
        reader = EventReader(tmp_path)
        reader.poll()
        assert points(reader) == {tag: [p for p in series if p[0] != 3] for tag, series in whole.items()}
        assert reader.damage == {path.name: f"{path}: the record at byte {start} is damaged and was skipped"}


def test_a_damaged_length_ends_its_file_and_is_said(tmp_path: Path) -> None:
    path = write(tmp_path, logged(steps=range(1, 6)))
    data, whole = path.read_bytes(), read(tmp_path)
    start, _ = records(data)[4]
    for position in range(start, start + 12):
        path.write_bytes(data[:position] + bytes([data[position] ^ 0x01]) + data[position + 1 :])
        reader = EventReader(tmp_path)
        reader.poll()
        assert points(reader) == {
            tag: [p for p in series if p[0] < 3] for tag, series in whole.items() if series[0][0] < 3
        }
        assert list(reader.damage) == [path.name]
        assert f"damaged at byte {start}; the rest of this file is not shown" in reader.damage[path.name]
        with open(path, "ab") as file:
            file.write(data[start:])
        assert not reader.poll()  # what follows cannot be told from noise


def test_damage_in_one_file_leaves_the_others_alone(tmp_path: Path) -> None:
    broken = write(tmp_path, [(1, {"a": 1.0})])
    broken.write_bytes(b"\xff" * 100)
    write(tmp_path, [(1, {"b": 1.0})])
    reader = EventReader(tmp_path)
    reader.poll()
    assert points(reader) == {"b": [(1, "1.0")]}
    assert list(reader.damage) == [broken.name]


def test_a_record_that_is_whole_but_no_event_is_skipped_and_said(tmp_path: Path) -> None:
    path = write(tmp_path, [(1, {"a": 1.0})])
    noise = b"\xff\xff\xff not a protocol buffer"
    length = struct.pack("<Q", len(noise))
    with open(path, "ab") as file:
        file.write(length + struct.pack("<I", _masked_crc(length)) + noise + struct.pack("<I", _masked_crc(noise)))
        size = file.tell()
    write(tmp_path, [(2, {"a": 2.0})], first_step=2)
    reader = EventReader(tmp_path)
    reader.poll()
    assert points(reader) == {"a": [(1, "1.0"), (2, "2.0")]}
    assert f"the record at byte {size - 16 - len(noise)} is damaged and was skipped" in reader.damage[path.name]


def test_a_tensor_of_the_wrong_size_is_no_scalar(tmp_path: Path) -> None:
    path = write(tmp_path, [(1, {"a": 1.0})])
    event = Event(step=2)
    for content in (b"", b"\0\0", b"\0\0\x80\x3f"):
        value = event.summary.value.add(tag="tensor")
        value.tensor.dtype, value.tensor.tensor_content = 1, content
    data = event.SerializeToString()
    length = struct.pack("<Q", len(data))
    with open(path, "ab") as file:
        file.write(length + struct.pack("<I", _masked_crc(length)) + data + struct.pack("<I", _masked_crc(data)))
    assert read(tmp_path) == {"a": [(1, "1.0")], "tensor": [(2, "1.0")]}


@pytest.mark.parametrize("resume_at", [0, 1, 55, 60, 120, 500])
@pytest.mark.parametrize("poll_between", [False, True])
def test_a_resumed_run_reads_as_one_that_was_never_interrupted(
    tmp_path: Path, resume_at: int, poll_between: bool
) -> None:
    """The second file's START cuts every tag from its step on, also tags that it never logs again."""
    first, second = logged(seed=1), logged(seed=2, steps=range(resume_at, resume_at + 60, 10))
    second = [(step, {tag: x for tag, x in values.items() if tag != "eval/score"}) for step, values in second]
    reader = EventReader(tmp_path)
    write(tmp_path, first)
    if poll_between:
        reader.poll()
    write(tmp_path, second, first_step=resume_at)
    reader.poll()
    straight = tmp_path / "straight"
    straight.mkdir()
    write(straight, [(step, values) for step, values in first if step < resume_at] + second)
    assert points(reader) == read(straight)


def test_other_programs_that_step_back_without_a_start_draw_one_curve_too(tmp_path: Path) -> None:
    write(tmp_path, [(1, {"a": 1.0}), (2, {"a": 2.0}), (3, {"a": 3.0}), (2, {"a": 2.5}), (4, {"a": 4.0})])
    assert read(tmp_path) == {"a": [(1, "1.0"), (2, "2.5"), (4, "4.0")]}


def test_every_file_opens_with_a_version_and_a_start(tmp_path: Path) -> None:
    data = write(tmp_path, [], first_step=77).read_bytes()
    version, start = (Event.FromString(data[a + 12 : b - 4]) for a, b in records(data))
    assert version.file_version == "brain.Event:2"
    assert (start.session_log.status, start.step) == (SessionLog.START, 77)


def test_zeros_at_the_end_are_a_tail_not_yet_written(tmp_path: Path) -> None:
    """A file system may lengthen a file before its bytes arrive, or after a power cut leave it at that."""
    path = write(tmp_path, logged())
    data, whole = path.read_bytes(), read(tmp_path)
    cut = records(data)[6][0]
    for zeros in (1, 12, 1000):
        path.write_bytes(data[:cut] + bytes(zeros))
        reader = EventReader(tmp_path)
        reader.poll()
        assert max(reader.series["loss/value"].steps) == 40
        assert not reader.poll()
        path.write_bytes(data)
        reader.poll()
        assert points(reader) == whole
        assert not reader.damage


def test_an_empty_file_and_an_empty_folder_hold_nothing(tmp_path: Path) -> None:
    reader = EventReader(tmp_path / "not there")
    assert not reader.poll()
    (tmp_path / f"{PREFIX}.1").touch()
    reader = EventReader(tmp_path)
    assert not reader.poll()
    assert not reader.series
    assert not reader.damage


def test_a_file_that_vanishes_keeps_its_points_and_one_that_cannot_be_opened_is_said(tmp_path: Path) -> None:
    path = write(tmp_path, logged())
    whole = read(tmp_path)
    reader = EventReader(tmp_path)
    reader.poll()
    path.unlink()
    assert not reader.poll()
    assert points(reader) == whole
    assert not reader.damage
    path.symlink_to(tmp_path / "gone")  # listed, but gone when it is opened
    assert not reader.poll()
    assert "cannot be read (No such file or directory)" in reader.damage[path.name]
