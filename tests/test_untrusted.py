"""Readers of what others wrote, beyond what fuzzing tries."""

from __future__ import annotations

from pathlib import Path

import pytest

from ppo_unified import untrusted


def test_lines_come_one_by_one_and_too_long_ones_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(untrusted, "LARGEST", 8)
    path = tmp_path / "lines"
    lines = [b"short\n", b"exactly\n", b"longer 9\n", b"much longer than eight\n", b"\n", b"\xff\n", b"torn"]
    path.write_bytes(b"".join(lines))
    assert list(untrusted.read_lines(path)) == ["short\n", "exactly\n", "\n", "\ufffd\n", "torn"]
