"""Use environments from other packages as a user would: train, resume, evaluate, play, and export.

python benchmarks/third_party.py [NAME ...] [--out benchmarks/third_party.md]

Each command runs in its own process. The run is trained to half of its iterations and then resumed. An uninterrupted
run with the same options shows whether resuming changed the result. Install the packages first, with
`pip install -c constraints.txt -r benchmarks/third_party.txt`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ppo_unified.runs.folder import Run
from ppo_unified.training.checkpoint import load_newest

LIMIT_S = 900.0  # the maximum time for one command
EPISODES = 5  # number of episodes per evaluation


class Case(NamedTuple):
    """An environment and the options of its run."""

    package: str  # name of the distribution
    target: str
    options: tuple[str, ...] = ()
    iterations: int = 10  # an even number
    num_envs: int = 8
    num_steps: int = 256


CASES = {
    "minigrid": Case(
        "minigrid", "minigrid:MiniGrid-Empty-5x5-v0", ("--gym.wrappers", "minigrid.wrappers:FlatObsWrapper")
    ),
    "highway": Case("highway-env", "highway_env:highway-fast-v0", iterations=4, num_envs=4, num_steps=32),
    "parking (Dict)": Case("highway-env", "highway_env:parking-v0", iterations=4, num_envs=4, num_steps=64),
    "pong (RAM)": Case("ale-py", "ale_py:ALE/Pong-v5", ("--gym.env-kwargs", '{"obs_type": "ram"}'), iterations=4),
    "flappy bird": Case(
        "flappy-bird-gymnasium", "flappy_bird_gymnasium:FlappyBird-v0", ("--gym.env-kwargs", '{"use_lidar": false}')
    ),
    "push-t": Case("gym-pusht", "gym_pusht:gym_pusht/PushT-v0", ("--gym.normalize-obs",), iterations=4),
    "push-t (Dict)": Case(
        "gym-pusht",
        "gym_pusht:gym_pusht/PushT-v0",
        ("--gym.normalize-obs", "--gym.env-kwargs", '{"obs_type": "environment_state_agent_pos"}'),
        iterations=4,
    ),
    "deep sea treasure": Case(
        "mo-gymnasium",
        "mo_gymnasium:deep-sea-treasure-v0",
        ("--gym.wrappers", "mo_gymnasium.wrappers:LinearReward(weight=[0.9, 0.1])"),
    ),
    "inverted pendulum": Case("mujoco", "InvertedPendulum-v5", ("--gym.normalize-obs",), iterations=20),
    "half cheetah": Case(
        "mujoco", "HalfCheetah-v5", ("--gym.normalize-obs", "--gym.normalize-reward"), num_envs=4, iterations=10
    ),
}

HEADER = """\
# Environments of other packages

Each row was trained, stopped, resumed, evaluated, played and exported with the command line; every command succeeded.
The runs are far too short to solve the tasks. Scores are greedy, over {episodes} episodes. Steps/s is the number of
steps of the uninterrupted run divided by the wall time of its command, including the imports and two evaluations.
"Exact" means that the resumed run continued its episodes; its weights were then compared with an uninterrupted run.

Command: `{command}`; {today}; {machine}

| name | environment | package | steps | steps/s | score at start | score at end | resume | exported play.py |
|---|---|---|---|---|---|---|---|---|
"""


class CommandError(Exception):
    """Raised if a command fails; the message contains the end of its output."""


def call(folder: Path, *words: str) -> str:
    """Run a command in `folder` and return its stdout. Raises CommandError if it fails or prints a traceback."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "SDL_VIDEODRIVER": "dummy"}
    done = subprocess.run(
        words, check=False, cwd=folder, env=environment, capture_output=True, text=True, timeout=LIMIT_S
    )
    if done.returncode or "Traceback" in done.stderr:
        tail = (done.stdout + done.stderr).strip().splitlines()[-3:]
        raise CommandError(f"{shlex.join(words[2:5])}: exit code {done.returncode}: {' / '.join(tail)}")
    return done.stdout


