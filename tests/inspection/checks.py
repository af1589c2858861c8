"""Checks that recomputing a stored iteration gives the run's numbers, and that the formulas of its steps are true."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from ppo_unified.inspection import what_if
from ppo_unified.inspection.clip_sentence import describe_clip
from ppo_unified.inspection.formulas import Array
from ppo_unified.inspection.step_formulas import Step, explain
from ppo_unified.inspection.what_if import Recomputed, Settings, recompute
from ppo_unified.runs.stored_iteration import StoredIteration

SAME = {"advantage": "advantage", "return": "return", "delta": "delta", "reward": "reward", "value": "value",
        "next_value": "next_value", "ratio": "ratio", "logprob": "logprob_new", "weight": "weight", "kl": "kl",
        "advantage_used": "advantage_used"}  # fmt: skip


def assert_equals_stored(stored: StoredIteration, *ignored: str) -> Recomputed:
    """Assert that recomputing with the run's own settings gives the stored columns and the logged metrics."""
    own, mask = Settings.of(stored), stored.columns["mask"]
    after, last_epoch = recompute(stored, own), len(what_if.moments(stored)) - 1
    for name, column in SAME.items():
        if name in after.columns and column in stored.columns:
            close(after.columns[name][mask], stored.columns[column][mask], name)
    if own.normalize_advantages == "minibatch":
        for epoch in range(last_epoch):
            seen = mask & (stored.epochs["minibatch"][epoch] >= 0)
            used = recompute(stored, own, epoch + 1).columns["advantage_used"]
            close(used[seen], stored.epochs["advantage_used"][epoch][seen], "advantage_used")
        close(after.columns["advantage_used"][seen], used[seen], "advantage_used")
        assert after.columns["advantage_used"][mask & (after.columns["advantage"] != 0)].all()
    np.testing.assert_array_equal((after.columns["outside"] != 0)[mask], stored.columns["clipped"][mask])
    last = recompute(stored, own, last_epoch)
    for found in (after, last):
        for name, mean in found.means.items():
            if name in stored.metrics and name not in ignored and (found is last or name != "loss/policy"):
                close(mean, stored.metrics[name], name)
        assert found.exact
        np.testing.assert_array_equal(found.columns["cut"][mask], expected_cut(found)[mask])
        assert float(found.columns["share"].sum()) == pytest.approx(len(np.unique(minibatches(stored, found))))
    return last


def expected_cut(found: Recomputed) -> Array:
    """Return True at steps whose advantage pushes the ratio further out of the clip range, or beyond the dual clip."""
    settings, columns = found.settings, found.columns
    ratio, used = columns["ratio"], columns["advantage_used"]
    if settings.objective != "clip":
        return np.zeros_like(ratio, bool)
    above, below = ratio > 1 + (settings.clip_high or settings.clip), ratio < 1 - settings.clip
    dual = bool(settings.dual_clip) & (used < 0) & (ratio > settings.dual_clip)
    return np.asarray((used > 0) & above | (used < 0) & below | dual)


def minibatches(stored: StoredIteration, found: Recomputed) -> Array:
    mask = stored.columns["mask"]
    if found.moment == "after":
        return np.zeros(1)
    numbers = stored.epochs["minibatch"][found.moment - 1][mask]
    return np.asarray(numbers[numbers >= 0])


def close(found: Any, expected: Any, name: str) -> None:
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5, err_msg=name)


RESULTS = {"kl": "kl", "r": "reward", "V": "value", "delta": "delta", "A": "advantage", "return": "return",
           "A used": "advantage_used", "ratio": "ratio", "loss": "loss", "d loss": "derivative", "share": "loss_share",
           "r token": "token_reward"}  # fmt: skip
FUNCTIONS = {"exp": math.exp, "min": min, "max": max, "abs": abs, "clip": lambda x, low, high: max(low, min(high, x))}


def check_steps(stored: StoredIteration, settings: Settings | None = None) -> set[str]:
    """Evaluate the formulas of every step at every moment. Return the names of all lines."""
    names = set[str]()
    for moment in what_if.moments(stored):
        found = recompute(stored, settings or Settings.of(stored), moment)
        for row, column in np.argwhere(stored.columns["mask"])[::3]:
            step = Step(stored, found, int(row), int(column))
            for line in explain(step):
                if line.name in RESULTS:
                    assert line.value == step[RESULTS[line.name]]
                if line.numbers:
                    value = eval(line.numbers.replace("^", "**"), FUNCTIONS)
                    assert value == pytest.approx(line.value, rel=1e-5, abs=1e-5), (line, moment)
                names.add(line.name)
            assert describe_clip(step).endswith(".")
    return names
