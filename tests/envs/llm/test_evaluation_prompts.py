"""Tests of the notes about evaluation prompts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from envs.llm.data import PromptData
from envs.llm.evaluation import describe_prompts
from envs.llm.options import LLMConfig
from envs.llm.prompts import Prompts
from ppo_unified import run as train
from ppo_unified.cli.main import main
from tests.models import save_model


def options(folder: Path, prompts: int, **top: Any) -> LLMConfig:
    """Return the options of a run of one iteration with this number of prompts."""
    save_model(folder / "lm")
    lines = [json.dumps({"prompt": f"{number}+1="}) for number in range(prompts)]
    (folder / "prompts.jsonl").write_text("\n".join(lines), encoding="utf-8")
    given: dict[str, Any] = {
        "model": str(folder / "lm"),
        "prompts": str(folder / "prompts.jsonl"),
        "reward": "length:3",
    }
    llm = given | {"max_new_tokens": 4, "rollout_batch": 4}
    small = {"total_steps": 0, "total_iterations": 1, "eval": {"episodes": 30}, "threads": 1}
    small["ppo"] = {"epochs": 1, "minibatches": 2}
    return LLMConfig.model_validate({"llm": llm} | small | top)


NOTE = "evaluations use the 20 training prompts, because a file with fewer than 100 prompts is not divided"


def test_run_notes_evaluation_on_training_prompts(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    train(options(tmp_path, 20), tmp_path / "runs", "a")
    error = capfd.readouterr().err
    assert error.count(f"{NOTE}; to use held-out prompts, set llm.eval_prompts") == 1


def test_run_with_held_out_prompts_prints_no_note(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    train(options(tmp_path, 100), tmp_path / "runs", "a")
    assert "training prompts" not in capfd.readouterr().err


def make_prompts(*texts: str) -> Prompts:
    return Prompts(PromptData([*texts], {}, "a.txt", [*range(len(texts))]), [*texts], [[1] for _ in texts])


def test_shared_prompts_of_two_files_are_counted() -> None:
    training = make_prompts("a", "b", "c")
    assert describe_prompts(training, make_prompts("d", "e")) is None
    assert describe_prompts(training, make_prompts("c", "d", "a")) == (
        "evaluations use prompts that are also training prompts (2 of 3); to use only held-out prompts, remove them "
        "from one of the two sets"
    )


def test_eval_counts_each_greedy_response_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """100 greedy responses to 20 prompts would be 20 different responses, each counted five times."""
    train(options(tmp_path, 20), tmp_path / "runs", "a")
    where = ["--runs", str(tmp_path / "runs")]
    capfd.readouterr()
    assert main(["eval", "a", "--json", *where]) == 0
    out, error = capfd.readouterr()
    assert json.loads(out)["episodes"] == 20
    assert NOTE in error
    assert main(["eval", "a", "--sampled", "--json", *where]) == 0
    out, error = capfd.readouterr()
    assert json.loads(out)["episodes"] == 100
    assert "sampling 100 responses to 20 different prompts" in error
