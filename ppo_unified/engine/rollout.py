"""The interface between the engine and an adapter: the policy, the rollout, and the adapter's methods.

A rollout has N rows and T columns; an update has R rows of L columns. Each column is one decision. A row of an update
contains the L = `row_len` consecutive columns that the policy must evaluate together.
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
    """The current policy's outputs for actions that were already taken; each tensor is [R, L]."""

    logprobs: Tensor  # log pi(action | obs)
    entropy: Tensor  # entropy of the action distribution, in nats
    values: Tensor  # V(obs), the value before the action


class ActorCritic(nn.Module):
    """A policy and its critic. The outputs at column t of a row must depend only on columns <= t of the same row."""

    def evaluate(self, obs: Observations, actions: Tensor) -> Evaluation:
        """Return the log-probs, entropy and values for `actions` [R, L, ...] taken at `obs` [R, L, ...]."""
        raise NotImplementedError(f"{type(self).__name__} must define evaluate(obs, actions)")

    def critic_parameters(self) -> Iterable[nn.Parameter]:
        """Return the parameters that only the value depends on: a separate critic, or the head on a shared trunk."""
        raise NotImplementedError(f"{type(self).__name__} must define critic_parameters()")


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """The experience that one call of `Adapter.collect` returns. The first two axes of every tensor are [N, T].

    There is no "done" flag. `next_values` contains V_old of the next state: 0 if the episode terminated, V_old of the
    final state if it was truncated. `continues` is False where an episode ended in either way. Entries where `mask` is
    False are ignored. Raises ValueError if a shape, a dtype or `row_len` does not match `mask`.
    """

    obs: Observations  # [N, T, ...]
    actions: Tensor  # [N, T, ...]
    logprobs: Tensor  # log pi_old(action | obs)
    values: Tensor  # V_old(obs)
    rewards: Tensor
    next_values: Tensor  # V_old of the state after the step; 0 if the episode terminated there
    continues: Tensor  # bool: the next valid column belongs to the same episode
    mask: Tensor  # bool: the policy chose this action (False: padding, prompt, tool output, reset)
    row_len: int  # columns that the policy must evaluate together: 1 if it is Markov, T if it reads sequences
    metrics: Mapping[str, float] = field(default_factory=dict)
    extras: Mapping[str, Tensor] = field(default_factory=dict)  # per-step data for `inspect`; the engine ignores it

    def __post_init__(self) -> None:
        shape = self.mask.shape
        obs = {"obs": self.obs} if isinstance(self.obs, Tensor) else {f"obs[{k!r}]": x for k, x in self.obs.items()}
        flat = {f.name: getattr(self, f.name) for f in fields(self)[2:8]}  # from logprobs to mask: exactly [N, T]
        flat |= {f"extras[{name!r}]": x for name, x in self.extras.items()}
        for name, x in (obs | {"actions": self.actions} | flat).items():
            if x.shape[:2] != shape or (name in flat and x.ndim != 2):
                rest = "" if name in flat else ", ..."
                raise ValueError(
                    f"Rollout.{name}: expected shape [N, T{rest}] with [N, T] = {list(shape)}, got {list(x.shape)}"
                )
        for name in ("continues", "mask"):
            if flat[name].dtype is not torch.bool:
                raise ValueError(f"Rollout.{name}: expected dtype torch.bool, got {flat[name].dtype}")
        if self.row_len < 1 or shape[1] % self.row_len:
            raise ValueError(f"Rollout.row_len: expected a divisor of T = {shape[1]}, got {self.row_len}")
        if not self.mask.any():
            raise ValueError("Rollout.mask is False everywhere: the rollout has no step to learn from")

    def rows(self, x: Tensor) -> Tensor:
        """Reshape `x` from [N, T, ...] to the update's [R, L, ...], where L = row_len."""
        return x.reshape(-1, self.row_len, *x.shape[2:])


class RolloutSource(Protocol):
    """The part of an adapter that the engine needs."""

    def collect(self) -> Rollout:
        """Act with the current policy and return the experience, including its log-probs and values."""
        ...

    def extra_loss(self, generator: torch.Generator) -> tuple[Tensor, Mapping[str, float]] | None:
        """Return None, or a loss to add to an optimizer step (InstructGPT's pretraining term) and its metrics. It must
        draw all random numbers from `generator` and must not change the state that `state_dict` returns."""
        ...


class Adapter(RolloutSource, Protocol):
    """An environment or a text task together with the policy that acts in it; a run needs all of these methods."""

    @property
    def policy(self) -> ActorCritic: ...

    def score(self, episodes: int, seed: int, greedy: bool) -> list[float]:
        """Return one score per episode for `episodes` new episodes, without changing the training state."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return the state that `load_state_dict` needs, except the policy's weights: tensors, numbers, strings, lists
        and dicts. They must be copies, which later calls of `collect` do not change."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> str | None:
        """Restore the state. Return None, or a message that names the parts that cannot be restored and the reason."""
        ...

    def close(self) -> None: ...
