"""Tests of model families: supported models are trained with correct log-probs, and others are rejected."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from envs.llm.families import check_policy
from envs.llm.initialization import check_init
from envs.llm.model import Network
from envs.llm.options import LLMConfig
from envs.llm.policy import TokenPolicy
from envs.llm.rewards.functions import load_reward
from envs.llm.sizes import count
from envs.llm.structure import NO_LIMIT, config_context_length
from ppo_unified import load_preset
from ppo_unified.cli.main import main
from ppo_unified.errors import UsageError
from tests.families import Rejected, check_training, save_small_model
from tests.models import FAMILIES, LONGROPE, OTHERS, SIZES, VOCABULARY, make_causal_lm, make_tokenizer, save_model
from tests.small_configs import small_config

WRONG = {  # type -> reason, which shows only when the model runs
    "bert": "its logits depend on later tokens",
    "reformer": "its gradient cannot be computed (AssertionError: If you want to train `ReformerModel`",
    "xmod": "the model cannot run (ValueError: Input language unknown.",
}
EXPERTS = SIZES | {"moe_intermediate_size": 16, "num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2}
TWO_LAYERS = {"num_hidden_layers": 2, "layer_types": None}  # of Gemma 3, whose default is a longer list of layer types
LAYERS = {"vocab_size": VOCABULARY, "num_hidden_layers": 2}


@pytest.mark.parametrize(
    ("family", "rank", "result"),
    [
        # exhaustive: other tests train llama models, in which two heads share a key
        pytest.param("llama", 0, "trained", id="dense", marks=pytest.mark.exhaustive),
        pytest.param("qwen3", 4, "trained", id="grouped queries", marks=pytest.mark.exhaustive),
        pytest.param("mixtral", 0, "trained", id="mixture of experts"),
        pytest.param("granitemoehybrid", 0, "trained", id="hybrid"),
        pytest.param("mamba", 4, "trained, prompts of equal length", id="state space"),
        pytest.param("gemma2", 0, "trained", id="sliding window"),
        pytest.param("gemma3", 4, "trained", id="multimodal text"),
    ],
)
def test_family_trains_like_transformers(tmp_path: Path, family: str, rank: int, result: str) -> None:
    """benchmarks/families.md contains the results of all other families."""
    changes = {"text_config": TWO_LAYERS} if family == "gemma3" else {}
    save_small_model(family, tmp_path / "lm", **changes)
    assert check_training(tmp_path / "lm", rank) == result
    network = Network(AutoModelForCausalLM.from_pretrained(tmp_path / "lm"))
    check_policy(network, "")
    assert network.uses_top_k == (family in ("mixtral", "granitemoehybrid"))


@pytest.mark.parametrize("family", ["bart", *WRONG])
def test_unsupported_family_leaves_no_run_folder(tmp_path: Path, family: str) -> None:
    reason = WRONG.get(family, "it is an encoder-decoder model")
    save_small_model(family, tmp_path / "lm")
    with pytest.raises(Rejected, match=re.escape(f"a model of type '{family}' is not supported, because {reason}")):
        check_training(tmp_path / "lm", 0)


def test_lora_that_cannot_be_loaded_again_is_rejected(tmp_path: Path) -> None:
    """transformers renames the shared experts of this type incorrectly."""
    save_small_model("laguna", tmp_path / "lm")
    with pytest.raises(Rejected, match=r"LoRA weights of model\.layers\.1\.mlp\.shared_experts\S+ could not be loaded"):
        check_training(tmp_path / "lm", 4)


def test_unknown_type_leaves_no_run_folder(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    AutoConfig.for_model("t5", num_layers=2).save_pretrained(tmp_path / "lm")
    make_tokenizer().save_pretrained(tmp_path / "lm")
    reason = "transformers has no causal language model of this type"
    assert_rejected(tmp_path, capfd, f"a model of type 't5' is not supported, because {reason}")


@pytest.mark.parametrize("family", ["qwen4_exp_text", "recurrent_gemma", "llama4_text", "modernbert-decoder"])
def test_decoder_suits_the_model(family: str) -> None:
    """Rows are not the first dimension of every cache, some models have none, and `base_model` can include the head."""
    torch.manual_seed(0)
    network = Network(AutoModelForCausalLM.from_config(small_config(family)).eval())
    check_policy(network, "llm.model = 'x'")
    assert network.decoding == ("uncached" if family == "recurrent_gemma" else "padded")


def test_error_while_running_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    network = Network(make_causal_lm())

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("sizes differ")

    monkeypatch.setattr(network.model, "forward", fail)
    with pytest.raises(UsageError, match=r"because the model cannot run \(RuntimeError: sizes differ\); use another"):
        check_policy(network, "llm.model = 'x'")


@pytest.mark.parametrize("family", ["codegen", "cpmant"])
def test_probe_needs_no_pad_token_in_config(family: str) -> None:
    """The configurations of some types have no such attribute."""
    model = make_causal_lm(family)
    del model.config.pad_token_id
    if family == "codegen":
        check_policy(Network(model), "llm.model = 'x'")
    else:
        with pytest.raises(UsageError, match="its logits depend on later tokens"):
            check_policy(Network(model), "llm.model = 'x'")


def test_probe_keeps_the_sliding_window() -> None:
    model = make_causal_lm("mistral")
    check_policy(Network(model), "llm.model = 'x'")
    assert model.config.sliding_window == 8


@pytest.mark.parametrize(
    ("family", "options", "expected"),
    [
        ("llama", SIZES, 128),
        ("gpt2", FAMILIES["gpt2"], 128),
        ("mpt", OTHERS["mpt"], 128),
        ("phi3", LONGROPE, 16),
        ("bloom", OTHERS["bloom"], NO_LIMIT),
        ("xlnet", {}, NO_LIMIT),
    ],
)
def test_context_length_is_read_from_config(family: str, options: dict[str, Any], expected: int) -> None:
    assert config_context_length(CONFIG_MAPPING[family](**options)) == expected


def test_prompt_beyond_original_longrope_context_is_rejected(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A longer row would change the rotary factors of all rows in its batch. The longest prompt has 16 tokens."""
    save_model(tmp_path / "lm", "phi3", **LONGROPE)
    assert_rejected(tmp_path, capfd, "line 7: expected a prompt of at most 12 tokens", max_new_tokens=4)


