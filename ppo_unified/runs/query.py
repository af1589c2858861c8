"""Filter runs by words, by `key:value`, and by comparisons with values in run.json and config.toml.

    failed|crashed preset:cartpole        runs that failed or crashed and whose preset contains "cartpole"
    score>=475 !ppo.lr=0.001              runs with a score of at least 475 and a learning rate other than 0.001
    reason:"out of memory"                quotes allow spaces in a value
    note:baseline                         runs whose note contains "baseline"

Terms are separated by spaces, and a run must match all of them. `|` separates alternatives; `!` negates the next term.
A word matches any part of the name, preset, displayed state or note. `:` matches any part of a text value, or an equal
number. Case is ignored. A comparison is false if the run has no value for the key, for example no score yet.

To keep startup fast, this module avoids numpy and torch.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from operator import eq, ge, gt, le, lt
from typing import Any, get_args, get_type_hints

from ppo_unified.errors import UsageError, did_you_mean
from ppo_unified.runs.folder import SOLVED, Run, Status
from ppo_unified.runs.source import describe_source

Lookup = Callable[[str], Any]  # returns the run's value of a key, or None

_TOKEN = re.compile(r'\||(?:"[^"]*"|[^\s|"])+')
_TERM = re.compile(r"(!*)([A-Za-z_][\w./-]*)(:|>=|<=|!=|=|>|<)(.*)", re.DOTALL)
_OPERATORS = {":": eq, "=": eq, ">": gt, "<": lt, ">=": ge, "<=": le}
_WORD_KEYS = ("name", "preset", "state", "note")
WORDS = ""  # key of a bare word: its value is a tuple of the texts that a word is searched in


@dataclass(frozen=True)
class Term:
    """One condition of a query. The key is WORDS for a bare word."""

    key: str
    operator: str
    value: str
    negated: bool

    def holds(self, lookup: Lookup) -> bool:
        return _compare(lookup(self.key), self.operator, self.value) != self.negated


@dataclass(frozen=True)
class Keys:
    """The keys that a query may use. `resolve` raises UsageError if the key in a token is unknown."""

    resolve: Callable[[str, str], str]  # key and token -> full key
    is_number: Callable[[str], bool]
    flags: Mapping[str, Term] = field(default_factory=dict)  # bare words that stand for a condition


@dataclass(frozen=True)
class Query:
    """Groups of terms: a run must match at least one term of every group."""

    groups: tuple[tuple[Term, ...], ...]

    def matches(self, lookup: Lookup) -> bool:
        return all(any(term.holds(lookup) for term in group) for group in self.groups)


def parse(text: str, keys: Keys | None = None) -> Query:
    """Parse a query, by default for runs. Raises UsageError with the invalid term and, for an unknown key, the most
    similar valid key."""
    keys = keys or Keys(_resolve_key, _is_number)
    if text.count('"') % 2:
        raise UsageError(f"query {text!r}: missing closing quote")
    groups: list[list[Term]] = []
    joined = True  # True after a '|' and at the start, because another '|' is invalid there
    for token in _TOKEN.findall(text):
        if token == "|":
            if joined:
                raise UsageError(f"query {text!r}: '|' must be between two terms, as in failed|crashed")
            joined = True
        elif joined and groups:
            groups[-1].append(_term(token, keys))
            joined = False
        else:
            groups.append([_term(token, keys)])
            joined = False
    if groups and joined:
        raise UsageError(f"query {text!r}: '|' must be between two terms, as in failed|crashed")
    return Query(tuple(map(tuple, groups)))


def lookup(status: Status, state: str, options: Callable[[], Mapping[str, Any]], note: Callable[[], str]) -> Lookup:
    """Return a function that looks up values of one run by key. `state` is the run's displayed state.

    A solved run has two states, 'solved' and 'finished', so that queries for either match it.

    The function `options`, such as `read_options` for the run, is called at most once, when an option is first looked
    up. The returned function raises the same errors as `options`. The function `note` returns the run's note and is
    also called only when needed.
    """
    read, read_note = cache(options), cache(note)

    def value(key: str) -> Any:
        if key == WORDS:
            return tuple(map(value, _WORD_KEYS))
        if key == "state":
            return (state, status.state) if state == SOLVED else state
        if key == "note":
            return read_note()
        return getattr(status, key) if key in _run_kinds() else read().get(key)

    return value


def read_options(run: Run) -> dict[str, Any]:
    """Read a run's config.toml into a flat dict with dotted keys. Raises UsageError if the file cannot be read."""
    from ppo_unified.config.schema import read_toml

    return flatten(read_toml(run.config))


