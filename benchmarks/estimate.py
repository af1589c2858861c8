"""Compare the memory and time that a language-model run estimates before it starts with the measured values.

    python benchmarks/estimate.py [--shapes NAME ...] [--out benchmarks/estimate.md]

Each finished run adds a line to a file with the name of OUT and the extension .jsonl. The page OUT is written from
this file. Shapes in this file are not repeated. The sizes of the models are those of token_speed.py. Before the first
use of the shape smollm2-sentiment, run: ppo-unified fetch smollm2
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
from token_speed import SHAPES, make_models

from ppo_unified.config.estimate import Estimate

LIMITS = {"memory": 0.2, "time": 0.35}  # allowed relative errors
OWN_MODELS = {  # name -> the shape of token_speed.py, and further options
    "small": ("small", []),
    "wide": ("wide", []),
    "shared critic": ("small", ["--llm.critic", "shared"]),
    "LoRA, gradient checkpointing": ("small", ["--llm.lora-rank", "16", "--llm.gradient-checkpointing"]),
}
PRESET = "smollm2-sentiment"
COMMON = ["--total-iterations", "3", "--device", "cpu", "--eval.every-steps", "0"]
COMMON += ["--eval.episodes", "8", "--log.samples-every", "0"]


def make_command(name: str, folder: Path, threads: int) -> list[str]:
    """Return the arguments of `train` for a shape. Its models and prompts are created in `folder`."""
    common = [*COMMON, "--threads", str(threads)]
    if name == PRESET:
        return [PRESET, "--eval.no-at-start", *common]
    key, more = OWN_MODELS[name]
    shape = SHAPES[key]
    make_models(folder, shape)
    options: dict[str, Any] = {
        "llm.model": folder / "policy",
        "llm.prompts": folder / "prompts.jsonl",
        "llm.reward": folder / "reward",
        "llm.max-new-tokens": shape.new,
        "llm.rollout-batch": shape.rows,
        "llm.lora-rank": 0,
        "optim.lr": 3e-5,
        "ppo.epochs": shape.epochs,
        "ppo.minibatches": shape.minibatches,
        "ppo.microbatch-columns": shape.micro * (shape.prompt + shape.new - 1),
    }
    words = [word for option, value in options.items() for word in (f"--{option}", str(value))]
    return ["llm", *words, *more, *common]


def measure(name: str, threads: int) -> dict[str, Any]:
    """Train a run in a new process. Return the entry `estimate` of its run.json, and how it was measured."""
    packages = ", ".join(f"{package} {version(package)}" for package in ("torch", "transformers"))
    about = {
        "shape": name,
        "day": str(date.today()),
        "command": shlex.join(["python", "benchmarks/estimate.py", *sys.argv[1:]]),
        "threads": threads,
        "busy": f"{psutil.cpu_percent(5.0):.0f}%",
        "where": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, "
        f"Python {platform.python_version()}, {packages}",
    }
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        command = [sys.executable, "-m", "ppo_unified", "train", *make_command(name, folder, threads)]
        subprocess.run([*command, "--runs", temporary, "--name", "run"], check=True, stdout=subprocess.DEVNULL)
        found: dict[str, Any] = json.loads((folder / "run" / "run.json").read_text(encoding="utf-8"))["estimate"]
    return about | found


def format_row(found: dict[str, Any]) -> str:
    real, estimate, cells = found["real"], Estimate.from_dict(found), [found["shape"]]
    for kind, expected, measured, unit, digits in (
        ("memory", estimate.peak, real["memory"], 1e-6, 0),
        ("time", estimate.iteration_s, real["iteration_s"], 1.0, 2),
    ):
        error = expected / measured - 1
        text = f"{error:+.0%}" if abs(error) <= LIMITS[kind] else f"**{error:+.0%}**"
        cells += [f"{expected * unit:.{digits}f}", f"{measured * unit:.{digits}f}", text]
    return f"| {' | '.join([*cells, str(found['threads']), str(found['busy']), found['day']])} |"


def write_page(path: Path, found: list[dict[str, Any]]) -> None:
    page = PAGE.format(
        commands=" and ".join(f"`{command}`" for command in dict.fromkeys(entry["command"] for entry in found)),
        where="; ".join(dict.fromkeys(entry["where"] for entry in found)),
        rows="\n".join(map(format_row, found)),
        **LIMITS,
    )
    path.write_text(page, encoding="utf-8")


PAGE = """\
# Estimate of memory and time

Command: {commands}; {where}

Each row is one run of 3 iterations in its own process. The expected values were printed before its first iteration.
Memory is the peak resident set size of the process in MB. Time is in seconds per iteration, as the median without the
first iteration. Errors above {memory:.0%} for memory and {time:.0%} for time are in bold. The column "CPU before" shows
how busy the cores were in the 5 seconds before the run. If other programs run at the same time, the times say little.

| shape | memory expected | real | error | time expected | real | error | threads | CPU before | date |
|---|---|---|---|---|---|---|---|---|---|
{rows}
"""


def main() -> int:
    names = [*OWN_MODELS, PRESET]
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shapes", nargs="+", choices=names, default=names, metavar="NAME", help="; ".join(names))
    parser.add_argument("--threads", type=int, default=2, help="CPU threads per process (default: 2)")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"))
    options = parser.parse_args()
    data = options.out.with_suffix(".jsonl")
    found = [json.loads(line) for line in data.read_text(encoding="utf-8").splitlines()] if data.exists() else []
    for name in options.shapes:
        if all(entry["shape"] != name for entry in found):
            found.append(measure(name, options.threads))
            with data.open("a", encoding="utf-8") as file:
                file.write(json.dumps(found[-1]) + "\n")
            print(format_row(found[-1]), flush=True)
    write_page(options.out, found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
