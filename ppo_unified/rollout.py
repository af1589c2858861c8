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

    def __post_init__(self) -> None:
        shape = self.mask.shape
        for name, x in self._tensors():
            if x.shape[:2] != shape:
                raise ValueError(
                    f"Rollout.{name} is {list(x.shape)}; its first two axes must be [N, T] = {list(shape)}"
                )
        for name in ("logprobs", "values", "rewards", "next_values"):
            if getattr(self, name).ndim != 2:
                raise ValueError(
                    f"Rollout.{name} is {list(getattr(self, name).shape)}; it must be [N, T] = {list(shape)}"
                )
        for name in ("continues", "mask"):
            if getattr(self, name).dtype is not torch.bool:
                raise ValueError(f"Rollout.{name} is {getattr(self, name).dtype}; it must be torch.bool")
        if self.row_len < 1 or shape[1] % self.row_len:
            raise ValueError(f"Rollout.row_len = {self.row_len} does not divide T = {shape[1]}")
        if not self.mask.any():
            raise ValueError("Rollout.mask is False everywhere: there is no step to learn from")

    def _tensors(self) -> Iterable[tuple[str, Tensor]]:
        for f in fields(self):
            x = getattr(self, f.name)
            if isinstance(x, Tensor):
                yield f.name, x
            elif f.name == "obs":
                yield from ((f"obs[{key!r}]", value) for key, value in x.items())

    def rows(self, x: Tensor) -> Tensor:
        """[N, T, ...] -> [R, L, ...] with L = row_len."""
        return x.reshape(-1, self.row_len, *x.shape[2:])


class Adapter(Protocol):
    """A world to act in together with the policy that acts. Everything the engine knows of either.

    The engine itself needs `policy`, `collect` and `extra_loss`; the runner needs the rest.
    """

    policy: ActorCritic

    def collect(self) -> Rollout:
        """Act with the current policy and return what happened, with the old log-probs and values."""
        ...

    def extra_loss(self, generator: torch.Generator) -> tuple[Tensor, Mapping[str, float]] | None:
        """None, or a loss added once per optimizer step (InstructGPT's pretraining term) and its metrics."""
        ...

    def score(self, episodes: int, seed: int, greedy: bool) -> list[float]:
        """One score an episode, from `episodes` fresh episodes; leaves the training state untouched."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs to go on, the policy's weights apart: tensors, numbers, strings, lists, dicts."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...

    def close(self) -> None: ...
