"""Limits the number of files needed to follow a run; the reading paths in docs/architecture.md name files that run."""

from __future__ import annotations

import json
import re

import pytest

from tests import fork_server
from tests.reading_path import COMMANDS, ROOT

MAX_BEFORE_FIRST_STEP = 39  # of `train cartpole`; three of them are faster forms that readers can skip
PATHS = {  # heading in docs/architecture.md -> recorded command, maximum number of files
    "Reading path: one CartPole run": ("cartpole", 12),
    "Reading path: one response": ("response", 16),
}
Recorded = dict[str, dict[str, list[str]]]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    folder = tmp_path_factory.mktemp("recorded")
    done = fork_server.run(["-m", "tests.reading_path", str(folder)], ROOT)
    assert done.returncode == 0, done.stderr
    return {name: json.loads((folder / f"{name}.json").read_text(encoding="utf-8")) for name in COMMANDS}


def test_cartpole_needs_few_files_before_first_step(recorded: Recorded) -> None:
    files = recorded["cartpole"]["before"]
    assert 0 < len(files) <= MAX_BEFORE_FIRST_STEP, f"{len(files)} files:\n" + "\n".join(files)


@pytest.mark.parametrize("heading", PATHS)
def test_reading_path_names_files_that_run(heading: str, recorded: Recorded) -> None:
    """Each item of the numbered list starts with a path in backticks: "1. `ppo_unified/cli/__init__.py` ..."."""
    command, most = PATHS[heading]
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    section = page.split(f"## {heading}\n")[1].split("\n## ")[0]
    items = re.findall(r"^\d+\. (.*)", section, re.M)
    paths = re.findall(r"^\d+\. `([^`]+)`", section, re.M)
    assert 0 < len(paths) == len(set(paths)) == len(items) <= most
    unknown = [path for path in paths if path not in recorded[command]["whole"]]
    assert not unknown, f"{unknown} do not run; the files that run are:\n" + "\n".join(recorded[command]["whole"])