def compared_options(status: Status, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options by which runs are compared and grouped: `options` and, as `init`, the run's source."""
    source = describe_source(status)
    return ({"init": source} if source else {}) | dict(options)


def flatten(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested tables to dotted keys: {'ppo': {'clip': 0.2}} -> {'ppo.clip': 0.2}."""
    flat: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat


def _term(token: str, keys: Keys) -> Term:
    match = _TERM.fullmatch(token)
    if match is None:
        word = token.lstrip("!").replace('"', "")
        if not word:
            raise UsageError(f"query {token!r}: missing word; write one, as in failed or !failed")
        negated = (len(token) - len(token.lstrip("!"))) % 2 == 1
        return replace(keys.flags.get(word.casefold(), Term(WORDS, ":", word, False)), negated=negated)
    marks, key, operator, value = match.groups()
    value, negated = value.replace('"', ""), len(marks) % 2 == 1
    if operator == "!=":
        operator, negated = "=", not negated
    key = keys.resolve(key, token)
    if not value:
        raise UsageError(f"query {token!r}: missing value; write {key}{operator}VALUE")
    if keys.is_number(key) and not _is_numeric(value):
        raise UsageError(f"query {token!r}: {key} expects a number, got {value!r}")
    if operator in ("<", ">", "<=", ">=") and not keys.is_number(key):
        raise UsageError(f"query {token!r}: {key!r} is text, not a number; write {key}:{value} to search it")
    return Term(key, operator, value, negated)


def _resolve_key(word: str, token: str) -> str:
    """Replace '-' (which flags use) by '_' and return the full key. Raises UsageError if the key is unknown."""
    key = word.replace("-", "_").lower()
    if key in _run_kinds() or key in _option_kinds():
        return key
    raise UsageError(f"query {token!r}: unknown key {word!r}{_suggest_key(key)}")


def _suggest_key(unknown: str) -> str:
    """Return the end of an error message about an unknown key: the full names of what it may mean."""
    from ppo_unified.config.suggestions import suggest
    from ppo_unified.runs.metrics import METRICS, find_metric

    options = [option for option in _option_kinds() if option.rpartition(".")[2] == unknown]
    if options:
        return f"; did you mean {' or '.join(map(repr, options))}?"
    is_metric = find_metric(unknown) is not None
    if not is_metric and (known := did_you_mean(unknown, _run_kinds())):
        return known
    if keys := [key for key in _run_kinds() if unknown in key.split("_")]:
        return f"; did you mean {' or '.join(map(repr, keys))}?"
    if tags := [unknown] if is_metric else [tag for tag in METRICS if unknown == tag.rpartition("/")[2]]:
        return f"; {' and '.join(tags)} cannot be used in queries; use 'score', 'best_score' or an option"
    if found := suggest(unknown, _option_kinds()):
        return f"; did you mean {found.option!r}?" + (f" ({found.note})" if found.note else "")
    return f"; known keys: options such as optim.lr, and {', '.join(_run_kinds())}"


def _is_number(key: str) -> bool:
    kind = _run_kinds().get(key) or _option_kinds()[key]
    return kind in (int, float) or bool({int, float} & set(get_args(kind)) and type(None) in get_args(kind))


@cache
def _run_kinds() -> dict[str, Any]:
    """Return the keys of run.json, the key of the note, and their types."""
    return get_type_hints(Status) | {"note": str}


@cache
def _option_kinds() -> dict[str, Any]:
    """Return the options of all adapters and their types. Call this only if necessary, since it imports the schema."""
    from ppo_unified.config.registry import config_models
    from ppo_unified.config.schema import known_options

    kinds: dict[str, Any] = {}
    for model in config_models().values():
        for option, section in known_options(model).items():
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
    if isinstance(found, tuple):
        return any(_compare(one, operator, wanted) for one in found)
    if isinstance(found, (int, float)) and not isinstance(found, bool) and _is_numeric(wanted):
        return bool(_OPERATORS[operator](found, float(wanted)))
    text, part = str(found).casefold(), wanted.casefold()
    return part in text if operator == ":" else part == text
