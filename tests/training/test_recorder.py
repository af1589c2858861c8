"""What a run records: the update as it sees every step, requested iterations, and the checkpoints before them."""

from __future__ import annotations

import itertools
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ppo_unified import run
from ppo_unified.config import registry
from ppo_unified.engine import ppo as engine
from ppo_unified.engine.rollout import Rollout
from ppo_unified.runs import samples
from ppo_unified.runs.folder import Run
from ppo_unified.runs.preparation import prepare
from ppo_unified.runs.samples import StoredIteration
from ppo_unified.runs.signals import StopRequest
from ppo_unified.training import checkpoint, recorder
from ppo_unified.training.session import train_in
from ppo_unified.training.trainer import Trainer
from tests.sequences import SequenceAdapter, SequenceConfig, SequencePolicy, make_config, sequences
from tests.training.runs import read
from tests.training.test_stopping import assert_same

__all__ = ["sequences"]  # a fixture, requested by name

pytestmark = pytest.mark.usefixtures("sequences")

OBJECTIVES: dict[str, dict[str, Any]] = {
    "clip": {"clip": 0.05, "clip_high": 0.1, "anneal_clip": True},
    "dual clip": {"clip": 0.05, "dual_clip": 1.1},
    "penalty": {"objective": "penalty", "penalty_coef": 3.0},
    "adaptive penalty": {"objective": "penalty", "penalty_target": 1e-3},
    "ratio": {"objective": "ratio"},
    "policy gradient": {"objective": "policy-gradient"},
}
VARIANTS: dict[str, dict[str, Any]] = {
    "batch": {"normalize_advantages": "batch", "microbatch_columns": 13},
    "minibatch": {"normalize_advantages": "minibatch", "value_clip": 0.01},
    "none": {"normalize_advantages": "none", "loss_mean": "sequence", "microbatch_columns": 1},
    "target_kl": {"target_kl": 1e-3, "loss_mean": "sequence", "epochs": 5},
    "critic_warmup": {"critic_warmup": 1, "entropy_coef": 0.01, "minibatches": 99},
}


def policy_losses(stored: StoredIteration, logprob: Any, advantage: Any) -> Any:
    """Return the policy loss of each step, from its definition."""
    options = stored.options["ppo"]
    log_ratio = logprob - stored.columns["logprob_old"]
    ratio = np.exp(log_ratio)
    match options["objective"]:
        case "policy-gradient":
            return -logprob * advantage
        case "penalty":
            return stored.state["penalty_coef"] * (ratio - 1 - log_ratio) - ratio * advantage
        case "ratio":
            return -ratio * advantage
    gain = np.minimum(ratio * advantage, np.clip(ratio, 1 - stored.clip, 1 + stored.clip_high) * advantage)
    limited = np.maximum(gain, options["dual_clip"] * advantage) if options["dual_clip"] else gain
    return -np.where(advantage < 0, limited, gain)


def last_epoch_means(stored: StoredIteration) -> dict[str, float]:
    """Return the means of the last epoch's stored arrays that the logged metrics contain."""
    columns, last = stored.columns, {name: x[-1] for name, x in stored.epochs.items()}
    used = columns["mask"] & (last["minibatch"] >= 0)
    advantage = last["advantage_used"] if "advantage_used" in last else columns["advantage_used"]
    log_ratio = np.where(used, last["logprob"] - columns["logprob_old"], 0)
    ratio = np.exp(log_ratio)
    error = np.square(last["value"] - columns["return"])
    if margin := stored.options["ppo"]["value_clip"]:
        clipped = columns["value"] + np.clip(last["value"] - columns["value"], -margin, margin)
        error = np.maximum(error, np.square(clipped - columns["return"]))
    means = {
        "policy/clip_fraction": (ratio < 1 - stored.clip) | (ratio > 1 + stored.clip_high),
        "policy/kl": ratio - 1 - log_ratio,
        "loss/policy": policy_losses(stored, last["logprob"], advantage),
        "loss/value": 0.5 * error,
        "loss/entropy": -last["entropy"],
    }
    found = {name: float(np.average(x[used], weights=columns["weight"][used])) for name, x in means.items()}
    return found | {"policy/ratio_max": float(ratio.max())}


