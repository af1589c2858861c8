"""Builds an argparse parser with a flag for every option in the schema of a configuration."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from itertools import takewhile
from shutil import get_terminal_size
from typing import Any, TypeVar

from pydantic.fields import FieldInfo

from ppo_unified.cli.common import Parser
from ppo_unified.config.registry import config_models
from ppo_unified.config.schema import LARGEST_WHOLE, RunConfig, typed_options, validate
from ppo_unified.config.suggestions import OTHER_NAMES, suggest
from ppo_unified.config.values import (
    AUTO,
    accepts_auto,
    bounds_of,
    choices_of,
    flag_name,
    format_value,
    join_words,
    kind_of,
    negative_flag,
    read_value,
)
from ppo_unified.errors import UsageError, did_you_mean

C = TypeVar("C", bound=RunConfig)

WHERE = "command line"
WIDEST_HELP = 100  # columns
METAVARS = {"int": "INT", "float": "FLOAT", "text": "TEXT", "table": "JSON"}
_NUMBER = re.compile(r"-(\d+\.?\d*|\.\d+)(e[-+]?\d+)?$", re.IGNORECASE)  # -1e-3 is a value, not a flag


def read_flags(
    config: RunConfig, args: Sequence[str], prog: str, about: str, command_flags: Sequence[str] = ()
) -> dict[str, str]:
    """Return the text of every option that has a flag in `args`, such as {'ppo.clip': '0.1'}.

    `--help` prints all options, with config's values as defaults, and exits. Raises a one-line UsageError for an
    unknown flag, an unexpected argument or a flag without a value. The error for an unknown flag also suggests one of
    `command_flags`, the flags of the command itself.
    """
    known, unknown = _make_parser(config, prog, about).parse_known_args([_normalize_flag(word) for word in args])
    typed: dict[str, str | None] = vars(known)
    if missing := [option for option, text in typed.items() if text is None]:
        raise UsageError(_explain_missing(missing[0], config, unknown))
    if unknown:
        raise UsageError(_explain_unknown(unknown[0], type(config), prog, command_flags))
    return {option: text for option, text in typed.items() if text is not None}


def move_target_first(words: Sequence[str], parser: Parser, metavar: str) -> list[str]:
    """Move the target of `train` or the run of `resume` before the options, or return [] if it is missing.

    Without this, argparse would take 3 as the target in `train --seed 3 cartpole`, because it does not know the
    adapter's options before it knows the target. This function knows the options of all adapters.
    """
    declared = {option: field for model in config_models().values() for option, field in typed_options(model).items()}
    kinds: dict[str, str] = dict.fromkeys(parser.switches, "switch")
    kinds |= {flag(option): kind_of(field) for option, field in declared.items() for flag in (negative_flag, flag_name)}
    known = {*parser.flags, *kinds}
    position, list_flag, unknown = 0, "", ""
    while position < len(words) and words[position].startswith("-"):
        flag, equals, _ = _normalize_flag(words[position]).partition("=")
        kind, position, unknown = kinds.get(flag), position + 1, unknown or ("" if flag in known else flag)
        if flag == "--":
            continue
        following = takewhile(lambda word: not word.startswith("--"), words[position:])
        if equals or kind == "switch":
            continue
        if kind == "bool":
            position += next(following, "").lower() in ("true", "false")
        elif kind == "list":
            position, list_flag = position + len(list(following)), flag
        else:
            position += len(list(following)[:1])
    if position < len(words):
        before = [word for word in words[:position] if word != "--"]
        return [words[position], *before, *words[position + 1 :]]
    if help_flags := [word for word in words if word in ("-h", "--help")]:
        return help_flags
    if unknown.strip("-"):
        raise UsageError(f"unknown option {unknown}{did_you_mean(unknown, known)}")
    if list_flag:
        raise UsageError(
            f"{parser.prog}: missing {metavar}; write it before {list_flag}, which takes all the words after it"
        )
    return []


def configure(config: C, typed: Mapping[str, str]) -> C:
    """Return `config` with the typed options applied. Raises UsageError with one line per mistake."""
    declared, tables = typed_options(type(config)), config.model_dump()
    for option, text in typed.items():
        section, _, key = option.rpartition(".")
        try:
            value = read_value(text, declared[option])
        except ValueError as error:
            raise UsageError(f"{flag_name(option)}: {error}") from None
        (tables[section] if section else tables)[key] = value
    return validate(type(config), tables, WHERE)


def _make_parser(config: RunConfig, prog: str, about: str) -> Parser:
    usage = f"{prog} [--section.key VALUE ...]"
    parser = Parser(
        prog=prog, usage=usage, description=about, formatter_class=_Help, argument_default=argparse.SUPPRESS
    )
    parser._negative_number_matcher = _NUMBER
    parser._optionals.title = "options"
    groups, values = {"": parser._optionals}, config.flatten()
    for option, declared in typed_options(type(config)).items():
        section = option.rpartition(".")[0]
        if section not in groups:
            groups[section] = parser.add_argument_group(section)
        _add_flag(groups[section], option, declared, values[option])
    return parser


def _add_flag(group: argparse._ArgumentGroup, option: str, declared: FieldInfo, value: Any) -> None:
    kind, bounds = kind_of(declared), bounds_of(declared).removesuffix(f" and <= {LARGEST_WHOLE}")
    text = f"{declared.description} (default: {format_value(value, declared) or 'not set'})".replace("%", "%%")
    if kind == "bool":
        flags = (flag_name(option), negative_flag(option))
        group.add_argument(*flags, dest=option, nargs="?", const="", action=_Switch, help=text)
    elif kind == "list":
        group.add_argument(
            flag_name(option), dest=option, nargs="*", metavar="VALUE ...", action=_Words, help=text, declared=declared
        )
    else:
        metavar = f"{{{','.join(choices_of(declared))}}}" if kind == "choice" else f"{METAVARS[kind]} {bounds}".strip()
        metavar += f" or {AUTO}" if accepts_auto(declared) else ""
        group.add_argument(flag_name(option), dest=option, nargs="?", metavar=metavar, help=text)


class _Switch(argparse.Action):
    """A boolean option with two flags: --gym.normalize-obs [true|false] and --gym.no-normalize-obs."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        negative = option_string != self.option_strings[0]
        if negative and values:
            raise UsageError(f"{option_string}: expected no value, got {values!r}")
        setattr(namespace, self.dest, "false" if negative else values or "true")


