"""Recurrent policies: their states in rollouts, updates, evaluations and checkpoints, and a task that needs memory."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from envs.gym import eval as gym_eval
from envs.gym.memory_tasks import FORWARD, TMaze
from envs.gym.options import GymConfig
from envs.gym.recurrent import RecurrentPolicy
from envs.gym.vector import GymAdapter, alternatives
from ppo_unified.config.schema import PPO
from ppo_unified.engine.batch import minibatches
from ppo_unified.engine.ppo import gae, make_batch
from ppo_unified.engine.rollout import Rollout
from tests.interruption import find_differences, prepare_run, train_to_end, train_until_killed
from tests.toys import engine_gradient

OPENED: list[GymAdapter] = []  # closed after each test
COUNTER = "tests.gym_envs:Counter-v0"  # its observation is the number of steps taken
PLACES = ((-1.0, 0.0), (1.0, 0.0), (0.0, 0.0), (0.0, 1.0))  # observations in TMaze


@pytest.fixture(autouse=True)
def _close_adapters() -> Iterator[None]:
    yield
    while OPENED:
        OPENED.pop().close()


def make_config(env_id: str = COUNTER, num_envs: int = 2, num_steps: int = 12, **tables: Any) -> GymConfig:
    gym: dict[str, Any] = {"env_id": env_id, "num_envs": num_envs, "num_steps": num_steps, "vectorization": "sync"}
    policy = {"torso": "gru", "hidden": [6], "memory_size": 5, "row_len": 4} | tables.pop("policy", {})
    others: dict[str, Any] = {"ppo": {"minibatches": 1}, "seed": 3} | tables
    return GymConfig.model_validate({"gym": gym | others.pop("gym", {}), "policy": policy} | others)


def make_adapter(*arguments: Any, **tables: Any) -> GymAdapter:
    """Return an adapter whose policy has larger output weights, so that its actions depend on its observations."""
    adapter = GymAdapter(make_config(*arguments, **tables), torch.device("cpu"))
    OPENED.append(adapter)
    with torch.no_grad():
        adapter.policy.head.linear.weight.normal_(generator=torch.Generator().manual_seed(0))
    return adapter


def policy_of(adapter: GymAdapter) -> RecurrentPolicy:
    assert isinstance(adapter.policy, RecurrentPolicy)
    return adapter.policy


def obs_of(rollout: Rollout, key: str = "obs") -> Tensor:
    assert not isinstance(rollout.obs, Tensor)
    return rollout.obs[key]


def unroll(
    policy: RecurrentPolicy, obs: Tensor, actions: Tensor, mask: Tensor, states: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the values and log-probs [N, T], computed column by column. States are reset after masked columns."""
    values, logprobs, size = [], [], policy.actor_memory.state_size
    states = policy.initial_states(len(obs)) if states is None else states
    for x, action, valid in zip(obs.unbind(1), actions.unbind(1), mask.unbind(1), strict=True):
        states = policy.advance(x, states)
        critic = states if policy.shared else states[:, size:]
        values.append(policy.critic(critic[:, : policy.critic_memory.size]).squeeze(-1))
        outputs = policy.head.linear(states[:, : policy.actor_memory.size])
        logprobs.append(policy.head.logprobs_and_entropy(outputs, action, None)[0])
        states = torch.where(valid[:, None], states, 0.0)
    return torch.stack(values, 1), torch.stack(logprobs, 1)


@pytest.mark.parametrize("torso", ["gru", "lstm"])
def test_initial_recurrent_weights_and_biases(torso: str) -> None:
    policy = policy_of(make_adapter(policy={"torso": torso}))
    biases = [0.0] * 15 if torso == "gru" else [0.0] * 5 + [1.0] * 5 + [0.0] * 10  # the forget gate is the second one
    for layer in (policy.actor_memory, policy.critic_memory):
        for weight in (layer.cell.weight_ih, layer.cell.weight_hh):
            assert torch.allclose(weight.T @ weight, torch.eye(weight.shape[1]), atol=1e-5)
        assert (layer.cell.bias_ih + layer.cell.bias_hh).tolist() == biases
    assert not policy.initial_states(3).any()


