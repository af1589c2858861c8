"""Parse, validate, describe and format the values of options.

The command line and the terminal UI's form both use this module, so they accept the same input and report the same
errors.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeAlias, Union, get_args, get_origin

from pydantic import ConfigDict, GetCoreSchemaHandler, GetJsonSchemaHandler, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema, core_schema

from ppo_unified.errors import did_you_mean
from ppo_unified.parsing import parse_json

Kind: TypeAlias = Literal["bool", "int", "float", "choice", "text", "list", "table"]

BOUNDS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
NOUNS = {"bool": "true or false", "int": "an integer", "float": "a number", "table": "a JSON object"}
ELEMENTS = {int: "integers", float: "numbers"}  # names for a list's elements; elements of other types are called words
AUTO = "auto"  # the text of a number that the adapter chooses
WHY_NOT_AUTO = "numbers for 'auto' are chosen only when a run is created"
OTHER_NAMES = {"gpu": "cuda"}  # other name of a choice -> the choice
LONGEST_SHOWN = 80  # maximum number of characters of an invalid value that an error message shows


class Auto:
    """The value of an option that is 'auto'. The adapter chooses the number when a run is created.

    All these values are equal to each other and to the word 'auto', and differ from every number. Until the number is
    chosen, code that computes with the value uses its fallback.
    """

    def __str__(self) -> str:
        return AUTO

    __repr__ = __str__

    def __format__(self, _spec: str) -> str:
        return AUTO

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Auto) or (isinstance(other, str) and other == AUTO)

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash(AUTO)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.any_schema(serialization=core_schema.to_string_ser_schema())  # as a default in JSON schemas


class AutoInt(Auto, int):
    """An integer that is not chosen yet: `AutoInt(64)` has the fallback 64."""


class AutoFloat(Auto, float):
    """A number that is not chosen yet: `AutoFloat(1e-5)` has the fallback 1e-5."""


@dataclass(frozen=True, eq=False)  # `Annotated` shares equal marks, but marks with different fallbacks must differ
class OrAuto:
    """Marks an option that accepts the word 'auto' besides numbers. Files contain this word, not the fallback."""

    value: AutoInt | AutoFloat  # the value of an option that is 'auto'

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        def parse(value: Any, parse_number: Callable[[Any], Any]) -> Any:
            return self.value if value == AUTO else parse_number(value)

        def dump(value: Any) -> Any:
            return AUTO if value == AUTO else value

        serialization = core_schema.plain_serializer_function_ser_schema(dump)
        return core_schema.no_info_wrap_validator_function(parse, handler(source), serialization=serialization)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"anyOf": [handler(schema), {"const": AUTO}]}


def accepts_auto(option: FieldInfo) -> bool:
    """Return True if an option accepts the word 'auto' besides numbers."""
    return any(isinstance(mark, OrAuto) for mark in option.metadata)


class Verbatim:
    """Marks a list option whose elements may contain commas, brackets and quotation marks, as regular expressions do.

    On the command line, each argument is one element. In other text, elements are separated by spaces, and an element
    that contains spaces has quotation marks around it; inside them, two quotation marks stand for one.
    """


def is_verbatim(option: FieldInfo) -> bool:
    """Return True if an option is a `Verbatim` list."""
    return any(isinstance(mark, Verbatim) for mark in option.metadata)


def kind_of(option: FieldInfo) -> Kind:
    """Return the kind of value that an option accepts."""
    annotation = _strip_optional(option.annotation)
    names: dict[Any, Kind] = {Literal: "choice", list: "list", dict: "table", bool: "bool", int: "int", float: "float"}
    return names.get(get_origin(annotation) or annotation, "text")


def choices_of(option: FieldInfo) -> tuple[str, ...]:
    """Return the valid values of an option of kind 'choice', or an empty tuple for other kinds."""
    return tuple(map(str, get_args(option.annotation))) if kind_of(option) == "choice" else ()


def is_optional(option: FieldInfo) -> bool:
    return NoneType in get_args(option.annotation)


def _strip_optional(annotation: Any) -> Any:
    """Remove None from an optional type: `float | None` becomes `float`. Other types are returned unchanged."""
    if get_origin(annotation) in (Union, UnionType):
        return next(part for part in get_args(annotation) if part is not NoneType)
    return annotation


def describe(option: FieldInfo) -> str:
    """Return a description of an option's valid values, such as 'an integer >= 1' or 'one of auto, cpu, cuda'."""
    kind = kind_of(option)
    if kind == "choice":
        return f"one of {', '.join(choices_of(option))}"
    if is_verbatim(option):
        return "texts separated by spaces, with quotation marks around a text that contains spaces"
    if kind == "list":
        shortest, longest = _limit(option, "min_length"), _limit(option, "max_length")
        count = f"{shortest} " if shortest is not None and shortest == longest else ""
        return f"{count}{ELEMENTS.get(get_args(option.annotation)[0], 'words')} separated by spaces"
    if kind == "text":
        return "non-empty text" if _limit(option, "min_length") else "text"
    suffix = " or None" if is_optional(option) else f" or {AUTO}" if accepts_auto(option) else ""
    return f"{NOUNS[kind]} {bounds_of(option)}".strip() + suffix


