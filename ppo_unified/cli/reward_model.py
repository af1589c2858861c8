"""`reward-model`: preference pairs to a scoring model that `llm.reward` takes."""

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

from ppo_unified.cli.common import add_json
from ppo_unified.cli.run_training import LIVE_S, PLAIN_S
from ppo_unified.config.registry import load
from ppo_unified.errors import UsageError
from ppo_unified.parsing import read_json
from ppo_unified.text import clean, format_duration, is_drawable, print_out

DESCRIPTION = "ppo_unified_reward_model.json"  # marks a folder as ours, which may be replaced
FORMAT = "ppo_unified reward model 1"
PACKAGES = ("torch", "transformers", "trl", "peft")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, help="folder or hub id of the model to start from, or 'tiny'")
    parser.add_argument("--data", required=True, type=Path, help="preference pairs: prompt, chosen, rejected (JSON)")
    parser.add_argument("--out", required=True, type=Path, help="folder to write into; made if it isn't there")
    parser.add_argument("--epochs", type=int, default=1, help="passes over the pairs (default: 1)")
    parser.add_argument(
        "--lr", type=float, default=0.0, help="learning rate (default: 1e-5; with LoRA 1e-4; for 'tiny' 1e-3)"
    )
    parser.add_argument("--batch", type=int, default=8, help="pairs per optimizer step (default: 8)")
    parser.add_argument(
        "--max-length",
        type=int,
        default=0,
        help="leave longer pairs out (default: 1024 tokens, or the model's context)",
    )
    parser.add_argument("--lora-rank", type=int, default=0, help="train adapters of this rank, merged at the end")
    parser.add_argument(
        "--lora-only", action="store_true", help="save only the LoRA weights and the score head, without the base model"
    )
    parser.add_argument(
        "--eval-share", type=float, default=0.1, help="share of the pairs to hold out and measure on (default: 0.1)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the new weights and of the order (default: 0)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="(default: auto)")
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Train a scoring model, save it, and say how well it orders pairs."""
    _check_numbers(options)
    pairs = load("envs.llm.data:read_pairs")(options.data)
    _check_out(options.out)
    missing = [name for name in ("trl", "datasets") if find_spec(name) is None]
    if missing:
        raise UsageError(f"reward-model needs {' and '.join(missing)}: pip install 'ppo-unified[trl]'")
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
        longest = f"{outcome.max_length} tokens; see --max-length"
        print(f"left out {outcome.left_out} pairs of more than {longest}", file=sys.stderr)
    if not outcome.held_out:
        why = f"too few pairs to hold out {options.eval_share:.0%} of them"
        print(f"{why}: the accuracy below is on the training pairs themselves", file=sys.stderr)
    if options.json:
        print(json.dumps({"out": str(options.out), **vars(outcome)}))
        return
    which = f"{outcome.scored} {'held-out' if outcome.held_out else 'training'} pairs"
    measured = f"accuracy {outcome.accuracy:.3f}, margin {outcome.margin:.3g} on {which}"
    print_out(
        f"{clean(options.out)}: {measured}, trained on {outcome.trained}; use it with --llm.reward {clean(options.out)}"
    )


def _check_numbers(options: argparse.Namespace) -> None:
    for name, lowest in (("epochs", 1), ("batch", 1), ("max_length", 0), ("lora_rank", 0), ("seed", 0)):
        if getattr(options, name) < lowest:
            flag = "--" + name.replace("_", "-")
            raise UsageError(f"{flag} {getattr(options, name)}: must be at least {lowest}")
    if options.lora_only and not options.lora_rank:
        raise UsageError("--lora-only requires --lora-rank")
    if not math.isfinite(options.lr) or options.lr < 0:
        raise UsageError(f"--lr {options.lr:g}: must be above 0, or 0 for what suits the model")
    if not 0 <= options.eval_share < 1:
        raise UsageError(f"--eval-share {options.eval_share:g}: must be at least 0 and below 1")


def _check_out(folder: Path) -> None:
    """Make the folder. Raises UsageError where it holds anything but an earlier scoring model, naming what."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        others = sorted(set(os.listdir(folder)) - _list_earlier(folder))
    except OSError as error:
        raise UsageError(f"--out {folder}: cannot be made a folder ({error.strerror}); choose another") from None
    if others:
        named = ", ".join(clean(name) for name in others[:5]) + (", ..." if len(others) > 5 else "")
        raise UsageError(f"--out {folder}: holds something else already ({named}); choose an empty or a new folder")


def _list_earlier(folder: Path) -> set[str]:
    """The files of an earlier scoring model there."""
    try:
        description = read_json(folder / DESCRIPTION)
        ours = description["format"] == FORMAT
        return set(description["files"]) & set(os.listdir(folder)) if ours else set()
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def _replace_model(aside: Path, folder: Path, about: dict[str, Any]) -> None:
    """Replace an earlier scoring model in `folder` by the one in `aside`."""
    files = sorted([*os.listdir(aside), DESCRIPTION])
    versions = {"python": platform.python_version()} | {name: version(name) for name in PACKAGES}
    description = {"format": FORMAT, **about, "versions": versions, "files": files}
    (aside / DESCRIPTION).write_text(json.dumps(description, indent=1, allow_nan=False), encoding="utf-8")
    for name in _list_earlier(folder) - set(files):
        (folder / name).unlink(missing_ok=True)
    for name in files:
        (aside / name).replace(folder / name)


class _Progress:
    """A live line on a terminal, a plain one every few seconds elsewhere."""

    def __init__(self) -> None:
        self.live = is_drawable(sys.stderr)
        self.said = time.monotonic()
        self.began: float | None = None  # when the first step ended: loading the model is no step

    def __call__(self, now: Any) -> None:
        """`now`: an envs.llm.rewards.train_reward_model.Progress."""
        moment = time.monotonic()
        if self.began is None:
            self.began = moment
        if moment - self.said < (LIVE_S if self.live else PLAIN_S):
            return
        self.said = moment
        left = (moment - self.began) / max(1, now.step - 1) * (now.steps - now.step)
        line = f"step {now.step:,} of {now.steps:,} | loss {now.loss:.3f} | accuracy {now.accuracy:.2f}"
        line += f" | ETA {format_duration(left)}" if now.step > 1 else ""
        if self.live:
            line = "\r\x1b[K" + line[: shutil.get_terminal_size().columns - 1]
        print(line, end="" if self.live else "\n", file=sys.stderr, flush=True)

    def finish(self) -> None:
        if self.live:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
