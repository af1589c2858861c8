"""Out of memory: the error recommends which option to lower, and to which value, in each phase of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ppo_unified import load_preset
from ppo_unified.errors import UsageError
from ppo_unified.runs.preparation import prepare
from ppo_unified.runs.signals import StopRequest
from ppo_unified.training.out_of_memory import OutOfMemory, explain_out_of_memory, is_out_of_memory
from ppo_unified.training.session import plan, train_in
from tests.sequences import SequenceAdapter, SequencePolicy, make_config, sequences

__all__ = ["sequences"]  # a fixture that tests request by name


def test_allocator_errors_are_recognized() -> None:
    with pytest.raises(RuntimeError) as raised:
        torch.empty(1 << 60, dtype=torch.uint8)  # more memory than any machine has
    assert is_out_of_memory(raised.value)
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory."))
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    wrapped = RuntimeError("env: reset() raised MemoryError")
    assert not is_out_of_memory(wrapped)
    wrapped.__cause__ = MemoryError()
    assert is_out_of_memory(wrapped)


@pytest.mark.usefixtures("sequences")
@pytest.mark.parametrize(
    ("owner", "method", "says"),
    [
        (SequenceAdapter, "collect", "while collecting a rollout"),
        (SequencePolicy, "evaluate", "while updating the policy: lower ppo.microbatch_columns from 65536 to 18"),
        (SequenceAdapter, "score", "while evaluating the policy: lower eval.episodes from 5 to 2"),
    ],
)
def test_out_of_memory_run_names_options_to_lower(
    owner: type, method: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def allocate_huge(self: Any, *arguments: Any) -> Any:
        return torch.empty(1 << 60, dtype=torch.uint8)

    monkeypatch.setattr(owner, method, allocate_huge)
    config = make_config(eval={"every_steps": 10, "episodes": 5}, log={"samples_every": 0})
    run = prepare(config, tmp_path, "a")
    with pytest.raises(OutOfMemory, match=says):
        train_in(run, config, StopRequest())
    assert says in run.read_status().reason


def test_memory_advice_names_only_relevant_options() -> None:
    output = str(explain_out_of_memory(MemoryError("out\nof"), "updating the policy", load_preset("arithmetic"), 5000))
    assert "lower ppo.microbatch_columns from" in output
    assert "set llm.gradient_checkpointing = true" in output
    assert "gym" not in output


@pytest.mark.usefixtures("sequences")
def test_plan_without_memory_is_a_one_line_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SequenceAdapter, "collect", lambda *_: torch.empty(1 << 60, dtype=torch.uint8))
    with pytest.raises(UsageError, match=r"^out of memory while estimating memory and time: .*"):
        plan(make_config())
    output = str(explain_out_of_memory(MemoryError(), "estimating memory and time", load_preset("arithmetic")))
    assert "set llm.gradient_checkpointing = true, or lower llm.rollout_batch from " in output


@pytest.mark.usefixtures("sequences")
def test_model_too_large_suggests_alternatives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_preset("arithmetic", llm={"lora_rank": 0})
    output = str(explain_out_of_memory(MemoryError(), "creating the models", config))
    assert "out of memory while creating the models: set llm.lora_rank = 16 (" in output
    small = load_preset("arithmetic", llm={"lora_rank": 4})
    assert "use a smaller model" in str(explain_out_of_memory(MemoryError(), "creating the models", small))
    monkeypatch.setattr(SequencePolicy, "__init__", lambda *_, **__: torch.empty(1 << 60, dtype=torch.uint8))
    run = prepare(make_config(), tmp_path, "a")
    with pytest.raises(OutOfMemory, match="while creating the models"):
        train_in(run, make_config(), StopRequest())
    assert run.read_status().state == "failed"


def test_memory_error_without_message_shows_its_type() -> None:
    assert str(explain_out_of_memory(MemoryError(), "updating the policy", load_preset("cartpole"), 0)).endswith(
        "(MemoryError)"
    )
