"""Tests the lines above a run's tabs: at every width, they show only complete facts and mention every problem."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ppo_unified.runs.folder import Status
from ppo_unified.terminal.option_diff import difference_lines
from ppo_unified.text import display_width
from tui.runs.entries import Entry
from tui.runs.run_head import format_head

FACTS = ("368.6k of 600k steps (61%)", "score 231.7", "best 240.1", "2168 steps/s", "ETA 1.8 min")


def entry(state: str = "running", note: str = "", key: str = "lunarlander-s1", **changes: Any) -> Entry:
    status = Status(name=key, step=368_640, total_steps=600_000, score=231.7, best_score=240.1, **changes)
    return Entry(key, Path(key), False, status, state, note, 2168.0, 108.0)


def lines_of(shown: Entry, width: int, height: int = 24, tab: str = "curves") -> list[str]:
    return format_head(shown, width, height, tab=tab).plain.split("\n")


@pytest.mark.parametrize("key", ["a", "lunarlander-s1", "日本語", "x" * 100])
def test_head_lines_fit_the_width_without_breaking_facts(key: str) -> None:
    before = 0
    for width in range(40, 200):
        lines = lines_of(entry(key=key), width)
        assert max(map(display_width, lines)) <= width
        found = [fact for fact in FACTS if fact in "\n".join(lines)]
        assert FACTS[0] in found, width
        rest = "\n".join(lines).replace(key, "")
        for fact in found:
            rest = rest.replace(fact, "")
        assert not any(character.isdigit() for character in rest), (width, lines)
        before = max(before, len(found))
    assert before == len(FACTS)


@pytest.mark.parametrize("width", [1, 8, 20, 39])
@pytest.mark.parametrize("state", ["running", "x" * 300, "日本語" * 50, ""])
def test_head_handles_every_state_and_width(state: str, width: int) -> None:
    first, *rest = lines_of(entry(state), width)
    assert first.startswith("lun")
    assert all(rest)


def test_head_fits_one_line_of_80_columns() -> None:
    assert lines_of(entry(), 78) == ["lunarlander-s1  running  368.6k of 600k steps (61%)  score 231.7  ETA 1.8 min"]


def test_head_shows_phase_of_a_long_iteration() -> None:
    busy: dict[str, Any] = {"phase": "collecting", "phase_done": 0.345}
    assert "collecting 34%" in lines_of(entry(**busy), 120)[0]
    assert "collecting 34%" in lines_of(entry("stalled", **busy), 120)[0]
    assert "collecting" not in "".join(lines_of(entry("crashed", **busy), 120))


def test_head_shows_no_percentage_of_a_solved_run() -> None:
    shown = entry("solved")
    shown.status.state, shown.status.reason = "finished", "solved"
    assert "solved  368.6k of 600k steps  score" in lines_of(shown, 120)[0]
    assert any(span.style == "bold $text-success" for span in format_head(shown, 120, 24).spans)
    shown.status.reason = "total_steps reached"
    assert "368.6k of 600k steps (100%)" in lines_of(shown, 120)[0]


def test_head_says_who_stopped_the_run() -> None:
    assert lines_of(entry("stopped", reason="stopped by Ctrl-C"), 78)[1:] == ["stopped by Ctrl-C"]
    assert len(lines_of(entry(reason="stopped by Ctrl-C"), 78)) == 1  # it is running again


def test_head_shortens_health_warnings_to_names_if_needed() -> None:
    health = [{"name": name, "since": 1, "text": "what it means and what would help " * 5} for name in ("kl", "critic")]
    sick = entry(note="look at this again", health=health)
    tall = lines_of(sick, 78, 60)
    heads = [line[:24] for line in tall if line.startswith("! ")]
    assert heads == ["! kl since step 1: what ", "! critic since step 1: w"]
    low = lines_of(sick, 78, 24)
    assert low[1:] == ["! kl, critic (press 6 for details)", "note: look at this again"]
    assert lines_of(sick, 78, 24, "events")[1] == "! kl, critic"


@pytest.mark.parametrize("state", ["crashed", "stalled"])
def test_state_without_reason_is_explained(state: str) -> None:
    assert lines_of(entry(state), 100)[1].startswith("The process")
    place, other = ("events", "log") if state == "crashed" else ("log", "events")
    assert ["Press" in lines_of(entry(state), 100, tab=tab)[1] for tab in (place, other, "")] == [False, True, False]


def test_head_names_the_metric_of_another_program() -> None:
    log = replace(entry("log"), foreign=True, score_tag="rollout/ep_rew_mean")
    assert lines_of(log, 120)[0].endswith("  rollout/ep_rew_mean 231.7  best 240.1  ETA 1.8 min")
    assert lines_of(entry(), 120)[0].count("(greedy)") == 1
    assert "(greedy)" not in lines_of(log, 120)[0]
    assert max(map(display_width, lines_of(replace(log, score_tag="train/reward (日本語 " + "x" * 90), 60))) <= 60


def test_overlong_text_is_truncated_with_an_ellipsis() -> None:
    assert lines_of(entry("failed", reason="it broke " * 60), 78)[1].endswith("~")


def test_differences_handle_header_names_and_empty_text() -> None:
    lines = difference_lines({"option": {"seed": 1, "recipe": ""}, "b": {"seed": 2}}, 80)
    assert [line.split() for line in lines] == [["option", "option'", "b"], ["seed", "1", "2"]]


def test_differences_fit_any_width() -> None:
    tables = {f"run-{number}": {"seed": number, "optim.lr": 0.1, "ppo.clip": number / 10} for number in range(6)}
    for width, first in ((80, "option"), (30, "seed"), (16, "seed")):
        lines = difference_lines(tables, width)
        assert lines[0].split()[0] == first
        assert max(map(len, lines)) <= width
        assert "optim.lr" not in "\n".join(lines)
    clip = difference_lines({name: {"ppo.clip": 0.1 if name in "ab" else ""} for name in "abc" * 2}, 12)
    assert clip == ["ppo.clip", "  0.1: a, b", "  not set: c"]
