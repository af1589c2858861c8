"""Measure the time from starting a process to a solved CartPole, optionally compared with stable-baselines3.

    python benchmarks/cold_start.py [--seeds 5] [--peer-python PYTHON] [--peer-script FILE] [--out FILE]

This project: the wall time of `ppo-unified train cartpole --seed S` from start to exit. It includes imports, event
files, checkpoints, evaluations and the confirmation on 2 x 100 episodes. Peer: a script trains stable-baselines3 with
the hyper-parameters of the RL Zoo and evaluates greedily every 2,048 steps. Its time is from the first line of the
script to the first evaluation of 475 or more, without the evaluations, which favours the peer. Runs alternate.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path


def measure_ours(seed: int) -> tuple[float, int, float]:
    """Return the wall time in seconds from start to exit, the steps and the best score."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "ppo_unified", "train", "cartpole", "--seed", str(seed), "--runs", folder]
        started = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        seconds = time.perf_counter() - started
        status = json.loads(next(Path(folder).glob("*/run.json")).read_text(encoding="utf-8"))
    if status["solved_step"] is None:
        raise SystemExit(f"the run with seed {seed} was not solved: {status}")
    return seconds, status["step"], status["best_score"]


def measure_peer(python: Path, script: Path, seed: int) -> tuple[float, int]:
    """Return the seconds and steps that the peer needs until its first greedy score of 475."""
    command = [str(python), str(script), "sb3", "zoo", str(seed), "100000", "--eval", "--stop", "--threads", "1"]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    solved = json.loads(output.split("RESULT ", 1)[1])["greedy_solved"]
    return solved["t"], solved["step"]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds (default: 5)")
    parser.add_argument("--first-seed", type=int, default=101, help="first seed (default: 101)")
    parser.add_argument("--peer-python", type=Path, help="Python interpreter with stable-baselines3")
    parser.add_argument(
        "--peer-script", type=Path, help="script that prints RESULT {json} with greedy_solved: {t, step}"
    )
    parser.add_argument("--out", type=Path, help="also write the table to this file")
    options = parser.parse_args()
    lines = ["| seed | time (s) | steps | score | peer: time (s) | peer: steps |", "|---|---|---|---|---|---|"]
    mine, theirs = [], []
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        seconds, steps, score = measure_ours(seed)
        mine.append(seconds)
        cells = [str(seed), f"{seconds:.2f}", f"{steps:,}", f"{score:g}", "-", "-"]
        if options.peer_python and options.peer_script:
            peer_seconds, peer_steps = measure_peer(options.peer_python, options.peer_script, seed)
            theirs.append(peer_seconds)
            cells[4:] = [f"{peer_seconds:.2f}", f"{peer_steps:,}"]
        lines.append("| " + " | ".join(cells) + " |")
        print(lines[-1], flush=True)
    medians = [f"{statistics.median(mine):.2f}", f"{statistics.median(theirs):.2f}" if theirs else "-"]
    lines.append(f"| median | {medians[0]} | | | {medians[1]} | |")
    print(lines[-1])
    if options.out:
        packages = ", ".join(f"{package} {version(package)}" for package in ("torch", "gymnasium", "numpy"))
        machine = (
            f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
        )
        command = f"python benchmarks/cold_start.py --seeds {options.seeds}"
        command += " --peer-python PYTHON --peer-script SCRIPT" if theirs else ""
        head = f"# CartPole from cold start to solved\n\n{(__doc__ or '').split(chr(10), 4)[4]}\n"
        head += f"Command: `{command}`; {date.today()}; {machine}, {packages}.\n\n"
        options.out.write_text(head + "\n".join(lines) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