# each objective and each variant is always tested, and their combinations only by `make exhaustive`
PAIRS = [
    pytest.param(objective, variant, marks=pytest.mark.exhaustive if i and j else ())
    for i, objective in enumerate(OBJECTIVES)
    for j, variant in enumerate(VARIANTS)
]


@pytest.mark.parametrize(("objective", "variant"), PAIRS)
def test_means_of_last_epoch_equal_logged_metrics(objective: str, variant: str, tmp_path: Path) -> None:
    ppo = {"epochs": 2, "minibatches": 2} | OBJECTIVES[objective] | VARIANTS[variant]
    config = make_config(ppo=ppo, total_iterations=3, log={"samples_every": 1})
    a_run = Run(run(config, tmp_path).path)
    series = read(a_run.path).series
    for number in (1, 2, 3):
        stored = samples.read(a_run, number)
        means = last_epoch_means(stored)
        logged = {name: stored.metrics[name] for name in means}
        assert logged == pytest.approx(means, rel=1e-5, abs=1e-5)
        assert logged == pytest.approx({name: series[name].values[number - 1] for name in means}, rel=1e-6)
        assert stored.options == config.model_dump(mode="json")
        assert stored.state["row_len"] == stored.columns["mask"].shape[1]
        assert stored.state["critic_only"] == (number <= config.ppo.critic_warmup)


def test_epochs_contain_every_step_in_its_minibatch(tmp_path: Path) -> None:
    config = make_config(ppo={"epochs": 3, "minibatches": 2}, total_iterations=1)
    stored = samples.read(Run(run(config, tmp_path).path), 1)
    mask, minibatch = stored.columns["mask"], stored.epochs["minibatch"]
    assert minibatch.shape == (3, *mask.shape)
    for epoch in minibatch:
        assert set(epoch[mask]) == {0, 1}
        assert set(epoch[~mask]) == {-1}
        assert all(len(set(row[valid])) <= 1 for row, valid in zip(epoch, mask, strict=True))  # rows stay together
    first = minibatch[0] == 0
    old = stored.columns["logprob_old"]
    assert stored.epochs["logprob"][0][first] == pytest.approx(old[first], abs=1e-6)
    assert stored.epochs["logprob"][0][minibatch[0] == 1] != pytest.approx(old[minibatch[0] == 1], abs=1e-6)


def test_unprocessed_steps_have_no_minibatch(tmp_path: Path) -> None:
    ppo = {"epochs": 5, "minibatches": 3, "target_kl": 1e-6}
    stored = samples.read(Run(run(make_config(ppo=ppo, total_iterations=1), tmp_path).path), 1)
    mask, minibatch = stored.columns["mask"], stored.epochs["minibatch"]
    assert len(minibatch) == stored.metrics["optim/epochs"] == 1
    assert set(minibatch[-1][mask]) == {-1, 0, 1}  # the second minibatch exceeds the limit, the third is not evaluated
    assert not stored.epochs["entropy"][-1][minibatch[-1] < 0].any()


