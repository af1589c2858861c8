"""Run commands in separate processes, for the tests of commands that train."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ppo_unified.runs.folder import Run
from ppo_unified.runs.play_messages import FrameReply, Request, decode, encode, picture_bytes
from tests import fork_server

QUICK = (
    *("--total-steps", "1500", "--no-stop-when-solved", "--ppo.epochs", "1"),
    *("--eval.every-steps", "0", "--eval.episodes", "4"),
)
LONG = ("--total-steps", "100000000", "--no-stop-when-solved", "--eval.every-steps", "0")

Call = Callable[..., tuple[int, str, str]]  # arguments -> exit code, stdout, stderr


def command(
    *arguments: str, cwd: Path, fresh: bool = False, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run `ppo-unified` in a new process and capture its output. A fresh process has imported nothing before.

    `env` contains additional environment variables.
    """
    environment = os.environ | {"PYTHONWARNINGS": "error::DeprecationWarning:ppo_unified"} | dict(env or {})
    words = ["-m", "ppo_unified", *arguments]
    if not fresh:
        return fork_server.run(words, cwd, environment)
    whole = [sys.executable, *words]
    return subprocess.run(whole, capture_output=True, text=True, cwd=cwd, env=environment, timeout=120, check=False)


def serve(
    run: Run,
    requests: Sequence[Request],
    cwd: Path,
    answered: int = 99,
    env: Mapping[str, str] = os.environ,
    command: Sequence[str] = ("play", "--serve"),
) -> tuple[list[Any], str]:
    """Send requests to `play --serve` or another command. Return the replies without their pixels, and the output to
    stderr.

    Only the first `answered` requests get a reply, unless the process ends earlier.
    """
    words = [sys.executable, "-m", "ppo_unified", *command, str(run.path)]
    pipe, replies = subprocess.PIPE, list[Any]()
    with fork_server.Popen(words, stdin=pipe, stdout=pipe, stderr=pipe, cwd=cwd, env=os.environ | env) as process:
        assert process.stdin
        assert process.stdout
        assert process.stderr
        for number in range(len(requests) + 1):
            if number <= answered:
                line = process.stdout.readline()
                if not line:
                    break
                replies.append(decode(line))
                process.stdout.read(picture_bytes(replies[-1]) if isinstance(replies[-1], FrameReply) else 0)
            for request in requests[number : number + 1]:
                process.stdin.write(encode(request))
                process.stdin.flush()
        process.stdin.close()
        errors = process.stderr.read().decode()
    return replies, errors


def wait_for(condition: object, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, f"the condition did not hold within {seconds:g} s"
        time.sleep(0.02)
