"""Tests of language models that consist of LoRA weights: they are merged into their base when they are loaded."""

from __future__ import annotations

import json
import shutil
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM

from envs.llm.adapter import LLMAdapter
from envs.llm.export import export
from envs.llm.model import load_causal_lm, load_config, load_trunk
from envs.llm.options import LLM, LLMConfig
from envs.llm.quiet import silence_peft
from envs.llm.trained_share import describe_untrained
from ppo_unified.cli.main import main
from ppo_unified.engine.ppo import make_learner, train
from ppo_unified.runs.folder import Run
from tests.envs.llm.test_families import assert_rejected
from tests.envs.llm.test_model_folders import save_lora
from tests.models import save_model

CPU = torch.device("cpu")
TOKENS = torch.arange(8)[None]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sft")
    save_lora(path / "lora", save_model(path / "lm"))
    prompts = "".join(json.dumps({"prompt": p}) + "\n" for p in ("a", "bc", "1+2=", "xyz"))
    (path / "prompts.jsonl").write_text(prompts, encoding="utf-8")
    return path


def make_config(folder: Path, **llm: Any) -> LLMConfig:
    own = {"model": str(folder / "lora"), "prompts": str(folder / "prompts.jsonl"), "reward": "regex:a"}
    sizes = {"max_new_tokens": 8, "rollout_batch": 4}
    small = {"total_steps": 0, "total_iterations": 2, "threads": 1, "ppo": {"epochs": 1, "minibatches": 2}}
    return LLMConfig.model_validate({"llm": own | sizes | llm} | small)


@torch.no_grad()
def logits_of(model: Any) -> torch.Tensor:
    logits: torch.Tensor = model(TOKENS).logits
    return logits


def lora_logits(folder: Path) -> torch.Tensor:
    """Return the logits that transformers and peft compute without merging."""
    with silence_peft():
        return logits_of(AutoModelForCausalLM.from_pretrained(folder / "lora"))


def change_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")


