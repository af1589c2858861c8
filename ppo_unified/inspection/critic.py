"""How well a critic predicts: its value estimates against the rewards that really followed. Does not import torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ppo_unified.errors import UsageError
from ppo_unified.inspection import formulas
from ppo_unified.inspection.formulas import Array, Steps
from ppo_unified.inspection.sample_statistics import (
    Interval,
    bootstrap,
    divide,
    sample_of_steps,
    sums_by_group,
    valid_numbers,
)
from ppo_unified.inspection.settings import Settings, check_arrays
from ppo_unified.runs.stored_iteration import Sample, StoredIteration

GROUPS, BINS = 8, 10  # most groups of positions or lengths, and bins of V
WHY = (
    "V is compared with the sum of rewards that really followed, not with the training target A + V_old: that target "
    "contains V_old, so a critic that agrees with itself would look good."
)


@dataclass(frozen=True)
class Group:
    """Steps with similar positions, or of samples with similar lengths."""

    first: int
    last: int
    steps: int
    samples: int
    explained: Interval  # 1 - var(G - V) / var(G); undefined if G does not vary


@dataclass(frozen=True)
class Bin:
    """Steps with similar value estimates."""

    steps: int
    value: float  # mean of V
    followed: Interval  # mean of G


@dataclass(frozen=True)
class CriticReport:
    """The quality of V_old in one iteration. G is the discounted sum of rewards that followed a step."""

    samples: int  # samples that are used
    excluded_samples: int  # samples that did not end in the rollout, so what followed is unknown
    excluded_steps: int
    overall: Group
    by_position: list[Group]
    by_length: list[Group]
    calibration: list[Bin]
    logged: float | None  # value/explained_variance: against the training target, over all steps


def check_critic(stored: StoredIteration) -> None:
    """Raise UsageError if the run has no critic."""
    if (kind := Settings.of(stored).baseline) != "critic":
        raise UsageError(
            f"the run has no critic, because llm.baseline = {kind!r}; expected a run with llm.baseline = 'critic'"
        )


def followed(stored: StoredIteration) -> Array:
    """Return the discounted sum of the rewards that followed each step (G), [N, T] float64."""
    columns = stored.columns
    names = ("reward", "value", "next_value")
    rewards, values, next_values = (columns[name].astype(np.float64) for name in names)
    return formulas.reward_to_go(
        Steps(rewards, values, next_values, columns["continues"], columns["mask"]), stored.gamma
    )


def complete_samples(stored: StoredIteration) -> Array:
    """Return which samples ended in a terminal state, bool [S]. The others end with a value estimate (V')."""
    mask = stored.columns["mask"]
    last = stored.sample_ends() - 1
    return np.asarray(~stored.columns["continues"][mask][last] & (stored.columns["next_value"][mask][last] == 0))


def examine_critic(stored: StoredIteration) -> CriticReport:
    """Compare V_old with the rewards that followed. Raises UsageError if there is no critic or no complete sample."""
    check_critic(stored)
    mask = stored.columns["mask"]
    check_arrays(stored)
    v, *_ = valid_numbers(stored, "value", "reward", "next_value", "advantage")
    complete = complete_samples(stored)
    all_numbers, positions = sample_of_steps(stored)
    used = complete[all_numbers]
    if not used.any():
        raise UsageError(
            f"no episode of iteration {stored.iteration} ended in the rollout, so the rewards that followed are "
            "unknown; choose another iteration with --iteration"
        )
    numbers = (np.cumsum(complete) - 1)[all_numbers[used]]
    g, v = followed(stored)[mask][used], v[used]
    lengths = np.bincount(numbers)
    values = _Values(g, v, numbers, int(complete.sum()))
    overall = values.explained(np.zeros(len(g), int), [(1, int(lengths.max()))])[0]
    by_length = values.explained(*_groups(lengths[numbers]))
    excluded = int((~complete).sum())
    return CriticReport(
        samples=values.samples,
        excluded_samples=excluded,
        excluded_steps=int((~used).sum()),
        overall=overall,
        by_position=values.explained(*_groups(positions[used] + 1)),
        by_length=by_length,
        calibration=values.calibration(),
        logged=stored.metrics.get("value/explained_variance"),
    )


def _groups(x: Array) -> tuple[Array, list[tuple[int, int]]]:
    ends, groups = divide(x, GROUPS)
    return groups, [(int(first), int(last)) for first, last in ends]


@dataclass(frozen=True)
class _Values:
    """G and V [n] at the used steps."""

    g: Array
    v: Array
    numbers: Array  # of each step's sample
    samples: int

    def explained(self, groups: Array, ends: list[tuple[int, int]]) -> list[Group]:
        """Return the explained variance of each group, given the group of each step."""
        g = self.g - self.g.mean()  # centered, so that sums of squares stay accurate
        error = self.g - self.v
        error = error - error.mean()
        columns = [np.ones_like(g), g, g * g, error, error * error]
        sums = sums_by_group(columns, self.numbers, groups, self.samples, len(ends))
        found = bootstrap(sums, _explained_variance)
        steps, samples = sums[..., 0].sum(0), (sums[..., 0] > 0).sum(0)
        return [
            Group(first, last, int(n), int(count), interval)
            for (first, last), n, count, interval in zip(ends, steps, samples, found, strict=True)
        ]

    def calibration(self) -> list[Bin]:
        """Return the mean of G in bins of V."""
        ends, groups = divide(self.v, BINS)
        columns = [np.ones_like(self.g), self.v, self.g]
        sums = sums_by_group(columns, self.numbers, groups, self.samples, len(ends))
        found = bootstrap(sums, lambda totals: _ratio(totals[..., 2], totals[..., 0]))
        steps, value, _ = sums.sum(0).T
        return [Bin(int(n), float(v / n), interval) for n, v, interval in zip(steps, value, found, strict=True)]


def _explained_variance(totals: Array) -> Array:
    """Return 1 - var(G - V) / var(G) from totals [..., 5]: the count and the sums of G, G^2, G - V and (G - V)^2."""
    n, g, gg, e, ee = np.moveaxis(totals, -1, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        variance, left = gg / n - (g / n) ** 2, ee / n - (e / n) ** 2
        return np.asarray(np.where(variance > 1e-10 * gg / n, 1 - left / variance, np.nan))  # below, it is rounding


def _ratio(x: Array, y: Array) -> Array:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(x / y)


def trajectory(stored: StoredIteration, sample: Sample) -> dict[str, list[Any]]:
    """Return a sample's steps: `column`, V and V', the rewards that followed (G), the error G - V, and A.

    G is NaN if the episode did not end in a terminal state, because it would contain a value estimate.
    """
    place, last = (sample.row, sample.columns), (sample.row, sample.columns[-1])
    ended = not stored.columns["continues"][last] and stored.columns["next_value"][last] == 0
    value = stored.columns["value"][place]
    g = followed(stored)[place] if ended else np.full(len(value), np.nan)
    steps = {
        "column": sample.columns,
        "reward": stored.columns["reward"][place],
        "value": value,
        "next_value": stored.columns["next_value"][place],
        "followed": g,
        "error": g - value,
        "advantage": stored.columns["advantage"][place],
    }
    return {name: x.tolist() for name, x in steps.items()}
