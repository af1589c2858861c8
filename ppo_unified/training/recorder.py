"""Record an iteration for `inspect`: the rollout, the update's view of each step in every epoch, and the result.

Some quantities exist only before the update, such as the old policy's likeliest actions. The recorder therefore decides
right after the rollout whether the iteration is recorded.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ppo_unified.config.registry import find_adapter, load
from ppo_unified.config.schema import RunConfig
from ppo_unified.engine.batch import Batch
from ppo_unified.engine.ppo import Iteration, Learner, Progress
from ppo_unified.engine.rollout import Evaluation, Rollout
from ppo_unified.runs import samples
from ppo_unified.runs.heartbeat import Heartbeat
from ppo_unified.runs.stored_iteration import Alternatives, StoredIteration
from ppo_unified.training.collection import name_observations
from ppo_unified.training.evaluation import is_due
from ppo_unified.training.state import TrainingState
from ppo_unified.training.step_table import StepTable, convert_to_arrays, make_step_table


class UpdateObserver:
    """Records the policy's outputs at every step and in every epoch of an update. `Learner.observe` calls it."""

    def __init__(self, learner: Learner, rollout: Rollout) -> None:
        rows = int(rollout.rows(rollout.mask).any(1).sum())
        self.minibatches = min(learner.ppo.minibatches, rows)  # per epoch
        self.shape = rollout.mask.shape
        self.names = ["logprob", "value", "entropy"]
        self.names += ["advantage_used"] if learner.ppo.normalize_advantages == "minibatch" else []
        self.epochs = list[dict[str, Tensor]]()  # the quantities [N * T] in each epoch that has begun
        self.number = -1  # of the current minibatch, counted over all epochs
        self._weight: Tensor | None = None  # of the current minibatch
        self.seconds = 0.0  # time that the observer has taken

    def __call__(self, micro: Batch, new: Evaluation, weight: Tensor) -> None:
        """Record a micro-batch. `weight` is the same tensor for all micro-batches of one minibatch."""
        started = time.perf_counter()
        if weight is not self._weight:
            self.number, self._weight = self.number + 1, weight
        epoch, minibatch = divmod(self.number, self.minibatches)
        if epoch == len(self.epochs):
            self.epochs.append(self._make_quantities(micro.mask.device))
        quantities = self.epochs[epoch]
        found = {"logprob": new.logprobs, "value": new.values, "entropy": new.entropy}
        found["advantage_used"] = micro.advantages
        places = micro.places[micro.mask]
        for name in self.names:
            quantities[name][places] = found[name].detach()[micro.mask].float()
        quantities["minibatch"][places] = minibatch
        self.seconds += time.perf_counter() - started

    def _make_quantities(self, device: torch.device) -> dict[str, Tensor]:
        size = self.shape.numel()
        quantities = {name: torch.zeros(size, device=device) for name in self.names}
        return quantities | {"minibatch": torch.full((size,), -1, dtype=torch.int32, device=device)}

    def to_arrays(self, rows: int) -> dict[str, np.ndarray]:
        """Return each quantity as an array [E, rows, T], where E is the number of epochs that the update started."""
        return {
            name: torch.stack([epoch[name] for epoch in self.epochs]).view(-1, *self.shape)[:, :rows].cpu().numpy()
            for name in (*self.names, "minibatch")
        }


