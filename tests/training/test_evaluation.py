"""Evaluations of a run: their intervals, the test for a solved task, and scores that are not finite."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ppo_unified import run
from ppo_unified.runs import samples
from ppo_unified.runs.folder import Run
from ppo_unified.runs.preparation import prepare
from ppo_unified.runs.signals import StopRequest
from ppo_unified.training import checkpoint
from ppo_unified.training.session import train_in
from tests.sequences import SequenceAdapter, make_config, sequences
from tests.training.runs import read, result_step, short_config

__all__ = ["sequences"]  # a fixture that tests request by name


def test_solved_needs_two_confirming_evaluations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run is not solved if the first score reaches the threshold but the confirming evaluations do not."""
    from envs.gym.vector import GymAdapter

    calls: list[tuple[int, int]] = []

    def score(self: GymAdapter, episodes: int, seed: int, greedy: bool) -> list[float]:
        calls.append((episodes, seed))
        return [500.0 if episodes == 5 or seed % 2 else 100.0] * episodes

    monkeypatch.setattr(GymAdapter, "score", score)
    result = run(short_config(eval={"every_steps": 1000, "episodes": 5, "threshold": 490.0}), tmp_path)
    assert result.solved_step is None
    assert result.reason == "total_steps reached"
    assert {episodes for episodes, _ in calls} == {5, 100}
    assert len({seed for episodes, seed in calls if episodes == 100}) == 2


def test_evaluations_occur_at_multiples_of_the_interval(tmp_path: Path) -> None:
    steps = read(run(short_config(stop_when_solved=False, eval={"every_steps": 600, "threshold": None}), tmp_path).path)
    evaluated, learned = steps.series["eval/score"].steps, steps.series["policy/kl"].steps
    before = dict(zip(learned, [0, *learned[:-1]], strict=True))
    passing = [step for step in learned if step // 600 > before[step] // 600]
    assert list(evaluated) == sorted({*passing, learned[-1]})


@pytest.mark.usefixtures("sequences")
@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_nonfinite_score_is_neither_best_nor_solved(
    wrong: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A score that is not finite does not count in any evaluation; the best score is the finite one between them."""
    scores = iter([[1.0, wrong], [30.0], [500.0], [500.0, wrong], [500.0], [500.0], [500.0], [wrong, 1.0]])
    monkeypatch.setattr(SequenceAdapter, "score", lambda self, n, seed, greedy: next(scores, [wrong, -wrong]))
    options = {"every_steps": 1, "threshold": 490.0}
    config = make_config(eval=options, checkpoint={"keep": 1}, log={"samples_every": 0}, total_iterations=5)
    kept = prepare(config, tmp_path, "a")
    result = train_in(kept, config, StopRequest())
    assert (result.best_score, result.solved_step, result.state) == (30.0, None, "finished")
    assert checkpoint.find_best(kept) == (result.best_step, 30.0)
    assert json.loads((kept.path / "run.json").read_text(), parse_constant=pytest.fail)["score"] is None
    output = capsys.readouterr().err
    assert "1 of 2 episode scores are not finite; the first is in episode 1" in output
    assert f"step {result.step}: 2 of 2 episode scores are not finite; the first is in episode 0 ({wrong})" in output


@pytest.mark.usefixtures("sequences")
def test_run_can_be_evaluated_at_start(tmp_path: Path) -> None:
    evaluation = {"every_steps": 0, "episodes": 30, "at_start": True}
    result = run(make_config(eval=evaluation), tmp_path)
    series = read(result.path).series
    end = result_step(result.path)
    assert list(series["eval/score"].steps) == list(series["eval/sampled_score"].steps) == [0, end]
    assert list(samples.read_responses(Run(result.path))) == [0, end]
    a_run = Run(result.path)
    a_run.acquire()
    status = train_in(a_run, make_config(total_iterations=9, eval=evaluation), StopRequest())
    steps = list(read(result.path).series["eval/score"].steps)
    assert steps == [0, end, status.step]


@pytest.mark.usefixtures("sequences")
def test_task_solved_at_start_is_not_trained(tmp_path: Path) -> None:
    solved = {"every_steps": 1, "episodes": 3, "at_start": True, "threshold": 0.0}
    result = run(make_config(stop_when_solved=True, eval=solved), tmp_path)
    assert (result.solved_step, result.reason, result_step(result.path)) == (0, "solved", 0)
    assert result.best_score == result.score
    assert not samples.iterations(Run(result.path))
