"""Measure the time and memory of an iteration on a small language model, optionally compared with TRL.

    python benchmarks/token_speed.py [--pairs 3] [--ppo-python PYTHON] [--group-python PYTHON] [--out FILE]

This project runs its language-model adapter and its engine as `ppo-unified train` does. The policy is a randomly
initialized Llama (hidden 256, 4 layers, 8 heads, MLP 688, fp32), with a reward model and a copy of the policy as
reference. In PPO shapes other than `shared`, the critic is independent. The peers are the PPO trainer of TRL 1.12.0,
the last release with PPO, and the GRPO and RLOO trainers of TRL 1.16.0, on the same models. Processes of this project
and of TRL alternate. Times are per iteration, without the first iteration of a process. Memory is the peak resident set
size of a process, including imports. Each finished pair is appended to a data file next to the page. Pairs in this file
that were measured with the same numbers of threads and iterations are not measured again.

In the phase *values*, the policy, the critic and the reference evaluate the responses. The phase *update* is all other
work. TRL's PPO differs in three ways. It keeps the old log-probs from sampling, so only the critic and the reference
evaluate the responses. It scores token ids, while this project decodes and re-encodes the text. It accumulates
gradients over the micro-batches of a rollout, so it makes fewer optimizer steps than `num_mini_batches` says. In the
shape `small-16-steps`, a micro-batch of TRL is as large as the rollout divided by the minibatches, so both
sides make 16 steps. In the shape `shared`, the value head of this project uses the policy's trunk; TRL has no such
option. In the shape `mixed`, many tokens are end tokens, so that responses have 24 of at most 64 tokens on average; TRL
samples all 64 and discards the rest.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, fields, replace
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
    new: int  # maximum number of tokens per response
    epochs: int
    minibatches: int
    rows: int = 64
    micro: int = 16  # rows per forward pass of the update
    method: str = "ppo"  # or grpo or rloo
    accumulates: bool = True  # TRL accumulates gradients over the micro-batches of a rollout
    shared: bool = False  # the critic of this project uses the policy's trunk
    group: int = 1  # responses per prompt
    ends: int = 0  # number of end tokens

    @property
    def peer(self) -> str:
        return f"TRL's {self.method.upper()}"

    def __str__(self) -> str:
        more = [f"{self.group} responses per prompt"] * (self.group > 1) + [f"{self.ends} end tokens"] * (self.ends > 0)
        more += ["shared trunk"] * self.shared + ["no accumulation in TRL"] * (not self.accumulates)
        sizes = (
            f"{self.method.upper()}, vocabulary {self.vocabulary:,}, {self.rows} rows with prompts of {self.prompt} "
            f"tokens, {self.new} new tokens, {self.epochs} x {self.minibatches} minibatches in micro-batches of "
            f"{self.micro} rows"
        )
        return ", ".join([sizes, *more])


SMALL = Shape(4096, 32, 64, 4, 4)
SHAPES = {
    "small": SMALL,
    "small-16-steps": replace(SMALL, accumulates=False),
    "wide": Shape(32_000, 96, 32, 1, 1),
    "shared": replace(SMALL, shared=True),
    "mixed": replace(SMALL, ends=156),  # a response ends with probability 156 / 4096 at each token
    "grpo": replace(SMALL, method="grpo", epochs=2, group=8),
    "rloo": replace(SMALL, method="rloo", epochs=2, group=8),
}


@dataclass(frozen=True)
class Measurement:
    """The medians over the iterations of a process, without its first iteration."""

    seconds: float
    tokens: float  # new tokens per iteration
    phases: dict[str, float]
    steps: float  # optimizer steps per iteration
    peak_mb: float
    imports_mb: float
    foreign: float  # share of the machine's CPU time that other processes used

    def cells(self, name: str) -> list[str]:
        return [
            name,
            f"{self.seconds:.2f}",
            *(f"{self.phases[phase]:.2f}" for phase in PHASES),
            f"{self.tokens / self.seconds:.0f}",
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
        model = kind(LlamaConfig(**options)).float()
        if name == "policy" and shape.ends:
            model.generation_config.eos_token_id = list(range(shape.vocabulary - shape.ends, shape.vocabulary))
        model.save_pretrained(folder / name)
        fast.save_pretrained(folder / name)
    numbers = torch.randint(shape.vocabulary, (4 * shape.rows, shape.prompt)).tolist()
    lines = (json.dumps({"prompt": " ".join(f"w{i}" for i in row)}) for row in numbers)
    (folder / "prompts.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def our_config(folder: Path, shape: Shape, iterations: int, threads: int) -> LLMConfig:
    from envs.llm.options import LLM, LLMConfig, TokenOptim, TokenPPO

    critic: dict[str, Any] = {"critic_init": str(folder / "critic")}
    if shape.method != "ppo":
        critic = {"baseline": shape.method}
    elif shape.shared:
        critic = {"critic": "shared"}
    free: dict[str, Any] = {"lam": 1.0, "value_coef": 0.0, "normalize_advantages": "none"} if shape.group > 1 else {}
    return LLMConfig(
        total_iterations=iterations,
        device="cpu",
        threads=threads,
        llm=LLM(
            model=str(folder / "policy"),
            prompts=str(folder / "prompts.jsonl"),
            reward=str(folder / "reward"),
            max_new_tokens=shape.new,
            rollout_batch=shape.rows,
            group_size=shape.group,
            **critic,
        ),
        ppo=TokenPPO(
            epochs=shape.epochs,
            minibatches=shape.minibatches,
            microbatch_columns=shape.micro * (shape.prompt + shape.new - 1),
            **free,
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
    others, seconds, tokens, metrics, began = [], [], [], [], other_cpu_seconds()
    started = time.perf_counter()
    for done in loop:
        tokens.append(float(done.rollout.mask.sum()))
        if not shape.ends and tokens[-1] != shape.rows * shape.new:
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
        statistics.median(tokens[1:]),
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
    return Measurement(**run_for_result(command))


def measure_peer(python: Path, folder: Path, shape: Shape, tokens: float, options: argparse.Namespace) -> Measurement:
    """Measure the iterations of TRL in a new process.

    The tokens per iteration are those of this project, because TRL discards the rest.
    """
    sizes = asdict(shape) | {"iterations": options.iterations, "threads": options.threads}
    script = Path(__file__).with_name("trl_peer.py").resolve()
    found = run_for_result([str(python), str(script), str(folder), json.dumps(sizes)])
    phases = {phase: statistics.median(part[phase] for part in found["phases"][1:]) for phase in PHASES}
    seconds = statistics.median(found["seconds"][1:])
    return Measurement(seconds, tokens, phases, found["steps"], found["peak_mb"], found["imports_mb"], found["foreign"])


def run_for_result(command: list[str]) -> Any:
    """Run a command in a temporary folder and return the JSON after RESULT in its output."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=folder)
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


