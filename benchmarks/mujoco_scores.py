"""Train continuous-control presets with several seeds, here and in stable-baselines3 with the same options.

    python benchmarks/mujoco_scores.py [--peer-python PYTHON] [--only TASK ...] [--jobs 1] [--out benchmarks/mujoco.md]

Each finished run adds a line to a file with the name of OUT and the extension .jsonl. The page OUT is written from
this file. Runs in this file are not repeated. Without --peer-python, only this project's runs are trained. This script
cannot be named mujoco.py, because Python would import it instead of the package mujoco.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import subprocess
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import date
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from mujoco_episodes import play

from envs.gym.eval import Player
from envs.gym.options import GymConfig
from envs.gym.vector import GymAdapter
from ppo_unified import load_preset, run
from ppo_unified.runs.event_reader import EventReader
from ppo_unified.runs.folder import Run
from ppo_unified.runs.interquartile import iqm_interval
from ppo_unified.training.session import load_adapter

OURS, PEER = "ours", "stable-baselines3"
EPISODES, FIRST_EVALUATION_SEED = 100, 1_000_000  # the environments' seeds are the same for all runs
PACKAGES = ("torch", "gymnasium", "mujoco", "numpy")


class Task(NamedTuple):
    steps: int
    sides: tuple[str, ...]
    seeds: int
    published: tuple[str, ...]  # the columns of the page after the measured ones


COMPARED = {  # published: CleanRL v4, tianshou v3, RL Zoo v3, Spinning Up
    "inverted-pendulum": Task(1_000_000, (OURS, PEER), 3, ("963", "1,000", "-", "-")),
    "hopper": Task(1_000_000, (OURS, PEER), 3, ("2,383 ± 272", "2,609 ± 701", "2,410 ± 10", "about 1,850")),
    "walker2d": Task(1_000_000, (OURS, PEER), 3, ("2,288 ± 572", "3,589 ± 757", "3,479 ± 822", "about 1,230")),
    "halfcheetah": Task(1_000_000, (OURS, PEER), 3, ("1,443 ± 46", "5,784 ± 1,244", "5,819 ± 664", "about 1,670")),
    "inverted-double-pendulum": Task(1_000_000, (OURS,), 1, ("-", "9,231 ± 270", "-", "-")),
    "swimmer": Task(1_000_000, (OURS,), 1, ("-", "67 ± 99", "282 ± 10", "about 120")),
    "ant": Task(1_000_000, (OURS,), 1, ("-", "3,258 ± 1,079", "1,327 ± 452", "about 650")),
}
PPO_FOR_BEGINNERS = {  # published: medians of PPO-for-Beginners and of stable-baselines3 in its comparison
    "lunarlander-continuous": Task(1_000_000, (OURS,), 3, ("102", "164")),
    "mountaincar-continuous": Task(400_000, (OURS,), 3, ("-49.7", "-0.003")),
    "pendulum": Task(1_000_000, (OURS,), 3, ("-310", "-171")),
    "bipedalwalker": Task(1_400_000, (OURS,), 3, ("155", "172")),
}
TASKS = COMPARED | PPO_FOR_BEGINNERS


class Row(NamedTuple):
    """A finished run."""

    task: str
    side: str
    seed: int
    steps: int
    score: float  # mean total reward of the final greedy policy over EPISODES new episodes
    train_return: float  # mean total reward of the last 100 training episodes, with sampled actions
    seconds: float  # duration of the training; says little if other programs ran at the same time
    cpu_seconds: float
    versions: str
    day: str

    @property
    def key(self) -> tuple[str, str, int]:
        return self.task, self.side, self.seed


def train_ours(task: str, seed: int) -> dict[str, Any]:
    """Train a preset and evaluate its final policy."""
    changes: dict[str, Any] = {"gym": {"vectorization": "sync"}, "eval": {"every_steps": 0, "episodes": 1}}
    config = load_preset(task, seed=seed, total_steps=TASKS[task].steps, **changes)
    assert isinstance(config, GymConfig)
    with tempfile.TemporaryDirectory() as folder:
        wall, cpu = time.perf_counter(), time.process_time()
        finished = Run(run(config, runs=folder).path)
        seconds, cpu_seconds = time.perf_counter() - wall, time.process_time() - cpu
        reader = EventReader(finished.path)
        reader.poll()
        adapter, steps = load_adapter(finished, config, "latest")
    assert isinstance(adapter, GymAdapter)
    player = Player(adapter.policy, adapter.observations, adapter.actions, adapter.device, None)
    make = partial(gym.make, config.gym.env_id, **config.gym.env_kwargs)
    seeds = range(FIRST_EVALUATION_SEED, FIRST_EVALUATION_SEED + EPISODES)
    score = float(np.mean(play(make, seeds, lambda obs: player(obs, {}))))
    adapter.close()
    return {
        "steps": steps,
        "score": score,
        "train_return": float(reader.series["episode/return"].numpy()[2][-1]),
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "versions": " ".join(f"{package} {version(package)}" for package in PACKAGES),
    }


def train_peer(task: str, seed: int, python: str) -> dict[str, Any]:
    """Train the same task with stable-baselines3 in its own environment."""
    config = load_preset(task)
    assert isinstance(config, GymConfig)
    numbers = (seed, TASKS[task].steps, FIRST_EVALUATION_SEED, EPISODES)
    script = Path(__file__).with_name("mujoco_peer.py")
    command = [python, str(script), config.gym.env_id, *map(str, numbers)]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    found: dict[str, Any] = json.loads(output.split("RESULT ", 1)[1])
    return found


def read_rows(path: Path) -> list[Row]:
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [Row(**json.loads(line)) for line in lines]


def add_run(key: tuple[str, str, int], python: str, path: Path) -> None:
    """Train and evaluate one run and append it to the file `path`, unless the file already contains it."""
    if key in {row.key for row in read_rows(path)}:
        return
    task, side, seed = key
    found = train_ours(task, seed) if side == OURS else train_peer(task, seed, python)
    row = Row(task, side, seed, day=str(date.today()), **found)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row._asdict()) + "\n")
    print(f"{task}, {side}, seed {seed}: score {row.score:.4g}, training return {row.train_return:.4g}", flush=True)


def format_number(number: float) -> str:
    return f"{number:,.0f}" if abs(number) >= 100 else f"{number:.1f}"


def format_scores(scores: np.ndarray) -> str:
    """Return 'mean [low, high]', the single score, or '-' if there are no runs."""
    if not len(scores):
        return "-"
    mean, low, high = map(format_number, iqm_interval([scores.tolist()]))
    return f"{mean} [{low}, {high}]" if len(scores) > 1 else mean


def reaches_peer(ours: np.ndarray, theirs: np.ndarray) -> str:
    """Return whether our interquartile mean reaches the peer's or both intervals overlap; "-" without both sides."""
    if not len(ours) or not len(theirs):
        return "-"
    own, peer = (iqm_interval([scores.tolist()]) for scores in (ours, theirs))
    return "yes" if own.mean >= peer.mean or own.high >= peer.low else "**no**"


