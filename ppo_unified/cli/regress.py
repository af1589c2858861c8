"""`regress`: compare this checkout's engine with the committed baseline."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from ppo_unified.cli.common import add_json, add_runs_folder, foreign_code, integer, preload
from ppo_unified.config import presets
from ppo_unified.errors import UsageError
from ppo_unified.parsing import read_json

FIGURES = ("seeds", "solved", "median_steps", "worst_steps")  # the keys of a preset in a baseline file
SLACK = 1.25  # a median of more steps than this factor times the baseline's worst seed is a regression


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "target",
        nargs="?",
        default="cartpole",
        metavar="PRESET",
        help="preset to train (default: cartpole)",
    )
    parser.add_argument(
        "--seeds", type=integer, default=3, metavar="N", help="number of seeds to train with (default: 3)"
    )
    parser.add_argument(
        "--baseline",
        type=Path,
        metavar="FILE",
        help="baseline file (default: benchmarks/baseline.json)",
    )
    parser.add_argument("--update", action="store_true", help="save the measured result as the new baseline")
    add_json(parser)
    add_runs_folder(parser)


def run(options: argparse.Namespace) -> int:
    """Train a preset with several seeds and compare the steps to solve it with the committed baseline."""
    path = options.baseline or Path(__file__).parents[2] / "benchmarks" / "baseline.json"
    baseline = _read_baseline(path)
    if options.target not in baseline and not options.update:
        others = f", only for {', '.join(baseline)}" if baseline else ""
        raise UsageError(f"{path}: no baseline for {options.target!r}{others}; record one with --update")
    if options.seeds < 1:
        raise UsageError(f"--seeds: expected an integer >= 1, got {options.seeds}")
    with foreign_code():
        measured = _measure(options.target, options.seeds)
    if options.update:
        if measured["solved"] < options.seeds:
            raise UsageError(
                f"{options.target}: solved with only {measured['solved']} of {options.seeds} seeds; "
                "the baseline was not changed"
            )
        baseline[options.target] = measured
        path.write_text(json.dumps(baseline, indent=1) + "\n", encoding="utf-8")
        print(f"{path}: baseline of {options.target} updated", file=sys.stderr)
    known = baseline[options.target]
    good = measured["solved"] == options.seeds and measured["median_steps"] <= SLACK * known["worst_steps"]
    verdict = {"preset": options.target, "good": good, "measured": measured, "baseline": known}
    if options.json:
        print(json.dumps(verdict))
    else:
        for name, figures in (("measured", measured), ("baseline", known)):
            solved = f"{figures['solved']} of {figures['seeds']} seeds solved"
            print(f"{name}: {solved}, median {figures['median_steps']:,.0f} steps, worst {figures['worst_steps']:,}")
        print("as good as the baseline" if good else "WORSE than the baseline")
    return 0 if good else 1


def _read_baseline(path: Path) -> dict[str, Any]:
    try:
        table = read_json(path)
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise UsageError(f"{path}: invalid baseline file ({error})") from None
    except OSError as error:
        raise UsageError(f"{path}: cannot read the file ({error.strerror})") from None
    if not isinstance(table, dict) or not all(_has_figures(known) for known in table.values()):
        raise UsageError(f"{path}: invalid baseline file; expected the numbers {', '.join(FIGURES)} for each preset")
    return table


def _has_figures(known: object) -> bool:
    return isinstance(known, dict) and all(type(known.get(name)) in (int, float) for name in FIGURES)


def _measure(preset: str, seeds: int) -> dict[str, Any]:
    """Train with seeds 1, 2, ... and return the steps until solved. For unsolved seeds, all of their steps count."""
    preload("ppo_unified.training.session")
    from ppo_unified.training import session

    steps, solved = [], 0
    for seed in range(1, seeds + 1):
        config = presets.load_preset(preset, seed=seed)
        if config.eval.threshold is None:
            raise UsageError(f"preset {preset!r} has no eval.threshold, so it cannot be solved")
        with tempfile.TemporaryDirectory() as folder:
            result = session.run(config, folder)
        if result.state == "stopped":
            raise KeyboardInterrupt
        solved += result.solved_step is not None
        steps.append(result.solved_step or config.total_steps)
        print(
            f"seed {seed}: {'solved' if result.solved_step else 'not solved'} at {steps[-1]:,} steps", file=sys.stderr
        )
    return {"seeds": seeds, "solved": solved, "median_steps": statistics.median(steps), "worst_steps": max(steps)}
