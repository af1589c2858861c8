"""Lists the samples of a stored iteration: one row per sample, which can be sorted and filtered.

    wrong cut                    samples with a score of at most 0 and with a step whose gradient was cut
    kl>1 score<0.5               comparisons with the columns of the list
    "because" !length<10         text in the prompt or response; `!` negates a term

The grammar is that of `ppo_unified.runs.query`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from ppo_unified.errors import UsageError, did_you_mean
from ppo_unified.inspection.formulas import Array
from ppo_unified.inspection.what_if import Recomputed
from ppo_unified.runs.query import WORDS, Keys, Term, parse
from ppo_unified.runs.stored_iteration import Sample, StoredIteration


class Column(NamedTuple):
    """A number of each sample."""

    meaning: str
    descending: bool = True  # True if the largest number comes first


COLUMNS = {
    "number": Column("number of the sample in the iteration", descending=False),
    "score": Column("score of the response; in an environment, the sum of rewards"),
    "kl": Column("sum of the KL estimates to the reference model"),
    "cut": Column("number of steps whose gradient the clip set to zero"),
    "outside": Column("number of steps whose ratio is outside the clip range"),
    "advantage": Column("mean of |A| over the steps, before normalization"),
    "length": Column("number of steps"),
}
TEXTS = ("prompt", "response")
FLAGS = {
    "wrong": Term("score", "<=", "0", False),
    "cut": Term("cut", ">", "0", False),
    "outside": Term("outside", ">", "0", False),
}


class Row(NamedTuple):
    """One sample of the list. `score` and `kl` are None if the iteration does not have them."""

    number: int
    sample: Sample
    prompt: str  # text before the first step, '' in environments
    response: str
    score: float | None
    kl: float | None
    cut: int
    outside: int
    advantage: float
    length: int


@dataclass(frozen=True)
class SampleList:
    """The samples of an iteration with their numbers."""

    stored: StoredIteration
    columns: dict[str, Array]  # [S] each: a number of every sample; only those in COLUMNS that the iteration has

    @classmethod
    def of(cls, stored: StoredIteration, recomputed: Recomputed) -> SampleList:
        """List the samples with the clip flags, advantages and KL estimates of `recomputed`."""
        found, mask, ends = recomputed.columns, stored.columns["mask"], stored.sample_ends()
        lengths = np.diff(ends, prepend=0)
        starts = ends - lengths

        def add_up(x: Array) -> Array:
            return np.asarray(np.add.reduceat(x[mask].astype(np.float64), starts))

        scores = stored.columns.get("score", stored.columns["reward"])
        columns = {
            "number": np.arange(len(ends)),
            "score": add_up(scores),
            "cut": add_up(found["cut"]).astype(int),
            "outside": add_up(found["outside"] != 0).astype(int),
            "advantage": add_up(np.abs(found["advantage"])) / lengths,
            "length": lengths,
        }
        return cls(stored, columns | ({"kl": add_up(found["kl"])} if "kl" in found else {}))

    @cached_property
    def samples(self) -> list[Sample]:
        """The samples in the order of their numbers."""
        return self.stored.samples()

    @cached_property
    def texts(self) -> list[tuple[str, str]]:
        """The prompt and the response of each sample; '' in environments."""
        return [(self.stored.text_before(sample), self.stored.text_of(sample)) for sample in self.samples]

    def row(self, number: int) -> Row:
        """Return a sample by its number."""
        numbers: dict[str, Any] = {name: x[number].item() for name, x in self.columns.items()}
        numbers["kl"] = numbers.get("kl")
        prompt, response = self.texts[number]
        return Row(sample=self.samples[number], prompt=prompt, response=response, **numbers)

    def sort(self, key: str, numbers: Sequence[int] | None = None, reverse: bool = False) -> list[int]:
        """Return the numbers of samples, by default of all, sorted by a column. `COLUMNS` states which end comes first.

        Samples with equal values keep the order of their numbers. Raises ValueError for an unknown column.
        """
        if key not in self.columns:
            raise ValueError(f"sort key: expected one of {', '.join(self.columns)}, got {key!r}")
        chosen = self.columns["number"] if numbers is None else np.asarray(sorted(numbers), dtype=int)
        values = self.columns[key][chosen]
        descending = COLUMNS[key].descending != reverse
        return [int(number) for number in chosen[np.argsort(-values if descending else values, kind="stable")]]

    def filter(self, expression: str) -> list[int]:
        """Return the numbers of the samples that match. Raises UsageError if the expression is invalid."""
        query = parse(expression, Keys(self._resolve_key, lambda key: key in COLUMNS, FLAGS))
        values = {name: x.tolist() for name, x in self.columns.items()}
        terms = [term for group in query.groups for term in group]
        searched = any(term.key in (WORDS, *TEXTS) for term in terms)

        def lookup(number: int, key: str) -> Any:
            if key in values:
                return values[key][number]
            texts = self.texts[number] if searched else ("", "")
            return texts if key == WORDS else texts[TEXTS.index(key)]

        return [n for n in self.columns["number"].tolist() if query.matches(lambda key, n=n: lookup(n, key))]  # type: ignore[misc]

    def _resolve_key(self, word: str, token: str) -> str:
        known = (*self.columns, *TEXTS)
        if word.lower() in known:
            return word.lower()
        if word.lower() in COLUMNS:
            raise UsageError(f"filter {token!r}: this iteration has no {word.lower()}")
        suggestion = did_you_mean(word, known) or f"; known keys: {', '.join(known)}"
        raise UsageError(f"filter {token!r}: unknown key {word!r}{suggestion}")

    def best(self) -> int:
        """Return the number of the sample with the highest score."""
        return int(self.columns["score"].argmax())

    def worst(self) -> int:
        """Return the number of the sample with the lowest score."""
        return int(self.columns["score"].argmin())
