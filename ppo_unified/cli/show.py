"""`show`: draw the curves of runs as text, or print their points as CSV or JSON."""

from __future__ import annotations

import argparse
import csv
import shutil
import sys
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ppo_unified.cli.common import add_json, add_run, add_runs_folder
from ppo_unified.cli.run_table import health_lines, interleave, label_runs, make_remarks, run_table, take_snapshot
from ppo_unified.errors import UsageError, did_you_mean
from ppo_unified.runs.folder import ALIVE, Run, to_json
from ppo_unified.text import can_color, can_unicode, clean, is_drawable, print_out

if TYPE_CHECKING:
    import numpy as np

    from ppo_unified.runs.event_reader import EventReader
    from ppo_unified.runs.metrics import Threshold

REDRAW_S, LOOK_S = 2.0, 0.1  # seconds between two pictures, and between two checks for the end of all runs


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_run(parser, many="+")
    parser.add_argument("--once", action="store_true", help="draw once and exit, even if a run is still active")
    parser.add_argument(
        "--metric",
        action="append",
        default=[],
        metavar="TAG",
        help="metric to draw; repeat the flag to draw several (default: the main metrics)",
    )
    parser.add_argument("--csv", action="store_true", help="print all points as CSV")
    add_json(parser)
    add_runs_folder(parser)


class Watched(NamedTuple):
    """A run whose curves are shown, and its label in the output."""

    label: str
    run: Run
    reader: EventReader
    threshold: Threshold | None


class Canvas(NamedTuple):
    """The size of the output in columns and lines (0 = unlimited), and whether it can show colours and Unicode."""

    columns: int
    lines: int
    color: bool
    unicode: bool


def run(options: argparse.Namespace) -> int:
    """Draw curves or print their points. On a terminal, redraw the curves until the runs end."""
    from ppo_unified.runs.event_reader import EventReader

    if options.csv and options.json:
        raise UsageError("ppo-unified show: --csv cannot be combined with --json")
    chosen = label_runs(options)
    watched = [Watched(label, run, EventReader(run.path), _threshold(run)) for label, run in chosen.items()]
    tags = _read(watched, options.metric, everything=options.csv or options.json)
    if options.csv:
        _print_csv(watched, tags)
    elif options.json:
        print(to_json({one.label: _points(one.reader, tags) for one in watched}, indent=None))
    else:
        size = shutil.get_terminal_size()
        lines = size.lines if sys.stdout.isatty() else 0
        canvas = Canvas(size.columns, lines, can_color(sys.stdout), can_unicode(sys.stdout))
        if not options.once and is_drawable(sys.stdout) and _any_alive(watched):
            _follow(watched, options.metric, canvas)
        else:
            print_out("\n".join(_picture(watched, tags, canvas)))
    for one in watched:
        for damage in one.reader.damage.values():
            print(clean(damage), file=sys.stderr)
    return 0


def _any_alive(watched: Iterable[Watched]) -> bool:
    return any(take_snapshot(one.run).state in ALIVE for one in watched)


def _read(watched: Sequence[Watched], metrics: Sequence[str], everything: bool = False) -> list[str]:
    """Read new points and return the tags to show.

    Raises UsageError for a tag that no run has logged, unless an active run may still log it.
    """
    from ppo_unified.runs.metrics import USUAL, find_metric

    alive = _any_alive(watched)
    for one in watched:
        one.reader.poll()
    found = sorted({tag for one in watched for tag in one.reader.series})
    for tag in metrics:
        if tag not in found and not (alive and find_metric(tag)):
            hint = did_you_mean(tag, found) or f"; known metrics: {', '.join(map(clean, found)) or 'none yet'}"
            raise UsageError(f"--metric: no metric {tag!r} in {' or '.join(one.label for one in watched)}{hint}")
    usual = [tag for tag in USUAL if tag in found]
    return list(dict.fromkeys(metrics)) or (found if everything or not usual else usual)


