"""The scripts in docs/examples run and learn as their docstrings describe."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

from tests import fork_server

EXAMPLES = Path(__file__).parents[1] / "docs" / "examples"


def run_example(name: str, folder: Path, short: dict[str, str]) -> str:
    """Run a copy of a script in `folder`, with some lines replaced to shorten it, and return its output."""
    source = (EXAMPLES / name).read_text(encoding="utf-8")
    for line, replacement in short.items():
        assert line in source
        source = source.replace(line, replacement)
    (folder / name).write_text(source, encoding="utf-8")
    done = fork_server.run(["-W", "error", name], folder, timeout=240)
    assert done.returncode == 0, done.stderr
    return done.stdout


def last_number(output: str) -> float:
    return float(output.split()[-1])


def test_custom_adapter_satisfies_the_contract_and_learns(tmp_path: Path) -> None:
    output = run_example("custom_adapter.py", tmp_path, {})
    assert last_number(output) > 0.95


def test_custom_environment_is_trained_and_exported(tmp_path: Path) -> None:
    output = run_example("custom_env.py", tmp_path, {})
    assert last_number(output) > -8  # the best constant action scores about -10 on this episode


def test_custom_network_is_trained_until_the_callback_stops_it(tmp_path: Path) -> None:
    output = run_example("custom_network.py", tmp_path, {"ENOUGH = 100.0": "ENOUGH = 40.0"})
    means = [float(found) for found in re.findall(r"mean return ([\d.]+)", output)]
    assert max(means[:-1]) < 40 <= means[-1]
    assert "stopped by on_iteration; folder: runs" in output


def test_custom_reward_is_applied_to_each_prompt(tmp_path: Path) -> None:
    output = run_example("custom_reward.py", tmp_path, {"ITERATIONS = 40": "ITERATIONS = 1"})
    assert re.search(r"score [01]\.\d\d;", output)
    assert len((tmp_path / "prompts.jsonl").read_text(encoding="utf-8").splitlines()) == 20
    score = runpy.run_path(str(EXAMPLES / "custom_reward.py"))["score"]
    assert score(["a", "b"], [" was warm.", " was warm."], words=[["warm", "fresh"], ["funny"]]) == [1.0, 0.0]


@pytest.mark.exhaustive
def test_custom_reward_is_learned(tmp_path: Path) -> None:
    output = run_example("custom_reward.py", tmp_path, {})
    assert float(output.split("score ")[1].split(";")[0]) >= 0.3  # 0 before training; 0.4 to 0.7 with seeds 1 to 4


def test_adapter_classes_have_about_40_lines() -> None:
    lines = (EXAMPLES / "custom_adapter.py").read_text(encoding="utf-8").split("\ndef main")[0].splitlines()
    assert len([line for line in lines if line.strip() and "import" not in line]) <= 45
