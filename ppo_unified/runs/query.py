"""The filter of `runs`: words, `key:value` and comparisons over run.json and config.toml. No numpy, no torch.

    failed|crashed preset:cartpole        failed or crashed, and a preset with "cartpole" in its name
    score>=475 !ppo.lr=0.001              a score of at least 475, and any other learning rate
    reason:"out of memory"                quotes keep spaces together

Terms are separated by spaces and all must hold; `|` joins alternatives, `!` negates the term behind it. A word looks
into name, preset and shown state. `:` finds a part of a text and compares numbers; case does not matter. What a run
does not have (no score yet) fulfils no comparison.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from operator import eq, ge, gt, le, lt
from typing import Any, get_args, get_type_hints

from ppo_unified.errors import UsageError, did_you_mean
from ppo_unified.runs.folder import Run, Status

Lookup = Callable[[str], Any]  # a key -> the run's value, None if it has none

_TOKEN = re.compile(r'\||(?:"[^"]*"|[^\s|"])+')
_TERM = re.compile(r"(!*)([A-Za-z_][\w.-]*)(:|>=|<=|!=|=|>|<)(.*)", re.DOTALL)
_OPERATORS = {":": eq, "=": eq, ">": gt, "<": lt, ">=": ge, "<=": le}
_WORD_KEYS = ("name", "preset", "state")


@dataclass(frozen=True)
class Term:
    """One condition; an empty key means a bare word."""

    key: str
    operator: str
    value: str
    negated: bool

    def holds(self, lookup: Lookup) -> bool:
        if self.key:
            found = _compare(lookup(self.key), self.operator, self.value)
        else:
            found = any(_compare(lookup(key), ":", self.value) for key in _WORD_KEYS)
        return found != self.negated


@dataclass(frozen=True)
class Query:
    """All of its groups must hold; of a group, one term."""

    groups: tuple[tuple[Term, ...], ...]

    def matches(self, lookup: Lookup) -> bool:
        return all(any(term.holds(lookup) for term in group) for group in self.groups)


def parse(text: str) -> Query:
    """The query that `text` spells. Raises UsageError naming the term, and the nearest key where one is unknown."""
    if text.count('"') % 2:
        raise UsageError(f"query {text!r}: a quote is not closed")
    groups: list[list[Term]] = []
    joined = True  # whether the next term is an alternative to the last; at the start there is nothing to join
    for token in _TOKEN.findall(text):
        if token == "|":
            if joined:
                raise UsageError(f"query {text!r}: '|' stands between two terms, such as failed|crashed")
            joined = True
        elif joined and groups:
            groups[-1].append(_term(token))
            joined = False
        else:
            groups.append([_term(token)])
            joined = False
    if groups and joined:
        raise UsageError(f"query {text!r}: nothing follows the last '|'; it stands between two terms")
    return Query(tuple(map(tuple, groups)))


def lookup(status: Status, state: str, options: Callable[[], Mapping[str, Any]]) -> Lookup:
    """The values of one run; `state` is the shown one.

    `options` (such as `read_options` of the run) is called once, when a query first names an option; the returned
    function raises what it raises.
    """
    read = cache(options)

    def value(key: str) -> Any:
        if key == "state":
            return state
        return getattr(status, key) if key in _status_kinds() else read().get(key)

    return value


def read_options(run: Run) -> dict[str, Any]:
    """A run's config.toml as dotted keys. Raises UsageError where it cannot be read."""
    from ppo_unified.config.schema import read_toml

    return flatten(read_toml(run.config))


def flatten(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as dotted keys: {'ppo': {'clip': 0.2}} -> {'ppo.clip': 0.2}."""
    flat: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat


def _term(token: str) -> Term:
    match = _TERM.fullmatch(token)
    if match is None:
        word = token.lstrip("!").replace('"', "")
        if not word:
            raise UsageError(f"query: {token!r} has no word to look for, such as !failed")
        return Term("", ":", word, (len(token) - len(token.lstrip("!"))) % 2 == 1)
    marks, key, operator, value = match.groups()
    value, negated = value.replace('"', ""), len(marks) % 2 == 1
    if operator == "!=":
        operator, negated = "=", not negated
    key = _resolve_key(key, token)
    if not value:
        raise UsageError(f"query: {token!r} says no value; write {key}{operator}VALUE")
    if _is_number(key) and not _is_numeric(value):
        raise UsageError(f"query: {token!r}: {key} is a number, and {value!r} is none")
    if operator in ("<", ">", "<=", ">=") and not _is_number(key):
        raise UsageError(f"query: {token!r}: {key} is not a number; write {key}:{value} to look into its text")
    return Term(key, operator, value, negated)


def _resolve_key(word: str, token: str) -> str:
    """`word` as keys are spelled: flags write options with '-'. Raises UsageError for an unknown key."""
    key = word.replace("-", "_").lower()
    if key in _status_kinds() or key in _option_kinds():
        return key
    known = did_you_mean(key, _status_kinds()) or did_you_mean(key, _option_kinds())
    raise UsageError(f"query: {token!r}: there is no key {word!r}{known or '; known: ' + ', '.join(_status_kinds())}")


def _is_number(key: str) -> bool:
    kind = _status_kinds().get(key) or _option_kinds()[key]
    return kind in (int, float) or bool({int, float} & set(get_args(kind)) and type(None) in get_args(kind))


@cache
def _status_kinds() -> dict[str, Any]:
    """The keys of run.json and their types."""
    return get_type_hints(Status)


@cache
def _option_kinds() -> dict[str, Any]:
    """The options of every adapter and their types: only a query that names one pays for importing the schema."""
    from ppo_unified.config.registry import all_adapters, config_model
    from ppo_unified.config.schema import known_options

    kinds: dict[str, Any] = {}
    for kind in all_adapters():
        for option, section in known_options(config_model(kind)).items():
            kinds[option] = section.model_fields[option.rpartition(".")[2]].annotation
    return kinds


def _is_numeric(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _compare(found: Any, operator: str, wanted: str) -> bool:
    if found is None:
        return False
    if isinstance(found, (int, float)) and not isinstance(found, bool) and _is_numeric(wanted):
        return bool(_OPERATORS[operator](found, float(wanted)))
    text, part = str(found).casefold(), wanted.casefold()
    return part in text if operator == ":" else part == text
