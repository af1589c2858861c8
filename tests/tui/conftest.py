"""Tests of the terminal UI wait in shorter steps than Textual's own."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """After every key a test waits, in steps of this length, until the process computes less than 1 ms in a step."""
    monkeypatch.setattr("textual._wait.SLEEP_GRANULARITY", 0.01)
