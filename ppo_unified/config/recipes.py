"""Recipes are TOML files with the PPO options of published systems. A recipe is applied on top of a target's options.

The comment next to each option cites the part of the source that defines it. Command-line flags override the recipe.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from ppo_unified.config.registry import config_model, toml_files
from ppo_unified.config.schema import RECORDS, RunConfig, Section, read_toml, validate
from ppo_unified.config.values import AUTO, Auto
from ppo_unified.errors import UsageError, did_you_mean

_SECTION = re.compile(r"\s*\[([\w-]+)\]")
_SETTING = re.compile(r"""\s*([\w-]+)\s*=\s*(?:"[^"]*"|'[^']*'|[^"'#])*(?:#\s*(.*))?""")
_REMARK = re.compile(r"\s*#\s*(.*)")


@dataclass(frozen=True)
class Recipe:
    """The contents of a recipe's file."""

    name: str
    kind: str
    title: str
    source: str  # the publication or repository that the recipe follows
    differs: tuple[str, ...]  # differences from the source that no option can express
    options: Mapping[str, Any]  # nested tables of options
    sources: Mapping[str, str]  # an option's full name, such as 'llm.kl_coef' -> the comment next to it
    text: str


class Setting(NamedTuple):
    """The value of one option in a recipe. `source` is None if the recipe does not set the option."""

    value: Any
    source: str | None


def recipe_files() -> dict[str, Path]:
    """Return the files of all adapters' recipes, by recipe name."""
    return toml_files("recipes")


def all_recipes() -> list[Recipe]:
    return [_read(name, path) for name, path in recipe_files().items()]


def load_recipe(name: str) -> Recipe:
    """Return a recipe by name. Raises UsageError for an unknown name and suggests the most similar one."""
    files = recipe_files()
    if name not in files:
        raise UsageError(f"unknown recipe {name!r}{did_you_mean(name, files)} (list: ppo-unified recipes)")
    return _read(name, files[name])


def _read(name: str, path: Path) -> Recipe:
    table = read_toml(path)
    about, kind = table.pop("about", {}), table.pop("kind", "")
    if not kind or not isinstance(kind, str):
        raise UsageError(f"{path}: missing option 'kind'; name the adapter with a line such as: kind = \"llm\"")
    about = about if isinstance(about, dict) else {"title": about}
    title, source, differs = about.get("title", ""), about.get("source", ""), about.get("differs", [])
    if not isinstance(differs, list) or not all(isinstance(x, str) for x in (title, source, *differs)):
        raise UsageError(
            f"{path}: [about]: expected title and source to be strings, and differs to be a list of strings"
        )
    text = path.read_text(encoding="utf-8")
    return Recipe(name, kind, title, source, tuple(differs), table, parse_comments(text), text)


def parse_comments(text: str) -> dict[str, str]:
    """Return each option's comment: the text after its value and on the comment lines directly below it."""
    found: dict[str, str] = {}
    section = option = ""
    for line in text.splitlines():
        if match := _SECTION.match(line):
            section, option = match[1], ""
        elif match := _SETTING.match(line):
            option = f"{section}.{match[1]}" if section else match[1]
            found[option] = (match[2] or "").strip()
        elif option and (match := _REMARK.match(line)):
            found[option] = f"{found[option]} {match[1].strip()}".strip()
        else:
            option = ""
    return {option: remark for option, remark in found.items() if option != "kind" and not option.startswith("about.")}


C = TypeVar("C", bound=RunConfig)


def apply_recipe(config: C, name: str) -> C:
    """Return a copy of `config` with the recipe's options applied on top and `recipe` set to the recipe's name.

    The result is not validated, because flags that are applied later may resolve a conflict between config and recipe.
    Raises UsageError if the recipe is unknown, invalid or made for a different kind of target.
    """
    recipe = load_recipe(name)
    if recipe.kind != config.kind:
        raise UsageError(
            f"--recipe {name} requires a target of kind {recipe.kind!r}, but {config.origin} is of kind "
            f"{config.kind!r}; choose another target or recipe (list: ppo-unified recipes)"
        )
    own, changes = _recipe_config(recipe), dict[str, Any](recipe=name)
    for key, value in recipe.options.items():
        old, new = getattr(config, key), getattr(own, key)
        changes[key] = old.model_copy(update={k: getattr(new, k) for k in value}) if isinstance(old, Section) else new
    return config.model_copy(update=changes)


def _recipe_config(recipe: Recipe) -> RunConfig:
    return validate(config_model(recipe.kind), {"kind": recipe.kind, **recipe.options}, f"recipe {recipe.name}")


def settings(recipe: Recipe) -> dict[str, Setting]:
    """Return every option's setting by full name. An option that the recipe does not set has its default value."""
    options = _recipe_config(recipe).flatten().items()
    values = {name: AUTO if isinstance(value, Auto) else value for name, value in options if name not in RECORDS}
    return {name: Setting(value, recipe.sources.get(name)) for name, value in values.items()}


def difference(first: Recipe, second: Recipe) -> dict[str, tuple[Setting, Setting]]:
    """Return the options whose values differ between two recipes, in the schema's order. If a recipe does not set an
    option, its default value is compared."""
    left, right, absent = settings(first), settings(second), Setting(None, None)
    pairs = {option: (left.get(option, absent), right.get(option, absent)) for option in left | right}
    return {option: pair for option, pair in pairs.items() if pair[0].value != pair[1].value}
