"""Tests of `reward-model`: a reward model trained on preference pairs scores the chosen responses higher."""

from __future__ import annotations

import json
import random
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    CanineConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    MambaConfig,
    PreTrainedTokenizerFast,
    XLNetConfig,
    XLNetForSequenceClassification,
)
from transformers.utils import logging

from envs.llm.data import Pair
from envs.llm.rewards.functions import load_reward
from ppo_unified.cli.main import main
from ppo_unified.errors import UsageError
from tests import fork_server

EOS = "<eos>"
CHINESE = [
    Pair("什么是回归分析", "一种统计方法", "一种方法"),
    Pair("什么是数据库", "一个有组织的数据集合", "用于存储数据"),
]


@pytest.fixture(autouse=True)
def _no_bars() -> None:
    logging.disable_progress_bar()


@pytest.fixture
def module() -> ModuleType:
    from envs.llm.rewards import train_reward_model

    return train_reward_model


def byte_tokenizer(pad: str | None = None, appends_eos: bool = False) -> Any:
    """Create a tokenizer with one id per byte and EOS; with `appends_eos`, it appends EOS to every text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.add_special_tokens([EOS])
    if appends_eos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"$A {EOS}", special_tokens=[(EOS, tokenizer.token_to_id(EOS))]
        )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=EOS, pad_token=pad)


def llama(words: int, **options: Any) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=words,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=128,
        **options,
    )


def save_model(folder: Path, model: Any, tokenizer: Any) -> Path:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A causal language model whose tokenizer and configuration have no pad token."""
    torch.manual_seed(0)
    tokenizer = byte_tokenizer()
    model = LlamaForCausalLM(llama(len(tokenizer)))
    return save_model(tmp_path_factory.mktemp("base"), model, tokenizer)


def preferences(count: int, seed: int = 0) -> list[Pair]:
    """Return pairs in which only the chosen response contains an exclamation mark."""
    draw = random.Random(seed)

    def random_text(mark: str) -> str:
        letters = [draw.choice("abcdefgh ") for _ in range(draw.randint(3, 9))]
        return "".join([*letters, mark, draw.choice("abcd")])

    return [Pair(f"q{index}: ", random_text("!"), random_text("")) for index in range(count)]


def write(path: Path, pairs: list[Pair], key: str = "prompt") -> Path:
    records = [{key: pair.prompt, "chosen": pair.chosen, "rejected": pair.rejected} for pair in pairs]
    path.write_text("\n".join(json.dumps(record, ensure_ascii=False) for record in records), encoding="utf-8")
    return path


def train(pairs: list[Pair], base: Path | str, out: Path, **options: Any) -> Any:
    """Return the outcome. TRL is imported here and in fixtures, because only one of several test processes needs it."""
    from envs.llm.rewards import train_reward_model

    settings = train_reward_model.Settings(model=str(base), lr=3e-3, batch=16)
    return train_reward_model.train(pairs, replace(settings, **options), out, lambda progress: None)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("rank", [0, pytest.param(8, marks=pytest.mark.exhaustive)])
