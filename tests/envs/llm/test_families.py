"""Tests of model families: supported models are trained with correct log-probs, and others are rejected."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from envs.llm.adapter import LLMAdapter
from envs.llm.families import check_policy
from envs.llm.generate import generate
from envs.llm.model import NO_LIMIT, Network, config_context_length
from envs.llm.options import LLMConfig
from envs.llm.rewards.functions import load_reward
from ppo_unified import run as train
from ppo_unified.cli.main import main
from ppo_unified.errors import UsageError
from ppo_unified.runs.folder import Run
from ppo_unified.training import session
from tests.models import FAMILIES, LONGROPE, OTHERS, SIZES, VOCABULARY, make_causal_lm, make_tokenizer, save_model

PROMPTS = [[(29 * row + 7 * i) % 250 for i in range(1 + 5 * row % 17)] for row in range(16)]
WRONG = ("openai-gpt", "bert", "modernbert-decoder", "moshi", "cpmant")
USUAL = ("opt", "gpt_neox", "bloom", "granite", "cohere", "opt-projected")  # others are exhaustive
# name -> (family, options): OPT-350m also projects the last hidden state to another size
SUPPORTED: dict[str, tuple[str, dict[str, Any]]] = {
    "opt-projected": ("opt", {"word_embed_proj_dim": 16, "do_layer_norm_before": False}),
    **{family: (family, {}) for family in [*FAMILIES, *OTHERS] if family not in WRONG},
}
EXPERTS = SIZES | {"moe_intermediate_size": 16, "num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2}
LAYERS = {"vocab_size": VOCABULARY, "num_hidden_layers": 2}
HEAD, CACHE = "its head reads 'router_logits'", "its cache does not contain only keys and values"
NO_TYPE = "transformers has no causal language model of this type"
PARTS = "it combines a language model with other parts"
# family -> (options, reason), detected from config.json
REJECTED: dict[str, tuple[dict[str, Any], str]] = {
    "mixtral": (EXPERTS, HEAD),
    "qwen2_moe": (EXPERTS, HEAD),
    "qwen3_moe": (EXPERTS, HEAD),
    "olmoe": (EXPERTS, HEAD),
    "gpt_oss": (EXPERTS, HEAD),
    "mamba": (LAYERS, CACHE),
    "falcon_mamba": (LAYERS, CACHE),
    "recurrent_gemma": (SIZES | {"num_hidden_layers": 3}, CACHE),
    "qwen3_next": (EXPERTS | {"layer_types": ["linear_attention", "full_attention"]}, CACHE),
    "lfm2": (SIZES | {"layer_types": ["conv", "full_attention"]}, CACHE),
    "falcon_h1": (SIZES, CACHE),
    "jamba": (SIZES, CACHE),
    "bamba": ({}, CACHE),
    "mamba2": ({}, CACHE),
    "zamba2": ({}, CACHE),
    "rwkv": ({"hidden_size": 32, "num_hidden_layers": 2, "attention_hidden_size": 32}, "it has a recurrent state"),
    "gemma3": ({}, PARTS),
    "llama4": ({}, PARTS),
    "phi4_multimodal": ({}, PARTS),
    "qwen2_vl": ({}, NO_TYPE),
    "llava": ({}, NO_TYPE),
    "mistral3": ({}, NO_TYPE),
    "t5": ({"num_layers": 2}, NO_TYPE),
    "bart": ({}, "it is an encoder-decoder model"),
}


def table(names: Any, usual: Any) -> list[Any]:
    return [pytest.param(name, marks=[] if name in usual else pytest.mark.exhaustive) for name in names]


def run_options(folder: Path, base: Path, **llm: Any) -> dict[str, Any]:
    lines = [json.dumps({"prompt": "ab" * length}) for length in range(1, 9)]
    (folder / "prompts.jsonl").write_text("\n".join(lines), encoding="utf-8")
    sizes = {"max_new_tokens": 12, "rollout_batch": 8}
    given = {"model": str(base), "prompts": str(folder / "prompts.jsonl"), "reward": "regex:[a-p]"}
    return {"total_steps": 0, "total_iterations": 2, "threads": 1, "eval": {"episodes": 2}} | {
        "llm": given | sizes | llm,
        "optim": {"lr": 1e-3},
    }


@pytest.mark.parametrize("name", table(SUPPORTED, USUAL))
def test_supported_family_trains_with_correct_logprobs(tmp_path: Path, name: str) -> None:
    """After training, the log-probs equal those of the whole model, which runs on one row without a cache."""
    family, changes = SUPPORTED[name]
    model = save_model(tmp_path / "lm", family, **changes)
    config = LLMConfig.model_validate(run_options(tmp_path, model))
    result = train(config, tmp_path / "runs", "a")
    assert result.state == "finished"
    adapter, _ = session.load_adapter(Run(result.path), config, "latest")
    assert isinstance(adapter, LLMAdapter)
    network = adapter.policy.network
    with closing(adapter), torch.no_grad():
        unending = generate(network, PROMPTS, 16, [])
        ends = [unending.response(row)[3 * row] for row in range(5)]
        responses = generate(network, PROMPTS, 16, ends)  # greedy
        sizes = (responses.lengths - responses.prompt_lengths).tolist()
        assert sizes.count(16) < 12  # the cache drops rows
        compared = adapter.compare(responses)
        mask = responses.mask()
        for row, length in enumerate(responses.lengths.tolist()):
            tokens = responses.tokens[row, :length]
            logits = network.model(input_ids=tokens[None], use_cache=False).logits[0, :-1].float()
            chosen, expected = tokens[1:, None], (logits / config.llm.temperature).log_softmax(-1)
            start = int(responses.prompt_lengths[row]) - 1
            best = logits.max(-1).values - logits.gather(1, chosen).squeeze(1)
            assert best[start:].max() < 1e-4  # each token is the most likely one
            found = compared.logprobs[row][mask[row]]
            torch.testing.assert_close(found, expected.gather(1, chosen)[start:, 0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "name", table(REJECTED, ("mixtral", "mamba", "gemma3", "phi4_multimodal", "t5", "bart", "rwkv"))
)
def test_unsupported_family_leaves_no_run_folder(tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str) -> None:
    options, reason = REJECTED[name]
    CONFIG_MAPPING[name](**options).save_pretrained(tmp_path / "lm")
    make_tokenizer().save_pretrained(tmp_path / "lm")
    assert_rejected(tmp_path, capfd, f"model of type '{name}' is not supported, because {reason}")


@pytest.mark.parametrize(
    ("family", "reason"),
    [
        ("bert", "its logits depend on later tokens"),
        ("openai-gpt", "its cache cannot be used"),
        ("modernbert-decoder", "its head cannot run separately"),
        ("moshi", "its logits with a cache differ from those without"),  # only if a row is longer than the window
    ],
)
def test_wrong_outputs_leave_no_run_folder(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], family: str, reason: str
) -> None:
    """These models can be loaded, and their configurations show nothing unusual."""
    save_model(tmp_path / "lm", family)
    assert_rejected(tmp_path, capfd, f"model of type '{family}' is not supported, because {reason}")


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
    options = run_options(folder, folder / "lm", **llm)["llm"]
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
