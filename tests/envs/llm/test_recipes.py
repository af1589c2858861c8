"""Tests that every recipe trains a local model from the command line and satisfies the engine's invariants."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from envs.llm.options import LLMConfig
from envs.llm.tasks import arithmetic_pairs, question, sentiment_openings, supervised_answers, task_texts
from ppo_unified.cli.main import main
from ppo_unified.config.presets import load_target
from ppo_unified.config.recipes import recipe_files
from ppo_unified.runs.event_reader import EventReader
from ppo_unified.runs.folder import Run
from tests.models import FAMILIES, VOCABULARY, make_tokenizer, save_model

USUAL = ("oai-2019", "instructgpt-ptx", "grpo", "trian-ppo")  # the other recipes are exhaustive
BATCH, TOKENS = 8, 6  # small sizes for speed; only trian-ppo has a smaller batch, of 2 responses


def save_reward_model(folder: Path) -> None:
    """Save an untrained reward model in the format of `reward-model`."""
    sizes = FAMILIES["llama"] | {"vocab_size": VOCABULARY, "num_labels": 1, "pad_token_id": 258}
    config = CONFIG_MAPPING["llama"](**sizes)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, a reward model, prompts and texts."""
    path = tmp_path_factory.mktemp("home")
    save_model(path / "lm")
    save_reward_model(path / "reward-model")
    (path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": f"{i} is"}) + "\n" for i in range(9)))
    (path / "texts.txt").write_text("the sum of them\nall that was said\n" * 3, encoding="utf-8")
    return path


def recipe_options(name: str) -> dict[str, Any]:
    """Return the options that the test adds to a recipe: the user's files and small sizes."""
    config = load_target("llm")
    assert isinstance(config, LLMConfig)
    options: dict[str, Any] = {"llm.model": "lm", "llm.prompts": "prompts.jsonl", "llm.reward": "reward-model"}
    options |= {"total-iterations": 2, "llm.max-new-tokens": TOKENS, "eval.episodes": 2, "threads": 1}
    if name != "trian-ppo":
        options["llm.rollout-batch"] = BATCH
    if name == "trl-early":
        options["ppo.minibatches"] = BATCH  # one sequence per minibatch, as in the recipe
    if name == "instructgpt-ptx":
        options |= {"llm.ptx-data": "texts.txt", "llm.ptx-batch": 3}
    return options


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in USUAL else pytest.mark.exhaustive) for name in recipe_files()]
)
def test_recipe_trains_a_local_model(name: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    flags = [part for option, value in recipe_options(name).items() for part in (f"--{option}", str(value))]
    assert main(["train", "llm", "--recipe", name, "--name", name, *flags]) == 0
    run = Run(home / "runs" / name)
    status, config = run.read_status(), load_target(str(run.config))
    assert isinstance(config, LLMConfig)
    assert (status.state, status.iteration, status.preset, config.recipe) == ("finished", 2, f"llm-{name}", name)
    assert status.score is not None
    reader = EventReader(run.path)
    reader.poll()
    logged = {tag: list(series.values) for tag, series in reader.series.items()}
    assert max(logged["invariant/first_ratio_error"]) < 1e-5
    assert logged["optim/steps"] == [config.ppo.epochs * config.ppo.minibatches] * 2
    assert logged["invariant/optimizer_steps_error"] == [0.0, 0.0]
    assert logged["ref/kl"][0] == pytest.approx(0.0, abs=1e-4)  # before any update the policy equals its reference
    assert logged["ref/kl_coef"][0] == pytest.approx(config.llm.kl_coef)
    adapts = logged["ref/kl_coef"][0] != logged["ref/kl_coef"][1]
    assert adapts == (config.llm.kl_target > 0)
    assert ("loss/ptx" in logged) == (config.llm.ptx_coef > 0)
    assert logged["optim/lr"] == pytest.approx([config.optim.lr, config.optim.lr * (0.5 if config.optim.anneal else 1)])


def test_missing_recipe_input_is_a_one_line_error(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A critic that starts from the reward needs a reward model, and the pretraining loss needs texts."""
    monkeypatch.chdir(home)
    before = sorted(home.glob("runs/*"))
    target = ["train", "llm", "--llm.model", "lm", "--llm.prompts", "prompts.jsonl", "--llm.max-new-tokens", "6"]
    for name, reward, message in (
        ("tldr", "length:5", "llm.critic_init = 'reward' needs a reward model"),
        ("instructgpt-ptx", "reward-model", "llm.ptx_coef = 27.8 has no effect because llm.ptx_data is not set"),
    ):
        assert main([*target, "--recipe", name, "--llm.reward", reward]) == 2
        printed = capsys.readouterr().err
        assert message in printed
        assert len(printed.splitlines()) == 1
    assert sorted(home.glob("runs/*")) == before


def test_task_texts_come_from_training_prompts() -> None:
    """The texts are training sums with supervised answers and remarks on training openings, and they never change."""
    texts = task_texts()
    assert texts == task_texts()
    sums, remarks = texts[::2], texts[1::2]
    training = {question(a, b): supervised_answers(a, b) for a, b in arithmetic_pairs()[0]}
    for text in sums:
        prompt, equals, answer = text.partition("=")
        assert int(answer) in training[prompt + equals]
    openings = tuple(sentiment_openings()[0])
    assert all(text.startswith(openings) for text in remarks)
    assert len(set(remarks)) > len(remarks) / 2
