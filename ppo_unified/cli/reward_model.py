"""`reward-model`: train a reward model for `llm.reward` on preference pairs."""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import shutil
import sys
import time
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ppo_unified.cli.common import add_json, integer, number
from ppo_unified.cli.run_training import LIVE_S, PLAIN_S
from ppo_unified.config.registry import load
from ppo_unified.errors import UsageError, explain_unusable
from ppo_unified.parsing import read_json
from ppo_unified.text import clean, format_duration, is_drawable, print_out

DESCRIPTION = "ppo_unified_reward_model.json"  # marks a folder that this command may replace
FORMAT = "ppo_unified reward model 1"
PACKAGES = ("torch", "transformers", "trl", "peft")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", required=True, help="base model: a folder, a hub id, or 'tiny'")
    add(
        "--data",
        required=True,
        type=Path,
        metavar="FILE",
        help="file or data set with the keys prompt, chosen and rejected",
    )
    add("--out", required=True, type=Path, metavar="DIR", help="output folder, created if missing")
    numbers = (  # flag, type, default, metavar, help
        ("--epochs", integer, 1, "N", "number of passes over the pairs (default: 1)"),
        ("--lr", number, 0.0, "RATE", "learning rate (default: 1e-5; with LoRA 1e-4; for tiny 1e-3)"),
        ("--batch", integer, 8, "N", "number of pairs per optimizer step (default: 8)"),
        ("--max-length", integer, 0, "TOKENS", "maximum tokens of prompt plus response (default: 1024)"),
        ("--lora-rank", integer, 0, "RANK", "rank of the LoRA weights; 0 = train all weights (default: 0)"),
        ("--eval-share", number, 0.1, "SHARE", "fraction of the pairs to hold out for evaluation (default: 0.1)"),
        ("--seed", integer, 0, "N", "random seed for new weights and the order of the pairs (default: 0)"),
    )
    for flag, kind, default, metavar, about in numbers:
        add(flag, type=kind, default=default, metavar=metavar, help=about)
    add("--lora-only", action="store_true", help="save only the LoRA weights and the score head")
    devices = ("auto", "cpu", "cuda")
    add(
        "--device",
        choices=devices,
        default="auto",
        metavar="DEVICE",
        help="device for training: auto, cpu or cuda (default: auto)",
    )
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Train a reward model, save it, and print how often it prefers the chosen response."""
    _check_numbers(options)
    pairs = load("envs.llm.data:read_pairs")(options.data)
    _check_out(options.out)
    missing = [name for name in ("trl", "datasets") if find_spec(name) is None]
    if missing:
        raise UsageError(f"reward-model requires {' and '.join(missing)}: pip install 'ppo-unified[trl]'")
    module = "envs.llm.rewards.train_reward_model"
    fields = ("model", "epochs", "lr", "batch", "max_length", "lora_rank", "lora_only", "eval_share", "seed", "device")
    settings = load(f"{module}:Settings")(**{name: getattr(options, name) for name in fields})
    progress = _Progress()
    with TemporaryDirectory(dir=options.out, prefix=".writing-") as aside:
        try:
            outcome = load(f"{module}:train")(pairs, settings, Path(aside), progress)
        finally:
            progress.finish()
        found = load(f"{module}:describe")(settings, outcome)
        _replace_model(Path(aside), options.out, {"data": str(options.data), **found})
    _print(options, outcome)
    return 0


def _print(options: argparse.Namespace, outcome: Any) -> None:
    if outcome.left_out:
        limit = f"{outcome.max_length} tokens (see --max-length)"
        print(f"skipped {outcome.left_out} pairs longer than {limit}", file=sys.stderr)
    if not outcome.held_out:
        why = f"there are too few pairs to hold out {options.eval_share:.0%} of them"
        print(f"{why}; the accuracy is measured on the training pairs", file=sys.stderr)
    if options.json:
        print(json.dumps({"out": str(options.out), **vars(outcome)}))
        return
    which = f"{outcome.scored} {'held-out' if outcome.held_out else 'training'} pairs"
    measured = f"accuracy {outcome.accuracy:.3f}, margin {outcome.margin:.3g} on {which}"
    out = clean(options.out)
    print_out(f"{out}: {measured}, trained on {outcome.trained} pairs; use it with --llm.reward {out}")


def _check_numbers(options: argparse.Namespace) -> None:
    for name, lowest in (("epochs", 1), ("batch", 1), ("max_length", 0), ("lora_rank", 0), ("seed", 0)):
        if getattr(options, name) < lowest:
            flag = "--" + name.replace("_", "-")
            raise UsageError(f"{flag}: expected an integer >= {lowest}, got {getattr(options, name)}")
    if options.lora_only and not options.lora_rank:
        raise UsageError("--lora-only requires --lora-rank; without it there are no LoRA weights to save")
    if not math.isfinite(options.lr) or options.lr < 0:
        raise UsageError(f"--lr: expected a number > 0, or 0 for the default, got {options.lr:g}")
    if not 0 <= options.eval_share < 1:
        raise UsageError(f"--eval-share: expected a number >= 0 and < 1, got {options.eval_share:g}")


def _check_out(folder: Path) -> None:
    """Create the folder. Raises UsageError if it contains anything other than an earlier reward model."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        others = sorted(set(os.listdir(folder)) - _list_earlier(folder))
    except OSError as error:
        raise UsageError(f"--out {folder}: {explain_unusable(folder, error)}; choose another path") from None
    if others:
        named = ", ".join(clean(name) for name in others[:5]) + (", ..." if len(others) > 5 else "")
        raise UsageError(
            f"--out {folder}: the folder contains other files ({named}); choose an empty folder or a new one"
        )


