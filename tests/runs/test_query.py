"""The filter of `runs`: set operations on many runs, and one-line errors for invalid queries."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from ppo_unified import load_preset
from ppo_unified.config.registry import config_model
from ppo_unified.config.schema import known_options
from ppo_unified.errors import UsageError
from ppo_unified.runs.folder import Run, Status
from ppo_unified.runs.notes import read_note_line, write_note
from ppo_unified.runs.query import flatten, lookup, parse, read_options

TERMS = ("cartpole", "FAILED", "state:failed", "score>100", "score<=100", "seed:1", "preset=pendulum", "optim.lr<0.002")


@pytest.fixture(scope="module")
def many_runs(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Run, Status]]:
    """Runs with different presets, states, scores, seeds and learning rates, each with a config.toml."""
    root = tmp_path_factory.mktemp("runs")
    found = []
    for number in range(48):
        preset = ("cartpole", "pendulum", "acrobot")[number % 3]
        status = Status(
            name=f"{preset}-s{number % 12}" + ("-failed-twice" if number == 7 else ""),
            preset=preset,
            kind="gym",
            state=("finished", "failed", "stopped", "crashed")[number // 3 % 4],
            score=None if number % 5 == 0 else number * 10.0,
            seed=number % 12,
            reason="out of memory" if number % 8 == 1 else "",
        )
        run = Run(root / f"{number}")
        run.path.mkdir()
        config = load_preset("cartpole", seed=status.seed, optim={"lr": 0.001 * (1 + number % 4)})
        run.config.write_text(config.to_toml(), encoding="utf-8")
        found.append((run, status))
    return found


def select(many_runs: list[tuple[Run, Status]], text: str) -> set[str]:
    query = parse(text)
    lookups = {
        run.name: lookup(status, status.state, partial(read_options, run), partial(read_note_line, run))
        for run, status in many_runs
    }
    return {name for name, values in lookups.items() if query.matches(values)}


def pairs() -> Iterator[tuple[str, str]]:
    yield from ((a, b) for a in TERMS for b in TERMS)


def test_each_term_selects_some_runs(many_runs: list[tuple[Run, Status]]) -> None:
    for term in TERMS:
        assert 0 < len(select(many_runs, term)) < len(many_runs), term


def test_space_means_and_bar_means_or(many_runs: list[tuple[Run, Status]]) -> None:
    selected = {term: select(many_runs, term) for term in TERMS}
    for a, b in pairs():
        both, either = selected[a] & selected[b], selected[a] | selected[b]
        assert select(many_runs, f"{a} {b}") == both
        assert select(many_runs, f"{a}|{b}") == select(many_runs, f"{a} | {b}") == either


def test_bar_binds_tighter_than_space(many_runs: list[tuple[Run, Status]]) -> None:
    expected = (select(many_runs, "failed") | select(many_runs, "crashed")) & select(many_runs, "preset:pendulum")
    assert select(many_runs, "failed|crashed preset:pendulum") == expected
    assert select(many_runs, "preset:pendulum failed | crashed") == expected


def test_bang_negates_and_two_cancel(many_runs: list[tuple[Run, Status]]) -> None:
    everything = select(many_runs, "")
    assert len(everything) == len(many_runs)
    for term in TERMS:
        assert select(many_runs, f"!{term}") == everything - select(many_runs, term)
        assert select(many_runs, f"!!{term}") == select(many_runs, term)
    assert select(many_runs, "preset!=pendulum") == select(many_runs, "!preset=pendulum")


def test_comparisons_partition_runs_with_the_number(many_runs: list[tuple[Run, Status]]) -> None:
    less, equal, more = (select(many_runs, f"score{op}170") for op in ("<", "=", ">"))
    assert equal
    assert not less & equal
    assert not more & equal
    assert less | equal | more == {run.name for run, status in many_runs if status.score is not None}
    assert select(many_runs, "score<=170") == less | equal
    assert select(many_runs, "score>=170") == more | equal


def test_colon_compares_numbers_and_matches_substrings(many_runs: list[tuple[Run, Status]]) -> None:
    assert select(many_runs, "seed:1") == {run.name for run, status in many_runs if status.seed == 1}  # not 10, 11
    assert select(many_runs, "seed:1.0") == select(many_runs, "seed:1")
    assert select(many_runs, "preset:CART") == select(many_runs, "preset=cartpole")
    assert not select(many_runs, "preset=cart")


def test_quotes_protect_spaces_bars_and_signs(many_runs: list[tuple[Run, Status]]) -> None:
    expected = {run.name for run, status in many_runs if status.reason}
    assert select(many_runs, 'reason:"out of memory"') == expected
    assert select(many_runs, 'reason:"of mem"') == expected
    assert not select(many_runs, '"a|b"')
    assert not select(many_runs, '"score>1"')  # a quoted text is a word, and no run has such a name


def test_words_and_note_terms_match_the_note(many_runs: list[tuple[Run, Status]]) -> None:
    write_note(many_runs[3][0], "Baseline, lr too high\nsecond line")
    try:
        assert (
            select(many_runs, 'note:"LR too"') == select(many_runs, "baseline") == select(many_runs, "note:,") == {"3"}
        )
        assert select(many_runs, "!baseline") == select(many_runs, "") - {"3"}
        assert not select(many_runs, "second")  # only the first line, which the lists show
    finally:
        write_note(many_runs[3][0], "")


def test_options_are_read_from_config_toml(many_runs: list[tuple[Run, Status]]) -> None:
    assert select(many_runs, "optim.lr=0.002") == {run.name for run, _ in many_runs if int(run.name) % 4 == 1}
    assert select(many_runs, "gym.env-id:cartpole optim.anneal:true policy.hidden:64") == select(many_runs, "")
    assert not select(many_runs, "ppo.normalize-advantages=batch")


def test_config_toml_is_read_only_for_option_terms(tmp_path: Path) -> None:
    values = lookup(Status(name="a", score=3.0), "finished", partial(read_options, Run(tmp_path / "gone")), str)
    assert parse("a score>2 state:finished").matches(values)
    with pytest.raises(UsageError, match=r"config\.toml: file not found"):
        parse("ppo.clip>0").matches(values)


def test_state_term_uses_the_shown_state(tmp_path: Path) -> None:
    values = lookup(Status(name="a", state="running"), "crashed", dict, str)
    assert parse("state:crashed crashed").matches(values)
    assert not parse("running").matches(values)


def test_solved_run_matches_solved_and_finished() -> None:
    solved = lookup(Status(name="a", state="finished", reason="solved"), "solved", dict, str)
    finished = lookup(Status(name="a", state="finished", reason="total_steps reached"), "finished", dict, str)
    for text in ("solved", "state:solved", "state=solved", "state!=stopped finished"):
        assert parse(text).matches(solved), text
    for text in ("finished", "state:finished", "state=finished"):
        assert parse(text).matches(solved), text
        assert parse(text).matches(finished), text
    for text in ("solved", "state=solved"):
        assert not parse(text).matches(finished), text
    assert not parse("finished !solved").matches(solved)
    assert parse("finished !solved").matches(finished)


def test_flatten_joins_tables_by_dots() -> None:
    assert flatten({"a": 1, "b": {"c": [2], "d": {"e": "x"}}, "f": {}}) == {"a": 1, "b.c": [2], "b.d.e": "x"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("scor>3", r"unknown key 'scor'; did you mean 'score'\?"),
        ("ppo.clp:0.2", r"unknown key 'ppo.clp'; did you mean 'ppo.clip'\?"),
        ("zzzzzz:1", "unknown key 'zzzzzz'; known keys: options such as optim.lr, and name, preset"),
        ("score>high", "score expects a number, got 'high'"),
        ("seed:abc", "seed expects a number, got 'abc'"),
        ("optim.lr>fast", "optim.lr expects a number, got 'fast'"),
        ("eval.threshold>x", "eval.threshold expects a number, got 'x'"),
        ("state>3", "'state' is text, not a number; write state:3"),
        ("optim.anneal>0", "'optim.anneal' is text, not a number"),
        ("score>", "missing value; write score>VALUE"),
        ("name:", "missing value; write name:VALUE"),
        ("!", "missing word; write one"),
        ("|a", "must be between two terms"),
        ("a||b", "must be between two terms"),
        ("a|", "must be between two terms"),
        ('reason:"out of', "missing closing quote"),
    ],
)
def test_bad_query_is_a_one_line_error(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        parse(text)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"query {text!r}: ")


@pytest.mark.parametrize(
    ("text", "full"),
    [
        ("lr>1e-3", "did you mean 'optim.lr'?"),
        ("best>3", "did you mean 'best_score' or 'best_step'?"),
        ("done>50", "did you mean 'phase_done'?"),
        ("Solved>1", "did you mean 'solved_step'?"),
        ("hidden:64", "did you mean 'policy.hidden'?"),
        ("every-s>1", "did you mean 'checkpoint.every_s'?"),
        ("kl:k1", "did you mean 'llm.kl'?"),  # the option, although there are metrics of this name
        ("learning_rate=1e-3", "did you mean 'optim.lr'?"),
        ("clip_range:0.2", "did you mean 'ppo.clip'?"),
        (
            "batch_size:64",
            "did you mean 'ppo.minibatches'? (ppo.minibatches is the number of minibatches",
        ),
        ("steps>10", "did you mean 'step'?"),
        ("return>400", "episode/return and eval/return cannot be used in queries; use 'score', 'best_score' or"),
        ("eval/score>400", "eval/score cannot be used in queries; use 'score', 'best_score' or an option"),
        ("episode/info/goal>1", "episode/info/goal cannot be used in queries; use 'score', 'best_score' or an option"),
    ],
)
def test_short_and_foreign_keys_get_full_names(text: str, full: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(f"cartpole {text}")
    assert full in str(caught.value)
    assert str(caught.value).startswith(f"query {text!r}: unknown key ")


def test_every_option_is_found_by_its_short_name() -> None:
    for option in known_options(config_model("llm")):
        section, _, key = option.rpartition(".")
        if section:
            with pytest.raises(UsageError, match=re.escape(f"did you mean '{option}'")):
                parse(f"{key}:1")


def test_ambiguous_short_name_lists_all_full_names(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = {"seed": int, "a.width": int, "b.width": int}
    monkeypatch.setattr("ppo_unified.runs.query._option_kinds", lambda: kinds)
    with pytest.raises(UsageError, match=r"unknown key 'width'; did you mean 'a.width' or 'b.width'\?"):
        parse("width>3")
