"""The contract between engine and adapter as a function to call in an adapter's own tests, and a toy that keeps it.

def test_my_adapter_keeps_the_contract() -> None:
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
    """Call `make` several times and hold what it gives to everything that the engine and the trainer rely on.

    `make()` must build the same small adapter each time, seeded. `tolerance` is how far log-probs and values may
    differ between two readings of the same rows (1e-5 is fp32's; bf16 needs 1e-2).

    Raises AssertionError, one sentence that says what is broken and what to do.
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


def _require(holds: bool, sentence: str) -> None:
    if not holds:
        raise AssertionError(sentence)


def _check_rollout(rollout: Rollout) -> None:
    """What `Rollout` itself does not check: finite numbers at valid steps, and nothing that carries a graph."""
    _require(isinstance(rollout, Rollout), f"collect() gave a {type(rollout).__name__}; it must return a Rollout")
    for name in ("logprobs", "values", "rewards", "next_values"):
        x = getattr(rollout, name)
        _require(x.is_floating_point(), f"Rollout.{name} is {x.dtype}; it must be a floating-point tensor")
        _require(
            bool(x[rollout.mask].isfinite().all()),
            f"Rollout.{name} is not finite at a step where mask is True; mask that step or repair the number",
        )
        _require(not x.requires_grad, f"Rollout.{name} carries a graph; collect under torch.no_grad()")


def _check_next_values(rollout: Rollout, tolerance: float) -> None:
    """Where an episode goes on, what follows a step is its next valid column."""
    following, seen = rollout.values[:, -1], torch.zeros_like(rollout.mask[:, -1])
    for t in reversed(range(rollout.mask.shape[1])):
        goes_on = seen & rollout.mask[:, t] & rollout.continues[:, t]
        error = (rollout.next_values[:, t] - following)[goes_on].abs()
        _require(
            bool((error <= tolerance).all()),
            f"Rollout.next_values in column {t} is not the value at the next valid column although the episode "
            "continues there; give V_old of the state the step led to",
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
            f"policy.evaluate differs from Rollout.{name} by up to {error:.3g} before any update; collect() must store "
            "what evaluate() says of the same obs and actions (same weights, temperature, normalisation; no dropout)",
        )


def _check_rows_are_independent(policy: ActorCritic, rollout: Rollout, tolerance: float) -> None:
    obs, actions = map_obs(rollout.rows, rollout.obs), rollout.rows(rollout.actions)
    together = _outputs(policy, obs, actions)
    alone = _outputs(policy, map_obs(lambda x: x[:1], obs), actions[:1])
    _require(
        _are_close(together[:, :1], alone, tolerance),
        "a row's outputs change with the rows evaluated beside it; evaluate() must treat rows independently "
        "(no batch normalisation, no padding that leaks)",
    )


def _check_columns_are_causal(policy: ActorCritic, rollout: Rollout, tolerance: float) -> None:
    """Outputs at early columns must survive both another future and no future (micro-batches cut columns off)."""
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
            f"what stands in column {cut} or later changes outputs before it; evaluate() must be causal: "
            "column t may look at columns <= t of its row only",
        )
        short = _outputs(policy, map_obs(lambda x, cut=cut: x[:, :cut], obs), actions[:, :cut])  # type: ignore[misc]
        _require(
            _are_close(outputs[:, :, :cut][:, before], short[:, before], tolerance),
            f"evaluating the first {cut} columns alone gives other outputs than evaluating all {length}; evaluate() "
            "must not depend on how many columns follow",
        )


def _replace_future(x: Tensor, cut: int) -> Tensor:
    """Columns from `cut` on taken from the neighbouring row, or from the row's own past where there is one row."""
    changed = x.clone()
    changed[:, cut:] = x.roll(1, 0)[:, cut:] if len(x) > 1 else x[:, :1]
    return changed


