"""What the tests of commands share."""

from __future__ import annotations

from pathlib import Path

import pytest

from ppo_unified.cli.main import main
from tests.cli.commands import Call


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """A command without a process of its own, in `tmp_path`."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str, str]:
        code, said = main(arguments), capsys.readouterr()
        return code, said.out, said.err

    return run
