"""This version lists, shows, evaluates and resumes the runs of every released version."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from ppo_unified import __version__
from ppo_unified.cli.main import main
from ppo_unified.runs.folder import Run
from tui.new_run.form_model import form_input

DATA = Path(__file__).parent / "data"
VERSIONS = sorted(path.name for path in DATA.iterdir() if (path / "runs").is_dir())


@pytest.fixture(params=VERSIONS)
def older(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the folder in which a version trained its runs, as the current folder."""
    folder = Path(shutil.copytree(DATA / request.param, tmp_path / "older"))
    monkeypatch.chdir(folder)
    return folder


def output_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    """Run a command and return the JSON document that it prints."""
    capsys.readouterr()
    assert main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def status(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path("runs", name, "run.json").read_text(encoding="utf-8"))
    return found


def test_runs_of_this_version_are_committed() -> None:
    assert __version__ in VERSIONS


def test_older_runs_are_listed(older: Path, capsys: pytest.CaptureFixture[str]) -> None:
    listed = output_of(capsys, "runs")
    assert sorted((run["name"], run["kind"], run["state"]) for run in listed) == [
        ("gym", "gym", "finished"),
        ("llm", "llm", "finished"),
    ]


@pytest.mark.parametrize("name", ["gym", "llm"])
def test_older_curves_are_shown(older: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    shown = output_of(capsys, "show", name)
    assert shown[name]["eval/score"]["values"][-1] == pytest.approx(status(name)["score"], rel=1e-6)


@pytest.mark.parametrize("name", ["gym", "llm"])
def test_older_policies_are_evaluated(older: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    result = output_of(capsys, "eval", name, "--episodes", "3")
    recorded = status(name)
    assert result["step"] == recorded["best_step"]
    scores = json.loads(Path("scores.json").read_text(encoding="utf-8"))  # of the version that trained the runs
    assert result["score"] == pytest.approx(scores[name], abs=1e-3)


@pytest.mark.parametrize(("name", "more"), [("gym", ["--total-steps", "200"]), ("llm", ["--total-iterations", "3"])])
def test_older_runs_are_resumed(older: Path, name: str, more: list[str]) -> None:
    before = status(name)
    assert main(["resume", name, *more]) == 0
    after = status(name)
    assert (after["state"], len(after["resumes"])) == ("finished", 1)
    assert after["step"] > before["step"]
    assert after["iteration"] > before["iteration"]


@pytest.mark.parametrize(("name", "less"), [("gym", ["--total-steps", "32"]), ("llm", ["--total-iterations", "1"])])
def test_older_options_start_new_runs(older: Path, name: str, less: list[str]) -> None:
    target, recipe, typed = form_input(Run(Path("runs", name)))
    assert (recipe, typed) == ("", {})
    assert main(["train", target, "--name", "again", *less]) == 0
    assert status("again")["state"] == "finished"
