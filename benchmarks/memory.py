"""Train recurrent and feed-forward policies on tmaze, which no policy without memory solves.

python benchmarks/memory.py [gru] [lstm] [mlp] [--seeds 3] [--jobs 1] [--out benchmarks/memory.md]

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
from concurrent.futures import ProcessPoolExecutor, as_completed
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from ppo_unified import load_preset, run
from ppo_unified.runs.event_reader import EventReader
from ppo_unified.runs.folder import Run
from ppo_unified.terminal.chart import Line, draw
from ppo_unified.training.evaluation import evaluate
from ppo_unified.training.session import load_adapter

POLICIES = ("gru", "lstm", "mlp")
EPISODES = 1000
UNSEEN_SEED = 1_000_000  # far from the seeds of the evaluations during training
WIDTH, HEIGHT = 110, 20  # of the chart
PAGE = """\
# Memory

The preset `tmaze` shows a sign in the first observation. The agent then walks 10 steps to a junction, where it turns to
the side that the sign indicates. No policy without memory has an expected score above 0.5 (the reason is in
`envs/gym/memory_tasks.py`). The policies are the preset's GRU, an LSTM (`policy.torso = "lstm"`) and a feed-forward
network (`policy.torso = "mlp"`). All other options are those of the preset. A run ends when the task is solved, or
after {steps:,} steps.

The biases of the LSTM's forget gates start at 1 (Jozefowicz et al. 2015,
https://proceedings.mlr.press/v37/jozefowicz15.html). With biases of 0, an LSTM did not solve the task (seeds 1 and 2:
scores of 0.502 and 0.504 after 200,000 steps).

The score is the greedy score of the best checkpoint over {episodes:,} episodes with new seeds. Minutes are the wall
time of a run, including its evaluations and checkpoints, in one process with one thread. Other programs used the same
two cores, so the numbers of steps per second are lower than on an idle machine, and vary.

Command: `{command}`; {machine}

| policy | seed | solved after steps | score | steps | minutes | steps/s | date |
|---|---|---|---|---|---|---|---|
{rows}

Greedy scores during training, one curve per run. Legend: letter, policy, seed, last score.

```
{chart}
```
"""


def train_and_score(torso: str, seed: int) -> dict[str, Any]:
    config = load_preset("tmaze", seed=seed, policy={"torso": torso})
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        finished = Run(run(config, runs=Path(folder)).path)
        seconds = time.perf_counter() - started
        reader = EventReader(finished.path)
        reader.poll()
        scores, status = reader.series["eval/score"], finished.read_status()
        adapter, _ = load_adapter(finished, config, "best")
        score = evaluate(adapter, EPISODES, UNSEEN_SEED + seed, greedy=True)["score"]
        adapter.close()
    return {
        "policy": torso,
        "seed": seed,
        "solved": status.solved_step,
        "score": score,
        "steps": status.step,
        "seconds": seconds,
        "curve": list(zip(scores.steps.tolist(), scores.values.tolist(), strict=True)),
        "day": str(date.today()),
    }


def format_row(result: dict[str, Any]) -> str:
    solved = "not solved" if result["solved"] is None else f"{result['solved']:,}"
    speed = f"{result['steps'] / result['seconds']:,.0f}"
    cells = [result["policy"], result["seed"], solved, f"{result['score']:.3f}", f"{result['steps']:,}"]
    return f"| {' | '.join(map(str, cells))} | {result['seconds'] / 60:.1f} | {speed} | {result['day']} |"


def write_page(path: Path, results: list[dict[str, Any]]) -> None:
    results = sorted(results, key=lambda result: (POLICIES.index(result["policy"]), result["seed"]))
    lines = [
        Line(f"{result['policy']} {result['seed']}", *np.array(result["curve"], dtype=float).T) for result in results
    ]
    packages = ", ".join(f"{package} {version(package)}" for package in ("torch", "gymnasium", "numpy"))
    page = PAGE.format(
        steps=load_preset("tmaze").total_steps,
        episodes=EPISODES,
        command=shlex.join(["python", "benchmarks/memory.py", *sys.argv[1:]]),
        machine=f"{platform.system()} {platform.machine()}, Python {platform.python_version()}, {packages}",
        rows="\n".join(map(format_row, results)),
        chart="\n".join(row.rstrip() for row in draw(lines, WIDTH, HEIGHT)),
    )
    path.write_text(page, encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("policies", nargs="*", default=list(POLICIES), help="default: all")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds (default: 3)")
    parser.add_argument("--jobs", type=int, default=1, help="number of runs at the same time (default: 1)")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/memory.md"), help="the page to write")
    options = parser.parse_args()
    kept = options.out.with_suffix(".jsonl")
    lines = kept.read_text(encoding="utf-8").splitlines() if kept.exists() else []
    results = [json.loads(line) for line in lines]
    done = {(result["policy"], result["seed"]) for result in results}
    wanted = [(torso, seed) for torso in options.policies for seed in range(1, options.seeds + 1)]
    missing = [pair for pair in wanted if pair not in done]
    with ProcessPoolExecutor(options.jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        for future in as_completed([pool.submit(train_and_score, *pair) for pair in missing]):
            results.append(result := future.result())
            with kept.open("a", encoding="utf-8") as file:
                file.write(json.dumps(result) + "\n")
            write_page(options.out, results)
            print(f"{result['policy']}, seed {result['seed']}: {result['score']:.3f}", flush=True)
    write_page(options.out, results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
