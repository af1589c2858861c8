"""Tests of the language-model adapter: the contract of every adapter, and invariants of language models."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from envs.llm.adapter import LLMAdapter
from envs.llm.options import LLMConfig
from envs.llm.policy import CHUNK
from ppo_unified.config.schema import PPO, Optim
from ppo_unified.engine.ppo import Iteration, backward, make_batch, make_learner, train
from ppo_unified.errors import UsageError
from ppo_unified.testing import check_adapter
from tests.models import save_model

CPU = torch.device("cpu")
PROMPTS = ["1+2=", "a", "what is longer than the others?", "12", "xy", "7*8 is"]


def vowels(prompts: list[str], responses: list[str], **columns: Any) -> list[float]:
    """A reward that has different scores for different responses of an untrained model."""
    return [sum(character in "aeiou" for character in text) + 0.1 * len(text) for text in responses]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models")
    (path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": p}) + "\n" for p in PROMPTS), encoding="utf-8")
    save_model(path / "lm")
    save_model(path / "other", seed=1)
    return path


def make_config(folder: Path, llm: dict[str, Any] | None = None, **tables: Any) -> LLMConfig:
    given = {"model": str(folder / "lm"), "prompts": str(folder / "prompts.jsonl"), "reward": f"{__name__}:vowels"}
    sizes = {"max_new_tokens": 12, "rollout_batch": 6, "kl_coef": 0.1}
    return LLMConfig.model_validate({"llm": given | sizes | (llm or {}), "total_steps": 10**6, "threads": 1} | tables)


CRITIC_FREE = {"gamma": 1.0, "lam": 1.0, "value_coef": 0.0, "normalize_advantages": "none"}
KINDS: dict[str, dict[str, Any]] = {
    "independent critic": {},
    "shared critic": {"llm": {"critic": "shared"}},
    "critic from a path": {"llm": {"critic_init": "other"}},
    "LoRA, policy and critic on one base": {"llm": {"lora_rank": 2}},
    "LoRA, shared critic": {"llm": {"lora_rank": 2, "critic": "shared"}},
    "LoRA, reference is a copy": {"llm": {"lora_rank": 4, "reference": "copy", "lora_targets": ["v_proj", "lm_head"]}},
    "LoRA, critic from a path": {"llm": {"lora_rank": 2, "critic_init": "other"}},
    "high temperature": {"llm": {"temperature": 1.7}},
    "full KL, whitened rewards": {"llm": {"kl": "full", "whiten_rewards": True}},
    "normalized by the reference": {"llm": {"score_normalize": "reference", "score_clip": 1.0}},
    "recomputed activations": {"llm": {"gradient_checkpointing": True}},
    "recomputed activations, LoRA": {"llm": {"gradient_checkpointing": True, "lora_rank": 2}},
}
SIMILAR = {  # the other kinds contain all their mechanisms
    "critic from a path",
    "LoRA, shared critic",
    "high temperature",
    "full KL, whitened rewards",
    "recomputed activations",
}
UNIQUE_IN_UPDATES = {
    "LoRA, reference is a copy",
    "LoRA, critic from a path",
    "normalized by the reference",
    "recomputed activations, LoRA",
}
GROUPS = {
    "rloo": {"llm": {"baseline": "rloo", "group_size": 3}, "ppo": CRITIC_FREE},
    "grpo": {"llm": {"baseline": "grpo", "group_size": 2}, "ppo": CRITIC_FREE},
}


def mark(kind: str, similar: set[str] = SIMILAR) -> Any:
    """Leave a kind out of `make test` if it is similar to others."""
    return pytest.param(kind, marks=pytest.mark.exhaustive if kind in similar else ())


def make_adapter(folder: Path, kind: str, **tables: Any) -> LLMAdapter:
    options = (KINDS | GROUPS)[kind]
    llm = dict(options.get("llm", {}))
    if "critic_init" in llm:
        llm["critic_init"] = str(folder / llm["critic_init"])
    ppo = dict(options.get("ppo", {})) | tables.pop("ppo", {})
    return LLMAdapter(make_config(folder, llm, ppo=ppo, **tables), CPU)


def randomize_heads(adapter: LLMAdapter) -> LLMAdapter:
    """Randomize critic heads and LoRA weights, which start at zero and would hide errors."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in adapter.policy.named_parameters():
            if "head" in name or "lora_B" in name:
                parameter.normal_(std=0.1, generator=generator)
    return adapter


