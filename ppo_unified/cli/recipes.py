"""`recipes`: list, show or compare recipes, the PPO settings of published systems."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import textwrap
from typing import Any

from ppo_unified.cli.common import add_json
from ppo_unified.config import recipes as book
from ppo_unified.config.recipes import Recipe, Setting
from ppo_unified.errors import UsageError
from ppo_unified.runs.folder import to_json
from ppo_unified.text import DIM, apply_style, can_color, clean, format_table, print_out

_WIDEST = 120  # columns of a note if stdout is not a terminal


def add_arguments(parser: argparse.ArgumentParser) -> None:
    about = "one recipe to show, or two to compare (default: list all recipes)"
    parser.add_argument("names", nargs="*", metavar="NAME", help=about)
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """List all recipes, show one recipe, or print the options in which two recipes differ."""
    if len(options.names) > 2:
        raise UsageError(f"ppo-unified recipes: expected at most two recipe names, got {len(options.names)}")
    chosen = [book.load_recipe(name) for name in options.names]
    if not chosen:
        return _list(options.json)
    return _show(chosen[0], options.json) if len(chosen) == 1 else _compare(chosen[0], chosen[1], options.json)


def _list(as_json: bool) -> int:
    everything = book.all_recipes()
    if as_json:
        heads = [{"name": r.name, "kind": r.kind, "title": r.title, "source": r.source} for r in everything]
        print(to_json({"recipes": heads}))
        return 0
    rows = [{"recipe": clean(recipe.name), "description": clean(recipe.title)} for recipe in everything]
    lines = format_table(rows, can_color(sys.stdout))
    print_out(lines[0])
    for line, recipe in zip(lines[1:], everything, strict=True):
        print_out(line)
        _print_note(recipe.source)
    print_out(
        "\nTrain with a recipe:   ppo-unified train sentiment --recipe trl-early"
        "\nShow a recipe:         ppo-unified recipes trl-early"
        "\nCompare two recipes:   ppo-unified recipes trl-early tldr"
    )
    return 0


def _show(recipe: Recipe, as_json: bool) -> int:
    if as_json:
        chosen = {name: setting for name, setting in book.settings(recipe).items() if name in recipe.sources}
        about = {name: getattr(recipe, name) for name in ("name", "kind", "title", "source", "differs")}
        print(to_json({**about, "options": {name: setting._asdict() for name, setting in chosen.items()}}))
        return 0
    for line in recipe.text.splitlines():
        print_out(line[: len(line) - len(line.lstrip())] + clean(line))
    return 0


def _compare(first: Recipe, second: Recipe, as_json: bool) -> int:
    differing = book.difference(first, second)
    if as_json:
        options = {
            option: {first.name: one._asdict(), second.name: other._asdict()}
            for option, (one, other) in differing.items()
        }
        print(to_json({"recipes": [first.name, second.name], "options": options}))
        return 0
    if not differing:
        print_out("the options are the same")
        return 0
    names = (clean(first.name), clean(second.name))
    rows = [
        {"option": option} | dict(zip(names, map(_format, pair), strict=True)) for option, pair in differing.items()
    ]
    lines = format_table(rows, can_color(sys.stdout), align_numbers=False)
    print_out(lines[0])
    for line, pair in zip(lines[1:], differing.values(), strict=True):
        print_out(line)
        for name, setting in zip(names, pair, strict=True):
            _print_note(f"{name}: {'the default' if setting.source is None else setting.source}")
    return 0


def _format(setting: Setting) -> str:
    """Format a value as in TOML, or return '-' if recipes of this kind do not have the option."""
    value: Any = setting.value
    return "-" if value is None else clean(json.dumps(value))


def _print_note(text: str) -> None:
    """Print an indented note, dimmed if the terminal supports it."""
    color = can_color(sys.stdout)
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else _WIDEST
    for line in textwrap.wrap(clean(text), max(20, width - 4)):
        print_out("    " + apply_style(line, DIM if color else ""))
