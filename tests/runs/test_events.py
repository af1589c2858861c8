"""Event files: compatibility with TensorBoard in both directions, damaged files, and resumed runs."""

from __future__ import annotations

import math
import os
import re
import struct
from html import unescape
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.proto.event_pb2 import Event, SessionLog

from ppo_unified.runs import event_decoder, event_reader
from ppo_unified.runs.event_format import PREFIX, masked_crc
from ppo_unified.runs.event_reader import EventReader
from ppo_unified.runs.event_writer import EventWriter, markdown_table
from ppo_unified.runs.metrics import METRICS, title

Points = dict[str, list[tuple[int, str]]]


def make_entries(seed: int = 0, steps: range = range(10, 130, 10)) -> list[tuple[int, dict[str, float]]]:
    """Return logged iterations with a regular tag, an occasional tag, and a tag with unusual floats."""
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
    """Write `entries` to an event file and return its path."""
    before = set(folder.glob("*"))
    writer = EventWriter(folder, first_step)
    for step, values in entries:
        writer.scalars(step, values)
    writer.close()
    (path,) = set(folder.glob("*")) - before
    return path


def points(reader: EventReader) -> Points:
    """Return all points of a reader, with values as text so that NaN compares equal."""
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
    """Return (start, end) of every record of an event file."""
    found, position = [], 0
    while position < len(data):
        end = position + 12 + struct.unpack_from("<Q", data, position)[0] + 4
        found.append((position, end))
        position = end
    return found


def _split(data: bytes) -> list[bytes]:
    """Return the records of an event file."""
    return [data[start:end] for start, end in records(data)]


def test_our_reader_agrees_with_tensorboards(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path, make_entries())
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
    expected = np.array([values["odd"] for _, values in make_entries()], np.float32)
    np.testing.assert_array_equal(reader.series["odd"].numpy()[2], expected)
    assert not caplog.records  # it warns about metadata without a plugin