def _list_earlier(folder: Path) -> set[str]:
    """Return the names of the files of an earlier reward model in the folder."""
    try:
        description = read_json(folder / DESCRIPTION)
        ours = description["format"] == FORMAT
        return set(description["files"]) & set(os.listdir(folder)) if ours else set()
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def _replace_model(aside: Path, folder: Path, about: dict[str, Any]) -> None:
    """Replace an earlier reward model in `folder` with the one in `aside`."""
    files = sorted([*os.listdir(aside), DESCRIPTION])
    versions = {"python": platform.python_version()} | {name: version(name) for name in PACKAGES}
    description = {"format": FORMAT, **about, "versions": versions, "files": files}
    (aside / DESCRIPTION).write_text(json.dumps(description, indent=1, allow_nan=False), encoding="utf-8")
    for name in _list_earlier(folder) - set(files):
        (folder / name).unlink(missing_ok=True)
    for name in files:
        (aside / name).replace(folder / name)


class _Progress:
    """Prints progress as a live line on a terminal, or otherwise as a plain line every few seconds."""

    def __init__(self) -> None:
        self.live = is_drawable(sys.stderr)
        self.last_line = time.monotonic()
        self.first_step: float | None = None  # end of the first step, so that loading the model does not count

    def __call__(self, now: Any) -> None:
        """Print a line if it is due. `now` is an envs.llm.rewards.train_reward_model.Progress."""
        moment = time.monotonic()
        if self.first_step is None:
            self.first_step = moment
        if moment - self.last_line < (LIVE_S if self.live else PLAIN_S):
            return
        self.last_line = moment
        left = (moment - self.first_step) / max(1, now.step - 1) * (now.steps - now.step)
        line = f"step {now.step:,} of {now.steps:,} | loss {now.loss:.3f} | accuracy {now.accuracy:.2f}"
        line += f" | ETA {format_duration(left)}" if now.step > 1 else ""
        if self.live:
            line = "\r\x1b[K" + line[: shutil.get_terminal_size().columns - 1]
        print(line, end="" if self.live else "\n", file=sys.stderr, flush=True)

    def finish(self) -> None:
        if self.live:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
