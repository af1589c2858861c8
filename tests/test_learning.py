"""Trains CartPole to the end; a random policy (score about 22) and a broken engine fail this test."""

from __future__ import annotations

from pathlib import Path

import pytest

from ppo_unified.config.presets import load_preset
from ppo_unified.runs.folder import Run
from ppo_unified.training.session import load_adapter, run


@pytest.mark.learning
@pytest.mark.parametrize("seed", [11, pytest.param(12, marks=pytest.mark.exhaustive)])
def test_cartpole_is_solved_on_unseen_episodes(seed: int, tmp_path: Path) -> None:
    config = load_preset("cartpole", seed=seed)
    result = run(config, runs=tmp_path)
    assert result.solved_step is not None
    assert (result.state, result.reason) == ("finished", "solved")
    assert result.best_score is not None
    assert result.best_score >= 475
    adapter, step = load_adapter(Run(result.path), config, "best")
    assert step == result.solved_step
    scores = adapter.score(100, 7_000_000 + seed, True)
    adapter.close()
    assert sum(scores) / 100 >= 475
