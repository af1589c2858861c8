"""Metrics and samples that a run stores, including those of its adapter."""

from __future__ import annotations

import signal
from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch

from ppo_unified import run
from ppo_unified.runs import samples
from ppo_unified.runs.folder import Run
from ppo_unified.runs.metrics import METRICS
from ppo_unified.runs.preparation import prepare
from ppo_unified.runs.signals import StopRequest
from ppo_unified.training.session import train_in
from tests.sequences import EVIL, SequenceAdapter, make_config, sequences
from tests.training.runs import read, result_step, short_config

__all__ = ["sequences"]  # a fixture that tests request by name


def test_every_logged_metric_is_declared(tmp_path: Path) -> None:
    result = run(short_config(), tmp_path)
    tags = read(result.path).series
    assert set(tags) <= set(METRICS)
    assert {"policy/kl", "value/mean", "optim/steps", "eval/score", "invariant/first_ratio_error"} <= set(tags)
    assert max(tags["invariant/first_ratio_error"].values) < 1e-5
    assert max(tags["invariant/gae_error"].values) < 1e-3
    assert set(tags["invariant/optimizer_steps_error"].values) == {0.0}


@pytest.mark.usefixtures("sequences")
def test_first_every_nth_and_last_iteration_are_stored(tmp_path: Path) -> None:
    result = run(make_config(), tmp_path)
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
def test_solving_iteration_is_stored(tmp_path: Path) -> None:
    solved = make_config(stop_when_solved=True, eval={"every_steps": 80, "episodes": 2, "threshold": 0.0})
    assert run(solved, tmp_path, "solved").reason == "solved"
    assert samples.iterations(Run(tmp_path / "solved")) == [1, 2]


@pytest.mark.usefixtures("sequences")
def test_stop_stores_no_extra_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stop, calls = StopRequest(), count(1)

    def updating(self: SequenceAdapter, generator: torch.Generator) -> None:
        if next(calls) == 4 * 4 + 1:  # the first of 4 optimizer steps in the fifth iteration
            stop.handle(signal.SIGTERM, None)

    monkeypatch.setattr(SequenceAdapter, "extra_loss", updating)
    a_run = prepare(make_config(), tmp_path, "stopped")
    assert train_in(a_run, make_config(), stop).state == "stopped"
    assert a_run.read_status().iteration == 5
    assert samples.iterations(a_run) == [1, 3]


@pytest.mark.usefixtures("sequences")
def test_storing_samples_does_not_change_training(tmp_path: Path) -> None:
    curves = []
    for every in (0, 1, 3):
        path = run(make_config(log={"samples_every": every}), tmp_path, f"every{every}").path
        assert len(samples.iterations(Run(path))) == {0: 0, 1: 8, 3: 4}[every]
        series = read(path).series
        assert ("policy/kl_after" in series) == bool(every)
        curves.append([list(series[tag].values) for tag in ("loss/policy", "value/mean", "policy/kl")])
    assert curves[0] == curves[1] == curves[2]


@pytest.mark.usefixtures("sequences")
def test_resume_drops_samples_of_lost_iterations(tmp_path: Path) -> None:
    path = run(make_config(), tmp_path).path
    a_run = Run(path)
    samples.write(a_run, replace(samples.read(a_run, 8), iteration=11))  # an iteration after the last checkpoint
    seen: list[list[int]] = []
    further = make_config(total_iterations=10)
    a_run.acquire()
    train_in(a_run, further, StopRequest(), lambda status, metrics: seen.append(samples.iterations(a_run)))
    assert seen == [[1, 3, 6, 8, 9], [1, 3, 6, 8, 9, 10]]


@pytest.mark.usefixtures("sequences")
def test_adapter_columns_and_reports_are_stored(tmp_path: Path) -> None:
    config = make_config(eval={"every_steps": 100, "episodes": 5})
    result = run(config, tmp_path)
    kept = samples.read(Run(result.path), 8)
    rewards = kept.columns["reward"]
    named = (kept.columns["text"] == "left") == (kept.columns["context"] == 0)  # the bandit rewards the named arm
    assert np.array_equal(rewards == 1, named & kept.columns["mask"])
    series, output = read(result.path).series, samples.read_responses(Run(result.path))
    assert list(output) == list(series["eval/score"].steps) == list(series["eval/sampled_score"].steps)
    assert len(output) > 2
    assert min(series["eval/score"].values) >= 0  # computed by the trainer, not reported by the adapter
    assert output[result_step(result.path)] == [{"prompt": EVIL, "response": "seed 2", "score": None}] * 2


@pytest.mark.usefixtures("sequences")
@pytest.mark.parametrize("name", ["reward", "gamma", "no name", "flat", "objects"])
def test_unstorable_column_names_the_hook(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=rf"tests\.sequences:explain: .*'{name}'"):
        run(make_config(toy={"bad_column": name}), tmp_path)
    assert Run(next(tmp_path.iterdir())).read_status().state == "failed"
