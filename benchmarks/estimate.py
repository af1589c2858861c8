"""Compare the estimate of memory and time that every language-model run makes with what the run really needs.

    python benchmarks/estimate.py [--shapes NAME ...] [--out benchmarks/estimate.md]

Each finished run adds a line to the file OUT with the extension .jsonl, from which the page OUT is written. Shapes in
this file are not repeated. The sizes of the models are those of token_speed.py. Before the first use of the shape
smollm2, run: ppo-unified fetch smollm2
"""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import subprocess
import sys
import tempfile
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

from token_speed import SHAPES, make_models

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
    """Train a run in a new process, and return the entry `estimate` of its run.json."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        command = [sys.executable, "-m", "ppo_unified", "train", *make_command(name, folder, threads)]
        subprocess.run([*command, "--runs", temporary, "--name", "run"], check=True, stdout=subprocess.DEVNULL)
        found: dict[str, Any] = json.loads((folder / "run" / "run.json").read_text(encoding="utf-8"))["estimate"]
    return {"shape": name} | found


def format_row(found: dict[str, Any]) -> str:
    real, cells = found["real"], [found["shape"]]
    pairs = (("memory", "memory", 1e-6), ("time", "iteration_s", 1.0))
    for kind, key, unit in pairs:
        expected = sum(found["memory" if kind == "memory" else "seconds"].values())
        error = expected / real[key] - 1
        text = f"{error:+.0%}" if abs(error) <= LIMITS[kind] else f"**{error:+.0%}**"
        digits = 0 if kind == "memory" else 2
        cells += [f"{expected * unit:.{digits}f}", f"{real[key] * unit:.{digits}f}", text]
    return f"| {' | '.join(cells)} |"


PAGE = """\
# Estimate of memory and time

Command: `{command}`; {where}; 2 cores

Each row is one run of 3 iterations in its own process. The expected values were printed before its first iteration.
Memory is the peak resident set size of the process in MB. Time is in seconds per iteration, as the median without the
first iteration. Errors above {memory:.0%} for memory and {time:.0%} for time are in bold.

| shape | memory expected | real | error | time expected | real | error |
|---|---|---|---|---|---|---|
{rows}
"""


def main() -> int:
    names = [*OWN_MODELS, PRESET]
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shapes", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names))
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
    packages = ", ".join(f"{package} {version(package)}" for package in ("torch", "transformers"))
    where = f"{date.today()}; {platform.system()} {platform.machine()}, Python {platform.python_version()}, {packages}"
    command = shlex.join(["python", "benchmarks/estimate.py", *sys.argv[1:]])
    rows = "\n".join(map(format_row, found))
    options.out.write_text(PAGE.format(command=command, where=where, rows=rows, **LIMITS), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