def train_with(a_run: Run, config: SequenceConfig, request_in: tuple[int, ...] = ()) -> None:
    """Train or resume a run, and request samples during the rollouts of some iterations."""

    class Requesting(SequenceAdapter):
        def collect(self) -> Rollout:
            if next(numbers) in request_in:
                samples.request_next(a_run)
            return super().collect()

    start = a_run.read_status().iteration
    numbers = itertools.count(start + 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.sequences.SequenceAdapter", Requesting)
        train_in(a_run, config, StopRequest())


@pytest.mark.parametrize("every", [0, 100])
def test_requested_iteration_is_recorded(every: int, tmp_path: Path) -> None:
    config = make_config(log={"samples_every": every})
    a_run = prepare(config, tmp_path, "run")
    train_with(a_run, config, request_in=(2, 5))
    assert samples.iterations(a_run) == ([1, 3, 6, 8] if every else [3, 6])
    assert not samples.is_requested(a_run)
    assert list(read(a_run.path).series["policy/kl_after"].steps) == [
        samples.read(a_run, number).step for number in samples.iterations(a_run)
    ]


def test_request_before_start_is_recorded_first(tmp_path: Path) -> None:
    config = make_config(log={"samples_every": 0})
    a_run = prepare(config, tmp_path, "run")
    samples.request_next(a_run)
    train_with(a_run, config)
    assert samples.iterations(a_run) == [1]


def test_request_survives_a_crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The requested iteration fails before it is stored; the resumed run records it."""
    config = make_config(log={"samples_every": 0}, checkpoint={"every_s": 1e-6})
    a_run = prepare(config, tmp_path, "run")
    with monkeypatch.context() as patch:
        calls = itertools.count(1)

        def fail(*arguments: Any) -> Any:
            if next(calls) == 4:
                raise KeyboardInterrupt
            return engine_update(*arguments)

        engine_update = engine.update
        patch.setattr(engine, "update", fail)
        with pytest.raises(KeyboardInterrupt):
            train_with(a_run, config, request_in=(3,))
    assert samples.is_requested(a_run)
    assert samples.iterations(a_run) == []
    a_run.acquire()
    train_with(a_run, config)
    assert samples.iterations(a_run) == [4]


def test_requested_iteration_survives_a_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process dies after it has stored the iteration, before the next checkpoint. A resume records it again."""
    config = make_config(log={"samples_every": 0}, checkpoint={"every_s": 1e6})
    a_run = prepare(config, tmp_path, "run")
    with monkeypatch.context() as patch:
        finish, calls = Trainer._finish_iteration, itertools.count(1)

        def die_after_third(self: Trainer, iteration: Any) -> None:
            finish(self, iteration)
            if next(calls) == 3:
                raise KeyboardInterrupt

        patch.setattr(Trainer, "_finish_iteration", die_after_third)
        with pytest.raises(KeyboardInterrupt):
            train_with(a_run, config, request_in=(2,))
    assert samples.iterations(a_run) == [3]
    a_run.acquire()
    train_with(a_run, config)
    assert samples.iterations(a_run) == [3]
    assert not samples.is_requested(a_run)


def describe_starts(adapter: SequenceAdapter, rollout: Rollout) -> Any:
    if getattr(adapter, "has_lost_workers", False):
        raise BrokenPipeError
    return {"rows": len(rollout.mask)}


def test_stop_in_evaluation_keeps_the_recorded_iteration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C also ends the processes of environments, so nothing can be read from them when the iteration is stored."""
    spec = replace(registry.BUILT_IN["sequences"], record=f"{__name__}:describe_starts")
    monkeypatch.setitem(registry.BUILT_IN, "sequences", spec)
    config = make_config(log={"samples_every": 1}, eval={"every_steps": 1, "episodes": 2})
    a_run, stop = prepare(config, tmp_path, "run"), StopRequest()

    def score(self: SequenceAdapter, *arguments: Any) -> list[float]:
        self.has_lost_workers = True  # type: ignore[attr-defined]
        stop.handle(signal.SIGINT, None)
        raise BrokenPipeError

    monkeypatch.setattr(SequenceAdapter, "score", score)
    assert train_in(a_run, config, stop).state == "stopped"
    assert samples.read(a_run, 1).record == {"rows": 6}


def test_failed_write_keeps_the_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_config(log={"samples_every": 0})
    a_run, write, calls = prepare(config, tmp_path, "run"), samples.write, itertools.count(1)

    def fail_once(*arguments: Any) -> None:
        if next(calls) == 1:
            raise OSError(28, "No space left on device")
        write(*arguments)

    monkeypatch.setattr(samples, "write", fail_once)
    train_with(a_run, config, request_in=(2,))
    assert samples.iterations(a_run) == [4]


@pytest.mark.parametrize("limit", ["total_steps", "total_iterations"])
def test_last_iteration_is_recorded(limit: str, tmp_path: Path) -> None:
    totals = {"total_steps": 0, "total_iterations": 0} | {limit: 150 if limit == "total_steps" else 4}
    a_run = Run(run(make_config(**totals, log={"samples_every": 100}), tmp_path).path)
    assert samples.iterations(a_run) == [1, a_run.read_status().iteration]


def test_recording_changes_nothing_else(tmp_path: Path) -> None:
    """Also an observed iteration that is not recorded in the end, because the run is not solved after it."""
    whole = None
    for every in (0, 1, 3):
        solving = {"stop_when_solved": True, "eval": {"every_steps": 40, "episodes": 5, "threshold": 2.0}}
        a_run = Run(run(make_config(log={"samples_every": every}, **solving), tmp_path, f"every{every}").path)
        whole = whole or a_run
        if every:  # these metrics are logged only with samples
            for tag in ("policy/kl_after", "policy/clip_fraction_after"):
                assert tag in read(a_run.path).series
        assert_same(a_run, whole, {"policy/kl_after", "policy/clip_fraction_after"})


def checkpoints_during(config: SequenceConfig, folder: Path) -> dict[int, set[int]]:
    """Train, and return the iterations of the checkpoints that exist before each iteration."""
    found, a_run, iterate = {}, prepare(config, folder, "run"), SequenceAdapter.collect
    numbers = itertools.count(1)

    def collect(self: SequenceAdapter) -> Rollout:
        metas = (checkpoint.read_meta(path) for _, _, path in a_run.checkpoint_folders())
        found[next(numbers)] = {meta.iteration for meta in metas}
        return iterate(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SequenceAdapter, "collect", collect)
        train_in(a_run, config, StopRequest())
    return found


def test_checkpoint_precedes_every_recorded_iteration(tmp_path: Path) -> None:
    config = make_config(checkpoint={"every_s": 1e6, "keep": 1}, log={"samples_every": 3})
    found = checkpoints_during(config, tmp_path)
    a_run = Run(tmp_path / "run")
    assert samples.iterations(a_run) == [1, 3, 6, 8]
    assert {number for number in found if number - 1 in found[number]} == {3, 6, 8}
    metas = [checkpoint.read_meta(path).iteration for _, _, path in a_run.checkpoint_folders()]
    assert metas == [7, 8]  # the one before the newest recorded iteration, and the newest one


def test_checkpoint_before_sample_outlives_newer_ones(tmp_path: Path) -> None:
    config = make_config(checkpoint={"every_s": 1e-6, "keep": 1}, log={"samples_every": 3})
    found = checkpoints_during(config, tmp_path)
    assert [sorted(found[number]) for number in (4, 5, 6, 7, 8)] == [[2, 3], [2, 4], [2, 5], [5, 6], [5, 7]]


def test_time_for_samples_includes_their_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save, seconds = Trainer._save, [0.0]

    def slow_save(self: Trainer) -> None:
        seconds[0] += 100.0
        save(self)

    monkeypatch.setattr(Trainer, "_save", slow_save)
    for module in ("recorder", "trainer"):
        monkeypatch.setattr(f"ppo_unified.training.{module}.time.perf_counter", lambda: seconds[0])
    a_run = Run(run(make_config(checkpoint={"every_s": 1e6}), tmp_path).path)
    series = read(a_run.path).series["time/samples_s"]
    assert series.values.tolist() == [100.0, 100.0, 100.0]  # nothing precedes the first iteration
    assert series.steps.tolist() == [samples.read(a_run, number).step for number in (3, 6, 8)]


def test_samples_stay_within_the_disk_budget(tmp_path: Path) -> None:
    config = make_config(total_iterations=12, log={"samples_every": 1, "samples_mb": 0.1})
    a_run = Run(run(config, tmp_path).path)
    kept = samples.iterations(a_run)
    assert (kept[0], kept[-1]) == (1, 12)
    assert 2 < len(kept) < 12
    assert sum(samples.sample_path(a_run, number).stat().st_size for number in kept) <= 100_000


def test_bfloat16_observations_are_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    collect, evaluate = SequenceAdapter.collect, SequencePolicy.evaluate
    monkeypatch.setattr(SequencePolicy, "evaluate", lambda self, obs, actions: evaluate(self, obs.float(), actions))

    def collect_short(self: SequenceAdapter) -> Rollout:
        rollout = collect(self)
        return replace(rollout, obs=rollout.obs.bfloat16())  # type: ignore[union-attr]

    monkeypatch.setattr(SequenceAdapter, "collect", collect_short)
    a_run = Run(run(make_config(total_iterations=1), tmp_path).path)
    assert samples.read(a_run, 1).observations["obs"].dtype == np.float32


def test_observer_is_removed_after_the_update(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    original = recorder.Recorder.end

    def end(self: recorder.Recorder, *arguments: Any) -> Any:
        answer = original(self, *arguments)
        seen.append(self.state.learner.observe)
        return answer

    monkeypatch.setattr(recorder.Recorder, "end", end)
    run(make_config(), tmp_path)
    assert seen == [None] * 8
