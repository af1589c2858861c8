"""Tests that a run reads its inputs once, and reads them again if a file has changed."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import Mock

import pytest

from envs.llm import inputs, prompts
from envs.llm.inputs import load_inputs
from envs.llm.options import LLM, LLMConfig
from ppo_unified import run
from tests.models import save_model


@pytest.fixture
def llm(tmp_path: Path) -> LLM:
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "a"}\n{"prompt": "bb"}\n', encoding="utf-8")
    (tmp_path / "texts.txt").write_text("one text\n", encoding="utf-8")
    return LLM(
        model=str(save_model(tmp_path / "lm")),
        prompts=str(tmp_path / "prompts.jsonl"),
        reward="length:3",
        ptx_data=str(tmp_path / "texts.txt"),
        ptx_coef=0.1,
        max_new_tokens=4,
        rollout_batch=4,
    )


def test_run_reads_every_input_once(llm: LLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places = ((inputs, "load_tokenizer"), (prompts, "read_prompts"), (prompts, "read_texts"))
    readers = [Mock(wraps=getattr(module, name)) for module, name in places]
    for (module, name), reader in zip(places, readers, strict=True):
        monkeypatch.setattr(module, name, reader)
    run(LLMConfig(llm=llm, total_steps=0, total_iterations=1, threads=1), tmp_path / "runs", "a")
    assert [reader.call_count for reader in readers] == [1, 1, 1]


@pytest.mark.parametrize("name", ["prompts.jsonl", "lm/tokenizer_config.json"])
def test_changed_file_is_reread(llm: LLM, tmp_path: Path, name: str) -> None:
    first = load_inputs(llm)
    assert load_inputs(llm) is first
    with open(tmp_path / name, "a", encoding="utf-8") as file:
        file.write("\n")
    again = load_inputs(llm)
    assert again is not first
    assert again.training.texts == first.training.texts
