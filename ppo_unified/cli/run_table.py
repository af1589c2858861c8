"""Runs as lines of a table, with what is wrong with them: shared by `runs`, `show` and `compare`."""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ppo_unified.runs.folder import Run, Status, find, format_percent, read_warnings
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
PAINT = {"state": _STATE_COLORS | {"failed": RED, "crashed": RED}}


class Seen(NamedTuple):
    """A run as it was when it was looked at."""

    run: Run
    status: Status
    state: str  # the shown one: 'crashed' and 'stalled' included


def look(run: Run) -> Seen:
    """Raises UsageError where run.json cannot be read."""
    status = run.read_status()
    return Seen(run, status, run.state(status))


def label_runs(options: argparse.Namespace) -> dict[str, Run]:
    """The runs that were named, each once, by name; by path where two share a name."""
    chosen = {run.path.resolve(): run for run in (find(reference, options.folder) for reference in options.run)}
    names = [run.name for run in chosen.values()]
    return {clean(run.name if names.count(run.name) == 1 else run.path): run for run in chosen.values()}


def run_table(chosen: Sequence[Seen], width: int, color: bool, marks: Sequence[str] = ()) -> list[str]:
    """A header and one line per run, each with its mark; the preset is left out where it would not fit."""
    rows = [_run_cells(seen) for seen in chosen]
    if marks:
        rows = [{"": mark} | row for mark, row in zip(marks, rows, strict=True)]
    if max_display_width(format_table(rows)) > width:
        rows = [{key: cell for key, cell in row.items() if key != "preset"} for row in rows]
    return format_table(rows, color, PAINT)


def _run_cells(seen: Seen) -> dict[str, str]:
    status = seen.status
    return {
        "run": clean(seen.run.name),
        "state": clean(seen.state),
        "preset": clean(status.preset),
        "step": f"{status.step:,}",
        "done": format_percent(status),
        "score": format_number(status.score),
        "best": format_number(status.best_score),
        "steps/s": f"{status.step / status.elapsed_s:,.0f}" if status.elapsed_s > 0 else "-",
        "age": format_duration(time.time() - status.started),
    }


def make_remarks(chosen: Sequence[Seen], color: bool, health: Callable[[Status], list[str]]) -> list[list[str]]:
    """For each run a line of what ended it if it failed, and lines of its health; none where all is well."""
    lines_by_run = []
    for seen in chosen:
        lines = [(clean(seen.status.reason), RED)] if seen.state == "failed" else []
        lines += [(clean(text), YELLOW) for text in health(seen.status)]
        lines_by_run.append([apply_style(text, style) if color else text for text, style in lines if text])
    return lines_by_run


def health_names(status: Status) -> list[str]:
    """The checks that fire, in one line."""
    names = ", ".join(warning.name for warning in read_warnings(status))
    return [f"! health: {names}"] if names else []


def health_lines(status: Status) -> list[str]:
    """What each check that fires has to say."""
    return [f"! {one.name} since step {one.since:,}: {one.text}" for one in read_warnings(status)]


def interleave(lines: Sequence[str], notes: Sequence[Sequence[str]]) -> list[str]:
    """A header and its lines, each followed by its notes, if it has any."""
    rows = [lines[0]]
    for line, own in zip(lines[1:], notes, strict=True):
        rows += [line, *(f"  {note}" for note in own)]
    return rows


def output_width() -> int:
    """Columns there are: the terminal's, and as many as it takes where stdout is a file or a pipe."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else sys.maxsize
