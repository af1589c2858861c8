"""Advantages and value targets equal their definitions, computed as explicit sums."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from ppo_unified.config.schema import PPO
from ppo_unified.engine.diagnostics import gae_error
from ppo_unified.engine.ppo import episode_return, gae, make_batch, reward_to_go
from ppo_unified.engine.rollout import Rollout
from tests.toys import random_rollout, with_next_values

ROLLOUTS = [
    random_rollout(),
    random_rollout(seed=1, holes=0.0),
    random_rollout(seed=2, holes=0.6),
    random_rollout(seed=3, ragged=True),
    replace(random_rollout(seed=4), continues=torch.zeros(5, 12, dtype=torch.bool)),
    replace(random_rollout(seed=5), continues=torch.ones(5, 12, dtype=torch.bool)),
]
NO = float("nan")  # a masked entry, which must not affect any result


def ones(*x: int) -> Tensor:
    return torch.tensor([x], dtype=torch.bool)


def row(*x: float) -> Tensor:
    return torch.tensor([x], dtype=torch.float64)


def valid_steps(rollout: Rollout) -> Iterator[tuple[int, int, list[int]]]:
    """Yield (row, column, columns of the episode from this step to its end in the rollout) for every valid step."""
    for i in range(len(rollout.mask)):
        own = rollout.mask[i].nonzero().flatten().tolist()
        for k, t in enumerate(own):
            rest = []
            for s in own[k:]:
                rest.append(s)
                if not rollout.continues[i, s]:
                    break
            yield i, t, rest


@pytest.mark.parametrize("rollout", ROLLOUTS)
@pytest.mark.parametrize(("gamma", "lam"), [(0.97, 0.9), (1.0, 1.0), (0.9, 0.0), (0.0, 0.5)])
def test_gae_is_the_discounted_sum_of_td_errors(rollout: Rollout, gamma: float, lam: float) -> None:
    advantages = gae(rollout, gamma, lam)
    for i, t, rest in valid_steps(rollout):
        deltas = [rollout.rewards[i, s] + gamma * rollout.next_values[i, s] - rollout.values[i, s] for s in rest]
        expected = sum(float(delta) * (gamma * lam) ** k for k, delta in enumerate(deltas))
        assert advantages[i, t].item() == pytest.approx(expected, abs=1e-12)
    assert (advantages[~rollout.mask] == 0).all()
    assert gae_error(advantages, rollout, gamma, lam) < 1e-12


def test_gae_invariant_detects_wrong_advantages() -> None:
    rollout = random_rollout()
    wrong = gae(rollout, 0.97, 0.9)
    wrong[0, 0] += 0.5
    assert gae_error(wrong, rollout, 0.97, 0.9) == pytest.approx(0.5)


@pytest.mark.parametrize("rollout", ROLLOUTS)
def test_advantage_ladder_matches_definitions(rollout: Rollout) -> None:
    gamma, rollout = 0.93, with_next_values(rollout)
    ladder = {
        name: make_batch(replace(rollout, row_len=12), PPO(advantage=name, gamma=gamma, normalize_advantages="none"))
        for name in ("gae", "td", "reward-to-go", "return")
    }
    used = rollout.mask.any(1)
    got = {name: torch.zeros_like(rollout.values) for name in ladder}
    for name, batch in ladder.items():
        got[name][used] = batch.advantages
    to_go: dict[tuple[int, int], float] = {}
    first: dict[tuple[int, int], int] = {}
    for i, t, rest in valid_steps(rollout):
        after = gamma ** len(rest) * float(rollout.next_values[i, rest[-1]])
        to_go[i, t] = sum(gamma**k * float(rollout.rewards[i, s]) for k, s in enumerate(rest)) + after
        first.setdefault((i, rest[-1]), t)  # the last column identifies the episode
        td = float(rollout.rewards[i, t] + gamma * rollout.next_values[i, t] - rollout.values[i, t])
        assert got["td"][i, t].item() == pytest.approx(td, abs=1e-12)
        assert got["reward-to-go"][i, t].item() == pytest.approx(to_go[i, t], abs=1e-12)
        assert got["return"][i, t].item() == pytest.approx(to_go[i, first[i, rest[-1]]], abs=1e-12)
    for x in got.values():
        assert (x[~rollout.mask] == 0).all()


@pytest.mark.parametrize("rollout", ROLLOUTS)
def test_advantage_ladder_ends_equal_gae(rollout: Rollout) -> None:
    mask = rollout.mask
    assert torch.allclose(reward_to_go(rollout, 0.9), (gae(rollout, 0.9, 1.0) + rollout.values) * mask)
    td = make_batch(replace(rollout, row_len=12), PPO(advantage="td", gamma=0.9, lam=0.7, normalize_advantages="none"))
    assert torch.allclose(td.advantages, gae(rollout, 0.9, 0.0)[mask.any(1)])
    assert (episode_return(rollout, 0.9)[~mask] == 0).all()


def test_value_targets_match_definitions() -> None:
    rollout = random_rollout(row_len=12)
    own = rollout.mask
    lambda_return = make_batch(rollout, PPO(gamma=0.9, lam=0.8, advantage="td")).returns
    assert torch.allclose(lambda_return[own], (gae(rollout, 0.9, 0.8) + rollout.values)[own])
    monte_carlo = make_batch(rollout, PPO(gamma=0.9, lam=0.8, value_target="monte-carlo")).returns
    assert torch.allclose(monte_carlo[own], reward_to_go(rollout, 0.9)[own])


def test_gymnasium_rollout_worked_by_hand() -> None:
    """The episode is truncated at column 2 and its final observation has V = 9, stored in the masked reset column 3.

    Column 4 starts the next episode; the rollout ends there, and the next state has V = 6.
    """
    rollout = Rollout(
        obs=torch.zeros(1, 5, 1),
        actions=torch.zeros(1, 5),
        logprobs=row(0, 0, 0, NO, 0),
        values=row(1, 2, 3, 9, 4),
        rewards=row(1, 1, 1, 0, 1),
        next_values=row(2, 3, 9, NO, 6),
        continues=ones(1, 1, 0, 1, 1),
        mask=ones(1, 1, 1, 0, 1),
        row_len=1,
    )
    assert gae(rollout, 0.5, 0.0)[rollout.mask].tolist() == [1.0, 0.5, 2.5, 0.0]  # the TD errors
    assert gae(rollout, 0.5, 1.0).tolist() == [[1.875, 1.75, 2.5, 0.0, 0.0]]
    batch = make_batch(rollout, PPO(gamma=0.5, lam=1.0, normalize_advantages="none"))
    assert batch.returns.flatten().tolist() == [2.875, 3.75, 5.5, 4.0]  # rows without a valid step are dropped
    assert reward_to_go(rollout, 0.5).tolist() == [[2.875, 3.75, 5.5, 0.0, 4.0]]
    assert episode_return(rollout, 0.5).tolist() == [[2.875, 2.875, 2.875, 0.0, 4.0]]


def test_token_rollout_worked_by_hand() -> None:
    """A prompt of 2 tokens and the response "a b EOS": columns choose p1, a, b, EOS; beta = 0.1, score 1 at EOS."""
    log_ratio_to_reference, beta, score = row(NO, 0.2, -0.1, 0.3), 0.1, row(NO, 0, 0, 1)
    rollout = Rollout(
        obs=torch.tensor([[0, 1, 2, 3]]),
        actions=torch.tensor([[1, 2, 3, 4]]),
        logprobs=row(NO, -1, -1, -1),
        values=row(NO, 0.5, 0.6, 0.8),
        rewards=score - beta * log_ratio_to_reference,
        next_values=row(NO, 0.6, 0.8, 0),
        continues=ones(1, 1, 1, 0),
        mask=ones(0, 1, 1, 1),
        row_len=4,
    )
    assert rollout.rewards[0, 1:].tolist() == pytest.approx([-0.02, 0.01, 0.97])
    assert gae(rollout, 1.0, 0.0)[0].tolist() == pytest.approx([0.0, 0.08, 0.21, 0.17])
    advantages = gae(rollout, 1.0, 0.95)[0]
    assert advantages.tolist() == pytest.approx([0.0, 0.432925, 0.3715, 0.17], abs=1e-9)
    batch = make_batch(rollout, PPO(gamma=1.0, lam=0.95, normalize_advantages="none"))
    assert batch.returns[0, 1:].tolist() == pytest.approx([0.932925, 0.9715, 0.97], abs=1e-9)  # A + V


@pytest.mark.parametrize("seed", range(5))
def test_tool_text_does_not_change_advantages(seed: int) -> None:
    """Masked text between the turns of an episode can be removed without changing the advantages."""
    whole = random_rollout(n=1, t=24, seed=seed, holes=0.5)
    own = whole.mask[0]
    names = ("obs", "actions", "logprobs", "values", "rewards", "next_values", "continues", "mask")
    cut = Rollout(**{name: getattr(whole, name)[:, own] for name in names}, row_len=1)
    assert torch.equal(gae(whole, 0.99, 0.9)[:, own], gae(cut, 0.99, 0.9))
    assert torch.equal(episode_return(whole, 0.99)[:, own], episode_return(cut, 0.99))


def test_rows_are_independent_in_gae() -> None:
    rollout = random_rollout()
    other = replace(rollout, rewards=torch.cat([rollout.rewards[:1], rollout.rewards[1:] + 5]))
    assert torch.equal(gae(rollout, 0.9, 0.9)[0], gae(other, 0.9, 0.9)[0])
