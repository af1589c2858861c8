"""`check_adapter` verifies that an adapter meets the engine's requirements. `BanditAdapter` is a small example.

Call `check_adapter` in the adapter's own tests:

    def test_my_adapter() -> None:
        check_adapter(lambda: MyAdapter(seed=1))
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ppo_unified.config.schema import PPO
from ppo_unified.engine.batch import Batch
from ppo_unified.engine.ppo import make_batch, ppo_loss
from ppo_unified.engine.rollout import ActorCritic, Adapter, Evaluation, Observations, Rollout, map_obs
from ppo_unified.training.tensor_json import join, split


def check_adapter(make: Callable[[], Adapter], tolerance: float = 1e-5) -> None:
    """Check that the adapters returned by `make` meet all requirements of the engine and the trainer.

    Each call of `make()` must build the same small adapter with the same seed. `tolerance` is the largest allowed
    difference in log-probs and values between two evaluations of the same rows. Use 1e-5 for fp32 and 1e-2 for bf16.

    Raises AssertionError with a message that names the violated requirement and the fix.
    """
    with ExitStack() as stack:

        def fresh() -> Adapter:
            adapter = make()
            stack.callback(adapter.close)
            return adapter

        adapter = fresh()
        rollout = adapter.collect()
        _check_rollout(rollout)
        _check_next_values(rollout, tolerance)
        _check_first_ratio(adapter.policy, rollout, tolerance)
        _check_rows_are_independent(adapter.policy, rollout, tolerance)
        _check_columns_are_causal(adapter.policy, rollout, tolerance)
        _check_parameters(adapter.policy, rollout)
        _check_masked_entries_are_ignored(adapter.policy, rollout, tolerance)
        _check_same_seed_same_rollout(fresh, rollout)
        _check_score(fresh)
        _check_state_dict(fresh)
        _check_state_dict_is_a_copy(fresh())


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise AssertionError(message)


def _check_rollout(rollout: Rollout) -> None:
    """Check that all numbers at valid steps are finite and that no tensor requires a gradient."""
    _require(isinstance(rollout, Rollout), f"collect() must return a Rollout, got {type(rollout).__name__}")
    for name in ("logprobs", "values", "rewards", "next_values"):
        x = getattr(rollout, name)
        _require(x.is_floating_point(), f"Rollout.{name}: expected a floating-point tensor, got {x.dtype}")
        _require(
            bool(x[rollout.mask].isfinite().all()),
            f"Rollout.{name} is not finite at a step where mask is True; mask that step or correct the number",
        )
        _require(not x.requires_grad, f"Rollout.{name} requires a gradient; call collect() under torch.no_grad()")


def _check_next_values(rollout: Rollout, tolerance: float) -> None:
    """Check that next_values equals the value estimate at the next valid column if the episode continues there."""
    following, seen = rollout.values[:, -1], torch.zeros_like(rollout.mask[:, -1])
    for t in reversed(range(rollout.mask.shape[1])):
        continues = seen & rollout.mask[:, t] & rollout.continues[:, t]
        error = (rollout.next_values[:, t] - following)[continues].abs()
        _require(
            bool((error <= tolerance).all()),
            f"Rollout.next_values in column {t} differs from the value at the next valid column although the episode "
            "continues there; set it to V_old of the state after the step",
        )
        following = torch.where(rollout.mask[:, t], rollout.values[:, t], following)
        seen = seen | rollout.mask[:, t]


def _check_first_ratio(policy: ActorCritic, rollout: Rollout, tolerance: float) -> None:
    new = _evaluate(policy, rollout)
    for name in ("logprobs", "values"):
        old = getattr(rollout, name)
        error = float((getattr(new, name).detach().reshape(old.shape) - old)[rollout.mask].abs().max())
        _require(
            error <= tolerance,
            f"policy.evaluate() differs from Rollout.{name} by up to {error:.3g} before any update; collect() must "
            "store the outputs of evaluate() for the same obs and actions (same weights, temperature and "
            "normalization; no dropout)",
        )


def _check_rows_are_independent(policy: ActorCritic, rollout: Rollout, tolerance: float) -> None:
    obs, actions = map_obs(rollout.rows, rollout.obs), rollout.rows(rollout.actions)
    together = _outputs(policy, obs, actions)
    single = _outputs(policy, map_obs(lambda x: x[:1], obs), actions[:1])
    _require(
        _are_close(together[:, :1], single, tolerance),
        "the outputs of a row depend on the other rows of the batch; evaluate() must treat rows independently "
        "(no batch normalization, no influence of padding)",
    )


def _check_columns_are_causal(policy: ActorCritic, rollout: Rollout, tolerance: float) -> None:
    """Check that outputs depend neither on later columns nor on their number, because micro-batches drop columns."""
    length = rollout.row_len
    if length == 1:
        return
    obs, actions, valid = map_obs(rollout.rows, rollout.obs), rollout.rows(rollout.actions), rollout.rows(rollout.mask)
    outputs = _outputs(policy, obs, actions)
    for cut in sorted({1, length // 2, length - 1}):
        before = valid[:, :cut]
        changed = map_obs(lambda x, cut=cut: _replace_future(x, cut), obs)  # type: ignore[misc]
        again = _outputs(policy, changed, _replace_future(actions, cut))
        _require(
            _are_close(outputs[:, :, :cut][:, before], again[:, :, :cut][:, before], tolerance),
            f"the data in columns {cut} and later changes outputs before column {cut}; evaluate() must be causal: "
            "the outputs at column t must depend only on columns <= t of the row",
        )
        short = _outputs(policy, map_obs(lambda x, cut=cut: x[:, :cut], obs), actions[:, :cut])  # type: ignore[misc]
        _require(
            _are_close(outputs[:, :, :cut][:, before], short[:, before], tolerance),
            f"the outputs of the first {cut} columns change if the other columns are removed (the row has {length}); "
            "evaluate() must not depend on the number of later columns",
        )


def _replace_future(x: Tensor, cut: int) -> Tensor:
    """Replace column `cut` and all later columns with those of another row or, if there is only one, with column 0."""
    changed = x.clone()
    changed[:, cut:] = x.roll(1, 0)[:, cut:] if len(x) > 1 else x[:, :1]
    return changed


def _check_parameters(policy: ActorCritic, rollout: Rollout) -> None:
    """Check that only values depend on critic_parameters(), and that policy and critic both get gradients."""
    critic, everything = list(policy.critic_parameters()), {id(p) for p in policy.parameters()}
    own = {id(p) for p in critic}
    _require(bool(critic), "critic_parameters() is empty; it must return the parameters that only the value depends on")
    _require(
        own <= everything, "critic_parameters() returns a parameter that is not in policy.parameters(); register it"
    )
    _require(
        own != everything,
        "critic_parameters() returns all parameters; it must not return those that log-probs depend on",
    )
    new = _evaluate(policy, rollout)
    valid = rollout.rows(rollout.mask)
    acting = _gradients(policy, new.logprobs[valid].sum() + new.entropy[valid].sum())
    valuing = _gradients(policy, new.values[valid].sum())
    _require(
        all(not bool(acting[id(p)].any()) for p in critic),
        "log-probs or entropy depend on a parameter in critic_parameters(); return only those of the value",
    )
    _require(
        any(bool(g.any()) for key, g in acting.items() if key not in own),
        "the log-probs have no gradient with respect to the policy; evaluate() must not detach or use no_grad",
    )
    _require(
        any(bool(valuing[id(p)].any()) for p in critic),
        "the values have no gradient with respect to critic_parameters(); evaluate() must not detach them",
    )


def _gradients(policy: ActorCritic, output: Tensor) -> dict[int, Tensor]:
    """Return each parameter's gradient of `output`, by the parameter's id. Unused parameters have zero gradients."""
    parameters = [p for p in policy.parameters() if p.requires_grad]
    found = (
        torch.autograd.grad(output, parameters, retain_graph=True, allow_unused=True)
        if output.requires_grad
        else [None] * len(parameters)
    )
    every = {id(p): torch.zeros_like(p) for p in policy.parameters()}
    return every | {id(p): g for p, g in zip(parameters, found, strict=True) if g is not None}


def _check_masked_entries_are_ignored(policy: ActorCritic, rollout: Rollout, tolerance: float) -> None:
    """Check that the loss gradient does not depend on the numbers and actions at masked columns."""
    ppo = PPO(entropy_coef=0.01, normalize_advantages="none")
    as_collected = _loss_gradient(policy, make_batch(rollout, ppo), ppo)
    _require(
        bool(as_collected.isfinite().all()),
        "the gradient of PPO's loss is not finite; evaluate() must be finite at every column, including masked ones",
    )
    holes = ~rollout.mask
    actions = rollout.actions.clone()
    actions[holes] = actions[rollout.mask][0]
    numbers = ("logprobs", "values", "rewards", "next_values")
    broken = {name: getattr(rollout, name).masked_fill(holes, torch.nan) for name in numbers}
    again = _loss_gradient(policy, make_batch(replace(rollout, actions=actions, **broken), ppo), ppo)
    _require(
        _are_close(as_collected, again, tolerance),
        "the data at masked columns (actions, log-probs, values, rewards) changes the gradient; in evaluate(), an "
        "action must affect only the outputs of its own column",
    )


def _loss_gradient(policy: ActorCritic, batch: Batch, ppo: PPO) -> Tensor:
    loss = ppo_loss(policy.evaluate(batch.obs, batch.actions), batch, ppo).total(ppo.value_coef, ppo.entropy_coef)
    gradients = _gradients(policy, loss / batch.weights.sum()).values()
    return torch.cat([g.flatten() for g in gradients])


def _check_same_seed_same_rollout(fresh: Callable[[], Adapter], rollout: Rollout) -> None:
    _require(
        _are_equal(_repeatable_fields(fresh().collect()), _repeatable_fields(rollout)),
        "two adapters from make() collected different rollouts; draw all random numbers from seeded generators",
    )


def _check_score(fresh: Callable[[], Adapter]) -> None:
    scored, plain = fresh(), fresh()
    scored.collect()
    plain.collect()
    for greedy in (True, False):
        first, second = (scored.score(3, 7, greedy) for _ in range(2))
        kind = "greedy" if greedy else "sampled"
        _require(
            len(first) == 3, f"score(3, seed, greedy) must return 3 scores, one per episode, got {len(first)} scores"
        )
        _require(first == second, f"{kind} scores with the same seed differ; score() must seed all its random numbers")
    _require(
        _are_equal(_repeatable_fields(scored.collect()), _repeatable_fields(plain.collect())),
        "score() changes the result of the next collect(); score() must use separate environments and generators",
    )


def _check_state_dict(fresh: Callable[[], Adapter]) -> None:
    source = fresh()
    source.collect()
    saved = {"adapter": source.state_dict(), "policy": source.policy.state_dict()}
    try:
        document, tensors = split(saved)
    except TypeError as error:
        raise AssertionError(f"state_dict() cannot be saved: {error}") from error
    text, tensors = json.dumps(document, allow_nan=False), {name: x.clone() for name, x in tensors.items()}

    def restore() -> tuple[Adapter, str | None]:
        state = join(json.loads(text), {name: x.clone() for name, x in tensors.items()})
        adapter = fresh()
        adapter.collect()  # the loaded state must replace this one
        adapter.collect()
        adapter.policy.load_state_dict(state["policy"])
        return adapter, adapter.load_state_dict(state["adapter"])

    (first, restarted), (second, _) = restore(), restore()
    loaded = {"adapter": first.state_dict(), "policy": first.policy.state_dict()}
    _require(
        bool(restarted) or _are_equal(loaded, saved),
        "state_dict() after load_state_dict() differs from the loaded state; save and load the complete state",
    )
    rollout = _repeatable_fields(first.collect())
    _require(
        _are_equal(rollout, _repeatable_fields(second.collect())),
        "two adapters that loaded the same state collected different rollouts; state_dict() must contain the state of "
        "every generator",
    )
    _require(
        bool(restarted) or _are_equal(rollout, _repeatable_fields(source.collect())),
        "an adapter collected a different rollout after loading a state than the adapter that saved it; state_dict() "
        "must contain the state of the environments, or load_state_dict() must return what restarts and why",
    )


def _check_state_dict_is_a_copy(adapter: Adapter) -> None:
    state = adapter.state_dict()
    before = copy.deepcopy(state)
    adapter.collect()
    _require(
        _are_equal(state, before),
        "collect() changed a state that state_dict() had returned; state_dict() must return copies, so that a run can "
        "be stopped during collect()",
    )


def _evaluate(policy: ActorCritic, rollout: Rollout) -> Evaluation:
    """Evaluate all rows of a rollout; each output is [R, L]."""
    new = policy.evaluate(map_obs(rollout.rows, rollout.obs), rollout.rows(rollout.actions))
    shape = rollout.rows(rollout.mask).shape
    for name, x in new._asdict().items():
        _require(x.shape == shape, f"evaluate().{name}: expected shape [R, L] = {list(shape)}, got {list(x.shape)}")
    return new


def _outputs(policy: ActorCritic, obs: Observations, actions: Tensor) -> Tensor:
    """Return log-probs, entropies and value estimates as one tensor [3, R, L]."""
    with torch.no_grad():
        return torch.stack(tuple(policy.evaluate(obs, actions)))


def _are_close(a: Tensor, b: Tensor, tolerance: float) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, rtol=tolerance, atol=tolerance)


def _repeatable_fields(rollout: Rollout) -> dict[str, Any]:
    """Return the fields that must be reproducible: all except the metrics, which may contain times."""
    return {name: x for name, x in vars(rollout).items() if name != "metrics"}


def _are_equal(a: Any, b: Any) -> bool:
    """Return True if two nested structures of dicts, lists and tensors are exactly equal."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_are_equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(_are_equal, a, b))
    return bool(a == b)


