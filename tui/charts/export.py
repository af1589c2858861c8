"""Exports the values of a chart as CSV and its picture as SVG. Existing files are never overwritten."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from itertools import count
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ppo_unified.runs import metrics
from ppo_unified.terminal.braille import Columns, View
from ppo_unified.terminal.chat import wrap_text
from ppo_unified.terminal.ticks import Tick, log_ticks, plain_ticks
from ppo_unified.text import clean, display_width, elide
from tui.charts.colors import paper_color, with_letter
from tui.charts.settings import AXIS_LABELS, Settings
from tui.charts.traces import DrawnCurve, Trace

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 960, 480, 76, 24, 60, 44  # pixels
LINE = 18  # height in pixels of a line of the legend or the subtitle
LETTER = 7  # approximate width in pixels of a column of text
REPEATS = 3  # letters along a curve


def export_chart(
    folder: Path, tag: str, traces: Sequence[Trace], picture: PaperChart | None, settings: Settings
) -> list[Path]:
    """Write a chart's values and, unless it is None, its picture to a folder. Return the paths of the new files."""
    folder.mkdir(parents=True, exist_ok=True)
    table, svg = new_files(folder, tag)
    drawn = picture.drawn if picture is not None else ()
    write_csv(table, traces, {key: one.label for one in drawn if one.seeds is not None for key in one.seeds.keys})
    if picture is None:
        return [table]
    write_svg(svg, tag, picture, describe_chart(tag, picture, settings))
    return [table, svg]


def describe_chart(tag: str, picture: PaperChart, settings: Settings) -> list[str]:
    """State what a picture shows: the metric, the axes, how the values were processed, and the runs of each group."""
    metric = metrics.find_metric(tag)
    about = [clean(metric.meaning)] if metric is not None else []
    about += [f"unit: {clean(metric.unit)}"] if metric is not None and metric.unit else []
    axes = f"x axis: {AXIS_LABELS[settings.axis]}{', logarithmic' if settings.has_log_x else ''}"
    axes += "; only a part of the x axis is shown" if settings.window is not None else ""
    axes += f"; y axis: {'logarithmic' if picture.log_y else 'linear'}"
    groups = [one for one in picture.drawn if one.seeds is not None]
    if settings.smoothing:
        axes += f"; smoothed with a moving average of weight {settings.smoothing:g}"
        axes += "; faint curves show the raw values" if len(groups) < len(picture.drawn) else ""
        axes += " of single runs" if 0 < len(groups) < len(picture.drawn) else ""
    lines = ["; ".join(about), axes] if about else [axes]
    if groups:
        pale = any(one.split()[1] is not None for one in groups)
        lines.append(
            "seeds are grouped: median of the runs, in a band from the lower to the upper quartile"
            + ("; dotted and paler where some seeds have no value" if pale else "")
        )
    return lines + [f"{clean(one.label)}: {', '.join(map(clean, one.seeds.keys))}" for one in groups if one.seeds]


def new_files(folder: Path, tag: str) -> tuple[Path, Path]:
    """Return unused paths of a CSV and an SVG file. A number is added to the name if a file exists."""
    stem = re.sub(r"[^\w.-]+", "-", clean(tag)).strip("-.") or "chart"
    for number in count(1):
        name = stem if number == 1 else f"{stem}-{number}"
        paths = folder / f"{name}.csv", folder / f"{name}.svg"
        if not any(path.exists() for path in paths):
            return paths
    raise AssertionError  # unreachable: the loop is infinite


def write_csv(path: Path, traces: Sequence[Trace], groups: Mapping[str, str]) -> None:
    """Write all raw values of all runs, with enough digits to recover them exactly.

    `groups` maps the key of a run to the label of its group of seeds.
    """
    with open(path, "x", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("run", "step", "wall_time", "value", "group"))
        for trace in traces:
            columns = (array.tolist() for array in trace.curve)
            digits = ".9g" if trace.curve[2].dtype == np.float32 else ".17g"
            for step, wall, value in zip(*columns, strict=True):
                writer.writerow((trace.label, step, f"{wall:.6f}", format(value, digits), groups.get(trace.key, "")))


class PaperChart(NamedTuple):
    """The content of a picture. Curves, view, ticks and levels are in drawn coordinates (logarithms on a log axis)."""

    drawn: Sequence[DrawnCurve]
    view: View
    log_y: bool
    ticks: Sequence[Tick]
    levels: Sequence[Tick] = ()  # the values that dashed lines mark
    note: str = ""  # a remark on the y axis


