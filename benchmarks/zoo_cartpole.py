"""Steps to the first greedy score of 475 on CartPole with the rl-zoo's hyper-parameters, ours beside stable-baselines3.

    python benchmarks/zoo_cartpole.py [--seeds 10] [--peer-python PYTHON --peer-script FILE] [--out FILE]

Both are probed every 2,048 steps on 100 greedy episodes. The zoo's value loss is the full squared error with weight
0.5; ours is half of it, so the same weight is `ppo.value_coef = 1`.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import tempfile
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from cold_start import measure_peer

from ppo_unified import load_preset, run
from ppo_unified.runs.event_reader import EventReader

ZOO: dict[str, Any] = {
    "total_steps": 100_000,
    "gym": {"num_envs": 8, "num_steps": 32},
    "ppo": {"epochs": 20, "minibatches": 1, "gamma": 0.98, "lam": 0.8, "anneal_clip": True, "value_coef": 1.0},
    "optim": {"lr": 1e-3},
    "eval": {"every_steps": 2048, "episodes": 100, "threshold": 475.0},
}


def steps_to_475(seed: int) -> int:
    """Steps at the first evaluation of 475 or more."""
    with tempfile.TemporaryDirectory() as folder:
        path = run(load_preset("cartpole", seed=seed, **ZOO), runs=folder).path
        reader = EventReader(path)
        reader.poll()
    steps, _, scores = reader.series["eval/score"].numpy()
    return int(steps[np.flatnonzero(scores >= 475)[0]])


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--peer-python", type=Path, help="a Python that has stable-baselines3")
    parser.add_argument("--peer-script", type=Path, help="prints RESULT {json} with greedy_solved: {t, step}")
    parser.add_argument("--out", type=Path, help="write the table here too")
    options = parser.parse_args()
    lines = ["| seed | ours, steps | stable-baselines3, steps |", "|---|---|---|"]
    mine, theirs = [], []
    for seed in range(1, options.seeds + 1):
        mine.append(steps_to_475(seed))
        cell = "-"
        if options.peer_python and options.peer_script:
            theirs.append(measure_peer(options.peer_python, options.peer_script, seed)[1])
            cell = f"{theirs[-1]:,}"
        lines.append(f"| {seed} | {mine[-1]:,} | {cell} |")
        print(lines[-1], flush=True)
    for name, pick in (("median", statistics.median), ("least", min), ("most", max)):
        lines.append(f"| {name} | {pick(mine):,.0f} | {f'{pick(theirs):,.0f}' if theirs else '-'} |")
        print(lines[-1])
    if options.out:
        packages = ", ".join(f"{package} {version(package)}" for package in ("torch", "gymnasium", "numpy"))
        machine = f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"
        command = f"python benchmarks/zoo_cartpole.py --seeds {options.seeds}"
        command += " --peer-python PYTHON --peer-script SCRIPT" if theirs else ""
        where = f"Command: `{command}`; {date.today()}; {machine}, {packages}."
        what = (__doc__ or "").split("\n", 4)[4].strip()
        head = f"# CartPole with the rl-zoo's hyper-parameters\n\n{what}\n\n{where}\n\n"
        options.out.write_text(head + "\n".join(lines) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
