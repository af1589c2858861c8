"""What a run keeps to look into: looking back on an iteration, the files, and when the runner writes them."""

from __future__ import annotations

import io
import json
import signal
from collections.abc import Callable
from dataclasses import replace
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ppo_unified import run
from ppo_unified.config.schema import PPO, Optim
from ppo_unified.engine.batch import normalized
from ppo_unified.engine.ppo import Iteration, Progress, gae, make_batch, make_learner
from ppo_unified.engine.rollout import Rollout, map_obs
from ppo_unified.errors import UsageError
from ppo_unified.runs import samples
from ppo_unified.runs.events import EventReader
from ppo_unified.runs.folder import Run
from ppo_unified.runs.launch import StopRequest, prepare
from ppo_unified.runs.samples import Stored
from ppo_unified.testing import BanditPolicy
from ppo_unified.training.step_table import clip_range_of, look_back, to_arrays
from ppo_unified.training.trainer import train_in
from tests.sequences import EVIL, SequenceAdapter, configured, sequences
from tests.toys import consistent, random_rollout, seeded

__all__ = ["sequences"]  # a fixture, used by name


def iteration_of(rollout: Rollout, ppo: PPO) -> Iteration:
    return Iteration({}, rollout, make_batch(rollout, ppo))


def read(path: Path) -> EventReader:
    reader = EventReader(path)
    reader.poll()
    return reader


def stored(mask: np.ndarray, continues: np.ndarray, **columns: np.ndarray) -> Stored:
    """Samples with nothing but a mask, episode ends and `columns`."""
    everything = {"mask": mask, "continues": continues, **columns}
    return Stored(3, 90, int(mask.sum()), 0.9, 0.8, 0.2, 0.3, "gae", "lambda", {"a": 1.5, "b": None}, everything)


# looking back


@pytest.mark.parametrize("row_len", [1, 4, 12])
@pytest.mark.parametrize("normalize", ["batch", "minibatch", "none"])
@pytest.mark.parametrize("columns", [5, 24, 10_000])
def test_looking_back_gives_every_step_its_own_numbers(row_len: int, normalize: str, columns: int) -> None:
    """However rows are cut, sorted and left out on the way, each number lands where the rollout has its step."""
    rollout = consistent(random_rollout(n=7, row_len=row_len, ragged=True, holes=0.4))
    rollout = replace(rollout, mask=rollout.mask & (torch.arange(7) != 3)[:, None])
    policy, ppo = seeded(BanditPolicy), PPO.model_validate({"normalize_advantages": normalize})
    seen = look_back(
        policy, iteration_of(rollout, ppo), ppo.model_copy(update={"microbatch_columns": columns}), 0.2, 1.5
    )
    mask, own = rollout.mask, seen.columns
    with torch.no_grad():
        new = policy.evaluate(map_obs(rollout.rows, rollout.obs), rollout.rows(rollout.actions)).logprobs.view(
            mask.shape
        )
    ratio = (new - rollout.logprobs).exp()
    advantages = gae(rollout, ppo.gamma, ppo.lam)
    expected = {
        "logprob_old": rollout.logprobs,
        "logprob_new": new,
        "ratio": ratio,
        "clipped": (ratio < 0.8) | (ratio > 2.5),
        "reward": rollout.rewards,
        "value": rollout.values,
        "next_value": rollout.next_values,
        "delta": rollout.rewards + ppo.gamma * rollout.next_values - rollout.values,
        "advantage": advantages,
        "advantage_used": normalized(advantages, mask) if normalize == "batch" else advantages,
        "return": advantages + rollout.values,
        "continues": rollout.continues,
    }
    assert ("advantage_used" in own) == (normalize != "minibatch")
    for name in set(own) - {"mask"}:
        torch.testing.assert_close(own[name][mask], expected[name][mask], msg=name)
        assert not own[name][~mask & (name != "ratio")].any(), name
    assert torch.equal(own["mask"], mask)
    assert seen.metrics["policy/clip_fraction_after"] == pytest.approx(float(own["clipped"][mask].double().mean()))
    kl = (ratio - 1 - ratio.log())[mask].mean()
    assert seen.metrics["policy/kl_after"] == pytest.approx(float(kl))
    assert sorted(seen.histograms["histogram/ratios"]) == pytest.approx(sorted(ratio[mask].tolist()))


