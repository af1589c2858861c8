"""Train presets with several seeds and evaluate the best checkpoint of each run on new episodes.

python benchmarks/learning.py [PRESET ...] [--seeds 3] [--out benchmarks/learning.md]
"""

from __future__ import annotations

import argparse
import platform
import shlex
import sys
import tempfile
import time
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
}
EPISODES = 100
UNSEEN_SEED = 1_000_000  # far from the seeds of the evaluations during training


class TrainingResult(NamedTuple):
    score: float
    steps: int
    seconds: float


def train_and_score(preset: str, seed: int, folder: Path) -> TrainingResult:
    config = load_preset(preset, seed=seed)
    started = time.perf_counter()
    path = run(config, runs=folder).path
    seconds = time.perf_counter() - started
    finished = Run(path)
    adapter, _ = load_adapter(finished, config, "best")
    score = evaluate(adapter, EPISODES, UNSEEN_SEED + seed, greedy=True)["score"]
    adapter.close()
    return TrainingResult(score, finished.read_status().step, seconds)


def row(preset: str, trained: list[TrainingResult]) -> tuple[str, bool]:
    """Return a line of the table, and True if the mean reaches the threshold."""
    scores = np.array([t.score for t in trained])
    passed = bool(scores.mean() >= THRESHOLDS[preset])
    steps, seconds = np.mean([t.steps for t in trained]), np.mean([t.seconds for t in trained])
    spread = f"{scores.min():.4g} to {scores.max():.4g}"
    verdict = "yes" if passed else "**no**"
    cells = [preset, f"{THRESHOLDS[preset]:g}", f"{scores.mean():.4g}", spread, len(scores), f"{steps:,.0f}"]
    return "| " + " | ".join(map(str, [*cells, f"{seconds:.0f}", verdict])) + " |", passed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("presets", nargs="*", default=list(THRESHOLDS), help="presets to train (default: all)")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds (default: 3)")
    parser.add_argument("--first-seed", type=int, default=1, help="first seed (default: 1)")
    parser.add_argument("--out", type=Path, help="also write the table to this file")
    options = parser.parse_args()
    lines = [
        f"The score is the greedy score of the best checkpoint over {EPISODES} episodes with new seeds. Seconds are "
        "the wall time of a run, including its evaluations and checkpoints but not the imports, in one process with "
        "one thread.",
        "",
        f"Command: `{shlex.join(['python', *sys.argv])}`; {date.today()}; {platform.system()} {platform.machine()}, "
        f"Python {platform.python_version()}, "
        + ", ".join(f"{package} {version(package)}" for package in ("torch", "gymnasium", "numpy")),
        "",
        "| preset | target score | mean score | range | seeds | steps | seconds per seed | target met |",
        "|---|---|---|---|---|---|---|---|",
    ]
    passed = True
    for preset in options.presets:
        with tempfile.TemporaryDirectory() as folder:
            seeds = range(options.first_seed, options.first_seed + options.seeds)
            line, good = row(preset, [train_and_score(preset, seed, Path(folder)) for seed in seeds])
        lines.append(line)
        passed &= good
        print(line, flush=True)
    if options.out:
        options.out.write_text("# Learning\n\n" + "\n".join(lines) + "\n", encoding="utf-8")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
