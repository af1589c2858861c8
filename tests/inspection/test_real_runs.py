"""The samples that runs store can be recomputed: with the run's own settings, they give the run's own numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ppo_unified import load_preset, run
from ppo_unified.inspection.clip_sentence import describe_clip
from ppo_unified.inspection.sample_list import SampleList
from ppo_unified.inspection.step_formulas import Step, explain
from ppo_unified.inspection.what_if import Settings, recompute
from ppo_unified.runs import samples
from ppo_unified.runs.folder import Run
from tests.inspection.checks import assert_equals_stored
from tests.training.runs import short_config

TINY: dict[str, Any] = {
    "llm": {"rollout_batch": 32, "max_new_tokens": 8, "kl": "k3", "kl_coef": 0.1, "score_normalize": "running",
            "score_clip": 1.5, "missing_eos_penalty": 0.5, "whiten_rewards": True},
    "ppo": {"epochs": 3, "minibatches": 2, "dual_clip": 2.0, "clip": 0.1},
}  # fmt: skip


def check_run(path: Path) -> None:
    a_run = Run(path)
    for number in samples.iterations(a_run):
        stored = samples.read(a_run, number)
        assert_equals_stored(stored)
        found = recompute(stored, Settings.of(stored))
        listed = SampleList.of(stored, found)
        sample = listed.row(listed.sort("cut")[0]).sample
        for column in sample.columns:
            step = Step(stored, found, sample.row, int(column))
            assert [line.name for line in explain(step)][-3:] == ["loss", "d loss", "share"]
            assert describe_clip(step)


@pytest.mark.parametrize("normalize", ["minibatch", "batch"])
def test_run_in_an_environment_can_be_recomputed(tmp_path: Path, normalize: str) -> None:
    config = short_config(ppo={"normalize_advantages": normalize}, log={"samples_every": 1})
    check_run(run(config, tmp_path).path)


def test_run_of_a_language_model_can_be_recomputed(tmp_path: Path) -> None:
    limits: dict[str, Any] = {"total_iterations": 2, "total_steps": 0, "eval": {"every_steps": 0}}
    check_run(run(load_preset("arithmetic", **TINY, **limits, log={"samples_every": 1}), tmp_path).path)
