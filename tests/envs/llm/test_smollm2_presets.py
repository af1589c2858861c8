"""Tests of the prompts and the reward of the preset `smollm2-sentiment`."""

from __future__ import annotations

import pytest

from envs.llm import tasks
from envs.llm.rewards import vader
from envs.llm.rewards.functions import find_function, load_reward
from ppo_unified.errors import UsageError


def test_openings_are_split_and_neutral() -> None:
    training, held_out = ([str(prompt) for prompt in part.prompts] for part in tasks.task_prompts("openings"))
    assert (len(training), len(held_out)) == (376, 200)
    assert len({*training, *held_out}) == 576
    assert set(vader.vader([], [*training, *held_out])) == {0.0}


def test_vader_scores_only_the_response() -> None:
    reward = load_reward("vader")
    prompts, responses = ["I hate it, but the soup was", "The soup was"], [" great and lovely.", " terrible."]
    assert reward(prompts, responses) == pytest.approx([0.84, -0.48], abs=0.01)


def test_missing_vader_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vader, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"llm.reward = 'vader' needs the package vaderSentiment: pip install"):
        find_function("vader")
