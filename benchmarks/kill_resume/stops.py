"""Stop runs by SIGTERM at random moments, and check the run folders that they leave."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch

from kill_resume.commands import Command, Process
from ppo_unified.errors import UsageError
from ppo_unified.runs.folder import Run
from ppo_unified.training import checkpoint

PATIENCE_S = 900.0  # longest wait for a run to start
ENDLESS = ("--total-steps", "1000000000", "--total-iterations", "1000000000", "--eval.every-steps", "0")


class StopCase(NamedTuple):
    """Runs with the same options."""

    name: str
    arguments: Sequence[str]
    limit_s: float


STOP_CASES = (
    StopCase("cartpole", ("cartpole", "--no-stop-when-solved", *ENDLESS), 2.0),
    StopCase("arithmetic", ("arithmetic", *ENDLESS), 5.0),
    StopCase(
        "arithmetic with responses of 400 tokens (almost always generating)",
        ("arithmetic", "--llm.max-new-tokens", "400", "--llm.missing-eos-penalty", "1", *ENDLESS),
        5.0,
    ),
)


def stop_repeatedly(case: StopCase, count: int, seed: int, folder: Path) -> tuple[list[float], list[str]]:
    """Stop a run `count` times at random moments. Return the seconds from SIGTERM to the end, and the problems."""
    folder.mkdir(parents=True)
    rng, run = random.Random(seed), Run(folder / "runs" / "run")
    seconds: list[float] = []
    problems: list[str] = []
    for _ in range(count):
        arguments = ["resume", "run", "--yes"] if run.path.exists() else ["train", *case.arguments, "--name", "run"]
        process = Process(Command(arguments, folder))
        wait_until_running(run, process)
        process.wait(rng.uniform(0, 2))
        began = time.monotonic()
        process.signal(signal.SIGTERM)
        code = process.wait(60)
        seconds.append(time.monotonic() - began)
        process.signal(signal.SIGKILL)
        problems += [f"{case.name}: {text}" for text in check_stopped(run, code)]
    return seconds, problems


def wait_until_running(run: Run, process: Process) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while process.wait(0.01) is None and time.monotonic() < deadline:
        with suppress(UsageError):
            status = run.read_status()
            if status.pid == process.pid and status.state == "running":
                return
    raise RuntimeError(f"{run.path}: the run has not started")


def check_stopped(run: Run, code: int | None) -> list[str]:
    """List the problems of a run that was stopped."""
    status, found = run.read_status(), []
    if code != 130 or status.state != "stopped" or run.is_locked():
        found.append(f"exit code {code}, state {status.state}")
    try:
        if checkpoint.load_newest(run, torch.device("cpu")) is None and status.step:  # none before the first update
            found.append("no checkpoint")
    except UsageError as error:
        found.append(str(error))
    return found
