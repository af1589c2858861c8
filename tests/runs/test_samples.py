"""Stored samples of a run: their files and when the reporter writes them."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ppo_unified.errors import UsageError
from ppo_unified.runs import samples
from ppo_unified.runs.folder import Run
from ppo_unified.runs.samples import Alternatives, StoredIteration
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
        assert after.columns[name].dtype == (object if name == "text" else x.dtype)
    assert samples.iterations(a_run) == [3]
    assert [path.name for path in (tmp_path / "samples").iterdir()] == ["00000003.npz"]
    values = [step["value"] for sample in after.samples() for step in after.sample_steps(sample)]
    assert values == numbers[mask].tolist()


def make_complete() -> StoredIteration:
    """Return an iteration of [2, 3] steps with every kind of content."""
    mask = np.array([[True, True, False], [False, True, True]])
    numbers = np.linspace(-1, 1, 12, dtype=np.float32).reshape(2, 2, 3)
    columns = {"text": np.array([["a", "b", "\u6f22"], ["a", EVIL, ""]], dtype=object), "value": numbers[0]}
    return replace(
        make_samples(mask, mask, **columns),
        options={"kind": "toy", "ppo": {"clip": 0.1}, EVIL: {EVIL: [EVIL]}},
        state={"clip_scale": 0.5, "critic_only": False, "kl_coef": None, "row_len": 3},
        epochs=dict.fromkeys(("logprob", "value", "entropy"), numbers)
        | {"minibatch": np.array([[[0, 0, -1], [-1, 1, 1]], [[1, 1, -1], [-1, -1, -1]]])},
        alternatives={"old": Alternatives(np.arange(12).reshape(2, 3, 2), numbers.reshape(2, 3, 2))},
        observations={"obs": np.zeros((2, 3, 4, 4), np.uint8), "obs.mask": mask},
        actions=numbers[0],
        record={"episodes": [{"row": 0, "seed": 5, "name": EVIL}]},
        vocabulary={0: EVIL, 11: "\U0001f40d"},
    )


def assert_equal_content(one: StoredIteration, other: StoredIteration) -> None:
    for name in ("options", "state", "record", "vocabulary", "metrics"):
        assert getattr(one, name) == getattr(other, name)
    for name in ("columns", "epochs", "alternatives", "observations"):
        ours, theirs = getattr(one, name), getattr(other, name)
        assert ours.keys() == theirs.keys()
        for key in ours:
            pairs = zip(ours[key], theirs[key], strict=True)
            assert all(np.array_equal(x, y) for x, y in pairs)
    assert np.array_equal(np.array(one.actions), np.array(other.actions))


def test_complete_sample_file_round_trips(tmp_path: Path) -> None:
    before = make_complete()
    samples.write(Run(tmp_path), before)
    assert_equal_content(samples.read(Run(tmp_path), 3), before)


@pytest.mark.parametrize("limit", ["MAX_BYTES", "MAX_TEXT"])
def test_too_large_samples_keep_the_first_rows(limit: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that exceeds the limits of `read` would be useless."""
    rows, run = 64, Run(tmp_path)
    words = np.array([[f"word {row} {column}" for column in range(50)] for row in range(rows)], dtype=object)
    before = make_samples(np.ones((rows, 50), bool), np.ones((rows, 50), bool), text=words, x=np.ones((rows, 50)))
    samples.write(run, before)
    assert len(samples.read(run, 3).columns["mask"]) == rows
    monkeypatch.setattr(samples, limit, {"MAX_BYTES": 50_000 + 30 * samples.HEADER, "MAX_TEXT": 6000}[limit])
    samples.write(run, before)
    kept = samples.read(run, 3).columns
    assert 1 < len(kept["mask"]) < rows
    assert np.array_equal(kept["text"], words[: len(kept["mask"])])
    monkeypatch.setattr(samples, limit, 300)
    with pytest.raises(OSError, match=r"one row of samples exceeds the limit [\d.]+ times"):
        samples.write(run, before)


def test_observations_of_a_too_large_row_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = make_complete()
    before = replace(before, observations={"obs": np.zeros((2, 3, 20_000), np.uint8)})
    monkeypatch.setattr(samples, "MAX_BYTES", 55_000)
    samples.write(Run(tmp_path), before)
    assert_equal_content(samples.read(Run(tmp_path), 3), replace(before.head(1), observations={}))


def test_record_that_is_too_long_is_not_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "MAX_TEXT", 2000)
    before = replace(make_complete(), record=["x"] * 1000)
    samples.write(Run(tmp_path), before)
    assert_equal_content(samples.read(Run(tmp_path), 3), replace(before, record=None))


