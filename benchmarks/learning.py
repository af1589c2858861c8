"""Train presets with several seeds and evaluate the best checkpoint of each run on new episodes.

python benchmarks/learning.py [PRESET ...] [--seeds 3] [--jobs 1] [--out benchmarks/learning.md]

Each finished run adds a line to a file with the name of OUT and the extension .jsonl. The page OUT is written from
this file. Runs in this file are not repeated; to repeat all runs, delete it first.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import shlex
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ppo_unified import load_preset, run
from ppo_unified.runs.folder import Run
from ppo_unified.training.evaluation import evaluate
from ppo_unified.training.session import load_adapter

THRESHOLDS = {  # the mean over seeds of the greedy score must be at least this
    "cartpole": 475.0,
    "acrobot": -90.0,
    "mountaincar": -115.0,
    "mountaincar-continuous": 90.0,
    "pendulum": -200.0,
    "lunarlander": 200.0,
    "lunarlander-continuous": 200.0,
    "frozenlake": 0.7,
    "taxi": 7.0,
    "catch": 0.9,
    "cliffwalking": -17.0,
    "blackjack": -0.07,
    "minigrid-empty": 0.95,
    "minigrid-doorkey": 0.95,
}
PIXELS = {"catch"}  # presets whose observations are images
EPISODES, MANY = 100, {"blackjack": 10_000}  # the return of a game of blackjack is -1, 0 or 1, so its mean is noisy
UNSEEN_SEED = 1_000_000  # far from the seeds of the evaluations during training
PAGE = """\
# {title}

The score is the greedy score of the best checkpoint over {episodes} episodes (blackjack: {many}) with new seeds.
Seconds are the wall time of a run, including its evaluations and checkpoints but not the imports, in one process with
one thread. The seconds of the runs on 2026-11-30 are not reliable, because other programs ran at the same time.

Command: `{command}`; {machine}

| preset | target score | mean score | range | seeds | steps | seconds per seed | target met | date |
|---|---|---|---|---|---|---|---|---|
{rows}
"""


class TrainingResult(NamedTuple):
    preset: str
    seed: int
    score: float
    steps: int
    seconds: float
    day: str


def train_and_score(preset: str, seed: int) -> TrainingResult:
    config = load_preset(preset, seed=seed)
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        finished = Run(run(config, runs=Path(folder)).path)
        seconds = time.perf_counter() - started
        adapter, _ = load_adapter(finished, config, "best")
        score = evaluate(adapter, MANY.get(preset, EPISODES), UNSEEN_SEED + seed, greedy=True)["score"]
        adapter.close()
        return TrainingResult(preset, seed, score, finished.read_status().step, seconds, str(date.today()))


def reaches_target(preset: str, trained: Sequence[TrainingResult]) -> bool:
    return bool(np.mean([t.score for t in trained]) >= THRESHOLDS[preset])


def format_row(preset: str, trained: Sequence[TrainingResult]) -> str:
    scores = np.array([t.score for t in trained])
    steps, seconds = np.mean([t.steps for t in trained]), np.mean([t.seconds for t in trained])
    spread = f"{scores.min():.4g} to {scores.max():.4g}"
    verdict = "yes" if reaches_target(preset, trained) else "**no**"
    cells = [preset, f"{THRESHOLDS[preset]:g}", f"{scores.mean():.4g}", spread, len(scores), f"{steps:,.0f}"]
    return f"| {' | '.join(map(str, cells))} | {seconds:.0f} | {verdict} | {max(t.day for t in trained)} |"


def write_page(path: Path, groups: dict[str, list[TrainingResult]]) -> None:
    packages = ", ".join(f"{package} {version(package)}" for package in ("torch", "gymnasium", "numpy"))
    trained_presets = {preset for preset, trained in groups.items() if trained}
    page = PAGE.format(
        title="Learning from pixels" if trained_presets <= PIXELS else "Learning",
        episodes=EPISODES,
        many=f"{MANY['blackjack']:,}",
        command=shlex.join(["python", "benchmarks/learning.py", *sys.argv[1:]]),
        machine=f"{platform.system()} {platform.machine()}, Python {platform.python_version()}, {packages}",
        rows="\n".join(format_row(preset, trained) for preset, trained in groups.items() if trained),
    )
    path.write_text(page, encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("presets", nargs="*", default=list(THRESHOLDS), help="presets to train (default: all)")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds (default: 3)")
    parser.add_argument("--first-seed", type=int, default=1, help="first seed (default: 1)")
    parser.add_argument("--jobs", type=int, default=1, help="number of runs at the same time (default: 1)")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/learning.md"), help="the page to write")
    options = parser.parse_args()
    kept = options.out.with_suffix(".jsonl")
    lines = kept.read_text(encoding="utf-8").splitlines() if kept.exists() else []
    groups: dict[str, list[TrainingResult]] = {preset: [] for preset in THRESHOLDS}
    for result in (TrainingResult(**json.loads(line)) for line in lines):
        groups[result.preset].append(result)
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    missing = [(p, s) for p in options.presets for s in seeds if all(s != t.seed for t in groups[p])]
    with ProcessPoolExecutor(options.jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        for future in as_completed([pool.submit(train_and_score, *pair) for pair in missing]):
            result = future.result()
            groups[result.preset].append(result)
            with kept.open("a", encoding="utf-8") as file:
                file.write(json.dumps(result._asdict()) + "\n")
            print(f"{result.preset}, seed {result.seed}: {result.score:.4g} in {result.seconds:.0f} s", flush=True)
    write_page(options.out, groups)
    return 0 if all(reaches_target(preset, groups[preset]) for preset in options.presets) else 1


if __name__ == "__main__":
    sys.exit(main())