class Recorder:
    """Records the first iteration, every `log.samples_every`-th, the last one and those that a user requests.

    Call `plan` before the rollout of each iteration, `begin` between its rollout and its update, and `end` after its
    update. A request that arrives after `plan` counts for the following iteration, so that a checkpoint can be written
    before every recorded iteration.
    """

    def __init__(self, config: RunConfig, heartbeat: Heartbeat, state: TrainingState) -> None:
        self.run, self.config, self.state, self.best_effort = heartbeat.run, config, state, heartbeat.best_effort
        self.spec = find_adapter(config.kind)
        self._observer: UpdateObserver | None = None
        self._alternatives: dict[str, tuple[Tensor, Tensor]] = {}
        self._record: Any = None
        self._used_state: dict[str, Any] = {}
        self._last_size = 0  # of the last rollout, an upper limit for the steps of the next one
        self.seconds = 0.0  # time taken for the current iteration
        self.plan()

    def plan(self) -> bool:
        """Decide whether the next iteration is recorded. Return True if a checkpoint has to precede it.

        It has to if the iteration is recorded or reaches the run's total. It does not have to if the iteration only may
        solve the task, because a checkpoint before each such iteration would slow down short runs.
        """
        number, every = self.state.learner.progress.iteration + 1, self.config.log.samples_every
        is_scheduled = bool(every) and (number == 1 or number % every == 0)
        self.is_due = is_scheduled or samples.is_requested(self.run)
        return self.is_due or (bool(every) and self._advance(self._last_size).remaining <= 0)

    def begin(self, rollout: Rollout) -> None:
        """Prepare to record the iteration of this rollout, if it is due or may be the last one."""
        learner, started = self.state.learner, time.perf_counter()
        self._observer, learner.observe, self._alternatives = None, None, {}
        self._last_size = rollout.mask.numel()
        if not (self.is_due or self._may_be_last(int(rollout.mask.sum()))):
            return
        self._observer = learner.observe = UpdateObserver(learner, rollout)
        self._used_state = {
            "clip_scale": learner.scale(learner.ppo.anneal_clip),
            "penalty_coef": learner.progress.penalty_coef,
            "critic_only": learner.trains_critic_only,
            "kl_coef": rollout.metrics.get("ref/kl_coef"),
            "row_len": rollout.row_len,
        }
        # now, because a stop request may end the processes of environments before the iteration is stored
        self._record = load(self.spec.record)(self.state.adapter, rollout) if self.spec.record else None
        self._add_alternatives("old", rollout, reference=False)
        self._add_alternatives("ref", rollout, reference=True)
        self.seconds += time.perf_counter() - started

    def _may_be_last(self, steps: int) -> bool:
        """Return True if the run may end after the next iteration, which has at most this number of valid steps."""
        if not self.config.log.samples_every:
            return False
        after = self._advance(steps)
        may_be_solved = self.config.stop_when_solved and is_due(self.config.eval.every_steps, after, steps)
        return after.remaining <= 0 or may_be_solved

    def _advance(self, steps: int) -> Progress:
        """Return the progress after the next iteration, which has at most this number of valid steps."""
        progress = self.state.learner.progress
        return replace(progress, steps=progress.steps + steps, iteration=progress.iteration + 1)

    def _add_alternatives(self, name: str, rollout: Rollout, reference: bool) -> Tensor | None:
        """Compute the likeliest actions. Return the log-probs [N, T] of the rollout's actions if they are known."""
        found = load(self.spec.alternatives)(self.state.adapter, rollout, reference) if self.spec.alternatives else None
        if found is None:
            return None
        actions, logprobs, taken = found
        self._alternatives[name] = actions, logprobs
        return taken  # type: ignore[no-any-return] # returned by a function that is loaded by name

    def end(self, iteration: Iteration, metrics: dict[str, float], is_last: bool) -> dict[str, np.ndarray] | None:
        """Store the iteration if it is due. Return its histograms, or None if it is not. Adds entries to `metrics`."""
        observer, self._observer, self.state.learner.observe = self._observer, None, None
        started, histograms = time.perf_counter(), None
        if observer is not None:
            self.seconds += observer.seconds
            if self.is_due or (is_last and self.config.log.samples_every):
                histograms = self._store(observer, iteration, metrics)
            self.seconds += time.perf_counter() - started
        if self.seconds:
            metrics["time/samples_s"] = self.seconds
        self.seconds = 0.0
        return histograms

    def _store(
        self, observer: UpdateObserver, iteration: Iteration, metrics: dict[str, float]
    ) -> dict[str, np.ndarray]:
        logprobs = self._add_alternatives("new", iteration.rollout, reference=False)
        table = make_step_table(self.state.learner, iteration, logprobs)
        metrics |= table.metrics
        stored = self._collect(observer, iteration, table, metrics)
        with self.best_effort.attempt("samples/"):
            samples.write(self.run, stored)
            samples.clear_request(self.run)
            samples.thin_out(self.run, self.config.log.samples_mb * 1e6)
        return table.histograms

    def _collect(
        self, observer: UpdateObserver, iteration: Iteration, table: StepTable, metrics: Mapping[str, float]
    ) -> StoredIteration:
        learner, rollout, adapter = self.state.learner, iteration.rollout, self.state.adapter
        own = load(self.spec.explain)(adapter, rollout) if self.spec.explain else {}
        observations = name_observations(rollout.obs)
        tensors = [*observations.values(), rollout.actions, *table.columns.values()]
        tensors += [x for epoch in observer.epochs for x in epoch.values()]
        tensors += [x for pair in self._alternatives.values() for x in pair]
        rows = samples.rows_to_keep(
            rollout.mask.cpu().numpy(), sum(x.numel() * x.element_size() for x in tensors) // len(rollout.mask)
        )
        alternatives = {
            name: Alternatives(_array(actions, rows), _array(logprobs.float(), rows))
            for name, (actions, logprobs) in self._alternatives.items()
        }
        shown = sorted({action for found in alternatives.values() for action in np.unique(found.actions).tolist()})
        return StoredIteration(
            iteration=learner.progress.iteration,
            step=learner.progress.steps,
            steps=int(iteration.batch.mask.sum()),
            gamma=learner.ppo.gamma,
            lam=learner.ppo.lam,
            clip=table.clip,
            clip_high=table.clip_high,
            advantage_kind=learner.ppo.advantage,
            value_target=learner.ppo.value_target,
            metrics=dict(metrics),
            columns=convert_to_arrays(table.columns, own, self.spec.explain, rows),
            options=self.config.model_dump(mode="json"),
            state=self._used_state,
            epochs=observer.to_arrays(rows),
            alternatives=alternatives,
            observations={name: _array(x, rows) for name, x in observations.items()},
            actions=_array(rollout.actions, rows),
            record=self._record,
            vocabulary=load(self.spec.action_texts)(adapter, shown) if self.spec.action_texts and shown else {},
        )


def _array(x: Tensor, rows: int) -> np.ndarray:
    kept = x[:rows].detach().cpu()
    return (kept.float() if kept.dtype == torch.bfloat16 else kept).numpy()  # numpy has no type bfloat16