CHANGES: dict[str, tuple[str, Any]] = {  # what is wrong -> name of an array, its new value
    "unknown group": ("other.x", np.zeros((2, 3))),
    "options of another type": ("json.options", "[]"),
    "options nested 100,000 deep": ("json.options", "[" * 100_000),
    "section that is a list": ("json.options", '{"ppo": [1]}'),
    "state of texts": ("json.state", '{"penalty_coef": "x"}'),
    "state of tables": ("json.state", '{"row_len": {}}'),
    "state of another type": ("json.state", "1"),
    "number with 400 digits in a list": ("json.options", '{"gym": {"x": [' + "9" * 400 + "]}}"),
    "state with 400 digits": ("json.state", '{"kl_coef": -' + "9" * 400 + "}"),
    "metric with 400 digits": ("metrics", '{"policy/kl": ' + "9" * 400 + "}"),
    "vocabulary of another type": ("json.vocabulary", '["a"]'),
    "vocabulary of words": ("json.vocabulary", '{"word": "a"}'),
    "vocabulary with a number of 5,000 digits": ("json.vocabulary", '{"' + "9" * 5000 + '": "a"}'),
    "record that is not JSON": ("json.record", "\x1b[31m"),
    "record that is a number": ("json.record", np.zeros(3)),
    "record that is too long": ("json.record", '"' + "x" * samples.MAX_TEXT + '"'),
    "strings of another type": ("strings.text", "{}"),
    "strings without indices": ("strings.other", "[]"),
    "index that is too high": ("text", np.full((2, 3), 99)),
    "index that is negative": ("text", np.full((2, 3), -1)),
    "indices that are floats": ("text", np.zeros((2, 3))),
    "epoch of another shape": ("epochs.value", np.zeros((2, 3, 2), np.float32)),
    "epochs of another number": ("epochs.value", np.zeros((1, 2, 3), np.float32)),
    "epochs of integers": ("epochs.entropy", np.zeros((2, 2, 3), int)),
    "minibatch that is too high": ("epochs.minibatch", np.full((2, 2, 3), 6)),
    "minibatch that is too low": ("epochs.minibatch", np.full((2, 2, 3), -2)),
    "minibatch of floats": ("epochs.minibatch", np.zeros((2, 2, 3))),
    "epochs without a minibatch": ("epochs.minibatch", None),
    "alternatives of another policy": ("alternatives.x.actions", np.zeros((2, 3, 2), int)),
    "alternatives without log-probs": ("alternatives.old.logprobs", None),
    "alternatives of another shape": ("alternatives.old.actions", np.zeros((2, 3, 5), int)),
    "alternatives of floats": ("alternatives.old.actions", np.zeros((2, 3, 2))),
    "alternatives of texts": ("alternatives.old.actions", np.full((2, 3, 2), "x")),
    "observations of another shape": ("observations.obs", np.zeros((3, 2))),
    "observations of dates": ("observations.obs", np.zeros((2, 3), "M8[s]")),
    "actions of texts": ("raw.actions", np.full((2, 3), "x")),
}


@pytest.mark.parametrize("wrong", CHANGES)
def test_wrong_array_is_a_one_line_error(wrong: str, tmp_path: Path) -> None:
    name, value = CHANGES[wrong]
    run = Run(tmp_path)
    samples.write(run, make_complete())
    path = samples.sample_path(run, 3)
    arrays = dict(np.load(path))
    arrays |= {name: np.asarray(value)}
    if value is None:
        del arrays[name]
    np.savez_compressed(path, **arrays)
    with pytest.raises(UsageError, match=r"00000003\.npz: invalid sample file") as caught:
        samples.read(run, 3)
    assert str(caught.value).isprintable()


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


def test_old_samples_are_thinned_out_first(tmp_path: Path) -> None:
    a_run = Run(tmp_path)
    (tmp_path / "samples").mkdir()
    for number in range(0, 401, 20):
        samples.sample_path(a_run, number).write_bytes(bytes(100))
        samples.thin_out(a_run, 800)
    (a_run.samples / "20.npz").write_bytes(b"")  # a copy by the user, with a name that no sample has
    kept = samples.iterations(a_run)
    assert len(kept) == 8
    assert (kept[0], kept[-1]) == (0, 400)
    distances = np.diff(kept)[1:]
    assert (np.diff(distances) <= 0).all()  # the distance grows with the age
    assert distances[-1] == 20
    samples.thin_out(a_run, 1)
    assert samples.iterations(a_run) == [0, 400]


def test_row_size_limits_stored_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "MAX_BYTES", 1000)
    mask = np.ones((8, 2), bool)
    for row_bytes, rows in {100: 8, 113: 7, 450: 2, 901: 1, 10**9: 1}.items():
        assert samples.rows_to_keep(mask, row_bytes) == rows


def test_sample_file_holds_whole_rows_up_to_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    mask = np.array([[1, 1, 0], [1, 1, 1], [0, 0, 0], [1, 0, 0]], bool)
    for limit, rows in {1: 1, 2: 1, 4: 1, 5: 3, 6: 4, 99: 4}.items():
        monkeypatch.setattr(samples, "MAX_STEPS", limit)
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


@pytest.mark.parametrize(
    ("lowest", "highest", "kind"), [(-1, 300, "int16"), (0, 1 << 15, "int32"), (-(1 << 40), 0, "int64")]
)
def test_likeliest_actions_have_the_smallest_type(tmp_path: Path, lowest: int, highest: int, kind: str) -> None:
    before = make_complete()
    actions, logprobs = before.alternatives["old"]
    actions = actions.copy()
    actions.flat[:2] = lowest, highest
    samples.write(Run(tmp_path), replace(before, alternatives={"old": samples.Alternatives(actions, logprobs)}))
    found = samples.read(Run(tmp_path), 3).alternatives["old"].actions
    assert found.dtype == kind
    assert np.array_equal(found, actions)
