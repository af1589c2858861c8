"""The runner: what it writes while training, when it calls a task solved, and what it does when things go wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from ppo_unified import load_preset, run
from ppo_unified.config.schema import RunConfig
from ppo_unified.errors import UsageError
from ppo_unified.runs.events import EventReader
from ppo_unified.runs.folder import Run
from ppo_unified.runs.launch import StopRequest, prepare
from ppo_unified.runs.metrics import METRICS
from ppo_unified.training import checkpoint
from ppo_unified.training.trainer import load_adapter, train_in
from tests.sequences import SequenceAdapter, configured, sequences

__all__ = ["sequences"]  # a fixture, used by name


def quick(**changes: Any) -> RunConfig:
    options: dict[str, Any] = {"total_steps": 2000, "eval": {"every_steps": 1000, "episodes": 5}} | changes
    return load_preset("cartpole", **options)


def read(path: Path) -> EventReader:
    reader = EventReader(path)
    reader.poll()
    return reader


def test_every_metric_of_a_run_is_declared(tmp_path: Path) -> None:
    result = run(quick(), tmp_path)
    tags = read(result.path).series
    assert set(tags) <= set(METRICS)
    assert {"policy/kl", "value/mean", "optim/steps", "eval/score", "invariant/first_ratio_error"} <= set(tags)
    assert max(tags["invariant/first_ratio_error"].values) < 1e-5
    assert max(tags["invariant/gae_error"].values) < 1e-3
    assert set(tags["invariant/optimizer_steps_error"].values) == {0.0}


def test_the_same_seed_gives_the_same_run_and_another_seed_another(tmp_path: Path) -> None:
    curves = []
    for seed in (3, 3, 4):
        path = run(quick(seed=seed), tmp_path).path
        curves.append(list(read(path).series["loss/policy"].values))
    assert curves[0] == curves[1] != curves[2]


def test_solved_needs_two_more_evaluations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An evaluation at the threshold that the confirmation does not reach solves nothing."""
    from envs.gym.vector import GymAdapter

    calls: list[tuple[int, int]] = []

    def score(self: GymAdapter, episodes: int, seed: int, greedy: bool) -> list[float]:
        calls.append((episodes, seed))
        return [500.0 if episodes == 5 or seed % 2 else 100.0] * episodes

    monkeypatch.setattr(GymAdapter, "score", score)
    result = run(quick(eval={"every_steps": 1000, "episodes": 5, "threshold": 490.0}), tmp_path)
    assert result.solved_step is None
    assert result.reason == "total_steps reached"
    assert {episodes for episodes, _ in calls} == {5, 100}
    assert len({seed for episodes, seed in calls if episodes == 100}) == 2


