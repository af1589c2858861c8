"""`inspect`: every quantity of PPO at every step of a stored sample, as JSON or as a table that fits the terminal."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from typing import Any

from ppo_unified.cli.common import add_json, add_run, add_runs_folder
from ppo_unified.errors import UsageError
from ppo_unified.runs import samples
from ppo_unified.runs.folder import Run, find, to_json
from ppo_unified.terminal.chat import wrap_text
from ppo_unified.terminal.sample_table import format_samples
from ppo_unified.text import can_color, clean, print_out


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_run(parser)
    parser.add_argument("--iteration", type=int, help="which stored iteration (default: the newest)")
    parser.add_argument("--sample", default="0", help="which episode or sequence of it, from 0; or all (default: 0)")
    add_json(parser)
    add_runs_folder(parser)


def run(options: argparse.Namespace) -> int:
    """Print one sample of a stored iteration, or all of them."""
    run = find(options.run, options.folder)
    stored = samples.read(run, _choose_iteration(run, options.iteration))
    there = stored.samples()
    chosen = _choose_samples(options.sample, len(there), stored.iteration)
    each = [stored.document(number, there[number]) for number in chosen]
    if options.json:
        about: dict[str, Any] = {"run": run.name, "iterations": samples.iterations(run), "samples": len(there)}
        about |= {"iteration_steps" if name == "steps" else name: getattr(stored, name) for name in samples.SINGLE}
        print_out(to_json(about | ({"each": each} if options.sample == "all" else each[0]), indent=None))
    else:
        width = shutil.get_terminal_size().columns
        meanings, tables = format_samples(each, len(there), stored.quantities(), width, can_color(sys.stdout))
        print_out("\n".join([*wrap_text(stored.summary(run.name), width), "", *meanings, *tables]))
    return 0


def _choose_iteration(run: Run, asked: int | None) -> int:
    """The stored iteration that is meant. Raises UsageError naming those there are."""
    there = samples.iterations(run)
    if not there:
        raise UsageError(
            f"{run.name} has stored no samples (yet): they come with iteration 1, every log.samples_every iterations "
            "and the last one, unless log.samples_every = 0"
        )
    if asked is not None and asked not in there:
        raise UsageError(
            f"--iteration {asked}: {run.name} has stored no samples of it; there are {', '.join(map(str, there))}"
        )
    return there[-1] if asked is None else asked


def _choose_samples(asked: str, count: int, iteration: int) -> Sequence[int]:
    """The numbers of the samples that are meant. Raises UsageError naming the range."""
    if asked == "all":
        return range(count)
    if not asked.isdecimal() or len(asked) > 9 or int(asked) >= count:
        raise UsageError(
            f"--sample {clean(asked)[:20]}: iteration {iteration} has the samples 0 to {count - 1}; "
            "name one of them, or all"
        )
    return [int(asked)]
