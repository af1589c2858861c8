"""The commands that only look: envs, runs, show, compare. No torch; numpy and event files where curves are wanted."""

from __future__ import annotations

import argparse
import csv
import math
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from statistics import mean
from typing import TYPE_CHECKING, Any, NamedTuple

from ppo_unified.errors import UsageError, nearest
from ppo_unified.runs.folder import ACTIVE, Run, Status, all_runs, find, format_percent, read_warnings, to_json
from ppo_unified.runs.query import lookup, parse, read_options
from ppo_unified.terminal.option_diff import difference_lines, find_differences, format_value, seedless_key
from ppo_unified.text import (
    DIM,
    GREEN,
    RED,
    YELLOW,
    can_color,
    can_unicode,
    clean,
    duration,
    painted,
    say,
    short,
    table,
    tell,
    width_of,
)

if TYPE_CHECKING:
    import numpy as np

    from ppo_unified.runs.event_reader import EventReader

REDRAW_S, LOOK_S = 2.0, 0.1  # between two pictures of a running run, and between two looks whether it has ended
_ALIVE = (*ACTIVE, "stalled")
_STATE_COLORS = {"starting": GREEN, "running": GREEN, "stopping": YELLOW, "stopped": YELLOW, "stalled": YELLOW}
_PAINT = {"state": _STATE_COLORS | {"failed": RED, "crashed": RED}}


class Seen(NamedTuple):
    """A run as it was when it was looked at."""

    run: Run
    status: Status
    state: str  # the shown one: 'crashed' and 'stalled' included


def look(run: Run) -> Seen:
    """Raises UsageError where run.json cannot be read."""
    status = run.read_status()
    return Seen(run, status, run.state(status))


def envs(options: argparse.Namespace) -> int:
    """Print what can be trained."""
    from ppo_unified.config.presets import list_presets
    from ppo_unified.config.registry import all_adapters, config_model

    presets = list(list_presets())
    if options.json:
        schemas = {kind: config_model(kind).model_json_schema() for kind in all_adapters()}
        print(to_json({"presets": [about._asdict() for about in presets], "options": schemas}))
        return 0
    names = {"preset": "name", "time": "time", "score to expect": "score", "task": "title"}
    rows = [{header: clean(getattr(about, name)) for header, name in names.items()} for about in presets]
    color = can_color(sys.stdout)
    if width_of(table(rows)) <= _width():
        say("\n".join(table(rows, color)))
    else:
        tasks = [[painted(row.pop("task"), DIM if color else "")] for row in rows]
        say("\n".join(_with_notes(table(rows, color), tasks)))
    say(
        "\nOne of these:               ppo-unified train cartpole"
        "\nAny Gymnasium environment:  ppo-unified train Acrobot-v1"
        "\nYour own, from mymodule.py: ppo-unified train mymodule:MyEnv-v0"
        "\nA Hugging Face model:       ppo-unified train llm --llm.model FOLDER_OR_HUB_ID"
        "\nWhat can be set:            ppo-unified train cartpole --help"
    )
    return 0


def runs(options: argparse.Namespace) -> int:
    """List the runs that a query selects, the newest first."""
    query = parse(" ".join(options.query))
    damaged: list[str] = []
    everything = [Seen(run, status, run.state(status)) for run, status in all_runs(options.folder, damaged)]
    for text in damaged:
        print(f"left out: {clean(text)}", file=sys.stderr)
    chosen = []
    for seen in everything:
        try:
            if query.matches(lookup(seen.status, seen.state, partial(read_options, seen.run))):
                chosen.append(seen)
        except UsageError as error:  # one unreadable config.toml hides one run, not the list
            print(f"left out: {clean(error)}", file=sys.stderr)
    if options.json:
        print(
            to_json([asdict(s.status) | {"shown_state": s.state, "path": str(s.run.path.absolute())} for s in chosen])
        )
    elif chosen:
        color = can_color(sys.stdout)
        say("\n".join(_with_notes(_run_table(chosen, _width(), color), _remarks(chosen, color, _health_names))))
    elif everything:
        tell(f"none of the {len(everything)} runs in {options.folder} matches the query")
    else:
        tell(f"no runs in {options.folder} yet; start one with: ppo-unified train cartpole")
    return 0