def bounds_of(option: FieldInfo) -> str:
    """Return an option's bounds, such as '>= 0 and < 1', or '' if it has none."""
    limits = {sign: _limit(option, name) for name, sign in BOUNDS.items()}
    return " and ".join(f"{sign} {limit}" for sign, limit in limits.items() if limit is not None)


def _limit(option: FieldInfo, name: str) -> Any:
    return next((getattr(mark, name) for mark in option.metadata if hasattr(mark, name)), None)


def format_mismatch(option: FieldInfo, value: object) -> str:
    """Return an error message with the expected value, the actual value, and the most similar choice, if any."""
    word = str(value).lower()
    suggestion = did_you_mean(OTHER_NAMES.get(word, word), choices_of(option))
    return f"expected {describe(option)}, got {show_value(value)}{suggestion}"


def read_value(text: str, option: FieldInfo) -> Any:
    """Parse the value of an option and check its type and bounds.

    Integers may be written as 1e6 or 600_000, lists as `64 64`, `64,64` or `[64, 64]`, and tables as JSON. Raises
    ValueError with a message that contains the expected and the actual value.
    """
    try:
        if is_optional(option) and text.strip() in ("", "None"):
            return None
        if accepts_auto(option) and text.strip().lower() == AUTO:
            value: Any = AUTO
        elif is_verbatim(option):
            value = split_verbatim(text)
        else:
            value = _parse(text, _strip_optional(option.annotation))
    except ValueError as error:
        why = f" ({error})" if kind_of(option) in ("list", "table") and str(error) else ""
        raise ValueError(format_mismatch(option, text) + why) from None
    bounded: Any = Annotated[(option.annotation, *option.metadata, None)]
    checker = TypeAdapter[Any](bounded, config=ConfigDict(allow_inf_nan=False))
    try:
        return checker.validate_python(value)
    except ValidationError:
        raise ValueError(format_mismatch(option, text)) from None


def _parse(text: str, annotation: Any) -> Any:
    """Parse `text` as a value of type `annotation`. Raises ValueError, with a message only for lists and tables."""
    if annotation is bool:
        return _parse_switch(text)
    if annotation is int:
        return _parse_whole(text)
    if annotation is float:
        return _parse_number(text)
    if get_origin(annotation) is list:
        return [_parse(element, get_args(annotation)[0]) for element in split_list(text)]
    if get_origin(annotation) is Literal:
        return next((choice for choice in get_args(annotation) if str(choice) == text.strip()), text)
    return _parse_table(text) if get_origin(annotation) is dict else text


def _parse_table(text: str) -> Any:
    try:
        return parse_json(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"invalid JSON at character {error.pos + 1}") from None


def _parse_switch(text: str) -> bool:
    word = text.strip().lower()
    if word not in ("true", "false"):
        raise ValueError
    return word == "true"


def _parse_whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        number = _parse_number(text)
        if not number.is_integer():
            raise ValueError from None
        return int(number)


def _parse_number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError from None


_BLANK = " \t\r\n"
_TOKEN = re.compile(  # a part of a list; the group's name is the part's kind
    rf"""(?P<separator>[{_BLANK},]+)|'(?P<single>[^']*)'|"(?P<double>[^"]*)"|(?P<plain>[^{_BLANK},'"(]+)|(?P<open>\()"""
)
_NESTED = re.compile(  # what matters in parentheses: text in quotes, and brackets
    r"""'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"|(?P<open>[(\[{])|(?P<close>[)\]}])""", re.DOTALL
)