class _Words(argparse.Action):
    """A list option whose value is one or more words."""

    def __init__(self, *names: Any, declared: FieldInfo, **options: Any) -> None:
        super().__init__(*names, **options)
        self.declared = declared

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        setattr(namespace, self.dest, join_words(values, self.declared))


class _Help(argparse.HelpFormatter):
    """A help formatter that prints each description below its flag, at most WIDEST_HELP columns wide."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=8, width=min(WIDEST_HELP, get_terminal_size().columns))

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if action.nargs == 0 or isinstance(action, _Switch):
            return ", ".join(action.option_strings)
        return f"{action.option_strings[0]} {action.metavar}"


def _normalize_flag(word: str) -> str:
    """Replace underscores in the name of a flag with dashes, so that both spellings work."""
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value if word.startswith("--") else word


def _explain_missing(option: str, config: RunConfig, unknown: Sequence[str]) -> str:
    flag, declared = flag_name(option), typed_options(type(config))[option]
    example = format_value(config.flatten()[option], declared) or METAVARS.get(kind_of(declared), "")
    text = f"{flag} needs a value, e.g. {flag} {example}"
    return text + (f"; for a value that starts with '-' write {flag}={unknown[0]}" if unknown else "")


def _explain_unknown(flag: str, model: type[RunConfig], prog: str, command_flags: Sequence[str]) -> str:
    if not flag.startswith("--"):
        return f"{prog}: unexpected argument {flag!r}; expected only options here, such as --ppo.clip 0.1"
    flag = flag.partition("=")[0]
    name = flag.lstrip("-").replace("-", "_")
    for option, reason in model.unsupported.items():
        if name in (option, option.rpartition(".")[2]):
            return f"{flag} is not supported: {reason}"
    declared = typed_options(model)
    if (option := name.removeprefix("no_")) != name and option in declared and kind_of(declared[option]) == "bool":
        return f"unknown option {flag}; did you mean {negative_flag(option)}?"
    if "." not in name and OTHER_NAMES.get(name) not in declared:
        for match in get_close_matches(flag, command_flags, n=1, cutoff=0.8):
            return f"unknown option {flag}; did you mean {match}?"
    found = suggest(name, declared)
    if found is None:
        kind = model.model_fields["kind"].default
        others = [other for other, its in config_models().items() if other != kind and name in typed_options(its)]
        where = f" for targets of kind {kind!r} (it is an option of kind {others[0]!r})" if others else ""
        return f"unknown option {flag}{where}; --help lists all options"
    note = f" ({found.note})" if found.note else ""
    return f"unknown option {flag}; did you mean {flag_name(found.option)}?{note}"
