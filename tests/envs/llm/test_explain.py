"""Tests of the quantities that only iterations of language models have: next tokens, scores and texts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from envs.llm import policy as policy_module
from envs.llm.adapter import LLMAdapter
from envs.llm.explain import ALTERNATIVES, action_texts, alternatives, explain
from envs.llm.model import POLICY
from envs.llm.options import LLMConfig
from ppo_unified import load_preset
from ppo_unified import run as train
from ppo_unified.config.recipes import recipe_files
from ppo_unified.inspection import formulas
from ppo_unified.runs import samples
from ppo_unified.runs.folder import Run
from ppo_unified.runs.stored_iteration import StoredIteration
from tests.models import save_model

FREE: dict[str, Any] = {"lam": 1.0, "value_coef": 0.0, "value_clip": 0.0, "normalize_advantages": "none"}
GROUPED: dict[str, Any] = {"llm": {"baseline": "rloo", "group_size": 2}, "ppo": FREE}
# name -> (family, options)
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "gpt2-shared": ("gpt2", {"llm": {"critic": "shared", "temperature": 1.3}}),
    "gemma2-grouped": ("gemma2", GROUPED),
    "qwen2-bf16": ("qwen2", {"llm": {"dtype": "bfloat16"}}),
    "lora": ("llama", {"llm": {"lora_rank": 4, "temperature": 0.7}}),
    "lora-bf16": ("gpt2", {"llm": {"lora_rank": 4, "dtype": "bfloat16"}}),
    "lora-shared": ("qwen2", {"llm": {"lora_rank": 4, "critic": "shared"}}),
    "lora-head": ("llama", {"llm": {"lora_rank": 4, "lora_targets": ["q_proj", "lm_head"]}}),
    "bf16-copy": ("llama", {"llm": {"reference_dtype": "bfloat16"}}),
    "small-batches": ("llama", {"ppo": {"microbatch_columns": 20}}),
}
SIMILAR = ("llama", "gpt2-shared", "qwen2-bf16", "lora", "lora-shared", "bf16-copy")  # exhaustive


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with models and prompts."""
    folder = tmp_path_factory.mktemp("llm")
    for family in ("llama", "gpt2", "qwen2", "gemma2"):
        save_model(folder / family, family)
    prompts = [{"prompt": "12+34="[: 1 + i % 6], "answer": str(i)} for i in range(12)]
    (folder / "prompts.jsonl").write_text("\n".join(map(json.dumps, prompts)), encoding="utf-8")
    return folder


def vowels(prompts: list[str], responses: list[str], **columns: Any) -> list[float]:
    """Return scores that differ between the responses of an untrained model."""
    return [sum(character in "aeiou" for character in text) + 0.1 * len(text) for text in responses]


def config(folder: Path, family: str, llm: dict[str, Any] | None = None, **options: Any) -> LLMConfig:
    base = {"model": str(folder / family), "prompts": str(folder / "prompts.jsonl"), "reward": "regex:[a-p]"}
    sizes = {"max_new_tokens": 8, "rollout_batch": 8}
    small = {"total_steps": 0, "total_iterations": 2, "threads": 1, "eval": {"episodes": 2}, "optim": {"lr": 5e-3}}
    small["ppo"] = {"epochs": 1, "minibatches": 2}
    return LLMConfig.model_validate(small | {"llm": base | sizes | (llm or {})} | options)


def changed_adapter(folder: Path, name: str) -> LLMAdapter:
    """Return an adapter whose policy differs from its reference model."""
    family, options = KINDS[name]
    return change_policy(LLMAdapter(config(folder, family, **options), torch.device("cpu")))


def change_policy(adapter: LLMAdapter) -> LLMAdapter:
    with torch.no_grad():
        for p in adapter.policy.network.parameters():
            if p.requires_grad:
                p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    return adapter


