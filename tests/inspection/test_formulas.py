"""The inspector's formulas in numpy equal the tensors of the engine and of the LLM adapter."""

from __future__ import annotations

from dataclasses import fields, replace
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from envs.llm import kl as llm
from ppo_unified.config.schema import PPO
from ppo_unified.engine import ppo as engine
from ppo_unified.engine.batch import Batch, standardize
from ppo_unified.engine.rollout import Rollout
from ppo_unified.inspection import formulas
from ppo_unified.inspection.formulas import Array, Objective, Steps
from tests.toys import random_rollout, with_next_values

OBJECTIVES = ("clip", "penalty", "ratio", "policy-gradient")
GAMMA, LAM = 0.9, 0.8


def steps_of(rollout: Rollout) -> Steps:
    tensors = (rollout.rewards, rollout.values, rollout.next_values, rollout.continues, rollout.mask)
    return Steps(*(x.numpy() for x in tensors))


def assert_equal(found: Array, expected: Tensor, mask: Tensor | None = None) -> None:
    """Compare at valid steps; results at masked steps must be 0."""
    assert found.shape == tuple(expected.shape)
    if mask is not None:
        assert not found[~mask.numpy()].any()
        expected = torch.where(mask, expected, 0.0)
    np.testing.assert_allclose(found, expected.detach().numpy(), rtol=1e-9, atol=1e-9)


ROLLOUTS = [random_rollout(seed=seed, holes=holes, ragged=ragged) for seed, holes, ragged in
            [(0, 0.0, False), (1, 0.3, False), (2, 0.3, True), (3, 0.8, True)]]  # fmt: skip


@pytest.mark.parametrize("rollout", ROLLOUTS)
def test_advantages_and_targets_equal_the_engine(rollout: Rollout) -> None:
    steps, mask = steps_of(rollout), rollout.mask
    for kind, target in product(("gae", "td", "reward-to-go", "return"), ("lambda", "monte-carlo")):
        ppo = PPO.model_validate({"advantage": kind, "value_target": target, "gamma": GAMMA, "lam": LAM,
                                  "normalize_advantages": "none"})  # fmt: skip
        batch = engine.make_batch(replace(rollout, row_len=mask.shape[1]), ppo)
        kept = mask.any(1).numpy()
        advantages = formulas.advantages_of(kind, steps, GAMMA, LAM)
        assert_equal(advantages[kept], batch.advantages, batch.mask)
        assert_equal(formulas.value_targets(target, steps, GAMMA, LAM)[kept], batch.returns, batch.mask)
        assert_equal(formulas.standardize(advantages, mask.numpy())[kept], standardize(batch.advantages, batch.mask))
    deltas = rollout.rewards + GAMMA * rollout.next_values - rollout.values
    assert_equal(formulas.td_errors(steps, GAMMA), deltas, mask)


def test_gae_equals_its_definition() -> None:
    """A_t = sum over k of (gamma * lam)^k * delta, over the valid steps of the rest of the episode."""
    rollout = with_next_values(random_rollout(seed=5, holes=0.3))
    found = formulas.gae(steps_of(rollout), GAMMA, LAM)
    deltas = (rollout.rewards + GAMMA * rollout.next_values - rollout.values).tolist()
    for row, own in enumerate(x.nonzero().flatten().tolist() for x in rollout.mask):
        for i, t in enumerate(own):
            total, factor = 0.0, 1.0
            for k in own[i:]:
                total += factor * deltas[row][k]
                factor *= GAMMA * LAM
                if not rollout.continues[row, k]:
                    break
            assert found[row, t] == pytest.approx(total, abs=1e-9)


def test_masked_entries_are_ignored() -> None:
    rollout = random_rollout(seed=1, holes=0.4)
    mask = rollout.mask.numpy()
    steps = steps_of(rollout)
    rewards, values, next_values = (np.where(mask, x, np.nan) for x in steps[:3])
    broken = Steps(rewards, values, next_values, steps.continues | ~mask, mask)
    for kind in ("gae", "td", "reward-to-go", "return"):
        found, expected = (formulas.advantages_of(kind, x, GAMMA, LAM) for x in (broken, steps))
        np.testing.assert_array_equal(found, expected)