@pytest.mark.parametrize("llm", [{}, {"lora_rank": 2}, {"critic_init": "lora"}, {"reference_dtype": "bfloat16"}])
def test_lora_is_merged_into_policy_and_reference(
    folder: Path, llm: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_config(folder, **{k: str(folder / v) if v == "lora" else v for k, v in llm.items()})
    with closing(LLMAdapter(config, CPU)) as adapter:
        rollout = adapter.collect()
        torch.testing.assert_close(logits_of(adapter.policy.network.model), lora_logits(folder), rtol=1e-4, atol=1e-4)
        if "reference_dtype" not in llm:
            assert rollout.metrics["ref/kl_full"] == pytest.approx(0, abs=1e-5)
    base = logits_of(load_causal_lm(str(folder / "lm"), LLM(), CPU, torch.float32))
    assert (base - lora_logits(folder)).abs().max() > 0.1
    note = f"llm.model = {str(folder / 'lora')!r}: merged its LoRA weights into the base model {folder / 'lm'}\n"
    assert note in capsys.readouterr().err


def test_lora_folder_is_trained_resumed_played_and_exported(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The fingerprint of the reference, which resume compares, is that of the merged model."""
    monkeypatch.chdir(tmp_path)
    flags = ["--llm.model", str(folder / "lora"), "--llm.prompts", str(folder / "prompts.jsonl"), "--name", "a"]
    flags += ["--llm.reward", "regex:a", "--llm.max-new-tokens", "6", "--llm.rollout-batch", "4", "--threads", "1"]
    flags += ["--ppo.epochs", "1", "--ppo.minibatches", "2"]
    assert main(["train", "llm", *flags, "--total-steps", "0", "--total-iterations", "1", "--llm.lora-rank", "2"]) == 0
    assert main(["resume", "a", "--total-iterations", "2"]) == 0
    assert Run(Path("runs", "a")).read_status().iteration == 2
    assert main(["play", "a", "--episodes", "1"]) == 0
    assert main(["export", "a", "--to", "out"]) == 0
    assert capsys.readouterr()
    page = Path("out", "README.md").read_text(encoding="utf-8")
    assert (
        f"`{folder / 'lora'}` (LoRA weights merged into `{folder / 'lm'}`) with LoRA weights of rank 2 merged" in page
    )
    assert not Path("out", "adapter_config.json").exists()
    assert AutoModelForCausalLM.from_pretrained("out").config.num_hidden_layers == 2


def test_lora_run_on_a_lora_folder_exports_the_complete_model(folder: Path, tmp_path: Path) -> None:
    with closing(LLMAdapter(make_config(folder, lora_rank=2), CPU, notes=False)) as adapter:
        for name, parameter in adapter.policy.network.model.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter, std=0.1)
        about = {"run": "a", "kind": "llm", "step": 1, "score": None, "versions": {}}
        facts = export(adapter, tmp_path, about)
        adapter.policy.network.use_lora("policy")
        torch.testing.assert_close(
            logits_of(AutoModelForCausalLM.from_pretrained(tmp_path)),
            logits_of(adapter.policy.network.model),
            rtol=1e-4,
            atol=1e-4,
        )
    assert facts["weights"] == "merged"


@pytest.mark.parametrize("base", ["lm", "../lm"])
def test_base_is_found_beside_the_lora_folder(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base: str
) -> None:
    """A relative base is looked for in the LoRA folder, then in the current folder."""
    lora = Path(shutil.copytree(folder / "lora", tmp_path / "lora"))
    shutil.copytree(folder / "lm", lora / base)
    change_json(lora / "adapter_config.json", base_model_name_or_path=base)
    monkeypatch.chdir("/")
    model = load_causal_lm(str(lora), LLM(), CPU, torch.float32)
    torch.testing.assert_close(logits_of(model), lora_logits(folder), rtol=1e-4, atol=1e-4)


def test_tokenizer_may_come_from_the_base(folder: Path, tmp_path: Path) -> None:
    lora = Path(shutil.copytree(folder / "lora", tmp_path / "lora", ignore=shutil.ignore_patterns("*token*")))
    with closing(LLMAdapter(make_config(folder, model=str(lora)), CPU, notes=False)) as adapter:
        assert len(adapter.tokenizer) == 260


@pytest.mark.parametrize("family", ["gpt2", "qwen2"])
def test_shapes_of_lora_weights_are_checked_before_loading(tmp_path: Path, family: str) -> None:
    save_model(tmp_path / "lm", family)
    with silence_peft():
        model = get_peft_model(
            AutoModelForCausalLM.from_pretrained(tmp_path / "lm"), LoraConfig(target_modules="all-linear")
        )
        model.save_pretrained(str(tmp_path / "lora"))
    assert load_config(str(tmp_path / "lora"), merges_lora=True).model_type == family
    assert load_trunk(str(tmp_path / "lora"), "llm.critic_init", CPU, torch.float32)[1] is None


def wrong_lora(folder: Path, tmp_path: Path, kind: str) -> Path:
    lora = Path(shutil.copytree(folder / "lora", tmp_path / "lora"))
    config, weights = lora / "adapter_config.json", lora / "adapter_model.safetensors"
    match kind:
        case "no base":
            change_json(config, base_model_name_or_path=None)
        case "missing base":
            change_json(config, base_model_name_or_path=str(tmp_path / "gone"))
        case "other base":
            change_json(config, base_model_name_or_path=str(save_model(tmp_path / "wide", hidden_size=48)))
        case "fewer layers":
            change_json(config, base_model_name_or_path=str(save_model(tmp_path / "flat", num_hidden_layers=1)))
        case "other names":
            change_json(config, base_model_name_or_path=str(save_model(tmp_path / "gpt2", "gpt2")))
        case "base is LoRA":
            change_json(config, base_model_name_or_path=str(folder / "lora"))
        case "missing weights":
            tensors = load_file(weights)
            save_file(dict(sorted(tensors.items())[1:]), weights, metadata={"format": "pt"})
        case "no weights":
            weights.unlink()
        case "damaged":
            config.write_text("{", encoding="utf-8")
        case "task":
            change_json(config, task_type="SEQ_2_SEQ_LM")
        case "method":
            change_json(config, peft_type="IA3")
    return lora


WRONG = {
    "no base": "adapter_config.json names no base model; set base_model_name_or_path to its folder or hub id",
    "missing base": "no local folder or hub model has this name, or the hub cannot be reached",
    "other base": "the LoRA weights do not fit their base model",
    "fewer layers": "the LoRA weights do not fit their base model",
    "other names": "the LoRA weights do not fit their base model",
    "base is LoRA": "expected full weights, got only LoRA weights (adapter_config.json)",
    "missing weights": "the file has no such weights",
    "no weights": "cannot read LoRA weights",
    "damaged": "cannot read the LoRA configuration",
    "task": "expected LoRA weights of a causal language model, got LoRA weights of task_type 'SEQ_2_SEQ_LM'",
    "method": "expected LoRA weights of a causal language model, got IA3 weights",
}


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_lora_folders_start_no_run(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], kind: str
) -> None:
    assert_rejected(tmp_path, capfd, WRONG[kind], model=wrong_lora(folder, tmp_path, kind))


def test_lora_folder_cannot_be_quantized(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("envs.llm.checks.find_spec", lambda name: object())
    options = {"model": folder / "lora", "quantize": "4bit", "lora_rank": 2}
    assert_rejected(tmp_path, capfd, "LoRA weights cannot be merged into a quantized base", **options)


def test_parts_without_a_gradient_are_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All weights of an ordinary model are trained, so a run prints no note."""
    model = nn.ModuleDict({"text": nn.Linear(2, 2), "vision": nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))})
    model["text"].extra = nn.Parameter(torch.zeros(2))
    assert describe_untrained(model) is None
    model["text"](torch.ones(2)).sum().backward()
    assert (
        describe_untrained(model)
        == "28.57 % of the policy's weights got a gradient in the first update; no gradient: text.extra, vision"
    )
    with closing(LLMAdapter(make_config(folder, model=str(folder / "lm")), CPU)) as adapter:
        learner = make_learner(adapter.policy, adapter.config.ppo, adapter.config.optim, total_iterations=2)
        assert len(list(train(adapter, learner))) == 2
        assert adapter.untrained_note == ""
        adapter.policy.network.model.unused = nn.Linear(40, 40)
        adapter.untrained_note = None
        adapter.collect()
    assert (
        "% of the policy's weights got a gradient in the first update; no gradient: unused\n" in capsys.readouterr().err
    )
