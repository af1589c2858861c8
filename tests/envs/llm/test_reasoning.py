"""Tests of the prompts and rewards of reasoning-gym, which is an optional package."""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from envs.llm import reasoning
from envs.llm.options import LLMConfig
from envs.llm.reasoning import UNSAFE, extract_answer, problems, reasoning_gym
from envs.llm.rewards.functions import check_columns, load_reward
from ppo_unified import run
from ppo_unified.cli.main import main
from ppo_unified.errors import UsageError
from tests.models import save_model

NAME = "reasoning-gym:chain_sum,size=30,min_terms=2,max_terms=2"


def test_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reasoning, "find_spec", lambda _: None)
    with pytest.raises(UsageError, match=r"chain_sum: requires reasoning-gym: pip install 'ppo-unified\[reasoning\]'"):
        problems("reasoning-gym:chain_sum")


def test_task_sets_its_own_reward_unless_another_is_given() -> None:
    def sources(**llm: str) -> list[str]:
        config = LLMConfig.model_validate({"llm": {"model": "tiny", "prompts": NAME} | llm})
        return [reward.source for reward in config.llm.rewards]

    assert sources() == ["reasoning-gym"]
    assert sources(reward="exact") == ["exact"]
    assert sources(prompts="arithmetic") == ["sentiment"]


def test_problems_are_deterministic_and_held_out_ones_are_new() -> None:
    pytest.importorskip("reasoning_gym")
    training, held_out = problems(NAME)
    assert problems(NAME) == (training, held_out)
    assert len(training.prompts) == 30
    assert len(held_out.prompts) > 80
    assert not set(map(str, training.prompts)) & set(map(str, held_out.prompts))
    assert training.location(3) == f"{NAME}, problem 4"
    other, _ = problems(NAME + ",seed=7")
    assert other.prompts != training.prompts


def test_held_out_problems_may_repeat_if_there_are_no_others() -> None:
    pytest.importorskip("reasoning_gym")
    training, held_out = problems("reasoning-gym:coin_flip,size=1000,min_trials=3,max_trials=3")
    assert held_out.prompts
    assert len(training.prompts) == 1000


def test_verifier_scores_the_answer_tag_or_the_whole_response() -> None:
    pytest.importorskip("reasoning_gym")
    data, _ = problems(NAME)
    right = [str(answer) for answer in data.columns["answer"][:4]]
    responses = [
        f" {right[0]}\n",
        f"so <answer>0</answer>, no: <answer> {right[1]} </answer>",
        f"it is {right[2]}!",
        "x",
    ]
    columns = {name: values[:4] for name, values in data.columns.items()}
    scores = reasoning_gym(["p"] * 4, responses, **columns)
    assert scores[:2] == [1.0, 1.0]
    assert 0 < scores[2] < 1  # chain_sum gives a partial score to a longer answer that contains the right one
    assert scores[3] == 0.0
    assert load_reward("reasoning-gym")(["p"] * 4, responses, **columns) == scores
    assert extract_answer(" a b\n") == "a b"


def test_settings_of_the_task_reach_its_verifier(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("reasoning_gym")
    data, _ = problems("reasoning-gym:decimal_arithmetic,size=2,max_num_decimal_places=5")
    verifier = reasoning._verifier(data.columns["task"][0])
    assert verifier.config.max_num_decimal_places == 5


def test_failing_verifier_scores_zero() -> None:
    pytest.importorskip("reasoning_gym")

    class Broken:
        def score_answer(self, answer: str, entry: dict[str, Any]) -> float:
            raise ValueError(answer)

    assert reasoning._score(Broken(), "a", {}) == 0.0


WRONG = {
    "reasoning-gym:chain_sm": "unknown task 'chain_sm' of reasoning-gym; did you mean 'chain_sum'?",
    "reasoning-gym:": "unknown task '' of reasoning-gym",
    "reasoning-gym:chain_sum,max_term=2": "the task has no setting 'max_term'; did you mean 'max_terms'?",
    "reasoning-gym:chain_sum,hard=true": "the task has no setting 'hard'; expected one of min_terms, ",
    "reasoning-gym:chain_sum,size=0": "size: expected an integer >= 1, got 0",
    "reasoning-gym:chain_sum,seed=true": "seed: expected an integer >= 0, got True",
    "reasoning-gym:chain_sum,size": "expected settings such as 'size=500,min_terms=2', in which text",
    "reasoning-gym:chain_sum,min_terms=9": "invalid settings (AssertionError: max_terms must be >= min_terms)",
    'reasoning-gym:chain_sum,min_terms="a"': "invalid settings (TypeError: ",
}


@pytest.mark.parametrize("name", WRONG)
def test_invalid_task_is_a_one_line_error(name: str) -> None:
    pytest.importorskip("reasoning_gym")
    with pytest.raises(UsageError) as caught:
        problems(name)
    assert str(caught.value).startswith(f"{name}: {WRONG[name]}")
    assert "\n" not in str(caught.value)


def test_unsafe_verifiers_and_other_prompts_are_rejected() -> None:
    columns: dict[str, list[Any]] = {"answer": ["a"], "metadata": [{}], "task": ["countdown,size=1"]}
    with pytest.raises(
        UsageError, match="is not supported for countdown, because its verifier runs responses as Python"
    ):
        check_columns("reasoning-gym", columns, "reasoning-gym:countdown")
    with pytest.raises(UsageError, match=r"a.jsonl: llm.reward = 'reasoning-gym' requires problems of reasoning-gym"):
        check_columns("reasoning-gym", columns, "a.jsonl")


def test_unsafe_verifiers_are_those_that_call_eval() -> None:
    """A new version of the package may add such verifiers: this test finds them in the source code."""
    pytest.importorskip("reasoning_gym")
    from reasoning_gym.factory import DATASETS

    found = set()
    for name, (kind, _) in DATASETS.items():
        code = inspect.getsource(kind.score_answer)
        called = {word for word in re.findall(r"\w+", code) if re.fullmatch("eval|exec|parse_expr|sympify", word)}
        own = getattr(sys.modules[kind.__module__], "parse_expr", None)
        if own is not None and own.__module__ == kind.__module__:
            called.discard("parse_expr")  # a function of the task, without eval
        if called:
            found.add(name)
    assert found - {"number_sorting"} == set(UNSAFE)  # number_sorting evaluates only its own answer


def test_run_on_a_task_trains_and_failures_leave_no_folder(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("reasoning_gym")
    model, runs = save_model(tmp_path / "lm"), tmp_path / "runs"
    llm = {"model": str(model), "prompts": NAME, "max_new_tokens": 4, "rollout_batch": 4}
    run(LLMConfig.model_validate({"llm": llm, "total_steps": 0, "total_iterations": 1, "threads": 1}), runs, "a")
    arguments = ["train", "llm", "--llm.model", str(model), "--runs", str(runs)]
    assert main([*arguments, "--llm.prompts", "reasoning-gym:chain_sm"]) == 2
    assert "did you mean 'chain_sum'?" in capfd.readouterr().err
    assert [path.name for path in runs.iterdir() if path.is_dir() and path.name != "a"] == []
