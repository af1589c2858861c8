"""Command-line flags for every option, by tyro from the schema; what tyro can't say in one line is said here."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import re
from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any, TypeVar, get_origin

import tyro

from ppo_unified.config.schema import RunConfig, Section, known_options, validate
from ppo_unified.errors import UsageError, closest
from ppo_unified.parsing import parse_json

HIDDEN = ("kind", "preset", "recipe")  # they come with the target and --recipe

_MISREAD = {  # what Python says of a text that is no such number, and what it should be
    r"invalid literal for int\(\) with base 10": "a whole number, in digits",
    "could not convert string to float": "a number",
}

C = TypeVar("C", bound=RunConfig)


def parse_flags(config: C, args: Sequence[str], prog: str, description: str) -> C:
    """`config` with flags such as `--ppo.lr 1e-3` laid over it; `--help` prints them all with config's values as
    defaults and exits. Raises UsageError, one line, for unknown flags and unfit values."""
    default = _mirror(config)
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            parsed, unknown = tyro.cli(
                type(default),
                args=list(args),
                default=default,
                prog=prog,
                description=description,
                return_unknown_args=True,
            )
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise UsageError(_one_line(said.getvalue())) from None
    if unknown:
        raise UsageError(_unknown(unknown[0], type(config)))
    return validate(type(config), _tables(parsed, config), "command line")


def _mirror(section: Section) -> Any:
    """A dataclass instance of the same shape, for tyro to fill without validating half-parsed values.

    Tables become JSON strings; what comes with the target has no flag.
    """
    members: list[tuple[str, Any, Any]] = []
    for name, f in type(section).model_fields.items():
        value, kind = getattr(section, name), f.annotation
        if isinstance(value, Section):
            value = _mirror(value)
            members.append((name, type(value), dataclasses.field(default=value)))
            continue
        if get_origin(kind) is dict:
            kind, value = str, json.dumps(value)
        marks: list[Any] = [tyro.conf.arg(help=f.description)] + ([tyro.conf.Suppress] if name in HIDDEN else [])
        default: Any = dataclasses.field(default=value)
        if isinstance(value, list):
            default = dataclasses.field(default_factory=partial(list, value))
        members.append((name, Annotated[(kind, *marks)], default))
    return dataclasses.make_dataclass(type(section).__name__, members, frozen=True)()


def _tables(parsed: Any, section: Section) -> dict[str, Any]:
    """The filled mirror as nested tables, JSON strings decoded."""
    tables: dict[str, Any] = {}
    for f in dataclasses.fields(parsed):
        value, before = getattr(parsed, f.name), getattr(section, f.name)
        if isinstance(before, Section):
            value = _tables(value, before)
        elif isinstance(before, dict):
            try:
                value = parse_json(value)
            except ValueError as error:
                raise UsageError(f"command line: {f.name} = {value!r} is not JSON: {error}") from None
        tables[f.name] = value
    return tables


def _unknown(flag: str, model: type[RunConfig]) -> str:
    if not flag.startswith("--"):
        return f"unexpected argument {flag!r}; options are written --section.key VALUE"
    name = flag.partition("=")[0].lstrip("-").replace("-", "_")
    for option, reason in model.refused.items():
        if name in (option, option.rpartition(".")[2]):
            return f"{flag.partition('=')[0]} is refused: {reason}"
    section, _, key = name.rpartition(".")
    keys = {known.rpartition(".")[2]: known for known in known_options(model)}
    keys |= {k.rpartition(".")[2]: k for k in known_options(model) if k.startswith(f"{section}.")}
    match = closest(key, keys)
    remedy = f"; did you mean --{keys[match].replace('_', '-')}?" if match else "; list them all with --help"
    return f"there is no option {flag.partition('=')[0]}{remedy}"


def _one_line(box: str) -> str:
    """tyro's framed complaint as one sentence: the text between the frame's top and its first rule."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", box)
    lines: list[str] = []
    for line in text.splitlines():
        if re.match(r"^[╭┌+]", line):
            continue
        if re.match(r"^[│|]?\s*[─-]{5,}|^[╰└]", line):
            break
        lines.append(line.strip("│| "))
    sentence = " ".join(" ".join(lines).split())
    for theirs, ours in _MISREAD.items():
        sentence = re.sub(rf"Error parsing (--\S+): {theirs}: (.*)", rf"\1 \2: should be {ours}", sentence)
    return f"command line: {sentence}"
