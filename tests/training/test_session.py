"""Loading the policy of a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from ppo_unified import run
from ppo_unified.errors import UsageError
from ppo_unified.runs.folder import Run
from ppo_unified.training.session import load_adapter
from tests.cli.commands import wait_for
from tests.sequences import sequences
from tests.training.runs import short_config

__all__ = ["sequences"]  # a fixture that tests request by name


def test_checkpoint_reproduces_its_training_score(tmp_path: Path) -> None:
    config = short_config()
    result = run(config, tmp_path)
    adapter, step = load_adapter(Run(result.path), config, "latest")
    assert step == Run(result.path).read_status().step
    scores = adapter.score(config.eval.episodes, config.seed + 1, True)
    adapter.close()
    assert sum(scores) / len(scores) == result.score


def test_configuration_not_fitting_checkpoint_is_reported(tmp_path: Path) -> None:
    kept = Run(run(short_config(), tmp_path).path)
    with pytest.raises(UsageError, match="the network options do not match the checkpoint of step"):
        load_adapter(kept, short_config(policy={"hidden": [32]}), "latest")


def test_callback_sees_every_iteration_and_can_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ppo_unified.runs.heartbeat.HEARTBEAT_S", 0.01)
    seen = list[tuple[int, float]]()

    def on_iteration(steps: int, metrics: dict[str, float]) -> bool:
        kept = Run(tmp_path / "a")
        before = kept.read_status().heartbeat
        wait_for(lambda: kept.read_status().heartbeat > before)  # although this function is slow
        seen.append((steps, metrics["policy/kl"]))
        return len(seen) == 2

    config = short_config(total_steps=100_000, eval={"at_start": True, "episodes": 1})
    result = run(config, tmp_path, "a", on_iteration=on_iteration)
    status = Run(result.path).read_status()
    assert (result.state, result.reason) == (status.state, status.reason) == ("stopped", "stopped by on_iteration")
    assert 0 < seen[0][0] < seen[1][0] == status.step
    assert Run(result.path).checkpoint_folders()  # so the run can be resumed


def test_error_of_the_callback_ends_the_run(tmp_path: Path) -> None:
    def on_iteration(steps: int, metrics: dict[str, float]) -> None:
        raise KeyError("accuracy")

    with pytest.raises(KeyError, match="accuracy"):
        run(short_config(), tmp_path, name="wrong", on_iteration=on_iteration)
    assert Run(tmp_path / "wrong").read_status().reason == "KeyError: 'accuracy'"
