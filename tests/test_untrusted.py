"""Readers of what others wrote, beyond what fuzzing tries."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from ppo_unified import untrusted


def test_lines_come_one_by_one_and_too_long_ones_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(untrusted, "LARGEST", 8)
    path = tmp_path / "lines"
    lines = [b"short\n", b"exactly\n", b"longer 9\n", b"much longer than eight\n", b"\n", b"\xff\n", b"torn"]
    path.write_bytes(b"".join(lines))
    assert list(untrusted.read_lines(path)) == ["short\n", "exactly\n", "\n", "\ufffd\n", "torn"]


@dataclass
class Row:
    step: int
    score: float | None = None
    names: list[dict[str, Any]] = field(default_factory=list)


def test_a_table_is_read_as_far_as_a_class_knows_it() -> None:
    table = {"step": 3, "score": 2, "names": [{}], "later": object()}
    assert Row(**untrusted.fields_of(table, Row)) == Row(3, 2, [{}])
    assert untrusted.fields_of({}, Row) == {}


WRONG = ({"step": True}, {"step": 1.0}, {"step": 1 << 63}, {"score": float("inf")}, {"names": 1}, {"names": [1]})


@pytest.mark.parametrize("table", [[], "step", None, *WRONG])
def test_what_is_no_table_or_of_another_type_is_refused(table: Any) -> None:
    with pytest.raises(ValueError, match="is no"):
        untrusted.fields_of(table, Row)
