"""Recomputing a stored iteration gives the run's own numbers, and with other settings those of the engine."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from envs.llm.adapter import LLMAdapter
from envs.llm.options import LLMConfig
from ppo_unified.config.schema import PPO
from ppo_unified.inspection import what_if
from ppo_unified.inspection.formulas import Array
from ppo_unified.inspection.what_if import Recomputed, Settings, recompute
from ppo_unified.runs.samples import StoredIteration
from ppo_unified.testing import BanditAdapter
from tests.inspection.recording import record
from tests.models import save_model
from tests.sequences import SequenceAdapter, SequenceConfig

SAME = {"advantage": "advantage", "return": "return", "delta": "delta", "reward": "reward", "value": "value",
        "next_value": "next_value", "ratio": "ratio", "logprob": "logprob_new", "weight": "weight", "kl": "kl",
        "advantage_used": "advantage_used"}  # fmt: skip


def assert_equals_stored(stored: StoredIteration, *ignored: str) -> Recomputed:
    """Assert that recomputing with the run's own settings gives the stored columns and the logged metrics."""
    own, mask = Settings.of(stored), stored.columns["mask"]
    after = recompute(stored, own)
    for name, column in SAME.items():
        if name in after.columns and column in stored.columns:
            close(after.columns[name][mask], stored.columns[column][mask], name)
    np.testing.assert_array_equal((after.columns["outside"] != 0)[mask], stored.columns["clipped"][mask])
    last = recompute(stored, own, [x for x in what_if.moments(stored) if x != "after"][-1])
    for found in (after, last):
        for name, mean in found.means.items():
            if name in stored.metrics and name not in ignored and (found is last or name != "loss/policy"):
                close(mean, stored.metrics[name], name)
        assert found.exact
        assert float(found.columns["share"].sum()) == pytest.approx(len(np.unique(minibatches(stored, found))))
    return last


def minibatches(stored: StoredIteration, found: Recomputed) -> Array:
    mask = stored.columns["mask"]
    if found.moment == "after":
        return np.zeros(1)
    numbers = stored.epochs["minibatch"][found.moment - 1][mask]
    return np.asarray(numbers[numbers >= 0])


def close(found: Any, expected: Any, name: str) -> None:
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5, err_msg=name)


PPO_OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "batch": {"normalize_advantages": "batch", "clip_high": 0.3},
    "dual clip": {"normalize_advantages": "batch", "dual_clip": 1.2, "clip": 0.1},
    "td": {"normalize_advantages": "none", "advantage": "td", "value_target": "monte-carlo", "value_clip": 0.01},
    "reward-to-go": {"advantage": "reward-to-go", "objective": "ratio"},
    "return": {"advantage": "return", "objective": "policy-gradient", "loss_mean": "sequence"},
    "penalty": {"objective": "penalty", "penalty_coef": 0.5, "penalty_target": 0.01},
    "annealed": {"anneal_clip": True, "clip": 0.2, "clip_high": 0.4},
    "target KL": {"target_kl": 0.005, "epochs": 10, "loss_mean": "sequence"},
    "critic only": {"critic_warmup": 3},
}


def sequences() -> SequenceAdapter:
    return SequenceAdapter(SequenceConfig())


@pytest.mark.parametrize("options", PPO_OPTIONS.values(), ids=PPO_OPTIONS)
@pytest.mark.parametrize("make", [BanditAdapter, sequences], ids=["bandit", "sequences"])
def test_own_settings_give_the_runs_numbers(make: Callable[[], Any], options: dict[str, Any]) -> None:
    ppo = PPO.model_validate({"epochs": 3, "minibatches": 3, "gamma": 0.9, "lam": 0.8} | options)
    stored = record(make(), ppo, {"kind": "sequences"}, iterations=2)
    last = assert_equals_stored(stored)
    if "target_kl" in options:
        assert last.moment < 10
    if ppo.objective == "clip" and not (ppo.critic_warmup or ppo.target_kl):
        assert recompute(stored, Settings.of(stored)).columns["cut"][stored.columns["mask"]].any()


def vowels(prompts: list[str], responses: list[str], **columns: Any) -> list[float]:
    """A reward that has different scores for different responses of an untrained model."""
    return [sum(character in "aeiou" for character in text) + 0.1 * len(text) for text in responses]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models")
    prompts = ["1+2=", "a", "what is longer?", "12", "xy", "7*8 is"]
    (path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": p}) + "\n" for p in prompts), encoding="utf-8")
    save_model(path / "lm")
    return path


def record_llm(folder: Path, llm: dict[str, Any], ppo: dict[str, Any]) -> StoredIteration:
    given = {"model": str(folder / "lm"), "prompts": str(folder / "prompts.jsonl"), "reward": f"{__name__}:vowels",
             "max_new_tokens": 12, "rollout_batch": 12, "kl_coef": 0.1}  # fmt: skip
    small = {"epochs": 2, "minibatches": 3}
    config = LLMConfig.model_validate({"llm": given | llm, "ppo": small | ppo, "threads": 1})
    adapter = LLMAdapter(config, torch.device("cpu"))
    return record(adapter, config.ppo, config.model_dump(), lr=0.003, iterations=2)


GROUP = {"gamma": 1.0, "lam": 1.0, "value_coef": 0.0, "value_clip": 0.0, "normalize_advantages": "none"}
LLM_OPTIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "default": ({}, {}),
    "full KL, whitened": ({"kl": "full", "whiten_rewards": True}, {"loss_mean": "sequence", "gamma": 0.95}),
    "k2, clipped": ({"kl": "k2", "score_clip": 1.0, "missing_eos_penalty": 0.7}, {"normalize_advantages": "minibatch"}),
    "k3, running": ({"kl": "k3", "score_clip": 1.0, "score_normalize": "running", "kl_target": 0.1}, {}),
    "abs, shared critic": ({"kl": "abs", "critic": "shared"}, {"dual_clip": 2.0}),
    "rloo": ({"baseline": "rloo", "group_size": 3}, GROUP),
    "rloo, sequence": ({"baseline": "rloo", "group_size": 3}, GROUP | {"loss_mean": "sequence"}),
    "grpo": ({"baseline": "grpo", "group_size": 4, "kl": "k3"}, GROUP | {"clip_high": 0.3}),
}


@pytest.mark.parametrize("options", LLM_OPTIONS.values(), ids=LLM_OPTIONS)
def test_own_settings_give_the_runs_numbers_of_tokens(folder: Path, options: tuple[Any, Any]) -> None:
    stored = record_llm(folder, *options)
    last = assert_equals_stored(stored)
    assert {"reward/total", "reward/kl_penalty", "loss/value"} <= last.means.keys() & stored.metrics.keys()
