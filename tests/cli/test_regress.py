"""Tests of `regress`: reading, comparing and writing baselines."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ppo_unified.cli import regress
from ppo_unified.cli.main import main


@pytest.mark.parametrize("text", ["5", "null", "[1]", '{"cartpole": 5}', '{"cartpole": {"seeds": 1}}', "{", ""])
def test_invalid_baseline_is_a_one_line_error(tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "b.json"
    path.write_text(text)
    assert main(["regress", "--baseline", str(path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"{path}: invalid baseline file")
    assert error.count("\n") == 1


@pytest.mark.exhaustive
def test_regress_compares_with_baseline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    baseline = tmp_path / "baseline.json"
    assert main(["regress", "cartpole", "--seeds", "1", "--baseline", str(baseline), "--update"]) == 0
    measured = json.loads(baseline.read_text())["cartpole"]
    assert measured["solved"] == 1
    capsys.readouterr()
    monkeypatch.setattr(regress, "_measure", lambda preset, seeds: measured)  # skip the second training
    assert main(["regress", "cartpole", "--seeds", "1", "--baseline", str(baseline), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["good"] is True
    baseline.write_text(json.dumps({"cartpole": measured | {"worst_steps": measured["worst_steps"] // 2}}))
    assert main(["regress", "cartpole", "--seeds", "1", "--baseline", str(baseline), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["good"] is False