@pytest.mark.parametrize("kind", [mark(kind, SIMILAR | UNIQUE_IN_UPDATES) for kind in KINDS])
def test_adapter_satisfies_the_contract(folder: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("envs.llm.adapter.CALIBRATION", 24)  # check_adapter creates several adapters
    check_adapter(lambda: randomize_heads(make_adapter(folder, kind)), tolerance=2e-5)


def test_padding_does_not_change_logprobs(folder: Path) -> None:
    """The log-probs equal those of a forward pass over each row without padding, at the run's temperature."""
    adapter = make_adapter(folder, "high temperature")
    rollout = adapter.collect()
    model, temperature = adapter.policy.network.model, adapter.config.llm.temperature
    assert isinstance(rollout.obs, Tensor)
    for row, mask in enumerate(rollout.mask):
        states = rollout.obs[row, : int(mask.nonzero().max()) + 1]
        with torch.no_grad():
            logprobs = (model(states[None]).logits[0] / temperature).log_softmax(-1)
        expected = logprobs[mask[: len(states)]].gather(1, rollout.actions[row, mask][:, None]).squeeze(1)
        torch.testing.assert_close(rollout.logprobs[row, mask], expected, atol=1e-5, rtol=0)


def test_greedy_responses_match_generate(folder: Path) -> None:
    adapter = make_adapter(folder, "independent critic")
    model, prompts = adapter.policy.network.model, adapter.prompts.tokens
    responses = adapter.respond(prompts, None)
    assert len({len(p) for p in prompts}) > 3
    for row, prompt in enumerate(prompts):
        expected = model.generate(
            torch.tensor([prompt]), max_new_tokens=12, do_sample=False, eos_token_id=257, pad_token_id=258
        )
        assert responses.tokens[row, : responses.lengths[row]].tolist() == expected[0].tolist()


def test_response_ends_at_eos_or_length_limit(folder: Path) -> None:
    adapter = make_adapter(folder, "independent critic", seed=4)
    adapter.end_tokens = list(range(100, 130))  # enough end tokens that some responses end early
    responses = adapter.respond([adapter.prompts.tokens[i % 6] for i in range(40)], adapter.generator)
    sizes = (responses.lengths - responses.prompt_lengths).tolist()
    assert {True, False} == set(responses.ended.tolist())
    assert len(set(sizes)) > 3
    for row, size in enumerate(sizes):
        ids, ended = responses.response(row), bool(responses.ended[row])
        assert len(ids) == size == int(responses.mask()[row].sum())
        assert ended == (ids[-1] in adapter.end_tokens)
        assert not set(ids[:-1]) & set(adapter.end_tokens)
        assert ended or size == 12


def test_pad_token_may_equal_eos(tmp_path: Path, folder: Path) -> None:
    shutil.copytree(folder / "lm", tmp_path / "lm")
    config = tmp_path / "lm" / "config.json"
    config.write_text(
        json.dumps(json.loads(config.read_text(encoding="utf-8")) | {"pad_token_id": 257}), encoding="utf-8"
    )
    first, second = (
        LLMAdapter(make_config(folder, {"model": str(path)}), CPU).collect()
        for path in (folder / "lm", tmp_path / "lm")
    )
    torch.testing.assert_close(first.logprobs, second.logprobs)
    assert torch.equal(first.mask, second.mask)


@pytest.mark.parametrize("kind", [mark(kind) for kind in (*KINDS, *GROUPS)])
def test_first_ratio_is_one_and_all_updates_run(folder: Path, kind: str) -> None:
    adapter = randomize_heads(make_adapter(folder, kind))
    iteration = next(iterations(adapter, epochs=2, minibatches=3))
    assert iteration.metrics["invariant/first_ratio_error"] < 1e-5
    assert iteration.metrics["optim/steps"] == 6


def iterations(adapter: LLMAdapter, **ppo: Any) -> Any:
    options, optim = adapter.config.ppo.model_copy(update=ppo), Optim(lr=1e-4)
    return train(adapter, make_learner(adapter.policy, options, optim, total_steps=10**6))


@pytest.mark.parametrize("loss_mean", ["token", "sequence"])
@pytest.mark.parametrize("kind", ["independent critic", "recomputed activations, LoRA"])
def test_gradient_is_invariant_to_microbatches_and_padding(folder: Path, kind: str, loss_mean: str) -> None:
    adapter = randomize_heads(make_adapter(folder, kind))
    ppo = adapter.config.ppo.model_copy(update={"loss_mean": loss_mean})
    rollout = adapter.collect()
    perturb_weights(adapter)
    expected = gradient(adapter, rollout, ppo)
    for columns in (1, 40, 64):
        found = gradient(adapter, rollout, ppo.model_copy(update={"microbatch_columns": columns}))
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-4)


