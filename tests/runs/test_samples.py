"""Stored samples of a run: their files and when the reporter writes them."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ppo_unified.errors import UsageError
from ppo_unified.runs import samples
from ppo_unified.runs.folder import Run
from ppo_unified.runs.samples import StoredIteration
from tests.sequences import EVIL, sequences

__all__ = ["sequences"]  # a fixture, requested by name


def make_samples(mask: np.ndarray, continues: np.ndarray, **columns: np.ndarray) -> StoredIteration:
    """Return samples with only a mask, episode ends and `columns`."""
    everything = {"mask": mask, "continues": continues, **columns}
    return StoredIteration(
        3, 90, int(mask.sum()), 0.9, 0.8, 0.2, 0.3, "gae", "lambda", {"a": 1.5, "b": None}, everything
    )


def test_sample_file_round_trips(tmp_path: Path) -> None:
    mask = np.array([[True, True, False], [False, True, True]])
    texts = np.array([["", "a", "\x1b[31m"], ["\u6f22\u5b57", "\U0001f40d\n", " b"]])
    numbers = np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3)
    before = make_samples(mask, mask, text=texts, value=numbers, token=np.arange(6).reshape(2, 3))
    a_run = Run(tmp_path)
    samples.write(a_run, before)
    after = samples.read(a_run, 3)
    assert {name: getattr(after, name) for name in samples.SINGLE} == {n: getattr(before, n) for n in samples.SINGLE}
    assert after.columns.keys() == before.columns.keys()
    for name, x in before.columns.items():
        assert np.array_equal(after.columns[name], x)
        assert after.columns[name].dtype == x.dtype
    assert samples.iterations(a_run) == [3]
    assert [path.name for path in (tmp_path / "samples").iterdir()] == ["00000003.npz"]
    values = [step["value"] for sample in after.samples() for step in after.sample_steps(sample)]
    assert values == numbers[mask].tolist()


def damage_arrays(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        arrays = dict(np.load(path))
        change(arrays)
        np.savez_compressed(path, **arrays)

    return damage


def use_object_array(arrays: dict[str, Any]) -> None:
    arrays["text"] = np.full((1, 2), None)


def npy_bytes() -> bytes:
    file = io.BytesIO()
    np.save(file, np.zeros(3))
    return file.getvalue()


def set_encrypted_flag(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1  # the flag of the first entry in the archive's directory
    path.write_bytes(data)


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "torn": lambda path: path.write_bytes(path.read_bytes()[:200]),
    "empty": lambda path: path.write_bytes(b""),
    "encrypted": set_encrypted_flag,
    "an array": lambda path: path.write_bytes(npy_bytes()),
    "text": lambda path: path.write_bytes(b"not an archive of arrays"),
    "objects": damage_arrays(use_object_array),
    "no mask": damage_arrays(lambda arrays: arrays.pop("mask")),
    "no clip": damage_arrays(lambda arrays: arrays.pop("clip")),
    "no step": damage_arrays(lambda arrays: arrays.update(mask=np.zeros((1, 2), bool))),
    "shapes": damage_arrays(lambda arrays: arrays.update(value=np.zeros(3))),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_sample_file_is_reported_and_runs_no_code(tmp_path: Path, damage: str) -> None:
    a_run = Run(tmp_path)
    samples.write(a_run, make_samples(np.ones((1, 2), bool), np.ones((1, 2), bool), value=np.zeros((1, 2))))
    path = samples.sample_path(a_run, 3)
    DAMAGES[damage](path)
    with pytest.raises(UsageError, match=r"00000003\.npz: invalid sample file") as caught:
        samples.read(a_run, 3)
    assert "\n" not in str(caught.value)


def test_damaged_byte_never_changes_sample_values(tmp_path: Path) -> None:
    a_run, ones = Run(tmp_path), np.ones((1, 2), bool)
    before = make_samples(ones, ones, value=np.array([[1.5, 2.5]]))
    samples.write(a_run, before)
    path = samples.sample_path(a_run, 3)
    data, refused = path.read_bytes(), 0
    for position in range(0, len(data), 11):
        path.write_bytes(data[:position] + bytes([data[position] ^ 8]) + data[position + 1 :])
        try:
            assert np.array_equal(samples.read(a_run, 3).columns["value"], before.columns["value"])
        except UsageError:
            refused += 1
    assert refused > len(data) // 50


def test_samples_are_the_episodes_of_each_row() -> None:
    generator = np.random.default_rng(0)
    mask, continues = generator.random((9, 20)) < 0.7, generator.random((9, 20)) < 0.8
    mask[4] = False
    number = np.arange(180).reshape(9, 20)
    there = make_samples(mask, continues, number=number)
    parts = [[step["number"] for step in there.sample_steps(sample)] for sample in there.samples()]
    assert [n for part in parts for n in part] == number[mask].tolist()
    for part in parts:
        assert len({n // 20 for n in part}) == 1
        assert all(continues.flat[n] for n in part[:-1])
    for before, after in pairwise(parts):
        assert before[-1] // 20 < after[0] // 20 or not continues.flat[before[-1]]


def test_sample_file_holds_whole_rows_up_to_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    mask = np.array([[1, 1, 0], [1, 1, 1], [0, 0, 0], [1, 0, 0]], bool)
    for limit, rows in {1: 1, 2: 1, 4: 1, 5: 3, 6: 4, 99: 4}.items():
        monkeypatch.setattr(samples, "LARGEST", limit)
        assert samples.rows_to_keep(mask) == rows


def test_last_responses_per_step_are_kept(tmp_path: Path) -> None:
    a_run = Run(tmp_path)
    assert samples.read_responses(a_run) == {}
    samples.append_responses(a_run, 200, 2, [{"prompt": EVIL, "score": float("inf")}])
    samples.append_responses(a_run, 100, 1, [{"prompt": "old"}])
    samples.append_responses(a_run, 100, 1, [{"prompt": "new\u2028"}])
    path = tmp_path / "samples" / samples.RESPONSES
    with open(path, "a", encoding="utf-8") as file:
        file.write('{"step": 300, "iter')  # an incomplete line after a crash
    samples.append_responses(a_run, 400, 4, [])
    found = samples.read_responses(a_run)
    assert found == {100: [{"prompt": "new\u2028"}], 200: [{"prompt": EVIL, "score": None}], 400: []}
    assert list(found) == [100, 200, 400]
    lines = path.read_text(encoding="ascii").splitlines()
    assert len(lines) == 5
    assert json.loads(lines[0])["iteration"] == 2


def test_documented_quantities_match_declaration() -> None:
    page = (Path(__file__).parents[2] / "docs" / "runs.md").read_text(encoding="utf-8")
    for name, quantity in samples.QUANTITIES.items():
        header = "" if name == "continues" else quantity.header  # `continues` is not a column of the table
        assert f"| `{name}` | {header} | {quantity.meaning} |" in page
    for name in samples.SINGLE:
        assert f"`{name}`" in page
