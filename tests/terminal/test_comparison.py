"""Comparisons of runs: the statistics of groups, and the layout at different widths."""

from __future__ import annotations

from statistics import stdev
from typing import Any

import pytest

from ppo_unified.runs.folder import Status
from ppo_unified.runs.seeds import one_run_per_seed
from ppo_unified.terminal.comparison import ComparedRun, compare, group_runs
from ppo_unified.text import display_width

OPTIONS = {"kind": "gym", "gym.env_id": "CartPole-v1", "ppo.clip": 0.2, "ppo.gamma": 0.98, "optim.lr": 1e-3}


def make_run(name: str, seed: int = 1, state: str = "finished", *, of: str = "", **results: Any) -> ComparedRun:
    changes = {"optim.lr": float(of), "gym.env_id": "package.module:Environment-v3"} if of else {}
    options = {"seed": seed} | OPTIONS | changes
    return ComparedRun(name, state, seed, options, Status(name=name, seed=seed, step=1000, **results))


NINE = [
    *(make_run(f"pole-s{seed}", seed, score=400.0 + seed, solved_step=100 * seed) for seed in (1, 2, 3)),
    *(make_run(f"pole-lr{rate}", of=rate, score=float(rate) * 1e4, state="failed") for rate in ("1e-1", "1e-2")),
    *(make_run(f"倒立振子-{'长' * 40}-s{seed}", seed, of="3e-3") for seed in (1, 2)),
    make_run("[bold]x", of="0.5", score=float("nan")),
    ComparedRun(
        "words", "stopped", 1, {"kind": "llm", "llm.kl": 0.1, "llm.dtype": "float32", "seed": 1}, Status(score=0.5)
    ),
]


def text_of(runs: list[ComparedRun], width: int, **how: Any) -> str:
    return "\n".join(
        "\n".join([title, *lines]) for title, lines in compare(group_runs(runs, one_run_per_seed), width, **how)
    )


@pytest.mark.parametrize("width", [77, 120, 200])
def test_nine_runs_fit_any_width_and_nothing_is_lost(width: int) -> None:
    text = text_of(NINE, width)
    assert (
        max(display_width(line) for _, lines in compare(group_runs(NINE, one_run_per_seed), width) for line in lines)
        <= width
    )
    assert text.startswith("Comparison of 9 runs in 6 groups;")
    for run in NINE:
        assert run.name in text.replace("\n   ", "")
    for value in ("0.001", "0.1", "0.01", "0.003", "0.5", "402", "1000", "3 of 3", "200", "nan", "stopped", "llm"):
        assert value in text, value
    assert "Options that differ: 4; equal options: 0; options of one adapter only: 4" in text
    assert "llm.dtype" not in text


def test_letters_name_the_groups_that_share_a_value() -> None:
    lines = text_of(NINE, 80).split("\n")
    assert "A  pole-s1, pole-s2, pole-s3" in lines
    assert lines[-5:] == [
        "seed        1, 2, 3: A   1: B, C, E, F   1, 2: D",
        "kind        gym: A, B, C, D, E   llm: F",
        "gym.env_id  CartPole-v1: A   package.module:Environment-v3: B, C, D, E",
        "            not set: F",
        "optim.lr    0.001: A   0.1: B   0.01: C   0.003: D   0.5: E   not set: F",
    ]


def test_group_has_mean_and_deviation_of_one_run_per_seed() -> None:
    runs = [
        make_run("a-s1", 1, score=10.0, best_score=12.0, started=1.0),
        make_run("a-s1-2", 1, score=20.0, best_score=20.0, started=2.0, solved_step=500, elapsed_s=30.0),
        make_run("a-s2", 2, "stopped", score=30.0, best_score=float("inf"), started=1.0, elapsed_s=10.0),
        make_run("a-s3", 3, started=9.0),
    ]
    (group,) = group_runs(runs, one_run_per_seed)
    assert [run.name for run in group.counted] == ["a-s1-2", "a-s2", "a-s3"]
    assert group.statistics("score") == (25.0, stdev([20.0, 30.0]), [20.0, 30.0])
    assert group.statistics("best_score") == (20.0, None, [20.0])
    lines = text_of(runs, 200).split("\n")
    assert lines[0] == "Comparison of 4 runs that differ only in the seed"
    row = next(line for line in lines if line.startswith("a-s1 ... s3"))
    assert row.split()[3:] == ["various", "1,000", "25", "7.071", "2", "20", "1", "of", "3", "500", "13", "s"]
    assert any(line.startswith("  a-s1 *") for line in lines)
    assert "* not counted, because another run has the same options and seed" in lines
    assert not any("Options" in line for line in lines)


def test_columns_have_one_alignment_and_one_sign_for_no_value() -> None:
    runs = [make_run(f"a-s{seed}", seed, score=9.5 * seed, solved_step=10_000 * seed, elapsed_s=8.0) for seed in (1, 2)]
    lines = text_of([*runs, make_run("b", 3, of="3")], 200).split("\n")
    assert lines[lines.index("Results") + 1 :][:5] == [
        "run          state     steps  score (greedy)     +-  n  best (greedy)  solved  at step   time",
        "a-s1 ... s2  finished  1,000           14.25  6.718  2              -  2 of 2   15,000  8.0 s",
        "  a-s1       finished  1,000             9.5      -  -              -       -   10,000  8.0 s",
        "  a-s2       finished  1,000              19      -  -              -       -   20,000  8.0 s",
        "b            finished  1,000               -      -  -              -       -        -  0.0 s",
    ]
    assert lines[-4:] == [
        "option      a-s1 ... s2  b",
        "seed        1, 2         3",
        "gym.env_id  CartPole-v1  package.module:Environment-v3",
        "optim.lr    0.001        3.0",
    ]


def test_equal_options_are_listed_on_request() -> None:
    changed = OPTIONS | {"seed": 1, "optim.lr": 0.5}
    runs = [make_run("a"), ComparedRun("b", "finished", 1, changed, Status())]
    assert "ppo.gamma" not in text_of(runs, 80)
    lines = text_of(runs, 80, show_equal=True).split("\n")
    assert lines[lines.index("Equal options") :] == [
        "Equal options",
        "seed        1",
        "kind        gym",
        "gym.env_id  CartPole-v1",
        "ppo.clip    0.2",
        "ppo.gamma   0.98",
    ]
    assert "Options that differ: 1; equal options: 5" in lines
    seeds = [make_run("a"), make_run("b", 2), make_run("c", 1, of="3"), make_run("d", 2, of="3")]
    lines = text_of(seeds, 200, show_equal=True).split("\n")
    assert "Options that differ: 2; equal options: 3" in lines
    assert not any(line.startswith("seed ") for line in lines[lines.index("Equal options") :])