def measure_pair(options: argparse.Namespace, name: str) -> dict[str, Any]:
    """Measure this project and, if its interpreter is given, the peer. Return both as a record of the data file."""
    shape = SHAPES[name]
    python = options.ppo_python if shape.method == "ppo" else options.group_python
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make = [sys.executable, __file__, "--make", str(folder), "--shapes", name]
        subprocess.run(make, check=True, capture_output=True)
        mine = measure_ours(folder, name, options.iterations, options.threads)
        theirs = measure_peer(python, folder, shape, mine.tokens, options) if python else None
    pair = {"ours": asdict(mine), "peer": asdict(theirs) if theirs else None}
    return {"shape": name, **measured_with(options), "date": str(date.today()), **pair}


def measured_with(options: argparse.Namespace) -> dict[str, int]:
    """Return the options on which times depend. Records with other values are not comparable."""
    return {"threads": options.threads, "iterations": options.iterations}


def read_records(path: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the comparable records of a data file."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    wanted = measured_with(options)
    return [record for record in map(json.loads, lines) if wanted == {name: record.get(name) for name in wanted}]


def table(shape: Shape, records: list[dict[str, Any]]) -> list[str]:
    """Return a table of the pairs of a shape, with the medians, the ratios within pairs, and the dates."""
    lines = [f"## {shape}", "", row(list(HEAD)), row(["---"] * len(HEAD))]
    pairs = [(Measurement(**x["ours"]), Measurement(**x["peer"]) if x["peer"] else None) for x in records]
    for number, (mine, peer) in enumerate(pairs, start=1):
        lines.append(row(mine.cells(f"this project {number}")))
        lines += [row(peer.cells(f"{shape.peer} {number}"))] if peer else []
    lines.append(row(medians([mine for mine, _ in pairs]).cells("**this project, median**")))
    both = [(mine, peer) for mine, peer in pairs if peer]
    if both:
        lines.append(row(medians([peer for _, peer in both]).cells(f"**{shape.peer}, median**")))
        speed = [peer.seconds / mine.seconds for mine, peer in both]
        memory = [mine.peak_mb / peer.peak_mb for mine, peer in both]
        faster = f"{statistics.median(speed):.2f} x the speed of {shape.peer} ({min(speed):.2f} to {max(speed):.2f})"
        less = f"{statistics.median(memory):.2f} x the memory ({min(memory):.2f} to {max(memory):.2f})"
        lines += ["", f"This project has {faster} and uses {less}, as medians over the pairs."]
    return [*lines, "", f"Measured on {', '.join(sorted({x['date'] for x in records}))}.", ""]


def write_page(options: argparse.Namespace, records: list[dict[str, Any]]) -> None:
    done = {name: [record for record in records if record["shape"] == name] for name in SHAPES}
    lines = [line for name, part in done.items() if part for line in table(SHAPES[name], part)]
    options.out.write_text(heading(options) + "\n".join(lines).rstrip() + "\n", encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pairs", type=int, default=3, help="number of processes of each kind (default: 3)")
    parser.add_argument(
        "--iterations", type=int, default=3, help="iterations per process; the first is not counted (default: 3)"
    )
    parser.add_argument("--threads", type=int, default=2, help="CPU threads per process (default: 2)")
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=SHAPES, help="shapes (default: all)")
    parser.add_argument("--ppo-python", type=Path, help="Python interpreter with trl 1.12.0 and datasets")
    parser.add_argument("--group-python", type=Path, help="Python interpreter with trl 1.16.0, for GRPO and RLOO")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/token_speed.md"), help="the page to write")
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
    kept = options.out.with_suffix(".jsonl")
    records = read_records(kept, options)
    for number in range(1, options.pairs + 1):
        for name in options.shapes:
            if sum(record["shape"] == name for record in records) >= number:
                continue
            records.append(measure_pair(options, name))
            with kept.open("a", encoding="utf-8") as file:
                file.write(json.dumps(records[-1]) + "\n")
            print("\n".join(table(SHAPES[name], [r for r in records if r["shape"] == name])), flush=True)
    write_page(options, records)
    return 0


def heading(options: argparse.Namespace) -> str:
    """Return the title, description, command, machine and versions for the top of the page."""
    packages = ", ".join(f"{package} {version(package)}" for package in ("torch", "transformers"))
    machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    command = f"python benchmarks/token_speed.py --pairs {options.pairs} --iterations {options.iterations}"
    command += f" --threads {options.threads}"
    command += " --ppo-python PYTHON" if options.ppo_python else ""
    command += " --group-python PYTHON" if options.group_python else ""
    text = f"# One iteration on a small language model\n\n{(__doc__ or '').split(chr(10), 4)[4]}\n"
    return text + f"Command: `{command}`; {machine}, {packages}.\n\n"


if __name__ == "__main__":
    sys.exit(main())
