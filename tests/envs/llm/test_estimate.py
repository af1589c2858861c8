"""Tests of the estimate of memory and time before a run of a language model."""

from __future__ import annotations

import ctypes
import inspect
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from envs.llm import estimate as estimation
from envs.llm import savings, sizes
from envs.llm.adapter import LLMAdapter
from envs.llm.estimate import Batch, Batches, estimate
from envs.llm.memory import TensorTracker, measure_growth, release_freed_memory
from envs.llm.sizes import find_sizes, trained_bytes, weight_bytes
from ppo_unified import run
from ppo_unified.cli.main import main
from ppo_unified.config.devices import process_bytes
from ppo_unified.config.estimate import Estimate, compare
from ppo_unified.config.presets import apply_changes, from_file
from ppo_unified.config.spec import AdapterSpec
from ppo_unified.engine.ppo import make_learner, train
from ppo_unified.runs.folder import Run, Status
from ppo_unified.training import estimation as training
from tests.envs.llm.test_adapter import PROMPTS, folder, make_adapter, make_config
from tests.models import save_model

__all__ = ["folder"]  # a fixture that tests request by name
SMALL: dict[str, Any] = {
    "total_steps": 0,
    "total_iterations": 1,
    "ppo": {"epochs": 1, "minibatches": 1},
    "eval": {"episodes": 2},
    "log": {"samples_every": 0},
}


@pytest.fixture(autouse=True)
def _estimate_every_run_quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "estimate", inspect.unwrap(training.estimate))
    monkeypatch.setattr(estimation, "TIMED_S", 0.0)


def test_tracker_counts_existing_tensors_once() -> None:
    before = torch.ones(1000)
    with TensorTracker() as tracker:
        x = torch.zeros(1000)
        y = x.view(10, 100).mul_(2)[2:]  # no memory of their own
        before.add_(1)
        z = before[:500] * 2
        assert tracker.current == 4000 + 2000
        del x
        assert tracker.current == 6000, "a view keeps the memory"
        del y, z
        assert tracker.current == 0
    assert tracker.peak == 6000


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="the C library is not glibc")
def test_freed_memory_counts_until_it_is_released() -> None:
    torch.ones(7 << 20)  # glibc keeps smaller blocks in its heap from now on
    blocks: list[torch.Tensor] = []

    def leave_gaps() -> None:
        blocks.extend(torch.ones(1 << 18) for _ in range(64))  # 1 MiB each
        del blocks[::2]

    cpu = torch.device("cpu")
    assert measure_growth(leave_gaps, cpu) > 56 << 20
    before = process_bytes(cpu)
    release_freed_memory()
    assert before - process_bytes(cpu) > 24 << 20


def test_gaps_of_an_update_count(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimation, "measure_growth", lambda run, device: 10**12)
    memory = estimate(make_adapter(folder, "independent critic")).memory
    assert memory["allocator"] > 10**11


KINDS = ["independent critic", "shared critic", "critic from a path", "LoRA, policy and critic on one base"]
KINDS += ["LoRA, reference is a copy", "LoRA, critic from a path"]


@pytest.mark.parametrize("kind", KINDS)
def test_bytes_of_weights_follow_from_the_options(folder: Path, kind: str) -> None:
    adapter = make_adapter(folder, kind)
    found = find_sizes(adapter.config.llm)
    parameters = {id(p): p for m in (adapter.policy, adapter.reference.network) for p in m.parameters()}
    real = sum(p.nbytes for p in parameters.values())
    trained = sum(p.nbytes for p in parameters.values() if p.requires_grad)
    assert weight_bytes(adapter.config, found) == pytest.approx(real, rel=0.02)  # without the critic's head
    assert trained_bytes(adapter.config, found) == pytest.approx(trained, rel=0.02)


