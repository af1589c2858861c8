"""A run that is killed or stopped and then resumed is bit-for-bit identical to an uninterrupted run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from envs.llm.options import LLMConfig
from ppo_unified.cli.main import main
from ppo_unified.config.schema import RunConfig
from ppo_unified.runs import durable
from ppo_unified.runs.folder import Run
from ppo_unified.runs.signals import StopRequest
from ppo_unified.training import checkpoint
from ppo_unified.training.trainer import Trainer
from tests.interruption import find_differences, prepare_run, read_curves, train_to_end, train_until_killed
from tests.models import save_model

PROMPTS = ["1+2=", "a", "12", "xy", "7*8 is"]


def vowels(prompts: list[str], responses: list[str], **columns: Any) -> list[float]:
    """Return scores that differ between the responses of an untrained model."""
    return [sum(character in "aeiou" for character in text) + 0.1 * len(text) for text in responses]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("resume")
    lines = "".join(json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS)
    (path / "prompts.jsonl").write_text(lines, encoding="utf-8")
    (path / "texts.txt").write_text("one two\nthree four five\nsix\nseven eight\n", encoding="utf-8")
    small: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
    }
    save_model(path / "lm", **small)
    return path


def token_config(folder: Path, **llm: Any) -> RunConfig:
    """Configure a run in which every part has a state: prompts, KL coefficient, score scaling and pretraining texts."""
    options: dict[str, Any] = {
        "model": str(folder / "lm"),
        "prompts": str(folder / "prompts.jsonl"),
        "reward": f"{__name__}:vowels",
    }
    options |= {"max_new_tokens": 4, "rollout_batch": 3, "kl_coef": 0.1, "kl_target": 2.0, "kl_horizon": 100}
    options |= {"score_normalize": "running", "ptx_coef": 0.1, "ptx_data": str(folder / "texts.txt"), "ptx_batch": 2}
    table: dict[str, Any] = {"total_steps": 0, "total_iterations": 5, "threads": 1, "llm": options | llm}
    table["eval"] = {"every_steps": 20, "episodes": 3, "at_start": True}
    table["log"] = {"samples_every": 2}
    table["ppo"] = {"epochs": 2, "minibatches": 2}
    table["optim"] = {"warmup": 4}
    return LLMConfig.model_validate(table | {"checkpoint": {"every_s": 1e-6}})


@pytest.fixture(scope="module")
def uninterrupted_run(folder: Path) -> Run:
    run = prepare_run(token_config(folder), folder / "runs", "whole")
    train_to_end(run)
    return run


WHERE = [
    "after event",
    "before checkpoint",
    "before pruning",
    *(pytest.param(x, marks=pytest.mark.exhaustive) for x in ("before sample", "after responses", "after checkpoint")),
]


@pytest.mark.parametrize("where", WHERE)
def test_killed_and_resumed_run_equals_uninterrupted(
    where: str, folder: Path, uninterrupted_run: Run, tmp_path: Path
) -> None:
    """The run is killed twice at the same place, resumed each time, and then finishes."""
    run = prepare_run(token_config(folder), tmp_path, "killed")
    deaths = [train_until_killed(run, where, number) for number in (2, 2)]
    assert all(deaths)
    train_to_end(run)
    assert not find_differences(uninterrupted_run, run)


def test_run_killed_after_last_checkpoint_only_finishes(folder: Path, uninterrupted_run: Run, tmp_path: Path) -> None:
    run = prepare_run(token_config(folder), tmp_path, "late")
    assert train_until_killed(run, "after pruning", 6)  # the first checkpoint is written before training
    assert run.read_status().state == "running"
    train_to_end(run)
    assert not find_differences(uninterrupted_run, run)
    train_to_end(run)  # resuming a finished run changes nothing
    assert not find_differences(uninterrupted_run, run)


@pytest.mark.parametrize("llm", [{"lora_rank": 2, "score_normalize": "reference"}], ids=str)
def test_run_stopped_every_iteration_equals_uninterrupted(
    llm: dict[str, Any], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = token_config(folder, **llm).model_copy(update={"total_iterations": 3})
    single, run = prepare_run(config, tmp_path, "single"), prepare_run(config, tmp_path, "stopped")
    train_to_end(single)
    finish = Trainer._finish_iteration

    def stop_after_iteration(self: Trainer, iteration: Any) -> None:
        finish(self, iteration)
        self.stop.handle(15, None)

    monkeypatch.setattr(Trainer, "_finish_iteration", stop_after_iteration)
    for _ in range(3):
        train_to_end(run, StopRequest())
    assert run.read_status().state == "finished"  # not "stopped": the last stop request came after the end
    assert not find_differences(single, run)


def test_resume_without_checkpoint_ignores_run_json(folder: Path, uninterrupted_run: Run, tmp_path: Path) -> None:
    run = prepare_run(token_config(folder), tmp_path, "early")
    assert train_until_killed(run, "before checkpoint", 2)
    status = run.read_status()
    status.best_score, status.best_step, status.solved_step, status.score = 1e9, 4, 4, 1e9
    run.write_status(status)
    for step in checkpoint.steps(run):
        durable.remove(checkpoint.checkpoint_folder(run, step))
    train_to_end(run)
    assert not find_differences(uninterrupted_run, run)


def test_failed_checkpoint_write_only_warns(
    folder: Path,
    uninterrupted_run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = prepare_run(token_config(folder), tmp_path, "full")
    save, calls = checkpoint.save, [0]

    def fail_sometimes(*arguments: Any) -> Path:
        calls[0] += 1
        if calls[0] in (2, 3):
            raise OSError(28, "No space left on device")
        return save(*arguments)

    monkeypatch.setattr(checkpoint, "save", fail_sometimes)
    train_to_end(run)
    messages = [
        line for line in capsys.readouterr().err.splitlines() if not line.startswith(("evaluations use", "estimate"))
    ]
    assert len(messages) == 2
    assert "cannot write the checkpoint of step " in messages[0]
    assert "([Errno 28] No space left on device); training continues" in messages[0]
    assert not [line for line in find_differences(uninterrupted_run, run) if "best checkpoint" not in line]


def test_failed_final_checkpoint_fails_the_run(
    folder: Path, uninterrupted_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = prepare_run(token_config(folder), tmp_path, "full")
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", lambda *arguments: (_ for _ in ()).throw(OSError(28, "No space left")))
        with pytest.raises(RuntimeError, match=r"cannot write the final checkpoint: .*No space left"):
            train_to_end(run)
    assert run.read_status().state == "failed"
    train_to_end(run)
    assert not find_differences(uninterrupted_run, run)


def test_damaged_newest_checkpoint_resumes_from_previous(
    folder: Path, uninterrupted_run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = prepare_run(token_config(folder), tmp_path, "damaged")
    assert train_until_killed(run, "after checkpoint", 3)
    newest = checkpoint.checkpoint_folder(run, checkpoint.steps(run)[-1])
    (newest / checkpoint.TENSORS).write_bytes(b"")
    train_to_end(run)
    assert str(newest) in capsys.readouterr().err
    assert not find_differences(uninterrupted_run, run)
    assert not [path for path in run.checkpoints.iterdir() if path.name.endswith(checkpoint.DAMAGED)]


def save_with(run: Run, **changes: Any) -> Path:
    """Save the newest checkpoint again with changed content, and return the new folder."""
    found = checkpoint.load_newest(run, torch.device("cpu"))
    assert found is not None
    return checkpoint.save(run, found.policy, dict(found.trainer) | changes, found.meta)


def test_checkpoint_of_another_structure_is_a_one_line_error(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = prepare_run(token_config(folder), tmp_path, "odd")
    assert train_until_killed(run, "after pruning", 2)
    run.release()
    found = checkpoint.load_newest(run, torch.device("cpu"))
    assert found is not None
    for part in ("optimizers", "progress", "evaluation"):
        written = checkpoint.save(run, found.policy, dict(found.trainer) | {part: {"x": [1]}}, found.meta)
        before = run.read_status()
        assert main(["resume", "odd", "--runs", str(tmp_path)]) == 2
        output = capfd.readouterr().err
        assert "Traceback" not in output
        assert f"{written}: the checkpoint is from an incompatible version (" in output
        assert run.read_status() == before


def test_unloadable_adapter_state_fails_the_run(
    folder: Path, uninterrupted_run: Run, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The error is one line; the traceback is in log.txt. Without that checkpoint, the run can be resumed."""
    run = prepare_run(token_config(folder), tmp_path, "odd")
    assert train_until_killed(run, "after pruning", 2)
    run.release()
    written = save_with(run, adapter={"x": [1]})
    assert main(["resume", "odd", "--runs", str(tmp_path)]) == 1
    output = capfd.readouterr().err
    assert "odd failed: KeyError" in output
    assert "Traceback" not in output
    assert "Traceback" in run.log.read_text(encoding="utf-8")
    durable.remove(written)
    train_to_end(run)
    assert not find_differences(uninterrupted_run, run)


