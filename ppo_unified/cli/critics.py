"""`critics`: compare an independent and a shared critic on the same rollouts of a fixed policy."""

from __future__ import annotations

import argparse
import math
import os
import shutil
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ppo_unified.cli.common import add_json, add_runs_folder, foreign_code, integer, preload
from ppo_unified.config import presets
from ppo_unified.config.registry import load, resolve_device
from ppo_unified.config.schema import RunConfig
from ppo_unified.errors import UsageError
from ppo_unified.runs import preparation
from ppo_unified.runs.folder import Run, find, to_json
from ppo_unified.terminal.chart import Line, draw
from ppo_unified.text import can_color, can_unicode, clean, format_table, print_err, print_out

KINDS = ("independent", "shared")
ALONE = "value-loss-alone"  # a shared critic without the policy loss
T_95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)  # Student's t, 97.5 %, by degrees of freedom
MOST_SEEDS = len(T_95) + 1
CHART = 12  # lines


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "The policy is that of a run's checkpoint, or the one at the start of a preset. It stays fixed while the\n"
        "rollouts are collected. Both kinds of critic then train on the same rollouts in the same order, with the\n"
        "complete loss, and are compared on the last two rollouts, on which neither was trained. A shared critic is\n"
        "also trained with the value loss alone, to show how far that loss moves the policy.\n"
        "To change an option, add --section.key VALUE, such as --llm.rollout_batch 128."
    )
    parser.add_argument("target", metavar="TARGET", help="preset or TOML file of a language model, or a run")
    parser.add_argument(
        "--rollouts",
        type=integer,
        default=12,
        metavar="N",
        help="number of rollouts, including two held out (default: 12)",
    )
    parser.add_argument(
        "--seeds", type=integer, nargs="+", default=[1, 2, 3], metavar="N", help="2 to 10 seeds (default: 1 2 3)"
    )
    add_json(parser)
    add_runs_folder(parser)


def run(options: argparse.Namespace, rest: Sequence[str]) -> int:
    """Compare the critics for each seed, and print the curves and the verdict."""
    seeds = list(dict.fromkeys(options.seeds))
    if not 2 <= len(seeds) <= MOST_SEEDS or min(seeds) < 0:
        raise UsageError(f"--seeds: expected 2 to {MOST_SEEDS} different integers >= 0, got {options.seeds}")
    with foreign_code():
        config, source = _find_target(options.target, options.folder)
        if config.kind != "llm":
            raise UsageError(
                f"{options.target}: expected a language model, such as the preset arithmetic, got kind {config.kind!r}"
            )
        config = _apply_flags(config, rest, options)
        config = config if source else preparation.complete(config)[0]  # after the flags, on which 'auto' depends
        results = [compare(config.model_copy(update={"seed": seed}), source, options.rollouts) for seed in seeds]
    report = summarize(results)
    if options.json:
        print_out(to_json({"target": options.target, "seeds": seeds, **report}, indent=None))
    else:
        print_out("\n".join(format_report(options.target, report, shutil.get_terminal_size().columns)))
    return 0


def _find_target(word: str, folder: Any) -> tuple[RunConfig, Run | None]:
    """Return the options of a preset, a file or a run, and the run."""
    if word in presets.preset_files() or word.endswith(".toml"):
        return presets.load_target(word), None
    run = find(word, folder)
    return presets.from_file(run.config), run


def _apply_flags(config: RunConfig, flags: Sequence[str], options: argparse.Namespace) -> RunConfig:
    if not flags:
        return config
    from ppo_unified.cli.flags import configure, read_flags

    about = f"Options of {options.target}."
    typed = read_flags(config, flags, f"ppo-unified critics {options.target}", about, options.parser.flags)
    return configure(config, typed)


def compare(config: RunConfig, source: Run | None, rollouts: int) -> dict[str, dict[str, Any]]:
    """Return the result of each kind of critic for one seed. `source` is a run whose policy is used."""
    preload("ppo_unified.training.session")
    import torch

    from ppo_unified.training import checkpoint

    device = resolve_device(config)
    if config.threads:
        torch.set_num_threads(config.threads)
    weights = checkpoint.load_policy(source, checkpoint.choose(source, "best"), device) if source else {}
    found: dict[str, dict[str, Any]] = {}
    progress: Iterator[Any] = load("envs.llm.critic_comparison:compare_critics")(config, weights, rollouts, device)
    for item in progress:
        if hasattr(item, "kind"):
            found[item.kind] = item._asdict()
        elif sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
            print(
                f"\rseed {config.seed}: {item.doing} {item.done} of {item.total}   ",
                end="",
                file=sys.stderr,
                flush=True,
            )
    if sys.stderr.isatty():
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)
    print_err(f"seed {config.seed}: {_describe(found)}")
    return found