@pytest.mark.parametrize(
    ("kind", "ppo"),
    [
        ("equal prompts", {"epochs": 1, "minibatches": 1, "microbatch_columns": 120}),  # three rows per micro-batch
        pytest.param(  # one micro-batch per minibatch
            "independent critic",
            {"epochs": 1, "minibatches": 1, "microbatch_columns": 65536},
            marks=pytest.mark.exhaustive,
        ),
        ("recomputed activations, LoRA", {"epochs": 1, "minibatches": 1}),
        ("pretraining loss", {"epochs": 1, "minibatches": 1}),
    ],
)
def test_predicted_peak_equals_that_of_an_iteration(folder: Path, kind: str, ppo: dict[str, int]) -> None:
    if kind == "pretraining loss":
        (folder / "texts.txt").write_text("a longer text than prompts and responses together\n" * 40)
        llm = {"critic": "shared", "ptx_coef": 1.0, "ptx_data": str(folder / "texts.txt"), "ptx_batch": 8}
        adapter = LLMAdapter(make_config(folder, llm, ppo=ppo), torch.device("cpu"))
    elif kind == "equal prompts":
        (folder / "equal.txt").write_text("what is longer than the others\n" * 6)
        adapter = LLMAdapter(make_config(folder, {"prompts": str(folder / "equal.txt")}, ppo=ppo), torch.device("cpu"))
    else:
        adapter = make_adapter(folder, kind, ppo=ppo)
    found = estimate(adapter)
    expected = sum(size for part, size in found.memory.items() if part not in ("program", "weights", "allocator"))
    config = adapter.config
    with TensorTracker() as tracker:
        for _ in train(adapter, make_learner(adapter.policy, config.ppo, config.optim, total_iterations=2)):
            pass
    assert expected == pytest.approx(tracker.peak, rel=0.2)


@pytest.mark.parametrize("new", [1, 9])
def test_estimate_reads_no_row_beyond_the_context(folder: Path, tmp_path: Path, new: int) -> None:
    """A model with learned positions fails at a later position."""
    longest = max(map(len, PROMPTS))
    save_model(tmp_path, "gpt2", n_positions=longest + new)
    adapter = LLMAdapter(make_config(folder, {"model": str(tmp_path), "max_new_tokens": new}), torch.device("cpu"))
    assert max(map(len, adapter.prompts.tokens)) == longest
    assert estimate(adapter).fits


def test_estimate_does_not_change_training(folder: Path) -> None:
    rollouts, states = [], []
    for estimates in (False, True):
        adapter = make_adapter(folder, "LoRA, policy and critic on one base")
        torch.manual_seed(0)
        if estimates:
            estimate(adapter)
            assert all(p.grad is None for p in adapter.policy.parameters())
        rollouts.append(adapter.collect())
        states.append({**adapter.state_dict(), "torch": torch.get_rng_state()})
    assert torch.equal(rollouts[0].logprobs, rollouts[1].logprobs)
    assert torch.equal(rollouts[0].actions, rollouts[1].actions)
    for name, value in states[0].items():
        same = torch.equal(value, states[1][name]) if torch.is_tensor(value) else value == states[1][name]
        assert same, name


def test_batches_follow_the_options(folder: Path) -> None:
    config = make_config(folder, ppo={"minibatches": 2, "microbatch_columns": 45})
    batches = Batches.plan(config, [9, 9, 3, 3, 3, 3], [30], [8, 6, 4])
    training = batches.training
    assert (training.longest, training.rows, training.new, batches.minibatch) == (20, 6, 12, 3)
    assert training.largest(6, 1000) == (45, 3 * 12)  # most rows are in a micro-batch of short rows
    assert training.largest(2, 20) == (40, 20)
    assert replace(training, limit=10).largest(6, 20) == (20, 12)  # one row
    assert not batches.is_single
    assert (batches.evaluation.prompts, batches.evaluation.longest) == (1, 41)
    assert Batches.plan(apply_changes(config, {"ppo": {"minibatches": 3}}, ""), [9] * 6, [9]).is_single
    config = apply_changes(config, {"ppo": {"microbatch_columns": 1000}}, "")
    wide = Batches.plan(config, [109, 109, 56, 56, 56, 56], [9])
    assert wide.is_single
    assert wide.training.padded(6) == 2 * 120 + 4 * 67  # long and short rows are in different micro-batches
    assert wide.training.padded(3) == 6 * 120  # a micro-batch of its own would not pay for one long row of three
    assert not Batches.plan(config, [109, 55], [9]).is_single  # with responses of one token
    assert not Batches.plan(config, [109] * 10 + [55], [9]).is_single  # any batch may contain the shortest prompt
    assert Batch(4, 4989, 12, [5000, 2700, 2700, 2700], 45).scored == 8192  # the three short rows have 8100 columns
    shared = Batch.plan(config, [9, 3], 6, copies=3)
    assert (shared.prompts, shared.rows) == (2, 6)


