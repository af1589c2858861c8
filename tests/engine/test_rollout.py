"""`Rollout` rejects invalid tensors with a message that names the field."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from ppo_unified.engine.rollout import ActorCritic, Rollout, map_obs
from tests.toys import random_rollout


@pytest.mark.parametrize("name", ["logprobs", "values", "rewards", "next_values", "continues", "actions", "obs"])
def test_wrong_field_length_is_reported(name: str) -> None:
    rollout = random_rollout()
    with pytest.raises(ValueError, match=rf"Rollout\.{name}: expected .*\[5, 12\], got \[5, 11"):
        replace(rollout, **{name: getattr(rollout, name)[:, :-1]})


def test_wrong_mapped_observation_is_reported() -> None:
    rollout = random_rollout()
    replace(rollout, obs={"tokens": rollout.actions, "state": torch.zeros(5, 12, 3)})
    with pytest.raises(ValueError, match=r"Rollout\.obs\['state'\]: expected .*, got \[5, 3\]"):
        replace(rollout, obs={"tokens": rollout.actions, "state": torch.zeros(5, 3)})


@pytest.mark.parametrize("name", ["logprobs", "values", "rewards", "next_values"])
def test_scalar_fields_have_one_number_per_step(name: str) -> None:
    """A tensor [N, T, 1] would broadcast silently against [N, T] to [N, T, T]."""
    rollout = random_rollout()
    with pytest.raises(ValueError, match=rf"Rollout\.{name}: expected shape \[N, T\] .*, got \[5, 12, 1\]"):
        replace(rollout, **{name: getattr(rollout, name)[..., None]})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mask": torch.ones(5, 12)}, r"Rollout\.mask: expected dtype torch\.bool, got torch\.float32"),
        ({"continues": torch.ones(5, 12)}, r"Rollout\.continues: expected dtype torch\.bool, got torch\.float32"),
        ({"row_len": 5}, r"row_len: expected a divisor of T = 12, got 5"),
        ({"row_len": 0}, r"row_len: expected a divisor of T = 12, got 0"),
        ({"mask": torch.zeros(5, 12, dtype=torch.bool)}, r"Rollout\.mask is False everywhere"),
    ],
)
def test_contradictory_fields_are_rejected(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(random_rollout(), **change)


@pytest.mark.parametrize("row_len", [1, 3, 12])
def test_rows_preserve_column_order(row_len: int) -> None:
    rollout = random_rollout(row_len=row_len)
    rows = rollout.rows(rollout.rewards)
    assert rows.shape == (60 // row_len, row_len)
    assert torch.equal(rows.flatten(), rollout.rewards.flatten())
    assert isinstance(rollout.obs, torch.Tensor)
    assert torch.equal(rollout.rows(rollout.obs)[0], rollout.obs[0, :row_len])


def test_map_obs_reaches_every_tensor() -> None:
    x = torch.arange(3)
    single = map_obs(lambda x: x + 1, x)
    assert isinstance(single, torch.Tensor)
    assert torch.equal(single, x + 1)
    mapped = map_obs(lambda x: x + 1, {"a": x, "b": x * 2})
    assert isinstance(mapped, dict)
    assert torch.equal(mapped["b"], x * 2 + 1)


def test_policy_must_define_evaluate_and_critic_parameters() -> None:
    with pytest.raises(NotImplementedError, match="ActorCritic must define evaluate"):
        ActorCritic().evaluate(torch.zeros(1), torch.zeros(1))
    with pytest.raises(NotImplementedError, match="ActorCritic must define critic_parameters"):
        ActorCritic().critic_parameters()


def test_rollout_is_immutable() -> None:
    with pytest.raises(AttributeError):
        random_rollout().row_len = 2  # type: ignore[misc]
    assert isinstance(random_rollout(), Rollout)
