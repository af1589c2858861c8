"""How known systems set PPO up: TOML overlays that say only what their source determines, each setting with where it
stands there. A recipe is laid over a target's options; flags are laid over both."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from ppo_unified.config.registry import config_model, toml_files
from ppo_unified.config.schema import RECORDS, RunConfig, Section, read_toml, validate
from ppo_unified.errors import UsageError, did_you_mean

_SECTION = re.compile(r"\s*\[([\w-]+)\]")
_SETTING = re.compile(r"""\s*([\w-]+)\s*=\s*(?:"[^"]*"|'[^']*'|[^"'#])*(?:#\s*(.*))?""")
_REMARK = re.compile(r"\s*#\s*(.*)")


@dataclass(frozen=True)
class Recipe:
    """One recipe as its file has it; `options` are nested tables, `sources` name them as flags do ('llm.kl_coef')."""

    name: str
    kind: str
    title: str
    source: str  # of the whole
    differs: tuple[str, ...]  # what the source does and no option here can say
    options: Mapping[str, Any]
    sources: Mapping[str, str]  # option -> the comment beside it
    text: str


class Setting(NamedTuple):
    """A recipe's value of one option; `source` is None where the recipe leaves the default."""

    value: Any
    source: str | None


def recipe_files() -> dict[str, Path]:
    """Every recipe's name and file, of all adapters."""
    return toml_files("recipes")


def all_recipes() -> list[Recipe]:
    return [_read(name, path) for name, path in recipe_files().items()]


def load_recipe(name: str) -> Recipe:
    """The recipe of that name. Raises UsageError naming the nearest one."""
    files = recipe_files()
    if name not in files:
        raise UsageError(f"there is no recipe {name!r}{did_you_mean(name, files)} (list: ppo-unified recipes)")
    return _read(name, files[name])


def _read(name: str, path: Path) -> Recipe:
    table = read_toml(path)
    about, kind = table.pop("about", {}), table.pop("kind", "")
    if not kind or not isinstance(kind, str):
        raise UsageError(f'{path}: says no adapter; add a line such as: kind = "llm"')
    about = about if isinstance(about, dict) else {"title": about}
    title, source, differs = about.get("title", ""), about.get("source", ""), about.get("differs", [])
    if not isinstance(differs, list) or not all(isinstance(x, str) for x in (title, source, *differs)):
        raise UsageError(f"{path}: [about] holds title and source, which are texts, and differs, a list of texts")
    text = path.read_text(encoding="utf-8")
    return Recipe(name, kind, title, source, tuple(differs), table, parse_comments(text), text)


def parse_comments(text: str) -> dict[str, str]:
    """The comment beside each setting of a TOML text, lines of nothing but comment below it included, by option."""
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
    """`config` with a recipe's options over its own and the recipe's name in it, yet to be validated as a whole: flags
    come over both, and may mend what the two alone would contradict each other in.

    Raises UsageError for unknown names and for a recipe of another kind, or one that is wrong by itself.
    """
    recipe = load_recipe(name)
    if recipe.kind != config.kind:
        raise UsageError(
            f"--recipe {name}: is for kind {recipe.kind!r}, and {config.origin} is of kind {config.kind!r}; "
            f"choose a target of that kind, or a recipe of this one (list: ppo-unified recipes)"
        )
    own, changes = _recipe_config(recipe), dict[str, Any](recipe=name)
    for key, value in recipe.options.items():
        ours, theirs = getattr(config, key), getattr(own, key)
        inside = isinstance(ours, Section)
        changes[key] = ours.model_copy(update={k: getattr(theirs, k) for k in value}) if inside else theirs
    return config.model_copy(update=changes)


def _recipe_config(recipe: Recipe) -> RunConfig:
    return validate(config_model(recipe.kind), {"kind": recipe.kind, **recipe.options}, f"recipe {recipe.name}")


def settings(recipe: Recipe) -> dict[str, Setting]:
    """Every option under its flag's name: what the recipe sets, and the defaults of the rest."""
    options = _recipe_config(recipe).flatten().items()
    return {name: Setting(value, recipe.sources.get(name)) for name, value in options if name not in RECORDS}


def difference(first: Recipe, second: Recipe) -> dict[str, tuple[Setting, Setting]]:
    """The options in which two recipes differ when laid over the defaults, in the schema's order."""
    ours, theirs, absent = settings(first), settings(second), Setting(None, None)
    pairs = {option: (ours.get(option, absent), theirs.get(option, absent)) for option in ours | theirs}
    return {option: pair for option, pair in pairs.items() if pair[0].value != pair[1].value}