def limit_memory(monkeypatch: pytest.MonkeyPatch, size: float) -> None:
    for module in (estimation, sizes):
        monkeypatch.setattr(module, "available_bytes", lambda _: size)


def words(folder: Path, runs: Path) -> list[str]:
    config = folder / "estimated.toml"
    config.write_text(make_config(folder, **SMALL).to_toml(), encoding="utf-8")
    return ["train", str(config), "--runs", str(runs)]


def test_run_that_does_not_fit_is_rejected_with_advice(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(estimation, "process_bytes", lambda _: 0)
    monkeypatch.setattr(savings, "SMALLEST_COLUMNS", 43)  # one row
    needed = estimate(LLMAdapter(make_config(folder, **SMALL), torch.device("cpu")))
    limit_memory(monkeypatch, needed.peak - 0.2 * needed.memory["activations"])
    assert main(words(folder, tmp_path / "runs")) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    flags = re.fullmatch(r"this run needs .*, but only .* is available; it would fit with (--\S+ \d+)", last)
    assert flags, last
    assert not list((tmp_path / "runs").iterdir())
    assert main([*words(folder, tmp_path / "runs"), *flags[1].split()]) == 0


def test_weights_that_do_not_fit_are_not_loaded(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_config(folder, **SMALL)
    found = find_sizes(config.llm)
    limit_memory(monkeypatch, weight_bytes(config, found) + 2 * trained_bytes(config, found))
    monkeypatch.setattr(LLMAdapter, "__init__", None)
    assert main(words(folder, tmp_path / "runs")) == 2
    assert re.search("this run needs .*; it would fit with --llm.critic shared\n", capsys.readouterr().err)
    assert not (tmp_path / "runs").exists()


@pytest.fixture
def _scarce_memory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let 70 % of the memory suffice for 1024 columns but not for 2048."""
    monkeypatch.setattr(
        estimation, "memory_parts", lambda config, *_, **__: {"activations": config.ppo.microbatch_columns}
    )
    monkeypatch.setattr(estimation, "process_bytes", lambda _: 0)
    limit_memory(monkeypatch, 2000.0)
    monkeypatch.setattr(sizes, "available_bytes", lambda _: 1e12)


@pytest.mark.usefixtures("_scarce_memory")
def test_chosen_columns_are_in_config_toml(folder: Path, tmp_path: Path) -> None:
    finished = Run(run(make_config(folder, **SMALL), tmp_path).path)
    config = from_file(finished.config)
    assert type(config.ppo.microbatch_columns) is int
    assert config.ppo.microbatch_columns == 1024
    status = finished.read_status()
    assert status.estimate["options"] == {"ppo.microbatch_columns": 1024}
    assert re.fullmatch(r"estimate: 0.00102 MB and .* s per iteration; real: .*", compare(status.estimate))


def test_plan_prints_a_table_and_creates_no_folder(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words(folder, tmp_path / "runs"), "--plan"]) == 0
    lines = capsys.readouterr().out
    for name in ("memory at the peak", "  weights", "  Adam", "disk space", "  generate", "  update", "total time"):
        assert re.search(f"^{name} ", lines, re.MULTILINE), lines
    assert not (tmp_path / "runs").exists()


def test_plan_measures_adapters_without_estimate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--gym.num-steps", "8", "--gym.num-envs", "2", "--ppo.minibatches", "1"]
    assert main(["train", "cartpole", "--plan", "--runs", str(tmp_path / "runs"), *small]) == 0
    assert re.search("^  collect .*\n  update .*\ntotal time ", capsys.readouterr().out, re.MULTILINE)
    assert not (tmp_path / "runs").exists()


def test_run_without_disk_space_prints_a_warning(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = Estimate({"weights": 1.0}, available=2.0, checkpoint=5e9)
    monkeypatch.setattr(training, "find_adapter", lambda _: AdapterSpec("", "", estimate="x:y"))
    monkeypatch.setattr(training, "load", lambda _: lambda adapter: found)
    monkeypatch.setattr(training, "free_space", lambda _: 1e9)
    training.estimate_new_run(make_adapter(folder, "shared critic"), make_config(folder), Run(tmp_path), Status())
    assert "the checkpoints need 15 GB of disk space, but only 1 GB is free" in capsys.readouterr().err