def test_standardize_small_groups() -> None:
    x = np.array([[1.0, 5.0, 7.0], [2.0, 4.0, 9.0]])
    one = np.array([[True, False, False], [False, False, False]])
    assert formulas.standardize(x, one)[0, 0] == 1.0
    groups = np.array([[0, 2, 2], [2, -1, 3]])  # group 1 is empty, and groups 0 and 3 have one step
    found = formulas.standardize_groups(x, groups)
    middle = standardize(torch.tensor(x), torch.tensor(groups == 2)).numpy()
    np.testing.assert_allclose(found, np.where(groups == 2, middle, np.where(groups < 0, 0.0, x)))


def random_batch(seed: int = 0, n: int = 60, t: int = 8) -> tuple[Tensor, Batch]:
    """Return current log-probs and a batch whose ratios reach far beyond the clip range and whose A can be 0."""
    g = torch.Generator().manual_seed(seed)

    def normal() -> Tensor:
        return torch.randn(n, t, generator=g, dtype=torch.float64)

    old, advantages = -normal().abs() - 1, normal() * (torch.rand(n, t, generator=g) > 0.1)
    new = old + 0.7 * normal()
    return new, make_batch(logprobs=old, values=normal(), advantages=advantages, returns=normal())


def make_batch(**columns: Tensor) -> Batch:
    """Return a batch without masked steps. All columns that are not given are 0."""
    shape = columns["logprobs"].shape
    zeros = {f.name: torch.zeros(shape, dtype=torch.float64) for f in fields(Batch)}
    return Batch(**zeros | {"mask": torch.ones(shape, dtype=torch.bool)} | columns)


def objectives() -> list[dict[str, Any]]:
    clip = [{"clip": 0.2, "clip_high": high, "dual_clip": dual} for high, dual in product((0.0, 0.35), (0.0, 1.1, 2.0))]
    return [*({"objective": "clip"} | x for x in clip), {"objective": "penalty", "penalty_coef": 0.7},
            {"objective": "ratio"}, {"objective": "policy-gradient"}]  # fmt: skip


def terms_of(ppo: PPO, scale: float = 1.0, penalty_coef: float = 1.0) -> Objective:
    return Objective(ppo.objective, *engine.clip_range(ppo, scale), ppo.dual_clip, penalty_coef)


@pytest.mark.parametrize("options", objectives(), ids=str)
def test_policy_loss_and_derivative_equal_the_engine(options: dict[str, Any]) -> None:
    ppo, (new, batch) = PPO.model_validate(options), random_batch()
    coef = ppo.penalty_coef
    new.requires_grad_()
    loss = engine.policy_loss(new, batch, ppo, 0.5, coef)
    (gradient,) = torch.autograd.grad(loss.sum(), new)
    logprobs, old, advantages = (x.detach().numpy() for x in (new, batch.logprobs, batch.advantages))
    ratio, terms = np.exp(logprobs - old), terms_of(ppo, 0.5, coef)
    assert_equal(formulas.policy_loss(logprobs, old, advantages, terms), loss)
    assert_equal(formulas.policy_derivative(ratio, advantages, terms), gradient)
    cut = formulas.is_cut(ratio, advantages, terms)
    expected = (gradient.numpy() == 0) & (advantages != 0)
    np.testing.assert_array_equal(cut, expected)
    assert cut.any() == (ppo.objective == "clip")


def test_derivative_at_ties_equals_autograd() -> None:
    """At the ends of the clip range, at A = 0 and where the loss reaches the dual clip."""
    ratios = np.array([0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0])
    grid = np.array(list(product(ratios, (-1.0, 0.0, 2.0))))
    old = torch.zeros(len(grid), 1, dtype=torch.float64)
    advantages = torch.tensor(grid[:, 1:])
    batch = make_batch(logprobs=old, advantages=advantages)
    for dual, high in product((0.0, 1.25, 2.0), (0.0, 0.5)):
        ppo = PPO(clip=0.25, clip_high=high, dual_clip=dual)
        new = torch.tensor(np.log(grid[:, :1]), requires_grad=True)
        # exp and log are not exact inverses, so the tie is exact only for the ratio that the engine computes
        ratio = new.exp().detach().numpy()
        (gradient,) = torch.autograd.grad(engine.policy_loss(new, batch, ppo).sum(), new)
        assert_equal(formulas.policy_derivative(ratio, advantages.numpy(), terms_of(ppo)), gradient)