def ppo(folder: Path, *words: str) -> str:
    return call(folder, sys.executable, "-m", "ppo_unified", *words)


def weights(run: Run) -> dict[str, torch.Tensor]:
    found = load_newest(run, torch.device("cpu"))
    assert found is not None
    return found.policy


def train(case: Case, folder: Path) -> tuple[dict[str, Any], float]:
    """Train a run in two halves and a run without interruption. Return run.json, and steps per second."""
    size = ("--gym.num-envs", str(case.num_envs), "--gym.num-steps", str(case.num_steps))
    fixed = ("--optim.no-anneal", "--eval.at-start", "--eval.every-steps", "0", "--eval.episodes", str(EPISODES))
    options = ("train", case.target, *case.options, *size, *fixed, "--total-steps", "0")
    half, whole = str(case.iterations // 2), str(case.iterations)
    ppo(folder, *options, "--total-iterations", half, "--name", "resumed")
    ppo(folder, "resume", "resumed", "--total-iterations", whole)
    started = time.perf_counter()
    ppo(folder, *options, "--total-iterations", whole, "--name", "uninterrupted")
    seconds = time.perf_counter() - started
    status = json.loads((folder / "runs/resumed/run.json").read_text(encoding="utf-8"))
    first, second = (weights(Run(folder / "runs" / name)) for name in ("resumed", "uninterrupted"))
    status["equal"] = all(torch.equal(first[key], second[key]) for key in second)
    return status, status["step"] / seconds


def check(name: str, case: Case, folder: Path) -> str:
    """Run all commands for an environment and return its row of the table. Raises CommandError."""
    status, speed = train(case, folder)
    restored = status["resumes"][-1]["restored"]
    resume = restored if restored != "exact" else f"exact; weights {'equal' if status['equal'] else '**differ**'}"
    curves = json.loads(ppo(folder, "show", "uninterrupted", "--metric", "eval/score", "--json"))
    before = curves["uninterrupted"]["eval/score"]["values"][0]
    after = json.loads(ppo(folder, "eval", "uninterrupted", "--episodes", str(EPISODES), "--json"))["score"]
    played = ppo(folder, "play", "uninterrupted", "--episodes", "1")
    if not played.strip():
        raise CommandError("play printed nothing")
    ppo(folder, "export", "uninterrupted", "--to", "policy")
    exported = call(folder, sys.executable, "policy/play.py").strip().splitlines()[-1]
    cells = [name, f"`{case.target}`", f"{case.package} {version(case.package)}", f"{status['step']:,}"]
    cells += [f"{speed:,.0f}", f"{before:.4g}", f"{after:.4g}", resume, exported]
    return "| " + " | ".join(cells) + " |"


def update_table(out: Path | None, name: str, line: str) -> None:
    """Print the row of an environment and add it to the table in `out`, where it replaces an older row."""
    print(line, flush=True)
    if out is None:
        return
    lines = out.read_text(encoding="utf-8").splitlines() if out.exists() else []
    old = {row.split("|")[1].strip(): row for row in lines if row.startswith("| ")}
    rows = old | {name: line}
    packages = ", ".join(f"{package} {version(package)}" for package in ("torch", "gymnasium", "numpy"))
    machine = f"{platform.system()} {platform.machine()}, Python {platform.python_version()}, {packages}"
    command = shlex.join(["python", *sys.argv])
    header = HEADER.format(episodes=EPISODES, command=command, today=date.today(), machine=machine)
    text = header + "".join(f"{rows[case]}\n" for case in CASES if case in rows)
    out.write_text(text, encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "names", nargs="*", default=list(CASES), help=f"environments (default: all): {', '.join(CASES)}"
    )
    parser.add_argument("--out", type=Path, help="also write each finished row to the table in this file")
    options = parser.parse_args()
    failed = 0
    for name in options.names:
        with tempfile.TemporaryDirectory() as folder:
            try:
                update_table(options.out, name, check(name, CASES[name], Path(folder)))
            except (CommandError, subprocess.TimeoutExpired) as error:
                failed += 1
                print(f"{name}: {error}", file=sys.stderr, flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
