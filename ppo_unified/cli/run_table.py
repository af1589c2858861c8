"""Tables of runs with their errors and health warnings, for `runs`, `show` and `compare`."""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ppo_unified.runs.folder import SOLVED, Run, Status, find, read_warnings
from ppo_unified.runs.notes import read_note_line
from ppo_unified.runs.progress import format_percent, format_phase
from ppo_unified.runs.signals import why_ended
from ppo_unified.runs.source import describe_source
from ppo_unified.text import (
    GREEN,
    RED,
    YELLOW,
    apply_style,
    clean,
    format_duration,
    format_number,
    format_table,
    max_display_width,
)

_STATE_COLORS = {"starting": GREEN, "running": GREEN, "stopping": YELLOW, "stopped": YELLOW, "stalled": YELLOW}
PAINT = {"state": _STATE_COLORS | {"solved": GREEN, "failed": RED, "crashed": RED}}


class Snapshot(NamedTuple):
    """A run with its status and state at one moment."""

    run: Run
    status: Status
    state: str  # the displayed state, which may be 'crashed', 'stalled' or 'solved'


def take_snapshot(run: Run) -> Snapshot:
    """Read the status of a run. Raises UsageError if run.json cannot be read."""
    status = run.read_status()
    return Snapshot(run, status, run.state(status))


def json_state(seen: Snapshot) -> str:
    """Return the state for JSON output, in which a solved run has the state 'finished', as in run.json."""
    return seen.status.state if seen.state == SOLVED else seen.state


def label_runs(options: argparse.Namespace) -> dict[str, Run]:
    """Return the runs that the user named, without duplicates. Keys are names, or paths if two runs share a name."""
    chosen = {run.path.resolve(): run for run in (find(reference, options.folder) for reference in options.run)}
    names = [run.name for run in chosen.values()]
    return {clean(run.name if names.count(run.name) == 1 else run.path): run for run in chosen.values()}


def run_table(chosen: Sequence[Snapshot], width: int, color: bool, marks: Sequence[str] = ()) -> list[str]:
    """Format a header and one line per run, each with its mark.

    The column of phases is omitted if it is empty, and the preset column if it does not fit.
    """
    rows = [_run_cells(seen) for seen in chosen]
    if not any(row["phase"] for row in rows):
        rows = [{key: cell for key, cell in row.items() if key != "phase"} for row in rows]
    if marks:
        rows = [{"": mark} | row for mark, row in zip(marks, rows, strict=True)]
    if max_display_width(format_table(rows)) > width:
        rows = [{key: cell for key, cell in row.items() if key != "preset"} for row in rows]
    return format_table(rows, color, PAINT)


def _run_cells(seen: Snapshot) -> dict[str, str]:
    status = seen.status
    return {
        "run": clean(seen.run.name),
        "state": clean(seen.state),
        "phase": clean(format_phase(status, seen.state)),
        "preset": clean(status.preset),
        "step": f"{status.step:,}",
        "done": format_percent(status),
        "score (greedy)": format_number(status.score),
        "best": format_number(status.best_score),
        "steps/s": f"{status.step / status.elapsed_s:,.0f}" if status.elapsed_s > 0 else "-",
        "age": format_duration(time.time() - status.started),
    }


def make_remarks(chosen: Sequence[Snapshot], color: bool, health: Callable[[Status], list[str]]) -> list[list[str]]:
    """Return lines of remarks for each run: its source, why it failed or crashed, its health warnings and its note."""
    lines_by_run = []
    for seen in chosen:
        source = describe_source(seen.status)
        lines = [(clean(f"started with the policy of {source}"), "")] if source else []
        lines += [(clean(why_ended(*seen)), RED)] if seen.state in ("failed", "crashed") else []
        lines += [(clean(text), YELLOW) for text in health(seen.status)]
        lines += [(f"note: {clean(note)}", "")] if (note := read_note_line(seen.run)) else []
        lines_by_run.append([apply_style(text, style) if color else text for text, style in lines if text])
    return lines_by_run


def health_names(status: Status) -> list[str]:
    """List the health checks that are firing, in one line."""
    names = ", ".join(warning.name for warning in read_warnings(status))
    return [f"! health: {names}"] if names else []


def health_lines(status: Status) -> list[str]:
    """Format the warning of each health check that is firing, one per line."""
    return [f"! {one.name} since step {one.since:,}: {one.text}" for one in read_warnings(status)]


def interleave(lines: Sequence[str], notes: Sequence[Sequence[str]]) -> list[str]:
    """Insert the notes of each line below it, indented. The first line is the header and has no notes."""
    rows = [lines[0]]
    for line, own in zip(lines[1:], notes, strict=True):
        rows += [line, *(f"  {note}" for note in own)]
    return rows


def output_width() -> int:
    """Return the width of the terminal in columns, or sys.maxsize if stdout is not a terminal."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else sys.maxsize
