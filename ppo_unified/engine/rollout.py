"""The interface between the engine and an adapter: the policy, the rollout, and the adapter's methods.

A rollout has N rows and T columns; each entry is one step. An update batch has R rows and L columns: each row contains
L = `row_len` consecutive steps that the policy must evaluate together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor, nn

Observations: TypeAlias = Tensor | Mapping[str, Tensor]
AddGradients: TypeAlias = Callable[..., None]  # takes the gradients of an Evaluation's fields; None = not used


def map_obs(function: Callable[[Tensor], Tensor], obs: Observations) -> Observations:
    """Apply `function` to the observation tensor or, for a mapping, to each of its tensors."""
    if isinstance(obs, Tensor):
        return function(obs)
    return {key: function(x) for key, x in obs.items()}


class Evaluation(NamedTuple):
    """The current policy's outputs for actions that were taken earlier. Each tensor has the shape [R, L]."""

    logprobs: Tensor  # log pi(action | obs)
    entropy: Tensor  # entropy of the action distribution, in nats
    values: Tensor  # V(obs), the value estimate before the action


class ActorCritic(nn.Module):
    """A policy and its critic. The outputs at column t of a row must depend only on columns <= t of the same row."""

    def evaluate(self, obs: Observations, actions: Tensor) -> Evaluation:
        """Return log-probs, entropies and value estimates for `actions` [R, L, ...] taken at `obs` [R, L, ...]."""
        raise NotImplementedError(f"{type(self).__name__} must define evaluate(obs, actions)")

    def evaluate_explicitly(self, obs: Observations, actions: Tensor) -> tuple[Evaluation, AddGradients] | None:
        """Return the result of `evaluate`, computed without autograd, and a function that adds to the existing `grad`
        of every parameter, given the gradients of the result. Return None if this policy needs autograd."""
        return None

    def critic_parameters(self) -> Iterable[nn.Parameter]:
        """Return the parameters that affect only value estimates: a separate critic, or the head on a shared trunk."""
        raise NotImplementedError(f"{type(self).__name__} must define critic_parameters()")


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """The experience that one call to `Adapter.collect` returns. The first two axes of every tensor are [N, T].

    There is no "done" flag. `next_values` is V_old of the state after the step, or 0 if the episode terminated.
    `continues` is False at the last step of an episode, whether it terminated or was truncated. Steps with `mask` False
    are ignored. Raises ValueError for an unexpected shape or dtype, an invalid `row_len`, or a mask that is all False.
    """

    obs: Observations  # [N, T, ...]
    actions: Tensor  # [N, T, ...]
    logprobs: Tensor  # log pi_old(action | obs)
    values: Tensor  # V_old(obs)
    rewards: Tensor
    next_values: Tensor  # V_old of the state after the step; 0 if the episode terminated
    continues: Tensor  # bool: True if the next valid column belongs to the same episode
    mask: Tensor  # bool: True if the policy chose the action; False for padding, prompts, tool output and resets
    row_len: int  # columns that must be evaluated together: 1 for a Markov policy, T for a sequence model
    metrics: Mapping[str, float] = field(default_factory=dict)
    extras: Mapping[str, Tensor] = field(default_factory=dict)  # per-step data for `inspect`; the engine ignores it

    def __post_init__(self) -> None:
        shape = self.mask.shape
        obs = {"obs": self.obs} if isinstance(self.obs, Tensor) else {f"obs[{k!r}]": x for k, x in self.obs.items()}
        flat = {f.name: getattr(self, f.name) for f in fields(self)[2:8]}  # from logprobs to mask: exactly [N, T]
        flat |= {f"extras[{name!r}]": x for name, x in self.extras.items()}
        for name, x in (obs | {"actions": self.actions} | flat).items():
            if x.shape[:2] != shape or (name in flat and x.ndim != 2):
                expected = f"[N, T{'' if name in flat else ', ...'}] with [N, T] = {list(shape)}"
                raise ValueError(f"Rollout.{name}: expected shape {expected}, got {list(x.shape)}")
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
        """Act with the current policy and return the experience, including log-probs and value estimates."""
        ...

    def extra_loss(self, generator: torch.Generator) -> tuple[Tensor, Mapping[str, float]] | None:
        """Return a loss to add to an optimizer step (such as InstructGPT's pretraining term) and its metrics, or None.
        Use only `generator` for random numbers, and do not change the state that `state_dict` returns."""
        ...


class Adapter(RolloutSource, Protocol):
    """An environment or a text task, together with the policy that acts in it. A run requires all of these methods."""

    @property
    def policy(self) -> ActorCritic: ...

    def score(self, episodes: int, seed: int, greedy: bool) -> list[float]:
        """Return the scores of `episodes` new episodes, or of fewer if no more exist. Keep the training state as is."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return the state that `load_state_dict` needs, without the policy's weights. The state may contain tensors,
        numbers, strings, lists and dicts. It must be a copy that later calls to `collect` do not change."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> str | None:
        """Restore a saved state. If a part cannot be restored, return a message that names the part and the reason."""
        ...

    def close(self) -> None: ...
