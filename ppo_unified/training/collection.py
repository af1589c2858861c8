"""Collect rollouts for the engine, and reject those that are incomplete or contain NaN or infinity."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from ppo_unified.config.spec import WorkCounter
from ppo_unified.engine.optimizers import NonFiniteError
from ppo_unified.engine.rollout import Adapter, Observations, Rollout
from ppo_unified.runs.heartbeat import Heartbeat
from ppo_unified.runs.signals import Interrupted, StopRequest


class Collector:
    """Calls an adapter's `collect`, which a stop request can interrupt, and rejects rollouts with NaN or infinity.

    `state` is the adapter's state after the last complete rollout. It is stored after each rollout because it cannot be
    read later: a stop request can interrupt the next rollout before its end and terminate the worker processes.
    """

    def __init__(
        self,
        adapter: Adapter,
        stop: StopRequest,
        heartbeat: Heartbeat,
        updates: WorkCounter,
        on_rollout: Callable[[Rollout], None] = lambda rollout: None,
    ) -> None:
        """Create a collector. `updates` counts the work of the update that follows each rollout. `on_rollout` is called
        with each rollout, before the update; a stop request can interrupt it."""
        self.adapter, self.stop, self.heartbeat, self.updates = adapter, stop, heartbeat, updates
        self.on_rollout = on_rollout
        self.state = adapter.state_dict()
        self.rollout: Rollout | None = None  # the last rollout; None during collection

    def collect(self) -> Rollout:
        """Return the adapter's next rollout. Raises NonFiniteError or Interrupted.

        Before it raises Interrupted, it restores the policy's buffers (such as observation statistics).
        """
        self.rollout, policy = None, self.adapter.policy
        self.heartbeat.enter("collecting", find_counter(self.adapter))
        buffers = [buffer.clone() for buffer in policy.buffers()]
        try:
            with self.stop.interruptible():
                rollout, state = self.adapter.collect(), self.adapter.state_dict()
                check_rollout(rollout)
                self.heartbeat.enter("saving")
                self.on_rollout(rollout)
            self.rollout, self.state = rollout, state
        except Interrupted:  # from the rollout, or from any line above if the caller's code is interruptible
            with torch.no_grad():
                for buffer, before in zip(policy.buffers(), buffers, strict=True):
                    buffer.copy_(before)
            raise
        self.heartbeat.enter("updating", self.updates)
        return rollout

    def extra_loss(self, generator: torch.Generator) -> tuple[Tensor, Mapping[str, float]] | None:
        return self.adapter.extra_loss(generator)


def find_counter(adapter: Adapter) -> WorkCounter | None:
    """Return the adapter's counter, or None if it does not count its work."""
    counter = getattr(adapter, "counter", None)
    return counter if isinstance(counter, WorkCounter) else None


class Place(NamedTuple):
    """The place of the first NaN or infinity. Quantities such as gradients have no row and no column."""

    quantity: str
    row: int | None = None
    column: int | None = None


def check_rollout(rollout: Rollout) -> None:
    """Raise NonFiniteError if a valid step contains NaN or infinity. The error names the quantity, row and column."""
    names = ("rewards", "logprobs", "values", "next_values")
    total = torch.where(rollout.mask, torch.stack([getattr(rollout, name) for name in names]), 0.0).sum()
    observations = name_observations(rollout.obs)
    healthy = all(bool(torch.isfinite(x).all()) for x in observations.values() if x.is_floating_point())
    if healthy and torch.isfinite(total):
        return
    quantities = observations | {name: getattr(rollout, name) for name in names}
    place = find_nonfinite(quantities, rollout.mask)
    if place is not None:
        raise NonFiniteError(f"the rollout's {place.quantity} is not finite in row {place.row}, column {place.column}")


def name_observations(obs: Observations) -> dict[str, Tensor]:
    return {"obs": obs} if isinstance(obs, Tensor) else {f"obs.{key}": x for key, x in obs.items()}


def find_nonfinite(quantities: Mapping[str, Tensor], mask: Tensor) -> Place | None:
    """Return the first quantity [R, L, ...] that contains NaN or infinity where `mask` [R, L] is True, or None."""
    for name, x in quantities.items():
        if x.is_floating_point():
            bad = ~torch.isfinite(x).flatten(2).all(2) if x.ndim > 2 else ~torch.isfinite(x)
            if (bad & mask).any():  # if all values are finite, this is the only synchronization with the device
                row, column = (bad & mask).nonzero()[0].tolist()
                return Place(name, row, column)
    return None
