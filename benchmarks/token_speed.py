"""Measure the time and memory of a PPO iteration on a small language model, optionally compared with TRL 1.12.0.

    python benchmarks/token_speed.py [--pairs 3] [--peer-python PYTHON --peer-script FILE] [--out FILE]

This project runs its language-model adapter and its engine as `ppo-unified train` does. The policy is a randomly
initialized Llama (hidden 256, 4 layers, 8 heads, MLP 688, fp32), with an independent critic, a reward model and a copy
of the policy as reference. The peer is the PPO trainer of TRL 1.12.0, the last release with PPO, on models with the
same configurations. Processes of both alternate. Times are per iteration, without the first iteration of a process.
Memory is the peak resident set size of a process, including imports.

In the phase *values*, the policy, the critic and the reference evaluate the responses. The phase *update* is everything
outside the other phases. TRL differs in three ways. It keeps the old log-probs from sampling, so only the critic and
the reference evaluate the responses. It scores token ids, while this project decodes and re-encodes the text. It
accumulates gradients over the micro-batches of a rollout, so it makes 4 instead of 16 optimizer steps for the first
shape.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, fields
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

if TYPE_CHECKING:  # only child processes import torch, because their memory includes what this process has imported
    from envs.llm.options import LLMConfig

PHASES = ("generate", "score", "values", "update")
HEAD = ("process", "s", *PHASES, "tokens/s", "optimizer steps", "peak MB", "after imports MB", "others' CPU")


@dataclass(frozen=True)
class Shape:
    """The sizes of an iteration."""

    vocabulary: int
    prompt: int  # tokens per prompt
    new: int  # tokens per response; none ends earlier
    epochs: int
    minibatches: int
    rows: int = 64
    micro: int = 16  # rows per forward pass of the update

    def __str__(self) -> str:
        return (
            f"vocabulary {self.vocabulary:,}, {self.rows} prompts of {self.prompt} tokens, {self.new} new tokens, "
            f"{self.epochs} x {self.minibatches} minibatches in micro-batches of {self.micro} rows"
        )


SHAPES = {"small": Shape(4096, 32, 64, 4, 4), "wide": Shape(32_000, 96, 32, 1, 1)}


@dataclass(frozen=True)
class Measurement:
    """The medians over the iterations of a process, without its first iteration."""

    seconds: float
    phases: dict[str, float]
    steps: float  # optimizer steps per iteration
    peak_mb: float
    imports_mb: float
    foreign: float  # share of the machine's CPU time that other processes used

    def cells(self, name: str, shape: Shape) -> list[str]:
        return [
            name,
            f"{self.seconds:.2f}",
            *(f"{self.phases[phase]:.2f}" for phase in PHASES),
            f"{shape.rows * shape.new / self.seconds:.0f}",
            f"{self.steps:g}",
            f"{self.peak_mb:.0f}",
            f"{self.imports_mb:.0f}",
            f"{self.foreign:.0%}",
        ]


def resident_mb() -> float:
    """Return the peak resident set size of this process so far. Linux reports it in KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def make_models(folder: Path, shape: Shape) -> None:
    """Create the policy, reward model, critic and prompts, with the configuration and the seeds of the peer.

    In the tokenizer each token is a word and no token is special, so decoding and encoding keeps the number of tokens.
    """
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast

    words = {f"w{i}": i for i in range(shape.vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False)
    options: dict[str, Any] = {
        "vocab_size": shape.vocabulary,
        "hidden_size": 256,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "intermediate_size": 688,
        "max_position_embeddings": 512,
        "tie_word_embeddings": False,
        "num_labels": 1,
        "pad_token_id": 0,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    for seed, name in enumerate(("policy", "reward", "critic")):
        torch.manual_seed(seed)
        kind: Any = LlamaForCausalLM if name == "policy" else LlamaForSequenceClassification
        kind(LlamaConfig(**options)).float().save_pretrained(folder / name)
        fast.save_pretrained(folder / name)
    numbers = torch.randint(shape.vocabulary, (4 * shape.rows, shape.prompt)).tolist()
    lines = (json.dumps({"prompt": " ".join(f"w{i}" for i in row)}) for row in numbers)
    (folder / "prompts.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def our_config(folder: Path, shape: Shape, iterations: int, threads: int) -> LLMConfig:
    from envs.llm.options import LLM, LLMConfig, TokenOptim, TokenPPO

    return LLMConfig(
        total_iterations=iterations,
        device="cpu",
        threads=threads,
        llm=LLM(
            model=str(folder / "policy"),
            prompts=str(folder / "prompts.jsonl"),
            reward=str(folder / "reward"),
            critic_init=str(folder / "critic"),
            max_new_tokens=shape.new,
            rollout_batch=shape.rows,
        ),
        ppo=TokenPPO(
            epochs=shape.epochs,
            minibatches=shape.minibatches,
            microbatch_columns=shape.micro * (shape.prompt + shape.new - 1),
        ),
        optim=TokenOptim(lr=3e-5),
    )


def measure(folder: Path, shape: Shape, iterations: int, threads: int) -> Measurement:
    """Measure the iterations of this project in this process."""
    import torch

    from envs.llm.adapter import build
    from ppo_unified.engine.ppo import make_learner, train

    imported = resident_mb()
    torch.set_num_threads(threads)
    config = our_config(folder, shape, iterations, threads)
    adapter = build(config, torch.device("cpu"))
    learner = make_learner(adapter.policy, config.ppo, config.optim, total_iterations=iterations, seed=config.seed)
    loop = train(adapter, learner)
    others, seconds, metrics, began = [], [], [], other_cpu_seconds()
    started = time.perf_counter()
    for done in loop:
        if done.rollout.mask.sum() != shape.rows * shape.new:
            raise SystemExit("a response ended early")
        seconds.append(time.perf_counter() - started)
        ended = other_cpu_seconds()
        others.append((ended - began) / seconds[-1] / (os.cpu_count() or 1))
        metrics.append(done.metrics)
        del done
        began, started = other_cpu_seconds(), time.perf_counter()
    median = {name: statistics.median(m[name] for m in metrics[1:]) for name in metrics[0]}
    generate, score = median["time/generate_s"], median["time/score_s"]
    values = median["time/collect_s"] - generate - score
    phases = dict(zip(PHASES, (generate, score, values, median["time/update_s"]), strict=True))
    return Measurement(
        statistics.median(seconds[1:]),
        phases,
        median["optim/steps"],
        resident_mb(),
        imported,
        statistics.median(others[1:]),
    )


def other_cpu_seconds() -> float:
    """Return the CPU seconds that the machine has spent on processes other than this one."""
    machine, own = psutil.cpu_times(), psutil.Process().cpu_times()
    idle = machine.idle + getattr(machine, "iowait", 0.0)
    guest = getattr(machine, "guest", 0.0) + getattr(machine, "guest_nice", 0.0)  # already included in user and nice
    return float(sum(machine) - guest - idle - own.user - own.system)


def measure_ours(folder: Path, shape: str, iterations: int, threads: int) -> Measurement:
    """Measure the iterations of this project in a new process."""
    command = [sys.executable, __file__, "--child", str(folder), "--shapes", shape]
    command += ["--iterations", str(iterations), "--threads", str(threads)]
    return Measurement(**run_for_result(command, {}))


def measure_peer(python: Path, script: Path, shape: Shape, iterations: int, threads: int) -> Measurement:
    """Measure the iterations of TRL in a new process. TRL's phases are means over the iterations after the first."""
    names = ("B", "P", "N", "EPOCHS", "NMB", "MICRO", "VOCAB", "ITERS", "THREADS")
    sizes = (shape.rows, shape.prompt, shape.new, shape.epochs, shape.minibatches, shape.micro, shape.vocabulary)
    environment = {name: str(x) for name, x in zip(names, (*sizes, iterations, threads), strict=True)}
    found = run_for_result([str(python), str(script)], environment)
    seconds, phases = statistics.median(found["iters"][1:]), found["phases"]
    parts = [phases["rollout_generate"], phases["score_reward_model"], phases["value_rollout"] + phases["ref_logits"]]
    imports = "import trl, transformers, datasets, trl.experimental.ppo.ppo_trainer, resource as r"
    code = f"{imports}; print('RESULT', r.getrusage(r.RUSAGE_SELF).ru_maxrss / 1024)"
    return Measurement(
        seconds,
        dict(zip(PHASES, (*parts, found["iter_s"] - sum(parts)), strict=True)),
        found["real_optimizer_steps_per_iter"],
        found["rss_MB"],
        run_for_result([str(python), "-c", code], {"TRL_EXPERIMENTAL_SILENCE": "1"}),
        statistics.median(found["foreign_cpu"][1:]),
    )


def run_for_result(command: list[str], environment: dict[str, str]) -> Any:
    """Run a command in a temporary folder and return the JSON after RESULT in its output."""
    environment = os.environ | environment
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=folder, env=environment)
    if done.returncode or "RESULT " not in done.stdout:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.split("RESULT ", 1)[1])


def row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def medians(runs: list[Measurement]) -> Measurement:
    """Return the median of each number over several processes."""
    phases = {phase: statistics.median(run.phases[phase] for run in runs) for phase in PHASES}
    names = [f.name for f in fields(Measurement) if f.name != "phases"]
    numbers = {name: statistics.median(getattr(run, name) for run in runs) for name in names}
    return Measurement(phases=phases, **numbers)


def table(options: argparse.Namespace, name: str) -> list[str]:
    """Measure pairs of processes for a shape, and return a table with the medians and the ratios within pairs."""
    shape, mine, theirs = SHAPES[name], list[Measurement](), list[Measurement]()
    lines = [f"## {shape}", "", row(list(HEAD)), row(["---"] * len(HEAD))]
    print("\n".join(lines), flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make = [sys.executable, __file__, "--make", str(folder), "--shapes", name]
        subprocess.run(make, check=True, capture_output=True)
        if options.peer_script:  # copied, because it writes files to its own folder
            shutil.copytree(options.peer_script.parent, folder / "peer", copy_function=shutil.copyfile)
        for number in range(1, options.pairs + 1):
            mine.append(measure_ours(folder, name, options.iterations, options.threads))
            new = [mine[-1].cells(f"this project {number}", shape)]
            if options.peer_python and options.peer_script:
                script = folder / "peer" / options.peer_script.name
                theirs.append(measure_peer(options.peer_python, script, shape, options.iterations, options.threads))
                new.append(theirs[-1].cells(f"TRL {number}", shape))
            lines += map(row, new)
            print("\n".join(lines[-len(new) :]), flush=True)
    summary = [medians(mine).cells("**this project, median**", shape)]
    if theirs:
        summary.append(medians(theirs).cells("**TRL, median**", shape))
        speed = [b.seconds / a.seconds for a, b in zip(mine, theirs, strict=True)]
        memory = [a.peak_mb / b.peak_mb for a, b in zip(mine, theirs, strict=True)]
        faster = f"{statistics.median(speed):.2f} x the speed of TRL ({min(speed):.2f} to {max(speed):.2f})"
        less = f"{statistics.median(memory):.2f} x the memory ({min(memory):.2f} to {max(memory):.2f})"
        lines += [*map(row, summary), "", f"This project has {faster} and uses {less}, as medians over the pairs.", ""]
    else:
        lines += [*map(row, summary), ""]
    print("\n".join(lines[-5:]), flush=True)
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pairs", type=int, default=3, help="number of processes of each kind (default: 3)")
    parser.add_argument(
        "--iterations", type=int, default=3, help="iterations per process; the first is not counted (default: 3)"
    )
    parser.add_argument("--threads", type=int, default=2, help="CPU threads per process (default: 2)")
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=SHAPES, help="shapes (default: all)")
    parser.add_argument("--peer-python", type=Path, help="Python interpreter with trl 1.12.0 and datasets")
    parser.add_argument("--peer-script", type=Path, help="script that runs TRL's iterations and prints RESULT {json}")
    parser.add_argument("--out", type=Path, help="also write the tables to this file")
    parser.add_argument("--make", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.make:
        make_models(options.make, SHAPES[options.shapes[0]])
        return 0
    if options.child:
        found = measure(options.child, SHAPES[options.shapes[0]], options.iterations, options.threads)
        print("RESULT " + json.dumps(asdict(found)))
        return 0
    lines = [line for name in options.shapes for line in table(options, name)]
    if options.out:
        options.out.write_text(heading(options) + "\n".join(lines).rstrip() + "\n", encoding="utf-8")
    return 0


def heading(options: argparse.Namespace) -> str:
    """Return the title, description, command, machine and versions for the top of the page."""
    packages = ", ".join(f"{package} {version(package)}" for package in ("torch", "transformers"))
    machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    command = f"python benchmarks/token_speed.py --pairs {options.pairs} --iterations {options.iterations}"
    command += " --peer-python PYTHON --peer-script SCRIPT" if options.peer_script else ""
    text = f"# One PPO iteration on a small language model\n\n{(__doc__ or '').split(chr(10), 4)[4]}\n"
    return text + f"Command: `{command}`; {date.today()}; {machine}, {options.threads} threads, {packages}.\n\n"


if __name__ == "__main__":
    sys.exit(main())