def test_evaluations_follow_multiples_of_their_interval(tmp_path: Path) -> None:
    steps = read(run(quick(stop_when_solved=False, eval={"every_steps": 600, "threshold": None}), tmp_path).path)
    evaluated, learned = steps.series["eval/score"].steps, steps.series["policy/kl"].steps
    before = dict(zip(learned, [0, *learned[:-1]], strict=True))
    passing = [step for step in learned if step // 600 > before[step] // 600]
    assert list(evaluated) == sorted({*passing, learned[-1]})


def test_the_best_checkpoint_is_kept_beside_the_newest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from envs.gym.vector import GymAdapter

    scores = iter([10.0, 30.0, 20.0, 15.0, 12.0, 11.0])
    monkeypatch.setattr(GymAdapter, "score", lambda self, n, seed, greedy: [next(scores)] * n)
    options = {"total_steps": 3000, "stop_when_solved": False, "eval": {"every_steps": 500, "threshold": None}}
    result = run(quick(**options, checkpoint={"every_s": 1e-6, "keep": 2}), tmp_path)
    kept = Run(result.path)
    best = checkpoint.best_step(kept)
    assert result.best_score == 30.0
    assert best == kept.read_status().best_step
    assert len(checkpoint.steps(kept)) == 3
    assert best == checkpoint.steps(kept)[0] == checkpoint.choose(kept, "best")
    assert checkpoint.choose(kept, "latest") == checkpoint.steps(kept)[-1]
    with pytest.raises(UsageError, match="no checkpoint '7'"):
        checkpoint.choose(kept, "7")


@pytest.mark.usefixtures("sequences")
@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_a_score_that_is_not_finite_is_told_and_neither_best_nor_solved(
    wrong: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not at first, not in a confirmation, not in the end; a finite one between them is the best."""
    scores = iter([[1.0, wrong], [30.0], [500.0], [500.0, wrong], [500.0], [500.0], [500.0], [wrong, 1.0]])
    monkeypatch.setattr(SequenceAdapter, "score", lambda self, n, seed, greedy: next(scores, [wrong, -wrong]))
    options = {"every_steps": 1, "threshold": 490.0}
    config = configured(eval=options, checkpoint={"keep": 1}, log={"samples_every": 0}, total_iterations=5)
    kept = prepare(config, tmp_path, "a")
    result = train_in(kept, config, StopRequest())
    assert (result.best_score, result.solved_step, result.state) == (30.0, None, "finished")
    assert checkpoint.best(kept) == (result.best_step, 30.0)
    assert json.loads((kept.path / "run.json").read_text(), parse_constant=pytest.fail)["score"] is None
    said = capsys.readouterr().err
    assert "1 of 2 episodes is not finite, first of episode 1" in said
    assert f"step {result.step}: the score of 2 of 2 episodes is not finite, first of episode 0 ({wrong})" in said


def test_a_checkpoint_scores_as_it_did_in_training(tmp_path: Path) -> None:
    config = quick()
    result = run(config, tmp_path)
    adapter, step = load_adapter(Run(result.path), config, "latest")
    assert step == Run(result.path).read_status().step
    scores = adapter.score(config.eval.episodes, config.seed + 1, True)
    adapter.close()
    assert sum(scores) / len(scores) == result.score


def test_a_resumed_run_knows_its_best_though_run_json_lags_behind(tmp_path: Path) -> None:
    config = quick(stop_when_solved=False, eval={"every_steps": 500, "episodes": 5, "threshold": None})
    result = run(config, tmp_path)
    kept = Run(result.path)
    status = kept.read_status()
    status.state, status.best_score, status.best_step = "running", None, None
    kept.write_status(status)  # as a kill right after the evaluation leaves it
    kept.acquire()
    after = train_in(kept, load_preset(str(kept.config), total_steps=2600), StopRequest())
    assert after.best_score is not None
    assert after.best_score >= (result.best_score or 0.0)
    assert checkpoint.best(kept) == (after.best_step, after.best_score)


def test_a_configuration_that_does_not_fit_its_checkpoint_is_named(tmp_path: Path) -> None:
    kept = Run(run(quick(), tmp_path).path)
    with pytest.raises(UsageError, match="does not fit checkpoint"):
        load_adapter(kept, quick(policy={"hidden": [32]}), "latest")


def test_an_adapter_whose_log_probs_disagree_fails_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from envs.gym.policy import GymPolicy

    evaluate = GymPolicy.evaluate

    def wrong(self: GymPolicy, obs: Any, actions: Any) -> Any:
        new = evaluate(self, obs, actions)
        return new._replace(logprobs=new.logprobs + (0.1 if torch.is_grad_enabled() else 0.0))

    monkeypatch.setattr(GymPolicy, "evaluate", wrong)
    with pytest.raises(RuntimeError, match=r"ratio to the old policy is off by 0\.1"):
        run(quick(), tmp_path)
    status = Run(tmp_path / "cartpole-s1").read_status()
    assert status.state == "failed"
    assert "collect() and its policy's evaluate() disagree" in status.reason


def test_iterations_may_end_a_run_too(tmp_path: Path) -> None:
    result = run(quick(total_steps=0, total_iterations=3, stop_when_solved=False, eval={"threshold": None}), tmp_path)
    status = Run(result.path).read_status()
    assert (status.iteration, status.reason) == (3, "total_iterations reached")
    rates = read(result.path).series["optim/lr"].values
    assert list(rates) == pytest.approx([2e-3, 2e-3 * 2 / 3, 2e-3 / 3], rel=1e-5)
