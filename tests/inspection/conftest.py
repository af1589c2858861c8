"""Fixtures of the inspection tests."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.models import save_model


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models")
    prompts = ["1+2=", "a", "what is longer?", "12", "xy", "7*8 is"]
    (path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": p}) + "\n" for p in prompts), encoding="utf-8")
    save_model(path / "lm")
    return path
