"""Run commands in separate processes, for the tests of commands that train."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

QUICK = ("--total-steps", "1500", "--no-stop-when-solved", "--eval.every-steps", "0", "--eval.episodes", "4")
LONG = ("--total-steps", "100000000", "--no-stop-when-solved", "--eval.every-steps", "0")

Call = Callable[..., tuple[int, str, str]]  # arguments -> exit code, stdout, stderr


def command(*arguments: str, cwd: Path, **more: str) -> subprocess.CompletedProcess[str]:
    """Run `ppo-unified` in a new process and capture its output."""
    environment = os.environ | {"PYTHONWARNINGS": "error::DeprecationWarning:ppo_unified"} | more
    words = [sys.executable, "-m", "ppo_unified", *arguments]
    return subprocess.run(words, capture_output=True, text=True, cwd=cwd, env=environment, timeout=120, check=False)


def wait_for(condition: object, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, f"the condition did not hold within {seconds:g} s"
        time.sleep(0.02)
