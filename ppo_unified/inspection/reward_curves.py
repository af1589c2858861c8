"""The rewards of a run against its KL: does a score that is not trained still rise with the trained one?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ppo_unified.config.presets import from_file
from ppo_unified.inspection.sample_statistics import Mean
from ppo_unified.inspection.sections import (
    Canvas,
    Section,
    format_mean,
    format_value,
    paragraph,
    plot_room,
    table,
)
from ppo_unified.runs.event_reader import EventReader
from ppo_unified.runs.folder import Run
from ppo_unified.runs.metrics import METRICS
from ppo_unified.runs.stored_iteration import StoredIteration
from ppo_unified.text import clean

PARTS = 8  # parts of the run
KL = "ref/kl_full"  # per response


@dataclass(frozen=True)
class Part:
    """Consecutive logged iterations of a run, up to the step `last`."""

    last: int
    root_kl: float  # square root of the mean KL per response
    scores: dict[str, Mean]


@dataclass(frozen=True)
class RewardCurves:
    """The mean of every reward in the parts of a run. `gold` are the rewards with weight 0, which are only logged."""

    proxy: list[str]
    gold: list[str]
    parts: list[Part]

    def stops(self, gold: str) -> int | None:
        """Return the number of the first part after which a trained reward rises by more than two standard errors and
        `gold` does not. Return None if there is no such part."""
        last = self.parts[-1]
        for number, part in enumerate(self.parts[:-1]):
            still = any(_rise(part.scores[name], last.scores[name]) > 2 for name in self.proxy)
            if still and _rise(part.scores[gold], last.scores[gold]) <= 2:
                return number
        return None


def _rise(before: Mean, after: Mean) -> float:
    """Return an increase in standard errors."""
    error = math.hypot(before.error or 0.0, after.error or 0.0)
    return (after.value - before.value) / max(error, 1e-12)


def read_reward_curves(run: Run, stored: StoredIteration) -> RewardCurves | None:
    """Return the rewards up to a stored iteration, or None if the run has fewer than two rewards or too few points."""
    reader = EventReader(run.path)
    reader.poll()
    series = {tag: (found.steps, found.values) for tag, found in reader.series.items()}
    return reward_curves(series, stored.step, from_file(run.config).watched_scores) if KL in series else None


def reward_curves(
    series: Mapping[str, tuple[np.ndarray, np.ndarray]], end: int, watched: Sequence[str]
) -> RewardCurves | None:
    """Return the rewards up to the step `end`. `series` contains the steps and values of each metric, and `watched` the
    metrics of the rewards with weight 0. Points that are not finite are ignored."""
    names = [
        tag.removeprefix("reward/")
        for tag in series
        if tag.startswith("reward/") and tag not in METRICS and tag == clean(tag)
    ]
    if len(names) < 2 or KL not in series:
        return None
    steps, kl = series[KL]
    columns = {name: dict(zip(*(x.tolist() for x in series[f"reward/{name}"]), strict=True)) for name in names}
    known = [all(math.isfinite(x.get(step, math.nan)) for x in columns.values()) for step in steps.tolist()]
    common = np.flatnonzero(np.array(known, bool) & (steps <= end) & np.isfinite(kl))
    if len(common) < 2 * PARTS:
        return None
    gold = [name for name in names if f"reward/{name}" in watched]
    parts = []
    for chosen in np.array_split(common, PARTS):
        at = steps[chosen].tolist()
        scores = {name: _mean([columns[name][step] for step in at]) for name in sorted(names)}
        root = math.sqrt(max(0.0, float(kl[chosen].mean())))
        parts.append(Part(int(at[-1]), root, scores))
    return RewardCurves(sorted(set(names) - set(gold)), sorted(gold), parts)


def _mean(values: Sequence[float]) -> Mean:
    x = np.array(values)
    return Mean(float(x.mean()), float(x.std(ddof=1) / math.sqrt(len(x))) if len(x) > 1 else None)


def reward_section(curves: RewardCurves, canvas: Canvas) -> Section:
    """Return the table of the rewards by KL, and where a trained reward still rises while another one stops."""
    names = [*curves.proxy, *curves.gold]
    rows = [
        {"to step": f"{part.last:,}", "sqrt KL": format_value(part.root_kl)}
        | {name: format_mean(part.scores[name]) for name in names}
        for part in curves.parts
    ]
    room = plot_room(rows, canvas)
    lines = table(rows, canvas)
    if room >= 10:
        lines = table(rows, canvas, {"each on its own scale": _plots(curves, names, max(room, 21))})
    marks = ", ".join(f"{mark} = {name}" for mark, name in zip("PGHIJ", names, strict=False))
    text = f"Means over iterations with standard errors; KL per response. {marks}. "
    text += (
        " ".join(_verdict(curves, name) for name in curves.gold) or "No reward has weight 0, so there is no gold score."
    )
    return Section("Reward model against gold score", [*lines, *paragraph(text, canvas)])


def _plots(curves: RewardCurves, names: Sequence[str], width: int) -> list[str]:
    texts = []
    ends = {name: [part.scores[name].value for part in curves.parts] for name in names}
    for part in curves.parts:
        signs = [" "] * width
        for mark, name in zip("PGHIJ", names, strict=False):
            low, high = min(ends[name]), max(ends[name])
            at = round((part.scores[name].value - low) / max(high - low, 1e-12) * (width - 1))
            signs[at] = "*" if signs[at] != " " else mark
        texts.append("".join(signs))
    return texts


def _verdict(curves: RewardCurves, gold: str) -> str:
    number, last = curves.stops(gold), curves.parts[-1]
    if number is None:
        return (
            "No part of the run shows a trained reward that still rises (by more than two standard errors) while "
            f"{gold} does not."
        )
    part = curves.parts[number]
    changes = [f"{name} {_signed(last.scores[name].value - part.scores[name].value)}" for name in (*curves.proxy, gold)]
    return (
        f"From the part up to step {part.last:,} (sqrt KL {format_value(part.root_kl)}) to the last part, the trained "
        f"reward rises, but no significant rise of {gold} was found: {', '.join(changes)}."
    )


def _signed(value: float) -> str:
    text = format_value(value)
    return text if text.startswith("-") else f"+{text}"
