"""The training loop: reproducible results, when a run ends, and inconsistent log-probs of an adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ppo_unified import run
from ppo_unified.runs.folder import Run
from tests.sequences import make_config, sequences
from tests.training.runs import read, short_config

__all__ = ["sequences"]  # a fixture that tests request by name


def test_run_depends_only_on_its_seed(tmp_path: Path) -> None:
    curves = []
    for seed in (3, 3, 4):
        path = run(short_config(seed=seed), tmp_path).path
        curves.append(list(read(path).series["loss/policy"].values))
    assert curves[0] == curves[1] != curves[2]


def test_inconsistent_adapter_logprobs_fail_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from envs.gym.policy import GymPolicy

    evaluate = GymPolicy.evaluate

    def evaluate_wrongly(self: GymPolicy, obs: Any, actions: Any) -> Any:
        """Return wrong log-probs at the end of a rollout, but not in the update."""
        new = evaluate(self, obs, actions)
        return new._replace(logprobs=new.logprobs - (0.0 if torch.is_grad_enabled() else 0.1))

    monkeypatch.setattr(GymPolicy, "evaluate", evaluate_wrongly)
    with pytest.raises(
        RuntimeError, match=r"expected a ratio of 1 between new and old policy .*, got an error of 0\.1"
    ):
        run(short_config(), tmp_path, "wrong")
    status = Run(tmp_path / "wrong").read_status()
    assert status.state == "failed"
    assert "collect() and of its policy's evaluate() differ" in status.reason


def test_total_iterations_ends_the_run(tmp_path: Path) -> None:
    result = run(
        short_config(total_steps=0, total_iterations=3, stop_when_solved=False, eval={"threshold": None}), tmp_path
    )
    status = Run(result.path).read_status()
    assert (status.iteration, status.reason) == (3, "total_iterations reached")
    rates = read(result.path).series["optim/lr"].values
    assert list(rates) == pytest.approx([2e-3, 2e-3 * 2 / 3, 2e-3 / 3], rel=1e-5)


@pytest.mark.usefixtures("sequences")
def test_first_ratio_tolerance_is_configurable(tmp_path: Path) -> None:
    assert run(make_config(toy={"off": 0.05, "tolerance": 0.1}), tmp_path, "lenient").state == "finished"
    with pytest.raises(
        RuntimeError, match=r"expected a ratio of 1 between new and old policy .*, got an error of 0\.05"
    ):
        run(make_config(toy={"off": 0.05}), tmp_path, "strict")