def test_what_is_not_finite_where_masked_stays_out() -> None:
    rollout = random_rollout(row_len=12)
    fields = {name: getattr(rollout, name).clone() for name in ("logprobs", "values", "rewards", "next_values")}
    for x in fields.values():
        x[~rollout.mask] = float("nan")
    ppo = PPO(normalize_advantages="batch")
    seen = look_back(seeded(BanditPolicy), iteration_of(replace(rollout, **fields), ppo), ppo, 0.2, 0.2)
    assert all(x.isfinite().all() for x in seen.columns.values())
    assert all(np.isfinite(x) for x in seen.metrics.values())


def test_the_clip_range_is_the_one_of_the_iteration_that_has_just_been_counted() -> None:
    progress = Progress(total_steps=100, steps=60, iteration=3)
    annealed = PPO(clip=0.2, clip_high=0.3, anneal_clip=True)
    for ppo, expected in ((annealed, (0.2 * 0.6, 0.3 * 0.6)), (PPO(), (0.2, 0.2))):
        learner = replace(make_learner(seeded(BanditPolicy), ppo, Optim()), progress=progress)
        assert clip_range_of(learner, 20) == pytest.approx(expected)


# files


def test_what_is_written_is_read(tmp_path: Path) -> None:
    mask = np.array([[True, True, False], [False, True, True]])
    texts = np.array([["", "a", "\x1b[31m"], ["\u6f22\u5b57", "\U0001f40d\n", " b"]])
    numbers = np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3)
    before = stored(mask, mask, text=texts, value=numbers, token=np.arange(6).reshape(2, 3))
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
    values = [step["value"] for sample in after.samples() for step in after.steps_of(sample)]
    assert values == numbers[mask].tolist()


