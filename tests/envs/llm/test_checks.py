"""Tests of user errors with language models: one-line errors, and failed runs that keep their folder."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from envs.llm.hub import is_hub_reachable
from ppo_unified.cli.main import main
from ppo_unified.runs.folder import Run
from tests.models import make_causal_lm, make_tokenizer, save_model

REWARDS = """
calls = []

def few(prompts, responses, **columns):
    return [1.0]

def late(prompts, responses, **columns):
    calls.append(1)
    return [1.0] * (len(responses) - 1) + [1.0 if len(calls) < 3 else float("nan")]
"""


@pytest.fixture(scope="module")
def work_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("work")
    save_model(path / "lm")
    save_model(path / "larger-tokenizer", tokens=700)
    make_causal_lm().base_model.save_pretrained(path / "headless")
    make_tokenizer().save_pretrained(path / "headless")
    files = {
        "ok.jsonl": '{"prompt": "a"}\n{"prompt": "bb"}\n',
        "key.jsonl": '{"text": "a", "id": 3}\n',
        "empty.jsonl": '{"prompt": "a"}\n{"prompt": ""}\n',
        "long.jsonl": json.dumps({"prompt": "x" * 200}) + "\n",
        "rows.csv": "prompt,answer\na,1\nb,2,3\n",
        "words.csv": "prompt,answer\na,one\n",
        "damaged.parquet": "PAR1",
        "chat.jsonl": '{"messages": [{"role": "user", "content": "hello"}]}\n',
        "llm_test_rewards.py": REWARDS,
    }
    for name, text in files.items():
        (path / name).write_text(text, encoding="utf-8")
    return path


@pytest.fixture(autouse=True)
def _change_folder(work_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(work_folder)
    monkeypatch.setattr(sys, "path", [*sys.path, str(work_folder)])
    monkeypatch.delitem(sys.modules, "llm_test_rewards", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    is_hub_reachable.cache_clear()


GIVEN = {"model": "lm", "prompts": "ok.jsonl", "reward": "length:3", "max-new-tokens": "4", "rollout-batch": "4"}


def train_exit_code(tmp_path: Path, *flags: str, **llm: str) -> int:
    options = {key: value for key, value in (GIVEN | {k.replace("_", "-"): v for k, v in llm.items()}).items() if value}
    given = [word for key, value in options.items() for word in (f"--llm.{key}", value)]
    return main(["train", "llm", "--runs", str(tmp_path), "--total-iterations", "3", "--threads", "1", *given, *flags])


INVALID: dict[str, tuple[dict[str, str], str]] = {
    "missing model": ({"model": ""}, "llm.model is required: use a folder, a hub id or 'tiny'"),
    "missing prompts": ({"prompts": ""}, "llm.prompts is required: use a .jsonl, .json, .csv, .parquet or .txt file"),
    "missing reward": ({"reward": ""}, "llm.reward is required: use module:function, a reward model"),
    "missing file": ({"prompts": "okay.jsonl"}, "okay.jsonl: file not found; did you mean 'ok.jsonl'?"),
    "missing key": (
        {"prompts": "key.jsonl"},
        "key.jsonl, line 1: missing key 'prompt', 'query', 'question' or 'messages' (keys found: 'text', 'id')",
    ),
    "empty prompt": ({"prompts": "empty.jsonl"}, "empty.jsonl, line 2: 'prompt' is empty"),
    "prompt longer than the context": ({"prompts": "long.jsonl"}, "long.jsonl, line 1: expected a prompt of at most"),
    "no room for a prompt": (
        {"max_new_tokens": "9999"},
        "llm.max_new_tokens = 9999 leaves no room for a prompt",
    ),
    "CSV row with too many values": ({"prompts": "rows.csv"}, "rows.csv, line 3: expected 2 values, got 3"),
    "answer without mathematics": (
        {"prompts": "words.csv", "reward": "math"},
        "words.csv: 'answer' of prompt 1: expected a number or an expression, got 'one'",
    ),
    "damaged Parquet file": ({"prompts": "damaged.parquet"}, "damaged.parquet: expected a Parquet file, got an error"),
    "data set without network": (
        {"prompts": "nobody/nothing"},
        "nobody/nothing: no local file or folder has this name, and the Hugging Face hub cannot be reached",
    ),
    "folder without data": ({"prompts": "lm:test"}, "lm:test: cannot load the data set ("),
    "task without a name": ({"prompts": "reasoning-gym:"}, "reasoning-gym:: "),
    "reward of other prompts": ({"reward": "reasoning-gym"}, "requires problems of reasoning-gym, such as"),
    "no prompt left": (
        {"prompts": "long.jsonl", "long_prompts": "skip"},
        "long.jsonl: all 1 prompts have more than 124 tokens",
    ),
    "minimum above maximum": ({"min_new_tokens": "5"}, "llm.min_new_tokens = 5 is greater than llm.max_new_tokens = 4"),
    "empty stop string": ({"stop": "['']"}, "llm.stop: expected strings that are not empty, got ''"),
    "penalty for dropped responses": (
        {"drop_truncated": "true", "missing_eos_penalty": "1"},
        "llm.missing_eos_penalty = 1.0 has no effect because llm.drop_truncated = true",
    ),
    "misspelled task": ({"prompts": "arithmetics"}, "unknown built-in task; did you mean 'arithmetic'?"),
    "misspelled verifier": ({"reward": "lenght:4"}, "No module named 'lenght'); did you mean 'length:4'?"),
    "misspelled pattern": ({"reward": "regx:a:b"}, "did you mean 'regex:a:b'?"),
    "misspelled verifier without argument": ({"reward": "regx"}, "or a hub id; did you mean 'regex:PATTERN'?"),
    "chat without a template": ({"prompts": "chat.jsonl"}, "chat.jsonl, line 1: the tokenizer has no chat template"),
    "tokenizer larger than the model": (
        {"model": "larger-tokenizer"},
        "the tokenizer has ids up to 699, but the model has only 260 embeddings",
    ),
    "4 bits without a GPU": ({"quantize": "4bit", "lora_rank": "2"}, "llm.quantize = '4bit' needs a GPU"),
    "hub id without network": (
        {"model": "nobody/nothing"},
        "llm.model = 'nobody/nothing': no local folder or hub model has this name",
    ),
    "file as a model": ({"model": "ok.jsonl"}, "llm.model = 'ok.jsonl': expected a Hugging Face model folder or a hub"),
    "missing column": ({"reward": "exact"}, "missing key 'answer', which llm.reward = 'exact' needs"),
    "truncated sampling": ({"top_p": "0.9"}, "--llm.top-p is not supported: top_p changes the distribution"),
    "critic from a function": ({"critic_init": "reward"}, "llm.critic_init = 'reward' needs a reward model"),
    "LoRA off without LoRA": ({"reference": "lora-off"}, "requires LoRA; set llm.lora_rank above 0"),
    "4 bits with a copy": (
        {"quantize": "4bit", "lora_rank": "2", "reference": "copy"},
        "llm.quantize = '4bit' requires llm.reference = 'lora-off'",
    ),
    "KL target without KL penalty": ({"kl_coef": "0", "kl_target": "6"}, "llm.kl_target = 6.0 has no effect"),
    "unknown layers": ({"lora_rank": "2", "lora_targets": "nothing"}, "llm.lora_targets = ['nothing']"),
    "more minibatches than rows": ({"rollout_batch": "2"}, "ppo.minibatches = 4 is greater than llm.rollout_batch = 2"),
    "indivisible groups": ({"group_size": "3"}, "llm.rollout_batch = 4 is not a multiple of llm.group_size = 3"),
    "baseline without its conditions": ({"baseline": "rloo"}, "llm.baseline = 'rloo' requires ppo.lam = 1.0"),
    "option without effect": ({"kl_horizon": "5"}, "llm.kl_horizon = 5 has no effect because llm.kl_target = 0"),
}


@pytest.mark.parametrize("case", INVALID)
def test_invalid_option_is_a_one_line_error(tmp_path: Path, capfd: pytest.CaptureFixture[str], case: str) -> None:
    llm, message = INVALID[case]
    assert train_exit_code(tmp_path, **llm) == 2
    out, err = capfd.readouterr()
    lines = [line for line in err.splitlines() if not line.startswith(("preparing ", "chosen for "))]
    assert not out
    assert len(lines) == 1, err
    assert message in lines[0]
    assert not list(tmp_path.iterdir())


def test_model_without_lm_head_is_rejected(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """transformers would initialize the missing head at random."""
    assert train_exit_code(tmp_path, model="headless") == 2
    assert "expected a complete causal language model, got one without lm_head.weight" in capfd.readouterr().err


def test_reward_with_too_few_values_fails_the_run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert train_exit_code(tmp_path, "--name", "few", reward="llm_test_rewards:few") == 1
    status = Run(tmp_path / "few").read_status()
    assert status.state == "failed"
    assert "returned 1 score for 4 responses; first response without a score: prompt" in status.reason
    assert status.reason in capfd.readouterr().err


def test_late_reward_error_keeps_progress(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    flags = ("--name", "late", "--checkpoint.every-s", "0.0001")
    assert train_exit_code(tmp_path, *flags, reward="llm_test_rewards:late") == 1
    run = Run(tmp_path / "late")
    status = run.read_status()
    assert status.state == "failed"
    assert status.iteration == 2
    assert "expected a finite number for each response, got nan for prompt" in status.reason
    assert len(list(run.checkpoints.glob("0*"))) == 2
    assert "ppo-unified resume late" in capfd.readouterr().err
