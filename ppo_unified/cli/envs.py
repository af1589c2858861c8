"""`envs`: list the presets and show how to train other targets."""

from __future__ import annotations

import argparse
import sys

from ppo_unified.cli.common import add_json
from ppo_unified.cli.run_table import interleave, output_width
from ppo_unified.config.presets import list_presets
from ppo_unified.config.registry import config_models
from ppo_unified.runs.folder import to_json
from ppo_unified.text import DIM, apply_style, can_color, clean, format_table, max_display_width, print_out


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Print the presets, with the expected score and time of each, and examples of other targets."""
    presets = list(list_presets())
    if options.json:
        schemas = {kind: model.model_json_schema() for kind, model in config_models().items()}
        print(to_json({"presets": [about._asdict() for about in presets], "options": schemas}))
        return 0
    names = {"preset": "name", "time": "time", "expected score": "score", "task": "title"}
    rows = [{header: clean(getattr(about, name)) for header, name in names.items()} for about in presets]
    color = can_color(sys.stdout)
    if max_display_width(format_table(rows)) <= output_width():
        print_out("\n".join(format_table(rows, color)))
    else:
        tasks = [[apply_style(row.pop("task"), DIM if color else "")] for row in rows]
        print_out("\n".join(interleave(format_table(rows, color), tasks)))
    print_out(
        "\nTrain a preset:                 ppo-unified train cartpole"
        "\nTrain a Gymnasium environment:  ppo-unified train Acrobot-v1"
        "\nTrain your own environment:     ppo-unified train mymodule:MyEnv-v0"
        "\nTrain a Hugging Face model:     ppo-unified train llm --llm.model FOLDER_OR_HUB_ID"
        "\nList the options of a preset:   ppo-unified train cartpole --help"
    )
    return 0
