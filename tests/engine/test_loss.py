"""Losses and gradients equal formulas in plain Python and their finite differences."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ppo_unified.config.schema import PPO, Optim
from ppo_unified.engine.batch import Batch
from ppo_unified.engine.ppo import Progress, backward, make_batch, make_learner, policy_loss, ppo_loss, value_loss
from ppo_unified.engine.rollout import Evaluation
from tests.toys import MarkovPolicy, engine_gradient, gradients, make_policy, random_rollout

OBJECTIVES: list[tuple[dict[str, Any], float, float]] = [  # options, clip_scale, penalty_coef
    ({"objective": "policy-gradient"}, 1.0, 1.0),
    ({"objective": "ratio"}, 1.0, 1.0),
    ({"objective": "penalty"}, 1.0, 0.7),
    ({"objective": "clip"}, 1.0, 1.0),
    ({"objective": "clip", "clip": 0.1}, 1.0, 1.0),
    ({"objective": "clip"}, 0.25, 1.0),
    ({"objective": "clip", "clip_high": 0.5}, 1.0, 1.0),
    ({"objective": "clip", "clip_high": 0.5}, 0.25, 1.0),
    ({"objective": "clip", "dual_clip": 1.5}, 1.0, 1.0),
    ({"objective": "clip", "dual_clip": 2.0, "clip_high": 0.3}, 0.5, 1.0),
]


def plain_policy_loss(
    new: float, old: float, advantage: float, ppo: PPO, clip_scale: float, penalty_coef: float
) -> float:
    """Return the policy loss of one step, written from the equations of the papers."""
    ratio = math.exp(new - old)
    if ppo.objective == "policy-gradient":
        return -new * advantage
    if ppo.objective == "ratio":
        return -ratio * advantage
    if ppo.objective == "penalty":
        return -(ratio * advantage - penalty_coef * (ratio - 1 - math.log(ratio)))
    low, high = 1 - clip_scale * ppo.clip, 1 + clip_scale * (ppo.clip_high if ppo.clip_high > 0 else ppo.clip)
    surrogate = min(ratio * advantage, min(max(ratio, low), high) * advantage)
    if ppo.dual_clip > 0 and advantage < 0:
        surrogate = max(surrogate, ppo.dual_clip * advantage)
    return -surrogate


def plain_value_loss(new: float, old: float, target: float, value_clip: float) -> float:
    error = (new - target) ** 2
    if value_clip > 0:
        clipped = old + min(max(new - old, -value_clip), value_clip)
        error = max(error, (clipped - target) ** 2)
    return error / 2


def slope(function: Callable[[float], float], x: float, h: float = 1e-6) -> float:
    return (function(x + h) - function(x - h)) / (2 * h)


def example(seed: int = 0, **options: Any) -> tuple[Batch, Evaluation, PPO]:
    """Return a batch with masked steps and the outputs of a changed policy as leaf tensors that require gradients."""
    ppo = PPO(**options)
    batch = make_batch(random_rollout(n=8, row_len=12, seed=seed, ragged=True), ppo)
    g = torch.Generator().manual_seed(seed + 100)

    def perturb(x: Tensor, by: float) -> Tensor:
        return (x + by * torch.randn(x.shape, generator=g, dtype=x.dtype)).requires_grad_()

    return (
        batch,
        Evaluation(perturb(batch.logprobs, 0.4), perturb(batch.logprobs.abs(), 0.0), perturb(batch.values, 0.5)),
        ppo,
    )


def entries(x: Tensor) -> list[float]:
    return [float(value) for value in x.detach().flatten()]


@pytest.mark.parametrize(("options", "clip_scale", "penalty_coef"), OBJECTIVES)
def test_objective_and_gradient_match_reference(
    options: dict[str, Any], clip_scale: float, penalty_coef: float
) -> None:
    batch, new, ppo = example(**options)
    loss = policy_loss(new.logprobs, batch, ppo, clip_scale, penalty_coef)
    (slopes,) = torch.autograd.grad(loss.sum(), new.logprobs)
    steps = zip(*map(entries, (loss, slopes, new.logprobs, batch.logprobs, batch.advantages)), strict=True)
    outside = 0
    for got, gradient, logprob, old, advantage in steps:

        def plain(x: float, old: float = old, advantage: float = advantage) -> float:
            return plain_policy_loss(x, old, advantage, ppo, clip_scale, penalty_coef)

        assert got == pytest.approx(plain(logprob), abs=1e-12)
        assert gradient == pytest.approx(slope(plain, logprob), abs=1e-7)
        outside += gradient == 0 and advantage != 0
    assert (outside > 0) == (ppo.objective == "clip")  # some steps are outside the clip range


@pytest.mark.parametrize("value_clip", [0.0, 0.2, 1.0])
def test_value_loss_and_gradient_match_reference(value_clip: float) -> None:
    batch, new, _ = example()
    loss = value_loss(new.values, batch, value_clip)
    (slopes,) = torch.autograd.grad(loss.sum(), new.values)
    steps = zip(*map(entries, (loss, slopes, new.values, batch.values, batch.returns)), strict=True)
    for got, gradient, value, old, target in steps:

        def plain(x: float, old: float = old, target: float = target) -> float:
            return plain_value_loss(x, old, target, value_clip)

        assert got == pytest.approx(plain(value), abs=1e-12)
        assert gradient == pytest.approx(slope(plain, value), abs=1e-7)


def one_step(ratio: float, advantage: float, **options: Any) -> tuple[float, float]:
    """Return the loss of a single step and its derivative with respect to the log-prob."""
    x = torch.zeros(1, 1, dtype=torch.float64)
    batch = Batch(x, x, x, x, x + advantage, x, x == 0, x + 1, x)
    logprob = torch.full_like(x, math.log(ratio)).requires_grad_()
    loss = policy_loss(logprob, batch, PPO(**options))
    return float(loss.detach()), float(torch.autograd.grad(loss.sum(), logprob)[0])


@pytest.mark.parametrize(
    ("ratio", "advantage", "stops"),
    [
        (1.19, 1.0, False),
        (1.21, 1.0, True),  # a good action above the range: no gradient
        (0.5, 1.0, False),  # a good action below the range: full gradient
        (0.81, -1.0, False),
        (0.79, -1.0, True),  # a bad action below the range: no gradient
        (1.5, -1.0, False),  # a bad action above the range: full gradient
        (1.0, 1.0, False),
        (1.0, -1.0, False),
    ],
)
def test_clip_zeroes_the_gradient_outside_the_range(ratio: float, advantage: float, stops: bool) -> None:
    _, gradient = one_step(ratio, advantage, clip=0.2)
    assert gradient == pytest.approx(0.0 if stops else -ratio * advantage)
    if stops:
        assert gradient == 0.0


def test_clip_high_affects_only_the_upper_bound() -> None:
    assert one_step(1.25, 1.0, clip=0.2, clip_high=0.28)[1] == pytest.approx(-1.25)
    assert one_step(1.29, 1.0, clip=0.2, clip_high=0.28)[1] == 0.0
    assert one_step(0.79, -1.0, clip=0.2, clip_high=0.28)[1] == 0.0


def test_dual_clip_bounds_the_loss_of_bad_actions() -> None:
    assert one_step(50.0, -2.0, dual_clip=3.0) == (6.0, 0.0)
    assert one_step(2.0, -2.0, dual_clip=3.0)[0] == pytest.approx(4.0)
    assert one_step(50.0, -2.0)[0] == pytest.approx(100.0)
    assert one_step(50.0, 2.0, dual_clip=3.0) == one_step(50.0, 2.0)


def test_total_loss_is_the_weighted_sum_of_terms() -> None:
    batch, new, ppo = example(loss_mean="sequence", objective="clip", value_clip=0.3)
    loss = ppo_loss(new, batch, ppo)
    w = batch.weights.numpy().astype(np.float64)
    n, b = ({k: v.detach().numpy() for k, v in x.items()} for x in (new._asdict(), vars(batch)))
    clipped = np.clip(np.exp(n["logprobs"] - b["logprobs"]), 0.8, 1.2)
    gain = np.minimum(np.exp(n["logprobs"] - b["logprobs"]) * b["advantages"], clipped * b["advantages"])
    near = b["values"] + np.clip(n["values"] - b["values"], -0.3, 0.3)
    errors = np.maximum((n["values"] - b["returns"]) ** 2, (near - b["returns"]) ** 2) / 2
    assert float(loss.policy.detach()) == pytest.approx(float((-gain * w).sum()), rel=1e-6)
    assert float(loss.value.detach()) == pytest.approx(float((errors * w).sum()), rel=1e-6)
    assert float(loss.entropy.detach()) == pytest.approx(float((n["entropy"] * w).sum()), rel=1e-6)
    total = loss.total(0.3, 0.07)
    assert float(total.detach()) == pytest.approx(
        float(((-gain + 0.3 * errors - 0.07 * n["entropy"]) * w).sum()), rel=1e-6
    )
    (slopes,) = torch.autograd.grad(total, new.entropy)
    assert torch.allclose(slopes, -0.07 * batch.weights.double())  # more entropy reduces the loss


def test_diagnostics_of_a_moved_policy() -> None:
    batch, new, ppo = example(clip=0.2, clip_high=0.4)
    sums, maxima = ppo_loss(new, batch, ppo).totals
    log_ratio = (new.logprobs.detach() - batch.logprobs)[batch.mask].numpy()
    ratio = np.exp(log_ratio)
    assert float(sums["kl"]) == pytest.approx(float((ratio - 1 - log_ratio).sum()))
    assert float(sums["clip_fraction"]) == ((ratio < 0.8) | (ratio > 1.4)).sum()
    assert float(maxima["ratio"]) == pytest.approx(ratio.max())
    assert float(maxima["ratio_error"]) == pytest.approx(np.abs(ratio - 1).max())
    assert not any(x.requires_grad for x in (sums | maxima).values())


def test_unchanged_policy_has_ratio_one() -> None:
    batch, _, ppo = example()
    same = Evaluation(batch.logprobs.clone().requires_grad_(), batch.logprobs.abs(), batch.values)
    loss = ppo_loss(same, batch, ppo)
    assert float(loss.totals.sums["kl"]) == 0.0
    assert float(loss.totals.maxima["ratio"]) == 1.0
    (slopes,) = torch.autograd.grad(loss.policy, same.logprobs)
    assert torch.allclose(slopes, -batch.advantages * batch.weights)  # the plain policy gradient


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf, 1e30])
@pytest.mark.parametrize(
    "options", [{}, {"dual_clip": 2.0}, {"objective": "penalty"}, {"objective": "policy-gradient"}]
)
def test_masked_entries_do_not_affect_loss_or_gradient(poison: float, options: dict[str, Any]) -> None:
    """Invalid numbers at masked steps may be in the policy's outputs, in the batch, or in both."""
    batch, new, ppo = example(**options, value_clip=0.2)
    holes = ~batch.mask
    assert holes.any()
    expected = ppo_loss(new, batch, ppo).total(0.5, 0.01)
    gradients = torch.autograd.grad(expected, new)
    names = ("logprobs", "values", "advantages", "returns")
    stored = replace(batch, **{name: getattr(batch, name).masked_fill(holes, poison) for name in names})
    outputs = Evaluation(*(x.detach().masked_fill(holes, poison).requires_grad_() for x in new))
    for evaluation, poisoned in ((outputs, batch), (new, stored), (outputs, stored)):
        loss = ppo_loss(evaluation, poisoned, ppo)
        total = loss.total(0.5, 0.01)
        assert float(total.detach()) == float(expected.detach())
        for got, wanted in zip(torch.autograd.grad(total, evaluation), gradients, strict=True):
            assert torch.equal(got[batch.mask], wanted[batch.mask])
            assert (got[holes] == 0).all()
        assert all(bool(x.isfinite()) for x in loss.totals.sums.values())


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_fused_loss_equals_definition(dtype: torch.dtype, tolerance: float) -> None:
    """The gradient of the form without diagnostics equals that of `ppo_loss`, for all objectives and options."""
    rollout = random_rollout(n=8, t=40, dtype=dtype)
    rest: list[dict[str, Any]] = [{"value_clip": 0.3}, {"entropy_coef": 0.1}, {"critic_warmup": 1}]
    for options, clip_scale, penalty_coef in OBJECTIVES + [({"objective": "clip", **x}, 1.0, 1.0) for x in rest]:
        ppo = PPO.model_validate({"anneal_clip": True, "minibatches": 1, **options})
        batch = make_batch(rollout, ppo)
        batch = replace(batch, weights=batch.weights * torch.linspace(0.5, 1.5, len(batch))[:, None])
        policy = MarkovPolicy(torch.Generator().manual_seed(1)).to(dtype)
        learner = make_learner(policy, ppo, Optim(), total_iterations=100)
        learner.progress = Progress(0, 100, 0, round(100 * (1 - clip_scale)), penalty_coef)
        critic_only, results = "critic_warmup" in options, []
        loss = ppo_loss(policy.evaluate(batch.obs, batch.actions), batch, ppo, clip_scale, penalty_coef)
        total = loss.value if critic_only else loss.total(ppo.value_coef, ppo.entropy_coef)
        (total / batch.weights.sum()).backward()
        results.append(gradients(policy) * (torch.arange(15) >= 10 if critic_only else 1))  # the critic's come last
        for measured in (False, True):
            policy.zero_grad()
            sums = backward(learner, batch, critic_only, measured).sums
            results.append(gradients(policy))
            assert ("kl" in sums) == measured
        for found in results[1:]:
            assert (found - results[0]).abs().max() < tolerance * results[0].abs().max(), options
        outside = (policy.evaluate(batch.obs, batch.actions).logprobs - batch.logprobs).abs() > 0.5
        assert 0 < outside.sum() < outside.numel()


def test_masked_rows_of_one_step_are_ignored() -> None:
    batch, policy = make_batch(random_rollout(), PPO()), make_policy(MarkovPolicy)
    masked = torch.arange(len(batch))[:, None] % 3 == 0
    filled = {name: getattr(batch, name).masked_fill(masked, math.nan) for name in ("returns", "advantages")}
    poisoned = replace(batch, mask=~masked, weights=batch.weights * ~masked, **filled)
    expected = engine_gradient(policy, batch[(~masked[:, 0]).nonzero()[:, 0]], PPO())
    assert (engine_gradient(policy, poisoned, PPO()) - expected).abs().max() < 1e-12
