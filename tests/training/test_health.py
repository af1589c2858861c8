"""Health checks: each one detects its problem, and none warns about a healthy run."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from ppo_unified.config.schema import PPO, Optim
from ppo_unified.engine.rollout import Rollout
from ppo_unified.testing import BanditAdapter
from ppo_unified.training.health import CHECKS, CRITIC, PERSIST, Health
from tests.toys import run_engine

HEALTHY_METRICS = {
    "policy/kl": 0.01,
    "policy/clip_fraction": 0.15,
    "policy/entropy": 1.0,
    "policy/action_clip_fraction": 0.3,
    "policy/action_spread": 0.2,
    "value/explained_variance": 0.5,
    "loss/value": 1.0,
    "value/mean": 5.0,
    "invariant/first_ratio_error": 1e-7,
    "invariant/optimizer_steps_error": 0.0,
    "invariant/gae_error": 1e-6,
    "optim/grad_norm": 0.5,
    "ref/kl": 3.0,
    "reward/score": 1.0,
    "reward/true": 1.0,
    "reward/score_std": 0.5,
    "response/length": 20.0,
    "response/eos_rate": 0.9,
    "response/repetition": 0.05,
}
BAD_METRICS: dict[str, dict[str, float]] = {  # check name -> metrics that make it warn
    "kl": {"policy/kl": 0.5},
    "clip_fraction": {"policy/clip_fraction": 0.8},
    "entropy": {"policy/entropy": 1e-4},
    "action_clipping": {"policy/action_clip_fraction": 0.98},
    "action_spread": {"policy/action_spread": 1e-3},
    "explained_variance": {"value/explained_variance": -1.0},
    "dead_critic": {"value/explained_variance": 1e-3},
    "first_ratio": {"invariant/first_ratio_error": 0.05},
    "optimizer_steps": {"invariant/optimizer_steps_error": 2.0},
    "gae": {"invariant/gae_error": 0.5},
    "grad_norm": {"optim/grad_norm": 50.0},
    "ref_kl": {"ref/kl": 60.0},
    "gold": {"reward/score": 4.0, "reward/true": -2.0},
    "length": {"response/length": 50.0},
    "eos_rate": {"response/eos_rate": 0.1},
    "repetition": {"response/repetition": 0.6},
    "reward_spread": {"reward/score_std": 0.0},
}
FIRST_BAD = 40  # first iteration with bad metrics
FROM_START = ("action_clipping", "action_spread")  # checks that warn only if the problem exists from the start


def history(bad: Mapping[str, float], healthy_again: int = 10**9, length: int = 80) -> list[dict[str, float]]:
    """Return metrics per iteration: healthy until FIRST_BAD, then bad, then healthy again from `healthy_again` on."""
    return [HEALTHY_METRICS | (dict(bad) if FIRST_BAD <= number < healthy_again else {}) for number in range(length)]


def find_fired_checks(metrics: Iterable[Mapping[str, float]]) -> set[str]:
    """Return the names of the checks that warned in any iteration."""
    health, fired = Health(watched=("reward/true",)), set()
    for step, iteration in enumerate(metrics):
        health.update(step, iteration)
        fired |= {warning["name"] for warning in health.active_warnings()}
    return fired


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name)
def test_each_health_check_detects_only_its_problem(check) -> None:  # type: ignore[no-untyped-def]
    bad = BAD_METRICS[check.name]
    always = [HEALTHY_METRICS | bad] * 80
    assert find_fired_checks(always if check.name in FROM_START else history(bad)) == {check.name}


@pytest.mark.parametrize("name", FROM_START)
def test_converged_policy_may_saturate_or_repeat_actions(name: str) -> None:
    assert not find_fired_checks(history(BAD_METRICS[name]))


@pytest.mark.parametrize("name", BAD_METRICS)
def test_one_bad_iteration_raises_no_warning(name: str) -> None:
    one = history(BAD_METRICS[name], healthy_again=FIRST_BAD + 1)
    assert not find_fired_checks(one)


def test_accurate_critic_raises_no_warning() -> None:
    """When CartPole is solved, all returns are equal and the explained variance consists of rounding errors."""
    solved = {"value/explained_variance": -2.0, "loss/value": 1e-6, "value/mean": 50.0}
    assert not find_fired_checks(history(solved))
    assert find_fired_checks(history(solved | {"loss/value": 1.0})) == {"explained_variance"}
    assert find_fired_checks(history(solved | {"value/mean": 0.0})) == {"explained_variance"}


SOLVED_METRICS = {  # check name -> metrics of a run whose policy is deterministic and always gets the best score
    "entropy": {"policy/entropy": 1e-4},
    "reward_spread": {"reward/score_std": 0.0},
}


def fired_with_score(
    scores: Mapping[int, float], bad: Mapping[str, float], threshold: float | None = None, tag: str = "eval/score"
) -> set[str]:
    """Return the checks that warn if a score has the given values from the given iterations on.

    There is an evaluation in every tenth iteration.
    """
    health, fired, score = Health(threshold=threshold), set(), 0.0
    for step, metrics in enumerate(history(bad)):
        score = scores.get(step, score)
        evaluation = step % 10 == 0 or tag != "eval/score"
        health.update(step, metrics | ({tag: score} if evaluation else {}))
        fired |= {warning["name"] for warning in health.active_warnings()}
    return fired


@pytest.mark.parametrize("name", SOLVED_METRICS)
def test_deterministic_policy_is_healthy_if_the_task_is_solved(name: str) -> None:
    bad, best = SOLVED_METRICS[name], {20: 0.5, 30: 0.7}
    assert not fired_with_score(best, bad, threshold=0.7)
    assert not fired_with_score({0: 0.7}, bad, threshold=0.7)  # the first evaluation reached it
    assert fired_with_score(best, bad, threshold=0.8) == {name}
    assert fired_with_score(best | {50: 0.3}, bad, threshold=0.7) == {name}  # has fallen again
    assert fired_with_score(best | {50: float("nan")}, bad, threshold=0.7) == {name}  # its value is unknown
    assert fired_with_score(best | {50: float("nan"), 60: 0.7}, bad, threshold=0.7) == {name}
    assert fired_with_score(best | {70: float("inf")}, bad, threshold=0.7) == {name}


@pytest.mark.parametrize("name", SOLVED_METRICS)
@pytest.mark.parametrize("tag", ["eval/score", "episode/return", "reward/score"])
def test_premature_collapse_is_detected_if_the_score_rose(name: str, tag: str) -> None:
    """Without a threshold, a plateau cannot be distinguished from a solved task."""
    scores = {step: 20.0 + min(step, 40) / 10 for step in range(80)}
    assert fired_with_score(scores, SOLVED_METRICS[name], tag=tag) == {name}
    assert fired_with_score(scores, SOLVED_METRICS[name], threshold=490.0, tag=tag) == {name}


def test_small_gradients_of_a_solved_task_are_no_spikes() -> None:
    """Usual gradients are tiny once a task is solved, so ordinary ones are many times larger."""
    norms = [0.5] * 20 + [1e-4] * 40 + [0.02, 1e-4] * 10
    assert not find_fired_checks(HEALTHY_METRICS | {"optim/grad_norm": norm} for norm in norms)
    assert find_fired_checks(HEALTHY_METRICS | {"optim/grad_norm": 400 * norm} for norm in norms[20:]) == {"grad_norm"}


def test_warning_and_recovery_are_reported_once() -> None:
    health, events = Health(), []
    for step, metrics in enumerate(history(BAD_METRICS["clip_fraction"], healthy_again=60)):
        events += [(step, line) for line in health.update(step, metrics)]
    (began, warning), (ended, recovery) = events
    assert warning.startswith("clip_fraction: ")
    assert recovery == "clip_fraction recovered."
    assert FIRST_BAD + PERSIST <= began < 60 + PERSIST <= ended
    assert health.active_warnings() == []


@pytest.mark.parametrize("name", BAD_METRICS)
def test_health_checks_are_identical_after_a_resume(name: str) -> None:
    """A state that was saved as JSON and loaded continues with the same warnings."""
    whole = Health()
    parts = Health()
    for step, metrics in enumerate(history(BAD_METRICS[name], healthy_again=65)):
        assert parts.update(step, metrics) == whole.update(step, metrics)
        assert parts.active_warnings() == whole.active_warnings()
        if step % 7 == 3:
            state = json.loads(json.dumps(parts.state_dict(), allow_nan=False))
            parts = Health()
            parts.load_state_dict(state)


def test_health_history_is_bounded() -> None:
    health, sizes = Health(), []
    for step, metrics in enumerate(history({}, length=300)):
        health.update(step, metrics)
        sizes.append(sum(len(track.recent) + len(track.start) for track in health.tracks.values()))
    assert sizes[100] == sizes[-1]
    assert not health.active_warnings()


def test_critic_checks_are_skipped_without_critic() -> None:
    assert not any(set(check.reads) & set(CRITIC) for check in Health(has_critic=False).checks)


def test_nan_metric_is_ignored() -> None:
    assert not find_fired_checks(HEALTHY_METRICS | {"policy/kl": value} for value in [float("nan"), float("inf")] * 20)


# Faulty runs


class RandomRewardBandit(BanditAdapter):
    """A bandit with random rewards, which a critic cannot predict."""

    def collect(self) -> Rollout:
        rollout = super().collect()
        return replace(rollout, rewards=torch.randn(rollout.rewards.shape, generator=self.generator))


class AlternatingBandit(BanditAdapter):
    """A bandit that rewards the right and the wrong arm in turn, so that each iteration reverses the last one."""

    def __init__(self) -> None:
        super().__init__()
        self.number = 0

    def collect(self) -> Rollout:
        rollout, self.number = super().collect(), self.number + 1
        return replace(rollout, rewards=rollout.rewards if self.number % 2 else 1 - rollout.rewards)


class WrongLogprobBandit(BanditAdapter):
    """A bandit that records wrong log-probs in its rollouts."""

    def collect(self) -> Rollout:
        rollout = super().collect()
        return replace(rollout, logprobs=rollout.logprobs + 0.05)


class RewardBurstBandit(BanditAdapter):
    """A bandit whose rewards are 1000 times larger in every other iteration after the 40th."""

    def __init__(self) -> None:
        super().__init__()
        self.number = 0

    def collect(self) -> Rollout:
        rollout, self.number = super().collect(), self.number + 1
        scale = 1000.0 if self.number > 40 and self.number % 2 else 1.0
        return replace(rollout, rewards=scale * rollout.rewards)


def test_entropy_collapse_is_detected() -> None:
    assert "entropy" in find_fired_checks(
        run_engine(BanditAdapter(64), 40, PPO(epochs=4, minibatches=2), Optim(lr=0.3))
    )


def test_large_policy_step_is_detected() -> None:
    fickle = run_engine(AlternatingBandit(), 25, PPO(epochs=8, minibatches=2, entropy_coef=0.3), Optim(lr=0.3))
    assert {"kl", "clip_fraction"} <= find_fired_checks(fickle)


def test_unlearning_critic_is_detected() -> None:
    frozen = Optim(joint=False, critic_lr=1e-9)
    assert "dead_critic" in find_fired_checks(
        run_engine(RandomRewardBandit(512), 40, PPO(epochs=1, minibatches=1), frozen)
    )


def test_noise_fitting_critic_is_detected() -> None:
    wild = Optim(joint=False, critic_lr=1.0)
    assert "explained_variance" in find_fired_checks(
        run_engine(RandomRewardBandit(4, 4), 45, PPO(epochs=4, minibatches=2), wild)
    )


def test_inconsistent_logprobs_raise_a_warning() -> None:
    assert "first_ratio" in find_fired_checks(run_engine(WrongLogprobBandit(), 16, PPO(epochs=1, minibatches=1)))


def test_gradient_bursts_are_detected() -> None:
    plain = PPO(epochs=1, minibatches=1, normalize_advantages="none")
    assert "grad_norm" in find_fired_checks(run_engine(RewardBurstBandit(), 60, plain))


@pytest.fixture
def faulty_runs(monkeypatch: pytest.MonkeyPatch) -> Mapping[str, Any]:
    """The faulty runs of benchmarks/health.py by name."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    runs: Mapping[str, Any] = import_module("faulty_runs").FAULTY_RUNS
    return runs


def test_health_benchmark_covers_every_check(faulty_runs: Mapping[str, Any]) -> None:
    assert {name for run in faulty_runs.values() for name in run.provokes} == {check.name for check in CHECKS}
    assert all(run.config().total_iterations for run in faulty_runs.values())


@pytest.mark.parametrize("name", ["skipped-minibatch", "no-state-values"])
def test_engine_defect_is_detected(name: str, faulty_runs: Mapping[str, Any]) -> None:
    def run_checks() -> set[str]:
        return find_fired_checks(run_engine(BanditAdapter(), 16, PPO(epochs=1, minibatches=2)))

    with faulty_runs[name].defect():
        assert run_checks() >= set(faulty_runs[name].provokes)
    assert not run_checks() & set(faulty_runs[name].provokes)


def test_healthy_run_raises_no_warning() -> None:
    gentle = PPO(epochs=2, minibatches=2)
    for seed in range(3):
        assert not find_fired_checks(run_engine(BanditAdapter(64, seed=seed), 40, gentle, Optim(lr=1e-3)))
