"""The seam between the engine and whatever it trains: what a policy must answer, and what was collected.

Letters used for shapes: N rows collected, T columns, R rows of an update, L columns of such a row.
A *column* is one decision; a *row* is what the policy has to see together (`row_len` columns of it).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor, nn

Observations: TypeAlias = Tensor | Mapping[str, Tensor]


def map_obs(function: Callable[[Tensor], Tensor], obs: Observations) -> Observations:
    """Apply `function` to a tensor, or to every tensor of a mapping."""
    if isinstance(obs, Tensor):
        return function(obs)
    return {key: function(x) for key, x in obs.items()}


class Evaluation(NamedTuple):
    """What the current policy says of actions already taken; each [R, L]."""

    logprobs: Tensor  # log pi(action | obs)
    entropy: Tensor  # of the whole action distribution, in nats
    values: Tensor  # V(obs), before the action


class ActorCritic(nn.Module):
    """A policy and its critic. Rows are independent; column t may look at columns <= t of its row only."""

    def evaluate(self, obs: Observations, actions: Tensor) -> Evaluation:
        """Score `actions` [R, L, ...] taken at `obs` [R, L, ...] (a tensor or a mapping of tensors)."""
        raise NotImplementedError(f"{type(self).__name__} must define evaluate(obs, actions)")

    def critic_parameters(self) -> Iterable[nn.Parameter]:
        """The parameters that only the value depends on: a whole critic, or the head on a shared trunk."""
        raise NotImplementedError(f"{type(self).__name__} must define critic_parameters()")


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """What one `Adapter.collect` gathered. The first two axes are [N, T] everywhere.

    Nothing here says "done": `next_values` carries what follows a step (the caller knows whether an episode died,
    was cut off, or goes on) and `continues` says whether credit flows back across it. Entries where `mask` is
    False are ignored, whatever they hold.

    Raises ValueError where a shape, a dtype or `row_len` contradicts `mask`.
    """

    obs: Observations  # [N, T, ...]
    actions: Tensor  # [N, T, ...]
    logprobs: Tensor  # log pi_old(action | obs)
    values: Tensor  # V_old(obs)
    rewards: Tensor
    next_values: Tensor  # V_old of the state the step led to; 0 where the episode terminated there
    continues: Tensor  # bool: the next valid column belongs to the same episode
    mask: Tensor  # bool: the policy chose this action (False: padding, prompt, tool output, reset)
    row_len: int  # columns the policy must see together: 1 if it is Markov, T if it reads whole sequences
    metrics: Mapping[str, float] = field(default_factory=dict)
    extras: Mapping[str, Tensor] = field(default_factory=dict)  # more to inspect at every step; the engine ignores them

    def __post_init__(self) -> None:
        shape = self.mask.shape
        obs = {"obs": self.obs} if isinstance(self.obs, Tensor) else {f"obs[{k!r}]": x for k, x in self.obs.items()}
        flat = {f.name: getattr(self, f.name) for f in fields(self)[2:8]}  # logprobs to mask: [N, T] and no more
        flat |= {f"extras[{name!r}]": x for name, x in self.extras.items()}
        for name, x in (obs | {"actions": self.actions} | flat).items():
            if x.shape[:2] != shape or (name in flat and x.ndim != 2):
                rest = "" if name in flat else ", ..."
                raise ValueError(
                    f"Rollout.{name} is {list(x.shape)}; it must be [N, T{rest}] with [N, T] = {list(shape)}"
                )
        for name in ("continues", "mask"):
            if flat[name].dtype is not torch.bool:
                raise ValueError(f"Rollout.{name} is {flat[name].dtype}; it must be torch.bool")
        if self.row_len < 1 or shape[1] % self.row_len:
            raise ValueError(f"Rollout.row_len = {self.row_len} does not divide T = {shape[1]}")
        if not self.mask.any():
            raise ValueError("Rollout.mask is False everywhere: there is no step to learn from")

    def rows(self, x: Tensor) -> Tensor:
        """[N, T, ...] -> [R, L, ...] with L = row_len."""
        return x.reshape(-1, self.row_len, *x.shape[2:])


class RolloutSource(Protocol):
    """What the engine needs of an adapter."""

    def collect(self) -> Rollout:
        """Act with the current policy and return what happened, with the old log-probs and values."""
        ...

    def extra_loss(self, generator: torch.Generator) -> tuple[Tensor, Mapping[str, float]] | None:
        """None, or a loss added once per optimizer step (InstructGPT's pretraining term) and its metrics. Draws from
        `generator` alone, and changes nothing that `state_dict` holds."""
        ...


class Adapter(RolloutSource, Protocol):
    """A world to act in together with the policy that acts; a whole run needs all of it."""

    @property
    def policy(self) -> ActorCritic: ...

    def score(self, episodes: int, seed: int, greedy: bool) -> list[float]:
        """One score an episode, from `episodes` fresh episodes; leaves the training state untouched."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs, the policy's weights apart: tensors, numbers, strings, lists, dicts. Copies:
        collecting more does not change them."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> str | None: ...  # what starts anew and why, if anything does

    def close(self) -> None: ...