def test_first_value_of_each_tag_and_file_names_its_plugin(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """TensorBoard's default loader discards a description without a plugin. Later values need no metadata."""
    for first_step, steps in ((0, (5, 10)), (8, (8, 9))):  # the second file is that of a resumed run
        writer = EventWriter(tmp_path, first_step)
        for step in steps:
            writer.scalars(step, {"policy/kl": 0.5}, {"histogram/ratio": np.arange(9.0)})
        writer.text(steps[-1], "health/events", "kl recovered.")
        writer.close()
    for path in sorted(tmp_path.glob(f"{PREFIX}*")):
        events = [Event.FromString(data[12:-4]) for data in _split(path.read_bytes())]
        plugins = [
            (value.tag, value.metadata.plugin_data.plugin_name) for event in events for value in event.summary.value
        ]
        first, later = [("policy/kl", "scalars"), ("histogram/ratio", "histograms")], [("policy/kl", "")]
        assert plugins == [*first, *later, ("histogram/ratio", ""), ("health/events", "text")]
    accumulator = EventAccumulator(str(tmp_path), size_guidance={"scalars": 0}).Reload()
    assert [(x.step, x.value) for x in accumulator.Scalars("policy/kl")] == [(5, 0.5), (8, 0.5), (9, 0.5)]
    (purged,) = caplog.records  # a resume discards the points at or after its first step
    assert "Removing 1 scalars, 1 histograms" in purged.getMessage()


def test_tensorboard_reads_our_histograms_and_hyperparameters(tmp_path: Path) -> None:
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
    assert "KL from the old policy to the new one" in accumulator.SummaryMetadata("policy/kl").summary_description
    assert "_hparams_/session_start_info" in accumulator.summary_metadata
    assert read(tmp_path) == {"policy/kl": [(5, "0.5")]}  # only scalars become curves


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


def test_tensorboard_shows_texts_and_our_reader_skips_them(tmp_path: Path) -> None:
    writer = EventWriter(tmp_path)
    for step in (3, 5):
        writer.scalars(step, {"a": 1.0 * step})
        writer.text(step, "eval/responses", markdown_table([{"response": "six", "score": step / 3}]))
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
def test_text_tables_escape_markup_and_cell_borders(text: str) -> None:
    """TensorBoard renders the table with one cell per value, and each cell contains only the text."""
    from tensorboard.plugins.text.text_plugin import text_array_to_html

    table = markdown_table([{"prompt": text, text or "none": 1.0}, {"prompt": "last"}])
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


def test_long_cell_is_truncated() -> None:
    assert len(markdown_table([{"response": "x" * 10**6}])) < 3000


@pytest.mark.parametrize("new_style", [False, True])
def test_our_reader_reads_torch_summary_writer_files(tmp_path: Path, new_style: bool) -> None:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(tmp_path)
    for step, values in make_entries():
        for tag, value in values.items():
            writer.add_scalar(tag, value, step, new_style=new_style)
        writer.add_histogram("weights", np.arange(10.0), step)
    writer.add_text("notes", "hello", 3)
    writer.close()
    ours = tmp_path / "ours"
    ours.mkdir()
    write(ours, make_entries())
    assert read(tmp_path) == read(ours)


def test_torn_tail_is_retried_at_every_cut(tmp_path: Path) -> None:
    """Reading a file while it grows byte by byte gives the same points as reading the complete file."""
    data = write(tmp_path, make_entries(steps=range(1, 4))).read_bytes()
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


def test_damaged_payload_loses_one_record_and_is_reported(tmp_path: Path) -> None:
    path = write(tmp_path, make_entries(steps=range(1, 6)))
    data, whole = path.read_bytes(), read(tmp_path)
    start, end = records(data)[4]  # file version, START, then steps 1, 2, 3: this is step 3
    for position in range(start + 12, end):
        path.write_bytes(data[:position] + bytes([data[position] ^ 0x10]) + data[position + 1 :])
        reader = EventReader(tmp_path)
        reader.poll()
        assert points(reader) == {tag: [p for p in series if p[0] != 3] for tag, series in whole.items()}
        assert reader.damage == {path.name: f"{path}: the record at byte {start} is damaged and was skipped"}


def test_damaged_length_ends_its_file_and_is_reported(tmp_path: Path) -> None:
    path = write(tmp_path, make_entries(steps=range(1, 6)))
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
        assert not reader.poll()  # the data after it cannot be distinguished from noise


def test_damaged_file_does_not_affect_others(tmp_path: Path) -> None:
    broken = write(tmp_path, [(1, {"a": 1.0})])
    broken.write_bytes(b"\xff" * 100)
    write(tmp_path, [(1, {"b": 1.0})])
    reader = EventReader(tmp_path)
    reader.poll()
    assert points(reader) == {"b": [(1, "1.0")]}
    assert list(reader.damage) == [broken.name]


def test_valid_record_without_event_is_skipped_and_reported(tmp_path: Path) -> None:
    path = write(tmp_path, [(1, {"a": 1.0})])
    noise = b"\xff\xff\xff not a protocol buffer"
    length = struct.pack("<Q", len(noise))
    with open(path, "ab") as file:
        file.write(length + struct.pack("<I", masked_crc(length)) + noise + struct.pack("<I", masked_crc(noise)))
        size = file.tell()
    write(tmp_path, [(2, {"a": 2.0})], first_step=2)
    reader = EventReader(tmp_path)
    reader.poll()
    assert points(reader) == {"a": [(1, "1.0"), (2, "2.0")]}
    assert f"the record at byte {size - 16 - len(noise)} is damaged and was skipped" in reader.damage[path.name]


def test_tensor_of_wrong_size_is_not_a_scalar(tmp_path: Path) -> None:
    path = write(tmp_path, [(1, {"a": 1.0})])
    event = Event(step=2)
    for content in (b"", b"\0\0", b"\0\0\x80\x3f"):
        value = event.summary.value.add(tag="tensor")
        value.tensor.dtype, value.tensor.tensor_content = 1, content
    data = event.SerializeToString()
    length = struct.pack("<Q", len(data))
    with open(path, "ab") as file:
        file.write(length + struct.pack("<I", masked_crc(length)) + data + struct.pack("<I", masked_crc(data)))
    assert read(tmp_path) == {"a": [(1, "1.0")], "tensor": [(2, "1.0")]}


@pytest.mark.parametrize("resume_at", [0, 1, 55, 60, 120, 500])
@pytest.mark.parametrize("poll_between", [False, True])
def test_resumed_curve_equals_uninterrupted_curve(tmp_path: Path, resume_at: int, poll_between: bool) -> None:
    """The START of the second file truncates all tags at its step, even tags that are not logged again."""
    first, second = make_entries(seed=1), make_entries(seed=2, steps=range(resume_at, resume_at + 60, 10))
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


def test_clock_set_back_before_resume_hides_no_points(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = write(tmp_path, [(1, {"a": 1.0}), (2, {"a": 2.0})])
    (tmp_path / f"{PREFIX}.of-another-program").touch()
    monkeypatch.setattr("ppo_unified.runs.event_writer.time.time", lambda: 1.0e9)
    second = write(tmp_path, [(2, {"a": 2.5}), (3, {"a": 3.0})], first_step=2)
    assert first.name < second.name
    assert read(tmp_path) == {"a": [(1, "1.0"), (2, "2.5"), (3, "3.0")]}


def test_foreign_log_that_steps_back_yields_one_curve(tmp_path: Path) -> None:
    write(tmp_path, [(1, {"a": 1.0}), (2, {"a": 2.0}), (3, {"a": 3.0}), (2, {"a": 2.5}), (4, {"a": 4.0})])
    assert read(tmp_path) == {"a": [(1, "1.0"), (2, "2.5"), (4, "4.0")]}


def test_restarts_are_applied_in_file_order(tmp_path: Path) -> None:
    writer = EventWriter(tmp_path)
    for restart, step in ((None, 90), (None, 250), (200, 260), (100, 110), (None, 300), (280, 290)):
        if restart is not None:
            writer._write(Event(wall_time=1.0, step=restart, session_log=SessionLog(status=SessionLog.START)))
        writer.scalars(step, {"a": step, "b": step})
    writer.close()
    assert read(tmp_path) == {tag: [(step, f"{step}.0") for step in (90, 110, 290)] for tag in "ab"}


def test_event_file_starts_with_version_and_session_start(tmp_path: Path) -> None:
    data = write(tmp_path, [], first_step=77).read_bytes()
    version, start = (Event.FromString(data[a + 12 : b - 4]) for a, b in records(data))
    assert version.file_version == "brain.Event:2"
    assert (start.session_log.status, start.step) == (SessionLog.START, 77)


def test_trailing_zeros_are_an_unwritten_tail(tmp_path: Path) -> None:
    """A file system may extend a file before it writes the data; after a power failure, the zeros remain."""
    path = write(tmp_path, make_entries())
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


def test_empty_file_and_folder_yield_no_points(tmp_path: Path) -> None:
    reader = EventReader(tmp_path / "not there")
    assert not reader.poll()
    (tmp_path / f"{PREFIX}.1").touch()
    reader = EventReader(tmp_path)
    assert not reader.poll()
    assert not reader.series
    assert not reader.damage


def test_vanished_file_keeps_points_and_unreadable_is_reported(tmp_path: Path) -> None:
    path = write(tmp_path, make_entries())
    whole = read(tmp_path)
    reader = EventReader(tmp_path)
    reader.poll()
    path.unlink()
    assert not reader.poll()
    assert points(reader) == whole
    assert not reader.damage
    path.symlink_to(tmp_path / "gone")  # listed, but missing when it is opened
    assert not reader.poll()
    assert "cannot read the file (No such file or directory)" in reader.damage[path.name]


def frame_record(event: Event) -> bytes:
    data: bytes = event.SerializeToString()
    length = struct.pack("<Q", len(data))
    return length + struct.pack("<I", masked_crc(length)) + data + struct.pack("<I", masked_crc(data))


def decode_one_by_one(folder: Path) -> Points:
    """Read the event files of a folder with protobuf and lists only, one event at a time."""
    found: dict[str, list[tuple[int, str]]] = {}
    for path in sorted(folder.glob(f"*{PREFIX}*")):
        data = path.read_bytes()
        for start, end in records(data):
            event = Event.FromString(data[start + 12 : end - 4])
            if event.session_log.status == SessionLog.START:
                found = {tag: [p for p in series if p[0] < event.step] for tag, series in found.items()}
            for value in event.summary.value:
                number = event_decoder._number(value)
                if number is not None:
                    series = found.setdefault(value.tag, [])
                    if series and event.step < series[-1][0]:
                        series[:] = [p for p in series if p[0] < event.step]
                    series.append((event.step, repr(float(np.float32(number)))))
    return {tag: series for tag, series in found.items() if series}


def random_file(folder: Path, seed: int, how: str) -> None:
    """Write a file with changing tags, steps of all lengths, restarts and unusual floats."""
    rng = np.random.default_rng(seed)
    tags = [f"{group}/{'x' * int(rng.integers(1, 5))}{k}" for group in ("loss", "eval") for k in range(4)]
    step, entries = int(rng.choice([0, 1, 120, 16_000, 2**31 - 5, 2**62])), []
    for _ in range(int(rng.integers(1, 300))):
        step += int(rng.choice([0, 1, 1, 7, 64]))
        if rng.random() < 0.02:
            step = max(0, step - int(rng.integers(1, 200)))
        chosen = tags if rng.random() < 0.7 else rng.permutation(tags)[: rng.integers(0, len(tags))].tolist()
        floats = rng.normal(size=len(chosen)) * rng.choice([0.0, 1.0, 1e30, math.nan, math.inf])
        entries.append((step, dict(zip(chosen, floats.tolist(), strict=True))))
    WRITERS[how](folder, entries, rng)


def write_ours(folder: Path, entries: list[tuple[int, dict[str, float]]], rng: np.random.Generator) -> None:
    writer = EventWriter(folder, int(rng.integers(0, 3)))
    for step, values in entries:
        histograms = {"histogram/a": rng.normal(size=5)} if rng.random() < 0.1 else None
        writer.scalars(step, values, histograms)
        if rng.random() < 0.02:
            writer.text(step, "text", "words")
        if rng.random() < 0.02:
            writer._write(Event(wall_time=1.0, step=max(0, step - 20), session_log=SessionLog(status=SessionLog.START)))
    writer.close()


def write_torch(folder: Path, entries: list[tuple[int, dict[str, float]]], rng: np.random.Generator) -> None:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(folder)
    for step, values in entries:
        for tag, value in values.items():
            writer.add_scalar(tag, value, step, new_style=bool(rng.random() < 0.2))
    writer.close()


def write_tensorboard(folder: Path, entries: list[tuple[int, dict[str, float]]], rng: np.random.Generator) -> None:
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    writer = EventFileWriter(str(folder))
    for step, values in entries:
        summary = Summary()
        for tag, value in values.items():
            if rng.random() < 0.1:
                summary.value.add(tag=tag).tensor.CopyFrom(_tensor(value))
            else:
                summary.value.add(tag=tag, simple_value=value)
        if rng.random() < 0.05 and values:
            summary.value.add(tag=next(iter(values)), simple_value=1.0)  # the same tag twice
        writer.add_event(Event(wall_time=float(rng.integers(0, 2)), step=step, summary=summary))
    writer.close()


def _tensor(value: float) -> object:
    from tensorboard.util.tensor_util import make_tensor_proto

    return make_tensor_proto(np.float32(value))


WRITERS = {"ours": write_ours, "torch": write_torch, "tensorboard": write_tensorboard}


@pytest.mark.parametrize("how", WRITERS)
@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.exhaustive) for seed in range(2, 8))])
def test_batch_decoding_equals_single_decoding(
    tmp_path: Path, seed: int, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The result does not depend on the block size or on the time limit of a poll."""
    random_file(tmp_path, seed, how)
    expected = decode_one_by_one(tmp_path)
    for block in (1 << 18, 3000, 1):
        monkeypatch.setattr(event_reader, "_BLOCK", block)
        reader = EventReader(tmp_path)
        reader.poll(0.0)
        while reader.pending:
            reader.poll(0.0)
        assert points(reader) == expected
        assert not reader.damage


def test_unusual_encodings_decode_as_protobuf_does(tmp_path: Path) -> None:
    """The reader does not confuse unusual records with known layouts: duplicate, reordered or unknown fields, overlong
    numbers, and tags that are not UTF-8."""
    plain = Event(wall_time=1.5, step=300)
    plain.summary.value.add(tag="a", simple_value=2.0)
    plain.summary.value.add(tag="b", simple_value=3.0)
    whole = plain.SerializeToString()
    wall, step, summary = whole[:9], whole[9:12], whole[12:]
    value = summary[2:12]
    spelled = [
        whole,
        summary + step + wall,
        whole + step.replace(b"\xac", b"\xad"),
        wall + summary,
        step + summary,
        wall + step + b"\x2a\x8a\x00" + value,
        wall + b"\x10\xac\x82\x00" + summary,
        wall + b"\x10" + b"\xff" * 9 + b"\x01" + summary,
        wall + step + summary + b"\x2a\x0a" + value,
        wall + step + b"\x2a\x07\x0a\x05\x15\0\0\x80\x3f",
        wall + step + b"\x2a\x0a\x0a\x08\x15\0\0\x80\x3f\x0a\x01a",
        wall + step + summary.replace(b"a\x15", b"\xff\x15"),
        wall + step + summary + b"\xf8\x07\x01",
        wall + b"\x10\x05\x02" + summary,
        whole[:-1],
        b"",
    ]
    data = b""
    for payload in [*spelled, *spelled]:
        length = struct.pack("<Q", len(payload))
        data += length + struct.pack("<I", masked_crc(length)) + payload + struct.pack("<I", masked_crc(payload))
    (tmp_path / f"{PREFIX}.1").write_bytes(data)
    reader = EventReader(tmp_path)
    reader.poll()
    readable = [p for start, end in records(data) if event_decoder._event(p := data[start + 12 : end - 4]) is not None]
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / f"{PREFIX}.1").write_bytes(b"".join(frame_record(Event.FromString(payload)) for payload in readable))
    assert points(reader) == decode_one_by_one(alone)
    assert 2 * len(spelled) - len(readable) == 6
    assert reader.damage


def test_torn_file_completed_later_reads_whole(tmp_path: Path) -> None:
    """The file is cut at every seventh byte and completed later, so that one poll gets several kinds of records."""
    random_file(tmp_path, 3, "ours")
    (path,) = tmp_path.iterdir()
    data = path.read_bytes()
    data = data[: records(data)[8][1]]
    path.write_bytes(data)
    expected = decode_one_by_one(tmp_path)
    for cut in range(0, len(data), 7):
        path.unlink()
        path.write_bytes(data[:cut])
        reader = EventReader(tmp_path)
        reader.poll()
        with open(path, "ab") as file:
            file.write(data[cut:])
        reader.poll()
        assert points(reader) == expected
        assert not reader.damage


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.exhaustive) for seed in (1, 2))])
def test_bit_flips_lose_points_but_never_change_them(tmp_path: Path, seed: int) -> None:
    random_file(tmp_path, seed, "tensorboard")
    (path,) = tmp_path.iterdir()
    data = path.read_bytes()
    logged_ever = set()
    for event in map(Event.FromString, _payloads(path)):
        numbers = [(value.tag, event_decoder._number(value)) for value in event.summary.value]
        logged_ever |= {(tag, event.step, repr(float(np.float32(x)))) for tag, x in numbers if x is not None}
    rng = np.random.default_rng(seed)
    for _ in range(100):
        place = int(rng.integers(len(data)))
        path.write_bytes(data[:place] + bytes([data[place] ^ (1 << int(rng.integers(8)))]) + data[place + 1 :])
        reader = EventReader(tmp_path)
        reader.poll()
        assert list(reader.damage) == [path.name]
        assert {(tag, *point) for tag, series in points(reader).items() for point in series} <= logged_ever


@pytest.mark.parametrize("how", ["shrunk", "replaced"])
def test_replaced_file_is_read_from_its_start(tmp_path: Path, how: str) -> None:
    path = write(tmp_path, [(step, {"old": 1.0, "both": 2.0}) for step in range(50)])
    reader = EventReader(tmp_path)
    reader.poll()
    other = tmp_path / "other"
    other.mkdir()
    long = [(step, {"new": 1.0, "both": 3.0}) for step in range(1 if how == "shrunk" else 500)]
    new = write(other, long)
    if how == "shrunk":
        path.write_bytes(new.read_bytes())
    else:
        new.replace(path)
    assert reader.poll()
    assert points(reader) == read(tmp_path)
    assert set(points(reader)) == {"new", "both"}


def test_longer_copy_is_read_from_the_old_position(tmp_path: Path) -> None:
    """A copy, for example by rsync, has another inode but starts with the same bytes."""
    path = write(tmp_path, [(step, {"a": 1.0}) for step in range(50)])
    reader = EventReader(tmp_path)
    reader.poll()
    copy = tmp_path / "copy"
    more = frame_record(Event(step=50, summary=Event.FromString(_payloads(path)[-1]).summary))
    copy.write_bytes(path.read_bytes() + more)
    copy.replace(path)
    held = reader.series["a"]
    assert reader.poll()
    assert reader.series["a"] is held
    assert held.steps.tolist() == list(range(51))


def _payloads(path: Path) -> list[bytes]:
    data = path.read_bytes()
    return [data[start + 12 : end - 4] for start, end in records(data)]


def test_returned_series_never_change(tmp_path: Path) -> None:
    """Views of a series are read-only and do not change when the series grows or is truncated."""
    rng = np.random.default_rng(0)
    writer, reader, step = EventWriter(tmp_path), EventReader(tmp_path), 0
    held = []
    for number in range(300):
        step = max(0, step - int(rng.integers(0, 30))) if rng.random() < 0.1 else step + 1
        writer.scalars(step, {"a": number} | ({"b": number} if rng.random() < 0.5 else {}))
        if rng.random() < 0.5:
            reader.poll()
            views = reader.series["a"].numpy()
            held.append((views, [view.copy() for view in views]))
    writer.close()
    for views, copies in held:
        for view, copy in zip(views, copies, strict=True):
            np.testing.assert_array_equal(view, copy)
            with pytest.raises(ValueError, match="read-only"):
                view[:1] = 0
    reader.poll()
    assert points(reader) == decode_one_by_one(tmp_path)


def test_tags_logged_together_share_steps(tmp_path: Path) -> None:
    """20 tags that are logged together need 20 columns of values, but only one column of steps."""
    writer = EventWriter(tmp_path)
    for step in range(1000):
        writer.scalars(step, {f"tag/{k}": 1.0 * k for k in range(20)} | ({"eval/score": 1.0} if step % 7 == 0 else {}))
    writer.close()
    reader = EventReader(tmp_path)
    reader.poll()
    assert len({id(reader.series[f"tag/{k}"].table) for k in range(20)}) == 1
    assert reader.nbytes < 2.5 * 1000 * (20 * 4 + 16)


def test_poll_respects_its_time_limit_and_continues_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for first in (0, 2000):
        write(tmp_path, [(step, {"a": 1.0, "b": 2.0}) for step in range(first, first + 2000)], first)
    monkeypatch.setattr(event_reader, "_BLOCK", 1 << 14)
    reader, before, polls = EventReader(tmp_path), -1, 0
    while not polls or reader.pending:
        reader.poll(0.0)
        polls += 1
        now = len(reader.series["a"])
        assert before < now <= before + 600 or not reader.pending  # every poll reads at least one block
        before = now
    assert polls > 8
    assert points(reader) == read(tmp_path)
    assert not reader.poll(0.0)
    assert not reader.pending


def test_record_longer_than_a_block_is_read(tmp_path: Path) -> None:
    writer = EventWriter(tmp_path)
    writer.text(1, "long", "x" * 10**6)
    writer.scalars(2, {"a": 1.0})
    writer.close()
    assert read(tmp_path) == {"a": [(2, "1.0")]}


def test_folder_removed_while_reading_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    path = write(folder, make_entries())
    reader = EventReader(folder)
    reader.poll()
    monkeypatch.setattr(os, "listdir", lambda _: [path.name])
    path.unlink()
    folder.rmdir()
    assert not reader.poll()
    assert points(reader)


def test_readable_again_file_is_no_longer_damaged(tmp_path: Path) -> None:
    path = tmp_path / f"{PREFIX}.1"
    path.symlink_to(tmp_path / "later")
    reader = EventReader(tmp_path)
    reader.poll()
    assert reader.damage
    write(tmp_path, make_entries()).rename(tmp_path / "later")
    assert reader.poll()
    assert not reader.damage


def test_folders_and_pipes_are_not_event_files(tmp_path: Path) -> None:
    (tmp_path / f"{PREFIX}.folder").mkdir()
    os.mkfifo(tmp_path / f"{PREFIX}.pipe")  # opening a pipe would block forever
    reader = EventReader(tmp_path)
    assert not reader.poll()
    assert not reader.damage


def test_titles_tell_greedy_from_sampled() -> None:
    titles = {tag: title(tag) for tag in METRICS}
    assert titles["eval/score"] == "eval/score (greedy)"
    assert titles["eval/return"] == "eval/return (greedy)"
    assert titles["episode/return"] == "episode/return (sampled)"
    assert titles["reward/score"] == "reward/score (sampled)"
    assert (titles["policy/kl"], title("foreign/tag")) == ("policy/kl", "foreign/tag")
    assert title("eval/info/goal") == "eval/info/goal (greedy)"
    for tag, metric in METRICS.items():
        assert metric.decoding in "greedy sampled"
        if metric.decoding:
            assert metric.decoding in metric.meaning, tag
