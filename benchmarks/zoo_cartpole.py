"""Count the steps to a greedy score of 475 on CartPole with the RL Zoo's options, here and in stable-baselines3.

    python benchmarks/zoo_cartpole.py [--seeds 10] [--peer-python PYTHON --peer-script FILE] [--out FILE]

Both are evaluated every 2,048 steps on 100 greedy episodes. The value loss in stable-baselines3 is the squared error
with coefficient 0.5. The value loss here is half the squared error, so the equivalent is `ppo.value_coef = 1`.
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
    """Return the number of steps at the first evaluation with a score of at least 475."""
    with tempfile.TemporaryDirectory() as folder:
        path = run(load_preset("cartpole", seed=seed, **ZOO), runs=folder).path
        reader = EventReader(path)
        reader.poll()
    steps, _, scores = reader.series["eval/score"].numpy()
    return int(steps[np.flatnonzero(scores >= 475)[0]])


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10, help="number of seeds (default: 10)")
    parser.add_argument("--peer-python", type=Path, help="Python interpreter with stable-baselines3")
    parser.add_argument(
        "--peer-script", type=Path, help="script that prints RESULT {json} with greedy_solved: {t, step}"
    )
    parser.add_argument("--out", type=Path, help="also write the table to this file")
    options = parser.parse_args()
    lines = ["| seed | steps, this project | steps, stable-baselines3 |", "|---|---|---|"]
    mine, theirs = [], []
    for seed in range(1, options.seeds + 1):
        mine.append(steps_to_475(seed))
        cell = "-"
        if options.peer_python and options.peer_script:
            theirs.append(measure_peer(options.peer_python, options.peer_script, seed)[1])
            cell = f"{theirs[-1]:,}"
        lines.append(f"| {seed} | {mine[-1]:,} | {cell} |")
        print(lines[-1], flush=True)
    for name, pick in (("median", statistics.median), ("minimum", min), ("maximum", max)):
        lines.append(f"| {name} | {pick(mine):,.0f} | {f'{pick(theirs):,.0f}' if theirs else '-'} |")
        print(lines[-1])
    if options.out:
        packages = ", ".join(f"{package} {version(package)}" for package in ("torch", "gymnasium", "numpy"))
        machine = f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"
        command = f"python benchmarks/zoo_cartpole.py --seeds {options.seeds}"
        command += " --peer-python PYTHON --peer-script SCRIPT" if theirs else ""
        where = f"Command: `{command}`; {date.today()}; {machine}, {packages}."
        what = (__doc__ or "").split("\n", 4)[4].strip()
        head = f"# CartPole with the hyper-parameters of the RL Zoo\n\n{what}\n\n{where}\n\n"
        options.out.write_text(head + "\n".join(lines) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
