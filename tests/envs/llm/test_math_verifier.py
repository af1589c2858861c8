"""Tests of the reward `math`, which compares mathematical expressions."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from envs.llm.rewards import math_verifier
from envs.llm.rewards.functions import check_columns, load_reward
from ppo_unified.errors import UsageError

CASES = [
    ("The answer is 72.", "#### 72", 1.0),
    (r"So x = \boxed{\frac{1}{2}}. Done 7 times.", "0.5", 1.0),
    ("1,234", 1234, 1.0),
    (r"$2\sqrt{3}$", r"\sqrt{12}", 1.0),
    ("$(x+1)^2$", "$x^2+2x+1$", 1.0),
    ("50%", "0.5", 1.0),
    ("73", "72", 0.0),
    ("no number", "72", 0.0),
    ("", "72", 0.0),
    ("__import__('os').system('true')", "72", 0.0),
]


def test_equal_expressions_score_one() -> None:
    reward = load_reward("math")
    responses, answers, expected = zip(*CASES, strict=True)
    assert reward([""] * len(CASES), list(responses), answer=list(answers)) == list(expected)


def test_huge_powers_end_at_the_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    load_reward("math")([""], ["1"], answer=["1"])  # imports math-verify
    monkeypatch.setattr(math_verifier, "TIMEOUT", 0.2)
    assert load_reward("math")([""], ["9^9^9^9"], answer=["72"]) == [0.0]


def test_waiting_for_the_processor_does_not_change_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    import math_verify

    def wait_and_parse(text: str, **options: Any) -> Any:
        time.sleep(1.1 * math_verifier.TIMEOUT)
        return parse(text, **options)

    parse = math_verify.parse
    monkeypatch.setattr(math_verifier, "TIMEOUT", 0.2)
    monkeypatch.setattr(math_verify, "parse", wait_and_parse)
    assert load_reward("math")([""], ["x is 3"], answer=["3"]) == [1.0]


def test_reward_works_outside_the_main_thread() -> None:
    scores: list[float] = []
    thread = threading.Thread(target=lambda: scores.extend(load_reward("math")([""], ["x is 3"], answer=["3"])))
    thread.start()
    thread.join()
    assert scores == [1.0]


def test_answers_are_checked_before_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    check_columns("math", {"answer": ["72", r"\frac{1}{2}", 3]}, "a.jsonl")
    with pytest.raises(
        UsageError, match=r"a.jsonl: 'answer' of prompt 2: expected a number or an expression, got 'two'"
    ):
        check_columns("math", {"answer": ["1", "two"]}, "a.jsonl")
    with pytest.raises(UsageError, match=r"'answer' of prompt 1: expected text or a number, got None"):
        check_columns("math", {"answer": [None]}, "a.jsonl")
    with pytest.raises(UsageError, match=r"missing key 'answer', which llm.reward = 'math' needs"):
        check_columns("math", {}, "a.jsonl")
    monkeypatch.setattr(math_verifier, "find_spec", lambda _: None)
    with pytest.raises(
        UsageError, match=r"llm.reward = 'math' requires math-verify: pip install 'ppo-unified\[math\]'"
    ):
        check_columns("math", {"answer": ["1"]}, "a.jsonl")
