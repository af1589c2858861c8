"""Checks that the replacements of `make mutants`, which itself takes minutes, still apply."""

from __future__ import annotations

from collections import Counter

from tests.mutants import MUTANTS, ROOT


def test_mutants_replace_text_that_occurs_once() -> None:
    found = {m.name: (ROOT / m.file).read_text(encoding="utf-8").count(m.old) for m in MUTANTS}
    assert {name: count for name, count in found.items() if count != 1} == {}


def test_mutant_names_are_unique_and_change_the_text() -> None:
    assert max(Counter(m.name for m in MUTANTS).values()) == 1
    assert all(m.old != m.new for m in MUTANTS)
