"""The charts and the table of a sweep: positions of points, signs, and values from foreign files."""

from __future__ import annotations

import pytest

from ppo_unified.terminal.scatter import Mark, Point, arrange, fit_across, scatter
from ppo_unified.terminal.sweep_table import TrialRow, describe_sweep, sweep_charts, trial_table
from ppo_unified.text import display_width

MARKS = {"low": Mark("·", ".", "2"), "high": Mark("●", "o", "36")}
TRIALS = [
    TrialRow(0, "try-0", "complete", 200.0, 10_000, {"optim.lr": "0.002", "policy.activation": "tanh"}),
    TrialRow(1, "try-1", "pruned", 20.0, 2_000, {"optim.lr": "0.0001", "policy.activation": "relu"}),
    TrialRow(2, "try-2", "complete", 480.0, 8_000, {"optim.lr": "0.01", "policy.activation": "tanh"}),
    TrialRow(4, "try-4", "training", None, 0, {"optim.lr": "0.005", "policy.activation": "relu"}),
    TrialRow(5, "try-5", "interrupted", 300.0, 4_000, {"optim.lr": "0.003", "policy.activation": "relu"}),
    TrialRow(6, "try-6", "failed", 100.0, 4_000, {"optim.lr": "0.004", "policy.activation": "tanh"}),
]


def test_points_are_at_their_coordinates() -> None:
    points = [Point("0", 0.0, "low"), Point("10", 100.0, "high"), Point("5", 50.0, "high"), Point("5", 50.0, "low")]
    assert scatter(points, MARKS, "clip", 29, 8) == [
        "clip                         ",
        "     100┤                   ●",
        "        │                    ",
        "      50┤          ●         ",
        "        │                    ",
        "       0┤·                   ",
        "        └┴──────────────────┴",
        "         0                 10",
    ]


def test_wide_ranges_are_logarithmic_and_words_are_categories() -> None:
    log = scatter([Point(x, 1.0, "low") for x in ("0.001", "0.1", "0.01")], MARKS, "lr", 30, 6, unicode=False)
    assert [at for at, sign in enumerate(log[2]) if sign == "."] == [9, 19, 29]
    words = scatter([Point("tanh", 1.0, "high"), Point("relu", 2.0, "low")], MARKS, "f", 30, 7)
    assert words[-1].split() == ["relu", "tanh"]
    assert words[1].index("·") < words[4].index("●")


def test_sweep_shows_all_trials_in_any_width() -> None:
    assert describe_sweep("try", TRIALS, "score") == (
        "try: 2 complete, 1 training, 1 interrupted, 1 pruned, 1 failed; best score 480 (try-2)"
    )
    for width in (30, 77, 117):
        lines = [*sweep_charts(TRIALS, width, 8), *trial_table(TRIALS, "score", width)]
        assert max(map(display_width, lines)) <= max(width, 56)
    table = trial_table(TRIALS, "score", 77)
    assert [line.split()[0] for line in table] == ["trial", "2", "0", "4", "5", "1", "6", "trials", "on"]
    missing = "trials without a run in this folder: 3 (invalid options, deleted, or trained on another machine)"
    assert " ".join(table[-2:]) == missing
    narrow = " ".join(trial_table(TRIALS, "score", 50))
    assert "not shown, because the terminal is too narrow: policy.activation" in narrow
    signs = "".join(sweep_charts(TRIALS, 77, 8)[:-1])
    assert [signs.count(sign) for sign in "◆●○·x"] == [2, 2, 2, 2, 2]


@pytest.mark.parametrize("x", ["1e308", "-1e308", "nan", "inf", "", "\x1b[31m", "長" * 30])
def test_odd_values_do_not_break_charts(x: str) -> None:
    odd = [TrialRow(10**12, "a", "failed", 1e308, 1, {"o": x}), TrialRow(0, "b", "complete", -1e308, 1, {"o": "1"})]
    lines = [*sweep_charts([*odd, *TRIALS], 77, 8), *trial_table([*odd, *TRIALS], "score", 77)]
    assert "\x1b" not in "".join(lines)
    assert trial_table([TrialRow(-5, "c", "failed", None, 1, {})], "score", 77)[-1].split() == [
        "-5",
        "failed",
        "-",
        "1",
    ]
    assert scatter([], MARKS, "x", 30, 8)[1].strip() == "no points yet"


def test_charts_are_arranged_in_rows() -> None:
    assert fit_across(3, 77, 37, 60) == (2, 37)
    assert fit_across(1, 200, 37, 60) == (1, 60)
    assert arrange([["a", "b"], ["c", "d"], ["e", "f"]], 2) == ["a  c", "b  d", "e", "f"]
