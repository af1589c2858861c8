"""Minibatches cover all rows evenly, and micro-batches do not change the gradient."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations, pairwise

import pytest
import torch
from torch import Tensor

from ppo_unified.config.schema import PPO
from ppo_unified.engine.batch import Batch, microbatches, minibatches, pack_rows, split_evenly, standardize
from ppo_unified.engine.ppo import make_batch
from ppo_unified.engine.rollout import Rollout
from ppo_unified.testing import BanditPolicy
from tests.toys import MarkovPolicy, engine_gradient, make_policy, random_rollout


def number_rows(batch: Batch) -> Batch:
    """Set the actions of each row to its number, so that rows can be identified."""
    return replace(batch, actions=torch.arange(len(batch))[:, None].expand_as(batch.mask))


def minibatch_rows(batch: Batch, count: int, seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [m.actions[:, 0].tolist() for m in minibatches(number_rows(batch), count, False, generator)]


@pytest.mark.parametrize("row_len", [1, 3, 12])
@pytest.mark.parametrize("count", [1, 2, 3, 7, 16])
def test_minibatches_cover_every_row_once(row_len: int, count: int) -> None:
    batch = make_batch(random_rollout(n=20, row_len=row_len, ragged=True), PPO())
    groups = minibatch_rows(batch, count)
    assert sorted(row for group in groups for row in group) == list(range(len(batch)))
    assert len(groups) == count
    assert all(groups)
    ends = torch.tensor(list(map(len, groups))).cumsum(0).tolist()
    if row_len == 1:
        assert ends == split_evenly(torch.ones(len(batch), dtype=torch.int64), count)


def test_minibatches_are_never_empty() -> None:
    groups = minibatch_rows(make_batch(random_rollout(n=3, row_len=12), PPO()), 8)
    assert sorted(map(len, groups)) == [1, 1, 1]


def test_minibatches_are_redrawn_each_epoch_and_seeded() -> None:
    batch = number_rows(make_batch(random_rollout(n=20, row_len=12), PPO()))
    generator = torch.Generator().manual_seed(0)
    epochs = [[m.actions[:, 0].tolist() for m in minibatches(batch, 4, False, generator)] for _ in range(2)]
    assert epochs[0] != epochs[1]
    assert epochs[0] == minibatch_rows(batch, 4)
    assert epochs[0] != minibatch_rows(batch, 4, seed=1)


@pytest.mark.parametrize("seed", range(20))
def test_minibatches_have_near_equal_steps(seed: int) -> None:
    """The steps of a minibatch differ from the mean by at most the length of the longest row."""
    g = torch.Generator().manual_seed(seed)
    rows, count = int(torch.randint(2, 60, (), generator=g)), int(torch.randint(1, 12, (), generator=g))
    steps = torch.randint(1, 100, (rows,), generator=g)
    count = min(count, rows)
    groups = torch.arange(rows).tensor_split(split_evenly(steps, count)[:-1])
    shares = torch.stack([steps[group].sum() for group in groups])
    assert len(groups) == count
    assert all(len(group) for group in groups)
    assert torch.equal(torch.cat(groups), torch.arange(rows))
    assert (shares - steps.sum() / count).abs().max() <= steps.max()


def test_long_rows_are_spread_over_minibatches() -> None:
    """Of 20 rows, four have 12 steps and the others one; a split by rows would often put three long rows together."""
    rollout = random_rollout(n=20, row_len=12, holes=0.0)
    mask = torch.arange(12) < torch.tensor([12, 1, 1, 1, 1] * 4)[:, None]
    batch = make_batch(replace(rollout, mask=mask), PPO())
    for seed in range(20):
        parts = minibatches(batch, 4, False, torch.Generator().manual_seed(seed))
        assert all(abs(int(part.mask.sum()) - 16) <= 12 for part in parts)


def test_one_heavy_row_leaves_no_minibatch_empty() -> None:
    for heavy in range(4):
        steps = torch.ones(4, dtype=torch.long)
        steps[heavy] = 1000
        assert split_evenly(steps, 4) == [1, 2, 3, 4]


@pytest.mark.parametrize("loss_mean", ["token", "sequence"])
@pytest.mark.parametrize("row_len", [1, 3, 12])
@pytest.mark.parametrize("columns", [1, 5, 24, 100])
def test_microbatch_columns_do_not_change_the_gradient(loss_mean: str, row_len: int, columns: int) -> None:
    """Neither micro-batches nor the padding that they drop change the gradient of a causal policy."""
    options = {"loss_mean": loss_mean, "entropy_coef": 0.01, "gamma": 0.9}
    batch = make_batch(random_rollout(n=10, row_len=row_len, ragged=True), PPO(**options))
    policy = make_policy(BanditPolicy)
    expected = engine_gradient(policy, batch, PPO(**options))
    gradient = engine_gradient(policy, batch, PPO(**options, microbatch_columns=columns))
    assert expected.abs().max() > 1e-3
    assert torch.allclose(gradient, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("loss_mean", ["token", "sequence"])
def test_padding_does_not_change_the_gradient(loss_mean: str) -> None:
    narrow = random_rollout(n=6, row_len=12, ragged=True)

    def pad(x: Tensor) -> Tensor:
        return torch.cat([x, torch.zeros(6, 12, *x.shape[2:], dtype=x.dtype)], 1)

    names = ("obs", "actions", "logprobs", "values", "rewards", "next_values", "continues", "mask")
    wide = Rollout(**{name: pad(getattr(narrow, name)) for name in names}, row_len=24)  # type: ignore[arg-type]  # mypy
    ppo, policy = PPO(loss_mean=loss_mean), make_policy(BanditPolicy)
    gradient = engine_gradient(policy, make_batch(narrow, ppo), ppo)
    again = engine_gradient(policy, make_batch(wide, ppo), ppo)
    assert torch.allclose(again, gradient, rtol=1e-6)  # float32: sums over other shapes round differently


@pytest.mark.parametrize("columns", [1, 7, 24, 1000])
def test_microbatches_cover_valid_steps_within_the_limit(columns: int) -> None:
    batch = make_batch(random_rollout(n=10, row_len=12, ragged=True), PPO())
    parts = list(microbatches(batch, columns))
    assert sum(int(part.mask.sum()) for part in parts) == int(batch.mask.sum())
    rewards = torch.cat([part.returns[part.mask] for part in parts])
    assert torch.equal(rewards.sort().values, batch.returns[batch.mask].sort().values)
    for part in parts:
        assert part.mask.numel() <= columns or len(part) == 1
        assert part.mask[:, -1].any()  # at least one row is valid at the last column


@pytest.mark.parametrize("seed", range(8))
def test_rows_are_packed_at_the_lowest_cost(seed: int) -> None:
    """No division of the sorted rows into groups costs less."""
    unit = 1 if seed % 2 else 130  # with 130, some rows have equal lengths
    lengths = unit * torch.randint(0, 400 // unit, (7,), generator=torch.Generator().manual_seed(seed))
    columns, ordered = 800, sorted(lengths.tolist(), reverse=True)

    def cost(groups: list[list[int]]) -> float:
        fits = all(len(group) == 1 or len(group) * max(group) <= columns for group in groups)
        padded = sum(len(group) * max(1, *group) for group in groups)  # an empty row also needs a column
        return padded + 128 * len(groups) if fits else float("inf")

    places = [(0, *cuts, 7) for count in range(7) for cuts in combinations(range(1, 7), count)]
    possible = [[ordered[a:b] for a, b in pairwise(cuts)] for cuts in places]
    packed = [lengths[rows].tolist() for rows, _ in pack_rows(lengths, columns)]
    assert sorted((n for group in packed for n in group), reverse=True) == ordered
    assert cost(packed) == min(map(cost, possible))


@pytest.mark.parametrize("row_len", [1, 2, 3, 12])
def test_row_len_does_not_change_a_markov_policys_gradient(row_len: int) -> None:
    policy, ppo = make_policy(MarkovPolicy), PPO()
    by_step = engine_gradient(policy, make_batch(random_rollout(row_len=1), ppo), ppo)
    by_row = engine_gradient(policy, make_batch(random_rollout(row_len=row_len), ppo), ppo)
    assert torch.allclose(by_row, by_step, rtol=1e-10, atol=1e-12)


def test_loss_mean_weights_sequences_or_steps_equally() -> None:
    rollout = random_rollout(n=6, row_len=12, ragged=True)
    by_step, by_sequence = (make_batch(rollout, PPO(loss_mean=mean)).weights for mean in ("token", "sequence"))
    assert torch.equal(by_step, rollout.mask.double())
    assert torch.allclose(by_sequence.sum(1).double(), torch.ones(6, dtype=torch.float64))
    assert (by_sequence[~rollout.mask] == 0).all()
    lengths = rollout.mask.sum(1)
    assert torch.allclose(by_sequence.amax(1), 1 / lengths)


def test_rows_without_valid_steps_are_dropped() -> None:
    rollout = random_rollout(holes=0.5)
    batch = make_batch(rollout, PPO())
    assert batch.mask.all()
    assert len(batch) == int(rollout.mask.sum())
    assert torch.equal(batch.logprobs[:, 0], rollout.logprobs[rollout.mask])


def test_mapped_observations_stay_with_their_rows() -> None:
    rollout = random_rollout(n=9, row_len=12)
    assert isinstance(rollout.obs, Tensor)
    both = replace(rollout, obs={"x": rollout.obs, "number": torch.arange(9)[:, None].expand(9, 12)})
    for part in minibatches(make_batch(both, PPO()), 4, False, torch.Generator().manual_seed(0)):
        assert isinstance(part.obs, dict)
        rows = part.obs["number"][:, 0]
        assert torch.equal(part.obs["x"], rollout.obs[rows])
        assert torch.equal(part.logprobs, rollout.logprobs[rows])


def test_normalized_advantages_have_mean_0_and_variance_1() -> None:
    rollout = random_rollout(holes=0.4)
    x = torch.where(rollout.mask, rollout.rewards * 3 + 2, 1e9)
    y = standardize(x, rollout.mask)
    assert y[rollout.mask].mean().item() == pytest.approx(0, abs=1e-7)
    assert y[rollout.mask].var().item() == pytest.approx(1, abs=1e-6)  # with Bessel's correction
    assert (y[~rollout.mask] == 0).all()
    assert torch.equal(y[rollout.mask].argsort(), x[rollout.mask].argsort())


def test_normalizing_a_single_step_gives_no_nan() -> None:
    x, one = torch.tensor([[3.0, 5.0]]), torch.tensor([[True, False]])
    assert torch.equal(standardize(x, one), x)
    assert standardize(torch.full((2, 2), 3.0), torch.ones(2, 2, dtype=torch.bool)).tolist() == [[0, 0], [0, 0]]


@pytest.mark.parametrize("over", ["batch", "minibatch", "none"])
def test_advantages_are_normalized_over_the_configured_set(over: str) -> None:
    ppo = PPO(normalize_advantages=over)
    batch = make_batch(random_rollout(n=40, row_len=12, ragged=True), ppo)
    generator = torch.Generator().manual_seed(0)
    parts = list(minibatches(batch, 4, over == "minibatch", generator))
    means = [float(part.advantages[part.mask].mean()) for part in parts]
    everything = batch.advantages[batch.mask]
    assert (abs(float(everything.mean())) < 1e-9) == (over == "batch")
    assert all(abs(mean) < 1e-9 for mean in means) == (over == "minibatch")