def assert_rejected(folder: Path, capfd: pytest.CaptureFixture[str], message: str, **llm: Any) -> str:
    """Check that `train` prints one line that contains `message`, and leaves no run folder. Return the line."""
    lines = [json.dumps({"prompt": "ab" * length}) for length in range(1, 9)]
    (folder / "prompts.jsonl").write_text("\n".join(lines), encoding="utf-8")
    given = {"model": folder / "lm", "prompts": folder / "prompts.jsonl", "reward": "regex:[a-p]"}
    options = given | {"max_new_tokens": 12, "rollout_batch": 8} | llm
    flags = [word for key, value in options.items() for word in (f"--llm.{key.replace('_', '-')}", str(value))]
    capfd.readouterr()
    code = main(["train", "llm", "--runs", str(folder / "runs"), "--threads", "1", "--total-iterations", "1", *flags])
    lines = [line for line in capfd.readouterr().err.splitlines() if not line.startswith("preparing ")]
    assert code == 2
    assert len(lines) == 1, lines
    assert message in lines[0]
    assert not list((folder / "runs").glob("*"))
    return lines[0]


# reward models and critics


def save_classifier(folder: Path, family: str, options: dict[str, Any]) -> Path:
    """Save a reward model with random weights."""
    special = {"vocab_size": VOCABULARY, "bos_token_id": 256, "eos_token_id": 257, "pad_token_id": 258}
    config = CONFIG_MAPPING[family](**{"num_labels": 1} | special | options)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


