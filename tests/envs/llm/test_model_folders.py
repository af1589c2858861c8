"""Tests of folders from which transformers or peft would silently load other weights than expected."""

from __future__ import annotations

import json
import re
import runpy
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from envs.llm.model import load_causal_lm
from envs.llm.options import LLM
from envs.llm.quiet import silence_peft
from tests.envs.llm.test_families import assert_rejected
from tests.models import make_causal_lm, make_tokenizer, save_model

ROOT = Path(__file__).parents[3]


def save_lora(folder: Path, base: Path, task: str = "CAUSAL_LM") -> Path:
    """Save LoRA weights that change the logits, with a tokenizer."""
    kind = AutoModelForCausalLM if task == "CAUSAL_LM" else AutoModelForSequenceClassification
    options = {} if task == "CAUSAL_LM" else {"num_labels": 1}
    lora = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type=task)
    with silence_peft():
        model = get_peft_model(kind.from_pretrained(base, **options), lora)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter)
    model.save_pretrained(str(folder))
    make_tokenizer().save_pretrained(folder)
    return folder


def save_mixed(folder: Path, base: Path, task: str = "CAUSAL_LM") -> Path:
    """Save full weights and LoRA weights in one folder."""
    save_lora(folder, base, task)
    shutil.copytree(base, folder, dirs_exist_ok=True)
    return folder


@pytest.mark.parametrize("option", ["model", "critic_init", "reward"])
@pytest.mark.parametrize("task", ["CAUSAL_LM", "SEQ_CLS"])
def test_full_weights_next_to_lora_are_rejected(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], option: str, task: str
) -> None:
    base = save_model(tmp_path / "lm")
    mixed = save_mixed(tmp_path / "mixed", base, task)
    message = (
        f"llm.{option} = {str(mixed)!r}: expected full weights or LoRA weights, got both (model.safetensors and "
        "adapter_config.json); move the files adapter_* to another folder or merge them into the full weights (see "
        "'Models with LoRA weights' in docs/llm.md)"
    )
    assert_rejected(tmp_path, capfd, message, **{option: mixed})


def test_lora_language_model_is_rejected_as_reward(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    lora = save_lora(tmp_path / "lora", save_model(tmp_path / "lm"))
    message = f"llm.reward = {str(lora)!r}: expected full weights, got only LoRA weights (adapter_config.json)"
    assert_rejected(tmp_path, capfd, message, reward=lora)


def test_lora_reward_model_is_rejected_as_policy(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    lora = save_lora(tmp_path / "lora", save_model(tmp_path / "lm"), "SEQ_CLS")
    assert_rejected(tmp_path, capfd, "expected a causal language model, got a reward model", model=lora)


def test_reward_model_is_rejected_as_policy(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """With tied embeddings, no weight of the language model is missing."""
    base = save_model(tmp_path / "lm", tie_word_embeddings=True)
    AutoModelForSequenceClassification.from_pretrained(base, num_labels=1).save_pretrained(base)
    assert_rejected(tmp_path, capfd, "got a reward model (LlamaForSequenceClassification)", model=base)


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (1, "expected the weights that config.json describes, but the files also contain model.layers.1."),
        (3, "expected a complete causal language model, got one without model.layers.2."),
    ],
)
@pytest.mark.parametrize("option", ["model", "critic_init"])
def test_weights_that_differ_from_config_are_rejected(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], option: str, layers: int, message: str
) -> None:
    save_model(tmp_path / "lm")
    wrong = save_model(tmp_path / "wrong")
    change_config(wrong, num_hidden_layers=layers, layer_types=None)
    assert_rejected(tmp_path, capfd, f"llm.{option} = {str(wrong)!r}: {message}", **{option: wrong})


@pytest.mark.parametrize(
    ("family", "names"),
    [
        ("gpt2", ["transformer.h.0.attn.masked_bias"]),
        ("gpt_neo", ["transformer.h.0.attn.attention.bias", "transformer.h.0.attn.attention.masked_bias"]),
        ("opt", ["model.decoder.version"]),
        ("llama", ["model.layers.0.self_attn.k_scale"]),
    ],
)
def test_constants_of_older_versions_are_ignored(tmp_path: Path, family: str, names: list[str]) -> None:
    folder = save_model(tmp_path / "lm", family)
    path = folder / "model.safetensors"
    save_file(load_file(path) | {name: torch.ones(1) for name in names}, path, metadata={"format": "pt"})
    model = load_causal_lm(str(folder), LLM(), torch.device("cpu"), torch.float32)
    expected = make_causal_lm(family).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())


def test_bias_that_config_does_not_describe_is_rejected(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The layer exists, so that transformers ignores the bias."""
    folder = save_model(tmp_path / "lm", attention_bias=True)
    change_config(folder, attention_bias=False)
    assert_rejected(tmp_path, capfd, "but the files also contain model.layers.0.self_attn.k_proj.bias", model=folder)


def test_missing_shard_is_rejected(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = save_model(tmp_path / "lm")
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    files = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    save_file({name: weights[name] for name in names[::2]}, folder / files[0], metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: files[number % 2] for number, name in enumerate(names)}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert_rejected(tmp_path, capfd, "cannot load a causal language model from this folder", model=folder)


@pytest.mark.parametrize("option", ["model", "critic_init"])
@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_quantized_weights_are_rejected(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], option: str, method: str
) -> None:
    save_model(tmp_path / "lm")
    folder = save_model(tmp_path / "quantized")
    change_config(folder, quantization_config={"quant_method": method, "bits": 4})
    message = f"expected unquantized weights, got weights quantized with {method}"
    assert_rejected(tmp_path, capfd, f"llm.{option} = {str(folder)!r}: {message}", **{option: folder})


def test_code_in_docs_merges_lora(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The merged folder has the logits of the base with LoRA, not those of the base alone."""
    page = (ROOT / "docs" / "llm.md").read_text(encoding="utf-8").split("### Models with LoRA weights")[1]
    code = re.findall(r"```python\n(.*?)```", page, re.S)[0]
    save_lora(tmp_path / "lora", save_model(tmp_path / "base-model"))
    (tmp_path / "merge.py").write_text(code, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    with silence_peft():
        runpy.run_path("merge.py")
    tokens = torch.arange(8)[None]
    with torch.no_grad():
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")(tokens).logits
        with silence_peft():
            expected = AutoModelForCausalLM.from_pretrained(tmp_path / "lora")(tokens).logits
        base = make_causal_lm()(tokens).logits
    torch.testing.assert_close(merged, expected, rtol=1e-4, atol=1e-4)
    assert (merged - base).abs().max() > 0.1
    assert not (tmp_path / "merged" / "adapter_config.json").exists()
