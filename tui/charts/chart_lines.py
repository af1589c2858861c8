"""Renders the title, the curves with y labels, and the x axis of one chart as lines of text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from rich.segment import Segment
from rich.style import Style
from textual.color import Color
from textual.filter import LineFilter
from textual.strip import Strip

from ppo_unified.runs import metrics
from ppo_unified.terminal import braille, chart
from ppo_unified.terminal.braille import CROSS, LEVEL, NOTHING, Glyphs
from ppo_unified.terminal.ticks import GUTTER
from ppo_unified.text import clean, display_width
from tui.charts.chart_picture import TALL, ChartPicture
from tui.charts.colors import with_letter
from tui.charts.traces import DrawnCurve

FAINT, BAND = 0.6, 0.7  # share of the background color in raw curves and in bands
DIM = 0.45  # share of the background color where a curve of several seeds lacks some of them


class Inks(NamedTuple):
    """The styles of a chart's parts, on its background."""

    base: Style
    title: Style
    axis: Style
    cross: Style
    bright: list[Style]  # one per curve
    faint: list[Style]  # one per raw curve or band
    dim: list[Style]  # one per curve, for the part where some seeds have no value

    def apply_filters(self, filters: Sequence[LineFilter], background: Color) -> Inks:
        """Return the styles after the app's filters. Filtering every line instead would take a fifth of a redraw."""
        several = [self.base, self.title, self.axis, self.cross, *self.bright, *self.faint, *self.dim]
        segments = [Segment("", style) for style in several]
        for line_filter in filters:
            segments = line_filter.apply(segments, background)
        seen = [segment.style or self.base for segment in segments]
        base, title, axis, cross, *curves = seen
        count = len(self.bright)
        return Inks(base, title, axis, cross, curves[:count], curves[count : 2 * count], curves[2 * count :])


def curve_styles(
    drawn: Sequence[DrawnCurve], base: Style, background: Color
) -> tuple[list[Style], list[Style], list[Style]]:
    """Return the bright style of each curve, the faint style of its raw values or its band, and its dim style."""
    bright, faint, dim = [], [], []
    for one in drawn:
        color = Color.parse(one.color)
        faded = color.blend(background, BAND if one.band is not None else FAINT)
        bright.append(base + Style(color=color.rich_color))
        faint.append(base + Style(color=faded.rich_color))
        dim.append(base + Style(color=color.blend(background, DIM).rich_color))
    return bright, faint, dim


def title_line(
    tag: str,
    log_y: bool,
    drawn: Sequence[DrawnCurve],
    numbers: Sequence[str],
    width: int,
    inks: Inks,
) -> Strip:
    """Render the metric's tag and the curves' numbers in their colors, with the curves' names if they fit.

    The numbers take precedence over the tag, which is shortened in the middle if necessary.
    """
    ambiguous = len(drawn) > 1 or any(one.band is not None for one in drawn)  # a single run needs no name
    scale = " log" if log_y else ""
    tags, room = [clean(text) for text in (metrics.title(tag), tag)], width - len(scale)
    # the names of the curves take precedence over the decoding
    entries = [f"  {with_letter(one.letter, one.label)} {v}" for one, v in zip(drawn, numbers, strict=True)]
    if not ambiguous or display_width(tags[1]) + display_width("".join(entries)) > room:
        entries = [f"  {with_letter(one.letter, v)}" for one, v in zip(drawn, numbers, strict=True)]
    title, shown = chart.fit_title(tags, entries, room)
    head = [Segment(title, inks.title), Segment(scale, inks.axis)]
    head += [Segment(entry, ink) for entry, ink in zip(entries[:shown], inks.bright, strict=False)]
    head += [Segment(f"  +{len(drawn) - shown}", inks.axis)] if shown < len(drawn) else []
    text = "".join(segment.text for segment in head)
    head.append(Segment(" " * (width - display_width(text)), inks.base))
    measured = max(width, len(text)) if text.isascii() else None
    return Strip(head, measured).adjust_cell_length(width, inks.base)


def curve_lines(picture: ChartPicture, cross: int | None, glyphs: Glyphs, width: int, inks: Inks) -> list[Strip]:
    """Render the plot, with y labels on the left and the crosshair in column `cross`."""
    styles = {CROSS: inks.axis, LEVEL: inks.axis, NOTHING: inks.base}
    styles |= {2 * k: style for k, style in enumerate(inks.bright)}
    styles |= {2 * k + 1: style for k, style in enumerate(inks.faint)}
    styles |= {2 * len(inks.dim) + k: style for k, style in enumerate(inks.dim)}
    strips = []
    for row, runs in enumerate(braille.spans(picture.picture, cross, glyphs.side)):
        label = picture.labels.get(row)
        side = (label or "").rjust(GUTTER)
        segments = [Segment(side + (glyphs.side if label is None else glyphs.tick), inks.axis)]
        segments += [Segment(text, styles[style]) for text, style in runs]
        strips.append(Strip(segments, width))
    return strips


def axis_lines(
    picture: ChartPicture, cross: tuple[int, str] | None, glyphs: Glyphs, size: tuple[int, int], inks: Inks
) -> list[Strip]:
    """Render the x axis of a chart of `size` (columns, rows). `cross` is the crosshair's column and its label."""
    (width, height), axis, strips = size, inks.axis, []
    note = chart.nonpositive_note(picture.hidden, picture.room, picture.noun)
    if height >= TALL:
        floor = chart.floor_row(picture.ticks, picture.room, glyphs, note)
        strips.append(Strip([Segment(" " * GUTTER + glyphs.corner + floor, axis)], width))
        note = ""
    ticks = picture.ticks
    if note:
        start = width - len(note)
        ticks = [*_ticks_beside(ticks, start - 2, width), (0, start, note)]
    if cross is None:
        return [*strips, Strip([Segment(chart.label_row(ticks, width, GUTTER)[:width], axis)], width)]
    column, text = cross[0], f" {cross[1]} "[:width]
    start = max(0, min(GUTTER + 1 + column - len(text) // 2, width - len(text)))
    labels = chart.label_row(_ticks_beside(ticks, start, start + len(text)), width, GUTTER)[:width]
    parts = [Segment(labels[:start], axis), Segment(text, inks.cross), Segment(labels[start + len(text) :], axis)]
    return [*strips, Strip(parts, width)]


def _ticks_beside(ticks: Sequence[tuple[int, int, str]], start: int, end: int) -> list[tuple[int, int, str]]:
    """Return the ticks whose labels are outside of the columns from `start` to `end`."""
    return [tick for tick in ticks if tick[1] >= end or tick[1] + len(tick[2]) <= start]