def _check_parameters(policy: ActorCritic, rollout: Rollout) -> None:
    """critic_parameters are the value's alone, and gradients reach both sides."""
    critic, everything = list(policy.critic_parameters()), {id(p) for p in policy.parameters()}
    own = {id(p) for p in critic}
    _require(bool(critic), "critic_parameters() is empty; it must give the parameters that only the value depends on")
    _require(own <= everything, "critic_parameters() gives a parameter that policy.parameters() lacks; register it")
    _require(own != everything, "critic_parameters() gives every parameter; those that log-probs depend on are not its")
    new = _evaluate(policy, rollout)
    valid = rollout.rows(rollout.mask)
    acting = _gradients(policy, new.logprobs[valid].sum() + new.entropy[valid].sum())
    valuing = _gradients(policy, new.values[valid].sum())
    _require(
        all(not bool(acting[id(p)].any()) for p in critic),
        "log-probs or entropy depend on a parameter in critic_parameters(); give only those of the value",
    )
    _require(
        any(bool(g.any()) for key, g in acting.items() if key not in own),
        "no gradient of the log-probs reaches the policy; evaluate() must not detach or run under no_grad",
    )
    _require(
        any(bool(valuing[id(p)].any()) for p in critic),
        "no gradient of the values reaches critic_parameters(); evaluate() must not detach them",
    )


def _gradients(policy: ActorCritic, output: Tensor) -> dict[int, Tensor]:
    """By parameter id; zeros where a parameter is not used."""
    parameters = [p for p in policy.parameters() if p.requires_grad]
    found = (
        torch.autograd.grad(output, parameters, retain_graph=True, allow_unused=True)
        if output.requires_grad
        else [None] * len(parameters)
    )
    every = {id(p): torch.zeros_like(p) for p in policy.parameters()}
    return every | {id(p): g for p, g in zip(parameters, found, strict=True) if g is not None}


def _check_masked_entries_are_ignored(policy: ActorCritic, rollout: Rollout, tolerance: float) -> None:
    """Numbers and actions at masked columns are replaced; the loss's gradient must not notice."""
    ppo = PPO(entropy_coef=0.01, normalize_advantages="none")
    as_collected = _loss_gradient(policy, make_batch(rollout, ppo), ppo)
    _require(
        bool(as_collected.isfinite().all()),
        "the gradient of PPO's loss is not finite; evaluate() must be finite at every column, masked ones included",
    )
    holes = ~rollout.mask
    actions = rollout.actions.clone()
    actions[holes] = actions[rollout.mask][0]
    numbers = ("logprobs", "values", "rewards", "next_values")
    broken = {name: getattr(rollout, name).masked_fill(holes, torch.nan) for name in numbers}
    again = _loss_gradient(policy, make_batch(replace(rollout, actions=actions, **broken), ppo), ppo)
    _require(
        _are_close(as_collected, again, tolerance),
        "what stands at masked columns (actions, log-probs, values, rewards) changes the gradient; evaluate() must let "
        "an action influence its own column alone",
    )


def _loss_gradient(policy: ActorCritic, batch: Batch, ppo: PPO) -> Tensor:
    loss = ppo_loss(policy.evaluate(batch.obs, batch.actions), batch, ppo).total(ppo.value_coef, ppo.entropy_coef)
    gradients = _gradients(policy, loss / batch.weights.sum()).values()
    return torch.cat([g.flatten() for g in gradients])


def _check_same_seed_same_rollout(fresh: Callable[[], Adapter], rollout: Rollout) -> None:
    _require(
        _are_equal(_repeatable_fields(fresh().collect()), _repeatable_fields(rollout)),
        "two adapters made alike collected different rollouts; draw everything from generators that the "
        "configuration seeds",
    )


def _check_score(fresh: Callable[[], Adapter]) -> None:
    scored, plain = fresh(), fresh()
    scored.collect()
    plain.collect()
    for greedy in (True, False):
        first, second = (scored.score(3, 7, greedy) for _ in range(2))
        kind = "greedy" if greedy else "sampled"
        _require(len(first) == 3, f"score(3, seed, greedy) gave {len(first)} scores; it must give one an episode")
        _require(first == second, f"{kind} scores of the same seed differ; score() must seed all it draws from")
    _require(
        _are_equal(_repeatable_fields(scored.collect()), _repeatable_fields(plain.collect())),
        "collect() after score() differs from collect() without; score() must use environments and generators of "
        "its own",
    )