def select(rows: Sequence[Row], task: str, side: str, quantity: str) -> np.ndarray:
    return np.array([getattr(row, quantity) for row in rows if (row.task, row.side) == (task, side)], dtype=float)


def compared_row(rows: Sequence[Row], name: str) -> str:
    scores = [select(rows, name, side, "score") for side in (OURS, PEER)]
    returns = [select(rows, name, side, "train_return") for side in (OURS, PEER)]
    seeds = " / ".join(str(len(x)) for x in scores)
    cells = [name, seeds, *map(format_scores, scores), reaches_peer(*scores), *map(format_scores, returns)]
    return f"| {' | '.join([*cells, *COMPARED[name].published])} |"


def beginners_row(rows: Sequence[Row], name: str) -> str:
    returns, task = select(rows, name, OURS, "train_return"), PPO_FOR_BEGINNERS[name]
    better = "-"
    if len(returns):
        better = "yes" if np.median(returns) > max(map(float, task.published)) else "**no**"
    spread = f"{format_number(returns.min())} to {format_number(returns.max())}" if len(returns) else "-"
    median = format_number(float(np.median(returns))) if len(returns) else "-"
    cells = [name, f"{task.steps:,}", str(len(returns)), median, spread, *task.published, better]
    return f"| {' | '.join(cells)} |"