def _describe(found: Mapping[str, Mapping[str, Any]]) -> str:
    return ", ".join(f"{kind} {found[kind]['explained'][-1]:.3f}" for kind in KINDS) + " explained variance"


def summarize(results: Sequence[Mapping[str, Mapping[str, Any]]]) -> dict[str, Any]:
    """Return the means over seeds, the paired difference with its 95 % interval, and the verdict."""
    kinds: dict[str, Any] = {}
    for kind in (*KINDS, ALONE):
        curves = {name: np.array([result[kind][name] for result in results]) for name in ("explained", "policy_kl")}
        kinds[kind] = {
            "explained": curves["explained"].mean(0).tolist(),
            "policy_kl": curves["policy_kl"].mean(0).tolist(),
            "each": [result[kind] for result in results],
            "seconds": float(np.mean([result[kind]["seconds"] for result in results])),
            "parameters": results[0][kind]["parameters"],
            "memory": results[0][kind]["memory"],
        }
    last = {kind: np.array([result[kind]["explained"][-1] for result in results]) for kind in KINDS}
    difference = interval(last["independent"] - last["shared"])
    kl = {kind: [result[kind]["policy_kl"][-1] for result in results] for kind in (*KINDS, ALONE)}
    verdict = _verdict(difference, kl, len(results))
    return {"kinds": kinds, "difference": difference, "policy_kl": kl, "verdict": verdict}


def interval(values: np.ndarray) -> dict[str, float]:
    """Return the mean of some numbers and its 95 % interval by Student's t distribution."""
    mean, half = float(values.mean()), T_95[len(values) - 2] * float(values.std(ddof=1)) / math.sqrt(len(values))
    return {"mean": mean, "low": mean - half, "high": mean + half}


def _verdict(difference: Mapping[str, float], kl: Mapping[str, Sequence[float]], seeds: int) -> str:
    mean, low, high = (difference[name] for name in ("mean", "low", "high"))
    if low > 0 or high < 0:
        better = "independent" if low > 0 else "shared"
        low, high = sorted((abs(low), abs(high)))
        first = f"The {better} critic predicts better: its explained variance is {abs(mean):.3f} higher"
    else:
        first = f"Neither critic predicts clearly better: independent minus shared explained variance is {mean:.3f}"
    own, shared, alone = (
        f"{np.mean(kl[kind]):.3g} (seeds: {min(kl[kind]):.2g} to {max(kl[kind]):.2g})" for kind in (*KINDS, ALONE)
    )
    return (
        f"{first} (95 % interval {low:.3f} to {high:.3f}, {seeds} seeds). The updates moved the policy by a KL of "
        f"{own} per response with the independent critic and {shared} with the shared one. The value loss alone moves "
        f"a shared policy by {alone}, and a policy with an independent critic by 0."
    )


def format_report(target: str, report: Mapping[str, Any], width: int) -> list[str]:
    """Return the chart of the explained variance, a table, and the verdict."""
    kinds = report["kinds"]
    count = len(kinds["shared"]["explained"])
    x = np.arange(count, dtype=np.float64)
    lines = [Line(kind, x, np.array(kinds[kind]["explained"])) for kind in KINDS]
    title = "explained variance, by rollouts seen"
    style = {"unicode": can_unicode(sys.stdout), "color": can_color(sys.stdout)}
    chart = draw(lines, min(width, 100), CHART, title, **style)  # type: ignore[arg-type]  # bools
    rows = [
        {
            "critic": kind,
            "expl. var.": f"{kinds[kind]['explained'][-1]:.3f}",
            "policy KL": f"{kinds[kind]['policy_kl'][-1]:.3g}",
            "training": f"{kinds[kind]['seconds']:.1f} s",
            "trained weights": f"{kinds[kind]['parameters']:,}",
            "their memory": f"{kinds[kind]['memory'] / 1e6:.1f} MB",
        }
        for kind in (*KINDS, ALONE)
    ]
    seeds = len(kinds["shared"]["each"])
    heading = f"{clean(target)}: means over {seeds} seeds, after {count - 1} rollouts; two more are held out"
    return [heading, "", *chart, "", *format_table(rows), "", *textwrap.wrap(report["verdict"], min(width, 100))]
