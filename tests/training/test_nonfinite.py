"""NaN or infinity in an update fails the run before the weights change; the message names and saves the minibatch."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from safetensors.torch import load_file

from ppo_unified.config.schema import PPO, Optim
from ppo_unified.engine.optimizers import NonFiniteError
from ppo_unified.engine.ppo import make_batch, make_learner
from ppo_unified.engine.rollout import Rollout
from ppo_unified.runs.folder import Run
from ppo_unified.runs.preparation import prepare
from ppo_unified.runs.signals import StopRequest
from ppo_unified.testing import BanditAdapter
from ppo_unified.training import checkpoint
from ppo_unified.training.nonfinite import explain_nonfinite
from ppo_unified.training.session import train_in
from tests.sequences import SequenceAdapter, SequencePolicy, make_config, sequences
from tests.toys import run_engine, weights

__all__ = ["sequences"]  # a fixture that tests request by name


@pytest.mark.usefixtures("sequences")
def test_nonfinite_minibatch_is_reported_and_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_config(checkpoint={"every_s": 1e-6}, log={"samples_every": 0})
    run = prepare(config, tmp_path, "a")
    collect, seen = SequenceAdapter.collect, list[Rollout]()

    def collect_then_break(self: SequenceAdapter) -> Rollout:
        seen.append(collect(self))
        if len(seen) == 3:
            assert isinstance(self.policy, SequencePolicy)
            self.policy.off = torch.inf  # error of the log-probs, in the update only
        return seen[-1]

    monkeypatch.setattr(SequenceAdapter, "collect", collect_then_break)
    with pytest.raises(NonFiniteError, match=r"in iteration 3, after .* steps") as raised:
        train_in(run, config, StopRequest())
    status = run.read_status()
    assert status.state == "failed"
    assert str(raised.value) in status.reason
    assert checkpoint.steps(run)[-1] == sum(int(rollout.mask.sum()) for rollout in seen[:2])
    path = run.path / "nonfinite" / "00000003.safetensors"
    assert f"the minibatch was saved to {path}" in str(raised.value)
    known, kept = json.loads(path.with_suffix(".json").read_text()), load_file(path)
    assert (known["iteration"], known["step"]) == (3, checkpoint.steps(run)[-1])
    assert kept["logprobs"].shape == kept["mask"].shape == kept["advantages"].shape
    assert known["quantity"] == "new logprobs"
    row, column = known["rollout_row"], known["rollout_column"]
    assert kept["mask"][known["row"], known["column"]]
    assert kept["logprobs"][known["row"], known["column"]] == seen[2].logprobs[row, column]
    assert f"row {row}, column {column} of the rollout" in status.reason


def test_failure_to_compute_losses_keeps_the_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = BanditAdapter()
    learner, batch = make_learner(adapter.policy, PPO(), Optim()), make_batch(adapter.collect(), PPO())
    error = NonFiniteError("the gradient norm is nan", replace(batch, returns=batch.returns * torch.nan))
    assert "(loss sums: policy " in str(explain_nonfinite(error, Run(tmp_path), learner, None))
    assert learner.counter.done == 0
    monkeypatch.setattr("ppo_unified.training.nonfinite.backward", Mock(side_effect=torch.OutOfMemoryError("full")))
    message = str(explain_nonfinite(error, Run(tmp_path), learner, None))
    assert "the gradient norm is nan (loss sums: not computed, full)" in message


def test_skipped_step_changes_nothing_and_is_counted() -> None:
    class NanAdapter(BanditAdapter):
        def collect(self) -> Rollout:
            rollout = super().collect()
            return replace(rollout, rewards=rollout.rewards * float("nan"))

    adapter = NanAdapter()
    before = weights(adapter.policy)
    metrics = run_engine(adapter, 1, optim=Optim(on_nonfinite="skip"))[0]
    assert torch.equal(weights(adapter.policy), before)
    assert (metrics["optim/steps"], metrics["optim/skipped"]) == (0, 40)
    healthy = run_engine(BanditAdapter(), 1, optim=Optim(on_nonfinite="skip"))[0]
    assert (healthy["optim/steps"], healthy["optim/skipped"]) == (40, 0)
