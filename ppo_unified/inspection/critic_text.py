"""The critic microscope as text: explained variance, calibration, and one sample's value trajectory."""

from __future__ import annotations

from collections.abc import Sequence

from ppo_unified.inspection.actions import action_labels
from ppo_unified.inspection.critic import WHY, CriticReport, Group, trajectory
from ppo_unified.inspection.sample_statistics import Interval
from ppo_unified.inspection.sections import (
    Canvas,
    Section,
    axis_label,
    format_interval,
    format_value,
    interval_plots,
    paragraph,
    plot_room,
    table,
)
from ppo_unified.inspection.token_text import pieces_of, visible_text
from ppo_unified.runs.stored_iteration import Sample, StoredIteration
from ppo_unified.text import display_width, pad

NARROW = 11  # columns of the smallest plot
LABEL = 16  # most columns of a token or action


def critic_sections(stored: StoredIteration, report: CriticReport, canvas: Canvas) -> list[Section]:
    """Return the sections of an iteration: explained variance and calibration."""
    is_text = "text" in stored.columns
    unit, whole = ("tokens", "responses") if is_text else ("steps", "episodes")
    overall = report.overall
    facts = [
        f"Explained variance {format_value(overall.explained.value)} (95 % interval "
        f"{format_interval(overall.explained)}) over {overall.steps:,} {unit} of {report.samples:,} {whole}. 1 "
        "means that V is right up to a constant; 0 is no better than a constant."
    ]
    if report.logged is not None:
        facts.append(f"The run logged {format_value(report.logged)}, against its training target.")
    if report.excluded_samples:
        facts.append(
            f"{report.excluded_samples:,} {whole} with {report.excluded_steps:,} {unit} are excluded: they did not end "
            "in a terminal state, so the rewards that would have followed are unknown."
        )
    facts.append(WHY)
    where = "in the response" if is_text else "in the episode's part"
    return [
        Section("Explained variance of V", paragraph(" ".join(facts), canvas)),
        Section(f"By position {where}", _group_lines(report.by_position, "position", unit, canvas)),
        Section(f"By length of the {whole[:-1]}", _group_lines(report.by_length, "length", unit, canvas)),
        Section("Calibration", _calibration_lines(report, unit, canvas)),
    ]


def _group_lines(groups: Sequence[Group], name: str, unit: str, canvas: Canvas) -> list[list[tuple[str, str]]]:
    rows = [
        {
            name: str(group.first) if group.first == group.last else f"{group.first}-{group.last}",
            unit: f"{group.steps:,}",
            "expl. var.": format_value(group.explained.value),
            "95 % interval": format_interval(group.explained),
        }
        for group in groups
    ]
    lowest = min(x.low if x.low is not None else x.value or 0.0 for x in (group.explained for group in groups))
    ends = (max(-1.0, min(0.0, lowest)), 1.0)
    return _with_plot(rows, [group.explained for group in groups], ends, 0.0, canvas)


def _with_plot(
    rows: list[dict[str, str]], intervals: list[Interval], ends: tuple[float, float], mark: float | None, canvas: Canvas
) -> list[list[tuple[str, str]]]:
    room = plot_room(rows, canvas)
    if room < NARROW:
        return table(rows, canvas)
    plots = interval_plots(intervals, ends, room, canvas.unicode, mark)
    return table(rows, canvas, {axis_label(ends, room): plots})


def _calibration_lines(report: CriticReport, unit: str, canvas: Canvas) -> list[list[tuple[str, str]]]:
    rows = [
        {
            "mean V": format_value(bin_.value),
            unit: f"{bin_.steps:,}",
            "followed": format_value(bin_.followed.value),
            "95 % interval": format_interval(bin_.followed),
        }
        for bin_ in report.calibration
    ]
    numbers = [x for bin_ in report.calibration for x in (bin_.value, bin_.followed.low, bin_.followed.high)]
    numbers += [bin_.followed.value for bin_ in report.calibration]
    known = [x for x in numbers if x is not None]
    ends = (min(known), max(known))
    room = plot_room(rows, canvas)
    lines = table(rows, canvas)
    if room >= NARROW:
        plots = []
        for bin_ in report.calibration:
            (text,) = interval_plots([bin_.followed], ends, room, canvas.unicode)
            at = round((bin_.value - ends[0]) / max(ends[1] - ends[0], 1e-12) * (room - 1))
            plots.append(text[:at] + "V" + text[at + 1 :])
        lines = table(rows, canvas, {axis_label(ends, room): plots})
    text = (
        "Steps with similar V: the mean of V, and the mean of the rewards that really followed. Where V is outside the "
    )
    text += "interval, the critic is probably biased; by chance alone, about one group in twenty is outside. "
    text += "In the plot, V marks the prediction."
    return [*lines, *paragraph(text, canvas)]


def trajectory_section(
    stored: StoredIteration, number: int, sample: Sample, canvas: Canvas, cursor: int = -1, most: int = 0
) -> Section:
    """Return the value trajectory of a sample. If `most` > 0, only that many steps around the cursor are shown."""
    found = trajectory(stored, sample)
    names = {"value": "V", "next_value": "V'", "followed": "followed", "error": "followed - V", "advantage": "A"}
    seen = visible_steps(len(sample.columns), cursor, most)
    labels = step_labels(stored, sample, seen, canvas.unicode)
    rows = [
        {"step": label, "#": str(found["column"][step])}
        | {header: format_value(found[name][step]) for name, header in names.items()}
        for step, label in zip(seen, labels, strict=True)
    ]
    values, later = found["value"], found["followed"]
    finite = [x for x in [*values, *later] if x == x]
    ends = (min(finite, default=0.0), max(finite, default=1.0))
    room, lines = plot_room(rows, canvas), table(rows, canvas, accent=cursor - seen.start)
    if room >= NARROW:
        plots = [
            _two_marks(values[step], later[step], ends, room, canvas.unicode) if later[step] == later[step] else ""
            for step in seen
        ]
        lines = table(rows, canvas, {axis_label(ends, room): plots}, accent=cursor - seen.start)
    about = "In the plot, V is the prediction before the step, and the point is the sum of rewards that followed."
    return Section(f"Sample {number}: what the critic expected", [*lines, *paragraph(about, canvas)])


def _two_marks(value: float, later: float, ends: tuple[float, float], width: int, unicode: bool) -> str:
    (text,) = interval_plots([Interval(later, None, None)], ends, width, unicode)
    at = round((value - ends[0]) / max(ends[1] - ends[0], 1e-12) * (width - 1))
    return text[:at] + "V" + text[at + 1 :]


def visible_steps(count: int, cursor: int, most: int) -> range:
    """Return the steps around the cursor; all if `most` is 0."""
    if not 0 < most < count:
        return range(count)
    start = min(max(0, cursor - most // 2), count - most)
    return range(start, start + most)


def step_labels(stored: StoredIteration, sample: Sample, steps: Sequence[int], unicode: bool) -> list[str]:
    """Return the token or the action of some steps of a sample."""
    columns = sample.columns[list(steps)]
    if "text" in stored.columns:
        labels = pieces_of(stored.columns["text"][sample.row, columns].tolist(), unicode)
    else:
        labels = [visible_text(label, unicode) for label in action_labels(stored, sample.row, columns)]
    return [pad(label, min(LABEL, display_width(label))) for label in labels]
