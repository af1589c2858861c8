"""The comparison of an independent and a shared critic on the same rollouts."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from envs.llm.adapter import LLMAdapter
from envs.llm.critic_comparison import VARIANTS, CriticCurve, compare_critics, explained_variance
from ppo_unified.cli import critics
from ppo_unified.cli.main import main
from ppo_unified.errors import UsageError
from tests.envs.llm.test_adapter import folder, make_config

__all__ = ["folder"]  # a fixture, used by name

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def curves(folder: Path) -> dict[str, CriticCurve]:
    config = make_config(folder, {"max_new_tokens": 6}, optim={"lr": 3e-3}, ppo={"epochs": 2, "minibatches": 2})
    found = compare_critics(config, {}, 5, CPU)
    return {item.kind: item for item in found if isinstance(item, CriticCurve)}


def test_only_losses_that_reach_the_policy_move_it(curves: dict[str, CriticCurve]) -> None:
    assert tuple(curves) == VARIANTS
    for curve in curves.values():
        assert len(curve.explained) == len(curve.policy_kl) == 4  # before training, and after each of three rollouts
        assert curve.explained[0] == pytest.approx(0, abs=1e-5)  # heads are zero
        assert curve.policy_kl[0] == pytest.approx(0, abs=1e-6)
        assert curve.policy_kl[-1] > 1e-4
    assert curves["independent"].parameters > 1.5 * curves["shared"].parameters
    assert curves["shared"].explained != curves["value-loss-alone"].explained


def test_value_loss_alone_trains_both_kinds_equally(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both are the same function with the same start, so only the KL of the policy differs."""
    monkeypatch.setattr("envs.llm.critic_comparison.VARIANTS", ("independent", "value-loss-alone"))
    config = make_config(folder, {"max_new_tokens": 6}, optim={"lr": 3e-3, "max_grad_norm": 0.0})
    monkeypatch.setattr("envs.llm.critic_comparison.is_alone", lambda kind: True)
    own, shared = (x for x in compare_critics(config, {}, 4, CPU) if isinstance(x, CriticCurve))
    assert own.explained == pytest.approx(shared.explained, abs=1e-4)
    assert own.policy_kl == pytest.approx([0.0] * 3, abs=1e-6)
    assert shared.policy_kl[-1] > 1e-3


def test_rollouts_come_from_the_given_weights(folder: Path) -> None:
    config = make_config(folder, {"max_new_tokens": 6})
    first = list(compare_critics(config, {}, 3, CPU))[-1]
    other = make_config(folder, {"max_new_tokens": 6, "model": str(folder / "other")})
    weights = LLMAdapter(other, CPU).policy.state_dict()
    assert isinstance(first, CriticCurve)
    assert list(compare_critics(config, weights, 3, CPU))[-1].explained != first.explained  # type: ignore[union-attr]


def test_wrong_options_are_reported(folder: Path) -> None:
    with pytest.raises(UsageError, match="--rollouts: expected an integer > 2, got 2"):
        next(compare_critics(make_config(folder), {}, 2, CPU))
    with pytest.raises(UsageError, match="lora_rank: expected 0, got 2"):
        next(compare_critics(make_config(folder, {"lora_rank": 2}), {}, 5, CPU))


def test_equal_rewards_are_reported() -> None:
    error = torch.linspace(0, 1, 1000)
    assert explained_variance(2 * error, error) == pytest.approx(0.75)
    with pytest.raises(UsageError, match=r"expected rewards that differ .* got 0.1 at every token"):
        explained_variance(torch.full((1000,), 0.1), error)


def result(explained: float, kl: float) -> dict[str, Any]:
    return {"explained": [0.0, explained], "policy_kl": [0.0, kl], "seconds": 1.0, "parameters": 9, "memory": 144}


@pytest.mark.parametrize(
    ("own", "words"),
    [
        ((0.5, 0.6, 0.55), "The independent critic predicts better: its explained variance is 0.450 higher (95 %"),
        ((-0.5, -0.6, -0.55), "The shared critic predicts better: its explained variance is 0.650 higher (95 %"),
        ((0.5, -0.4, 0.1), "Neither critic predicts clearly better"),
    ],
)
def test_command_prints_one_verdict(
    own: tuple[float, ...],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def compare(config: Any, source: Any, rollouts: int) -> dict[str, dict[str, Any]]:
        kinds = {"independent": result(own[config.seed - 1], 0.1), "shared": result(0.1, 0.2)}
        return kinds | {critics.ALONE: result(0.3, 0.5)}

    monkeypatch.setattr(critics, "compare", compare)
    assert main(["critics", "arithmetic", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["verdict"].startswith(words)
    assert report["kinds"]["independent"]["explained"][-1] == pytest.approx(sum(own) / 3)
    assert main(["critics", "arithmetic"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert report["verdict"] in text
    assert "by rollouts seen" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["cartpole"], "cartpole: expected a language model, such as the preset arithmetic, got kind 'gym'"),
        (["arithmetic", "--seeds", "1"], r"--seeds: expected 2 to 10 different integers >= 0, got \[1\]"),
        (["arithmetic", "--llm.nothing", "1"], "llm.nothing"),
        (["no-such-run"], "no run 'no-such-run'"),
    ],
)
def test_command_reports_mistakes_in_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["critics", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(message, error)