def test_reward_model_learns_a_learnable_preference(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], rank: int
) -> None:
    """The command writes a complete model, into which LoRA weights are merged."""
    data, out = write(tmp_path / "pairs.jsonl", preferences(300)), tmp_path / "out"
    where = ["--model", str(base), "--data", str(data), "--out", str(out), "--device", "cpu"]
    how = ["--lr", "3e-3", "--epochs", "6", "--batch", "16", "--lora-rank", str(rank), "--json"]
    assert main(["reward-model", *where, *how]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["held_out"]
    assert (found["scored"], found["trained"], found["left_out"]) == (30, 270, 0)
    assert found["accuracy"] >= 0.95

    model, loading = AutoModelForSequenceClassification.from_pretrained(out, output_loading_info=True)
    assert not any(loading.values())
    assert model.config.num_labels == 1
    assert AutoTokenizer.from_pretrained(out)("ab")["input_ids"] == byte_tokenizer()("ab")["input_ids"]

    fresh = preferences(50, seed=1)
    prompts, chosen, rejected = ([pair[part] for pair in fresh] for part in range(3))
    reward = load_reward(str(out), torch.device("cpu"))
    margins = torch.tensor(reward(prompts, chosen)) - torch.tensor(reward(prompts, rejected))
    assert (margins > 0).float().mean() >= 0.95


def test_reward_model_command_prints_one_line_without_noise(base: Path, tmp_path: Path) -> None:
    data = write(tmp_path / "preference.json", CHINESE, key="question")  # JSON Lines named .json
    command = ["-m", "ppo_unified", "reward-model", "--device", "cpu", "--epochs", "2"]
    where = ["--model", str(base), "--data", str(data), "--out", str(tmp_path / "out")]
    process = fork_server.run([*command, *where])
    assert process.returncode == 0, process.stderr
    assert len(process.stdout.splitlines()) == 1
    assert "accuracy" in process.stdout
    assert "2 training pairs" in process.stdout
    *progress, note = process.stderr.splitlines()
    assert note == "there are too few pairs to hold out 10% of them; the accuracy is measured on the training pairs"
    assert all(re.fullmatch(r"step \d of 2 \| loss .* \| accuracy .*", line) for line in progress)  # on a slow machine


@pytest.mark.exhaustive
def test_reward_model_weights_depend_only_on_seed(base: Path, tmp_path: Path) -> None:
    pairs = preferences(20)
    for name, seed in (("one", 3), ("two", 3), ("three", 4)):
        train(pairs, base, tmp_path / name, seed=seed)
    one, two, three = (weights(tmp_path / name) for name in ("one", "two", "three"))
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert not torch.equal(one["score.weight"], three["score.weight"])


@pytest.mark.parametrize(
    ("pad", "appends_eos"),
    [
        (EOS, True),
        *(pytest.param(*case, marks=pytest.mark.exhaustive) for case in ((None, False), (None, True), (EOS, False))),
    ],
)
def test_padded_batch_is_scored_at_each_last_token(tmp_path: Path, pad: str | None, appends_eos: bool) -> None:
    """The scores are correct even if EOS is the pad token and ends every text, which transformers takes for padding."""
    tokenizer = byte_tokenizer(pad, appends_eos)
    torch.manual_seed(0)
    base = save_model(tmp_path / "base", LlamaForCausalLM(llama(len(tokenizer))), tokenizer)
    train(preferences(20), base, tmp_path / "out")

    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    texts = AutoTokenizer.from_pretrained(tmp_path / "out")(["a", "abc", "hello there"])["input_ids"]
    fill = model.config.pad_token_id
    assert fill not in {ids[-1] for ids in texts}
    longest = max(map(len, texts))
    padded = torch.tensor([ids + [fill] * (longest - len(ids)) for ids in texts])
    mask = torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids in texts])
    with torch.no_grad():
        together = model(input_ids=padded, attention_mask=mask).logits[:, 0]
        hidden = [model.base_model(input_ids=torch.tensor([ids])).last_hidden_state[0, -1] for ids in texts]
        separate = model.score(torch.stack(hidden))[:, 0]
    torch.testing.assert_close(together, separate)


def test_ordinary_token_never_becomes_special(tmp_path: Path) -> None:
    """If every special token ends a text, padding uses a byte's id, and the saved tokenizer still encodes that byte."""
    tokenizer = byte_tokenizer(appends_eos=True)
    torch.manual_seed(0)
    base = save_model(tmp_path / "base", LlamaForCausalLM(llama(len(tokenizer))), tokenizer)
    train(preferences(10), base, tmp_path / "out")
    after = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert after.all_special_tokens == [EOS]
    every_byte = "".join(map(chr, range(33, 127)))
    assert after(every_byte)["input_ids"] == tokenizer(every_byte)["input_ids"]


@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.exhaustive), 4])
def test_other_model_families_train(tmp_path: Path, rank: int) -> None:
    """GPT-2 has tied embeddings and transposed weight matrices."""
    tokenizer = byte_tokenizer(pad=EOS)
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=2, n_positions=64)
    base = save_model(tmp_path / "base", GPT2LMHeadModel(config), tokenizer)
    outcome = train(preferences(80), base, tmp_path / "out", lora_rank=rank, epochs=8)
    assert outcome.max_length == 64
    assert outcome.accuracy >= 0.8