@pytest.mark.parametrize("torso", ["gru", "lstm"])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("ends", ["truncated", "terminated"])
def test_states_are_reset_after_final_observations(torso: str, shared: bool, ends: str) -> None:
    """Episodes have 4 steps and a reset, so the second rollout starts within an episode."""
    table = {"env_kwargs": {"length": 4, "ends": ends}}
    adapter = make_adapter(gym=table, policy={"torso": torso, "shared": shared})
    rollouts = [adapter.collect() for _ in range(2)]
    getters: list[Any] = [obs_of, *map(attrgetter, ("actions", "mask"))]
    x, actions, mask = (torch.cat([get(r) for r in rollouts], 1) for get in getters)
    assert not mask.all()
    with torch.no_grad():
        values, logprobs = unroll(policy_of(adapter), x, actions, mask)
    assert torch.allclose(torch.cat([r.values for r in rollouts], 1), values, atol=1e-6)
    assert torch.allclose(torch.cat([r.logprobs for r in rollouts], 1), logprobs, atol=1e-6)
    bootstraps = torch.cat([r.continues for r in rollouts], 1) | (ends == "truncated")
    expected, found = values[:, 1:] * bootstraps[:, :-1], torch.cat([r.next_values for r in rollouts], 1)[:, :-1]
    assert torch.allclose(found[mask[:, :-1]], expected[mask[:, :-1]], atol=1e-6)


@pytest.mark.parametrize("torso", ["gru", "lstm"])
def test_updates_recompute_states_from_the_start_of_each_row(torso: str) -> None:
    adapter = make_adapter(gym={"env_kwargs": {"length": 4}}, policy={"torso": torso})
    policy, batch = policy_of(adapter), make_batch(adapter.collect(), PPO())
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.mul_(1.1)
    assert isinstance(batch.obs, dict)
    x, starts = batch.obs["obs"].clone().requires_grad_(), batch.obs["starts"]
    found = policy.evaluate(batch.obs | {"obs": x}, batch.actions)
    values, logprobs = unroll(policy, x, batch.actions, batch.mask, batch.obs["state"][:, 0])
    assert torch.allclose(found.values, values, atol=1e-6)
    assert torch.allclose(found.logprobs, logprobs, atol=1e-6)
    (gradient,) = torch.autograd.grad(found.values[:, -1].sum(), x)
    last = (starts * torch.arange(4)).amax(1)  # column of the last start, or 0
    assert torch.equal(gradient.squeeze(-1) != 0, torch.arange(4) >= last[:, None])
    assert 0 < int((last > 0).sum()) < len(last)


def test_minibatches_of_recurrent_policies_are_whole_rows() -> None:
    adapter = make_adapter(num_envs=4)
    batch = make_batch(adapter.collect(), PPO())
    for part in minibatches(batch, 3, False, torch.Generator().manual_seed(0)):
        assert part.places.shape == (4, 4)
        assert torch.equal(part.places, part.places[:, :1] + torch.arange(4))
        assert not (part.places[:, 0] % 4).any()


def ignore_states(policy: RecurrentPolicy) -> None:
    """Set the weights so that outputs depend on no earlier observation: the gates close and nothing is fed back."""
    for layer in (policy.actor_memory, policy.critic_memory):
        layer.cell.weight_hh.zero_()
        first = layer.size  # the second gate keeps the old state: the update gate of a GRU, the forget gate of an LSTM
        layer.cell.bias_ih[first : 2 * first] = -200.0


