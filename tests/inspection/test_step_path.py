"""Tests the path of a step's ratio through the epochs of an update."""

from __future__ import annotations

import numpy as np
import pytest

from ppo_unified.inspection.step_path import ratio_path
from ppo_unified.inspection.what_if import Settings, recompute
from tests.stored_tokens import ENGLISH, make_token_iteration


def test_path_equals_the_recomputed_ratios() -> None:
    stored = make_token_iteration(ENGLISH)
    path = ratio_path(stored, 0, 3)
    assert list(path) == [1, 2, 3, "after"]
    for moment, ratio in path.items():
        found = recompute(stored, Settings.of(stored), moment).columns["ratio"][0, 3]
        assert ratio == pytest.approx(float(found), rel=1e-5)


def test_path_omits_epochs_that_did_not_reach_the_step() -> None:
    stored = make_token_iteration(ENGLISH)
    stored.epochs["minibatch"][2] = np.where(np.arange(5)[:, None] == 0, -1, stored.epochs["minibatch"][2])
    assert list(ratio_path(stored, 0, 3)) == [1, 2, "after"]
    stored.epochs.clear()
    assert list(ratio_path(stored, 0, 3)) == ["after"]
