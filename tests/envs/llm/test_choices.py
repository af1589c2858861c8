"""Tests of settings that the program chooses, and of the notes about them: CPU threads and evaluation prompts."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch

from envs.llm.adapter import LLMAdapter
from envs.llm.data import PromptData
from envs.llm.evaluation import describe_prompts
from envs.llm.options import LLMConfig
from envs.llm.prompts import Prompts
from envs.llm.threads import choose_threads
from ppo_unified import run as train
from ppo_unified.cli.main import main
from ppo_unified.config.presets import load_preset
from ppo_unified.runs.folder import Run
from ppo_unified.training import session
from tests.models import save_model

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _restore_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


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
    small = {"total_steps": 0, "total_iterations": 1, "eval": {"episodes": 30}}
    return LLMConfig.model_validate({"llm": llm} | small | top)


@pytest.mark.parametrize(
    ("weights", "threads"), [(123_000, 1), (15_999_999, 1), (30_000_000, 3), (135_000_000, 16), (7 * 10**9, 16)]
)
def test_threads_grow_with_weights(monkeypatch: pytest.MonkeyPatch, weights: int, threads: int) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(64), raising=False)
    models = [torch.nn.Linear(weights, 1, bias=False, device="meta"), torch.nn.Linear(3, 1)]
    assert choose_threads(models) == threads
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(2))  # fewer than os.cpu_count, as in a container
    assert choose_threads(models) == min(2, threads)
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    assert choose_threads(models) == min(3, threads)


def test_small_model_trains_with_one_thread(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    torch.set_num_threads(2)
    config = options(tmp_path, 4)
    assert config.threads == 0
    train(config, tmp_path / "runs", "a")
    assert torch.get_num_threads() == 1
    assert "threads: 1, chosen from the size of the models" in capfd.readouterr().err


def test_resume_restores_chosen_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another number of threads would change the rounding of sums."""
    used: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", used.append)  # several threads on a busy machine would be slow
    monkeypatch.setattr("envs.llm.adapter.choose_threads", lambda _: 2)
    train(options(tmp_path, 4), tmp_path / "runs", "a")
    run = Run(tmp_path / "runs" / "a")
    assert load_preset(str(run.config)).threads == 0
    assert used[-1] == 2
    monkeypatch.setattr("envs.llm.adapter.choose_threads", lambda _: 1)
    assert main(["resume", "a", "--runs", str(tmp_path / "runs"), "--total-iterations", "2"]) == 0
    assert used[-1] == 2
    assert main(["resume", "a", "--runs", str(tmp_path / "runs"), "--total-iterations", "3", "--threads", "1"]) == 0
    assert used[-1] == 1


def test_threads_are_not_printed_on_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The number has almost no effect there."""
    adapter = session.build_adapter(options(tmp_path, 4), CPU)
    assert isinstance(adapter, LLMAdapter)
    adapter.device = torch.device("cuda")
    monkeypatch.setattr(adapter, "respond", Mock(side_effect=InterruptedError))  # before anything uses the device
    with pytest.raises(InterruptedError):
        adapter.collect()
    error = capfd.readouterr().err
    assert "4 training prompts" in error
    assert "threads:" not in error


def test_stored_number_of_threads_is_kept(tmp_path: Path) -> None:
    adapter = session.build_adapter(options(tmp_path, 4, threads=2), CPU)
    assert torch.get_num_threads() == 2
    adapter.load_state_dict(adapter.state_dict())
    assert torch.get_num_threads() == 2


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
