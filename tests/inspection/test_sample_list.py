"""The list of an iteration's samples: its numbers, sorting and filters."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ppo_unified.config.schema import PPO
from ppo_unified.errors import UsageError
from ppo_unified.inspection.sample_list import COLUMNS, SampleList
from ppo_unified.inspection.what_if import Settings, recompute
from tests.inspection.recording import record, record_llm, sequences


@pytest.fixture(scope="module")
def responses(folder: Path) -> SampleList:
    stored, _ = record_llm(folder, {"missing_eos_penalty": 1.0}, {"clip": 0.02, "normalize_advantages": "none"})
    return SampleList.of(stored, recompute(stored, Settings.of(stored)))


def test_rows_add_up_their_steps(responses: SampleList) -> None:
    stored = responses.stored
    found = recompute(stored, Settings.of(stored)).columns
    for number, sample in enumerate(stored.samples()):
        row, own = responses.row(number), (sample.row, sample.columns)
        assert (row.number, row.sample.row, row.length) == (number, sample.row, len(sample.columns))
        assert row.score == pytest.approx(stored.columns["score"][own][-1])
        assert row.kl == pytest.approx(float(stored.columns["kl"][own].sum()), abs=1e-5)
        assert row.cut == found["cut"][own].sum()
        assert row.outside == stored.columns["clipped"][own].sum()
        assert row.advantage == pytest.approx(np.abs(stored.columns["advantage"][own]).mean(), rel=1e-5)
        assert row.prompt == stored.text_before(sample)
        assert row.response == "".join(stored.columns["text"][own].tolist())
    assert responses.columns["cut"].any()


def test_episodes_have_returns_instead_of_scores() -> None:
    stored, _ = record(sequences(), PPO(epochs=1), {"kind": "sequences"})
    listed = SampleList.of(stored, recompute(stored, Settings.of(stored)))
    assert "kl" not in listed.columns
    for number, sample in enumerate(stored.samples()):
        row = listed.row(number)
        assert row.score == pytest.approx(stored.columns["reward"][sample.row, sample.columns].sum())
        assert (row.kl, row.prompt, row.response) == (None, "", "")
    with pytest.raises(UsageError, match="this iteration has no kl"):
        listed.filter("kl>1")
    with pytest.raises(ValueError, match="sort key: expected one of number, score"):
        listed.sort("kl")


@pytest.mark.parametrize("key", COLUMNS)
def test_sorting_is_stable(responses: SampleList, key: str) -> None:
    values = responses.columns[key]
    order = responses.sort(key)
    expected = sorted(range(len(values)), key=lambda n: (values[n] if key == "number" else -values[n], n))
    assert order == expected
    reverse = responses.sort(key, numbers=[5, 3, 1], reverse=True)
    assert reverse == sorted([1, 3, 5], key=lambda n: (-values[n] if key == "number" else values[n], n))


def test_best_and_worst_have_extreme_scores(responses: SampleList) -> None:
    scores = responses.columns["score"]
    assert scores[responses.best()] == scores.max() > scores[responses.worst()] == scores.min()


def test_filters_select_matching_samples(responses: SampleList) -> None:
    columns, numbers = responses.columns, range(len(responses.samples))
    middle = float(np.median(columns["score"]))
    prompt = responses.row(0).prompt
    expected = {
        "": list(numbers),
        "cut": [n for n in numbers if columns["cut"][n] > 0],
        "!cut": [n for n in numbers if columns["cut"][n] == 0],
        "OUTSIDE": [n for n in numbers if columns["outside"][n] > 0],
        "wrong": [n for n in numbers if columns["score"][n] <= 0],
        f"score<{middle} length>=3": [n for n in numbers if columns["score"][n] < middle and columns["length"][n] >= 3],
        "cut>1|kl>0": [n for n in numbers if columns["cut"][n] > 1 or columns["kl"][n] > 0],
        f'prompt="{prompt}"': [n for n in numbers if responses.row(n).prompt == prompt],
        "e": [n for n in numbers if "e" in "|".join(responses.texts[n]).lower()],
        "response:e": [n for n in numbers if "e" in responses.texts[n][1].lower()],
    }
    for expression, matches in expected.items():
        assert responses.filter(expression) == matches, expression
    for expression in ("cut", "prompt=" + f'"{prompt}"', "response:e"):
        assert 0 < len(expected.get(expression, [0])) < len(numbers) + 1


@pytest.mark.parametrize(
    ("expression", "message"),
    [("scoer>1", "unknown key 'scoer'; did you mean 'score'?"), ("kl>x", "kl expects a number, got 'x'"),
     ("xyz:1", "unknown key 'xyz'; known keys: number, score"), ("prompt>1", "'prompt' is text, not a number")],
)  # fmt: skip
def test_invalid_filters_name_the_mistake(responses: SampleList, expression: str, message: str) -> None:
    with pytest.raises(UsageError, match=message.replace("?", r"\?")):
        responses.filter(expression)