@pytest.mark.parametrize("torso", ["gru", "lstm"])
def test_row_length_has_no_effect_if_states_are_ignored(torso: str) -> None:
    found = []
    for row_len in (1, 3, 12):
        adapter = make_adapter(gym={"env_kwargs": {"length": 4}}, policy={"torso": torso, "row_len": row_len})
        with torch.no_grad():
            ignore_states(policy_of(adapter))
        rollout, ppo = adapter.collect(), PPO(entropy_coef=0.1)
        gradient = engine_gradient(adapter.policy, make_batch(rollout, ppo), ppo)
        found.append((rollout, gae(rollout, 0.9, 0.8), gradient))
    for rollout, advantages, gradient in found[1:]:
        assert torch.equal(rollout.actions, found[0][0].actions)
        assert torch.allclose(advantages, found[0][1], atol=1e-6)
        assert torch.allclose(gradient, found[0][2], atol=1e-6)
        assert gradient.abs().max() > 0.01


def test_evaluation_states_follow_their_environments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Episodes that are played at the same time in changing groups have the same scores as one at a time."""
    adapter = make_adapter("Pendulum-v1", gym={"env_kwargs": {"max_episode_steps": 10}})
    together = adapter.score(5, 1, True)
    monkeypatch.setattr(gym_eval, "MAX_PARALLEL", 1)
    assert adapter.score(5, 1, True) == pytest.approx(together, abs=1e-4)


@pytest.mark.parametrize("torso", ["gru", "lstm"])
def test_alternatives_are_evaluated_with_their_states(torso: str) -> None:
    adapter = make_adapter("CartPole-v1", policy={"torso": torso})
    rollout = adapter.collect()
    found = alternatives(adapter, rollout, reference=False)
    assert found is not None
    taken = found[0] == rollout.actions
    assert torch.allclose(found[1][taken].view(2, 12), rollout.logprobs, atol=1e-6)


def test_killed_recurrent_run_equals_uninterrupted_run(tmp_path: Path) -> None:
    config = make_config(
        "CartPole-v1",
        policy={"torso": "lstm"},
        gym={"vectorization": "auto", "normalize_obs": True},
        total_steps=0,
        total_iterations=3,
        checkpoint={"every_s": 1e-6},
        log={"samples_every": 2},
        eval={"every_steps": 30, "episodes": 2},
    )
    whole, killed = (prepare_run(config, tmp_path, name) for name in ("whole", "killed"))
    train_to_end(whole)
    assert train_until_killed(killed, "before checkpoint", 2)
    train_to_end(killed)
    assert not find_differences(whole, killed)


def test_memoryless_policies_score_at_most_one_half_in_tmaze() -> None:
    """This holds for every rule from the observation to the action: with the cue, in the corridor, at the junction."""

    def play(rule: dict[tuple[float, ...], int], seed: int) -> tuple[float, int]:
        env = TMaze(length=2)
        obs, _ = env.reset(seed=seed)
        for _ in range(9):
            obs, reward, ended, _, _ = env.step(rule[tuple(obs.tolist())])
            if ended:
                return float(reward), int(env.goal)
        return 0.0, int(env.goal)

    seeds = {play(dict.fromkeys(PLACES, FORWARD), seed)[1]: seed for seed in range(9)}
    assert len(seeds) == 2
    rules: list[dict[tuple[float, ...], int]] = [
        dict(zip(PLACES, actions, strict=True)) for actions in product(range(3), repeat=4)
    ]
    scores = [sum(play(rule, seed)[0] for seed in seeds.values()) / 2 for rule in rules]
    assert max(scores) == 0.5


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"policy": {"row_len": 5}}, "row_len: expected a divisor of gym.num_steps = 12, got 5; .* is 4"),
        ({"policy": {"row_len": 24}}, "row_len: expected a divisor of gym.num_steps = 12, got 24; .* is 12"),
        ({"ppo": {"minibatches": 7}}, "at most gym.num_envs x gym.num_steps / policy.row_len = 6, got 7"),
        ({"policy": {"torso": "mlp", "row_len": 4}}, "policy.memory_size = 5 has no effect"),
    ],
)
def test_row_options_are_validated(tables: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_config(**tables)
