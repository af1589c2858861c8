"""Measure the language-model presets: arithmetic with new seeds, and sentiment with and without the KL penalty.

python benchmarks/language.py [--seeds 5] [--studied 3] [--out benchmarks/language.md]
"""

from __future__ import annotations

import argparse
import platform
import shlex
import subprocess
import sys
import tempfile
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from envs.llm.adapter import LLMAdapter
from envs.llm.tiny import sentiment_reward_model, tiny_model
from ppo_unified import load_preset
from ppo_unified.runs.event_reader import EventReader
from ppo_unified.runs.folder import Run
from ppo_unified.training.session import load_adapter

FIRST_SEED = 101  # seeds that the presets were not tuned on
HELD_OUT = 2000  # all pairs that are in neither the supervised training data nor the prompts of PPO
LIMIT_S, SAMPLED, GREEDY, GAIN, KL = 240.0, 0.90, 0.95, 0.05, 10.0


class ArithmeticResult(NamedTuple):
    """The share of exact matches on held-out pairs before and after training, sampled at temperature 1 and greedy."""

    sampled: tuple[float, float]
    greedy: tuple[float, float]
    kl: float
    seconds: float  # wall time of the complete process

    @property
    def meets_target(self) -> bool:
        enough = self.sampled[1] >= SAMPLED and self.greedy[1] >= max(GREEDY, self.greedy[0] + GAIN)
        return enough and self.kl < KL and self.seconds <= LIMIT_S


def train(folder: Path, preset: str, seed: int, *flags: str) -> tuple[Run, float]:
    """Train a run in a new process and return it with the wall time in seconds from start to exit."""
    name = "-".join([preset, str(seed), *(flag.strip("-") for flag in flags)])
    command = [sys.executable, "-m", "ppo_unified", "train", preset, "--seed", str(seed), "--runs", str(folder)]
    started = time.perf_counter()
    subprocess.run([*command, "--name", name, *flags], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return Run(folder / name), time.perf_counter() - started


def read_series(run: Run, tag: str) -> list[float]:
    reader = EventReader(run.path)
    reader.poll()
    values: list[float] = reader.series[tag].values.tolist()
    return values


def accuracy(adapter: LLMAdapter, greedy: bool) -> float:
    return float(np.mean(adapter.score(HELD_OUT, 0, greedy)))


def measure_arithmetic(folder: Path, seed: int) -> ArithmeticResult:
    config = load_preset("arithmetic", seed=seed)
    torch.set_num_threads(config.threads)
    before = LLMAdapter(config, torch.device("cpu"))  # type: ignore[arg-type] # the preset is an LLMConfig
    run, seconds = train(folder, "arithmetic", seed)
    after, _ = load_adapter(run, config, "latest")
    assert isinstance(after, LLMAdapter)
    sampled, greedy = ((accuracy(before, mode), accuracy(after, mode)) for mode in (False, True))
    return ArithmeticResult(sampled, greedy, read_series(run, "eval/kl")[-1], seconds)


def arithmetic_rows(folder: Path, seeds: int) -> list[str]:
    rows = []
    for seed in range(FIRST_SEED, FIRST_SEED + seeds):
        got = measure_arithmetic(folder, seed)
        change = " | ".join(f"{before:.3f} -> {after:.3f}" for before, after in (got.sampled, got.greedy))
        reached = "yes" if got.meets_target else "**no**"
        rows.append(f"| {seed} | {change} | {got.kl:.2f} | {got.seconds:.0f} | {reached} |")
        print(rows[-1], file=sys.stderr, flush=True)
    return rows


def sentiment_rows(folder: Path, seeds: int) -> list[str]:
    rows = []
    for seed in range(FIRST_SEED, FIRST_SEED + seeds):
        for coef in ("", "0"):
            run, _ = train(folder, "sentiment", seed, *(("--llm.kl-coef=0",) if coef else ()))
            score, gold, kl = (read_series(run, f"eval/{tag}") for tag in ("sampled_score", "sentiment-gold", "kl"))
            deviation = read_series(run, "reward/score_std")[0]
            gain = (score[-1] - score[0]) / deviation
            rows.append(
                f"| {seed} | {coef or '0.1'} | {score[0]:.2f} -> {score[-1]:.2f} ({gain:+.1f} deviations) | "
                f"{gold[0]:.2f} -> {max(gold):.2f} -> {gold[-1]:.2f} | {kl[-1]:.1f} |"
            )
            print(rows[-1], file=sys.stderr, flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds for arithmetic (default: 5)")
    parser.add_argument("--studied", type=int, default=3, help="number of seeds for sentiment (default: 3)")
    parser.add_argument("--out", type=Path, help="also write the tables to this file")
    options = parser.parse_args()
    tiny_model(), sentiment_reward_model()  # create the models before the time is measured
    with tempfile.TemporaryDirectory() as name:
        sums_table, sentiment_table = (
            arithmetic_rows(Path(name), options.seeds),
            sentiment_rows(Path(name), options.studied),
        )
    versions = ", ".join(f"{package} {version(package)}" for package in ("torch", "transformers", "numpy"))
    page = PAGE.format(
        command=shlex.join(["python", "benchmarks/language.py", *sys.argv[1:]]),
        where=f"{date.today()}; {platform.system()} {platform.machine()}, Python {platform.python_version()}, "
        + versions,
        sums="\n".join(sums_table),
        sentiment="\n".join(sentiment_table),
    )
    if options.out:
        options.out.write_text(page, encoding="utf-8")
    print(page)


PAGE = """\
# Language models

Command: `{command}`; {where}; 2 cores, 1 thread

## arithmetic

The table shows the share of exact matches on all 2,000 held-out pairs, before training and with the last checkpoint,
sampled at temperature 1 and greedy. KL is the KL to the reference per sampled response at the end. Seconds are the wall
time of the complete process; the model was created before. The targets are at least 0.90 sampled, at least 0.95 greedy
and 0.05 above the start, a KL below 10, and at most 240 s.

| seed | sampled | greedy | KL | seconds | targets met |
|---|---|---|---|---|---|
{sums}

## sentiment

The table shows sampled responses to held-out prompts. The score is from the reward model that PPO trains against, at
the start and at the end. Gold is the score from the true rule, at the start, at its maximum and at the end. Deviations
are standard deviations of the scores of the reference model's responses.

| seed | KL coefficient | score | gold | KL |
|---|---|---|---|---|
{sentiment}
"""

if __name__ == "__main__":
    main()