class BanditPolicy(ActorCritic):
    """A linear policy that reads the context and the mean of the row's contexts so far.

    The mean makes outputs depend on earlier columns of the row, which the causality tests require.
    """

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self.actor, self.critic = nn.Linear(4, 2), nn.Linear(4, 1)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.1, generator=generator)

    def evaluate(self, obs: Observations, actions: Tensor) -> Evaluation:
        """Evaluate `actions` [R, L] at `obs` [R, L, 2]."""
        logprobs, values = self.logprobs_and_values(obs)
        taken = logprobs.gather(-1, actions[..., None]).squeeze(-1)
        return Evaluation(taken, -(logprobs.exp() * logprobs).sum(-1), values)

    def logprobs_and_values(self, obs: Observations) -> tuple[Tensor, Tensor]:
        """Return the log-probs of both arms [R, L, 2] and the value estimates [R, L]."""
        assert isinstance(obs, Tensor)
        number = torch.arange(1, obs.shape[1] + 1, device=obs.device)[:, None]
        features = torch.cat([obs, obs.cumsum(1) / number], -1)
        return self.actor(features).log_softmax(-1), self.critic(features).squeeze(-1)

    def critic_parameters(self) -> list[nn.Parameter]:
        return list(self.critic.parameters())


class BanditAdapter:
    """A contextual two-armed bandit for tests; one iteration takes milliseconds.

    Each pull is an episode. The one-hot context indicates the arm whose reward is 1; the other arm's reward is 0. About
    one column in five is masked, as in rollouts with resets or tool output. The optimal policy always pulls the
    indicated arm: mean reward and score are 1 (0.5 for a random policy), V is 1 and the entropy is 0.
    """

    def __init__(self, rows: int = 16, columns: int = 8, row_len: int = 1, seed: int = 0) -> None:
        self.rows, self.columns, self.row_len = rows, columns, row_len
        self.policy = BanditPolicy(torch.Generator().manual_seed(seed))
        self.generator = torch.Generator().manual_seed(seed + 1)

    @torch.no_grad()
    def collect(self) -> Rollout:
        shape = (self.rows, self.columns)
        context = torch.randint(0, 2, shape, generator=self.generator)
        obs = nn.functional.one_hot(context, 2).float()
        logprobs, values = self.policy.logprobs_and_values(obs.view(-1, self.row_len, 2))
        draws = torch.rand(shape, generator=self.generator)
        actions = (draws < logprobs[..., 1].exp().view(shape)).long()
        mask = torch.rand(shape, generator=self.generator) >= 0.2
        mask[0, 0] = True
        rewards = (actions == context).float()
        return Rollout(
            obs=obs,
            actions=actions,
            logprobs=logprobs.view(*shape, 2).gather(-1, actions[..., None]).squeeze(-1),
            values=values.view(shape),
            rewards=rewards,
            next_values=torch.zeros(shape),
            continues=torch.zeros(shape, dtype=torch.bool),
            mask=mask,
            row_len=self.row_len,
            metrics={"reward/score": float(rewards[mask].mean())},
        )

    def extra_loss(self, generator: torch.Generator) -> None:
        return None

    @torch.no_grad()
    def score(self, episodes: int, seed: int, greedy: bool) -> list[float]:
        generator = torch.Generator().manual_seed(seed)
        context = torch.randint(0, 2, (episodes, 1), generator=generator)
        chances = self.policy.logprobs_and_values(nn.functional.one_hot(context, 2).float())[0][..., 1].exp()
        draws = torch.full_like(chances, 0.5) if greedy else torch.rand(chances.shape, generator=generator)
        scores: list[float] = ((draws < chances).long() == context).float().squeeze(1).tolist()
        return scores

    def state_dict(self) -> dict[str, Any]:
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.generator.set_state(state["generator"])

    def close(self) -> None:
        """Do nothing: the adapter has no resources to close."""