def perturb_weights(adapter: LLMAdapter) -> None:
    with torch.no_grad():
        for parameter in adapter.policy.parameters():
            if parameter.requires_grad:
                parameter.add_(0.01 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)))


def gradient(adapter: LLMAdapter, rollout: Any, ppo: PPO) -> Tensor:
    backward(make_learner(adapter.policy, ppo, Optim()), make_batch(rollout, ppo), critic_only=False)
    gradients = [p.grad for p in adapter.policy.parameters() if p.grad is not None]
    return torch.cat([g.flatten() for g in gradients])


def test_recomputed_logits_give_the_same_gradient(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = randomize_heads(make_adapter(folder, "shared critic"))
    rollout, ppo = adapter.collect(), adapter.config.ppo
    expected = gradient(adapter, rollout, ppo)
    monkeypatch.setitem(CHUNK, "cpu", 3 * 260)  # the logits of three steps per chunk
    torch.testing.assert_close(gradient(adapter, rollout, ppo), expected, atol=1e-6, rtol=1e-4)


def test_restored_adapter_equals_uninterrupted_one(folder: Path) -> None:
    def run_iterations(adapter: LLMAdapter, count: int) -> list[Iteration]:
        running = iterations(adapter, epochs=1, minibatches=2)
        return [next(running) for _ in range(count)]

    original = make_adapter(folder, "shared critic")
    run_iterations(original, 2)
    saved = original.policy.state_dict(), original.state_dict()
    expected = original.collect()
    other = make_adapter(folder, "shared critic", seed=1)
    other.policy.load_state_dict(saved[0])
    other.load_state_dict(saved[1])
    again = other.collect()
    assert torch.equal(again.actions, expected.actions)
    assert torch.equal(again.rewards, expected.rewards)


def test_changed_base_model_is_detected(folder: Path) -> None:
    for llm in ({}, {"lora_rank": 2}):
        first = LLMAdapter(make_config(folder, llm), CPU)
        other = LLMAdapter(make_config(folder, llm | {"model": str(folder / "other")}), CPU)
        first.load_state_dict(first.state_dict())
        with pytest.raises(UsageError, match="its weights have changed since the run started"):
            other.load_state_dict(first.state_dict())


@pytest.mark.parametrize("kind", ["independent critic", "LoRA, policy and critic on one base"])
def test_training_changes_policy_but_not_reference(folder: Path, kind: str) -> None:
    adapter = make_adapter(folder, kind)
    running = iterations(adapter, epochs=2, minibatches=2)
    first, *rest = [next(running).metrics for _ in range(4)]
    assert first["ref/kl_full"] == pytest.approx(0.0, abs=1e-6)
    assert first["ref/kl"] == pytest.approx(0.0, abs=1e-5)
    assert rest[-1]["ref/kl_full"] > 1e-4
    assert all(metrics["ref/kl_full"] >= 0 for metrics in rest)


def test_bfloat16_ratio_stays_within_tolerance(folder: Path) -> None:
    for llm in ({}, {"lora_rank": 2}):
        adapter = LLMAdapter(make_config(folder, llm | {"dtype": "bfloat16", "max_new_tokens": 20}), CPU)
        metrics = next(iterations(adapter, epochs=1, minibatches=3)).metrics
        assert metrics["invariant/first_ratio_error"] < adapter.config.ratio_tolerance
        assert all(p.dtype is torch.float32 for p in adapter.policy.parameters() if p.requires_grad)


DROPOUTS = {"gpt2": ("resid_pdrop", "embd_pdrop", "attn_pdrop"), "opt": ("dropout", "attention_dropout")}


@pytest.mark.parametrize("family", DROPOUTS)
@pytest.mark.parametrize("recomputed", [False, True])
def test_dropout_is_always_disabled(tmp_path: Path, folder: Path, family: str, recomputed: bool) -> None:
    dropouts: dict[str, Any] = dict.fromkeys(DROPOUTS[family], 0.5)
    save_model(tmp_path / "lm", family, **dropouts)
    llm = {"model": str(tmp_path / "lm"), "gradient_checkpointing": recomputed}
    adapter = LLMAdapter(make_config(folder, llm), CPU)
    assert next(iterations(adapter, epochs=1, minibatches=2)).metrics["invariant/first_ratio_error"] < 1e-5


@pytest.mark.parametrize("kind", ["independent critic", "LoRA, policy and critic on one base"])
def test_recomputed_activations_give_the_same_gradient(folder: Path, kind: str) -> None:
    plain = randomize_heads(make_adapter(folder, kind))
    llm = KINDS[kind].get("llm", {}) | {"gradient_checkpointing": True}
    again = randomize_heads(LLMAdapter(make_config(folder, llm), CPU))
    rollout = plain.collect()
    for adapter in (plain, again):
        perturb_weights(adapter)
    torch.testing.assert_close(
        gradient(again, rollout, again.config.ppo), gradient(plain, rollout, plain.config.ppo), atol=1e-6, rtol=1e-4
    )


def test_lora_checkpoint_excludes_base_weights(tmp_path: Path, folder: Path) -> None:
    save_model(tmp_path / "lm", tie_word_embeddings=True)
    policy = LLMAdapter(make_config(folder, {"model": str(tmp_path / "lm"), "lora_rank": 2}), CPU).policy
    assert {name for name in policy.state_dict() if "lora_" not in name} == {"critic.head.weight", "critic.head.bias"}


def test_initial_values_are_zero(folder: Path) -> None:
    for kind in ("independent critic", "shared critic", "LoRA, policy and critic on one base"):
        assert not make_adapter(folder, kind).collect().values.any()


def test_pretraining_loss_is_the_mean_over_texts(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("one short text\n", encoding="utf-8")
    llm = {"ptx_data": str(tmp_path / "texts.txt"), "ptx_coef": 3.0, "temperature": 2.0, "ptx_batch": 2}
    adapter = LLMAdapter(make_config(folder, llm), CPU)
    extra = adapter.extra_loss(torch.Generator().manual_seed(0))
    assert extra is not None
    tokens = torch.tensor([[*adapter.tokenizer("one short text")["input_ids"], 257]])
    with torch.no_grad():
        expected = adapter.policy.network.model(tokens, labels=tokens).loss
    torch.testing.assert_close(extra[0].detach(), 3 * expected)
    assert extra[1]["loss/ptx"] == pytest.approx(float(expected), rel=1e-5)


def test_pretraining_loss_is_invariant_to_microbatches(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("short\na somewhat longer one\nmiddling text\n", encoding="utf-8")
    found = []
    for columns in (1, 30, 10_000):
        llm = {"ptx_data": str(tmp_path / "texts.txt"), "ptx_coef": 1.0, "ptx_batch": 6}
        adapter = LLMAdapter(make_config(folder, llm, ppo={"microbatch_columns": columns}), CPU)
        extra = adapter.extra_loss(torch.Generator().manual_seed(0))
        assert extra is not None
        extra[0].backward()
        found.append((extra[0].detach(), [p.grad for p in adapter.policy.parameters() if p.grad is not None]))
    for loss, gradients in found[:2]:
        torch.testing.assert_close(loss, found[2][0])
        torch.testing.assert_close(gradients, found[2][1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["independent critic", "shared critic", "LoRA, critic from a path",
                                  "LoRA, policy and critic on one base"])  # fmt: skip
def test_critic_warmup_leaves_the_policy_unchanged(folder: Path, kind: str) -> None:
    adapter = make_adapter(folder, kind)
    critic = {id(p) for p in adapter.policy.critic_parameters()}
    before = [(p, p.detach().clone()) for p in adapter.policy.parameters() if p.requires_grad]
    next(iterations(adapter, epochs=1, minibatches=2, critic_warmup=1))
    moved = {id(p) for p, old in before if not torch.equal(p, old)}
    assert moved
    assert moved <= critic


def test_update_switches_lora_twice_per_microbatch(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Recomputed layers need the LoRA weights of their own forward pass, but not one switch each."""
    adapter = LLMAdapter(make_config(folder, {"gradient_checkpointing": True, "lora_rank": 2}), CPU)
    rollout, activate, active = adapter.collect(), adapter.policy.network._activate, list[str | None]()

    def record(lora: str | None) -> None:
        active.append(lora)
        activate(lora)

    monkeypatch.setattr(adapter.policy.network, "_activate", record)
    gradient(adapter, rollout, adapter.config.ppo)
    assert active == ["policy", "critic", "policy"]  # the first switch is from the reference, with which collect ends
