"""With the run's own settings, the inspector gives the run's own numbers: for every adapter, critic and baseline, every
recipe and every option of PPO's formulas."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch

from envs.llm.adapter import LLMAdapter
from envs.llm.options import LLMConfig
from envs.prove import LETTERS, LIMIT, PROMPTS, gym_adapter, token_adapter
from ppo_unified.config.presets import load_target
from ppo_unified.config.recipes import apply_recipe, recipe_files
from ppo_unified.config.schema import PPO
from ppo_unified.inspection import step_formulas
from ppo_unified.inspection.what_if import Settings, moments, recompute
from ppo_unified.testing import BanditAdapter
from tests.inspection.checks import assert_equals_stored, check_steps
from tests.inspection.recording import (
    LLM_OPTIONS,
    PPO_OPTIONS,
    Recorded,
    record,
    record_llm,
    sequences,
    without_new_fields,
)
from tests.test_contract import ADAPTERS

Make = Callable[[Path], Recorded]
SMALL = {"epochs": 3, "minibatches": 3, "gamma": 0.9, "lam": 0.8}


def toy(make: Callable[[], Any], options: dict[str, Any]) -> Make:
    ppo = PPO.model_validate(SMALL | options)
    return lambda folder: record(make(), ppo, {"kind": "sequences"}, iterations=2)


def contract(name: str, options: dict[str, Any]) -> Make:
    def make(folder: Path) -> Recorded:
        with closing(ADAPTERS[name]()) as adapter:
            return record(adapter, PPO.model_validate(SMALL | options), {"kind": "gym"}, lr=0.02, iterations=2)

    return make


def language_model(llm: dict[str, Any], ppo: dict[str, Any]) -> Make:
    return lambda folder: record_llm(folder, llm, ppo)


def token_mdp(folder: Path) -> Recorded:
    tokens = token_adapter(folder / "token_mdp", LETTERS, PROMPTS, LIMIT, 4, "independent")
    with closing(gym_adapter(tokens, tokens.collect())) as adapter:
        return record(adapter, PPO.model_validate(SMALL), {"kind": "gym"}, lr=0.003)


def recipe(name: str) -> Make:
    def make(folder: Path) -> Recorded:
        target = load_target("llm")
        assert isinstance(target, LLMConfig)
        table = apply_recipe(target, name).model_dump()
        files = {"model": "lm", "prompts": "prompts.jsonl", "reward": "reward-model"}
        table["llm"] |= {key: str(folder / value) for key, value in files.items()}
        table["llm"] |= {"max_new_tokens": 6, "rollout_batch": 8}
        table["llm"] |= {"ptx_data": str(folder / "texts.txt"), "ptx_batch": 3} if table["llm"]["ptx_coef"] else {}
        table["ppo"]["minibatches"] = min(table["ppo"]["minibatches"], 8)
        config = LLMConfig.model_validate(table | {"threads": 1})
        adapter = LLMAdapter(config, torch.device("cpu"), notes=False)
        return record(adapter, config.ppo, config.model_dump(), lr=0.003, iterations=2)

    return make


LORA: dict[str, dict[str, Any]] = {
    "LoRA": {},
    "LoRA, shared critic": {"critic": "shared"},
    "LoRA, rloo": LLM_OPTIONS["rloo"][0],
}


def cases() -> Iterator[Any]:
    """Yield a parameter for each configuration. The slow ones, and combinations of others, are exhaustive."""
    slow = pytest.mark.exhaustive
    for name, options in PPO_OPTIONS.items():
        yield pytest.param(toy(BanditAdapter, options), id=f"bandit, {name}")
        yield pytest.param(toy(sequences, options), id=f"sequences, {name}")
    for name in ADAPTERS:
        marks = [slow] if name == "processes" else []
        yield pytest.param(contract(name, PPO_OPTIONS["batch"]), id=name, marks=marks)
        others = {key: x for key, x in PPO_OPTIONS.items() if key != "batch" and x.get("loss_mean") != "sequence"}
        for key, options in others.items():
            yield pytest.param(contract(name, options), id=f"{name}, {key}", marks=slow)
    yield pytest.param(token_mdp, id="token_mdp", marks=slow)
    for name, both in LLM_OPTIONS.items():
        yield pytest.param(language_model(*both), id=f"llm, {name}")
    for name, llm in LORA.items():
        ppo = LLM_OPTIONS["rloo"][1] if "rloo" in name else {}
        yield pytest.param(
            language_model(llm | {"lora_rank": 2}, ppo), id=f"llm, {name}", marks=[] if name == "LoRA" else slow
        )
    for name in recipe_files():
        yield pytest.param(recipe(name), id=f"recipe {name}", marks=[] if name == "oai-2019" else slow)


@pytest.fixture
def exact_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Show numbers with all digits, so that formulas can be evaluated."""
    monkeypatch.setattr(step_formulas, "show", lambda x: repr(float(x)))


@pytest.mark.usefixtures("exact_numbers")
@pytest.mark.parametrize("make", list(cases()))
def test_own_settings_give_the_runs_numbers(folder: Path, make: Make) -> None:
    stored, _ = make(folder)
    own, last = Settings.of(stored), assert_equals_stored(stored)
    names = check_steps(stored)
    llm = stored.options.get("llm", {})
    group, whitened = own.baseline != "critic", own.whiten_rewards
    expected = {"r", "delta", "A", "A used", "ratio", "loss", "d loss", "share"}
    expected |= {"V" if group else "return"} | ({"kl"} if llm else set())
    expected |= {"r token"} if llm and (group or whitened) else set()
    assert names - {"score"} == expected
    if llm:
        assert {"reward/total", "reward/kl_penalty", "loss/value"} <= last.means.keys() & stored.metrics.keys()
    if stored.options.get("ppo", {}).get("target_kl"):
        assert len(moments(stored)) - 1 < stored.options["ppo"]["epochs"]
    if llm and not group:
        check_steps(without_new_fields(stored))
        check_steps(stored, own.with_value("whiten_rewards", not whitened).with_value("kl", "k3"))


@pytest.mark.parametrize("name", PPO_OPTIONS)
def test_some_steps_are_cut(name: str) -> None:
    """Otherwise, the tests above would not test the clip."""
    options = PPO_OPTIONS[name]
    stored, _ = toy(sequences, options)(Path())
    cut = recompute(stored, Settings.of(stored)).columns["cut"][stored.columns["mask"]]
    clips = options.get("objective", "clip") == "clip"
    assert cut.any() == (clips and not options.keys() & {"critic_warmup", "target_kl"}) or "target_kl" in options


@pytest.mark.usefixtures("exact_numbers")
@pytest.mark.parametrize("name", ["k2, clipped", "k3, running"])
def test_changed_scores_have_a_formula(folder: Path, name: str) -> None:
    assert "score" in check_steps(record_llm(folder, *LLM_OPTIONS[name]).stored)