def all_logprobs(adapter: LLMAdapter, tokens: Tensor, reference: bool) -> Tensor:
    """Return the log-probs [N, T, V] of all tokens at all columns, from one forward pass."""
    network, lora = adapter.reference if reference else (adapter.policy.network, POLICY)
    with torch.no_grad():
        logits = network.logits(network.trunk(tokens, lora).flatten(0, 1), lora)
    return (logits / adapter.config.llm.temperature).log_softmax(-1).view(*tokens.shape, -1)


EACH_KIND = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.exhaustive if name in SIMILAR else ()) for name in KINDS]
)


@EACH_KIND
def test_alternatives_equal_topk(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(policy_module.CHUNK, "cpu", 2000)  # about 7 steps per chunk
    adapter = changed_adapter(folder, name)
    rollout = adapter.collect()
    mask, tolerance = rollout.mask, 2e-2 if "bf16" in name else 1e-5
    for reference in (False, True):
        actions, logprobs, taken = alternatives(adapter, rollout, reference)
        assert actions.shape == logprobs.shape == (*mask.shape, ALTERNATIVES)
        assert not (actions.any(-1) | logprobs.any(-1))[~mask].any()
        assert isinstance(rollout.obs, Tensor)
        expected = all_logprobs(adapter, rollout.obs, reference)
        torch.testing.assert_close(logprobs[mask], expected.topk(ALTERNATIVES).values[mask], atol=tolerance, rtol=0)
        torch.testing.assert_close(logprobs[mask], expected.gather(-1, actions)[mask], atol=tolerance, rtol=0)
        own = expected.gather(-1, rollout.actions.clamp(min=0)[..., None]).squeeze(-1)
        torch.testing.assert_close(taken, torch.where(mask, own, 0), atol=tolerance, rtol=0)
        assert len({*map(tuple, actions[mask].sort(-1).values.tolist())}) > 10
    assert all(p.requires_grad for p in adapter.policy.parameters()) == (not adapter.policy.network.has_lora)


def test_alternatives_of_a_small_vocabulary(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("envs.llm.explain.ALTERNATIVES", 1000)
    adapter = changed_adapter(folder, "llama")
    rollout = adapter.collect()
    _, logprobs, _ = alternatives(adapter, rollout, reference=False)
    assert logprobs.shape[-1] == 260
    torch.testing.assert_close(logprobs[rollout.mask].exp().sum(-1), torch.ones(int(rollout.mask.sum())))


def stored_iteration(folder: Path, name: str) -> StoredIteration:
    family, options = KINDS[name]
    result = train(config(folder, family, **options), folder / "runs", name)
    return samples.read(Run(result.path), 2)


@EACH_KIND
def test_stored_alternatives_agree_with_logprobs(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the alternatives include all tokens, the log-prob of the chosen one equals the step's own."""
    monkeypatch.setattr("envs.llm.explain.ALTERNATIVES", 1000)
    stored = stored_iteration(folder, name)
    mask, chosen = stored.columns["mask"], stored.columns["token"]
    assert stored.alternatives.keys() == {"old", "new", "ref"}
    for policy, (actions, logprobs) in stored.alternatives.items():
        found = (actions == chosen[..., None]) & mask[..., None]
        assert found.sum() == mask.sum()
        expected = np.broadcast_to(stored.columns[f"logprob_{policy}"][..., None], found.shape)
        np.testing.assert_allclose(logprobs[found], expected[found], atol=1e-5, rtol=0)
        assert {*actions[mask].flat} <= stored.vocabulary.keys()
    old, new = (stored.alternatives[policy].logprobs[mask] for policy in ("old", "new"))
    assert np.abs(old - new).max() > 1e-2


def test_action_texts_are_those_of_tokens(folder: Path) -> None:
    adapter = LLMAdapter(config(folder, "llama"), torch.device("cpu"))
    ids = adapter.tokenizer("a 1<eos>")["input_ids"]
    assert list(action_texts(adapter, ids).values()) == ["a", " ", "1", "<eos>"]


def recipe_options(name: str) -> dict[str, Any]:
    """Return the options of a recipe, without those that require a reward model or pretraining texts."""
    recipe = load_preset("llm", recipe=name).model_dump()
    own = {option: value for option, value in recipe["llm"].items() if not option.startswith("ptx_")}
    return {"llm": own | {"critic_init": "policy"}, "ppo": recipe["ppo"] | {"minibatches": 2}}


def reward_options() -> Iterator[tuple[str, dict[str, Any]]]:
    for name in recipe_files():
        yield name, recipe_options(name)
    limits = {"score_clip": 1.2, "missing_eos_penalty": 0.7, "score_normalize": "running"}
    for kl, baseline in product(("k1", "abs", "k2", "k3", "full"), ("critic", "rloo", "grpo")):
        group = {"baseline": baseline, "group_size": 4 if baseline != "critic" else 1}
        yield f"{kl}-{baseline}", {"llm": {"kl": kl} | group | limits, "ppo": {} if baseline == "critic" else FREE}
    yield "whitened", {"llm": {"whiten_rewards": True} | limits}
    yield "whitened-plain", {"llm": {"whiten_rewards": True, "kl": "k3"}}


REWARDS = dict(reward_options())
COMBINED = [f"{kl}-{baseline}" for kl, baseline in product(("abs", "k2", "k3", "full"), ("rloo", "grpo"))]
COMBINED += [name for name in recipe_files() if name not in ("oai-2019", "trian-ppo")]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.exhaustive if name in COMBINED else ()) for name in REWARDS]
)
def test_rewards_follow_from_the_columns(folder: Path, name: str) -> None:
    """The columns and the KL coefficient suffice to recompute rewards and baselines in numpy."""
    options = REWARDS[name]
    given = {"kl_coef": 0.2} if name not in recipe_files() else {}
    own = {"prompts": str(folder / "prompts.jsonl"), "model": str(folder / "llama"), "reward": f"{__name__}:vowels",
           "max_new_tokens": 8, "rollout_batch": 8}  # fmt: skip
    changed = LLMConfig.model_validate({"threads": 1} | options | {"llm": options["llm"] | own | given})
    adapter = change_policy(LLMAdapter(changed, torch.device("cpu")))
    rollout = adapter.collect()
    llm, columns = adapter.config.llm, explain(adapter, rollout)
    mask, ends = rollout.mask.numpy(), (np.arange(8), formulas.last_steps(rollout.mask.numpy()))
    scores, normalized, used = (columns[x][ends] for x in ("score", "score_normalized", "score_used"))
    elsewhere = np.arange(mask.shape[1]) != ends[1][:, None]
    assert not any(columns[x][elsewhere].any() for x in ("score", "score_normalized", "score_used"))
    assert (normalized == scores).all() == (llm.score_normalize == "none")
    penalties = formulas.clip_scores(normalized, llm.score_clip) - used
    ended = np.isin(columns["token"][ends], adapter.end_tokens)
    np.testing.assert_allclose(penalties, np.where(ended, 0, llm.missing_eos_penalty), atol=1e-12)
    pair = rollout.logprobs.numpy(), columns["logprob_ref"]
    kl = formulas.kl_estimate(llm.kl, *pair, columns["kl_full"])
    np.testing.assert_allclose(columns["kl"][mask], kl[mask], rtol=1e-5, atol=1e-5)
    rewards = formulas.token_rewards(used, kl, rollout.metrics["ref/kl_coef"], mask)
    if llm.whiten_rewards:
        rewards = formulas.whiten(rewards, mask)
    if llm.baseline != "critic":
        returns, baselines = formulas.group_baselines(
            rewards.sum(1), llm.group_size, llm.baseline, np.asarray(mask.any(1))
        )
        np.testing.assert_allclose(rollout.values.numpy(), np.where(mask, baselines[:, None], 0), rtol=1e-5, atol=1e-5)
        rewards = formulas.token_rewards(returns, np.zeros_like(rewards), 0.0, mask)
    np.testing.assert_allclose(rollout.rewards.numpy(), rewards, rtol=1e-5, atol=1e-5)
