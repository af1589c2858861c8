"""Notices that a run has ended or stalled, or that a health check has started to warn."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from textual.notifications import SeverityLevel

from ppo_unified.runs.control import describe_end
from ppo_unified.runs.folder import ALIVE, Run, read_warnings
from ppo_unified.text import clean, pad
from tui.runs.entries import Entry

SEVERITIES: dict[str, SeverityLevel] = {
    "finished": "information",
    "solved": "information",
    "failed": "error",
    "crashed": "error",
    "stalled": "warning",
}

MOST_COLUMNS = 200  # of a desktop notification


class Notice(NamedTuple):
    """A message to the user."""

    text: str
    severity: SeverityLevel


class Notices:
    """Compares the runs with their state at the previous call."""

    def __init__(self) -> None:
        self._states: dict[str, str] = {}
        self._warned: dict[str, set[str]] = {}  # run -> names of the health checks that warn

    def update(self, entries: Mapping[str, Entry]) -> list[Notice]:
        """Return notices about the changes since the previous call. Runs that are new in the list cause no notices."""
        return [*self._ends(entries), *self._warnings(entries)]

    def _ends(self, entries: Mapping[str, Entry]) -> Iterator[Notice]:
        for key, entry in entries.items():
            before = self._states.get(key)
            if before in ALIVE and entry.state in SEVERITIES and entry.state != before:
                yield Notice(_summary(entry), SEVERITIES[entry.state])
        self._states = {key: entry.state for key, entry in entries.items()}

    def _warnings(self, entries: Mapping[str, Entry]) -> Iterator[Notice]:
        warned = {key: read_warnings(entry.status) for key, entry in entries.items()}
        for key, warnings in warned.items():
            for warning in warnings:
                if warning.name not in self._warned.get(key, {warning.name}):
                    yield Notice(clean(f"{key}: {warning.name}: {warning.text}"), "warning")
        self._warned = {key: {warning.name for warning in warnings} for key, warnings in warned.items()}


def _summary(entry: Entry) -> str:
    status = entry.status
    ended = describe_end(Run(entry.path), status, entry.state)
    score = "" if status.best_score is None else f", best greedy score {status.best_score:.4g}"
    return f"{clean(entry.key)}: {clean(ended)} after {status.step:,} steps{score}"


def desktop_notification(text: str, others: int) -> str:
    """Return the OSC 9 escape sequence that shows `text` and how many further notices there are.

    The prefix names the source. Without it, Windows Terminal would show a text such as '4;3' as a progress bar.
    """
    more = f" (and {others} more)" if others else ""
    return f"\x1b]9;ppo-unified: {pad(clean(text), MOST_COLUMNS).rstrip()}{more}\x07"