def test_changed_options_are_applied_or_rejected(
    folder: Path, uninterrupted_run: Run, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = prepare_run(token_config(folder), tmp_path, "changed")
    assert train_until_killed(run, "after pruning", 3)
    run.release()
    written = run.config.read_text(encoding="utf-8")

    def resume_exit_code(*flags: str) -> int:
        return main(["resume", "changed", "--runs", str(tmp_path), *flags])

    rejected = {
        "--seed": ("2", "a resumed run keeps its policy and training data"),
        "--llm.kl-coef": ("1", "a resumed run keeps its policy and training data"),
        "--optim.no-joint": ("", "the optimizer state in the checkpoint requires the old value"),
        "--ppo.clp": ("1", "did you mean --ppo.clip"),
    }
    for flag, (value, why) in rejected.items():
        assert resume_exit_code(*[flag, value][: 2 if value else 1]) == 2
        assert why in capfd.readouterr().err
    assert run.config.read_text(encoding="utf-8") == written
    assert resume_exit_code("--optim.lr", "1e-6", "--optim.no-anneal", "--total-iterations", "7") == 0
    changes = run.read_status().resumes[-1]["changed"]
    assert changes.pop("optim.lr")[1] == 1e-6
    assert changes == {"total_iterations": [5, 7], "optim.anneal": [True, False]}
    assert "lr = 1e-06" in run.config.read_text(encoding="utf-8")
    assert run.original_config.read_text(encoding="utf-8") == written
    rates = read_curves(run)["optim/lr"][1]
    assert len(rates) == 7
    assert rates[:2] == read_curves(uninterrupted_run)["optim/lr"][1][:2]
    assert rates[2:] == pytest.approx([0.75e-6] + [1e-6] * 4)  # the warm-up continues
