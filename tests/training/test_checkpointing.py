"""A run keeps its best and newest checkpoints, and a resumed run restores the best score from them."""

from __future__ import annotations

from pathlib import Path

import pytest

from ppo_unified import load_preset, run
from ppo_unified.errors import UsageError
from ppo_unified.runs.folder import Run
from ppo_unified.runs.signals import StopRequest
from ppo_unified.training import checkpoint
from ppo_unified.training.session import train_in
from tests.sequences import sequences
from tests.training.runs import short_config

__all__ = ["sequences"]  # a fixture that tests request by name


def test_best_and_newest_checkpoints_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from envs.gym.vector import GymAdapter

    scores = iter([10.0, 30.0, 20.0, 15.0, 12.0, 11.0])
    monkeypatch.setattr(GymAdapter, "score", lambda self, n, seed, greedy: [next(scores)] * n)
    options = {"total_steps": 3000, "stop_when_solved": False, "eval": {"every_steps": 500, "threshold": None}}
    result = run(short_config(**options, checkpoint={"every_s": 1e-6, "keep": 2}), tmp_path)
    kept = Run(result.path)
    best = checkpoint.best_step(kept)
    assert result.best_score == 30.0
    assert best == kept.read_status().best_step
    assert len(checkpoint.steps(kept)) == 3
    assert best == checkpoint.steps(kept)[0] == checkpoint.choose(kept, "best")
    assert checkpoint.choose(kept, "latest") == checkpoint.steps(kept)[-1]
    with pytest.raises(UsageError, match="checkpoint '7' not found; available: best, latest, "):
        checkpoint.choose(kept, "7")


def test_resumed_run_recovers_best_score_from_checkpoint(tmp_path: Path) -> None:
    config = short_config(stop_when_solved=False, eval={"every_steps": 500, "episodes": 5, "threshold": None})
    result = run(config, tmp_path)
    kept = Run(result.path)
    status = kept.read_status()
    status.state, status.best_score, status.best_step = "running", None, None
    kept.write_status(status)  # like a run that was killed directly after the evaluation
    kept.acquire()
    after = train_in(kept, load_preset(str(kept.config), total_steps=2600), StopRequest())
    assert after.best_score is not None
    assert after.best_score >= (result.best_score or 0.0)
    assert checkpoint.find_best(kept) == (after.best_step, after.best_score)