def write_page(path: Path, rows: Sequence[Row]) -> None:
    page = PAGE.format(
        episodes=EPISODES,
        versions="; ".join(dict.fromkeys(f"{row.side}: {row.versions}" for row in rows)),
        days=" to ".join(sorted({min(row.day for row in rows), max(row.day for row in rows)})) if rows else "-",
        compared="\n".join(compared_row(rows, name) for name in COMPARED),
        beginners="\n".join(beginners_row(rows, name) for name in PPO_FOR_BEGINNERS),
    )
    path.write_text(page, encoding="utf-8")


PAGE = """\
# MuJoCo and other continuous tasks

Command: `python benchmarks/mujoco_scores.py --peer-python PYTHON`; {days}; {versions}

## MuJoCo v5, 1,000,000 steps

Both sides use the options of the presets, which are those of CleanRL's `ppo_continuous_action.py` with eight
environments and without clipping the value loss. The score is the mean total reward of the final greedy policy over
{episodes} new episodes, whose seeds are the same for all runs. The training return is the mean total reward of the last
100 training episodes, in which actions are sampled.

Each cell is the interquartile mean over seeds (with three seeds, the mean) with a 95 % bootstrap interval. "Reached" is
yes if our score is at least that of stable-baselines3 (SB3) or if the intervals overlap. Seeds are "ours / theirs".

The published numbers are for older versions of the tasks: CleanRL's are training returns in v4; those of tianshou and
the RL Zoo are evaluations in v3; Spinning Up's are read off its plots. tianshou and the RL Zoo use other options.

| task | seeds | score: ours | SB3 | reached | training: ours | SB3 | CleanRL v4 | tianshou v3 | Zoo v3 | Spinning Up |
|---|---|---|---|---|---|---|---|---|---|---|
{compared}

## The tasks of PPO-for-Beginners

As in the comparison of PPO-for-Beginners, the measure is the training return at the end. The published numbers are
medians of five seeds in older versions of the tasks, with PPO-for-Beginners and with stable-baselines3. The presets of
this project use different options.

| task | steps | seeds | median, ours | range, ours | PPO-for-Beginners | stable-baselines3 there | above both |
|---|---|---|---|---|---|---|---|
{beginners}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--peer-python", default="", help="Python interpreter with stable-baselines3 and mujoco")
    parser.add_argument("--only", nargs="+", choices=TASKS, default=list(TASKS), metavar="TASK", help=", ".join(TASKS))
    parser.add_argument("--seeds", type=int, default=3, help="maximum number of seeds per task (default: 3)")
    parser.add_argument("--jobs", type=int, default=1, help="number of runs at the same time (default: 1)")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/mujoco.md"), help="the page to write")
    options = parser.parse_args()
    path = options.out.with_suffix(".jsonl")
    keys = [
        (name, side, seed)
        for seed in range(1, options.seeds + 1)
        for name in options.only
        for side in TASKS[name].sides
        if seed <= TASKS[name].seeds and (side == OURS or options.peer_python)
    ]
    with ProcessPoolExecutor(options.jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        futures = [pool.submit(add_run, key, options.peer_python, path) for key in keys]
    write_page(options.out, read_rows(path))
    for future in futures:
        future.result()  # raises the error of a failed run


if __name__ == "__main__":
    main()
