"""Loading the policy of a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from ppo_unified import run
from ppo_unified.errors import UsageError
from ppo_unified.runs.folder import Run
from ppo_unified.training.session import load_adapter
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