def _points(reader: EventReader, tags: Sequence[str]) -> dict[str, dict[str, list[Any]]]:
    """Return the points of each tag. Values have only the digits that identify a float32 number."""
    points = {}
    for tag in tags:
        if tag in reader.series:
            steps, walls, values = reader.series[tag].numpy()
            points[tag] = {"steps": steps.tolist(), "wall": walls.tolist(), "values": [float(str(v)) for v in values]}
    return points


def _print_csv(watched: Sequence[Watched], tags: Sequence[str]) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(("run", "tag", "step", "wall_time", "value"))
    for one in watched:
        for tag, columns in _points(one.reader, tags).items():
            for step, wall, value in zip(*columns.values(), strict=True):
                writer.writerow((one.label, clean(tag), step, wall, value))


def _follow(watched: Sequence[Watched], metrics: Sequence[str], canvas: Canvas) -> None:
    """Redraw until every run has ended or the user presses Ctrl-C, then print the last picture."""
    from ppo_unified.terminal.screen import open_screen

    try:
        with open_screen(sys.stdout) as shown:
            while _any_alive(watched):
                columns, lines = shown.size()
                canvas = canvas._replace(columns=columns, lines=lines)
                shown.paint(_picture(watched, _read(watched, metrics), canvas)[:lines])
                redraw = time.monotonic() + REDRAW_S
                while time.monotonic() < redraw and _any_alive(watched):
                    time.sleep(LOOK_S)
    finally:
        print_out("\n".join(_picture(watched, _read(watched, metrics), canvas)))


def _picture(watched: Sequence[Watched], tags: Sequence[str], canvas: Canvas) -> list[str]:
    """Draw a table of the runs above a grid of charts that fills the width, and the height if it is limited."""
    from ppo_unified.runs.metrics import find_metric, levels, title
    from ppo_unified.terminal.chart import MARKS, Line, draw
    from ppo_unified.terminal.ticks import Tick

    marks = [MARKS[number % len(MARKS)] for number in range(len(watched))] if len(watched) > 1 else []
    seen = [take_snapshot(one.run) for one in watched]
    remarks = [
        [*([clean(one.status.reason)] if one.state == "stopped" and one.status.reason else []), *lines]
        for one, lines in zip(seen, make_remarks(seen, canvas.color, health_lines), strict=True)
    ]
    head = interleave(run_table(seen, canvas.columns, canvas.color, marks), remarks)
    if not tags:
        return [*head, "", "no metrics yet"]
    across = min(len(tags), 1 if canvas.columns < 56 else 2 if canvas.columns < 180 else 3)
    down = -(-len(tags) // across)
    width = (canvas.columns - 2 * (across - 1)) // across
    tallest = 18 if len(tags) == 1 else 11
    height = max(6, min(tallest, (canvas.lines - len(head) - 1) // down - 1)) if canvas.lines else tallest
    last = max(
        (int(series.steps[-1]) for one in watched for series in one.reader.series.values() if len(series)), default=1
    )
    rows = []
    for first in range(0, len(tags), across):
        charts = []
        for tag in tags[first : first + across]:
            lines = [Line("", *_curve(one.reader, tag)) for one in watched]
            metric = find_metric(tag)
            caption = clean(title(tag)) + (f" [{metric.unit}]" if metric and metric.unit else "")
            marked = [Tick(*level) for level in levels(tag, [one.threshold for one in watched])]
            style = {"unicode": canvas.unicode, "color": canvas.color}
            charts.append(draw(lines, width, height, caption, x_range=(0, last), levels=marked, **style))
        rows += ["", *("  ".join(parts).rstrip() for parts in zip(*charts, strict=True))]
    return head + rows


def _threshold(run: Run) -> Threshold | None:
    """Return the score at which a run's task is solved, or None if the run has no threshold or its options are lost."""
    from ppo_unified.runs.metrics import score_threshold
    from ppo_unified.runs.query import read_options

    try:
        return score_threshold(read_options(run), run.read_status().preset)
    except UsageError:
        return None


def _curve(reader: EventReader, tag: str) -> tuple[np.ndarray, np.ndarray]:
    import numpy as np

    if tag not in reader.series:
        return np.empty(0), np.empty(0)
    steps, _, values = reader.series[tag].numpy()
    return steps, values
