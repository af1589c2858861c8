"""A short version of `make torture`: killed and resumed runs end like uninterrupted runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.exhaustive
@pytest.mark.parametrize("case", ["cartpole, a checkpoint", "catch", "tmaze"])
def test_runs_killed_at_any_moment_resume_identically(case: str, tmp_path: Path) -> None:
    script = ROOT / "benchmarks" / "torture.py"
    limits = ("--kills", "4", "--only", case, "--crowd", "0", "--stops", "0", "--seed", "5")
    done = subprocess.run(
        [sys.executable, str(script), *limits, "--keep", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
