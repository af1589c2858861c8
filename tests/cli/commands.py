"""Commands in processes of their own, for the tests of commands that train."""

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
    environment = os.environ | {"PYTHONWARNINGS": "error::DeprecationWarning:ppo_unified"} | more
    whole = [sys.executable, "-m", "ppo_unified", *arguments]
    return subprocess.run(whole, capture_output=True, text=True, cwd=cwd, env=environment, timeout=120, check=False)


def wait_for(condition: object, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)