def _check_state_dict(fresh: Callable[[], Adapter]) -> None:
    source = fresh()
    source.collect()
    saved = {"adapter": source.state_dict(), "policy": source.policy.state_dict()}
    try:
        document, tensors = split(saved)
    except TypeError as error:
        raise AssertionError(f"state_dict() cannot be kept: {error}") from error
    text, tensors = json.dumps(document, allow_nan=False), {name: x.clone() for name, x in tensors.items()}

    def restore() -> tuple[Adapter, str | None]:
        state = join(json.loads(text), {name: x.clone() for name, x in tensors.items()})
        adapter = fresh()
        adapter.collect()  # a state that has to be replaced, not added to
        adapter.collect()
        adapter.policy.load_state_dict(state["policy"])
        return adapter, adapter.load_state_dict(state["adapter"])

    (first, restarted), (second, _) = restore(), restore()
    loaded = {"adapter": first.state_dict(), "policy": first.policy.state_dict()}
    _require(
        bool(restarted) or _are_equal(loaded, saved),
        "state_dict() after load_state_dict() is not what was loaded; save and load all of it",
    )
    rollout = _repeatable_fields(first.collect())
    _require(
        _are_equal(rollout, _repeatable_fields(second.collect())),
        "two adapters that loaded the same state collected different rollouts; state_dict() must hold every generator",
    )
    _require(
        bool(restarted) or _are_equal(rollout, _repeatable_fields(source.collect())),
        "an adapter that loaded a state collected another rollout than the one that had saved it; state_dict() must "
        "hold where its world stands, or load_state_dict() must return what starts anew and why",
    )


def _check_state_dict_is_a_copy(adapter: Adapter) -> None:
    state = adapter.state_dict()
    before = copy.deepcopy(state)
    adapter.collect()
    _require(
        _are_equal(state, before),
        "collect() changed what state_dict() had returned before; state_dict() must return copies, so that a run can "
        "be stopped inside collect()",
    )


def _evaluate(policy: ActorCritic, rollout: Rollout) -> Evaluation:
    """[R, L] of a whole rollout."""
    new = policy.evaluate(map_obs(rollout.rows, rollout.obs), rollout.rows(rollout.actions))
    shape = rollout.rows(rollout.mask).shape
    for name, x in new._asdict().items():
        _require(x.shape == shape, f"evaluate().{name} is {list(x.shape)}; it must be [R, L] = {list(shape)}")
    return new


def _outputs(policy: ActorCritic, obs: Observations, actions: Tensor) -> Tensor:
    """log-probs, entropy and values, [3, R, L]."""
    with torch.no_grad():
        return torch.stack(tuple(policy.evaluate(obs, actions)))


def _are_close(a: Tensor, b: Tensor, tolerance: float) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, rtol=tolerance, atol=tolerance)


def _repeatable_fields(rollout: Rollout) -> dict[str, Any]:
    """What must repeat: everything but the metrics, which may hold times."""
    return {name: x for name, x in vars(rollout).items() if name != "metrics"}


def _are_equal(a: Any, b: Any) -> bool:
    """Equal to the bit, through dicts, lists and tensors."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_are_equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(_are_equal, a, b))
    return bool(a == b)


class BanditPolicy(ActorCritic):
    """Linear in the context and in the mean of the row's contexts so far, so that rows and causality mean something."""

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self.actor, self.critic = nn.Linear(4, 2), nn.Linear(4, 1)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.1, generator=generator)

    def evaluate(self, obs: Observations, actions: Tensor) -> Evaluation:
        """obs [R, L, 2], actions [R, L] -> Evaluation of [R, L] tensors."""
        logprobs, values = self.logprobs_and_values(obs)
        taken = logprobs.gather(-1, actions[..., None]).squeeze(-1)
        return Evaluation(taken, -(logprobs.exp() * logprobs).sum(-1), values)

    def logprobs_and_values(self, obs: Observations) -> tuple[Tensor, Tensor]:
        """log-probs of both arms [R, L, 2] and values [R, L]."""
        assert isinstance(obs, Tensor)
        number = torch.arange(1, obs.shape[1] + 1, device=obs.device)[:, None]
        features = torch.cat([obs, obs.cumsum(1) / number], -1)
        return self.actor(features).log_softmax(-1), self.critic(features).squeeze(-1)

    def critic_parameters(self) -> list[nn.Parameter]:
        return list(self.critic.parameters())


class BanditAdapter:
    """A two-armed bandit whose context names the arm that pays: milliseconds an iteration, no environment needed.

    Each pull is an episode: 1 for the arm that the context (one-hot) names, 0 for the other. One column in five is
    masked, as tool text or resets are. The optimum: always the named arm, a mean reward and score of 1 (chance: 0.5),
    V = 1 everywhere, entropy 0.
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
        """Nothing to close."""
