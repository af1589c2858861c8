"""Train the presets of SmolLM2 over several seeds, and compare the policy with the base model on held-out prompts.

python benchmarks/smollm2.py [--presets NAME ...] [--seeds 3] [--out benchmarks/smollm2.md]

Each finished run is added to a file with the name of OUT and the extension .jsonl. The page OUT is written from this
file. Runs in this file are not repeated. An interrupted run starts from the beginning, so that its measured time is
complete. Before the first use, run: ppo-unified fetch smollm2
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from datetime import date
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from envs.llm.adapter import LLMAdapter
from envs.llm.evaluation import Answers, answer, choose_prompts
from ppo_unified.config.presets import from_file
from ppo_unified.runs.folder import Run
from ppo_unified.training.session import load_adapter

PRESETS = ("smollm2-sentiment", "smollm2-sums")
FIRST_SEED = 101  # seeds that the presets were not tuned on
HELD_OUT, SAMPLES = 200, 10
MINUTES, GIGABYTES, KL, DISTINCT = 12.0, 4.0, 10.0, 0.8  # limits
GAIN = {"smollm2-sentiment": 0.2, "smollm2-sums": 0.1}


@dataclass(frozen=True)
class Result:
    """The measurements of one run. Scores are means over sampled responses to held-out prompts."""

    preset: str
    seed: int
    before: float  # score of the base model, or its pass rate
    after: float
    kl: float  # KL to the base model per response
    distinct_before: float
    distinct_after: float
    minutes: float  # wall time of the complete process
    gigabytes: float  # its peak memory
    samples: list[tuple[str, str, str]]  # prompt, response of the base model, response of the policy
    day: str  # when it was measured

    @property
    def meets_target(self) -> bool:
        varied = self.preset == "smollm2-sums" or self.distinct_after >= DISTINCT * self.distinct_before
        limits = self.kl <= KL and self.minutes <= MINUTES and self.gigabytes < GIGABYTES
        return self.after >= self.before + GAIN[self.preset] and varied and limits


def train(folder: Path, preset: str, seed: int) -> tuple[Run, float, float]:
    """Train a run in a new process. Return it with its minutes and its peak memory in GB."""
    run = Run(folder / f"{preset}-{seed}")
    command = ["train", preset, "--seed", str(seed), "--name", run.path.name, "--runs", str(folder)]
    shutil.rmtree(run.path, ignore_errors=True)  # an interrupted run
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "ppo_unified", *command], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{shlex.join(command)}: exit code {process.returncode}")
    return run, (time.perf_counter() - started) / 60, usage.ru_maxrss * 1024 / 1e9


def distinct_pairs(answers: Answers) -> float:
    """Return distinct-2: the share of different pairs among all pairs of adjacent tokens in the responses."""
    responses = (answers.responses.response(row) for row in range(len(answers.texts)))
    pairs = [pair for tokens in responses for pair in pairwise(tokens)]
    return len(set(pairs)) / len(pairs)


def measure(folder: Path, preset: str, seed: int) -> Result:
    run, minutes, gigabytes = train(folder, preset, seed)
    adapter, _ = load_adapter(run, from_file(run.config), "latest")
    assert isinstance(adapter, LLMAdapter)
    numbers = choose_prompts(len(adapter.held_out.texts), HELD_OUT, seed)
    base, policy = (
        answer(adapter, adapter.held_out, numbers, torch.Generator().manual_seed(seed), reference)
        for reference in (adapter.reference, None)
    )
    kl = (adapter.compare(policy.responses).kl * policy.responses.mask()).sum(1)
    before, after = (
        float(np.mean([x >= 1 for x in part.scores.numbers] if preset == "smollm2-sums" else part.scores.numbers))
        for part in (base, policy)
    )
    samples = list(zip(base.prompts[:SAMPLES], base.texts[:SAMPLES], policy.texts[:SAMPLES], strict=True))
    varied = distinct_pairs(base), distinct_pairs(policy)
    return Result(
        preset, seed, before, after, float(kl.mean()), *varied, minutes, gigabytes, samples, str(date.today())
    )


def format_row(result: Result) -> str:
    numbers = f"{result.before:.2f} -> {result.after:.2f} | {result.kl:.1f}"
    varied = f"{result.distinct_before:.2f} -> {result.distinct_after:.2f}"
    costs = f"{result.minutes:.1f} | {result.gigabytes:.1f}"
    reached = "yes" if result.meets_target else "**no**"
    return f"| {result.preset} | {result.seed} | {numbers} | {varied} | {costs} | {reached} | {result.day} |"


def format_samples(result: Result) -> str:
    rows = [f"| {' | '.join(_quote(text) for text in sample)} |" for sample in result.samples]
    title = f"## Samples of {result.preset}, seed {result.seed}"
    return "\n".join([title, "", "| prompt | base model | trained |", "|---|---|---|", *rows, ""])


def _quote(text: str) -> str:
    """Return text on one line that Markdown shows unchanged."""
    return "".join(f"\\{c}" if c in "|<>*_`[]#" else c for c in " ".join(text.split()))


def read_results(path: Path) -> list[Result]:
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [Result(**json.loads(line)) for line in lines]


def write_page(path: Path, results: list[Result]) -> None:
    packages = ", ".join(f"{package} {version(package)}" for package in ("torch", "transformers", "numpy"))
    where = f"{platform.system()} {platform.machine()}, Python {platform.python_version()}, {packages}"
    firsts = {result.preset: result for result in results[::-1]}
    page = PAGE.format(
        command=shlex.join(["python", "benchmarks/smollm2.py", *sys.argv[1:]]),
        where=where,
        rows="\n".join(map(format_row, results)),
        samples="\n".join(map(format_samples, firsts.values())),
    )
    path.write_text(page, encoding="utf-8")


PAGE = """\
# Presets of SmolLM2

Command: `{command}`; {where}; 2 cores, 2 threads

Each row compares the last checkpoint of a run with the base model, SmolLM2-135M-Instruct with weights dequantized from
4 bits. Both respond to the same 200 held-out prompts, sampled at the temperature of the preset. The score of
smollm2-sentiment is the mean compound score of VADER. The score of smollm2-sums is the share of problems to which
reasoning-gym gives the full score. KL is the KL to the base model per response. Distinct-2 is the share of different
pairs among all pairs of adjacent tokens. Minutes and memory are the wall time and the peak memory of the complete
process. Targets: the score of smollm2-sentiment rises by at least 0.2, and its distinct-2 is at least 0.8 times that of
the base model; the score of smollm2-sums rises by at least 0.1; the KL is at most 10; a run takes at most 12 minutes
and less than 4 GB.

| preset | seed | score | KL | distinct-2 | minutes | GB | targets met | date |
|---|---|---|---|---|---|---|---|---|
{rows}

The samples below are the responses to the first ten of the 200 prompts, without any selection.

{samples}"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="*", default=PRESETS, choices=PRESETS, help="presets (default: both)")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds (default: 3)")
    parser.add_argument("--runs", type=Path, default=Path("runs/smollm2"), help="folder for the runs")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/smollm2.md"), help="the page to write")
    options = parser.parse_args()
    torch.set_num_threads(2)
    kept = options.out.with_suffix(".jsonl")
    results = read_results(kept)
    for seed in range(FIRST_SEED, FIRST_SEED + options.seeds):
        for preset in options.presets:
            if any((result.preset, result.seed) == (preset, seed) for result in results):
                continue
            result = measure(options.runs, preset, seed)
            results.append(result)
            with kept.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(result)) + "\n")
            print(format_row(result), flush=True)
            write_page(options.out, results)


if __name__ == "__main__":
    main()
