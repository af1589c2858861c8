"""Search for options for CartPole, kill a worker during the search, and train the best options on new seeds.

    python benchmarks/sweep.py [--trials 20] [--workers 2] [--seeds 20] [--out benchmarks/sweep.md]

A trial is a single run, so the best one may be best by chance. Therefore, the options of the best trials are trained on
more seeds. The best of these options are compared with those of the preset on further seeds.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from ppo_unified.runs.folder import Run

SPACE = ["optim.lr=1e-4..1e-2 log", "ppo.epochs=4..20", "gym.num_steps=16,32,64", "policy.activation=tanh,relu"]
RETRAINED = 3  # number of the best trials whose options are trained again, on other seeds
CHOICE_SEEDS, FIRST_SEED = "11-15", 101  # the search uses seed 1
PPO = [sys.executable, "-m", "ppo_unified"]


def search(trials: int, workers: int) -> tuple[list[str], bool]:
    """Run the sweep in the current folder, and kill one of its workers while it trains the third trial.

    Return the command, and whether a worker was killed.
    """
    command = ["sweep", "cartpole", "--space", *SPACE, "--objective", "mean_score"]
    command += ["--trials", str(trials), "--workers", str(workers)]
    killed = False
    with subprocess.Popen([*PPO, *command]) as process:
        while process.poll() is None:
            time.sleep(0.1)
            run = Run(Path("runs", "cartpole-sweep-2"))
            if not killed and (run.path / "run.json").exists() and run.read_status().step > 0:
                worker = run.holder()
                assert worker in [child.pid for child in psutil.Process(process.pid).children()]
                psutil.Process(worker).send_signal(signal.SIGKILL)
                killed = True
    assert process.returncode == 0, process.returncode
    return command, killed


def train_seeds(runs: Mapping[str, Sequence[str]], seeds: str) -> list[dict[str, Any]]:
    """Train options, given as {name: flags}, on several seeds. Return the groups of `compare --seeds --json`."""
    for name, flags in runs.items():
        subprocess.run([*PPO, "train", "cartpole", *flags, "--seed", seeds, "--name", name], check=True)
    names = [path.name for name in runs for path in sorted(Path("runs").glob(f"{name}-s*"))]
    shown = subprocess.run(
        [*PPO, "compare", "--seeds", *names, "--json"], check=True, stdout=subprocess.PIPE, text=True
    )
    groups: list[dict[str, Any]] = json.loads(shown.stdout)["groups"]
    return groups


def choose_options() -> tuple[int, list[str]]:
    """Train the options of the best trials on more seeds. Return the best trial's number and its flags.

    The best options solve the task with the most seeds or, if these numbers are equal, in the fewest steps.
    """
    found = [Run(path).read_status() for path in Path("runs").glob("cartpole-sweep-*")]
    ranked = sorted((s for s in found if s.state == "finished"), key=lambda status: -status.sweep["value"])
    flags = {}
    for status in ranked[:RETRAINED]:
        words = shlex.split(Run(Path("runs", status.name)).command.read_text(encoding="utf-8"))
        flags[f"trial{status.sweep['trial']}"] = [word for word in words[3:] if word != "--eval.at-start"]
    groups = train_seeds(flags, CHOICE_SEEDS)
    steps = [group["solved_step"] for group in groups]
    best = min(range(len(groups)), key=lambda k: (-steps[k]["runs"], steps[k]["iqm"]))
    name = list(flags)[best]
    return int(name.removeprefix("trial")), flags[name]


def describe(group: dict[str, Any], trial: int) -> str:
    """Return the row of a group: the numbers of seeds, and interquartile means with their intervals."""
    score, step = group["score"], group["solved_step"]
    label = "preset" if group["runs"][0].startswith("preset-") else f"trial {trial}"
    cells = [label, f"{step['runs']} of {len(group['runs'])}"]
    for found, places in ((score, 1), (step, 0)):
        cells.append(f"{found['iqm']:,.{places}f} [{found['iqm_low']:,.{places}f}, {found['iqm_high']:,.{places}f}]")
    return f"| {' | '.join(cells)} |"


def trial_rows() -> list[str]:
    """Return a row for each trial, by number."""
    rows = []
    for path in sorted(Path("runs").glob("cartpole-sweep-*"), key=lambda path: int(path.name.rpartition("-")[2])):
        status = Run(path).read_status()
        cells = [str(status.sweep["trial"]), *status.sweep["options"].values(), f"{status.sweep['value']:.1f}"]
        rows.append(f"| {' | '.join([*cells, f'{status.step:,}', status.reason.partition(':')[0]])} |")
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--trials", type=int, default=20, help="number of trials (default: 20)")
    parser.add_argument("--workers", type=int, default=2, help="number of worker processes (default: 2)")
    parser.add_argument("--seeds", type=int, default=20, help="number of seeds of the comparison (default: 20)")
    parser.add_argument("--out", type=Path, help="also write the tables to this file")
    options = parser.parse_args()
    out = options.out and options.out.absolute()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        command, killed = search(options.trials, options.workers)
        number, flags = choose_options()
        last = FIRST_SEED + options.seeds - 1
        groups = train_seeds({"preset": [], "best": flags}, f"{FIRST_SEED}-{last}")
        rows, searched = trial_rows(), [word.partition("=")[0] for word in SPACE]
    versions = ", ".join(f"{name} {version(name)}" for name in ("optuna", "torch", "gymnasium", "numpy"))
    lines = [
        "# A sweep on CartPole",
        "",
        f"Command: `ppo-unified {shlex.join(command)}`; {date.today()}; {platform.system()} {platform.machine()}, "
        f"Python {platform.python_version()}, {versions}. "
        + ("One worker was killed with kill -9 while it trained trial 2." if killed else "No worker was killed."),
        "",
        "Each trial is a single run with seed 1. To reduce the effect of chance, the options of the "
        f"{RETRAINED} best trials were trained again on seeds {CHOICE_SEEDS}. The options of trial {number} solved the "
        f"task in the fewest steps: `{shlex.join(['ppo-unified', 'train', 'cartpole', *flags])}`. The table compares "
        f"trial {number} with the preset on seeds {FIRST_SEED}-{last}: interquartile means with 95 % bootstrap "
        "intervals (`ppo-unified compare --seeds`).",
        "",
        "| options | solved | last greedy score | steps until solved |",
        "|---|---|---|---|",
        *(describe(group, number) for group in groups),
        "",
        "All trials; trial 0 has the options of the preset:",
        "",
        f"| trial | {' | '.join(searched)} | mean_score | steps | result |",
        f"|---|{'---|' * len(searched)}---|---|---|",
        *rows,
    ]
    print("\n".join(lines))
    if out:
        out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