BART = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2} | {
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
}
XLNET = {"d_model": 32, "n_layer": 2, "n_head": 2, "d_inner": 32}


@pytest.mark.parametrize("family", ["llama", "bert", "mixtral"])
def test_scores_of_supported_reward_models_match_transformers(tmp_path: Path, family: str) -> None:
    options = {"llama": SIZES, "bert": OTHERS["bert"], "mixtral": EXPERTS}[family]
    folder = save_classifier(tmp_path / "rm", family, options)
    texts = ["a", "bcdef", "ghi"]
    scores = load_reward(str(folder), "cpu")([""] * 3, texts)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = make_tokenizer()
    with torch.no_grad():
        alone = [float(model(torch.tensor([tokenizer(text)["input_ids"]])).logits[0, 0]) for text in texts]
    assert scores == pytest.approx(alone, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize(
    ("family", "options", "reason"),
    [
        ("mamba", LAYERS, "transformers has no sequence-classification model of this type"),
        ("bart", BART, "it is an encoder-decoder model"),
        ("xlnet", XLNET, "its score of a text depends on padding"),
        ("canine", OTHERS["bert"], "it has no vocabulary"),
    ],
)
def test_unsupported_reward_model_leaves_no_run_folder(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], family: str, options: dict[str, Any], reason: str
) -> None:
    save_model(tmp_path / "lm")
    if family in ("mamba", "canine"):
        CONFIG_MAPPING[family](**options).save_pretrained(tmp_path / "rm")
        make_tokenizer().save_pretrained(tmp_path / "rm")
    else:
        save_classifier(tmp_path / "rm", family, options)
    message = f"a reward model of type '{family}' is not supported, because {reason}"
    line = assert_rejected(tmp_path, capfd, message, reward=tmp_path / "rm")
    assert line.endswith("; use a decoder such as Llama or an encoder such as BERT")


def test_critic_that_sees_later_tokens_leaves_no_run_folder(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    save_model(tmp_path / "lm")
    critic = save_classifier(tmp_path / "rm", "bert", OTHERS["bert"])
    reason = "its hidden states depend on later tokens"
    message = f"a critic model of type 'bert' is not supported, because {reason}"
    line = assert_rejected(tmp_path, capfd, message, reward=critic, critic_init="reward")
    assert line.endswith("; use a decoder, such as Llama or Qwen3, or set llm.critic_init = 'policy'")


def test_probe_accepts_bfloat16(tmp_path: Path) -> None:
    check_policy(Network(make_causal_lm("gemma2").to(torch.bfloat16), bf16=True), "llm.model = 'x'")


def test_checkpoints_leave_out_image_encoders(tmp_path: Path) -> None:
    """Checkpoints of older versions contain these weights and can still be loaded."""
    model = AutoModelForCausalLM.from_config(small_config("gemma3", text_config=TWO_LAYERS))
    model.config.save_pretrained(tmp_path)
    config = load_preset("arithmetic", llm={"model": str(tmp_path)})
    source = load_preset("arithmetic", llm={"model": "another"})
    assert isinstance(config, LLMConfig)
    assert isinstance(source, LLMConfig)
    policy = TokenPolicy(Network(model), None, 1.0, False)
    older, state = nn.Module.state_dict(policy), policy.state_dict()
    encoder = {name for name in older if name.startswith("network.model.model.vision_tower.")}
    assert encoder
    assert older.keys() - encoder == state.keys()
    assert count(model).weights - count(model).trainable == sum(older[name].numel() for name in encoder)
    for weights in (state, older):
        changed = {name: x + 1 for name, x in weights.items()}
        policy.load_state_dict(changed)
        assert all(x.equal(changed[name]) for name, x in policy.state_dict().items())
        check_init(config, source, {name: tuple(x.shape) for name, x in weights.items()}, {})
    with pytest.raises(RuntimeError, match="unexpected weights"):
        policy.load_state_dict(state | {"network.other": torch.zeros(1)})