def _run_table(chosen: Sequence[Seen], width: int, color: bool, marks: Sequence[str] = ()) -> list[str]:
    """A header and one line per run, each with its mark; the preset is left out where it would not fit."""
    rows = [_run_cells(seen) for seen in chosen]
    if marks:
        rows = [{"": mark} | row for mark, row in zip(marks, rows, strict=True)]
    if width_of(table(rows)) > width:
        rows = [{key: cell for key, cell in row.items() if key != "preset"} for row in rows]
    return table(rows, color, _PAINT)


def _run_cells(seen: Seen) -> dict[str, str]:
    status = seen.status
    return {
        "run": clean(seen.run.name),
        "state": clean(seen.state),
        "preset": clean(status.preset),
        "step": f"{status.step:,}",
        "done": format_percent(status),
        "score": short(status.score),
        "best": short(status.best_score),
        "steps/s": f"{status.step / status.elapsed_s:,.0f}" if status.elapsed_s > 0 else "-",
        "age": duration(time.time() - status.started),
    }


def _remarks(chosen: Sequence[Seen], color: bool, health: Callable[[Status], list[str]]) -> list[list[str]]:
    """For each run a line of what ended it if it failed, and lines of its health; none where all is well."""
    remarks = []
    for seen in chosen:
        lines = [(clean(seen.status.reason), RED)] if seen.state == "failed" else []
        lines += [(clean(text), YELLOW) for text in health(seen.status)]
        remarks.append([painted(text, style) if color else text for text, style in lines if text])
    return remarks


def _health_names(status: Status) -> list[str]:
    """The checks that fire, in one line."""
    names = ", ".join(warning.name for warning in read_warnings(status))
    return [f"! health: {names}"] if names else []


def _health_lines(status: Status) -> list[str]:
    """What each check that fires has to say."""
    return [f"! {one.name} since step {one.since:,}: {one.text}" for one in read_warnings(status)]


def _with_notes(lines: Sequence[str], notes: Sequence[Sequence[str]]) -> list[str]:
    """A header and its lines, each followed by its notes, if it has any."""
    told = [lines[0]]
    for line, own in zip(lines[1:], notes, strict=True):
        told += [line, *(f"  {note}" for note in own)]
    return told


def _width() -> int:
    """Columns there are: the terminal's, and as many as it takes where stdout is a file or a pipe."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else sys.maxsize


class Watched(NamedTuple):
    """A run whose curves are shown, and what it is called in the output."""

    label: str
    run: Run
    reader: EventReader


class Paper(NamedTuple):
    """What pictures are drawn on: columns, lines (0 = no end) and what it can show."""

    columns: int
    lines: int
    color: bool
    unicode: bool


def show(options: argparse.Namespace) -> int:
    """Draw curves, or print their points; a running run is followed on a terminal until it ends."""
    from ppo_unified.runs.event_reader import EventReader
    from ppo_unified.terminal.screen import is_drawable

    if options.csv and options.json:
        raise UsageError("ppo-unified show: --csv and --json are two formats; choose one")
    chosen = _labelled(options)
    watched = [Watched(label, run, EventReader(run.path)) for label, run in chosen.items()]
    tags = _read(watched, options.metric, everything=options.csv or options.json)
    if options.csv:
        _print_csv(watched, tags)
    elif options.json:
        print(to_json({one.label: _points(one.reader, tags) for one in watched}, indent=None))
    else:
        size = shutil.get_terminal_size()
        lines = size.lines if sys.stdout.isatty() else 0
        paper = Paper(size.columns, lines, can_color(sys.stdout), can_unicode(sys.stdout))
        if not options.once and is_drawable(sys.stdout) and _alive(watched):
            _follow(watched, options.metric, paper)
        else:
            say("\n".join(_picture(watched, tags, paper)))
    for one in watched:
        for damage in one.reader.damage.values():
            print(clean(damage), file=sys.stderr)
    return 0


def _labelled(options: argparse.Namespace) -> dict[str, Run]:
    """The runs that were named, each once, by name; by path where two share a name."""
    chosen = {run.path.resolve(): run for run in (find(reference, options.folder) for reference in options.run)}
    names = [run.name for run in chosen.values()]
    return {clean(run.name if names.count(run.name) == 1 else run.path): run for run in chosen.values()}


def _alive(watched: Iterable[Watched]) -> bool:
    return any(look(one.run).state in _ALIVE for one in watched)


def _read(watched: Sequence[Watched], metrics: Sequence[str], everything: bool = False) -> list[str]:
    """Read what is new; the tags to show. Raises UsageError for one that no run has, unless it may still come."""
    from ppo_unified.runs.metrics import METRICS, USUAL

    to_come = set(METRICS) if _alive(watched) else set()
    for one in watched:
        one.reader.poll()
    found = sorted({tag for one in watched for tag in one.reader.series})
    for tag in metrics:
        if tag not in found and tag not in to_come:
            hint = nearest(tag, found) or f"; there are: {', '.join(map(clean, found)) or 'none yet'}"
            raise UsageError(
                f"--metric {tag}: {' and '.join(one.label for one in watched)} logged no such metric{hint}"
            )
    usual = [tag for tag in USUAL if tag in found]
    return list(dict.fromkeys(metrics)) or (found if everything or not usual else usual)


def _points(reader: EventReader, tags: Sequence[str]) -> dict[str, dict[str, list[Any]]]:
    """Each tag's points; values are written as short as float32 allows."""
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


