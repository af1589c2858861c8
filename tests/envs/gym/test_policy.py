"""The networks of the Gymnasium adapter, and its distributions compared with torch.distributions."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical as TorchCategorical
from torch.distributions import Independent, Normal

from envs.gym.options import Policy
from envs.gym.policy import ACTIVATIONS, GymPolicy
from envs.gym.spaces import ActionLayout, ObservationLayout
from ppo_unified.config.schema import PPO, Optim
from ppo_unified.engine.batch import Batch
from ppo_unified.engine.ppo import backward, make_batch, make_learner, ppo_loss, update
from ppo_unified.engine.rollout import Observations, map_obs
from tests.toys import gradients, random_rollout, weights

DISCRETE = ActionLayout(False, (4,), (0,))
MULTI = ActionLayout(False, (2, 5, 3), (0, 0, 0), shape=(3,))
BOX = ActionLayout(True, low=(-1.0, -2.0), high=(1.0, 2.0), shape=(2,), dtype="float32")


def make(actions: ActionLayout, obs_size: int = 6, normalize_obs: bool = False, **options: Any) -> GymPolicy:
    config = Policy.model_validate(options)
    return GymPolicy(ObservationLayout(obs_size), actions, config, normalize_obs, torch.Generator().manual_seed(0))


def observations(rows: int = 7, size: int = 6) -> torch.Tensor:
    return torch.randn(rows, 3, size, generator=torch.Generator().manual_seed(1))


def test_weights_are_orthogonal_with_standard_gains() -> None:
    policy = make(DISCRETE, obs_size=64, hidden=[64, 64])
    for module, gain in ((policy.actor_torso, math.sqrt(2)), (policy.critic_torso, math.sqrt(2))):
        for linear in (module[0], module[2]):
            assert isinstance(linear, torch.nn.Linear)
            assert torch.allclose(linear.weight @ linear.weight.T, gain**2 * torch.eye(64), atol=1e-4)
            assert not linear.bias.any()
    rows = policy.head.linear.weight
    assert torch.allclose(rows @ rows.T, 1e-4 * torch.eye(4), atol=1e-8)
    assert policy.critic.weight.norm().item() == pytest.approx(1.0, abs=1e-5)


def test_shared_option_shares_exactly_the_torso() -> None:
    for shared, common in ((False, 0), (True, 4)):
        policy = make(DISCRETE, shared=shared)
        actor = {id(p) for p in (*policy.actor_torso.parameters(), *policy.head.parameters())}
        critic = {id(p) for p in (*policy.critic_torso.parameters(), *policy.critic.parameters())}
        assert len(actor & critic) == common
        assert not {id(p) for p in policy.critic_parameters()} & actor


def test_multidiscrete_components_are_independent() -> None:
    policy = make(MULTI)
    with torch.no_grad():
        policy.head.linear.weight.normal_(generator=torch.Generator().manual_seed(3))
    obs = observations()
    logits = policy.head.linear(policy.actor_torso(obs)).split((2, 5, 3), dim=-1)
    parts = [TorchCategorical(logits=part) for part in logits]
    actions = torch.stack([part.sample() for part in parts], -1)
    got = policy.evaluate(obs, actions)
    expected = sum(part.log_prob(actions[..., k]) for k, part in enumerate(parts))
    entropy = sum(part.entropy() for part in parts)
    assert torch.allclose(got.logprobs, torch.as_tensor(expected), atol=1e-5)
    assert torch.allclose(got.entropy, torch.as_tensor(entropy), atol=1e-5)


def test_gaussian_logprobs_match_torch_distributions() -> None:
    policy = make(BOX, log_std_init=-0.7)
    obs = observations()
    mean = policy.head.linear(policy.actor_torso(obs))
    torchs = Independent(Normal(mean, math.exp(-0.7)), 1)
    actions = torchs.sample()
    got = policy.evaluate(obs, actions)
    assert torch.allclose(got.logprobs, torchs.log_prob(actions), atol=1e-5)
    assert torch.allclose(got.entropy, torchs.entropy(), atol=1e-5)
    # a matrix product can round differently for other shapes of its input
    assert torch.allclose(policy.act(obs[:, 0], None), mean[:, 0], atol=1e-6)


@pytest.mark.parametrize("actions", [DISCRETE, MULTI, BOX])
def test_samples_follow_evaluated_probabilities(actions: ActionLayout) -> None:
    policy = make(actions)
    with torch.no_grad():
        policy.head.linear.weight.normal_(generator=torch.Generator().manual_seed(3))
    obs = observations(rows=1)[:, :1].expand(40_000, 1, -1)
    drawn = policy.act(obs[:, 0], torch.Generator().manual_seed(5))[:, None]
    scored = policy.evaluate(obs, drawn)
    # The mean of -log-prob equals the entropy only if the samples come from the evaluated distribution.
    assert -scored.logprobs.mean().item() == pytest.approx(scored.entropy.mean().item(), abs=0.03)


@pytest.mark.parametrize("actions", [DISCRETE, MULTI, BOX])
def test_actor_chooses_the_same_actions_as_the_policy(actions: ActionLayout) -> None:
    obs = torch.randn(3, 5, 6, generator=torch.Generator().manual_seed(1))  # of three steps in five environments
    for activation in ACTIVATIONS:
        policy = make(actions, normalize_obs=True, activation=activation)
        assert policy.scaler is not None
        policy.scaler.update(obs.flatten(0, 1) + 1)
        single, together = (torch.Generator().manual_seed(5) for _ in range(2))
        with torch.inference_mode():
            policy.head.linear.weight.normal_(generator=torch.Generator().manual_seed(3))
            mask = None if actions.continuous else torch.arange(sum(actions.sizes)).expand(5, -1) != 1
            act, greedy = policy.make_actor(together, steps=3), policy.make_actor(None)
            for raw in obs:
                scaled = policy.scale(raw)
                seen = scaled if mask is None else {"obs": scaled, "action_mask": mask}
                assert torch.equal(act(raw, mask), policy.act(seen, single))
                assert torch.equal(greedy(raw, mask), policy.act(seen, None))
        assert torch.equal(single.get_state(), together.get_state())


def test_greedy_actions_are_most_likely() -> None:
    policy = make(DISCRETE)
    obs = observations()[:, 0]
    every = torch.arange(4)[None, :, None].expand(len(obs), 4, 1)
    logprobs = policy.evaluate(obs[:, None].expand(-1, 4, -1), every).logprobs
    assert torch.equal(policy.act(obs, None).squeeze(-1), logprobs.argmax(1))


def plain_logprobs_and_entropy(logits: Tensor, actions: Tensor, entropy_gradient: bool) -> tuple[Tensor, Tensor]:
    logs = logits.log_softmax(-1)
    return logs.gather(-1, actions[:, None]).squeeze(-1), -(logs.exp() * logs).sum(-1)


def outputs_and_gradients(policy: GymPolicy, obs: Observations, actions: Tensor) -> Tensor:
    """Return the outputs of `evaluate` and the gradients of a random combination of them, as one vector."""
    policy.zero_grad()
    outputs = torch.stack(list(policy.evaluate(obs, actions)))
    factors = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(3), dtype=outputs.dtype)
    (outputs * factors).sum().backward()
    gradients = [p.grad.flatten() for p in policy.parameters() if p.grad is not None]
    return torch.cat([outputs.flatten(), *gradients]).detach()


@pytest.mark.parametrize("actions", [DISCRETE, MULTI, BOX])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_fused_networks_equal_separate_ones(
    actions: ActionLayout, dtype: torch.dtype, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hand-written gradients of both networks and of the categorical distribution are those of autograd."""
    monkeypatch.setattr("envs.gym.towers.MANY", 300)  # between the sizes of both layers: tanh has two forms
    special: list[dict[str, Any]] = [{"hidden": []}, {"hidden": [5], "shared": True}]
    for options in [{"activation": name} for name in ACTIVATIONS] + special:
        policy = make(actions, **{"hidden": [8, 5], **options}).to(dtype)
        for p in policy.parameters():  # the initial biases are 0
            p.data += 0.1
        x, generator = observations().to(dtype), torch.Generator().manual_seed(2)
        allowed = torch.rand(7, 3, sum(actions.sizes), generator=generator) < 0.7
        allowed[..., torch.tensor([0, 2, 7, *actions.sizes])[: len(actions.sizes)]] = True
        obs = x if actions.continuous else {"obs": x, "action_mask": allowed}
        with torch.no_grad():
            chosen = policy.act(map_obs(lambda x: x.flatten(0, 1), obs), generator).view(7, 3, -1)
        found = outputs_and_gradients(policy, obs, chosen)
        with monkeypatch.context() as patch:
            patch.setattr(policy.towers, "find", lambda *networks: None)
            patch.setattr("envs.categorical.logprobs_and_entropy", plain_logprobs_and_entropy)
            expected = outputs_and_gradients(policy, obs, chosen)
        assert (found - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize("actions", [DISCRETE, BOX])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_explicit_gradients_equal_autograd(actions: ActionLayout, dtype: torch.dtype, tolerance: float) -> None:
    """An optimizer step without autograd has the same outputs and gradients, also with several micro-batches."""
    generator, masked = torch.Generator().manual_seed(2), random_rollout(dtype=dtype)
    x = observations(20, size=6).to(dtype).flatten(0, 1).view(5, 12, 6)
    allowed = (torch.arange(4).expand(5, 12, 4) != torch.arange(12)[:, None] % 5) & (torch.arange(12)[:, None] < 11)
    obs: Observations = {"obs": x, "action_mask": allowed} if actions is DISCRETE else x
    policy, ppo = make(actions, hidden=[8, 5]).to(dtype), PPO(entropy_coef=0.1, minibatches=1)
    chosen = policy.act(map_obs(lambda x: x.flatten(0, 1), obs), generator).detach().view(5, 12, -1)
    batch = make_batch(replace(masked, obs=obs, actions=chosen), ppo)
    no_value = ppo.model_copy(update={"microbatch_columns": 7, "entropy_coef": 0.0, "value_coef": 0.0})
    for changed, joint in ((ppo, True), (no_value, True), (ppo.model_copy(update={"value_coef": 1.0}), False)):
        learner, weight = make_learner(policy, changed, Optim(joint=joint)), batch.weights.sum()
        policy.zero_grad()
        expected = policy.evaluate(batch.obs, batch.actions)
        (ppo_loss(expected, batch, changed).total(changed.value_coef, changed.entropy_coef) / weight).backward()
        expected_gradients = gradients(policy)
        found = policy.evaluate_explicitly(batch.obs, batch.actions)
        backward(learner, batch, False)
        assert found is not None
        pairs = [*zip(found[0], expected, strict=True), (gradients(policy), expected_gradients)]
        assert all((x - y).abs().max() <= tolerance * y.abs().max() for x, y in pairs)


def gym_batch(actions: ActionLayout, ppo: PPO) -> Batch:
    """Return a random batch for observations of size 6."""
    generator = torch.Generator().manual_seed(2)
    rollout, obs = random_rollout(n=32, t=8, dtype=torch.float32), torch.randn(32, 8, 6, generator=generator)
    chosen = make(actions).act(obs.flatten(0, 1), generator).detach().view(32, 8, -1)
    return make_batch(replace(rollout, obs=obs, actions=chosen), ppo)


@pytest.mark.parametrize("actions", [DISCRETE, MULTI, BOX])
@pytest.mark.parametrize("joint", [True, False])
def test_restored_learner_takes_identical_steps(actions: ActionLayout, joint: bool) -> None:
    """The optimizer moves weights to common tensors, and separates those that the critic's warm-up has trained."""
    for warmup in (0, 1):
        ppo, optim = PPO(minibatches=2, critic_warmup=warmup, entropy_coef=0.1), Optim(joint=joint, lr=0.01)
        learner = make_learner(make(actions, hidden=[9, 9]), ppo, optim)
        batch = gym_batch(actions, ppo)
        for iteration in range(3):
            restored = make_learner(make(actions, hidden=[9, 9]), ppo, optim)
            restored.policy.load_state_dict(learner.policy.state_dict())
            for new, old in zip(restored.optimizers, learner.optimizers, strict=True):
                new.load_state_dict(copy.deepcopy(old.state_dict()))
            for one in (learner, restored):
                one.progress.iteration = iteration
                one.generator.manual_seed(iteration)
                update(one, batch, lambda generator: None)
            assert torch.equal(weights(learner.policy), weights(restored.policy))


def test_explicit_gradients_use_the_current_weights() -> None:
    """Layers can be replaced, weights assigned and frozen, and the learner copied after optimizer steps."""
    ppo = PPO(minibatches=1, epochs=1)
    policy = make(BOX, hidden=[8, 8])
    learner, batch = make_learner(policy, ppo, Optim(lr=0.01)), gym_batch(BOX, ppo)
    update(learner, batch, lambda generator: None)
    policy, learner.optimizers = copy.deepcopy((policy, learner.optimizers))
    learner.policy = policy
    assert not policy.towers.weights.layers  # a cache, which the copy must not contain
    update(learner, batch, lambda generator: None)
    changed = copy.deepcopy(policy)
    changed.critic_torso[0] = torch.nn.Linear(6, 8)
    changed.load_state_dict({name: x + 0.1 for name, x in changed.state_dict().items()}, assign=True)
    policy.critic_torso[0] = torch.nn.Linear(6, 8)
    policy.load_state_dict(changed.state_dict(), assign=True)
    explicit = policy.evaluate_explicitly(batch.obs, batch.actions)
    assert explicit is not None
    for found, expected in zip(explicit[0], changed.evaluate(batch.obs, batch.actions), strict=True):
        assert torch.equal(found, expected)
    learner = make_learner(policy, ppo, Optim(lr=0.01))
    update(learner, batch, lambda generator: None)
    policy.actor_torso.requires_grad_(False)
    before = torch.cat([p.flatten() for p in policy.actor_torso.parameters()])
    update(learner, batch, lambda generator: None)
    assert torch.equal(torch.cat([p.flatten() for p in policy.actor_torso.parameters()]), before)
    policy.actor_torso.requires_grad_(True)
    policy.critic_torso[0], policy.critic_torso[2] = torch.nn.Linear(6, 4), torch.nn.Linear(4, 8)  # other shapes
    assert policy.evaluate_explicitly(batch.obs, batch.actions) is None
    policy.evaluate(batch.obs, batch.actions)
