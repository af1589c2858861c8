"""Formats the trials of a hyperparameter sweep: a chart of each searched option against the value, and a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import count as count_from
from itertools import islice
from typing import NamedTuple

from ppo_unified.terminal.chat import wrap_text
from ppo_unified.terminal.scatter import Mark, Point, arrange, fit_across, scatter
from ppo_unified.text import clean, format_number, format_table, max_display_width

LEAST_CHART, MOST_CHART = 37, 60  # columns of a chart
MOST_MISSING = 20  # number of trials without a run that are listed
ORDER = ("complete", "training", "interrupted", "pruned", "failed")  # results, in the order of the table
MARKS = {  # kind of a point -> its sign; later kinds cover earlier ones
    "failed": Mark("x", "x", "31"),
    "pruned": Mark("·", ".", "2"),
    "unfinished": Mark("○", ",", "33"),
    "complete": Mark("●", "o", "36"),
    "best": Mark("◆", "*", "1;32"),
}


class TrialRow(NamedTuple):
    """A trial whose run exists."""

    number: int
    run: str
    result: str  # one of ORDER
    value: float | None  # of the objective, so far
    step: int
    options: Mapping[str, str]  # the searched options and their values


def best_row(trials: Sequence[TrialRow]) -> TrialRow | None:
    """Return the complete trial with the largest value, or None if no trial is complete."""
    complete = [trial for trial in trials if trial.result == "complete" and trial.value is not None]
    return max(complete, key=lambda trial: (trial.value or 0.0, -trial.number), default=None)


def describe_sweep(name: str, trials: Sequence[TrialRow], objective: str) -> str:
    """Return a heading, such as 'cartpole-sweep: 9 complete, 3 pruned; best mean_score 496.7 (cartpole-sweep-2)'."""
    counts = [(sum(trial.result == result for trial in trials), result) for result in ORDER]
    text = ", ".join(f"{count} {result}" for count, result in counts if count)
    best = best_row(trials)
    found = f"; best {objective} {format_number(best.value)} ({clean(best.run)})" if best else ""
    return f"{clean(name)}: {text}{found}"


def sweep_charts(
    trials: Sequence[TrialRow], width: int, height: int, *, unicode: bool = True, color: bool = False
) -> list[str]:
    """Draw a chart of each searched option against the value, and explain the signs. Each chart has `height` rows."""
    options = list(dict.fromkeys(option for trial in trials for option in trial.options))
    best, (across, size) = best_row(trials), fit_across(len(options), width, LEAST_CHART, MOST_CHART)
    charts = []
    for option in options:
        points = [
            Point(trial.options[option], trial.value, _kind(trial, best))
            for trial in trials
            if trial.value is not None and option in trial.options
        ]
        charts.append(scatter(points, MARKS, clean(option), size, height, unicode=unicode, color=color))
    signs = [f"{mark.sign if unicode else mark.plain} {kind}" for kind, mark in MARKS.items()]
    return [*arrange(charts, across), "   ".join(reversed(signs))]


def _kind(trial: TrialRow, best: TrialRow | None) -> str:
    if trial == best:
        return "best"
    return trial.result if trial.result in MARKS else "unfinished"


def trial_table(trials: Sequence[TrialRow], objective: str, width: int, color: bool = False) -> list[str]:
    """Return a table of the trials, the best first. Options that do not fit into `width` columns are left out."""
    ordered = sorted(trials, key=_rank)
    options = list(dict.fromkeys(option for trial in trials for option in trial.options))
    shown = len(options)
    while shown and max_display_width(format_table(_rows(ordered, objective, options[:shown]))) > width:
        shown -= 1
    lines = format_table(_rows(ordered, objective, options[:shown]), color)
    if hidden := ", ".join(map(clean, options[shown:])):
        lines += wrap_text(f"not shown, because the terminal is too narrow: {hidden}", width)
    return [*lines, *wrap_text(_missing(trials), width)] if _missing(trials) else lines


def _missing(trials: Sequence[TrialRow]) -> str:
    """Return which trials have no run, or ""."""
    numbers = {trial.number for trial in trials}
    count = max(0, max(numbers) + 1 - len(numbers))  # files of other programs may contain negative numbers
    first = list(islice((number for number in count_from(0) if number not in numbers), min(count, MOST_MISSING)))
    more = f" and {count - len(first)} more" if count > len(first) else ""
    reasons = "invalid options, deleted, or trained on another machine"
    return f"trials without a run in this folder: {', '.join(map(str, first))}{more} ({reasons})" if first else ""


def _rank(trial: TrialRow) -> tuple[int, float, int]:
    value = float("inf") if trial.value is None else -trial.value
    return ORDER.index(trial.result), value, trial.number


def _rows(trials: Sequence[TrialRow], objective: str, options: Sequence[str]) -> list[dict[str, str]]:
    rows = []
    for trial in trials:
        row = {"trial": str(trial.number), "result": trial.result, objective: format_number(trial.value)}
        row |= {"steps": f"{trial.step:,}"}
        rows.append(row | {clean(option): clean(trial.options.get(option, "-")) for option in options})
    return rows