def _follow(watched: Sequence[Watched], metrics: Sequence[str], paper: Paper) -> None:
    """Redraw until every run has ended, then leave the last picture on the terminal; on Ctrl-C too."""
    from ppo_unified.terminal.screen import screen

    try:
        with screen(sys.stdout) as shown:
            while _alive(watched):
                columns, lines = shown.size()
                paper = paper._replace(columns=columns, lines=lines)
                shown.paint(_picture(watched, _read(watched, metrics), paper)[:lines])
                redraw = time.monotonic() + REDRAW_S
                while time.monotonic() < redraw and _alive(watched):
                    time.sleep(LOOK_S)
    finally:
        say("\n".join(_picture(watched, _read(watched, metrics), paper)))


def _picture(watched: Sequence[Watched], tags: Sequence[str], paper: Paper) -> list[str]:
    """The runs' states and a grid of charts that fills the paper's width, and its height if it has one."""
    from ppo_unified.runs.metrics import METRICS
    from ppo_unified.terminal.chart import MARKS, Line, draw

    marks = [MARKS[number % len(MARKS)] for number in range(len(watched))] if len(watched) > 1 else []
    seen = [look(one.run) for one in watched]
    head = _with_notes(_run_table(seen, paper.columns, paper.color, marks), _remarks(seen, paper.color, _health_lines))
    if not tags:
        return [*head, "", "no metrics yet"]
    across = min(len(tags), 1 if paper.columns < 56 else 2 if paper.columns < 180 else 3)
    down = -(-len(tags) // across)
    width = (paper.columns - 2 * (across - 1)) // across
    tallest = 18 if len(tags) == 1 else 11
    height = max(6, min(tallest, (paper.lines - len(head) - 1) // down - 1)) if paper.lines else tallest
    last = max(
        (int(series.steps[-1]) for one in watched for series in one.reader.series.values() if len(series)), default=1
    )
    rows = []
    for first in range(0, len(tags), across):
        charts = []
        for tag in tags[first : first + across]:
            lines = [Line("", *_curve(one.reader, tag)) for one in watched]
            unit = METRICS[tag].unit if tag in METRICS else ""
            title = clean(tag) + (f" [{unit}]" if unit else "")
            style = {"unicode": paper.unicode, "color": paper.color}
            charts.append(draw(lines, width, height, title, x_range=(0, last), **style))
        rows += ["", *("  ".join(parts).rstrip() for parts in zip(*charts, strict=True))]
    return head + rows


def _curve(reader: EventReader, tag: str) -> tuple[np.ndarray, np.ndarray]:
    import numpy as np

    if tag not in reader.series:
        return np.empty(0), np.empty(0)
    steps, _, values = reader.series[tag].numpy()
    return steps, values


def compare(options: argparse.Namespace) -> int:
    """Print the options in which runs differ, and how they scored; or statistics over seeds."""
    chosen = {label: look(run) for label, run in _labelled(options).items()}
    tables = {label: read_options(seen.run) for label, seen in chosen.items()}
    if options.seeds:
        groups = _seed_groups(chosen, tables)
        if options.json:
            print(to_json({"groups": groups}))
        else:
            say("\n".join(table([_group_cells(group) for group in groups], can_color(sys.stdout))))
        return 0
    if len(chosen) < 2:
        raise UsageError("ppo-unified compare: name at least two different runs, or group runs by seed with --seeds")
    chosen_options = find_differences(list(tables.values()))
    if options.json:
        by_option = {key: {label: tables[label].get(key) for label in chosen} for key in chosen_options}
        print(to_json({"options": by_option, "runs": {label: _scores(seen) for label, seen in chosen.items()}}))
        return 0
    lines = difference_lines(tables, _width(), can_color(sys.stdout))
    say("\n".join([*lines, "", *_score_table(chosen)]))
    return 0


def _scores(seen: Seen) -> dict[str, Any]:
    status = seen.status
    keys = ("step", "score", "best_score", "solved_step", "elapsed_s")
    return {"state": seen.state} | {key: getattr(status, key) for key in keys}


def _score_table(chosen: Mapping[str, Seen]) -> list[str]:
    rows = []
    for label, (_, status, state) in chosen.items():
        rows.append(
            {
                "run": label,
                "state": clean(state),
                "step": f"{status.step:,}",
                "score": short(status.score),
                "best": short(status.best_score),
                "solved at": "-" if status.solved_step is None else f"{status.solved_step:,}",
                "elapsed": duration(status.elapsed_s),
            }
        )
    return table(rows, can_color(sys.stdout), _PAINT)


def _seed_groups(chosen: Mapping[str, Seen], tables: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Runs that differ in nothing but the seed, together; each group with what tells it from others of its preset."""
    alike: dict[str, list[str]] = {}
    for label, options in tables.items():
        alike.setdefault(seedless_key(options), []).append(label)
    groups = []
    for labels in alike.values():
        preset = chosen[labels[0]].status.preset
        rivals = [tables[other[0]] for other in alike.values() if chosen[other[0]].status.preset == preset]
        members = [chosen[label].status for label in labels]
        groups.append(
            {
                "preset": preset,
                "options": {key: tables[labels[0]].get(key) for key in find_differences(rivals) if key != "seed"},
                "runs": labels,
                "seeds": sorted({status.seed for status in members}),
                "best_score": _statistics([status.best_score for status in members]),
                "solved_step": _statistics([status.solved_step for status in members]),
            }
        )
    return groups


def _statistics(values: Sequence[float | None]) -> dict[str, Any]:
    """Mean, lowest and highest of those runs that have the number, and how many have it."""
    there = [value for value in values if value is not None and math.isfinite(value)]
    if not there:
        return {"mean": None, "min": None, "max": None, "runs": 0}
    return {"mean": mean(there), "min": min(there), "max": max(there), "runs": len(there)}


def _group_cells(group: Mapping[str, Any]) -> dict[str, str]:
    best, solved = group["best_score"], group["solved_step"]
    name = " ".join([group["preset"], *(f"{key}={format_value(value)}" for key, value in group["options"].items())])
    return {
        "group": clean(name),
        "seeds": str(len(group["seeds"])),
        "best score": _spread(best, short),
        "solved": f"{solved['runs']} of {len(group['runs'])}",
        "solved at step": _spread(solved, "{:,.0f}".format),
    }


def _spread(statistics: Mapping[str, Any], format_number: Callable[[float], str]) -> str:
    """'498 (495 .. 500)': the mean and the range."""
    if not statistics["runs"]:
        return "-"
    return "{} ({} .. {})".format(*(format_number(statistics[key]) for key in ("mean", "min", "max")))