def split_list(text: str) -> list[str]:
    """Split the text of a list at spaces and commas, except inside parentheses.

    Brackets around the list and quotes around elements are optional. Text in parentheses is not changed, so that an
    element can be a call such as `Name(key=[1, 2])`. Raises ValueError for an unclosed quotation mark.
    """
    text = text.strip(_BLANK)
    if text.startswith("[") and text.endswith("]"):
        text = text[1:-1]
    elements: list[str] = []
    position, continues = 0, False
    while position < len(text):
        token = _TOKEN.match(text, position)
        if token is None:
            raise ValueError("a quotation mark is not closed")
        kind, end = str(token.lastgroup), token.end()
        if kind == "open":
            end = _find_closing(text, position)
        if kind != "separator":
            part = text[position:end] if kind == "open" else token[kind]
            elements.append(elements.pop() + part if continues else part)
        position, continues = end, kind != "separator"
    return elements


def _find_closing(text: str, start: int) -> int:
    """Return the position after the bracket that closes the one at `start`, or the end of the text if there is none."""
    depth = 0
    for token in _NESTED.finditer(text, start):
        depth += (token["open"] is not None) - (token["close"] is not None)
        if depth == 0 and token["close"]:
            return token.end()
    return len(text)


_VERBATIM = re.compile(r"""\s*(?:'(?P<single>(?:[^']|'')*)'(?!\S)|"(?P<double>(?:[^"]|"")*)"(?!\S)|(?P<plain>\S+))""")


def split_verbatim(text: str) -> list[str]:
    """Split the text of a `Verbatim` list into its elements."""
    elements, text = [], text.rstrip()
    for found in _VERBATIM.finditer(text):
        double, single, plain = found["double"], found["single"], found["plain"]
        if double is not None:
            elements.append(double.replace('""', '"'))
        else:
            elements.append(plain if single is None else single.replace("''", "'"))
    return elements


def _quote_verbatim(element: str) -> str:
    quoted = "'" + element.replace("'", "''") + "'"
    return element if split_verbatim(f"{element} x") == [element, "x"] else quoted


def join_words(words: Sequence[str], option: FieldInfo) -> str:
    """Join a list's command-line arguments, such as `[64,` and `64]`, into text that `read_value` can parse."""
    if is_verbatim(option):
        return " ".join(map(_quote_verbatim, words))
    if len(words) == 1 or (words and words[0].startswith("[") and words[-1].endswith("]")):
        return " ".join(words)
    return " ".join(map(_quote, words))


def _quote(element: str) -> str:
    """Quote an element, if necessary, so that `split_list` returns it unchanged, whatever elements follow it."""
    try:
        if not element.startswith("[") and split_list(f"""{element} 'x' "y" """) == [element, "x", "y"]:
            return element
    except ValueError:  # an unclosed quotation mark
        pass
    return "'" + element.replace("'", "'\"'\"'") + "'"


def format_value(value: Any, option: FieldInfo | None = None) -> str:
    """Format a value as text that `read_value` parses back to the same value. A `Verbatim` list needs its `option`."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        quote = _quote_verbatim if option is not None and is_verbatim(option) else _quote
        return " ".join(quote(str(element)) for element in value)
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else str(value)


def show_value(value: Any) -> str:
    """Format a value for an error message: true and false as in TOML, all other values as in Python, but shortened."""
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."


def format_flag(option: str, value: Any, declared: FieldInfo | None = None) -> list[str]:
    """Return the command-line arguments that set an option to a value. A `Verbatim` list needs its declaration."""
    name = flag_name(option)
    if declared is not None and is_verbatim(declared):
        return [name, *value]
    if isinstance(value, bool):
        return [name if value else negative_flag(option)]
    words = [str(element) for element in value] if isinstance(value, list) else []
    if isinstance(value, list) and all(_quote(word) == word and not word.startswith("-") for word in words):
        return [name, *words]
    text = "None" if value is None else format_value(value)
    return [f"{name}={text}"] if text.startswith("-") else [name, text]


def flag_name(option: str) -> str:
    """Return an option's flag, such as '--ppo.value-clip' for 'ppo.value_clip'."""
    return f"--{option.replace('_', '-')}"


def negative_flag(option: str) -> str:
    """Return the flag that sets an option to false, such as '--gym.no-normalize-obs' for 'gym.normalize_obs'."""
    section, dot, key = option.rpartition(".")
    return flag_name(f"{section}{dot}no_{key}")