def test_derivative_at_exact_ties() -> None:
    """exp(0) is exactly 1, so ranges that end at 1 give exact ties for PyTorch as well."""
    objective = Objective("clip", 0.0, 0.0, 1.0)
    advantages = torch.tensor([[-1.0, 0.0, 2.0]], dtype=torch.float64)
    new = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
    ratio = new.exp()
    gain = torch.min(ratio * advantages, ratio.clamp(1.0, 1.0) * advantages)
    gain = torch.where(advantages < 0, torch.max(gain, 1.0 * advantages), gain)
    (gradient,) = torch.autograd.grad(-gain.sum(), new)
    assert gradient[0].tolist() == [0.5, 0.0, -2.0]
    assert_equal(formulas.policy_derivative(np.ones((1, 3)), advantages.numpy(), objective), gradient)
    assert not formulas.is_cut(np.ones((1, 3)), advantages.numpy(), objective).any()


def test_clip_flags_on_both_sides() -> None:
    """The clip removes the gradient only if A pushes the ratio further out; the dual clip only if A < 0."""
    ratio = np.array([[0.7, 0.7, 1.3, 1.3, 1.0, 2.5, 1.1]])
    advantages = np.array([[-1.0, 1.0, -1.0, 1.0, -1.0, -1.0, 0.0]])
    objective = Objective("clip", 0.2, 0.2, 2.0)
    assert formulas.outside(ratio, objective).tolist() == [[-1, -1, 1, 1, 0, 1, 0]]
    assert formulas.is_cut(ratio, advantages, objective).tolist() == [[True, False, False, True, False, True, False]]


@pytest.mark.parametrize("value_clip", [0.0, 0.3])
def test_value_loss_equals_the_engine(value_clip: float) -> None:
    new, batch = random_batch(seed=3)
    values, old, targets = (x.numpy() for x in (new, batch.values, batch.returns))
    assert_equal(formulas.value_loss(values, old, targets, value_clip), engine.value_loss(new, batch, value_clip))


def test_ratio_kl_equals_the_engine() -> None:
    new, batch = random_batch(seed=4)
    log_ratio = new - batch.logprobs
    found = formulas.ratio_kl(log_ratio.exp().numpy(), log_ratio.numpy())
    assert_equal(found, log_ratio.exp() - 1 - log_ratio)
    assert (found >= 0).all()


@pytest.mark.parametrize("holes", [0.0, 0.4])
def test_token_rewards_equal_the_adapter(holes: float) -> None:
    rollout = random_rollout(n=8, seed=7, holes=holes, ragged=True)
    logprobs, ref, full, mask = rollout.logprobs, rollout.logprobs + 0.3 * rollout.values, rollout.rewards, rollout.mask
    scores = rollout.rewards[:, 0]
    for kind, expected in llm.kl_estimates(logprobs, ref, full).items():
        kl = formulas.kl_estimate(kind, *(x.numpy() for x in (logprobs, ref, full)))
        assert_equal(kl, expected)
        rewards = llm.token_rewards(scores, expected, 0.1, mask)
        found = formulas.token_rewards(scores.numpy(), kl, 0.1, mask.numpy())
        assert_equal(found, rewards)
        assert_equal(formulas.whiten(found, mask.numpy()), llm.whiten(rewards, mask))
    assert_equal(formulas.last_steps(mask.numpy()), llm.last_steps(mask))
    one = np.eye(1, 5, dtype=bool)
    assert formulas.whiten(np.full((1, 5), 3.0), one)[0, 0] == 3.0


@pytest.mark.parametrize("kind", ["rloo", "grpo"])
def test_group_baselines_equal_the_adapter(kind: str) -> None:
    returns = random_rollout(n=12, seed=8).rewards[:, 0]
    for size, left_out in product((2, 4), ([], [1, 4, 5, 6, 8, 9, 10, 11])):
        kept = torch.ones(12, dtype=torch.bool)
        kept[left_out] = False
        found = formulas.group_baselines(returns.numpy(), size, kind, kept.numpy())
        for x, expected in zip(found, llm.group_baselines(returns, size, kind, kept), strict=True):
            assert_equal(x, expected)


def test_clip_scores() -> None:
    scores = np.array([-3.0, 0.5, 2.0])
    assert formulas.clip_scores(scores, 1.0).tolist() == [-1.0, 0.5, 1.0]
    assert formulas.clip_scores(scores, 0.0).tolist() == [-3.0, 0.5, 2.0]


def test_unknown_advantage_is_an_error() -> None:
    with pytest.raises(ValueError, match="'gea'"):
        formulas.advantages_of("gea", steps_of(ROLLOUTS[0]), GAMMA, LAM)