def broken(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        arrays = dict(np.load(path))
        change(arrays)
        np.savez_compressed(path, **arrays)

    return damage


def object_array(arrays: dict[str, Any]) -> None:
    arrays["text"] = np.full((1, 2), None)


def one_array() -> bytes:
    file = io.BytesIO()
    np.save(file, np.zeros(3))
    return file.getvalue()


def encrypted(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1  # the flag of the first entry in the archive's directory
    path.write_bytes(data)


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "torn": lambda path: path.write_bytes(path.read_bytes()[:200]),
    "empty": lambda path: path.write_bytes(b""),
    "encrypted": encrypted,
    "an array": lambda path: path.write_bytes(one_array()),
    "text": lambda path: path.write_bytes(b"not an archive of arrays"),
    "objects": broken(object_array),
    "no mask": broken(lambda arrays: arrays.pop("mask")),
    "no clip": broken(lambda arrays: arrays.pop("clip")),
    "no step": broken(lambda arrays: arrays.update(mask=np.zeros((1, 2), bool))),
    "shapes": broken(lambda arrays: arrays.update(value=np.zeros(3))),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_named_and_executes_nothing(tmp_path: Path, damage: str) -> None:
    a_run = Run(tmp_path)
    samples.write(a_run, stored(np.ones((1, 2), bool), np.ones((1, 2), bool), value=np.zeros((1, 2))))
    path = samples.path_of(a_run, 3)
    DAMAGES[damage](path)
    with pytest.raises(UsageError, match=r"00000003\.npz: cannot be read as samples") as caught:
        samples.read(a_run, 3)
    assert "\n" not in str(caught.value)


def test_whatever_byte_is_damaged_a_file_reads_as_it_was_or_not_at_all(tmp_path: Path) -> None:
    a_run, ones = Run(tmp_path), np.ones((1, 2), bool)
    before = stored(ones, ones, value=np.array([[1.5, 2.5]]))
    samples.write(a_run, before)
    path = samples.path_of(a_run, 3)
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
    there = stored(mask, continues, number=number)
    parts = [[step["number"] for step in there.steps_of(sample)] for sample in there.samples()]
    assert [n for part in parts for n in part] == number[mask].tolist()
    for part in parts:
        assert len({n // 20 for n in part}) == 1
        assert all(continues.flat[n] for n in part[:-1])
    for before, after in pairwise(parts):
        assert before[-1] // 20 < after[0] // 20 or not continues.flat[before[-1]]


def test_a_file_holds_whole_rows_from_the_first_up_to_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    mask = np.array([[1, 1, 0], [1, 1, 1], [0, 0, 0], [1, 0, 0]], bool)
    for limit, rows in {1: 1, 2: 1, 4: 1, 5: 3, 6: 4, 99: 4}.items():
        monkeypatch.setattr(samples, "LARGEST", limit)
        assert samples.kept_rows(mask) == rows
    monkeypatch.setattr(samples, "LARGEST", 5)
    columns = {"mask": torch.from_numpy(mask), "value": torch.arange(12.0, dtype=torch.float64).view(4, 3)}
    arrays = to_arrays(columns, {"text": [["a", "b", "c"]] * 4}, "hook")
    assert {name: x.shape for name, x in arrays.items()} == dict.fromkeys(("mask", "value", "text"), (3, 3))


def test_responses_are_one_line_an_evaluation_and_the_last_of_a_step_counts(tmp_path: Path) -> None:
    a_run = Run(tmp_path)
    assert samples.read_responses(a_run) == {}
    samples.append_responses(a_run, 200, 2, [{"prompt": EVIL, "score": float("inf")}])
    samples.append_responses(a_run, 100, 1, [{"prompt": "old"}])
    samples.append_responses(a_run, 100, 1, [{"prompt": "new\u2028"}])
    path = tmp_path / "samples" / samples.RESPONSES
    with open(path, "a", encoding="utf-8") as file:
        file.write('{"step": 300, "iter')  # as a crash leaves it
    samples.append_responses(a_run, 400, 4, [])
    found = samples.read_responses(a_run)
    assert found == {100: [{"prompt": "new\u2028"}], 200: [{"prompt": EVIL, "score": None}], 400: []}
    assert list(found) == [100, 200, 400]
    lines = path.read_text(encoding="ascii").splitlines()
    assert len(lines) == 5
    assert json.loads(lines[0])["iteration"] == 2


# the runner


@pytest.mark.usefixtures("sequences")
def test_the_first_every_nth_and_the_last_iteration_are_stored(tmp_path: Path) -> None:
    result = run(configured(), tmp_path)
    a_run, series = Run(result.path), read(result.path).series
    assert samples.iterations(a_run) == [1, 3, 6, 8]
    steps = [samples.read(a_run, number).step for number in samples.iterations(a_run)]
    for tag in ("policy/clip_fraction_after", "policy/kl_after"):
        assert list(series[tag].steps) == steps
    for number in samples.iterations(a_run):
        kept = samples.read(a_run, number)
        at = list(series["value/mean"].steps).index(kept.step)
        assert kept.steps == kept.columns["mask"].sum()
        assert kept.metrics["value/mean"] == pytest.approx(series["value/mean"].values[at])
        assert kept.columns["value"][kept.columns["mask"]].mean() == pytest.approx(kept.metrics["value/mean"], abs=1e-6)


@pytest.mark.usefixtures("sequences")
def test_the_last_iteration_is_stored_when_a_task_is_solved(tmp_path: Path) -> None:
    solved = configured(stop_when_solved=True, eval={"every_steps": 80, "episodes": 2, "threshold": 0.0})
    assert run(solved, tmp_path, "solved").reason == "solved"
    assert samples.iterations(Run(tmp_path / "solved")) == [1, 2]


@pytest.mark.usefixtures("sequences")
def test_a_stop_stores_no_sample_that_a_whole_run_has_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stop, calls = StopRequest(), count(1)

    def updating(self: SequenceAdapter, generator: torch.Generator) -> None:
        if next(calls) == 4 * 4 + 1:  # the first of the fifth iteration's 4 optimizer steps
            stop.handle(signal.SIGTERM, None)

    monkeypatch.setattr(SequenceAdapter, "extra_loss", updating)
    a_run = prepare(configured(), tmp_path, "stopped")
    assert train_in(a_run, configured(), stop).state == "stopped"
    assert a_run.read_status().iteration == 5
    assert samples.iterations(a_run) == [1, 3]


@pytest.mark.usefixtures("sequences")
def test_looking_back_leaves_training_alone(tmp_path: Path) -> None:
    curves = []
    for every in (0, 1, 3):
        path = run(configured(log={"samples_every": every}), tmp_path, f"every{every}").path
        assert len(samples.iterations(Run(path))) == {0: 0, 1: 8, 3: 4}[every]
        series = read(path).series
        assert ("policy/kl_after" in series) == bool(every)
        curves.append([list(series[tag].values) for tag in ("loss/policy", "value/mean", "policy/kl")])
    assert curves[0] == curves[1] == curves[2]


@pytest.mark.usefixtures("sequences")
def test_a_resumed_run_drops_the_samples_of_lost_iterations(tmp_path: Path) -> None:
    path = run(configured(), tmp_path).path
    a_run = Run(path)
    samples.write(a_run, replace(samples.read(a_run, 8), iteration=11))  # of an iteration that was never checkpointed
    seen: list[list[int]] = []
    further = configured(total_iterations=10)
    a_run.acquire()
    train_in(a_run, further, StopRequest(), lambda status, metrics: seen.append(samples.iterations(a_run)))
    assert seen == [[1, 3, 6, 8, 9], [1, 3, 6, 8, 9, 10]]


@pytest.mark.usefixtures("sequences")
def test_an_adapters_columns_are_stored_and_its_reports_logged(tmp_path: Path) -> None:
    config = configured(eval={"every_steps": 100, "episodes": 5})
    result = run(config, tmp_path)
    kept = samples.read(Run(result.path), 8)
    rewards = kept.columns["reward"]
    named = (kept.columns["text"] == "left") == (kept.columns["context"] == 0)  # the bandit pays for the named arm
    assert np.array_equal(rewards == 1, named & kept.columns["mask"])
    series, said = read(result.path).series, samples.read_responses(Run(result.path))
    assert list(said) == list(series["eval/score"].steps) == list(series["eval/sampled_score"].steps)
    assert len(said) > 2
    assert min(series["eval/score"].values) >= 0  # the score is the runner's own
    assert said[result_step(result.path)] == [{"prompt": EVIL, "response": "seed 2", "score": None}] * 2


def result_step(path: Path) -> int:
    return Run(path).read_status().step


@pytest.mark.usefixtures("sequences")
@pytest.mark.parametrize("name", ["reward", "gamma", "file", "no name", "flat", "objects"])
def test_a_column_that_cannot_be_stored_names_the_hook(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=rf"tests\.sequences:explain: .*'{name}'"):
        run(configured(toy={"bad_column": name}), tmp_path)
    assert Run(next(tmp_path.iterdir())).read_status().state == "failed"


@pytest.mark.usefixtures("sequences")
def test_a_run_may_be_evaluated_before_it_begins(tmp_path: Path) -> None:
    evaluation = {"every_steps": 0, "episodes": 30, "at_start": True}
    result = run(configured(eval=evaluation), tmp_path)
    series = read(result.path).series
    end = result_step(result.path)
    assert list(series["eval/score"].steps) == list(series["eval/sampled_score"].steps) == [0, end]
    assert list(samples.read_responses(Run(result.path))) == [0, end]
    a_run = Run(result.path)
    a_run.acquire()
    status = train_in(a_run, configured(total_iterations=9, eval=evaluation), StopRequest())
    steps = list(read(result.path).series["eval/score"].steps)
    assert steps == [0, end, status.step]


@pytest.mark.usefixtures("sequences")
def test_a_task_that_is_solved_at_the_start_trains_nothing(tmp_path: Path) -> None:
    solved = {"every_steps": 1, "episodes": 3, "at_start": True, "threshold": 0.0}
    result = run(configured(stop_when_solved=True, eval=solved), tmp_path)
    assert (result.solved_step, result.reason, result_step(result.path)) == (0, "solved", 0)
    assert result.best_score == result.score
    assert not samples.iterations(Run(result.path))


@pytest.mark.usefixtures("sequences")
def test_the_configuration_says_how_far_the_first_ratio_may_be_off(tmp_path: Path) -> None:
    assert run(configured(toy={"off": 0.05, "tolerance": 0.1}), tmp_path, "lenient").state == "finished"
    with pytest.raises(RuntimeError, match=r"ratio to the old policy is off by 0\.05"):
        run(configured(toy={"off": 0.05}), tmp_path, "strict")


def test_the_documented_quantities_are_the_declared_ones() -> None:
    page = (Path(__file__).parents[2] / "docs" / "runs.md").read_text(encoding="utf-8")
    for name, quantity in samples.QUANTITIES.items():
        header = "" if name == "continues" else quantity.header  # which ends a sample instead of being a column
        assert f"| `{name}` | {header} | {quantity.meaning} |" in page
    for name in samples.SINGLE:
        assert f"`{name}`" in page