def test_existing_reward_model_keeps_its_head(base: Path, tmp_path: Path) -> None:
    pairs = preferences(20)
    train(pairs, base, tmp_path / "first", epochs=2)
    train(pairs, tmp_path / "first", tmp_path / "second", lr=1e-12)
    first, second = weights(tmp_path / "first"), weights(tmp_path / "second")
    assert all(torch.allclose(first[key], second[key], atol=1e-8) for key in first)


def test_new_head_initialization_matches_literature(module: ModuleType, base: Path, tmp_path: Path) -> None:
    head = nn.Linear(9999, 1)
    module._initialize(head)
    assert float(head.weight.detach().std()) == pytest.approx(0.01, rel=0.05)
    assert float(head.bias.detach()) == 0
    train(preferences(4), base, tmp_path / "out", lr=1e-12)
    assert float(weights(tmp_path / "out")["score.weight"].std()) == pytest.approx(33**-0.5, rel=0.4)


def test_training_excludes_held_out_prompts(module: ModuleType) -> None:
    for seed in range(20):
        draw = random.Random(seed)
        pairs = [Pair(str(draw.randrange(30)), "a", str(index)) for index in range(100)]
        held = module._choose_held_out(pairs, 0.2, seed)
        assert module.FEWEST_HELD_OUT <= len(held) <= 20
        inside = {pairs[index].prompt for index in held}
        assert not inside & {pair.prompt for index, pair in enumerate(pairs) if index not in held}


def test_held_out_split_handles_one_prompt_and_few_pairs(module: ModuleType) -> None:
    assert len(module._choose_held_out([Pair("p", "a", "b")] * 100, 0.1, 0)) == 10
    assert not module._choose_held_out(preferences(10), 0.1, 0)
    assert not module._choose_held_out(preferences(100), 0.0, 0)
    assert len(module._choose_held_out(preferences(6), 0.999, 0)) == 5


