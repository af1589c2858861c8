"""Fixtures of the inspection tests."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.envs.llm.test_recipes import save_reward_model
from tests.models import save_model


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models")
    prompts = ["1+2=", "a", "what is longer?", "12", "xy", "7*8 is"]
    (path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": p}) + "\n" for p in prompts), encoding="utf-8")
    (path / "texts.txt").write_text("the sum of them\nall that was said\n" * 3, encoding="utf-8")
    save_model(path / "lm")
    save_reward_model(path / "reward-model")
    return path
