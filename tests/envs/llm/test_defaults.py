"""Tests of options that are 'auto': the rules, how they are written, and where the chosen numbers appear."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from envs.llm import defaults, inputs, sizes
from envs.llm.options import LLMConfig
from envs.llm.sizes import Count, Sizes
from ppo_unified import load_preset
from ppo_unified import run as train
from ppo_unified.cli.main import main
from ppo_unified.config import presets
from ppo_unified.config.registry import config_model
from ppo_unified.config.schema import typed_options
from ppo_unified.config.values import AUTO, Auto, OrAuto, describe, format_flag, format_value, read_value
from ppo_unified.errors import UsageError
from ppo_unified.runs.folder import Run
from ppo_unified.runs.preparation import run_name
from ppo_unified.training import session
from tests.models import save_model

ROOT = Path(__file__).parents[3]
CPU = torch.device("cpu")
DECLARED = typed_options(LLMConfig)
OPTIONS = [option for option, declared in DECLARED.items() if any(isinstance(m, OrAuto) for m in declared.metadata)]


@pytest.fixture(autouse=True)
def _restore_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("auto")
    save_model(path / "lm")
    (path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": f"{i}+1="}) + "\n" for i in range(4)))
    return path


def options(folder: Path, **tables: Any) -> LLMConfig:
    llm = {"model": str(folder / "lm"), "prompts": str(folder / "prompts.jsonl"), "reward": "length:3"}
    llm |= {"max_new_tokens": 2, "critic": "shared"} | tables.pop("llm", {})
    small = {"total_steps": 0, "total_iterations": 1, "eval": {"episodes": 2}}
    return LLMConfig.model_validate({"llm": llm} | small | tables)


# ---------------------------------------------------------------- the rules


@pytest.mark.parametrize(
    ("weights", "threads"), [(123_000, 1), (15_999_999, 1), (30_000_000, 3), (135_000_000, 16), (7 * 10**9, 16)]
)
def test_threads_grow_with_weights(monkeypatch: pytest.MonkeyPatch, weights: int, threads: int) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(64), raising=False)
    assert defaults.choose_threads(weights) == threads
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(2))  # fewer than os.cpu_count, as in a container
    assert defaults.choose_threads(weights) == min(2, threads)
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    assert defaults.choose_threads(weights) == min(3, threads)


def test_table_in_docs_matches_the_rules() -> None:
    page = (ROOT / "docs" / "llm.md").read_text(encoding="utf-8")
    units = {"thousand": 10**3, "million": 10**6, "billion": 10**9}
    rows = re.findall(r"^\| (\d+) (\w+).*? \| (\d+) \| (\S+) \| (\S+) \| (\d+) \|$", page, re.M)
    assert len(rows) == 4
    for number, unit, rank, lr, full_lr, batch in rows:
        weights = int(number) * units[unit]
        assert defaults.choose_lora_rank(weights) == int(rank)
        assert defaults.choose_lr(weights, int(rank)) == float(lr)
        assert defaults.choose_lr(weights, 0) == float(full_lr)
        assert defaults.choose_batch(weights, True, 1, 4) == int(batch)
        assert defaults.choose_batch(weights, False, 1, 4) == 64
    section = page.partition("## Defaults that depend")[2].partition("\n## ")[0]
    assert set(re.findall(r"^\| `(\S+)` \|", section, re.M)) == set(OPTIONS)


def test_lr_is_limited_for_very_small_models() -> None:
    assert defaults.choose_lr(1000, 0) == 1e-3
    assert defaults.choose_lr(123_000, 4) == 1e-3


@pytest.mark.parametrize(("group", "minibatches", "batch"), [(3, 4, 66), (8, 4, 64), (1, 80, 80), (3, 80, 81)])
def test_batch_fits_groups_and_minibatches(group: int, minibatches: int, batch: int) -> None:
    assert defaults.choose_batch(123_000, True, group, minibatches) == batch


def test_large_model_is_trained_with_lora(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.nn.Module.load_state_dict", None)  # weights are counted without loading them
    count = Count(135_000_000, 135_000_000)
    monkeypatch.setattr(inputs, "_load", inputs._load.__wrapped__)  # not from the cache
    monkeypatch.setattr(inputs, "find_sizes", lambda _: Sizes(count, count, 0, 0, 1, count.weights))
    monkeypatch.setattr(defaults, "_available_cores", lambda: 2)
    monkeypatch.setattr(sizes, "available_bytes", lambda _: 1.2e9)  # too little without LoRA
    config, note = presets.complete(options(folder, device="cpu"))
    assert note == (
        "chosen for 135 million weights: llm.lora_rank = 16, optim.lr = 8e-05, llm.rollout_batch = 32, threads = 2; "
        "to change one, set it"
    )
    assert (config.threads, config.llm.rollout_batch, config.llm.lora_rank, config.optim.lr) == (2, 32, 16, 8e-5)
    with pytest.raises(UsageError, match=r"^this run needs .*; it would fit with --llm\.lora-rank 16$"):
        presets.complete(options(folder, llm={"lora_rank": 0}))
    monkeypatch.setattr(sizes, "available_bytes", lambda _: 1e12)
    full, _ = presets.complete(options(folder, llm={"lora_rank": 0}))
    assert (full.llm.lora_rank, full.optim.lr) == (0, 8e-6)
    with pytest.raises(UsageError, match=r"llm\.reference_dtype = 'bfloat16' has no effect because llm\.reference"):
        presets.complete(options(folder, llm={"reference_dtype": "bfloat16"}))


# ---------------------------------------------------------------- the word 'auto'


@pytest.mark.parametrize("option", OPTIONS)
def test_auto_is_accepted_and_written_back(option: str) -> None:
    declared, (section, _, key) = DECLARED[option], option.rpartition(".")
    value = read_value(" Auto ", declared)
    assert isinstance(value, Auto)
    assert format_value(value, declared) == f"{value}" == AUTO
    assert format_flag(option, value) == [f"--{option.replace('_', '-')}", AUTO]
    assert describe(declared).endswith(" or auto")
    with pytest.raises(ValueError, match=r" or auto, got 'autos'"):
        read_value("autos", declared)
    table = {section: {key: AUTO}} if section else {key: AUTO}
    config = LLMConfig.model_validate(table)
    assert isinstance(config.flatten()[option], Auto)
    assert config == LLMConfig()
    dumped: Any = config.model_dump(mode="json")
    assert (dumped[section] if section else dumped)[key] == AUTO
    assert f'{key} = "auto"' in config.to_toml()
    number = config.replace({option: config.flatten()[option] + 0})
    assert number != config  # a number differs from 'auto', even if it is the fallback
    base = LLMConfig()
    assert run_name(config, base) == "llm-s1"
    assert (run_name(number, base) == "llm-s1") == (option == "threads")
    assert run_name(config, base, [option]) == f"llm-{key}-auto-s1"


def test_schema_of_options_allows_auto() -> None:
    schema = config_model("llm").model_json_schema()
    declared = schema["$defs"]["TokenOptim"]["properties"]["lr"]
    assert declared["default"] == AUTO
    assert {"const": AUTO} in declared["anyOf"]


# ---------------------------------------------------------------- runs


def test_run_contains_the_chosen_numbers(folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    config = options(folder, device="cpu")
    run = Run(train(config, tmp_path).path)
    assert run.name == run_name(config, config)
    stored = load_preset(str(run.config))
    assert isinstance(stored, LLMConfig)
    assert not any(isinstance(value, Auto) for value in stored.flatten().values())
    assert (stored.threads, stored.llm.rollout_batch, stored.llm.lora_rank, stored.optim.lr) == (1, 64, 0, 5e-4)
    assert torch.get_num_threads() == 1
    line = "weights: llm.lora_rank = 0, optim.lr = 0.0005, llm.rollout_batch = 64, threads = 1; to change one, set it"
    assert line in capfd.readouterr().err


def test_names_from_a_run_do_not_contain_chosen_numbers(folder: Path, tmp_path: Path) -> None:
    config, _ = presets.complete(options(folder).model_copy(update={"preset": "llm"}))
    path = tmp_path / "a" / "config.toml"
    path.parent.mkdir()
    path.write_text(config.to_toml(), encoding="utf-8")
    assert "rollout_batch" not in run_name(config, presets.naming_base(str(path), config))


def test_typed_numbers_take_precedence(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    flags = ["--llm.model", "lm", "--llm.prompts", "prompts.jsonl", "--llm.reward", "length:3", "--eval.episodes", "2"]
    flags += ["--total-iterations", "1", "--total-steps", "0", "--llm.max-new-tokens", "2", "--threads", "1"]
    flags += ["--recipe", "grpo", "--llm.group-size", "3", "--llm.lora-rank", "2", "--runs", str(tmp_path)]
    assert main(["train", "llm", *flags, "--optim.lr", "auto,1e-4", "--name", "a"]) == 0
    stored = [load_preset(str(path)) for path in sorted(tmp_path.glob("*/config.toml"))]
    assert [config.optim.lr for config in stored] == [1e-3, 1e-4]
    for config in stored:
        assert isinstance(config, LLMConfig)
        assert (config.llm.baseline, config.llm.group_size, config.llm.lora_rank) == ("grpo", 3, 2)
        assert config.llm.rollout_batch == 66
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a-lr-auto", "a-lr1e-4"]
    error = capfd.readouterr().err
    assert "optim.lr = 0.001, llm.rollout_batch = 66; to change one, set it" in error


def test_run_of_an_older_version_keeps_its_threads(folder: Path) -> None:
    """Another number of threads would change the rounding of sums."""
    config = options(folder, threads=0)
    adapter = session.build_adapter(config, CPU)
    assert torch.get_num_threads() == 1
    adapter.load_state_dict({**adapter.state_dict(), "threads": 2})
    assert torch.get_num_threads() == 2
    newer = session.build_adapter(options(folder, threads=1), CPU)
    newer.load_state_dict({**newer.state_dict(), "threads": 2})
    assert torch.get_num_threads() == 1