def test_training_sends_no_telemetry(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setattr("trl.trainer.base_trainer.send_telemetry", lambda *_, **__: pytest.fail("sent"))
    train(preferences(4), base, tmp_path / "out")


def test_overlong_pairs_are_skipped_and_counted(base: Path, tmp_path: Path) -> None:
    pairs = [*preferences(8), Pair("long: ", "x" * 60, "y"), Pair("long: ", "x", "y" * 60)]
    outcome = train(pairs, base, tmp_path / "out", max_length=50)
    assert (outcome.trained, outcome.left_out, outcome.max_length) == (8, 2, 50)


def two_labels(folder: Path) -> Path:
    tokenizer = byte_tokenizer()
    return save_model(folder, LlamaForSequenceClassification(llama(len(tokenizer), num_labels=2)), tokenizer)


def small_model(folder: Path) -> Path:
    return save_model(folder, LlamaForCausalLM(llama(200)), byte_tokenizer())


def save_incomplete_model(folder: Path) -> Path:
    tokenizer = byte_tokenizer()
    save_model(folder, LlamaForCausalLM(llama(len(tokenizer))), tokenizer)
    incomplete = weights(folder)
    del incomplete["model.layers.1.mlp.up_proj.weight"]
    save_file(incomplete, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def save_extended_model(folder: Path) -> Path:
    """Save a model with more layers than its configuration describes."""
    tokenizer = byte_tokenizer()
    save_model(folder, LlamaForCausalLM(llama(len(tokenizer))), tokenizer)
    extended = weights(folder)
    extended["model.layers.9.mlp.up_proj.weight"] = extended["model.layers.1.mlp.up_proj.weight"].clone()
    save_file(extended, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def add_lora_file(folder: Path) -> Path:
    tokenizer = byte_tokenizer()
    save_model(folder, LlamaForCausalLM(llama(len(tokenizer))), tokenizer)
    (folder / "adapter_config.json").write_text('{"task_type": "CAUSAL_LM"}')
    return folder


def mamba(folder: Path) -> Path:
    tokenizer = byte_tokenizer()
    MambaConfig(vocab_size=len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def xlnet(folder: Path) -> Path:
    tokenizer = byte_tokenizer()
    sizes = {"d_model": 32, "n_layer": 2, "n_head": 2, "d_inner": 32}
    options: dict[str, Any] = sizes | {"vocab_size": len(tokenizer), "num_labels": 1}
    config = XLNetConfig(**options)
    torch.manual_seed(0)
    return save_model(folder, XLNetForSequenceClassification(config), tokenizer)


def canine(folder: Path) -> Path:
    CanineConfig().save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (xlnet, "reward model of type 'xlnet' is not supported, because its score of a text depends on padding"),
        (canine, "reward model of type 'canine' is not supported, because it has no vocabulary"),
        (save_extended_model, "the files also contain model.layers.9.mlp.up_proj.weight"),
        (add_lora_file, "expected full weights or LoRA weights, got both"),
        (mamba, "reward model of type 'mamba' is not supported"),
        (two_labels, "expected a classifier with 1 label, got one with 2 labels"),
        (small_model, "ids up to 256, but the model has only 200 embeddings"),
        (save_incomplete_model, "weights are missing (model.layers.1.mlp.up_proj)"),
        (lambda folder: folder / "nowhere", "no local folder or hub model has this name"),
    ],
)
def test_unusable_model_is_a_one_line_error(tmp_path: Path, make: Callable[[Path], Path], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        train(preferences(4), make(tmp_path / "base"), tmp_path / "out")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_diverging_training_is_stopped(base: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"the loss is (nan|inf) in step \d+; lower --lr"):
        train(preferences(64), base, tmp_path / "out", lr=1e30)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--epochs", "0"], "--epochs: expected an integer >= 1, got 0"),
        (["--batch", "0"], "--batch: expected an integer >= 1, got 0"),
        (["--seed", "-1"], "--seed: expected an integer >= 0, got -1"),
        (["--lr", "nan"], "--lr: expected a number > 0, or 0 for the default, got nan"),
        (["--lr", "-1"], "--lr: expected a number > 0, or 0 for the default, got -1"),
        (["--eval-share", "1"], "--eval-share: expected a number >= 0 and < 1, got 1"),
        (["--max-length", "3"], "--max-length 3: every pair is longer; the shortest one has "),
        (["--max-length", "1000"], "--max-length: expected at most 128, the context of "),
        (["--data", "nowhere.json"], "nowhere.json: file not found"),
    ],
)
def test_invalid_options_are_reported(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    data = write(tmp_path / "pairs.jsonl", preferences(4))
    where = ["--model", str(base), "--data", str(data), "--out", str(tmp_path / "out"), "--device", "cpu"]
    assert main(["reward-model", *where, *options]) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert len(printed.err.splitlines()) == 1
    assert not printed.out


def test_output_replaces_only_an_earlier_output(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = write(tmp_path / "pairs.jsonl", preferences(4)), tmp_path / "out"
    command = ["reward-model", "--model", str(base), "--data", str(data), "--out", str(out), "--device", "cpu"]
    assert main(command) == 0
    before = (out / "model.safetensors").read_bytes()
    assert main([*command, "--seed", "1"]) == 0
    assert (out / "model.safetensors").read_bytes() != before
    (out / "notes.txt").write_text("mine")
    capsys.readouterr()
    assert main(command) == 2
    assert "the folder contains other files (notes.txt)" in capsys.readouterr().err


@pytest.mark.parametrize("package", ["trl", "datasets"])
def test_missing_trl_extra_suggests_pip_command(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    data = write(tmp_path / "pairs.jsonl", preferences(4))
    monkeypatch.setitem(sys.modules, package, None)
    assert main(["reward-model", "--model", str(base), "--data", str(data), "--out", str(tmp_path / "out")]) == 2
    message = capsys.readouterr().err
    assert f"requires {package}: pip install 'ppo-unified[trl]'" in message
    assert len(message.splitlines()) == 1