def write_svg(path: Path, tag: str, picture: PaperChart, facts: Sequence[str] = ()) -> None:
    """Write a chart as SVG with a white background. The facts are its subtitle and its description."""
    drawn, view, log_y, ticks, levels, note = picture
    plot = (WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM)
    title = clean(metrics.title(tag)) + (f" ({'; '.join(filter(None, ('log', note)))})" if log_y else "")
    places = _places(drawn)
    subtitle = [line for fact in facts for line in wrap_text(fact, (WIDTH - LEFT - RIGHT) // LETTER)]
    lower = LINE * len(subtitle)  # height of the subtitle
    more = lower + LINE * places[-1][1]  # and of the additional legend lines
    with open(path, "x", encoding="utf-8") as file:
        file.write(
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT + more}" font-family="sans-serif" '
            f'font-size="12">\n<title>{escape(title)}</title>\n<desc>{escape(chr(10).join(facts))}</desc>\n'
            f'<rect width="{WIDTH}" height="{HEIGHT + more}" fill="#ffffff"/>\n'
            f'<clipPath id="plot"><rect width="{plot[0]}" height="{plot[1]}"/></clipPath>\n'
            f'<text x="{LEFT}" y="22" font-size="16" font-weight="bold">{escape(title)}</text>\n'
        )
        for number, line in enumerate(subtitle, 1):
            file.write(f'<text x="{LEFT}" y="{22 + LINE * number}" fill="#555555">{escape(line)}</text>\n')
        file.writelines(_legend(drawn, places, lower))
        file.write(f'<g transform="translate({LEFT} {TOP + more})">\n')
        file.writelines(_axes(view, log_y, ticks, plot))
        file.write('<g clip-path="url(#plot)" fill="none" stroke-width="1.5" stroke-linejoin="round">\n')
        for one in reversed(drawn):  # the first curve is on top
            file.writelines(_curve(one, view, plot))
        file.write("</g>\n")
        file.writelines(_levels(view, levels, plot))
        file.writelines(_letters(drawn, view, plot))
        file.write("</g>\n</svg>\n")


def _places(drawn: Sequence[DrawnCurve]) -> list[tuple[int, int]]:
    """Return the left end in pixels and the line number of each legend entry."""
    x, line, places = LEFT, 0, []
    for one in drawn:
        size = 17 + LETTER * display_width(_name(one))
        if x > LEFT and x + size > WIDTH - RIGHT:
            x, line = LEFT, line + 1
        places.append((x, line))
        x += size + 20
    return places


def _name(one: DrawnCurve) -> str:
    name = with_letter(one.letter, clean(one.label))
    return elide(name, (WIDTH - LEFT - RIGHT - 17) // LETTER)


def _legend(drawn: Sequence[DrawnCurve], places: Sequence[tuple[int, int]], lower: int) -> Iterator[str]:
    for one, (x, line) in zip(drawn, places, strict=True):
        y = 34 + lower + LINE * line
        yield f'<rect x="{x}" y="{y}" width="12" height="4" fill="{paper_color(one.color)}"/>\n'
        yield f'<text x="{x + 17}" y="{y + 7}">{escape(_name(one))}</text>\n'


def _axes(view: View, log_y: bool, x_ticks: Sequence[Tick], plot: tuple[int, int]) -> Iterator[str]:
    width, height = plot
    yield f'<path d="M0 0V{height}H{width}" fill="none" stroke="#555555"/>\n'
    for at, label in x_ticks:
        x = (at - view.left) / (view.right - view.left) * width
        yield f'<path d="M{x:.1f} {height}v5" stroke="#555555"/>'
        yield f'<text x="{x:.1f}" y="{height + 20}" text-anchor="middle">{escape(label)}</text>\n'
    for at, label in (log_ticks if log_y else plain_ticks)(view.low, view.high, 8):
        y = (view.high - at) / (view.high - view.low) * height
        yield f'<path d="M0 {y:.1f}H{width}" stroke="#dddddd"/>'
        yield f'<text x="-8" y="{y + 4:.1f}" text-anchor="end">{escape(label)}</text>\n'


def _levels(view: View, levels: Sequence[Tick], plot: tuple[int, int]) -> Iterator[str]:
    for at, label in levels:
        y = (view.high - at) / (view.high - view.low) * plot[1]
        yield f'<path d="M0 {y:.1f}H{plot[0]}" stroke="#555555" stroke-dasharray="6 4"/>'
        above = y - 5 if y > 17 else y + 14
        yield f'<text x="{plot[0] - 4}" y="{above:.1f}" text-anchor="end" fill="#555555">{escape(label)}</text>\n'


def _curve(one: DrawnCurve, view: View, plot: tuple[int, int]) -> Iterator[str]:
    color = paper_color(one.color)
    if one.band is not None:
        lower, upper = (_points(one.x, y, view, plot) for y in one.band)
        finite = np.isfinite(lower[:, 1]) & np.isfinite(upper[:, 1])
        outline = np.concatenate((lower[finite], upper[finite][::-1]))
        if len(outline):
            yield f'<path d="{_path(outline)}Z" fill="{color}" fill-opacity="0.2"/>\n'
    elif one.curve is not one.raw:
        yield f'<path d="{_path(_points(one.x, one.raw, view, plot))}" stroke="{color}" stroke-opacity="0.3"/>\n'
    complete, partial = one.split()
    if partial is not None:
        yield f'<path d="{_path(_points(one.x, partial, view, plot))}" stroke="{color}" stroke-opacity="0.5" '
        yield 'stroke-dasharray="2 3"/>\n'
    yield f'<path d="{_path(_points(one.x, complete, view, plot))}" stroke="{color}"/>\n'
    points = Columns(one.x, view, plot[0]).few_points(one.curve)
    if points is not None:
        for x, y in _points(*points, view, plot).tolist():
            yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{color}"/>\n'


def _letters(drawn: Sequence[DrawnCurve], view: View, plot: tuple[int, int]) -> Iterator[str]:
    """Yield each curve's letter, if it has one, at different x positions for each curve.

    The letter of a short curve is at the point of the curve that is farthest from the other letters.
    """
    placed = np.full((1, 2), np.inf)
    for number, one in enumerate(drawn):
        points = _points(one.x, one.curve, view, plot)
        points = points[np.isfinite(points).all(axis=1) & (points[:, 0] >= 0) & (points[:, 0] <= plot[0])]
        if not one.letter or not len(points):
            continue
        first, last = points[[0, -1], 0]
        regular = (np.arange(REPEATS) + (number + 0.5) / len(drawn)) * (plot[0] / REPEATS)
        regular = regular[(regular >= first) & (regular <= last)]
        across = regular if len(regular) else np.linspace(first, last, 20)
        places = np.stack((across, np.interp(across, *points.T)), axis=1)
        if not len(regular):
            distances = np.hypot(*(places[:, None] - placed).transpose(2, 0, 1)).min(axis=1)
            places = places[[int(distances.argmax())]]
        placed = np.concatenate((placed, places))
        for x, y in places.tolist():
            yield (
                f'<text x="{x:.1f}" y="{y + 4:.1f}" text-anchor="middle" font-weight="bold" '
                f'fill="{paper_color(one.color)}" stroke="#ffffff" stroke-width="3" paint-order="stroke">'
                f"{one.letter}</text>\n"
            )


def _points(x: np.ndarray, y: np.ndarray, view: View, plot: tuple[int, int]) -> np.ndarray:
    """Return pixel coordinates [P, 2]. If there are many points, only the extremes of each pixel column."""
    width, height = plot
    start, stop = np.searchsorted(x, (view.left, view.right))
    part = slice(max(0, int(start) - 1), int(stop) + 1)
    x, y = x[part], np.asarray(y[part], np.float64)
    if len(x) > 2 * width:
        low, high = Columns(x, view, width).minmax(y)
        x = np.repeat(np.linspace(view.left, view.right, width), 2)
        y = np.stack((low, high), axis=1)
        y[1::2] = y[1::2, ::-1]  # alternate low-high and high-low, so that the line joins neighbouring ends
        y = y.reshape(-1)
    across = (x - view.left) / (view.right - view.left) * width
    down = (view.high - y) / (view.high - view.low) * height
    return np.stack((across, down), axis=1)


def _path(points: np.ndarray) -> str:
    """Return SVG path data. A point that is not finite interrupts the line."""
    parts, pen = [], "M"
    for (x, y), finite in zip(points.tolist(), np.isfinite(points).all(axis=1).tolist(), strict=True):
        if finite:
            parts.append(f"{pen}{x:.1f} {y:.1f}")
        pen = "L" if finite else "M"
    return "".join(parts)
