"""Records iterations of small adapters in the form of a sample file, by observing the policy during the update."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from envs.llm.adapter import LLMAdapter
from envs.llm.explain import explain
from ppo_unified.config.schema import PPO, Optim
from ppo_unified.engine.ppo import clip_range, make_learner, train
from ppo_unified.engine.rollout import ActorCritic, Adapter, Evaluation, Observations, Rollout
from ppo_unified.inspection.formulas import Array
from ppo_unified.runs.samples import StoredIteration
from ppo_unified.training.step_table import make_step_table

OUTPUTS = ("logprob", "value", "entropy")


@dataclass(frozen=True)
class Extended(StoredIteration):
    """A stored iteration with the fields of the inspector."""

    options: dict[str, Any]
    state: dict[str, Any]
    epochs: dict[str, Array]
    alternatives: dict[str, Any]
    observations: dict[str, Array]
    actions: Array | None
    record: Any
    vocabulary: dict[int, str]


class Observed(ActorCritic):
    """A policy that records every evaluation, and the place in the rollout of each evaluated step."""

    def __init__(self, policy: ActorCritic) -> None:
        super().__init__()
        self.policy, self.calls = policy, list[tuple[Tensor, Evaluation]]()

    def evaluate(self, obs: Observations, actions: Tensor) -> Evaluation:
        assert isinstance(obs, Mapping)
        new = self.policy.evaluate(obs["obs"], actions)
        self.calls.append((obs["place"], Evaluation(*(x.detach() for x in new))))
        return new

    def critic_parameters(self) -> Any:
        return self.policy.critic_parameters()


class ObservedAdapter:
    """An adapter whose observations contain the place of each step in the rollout."""

    def __init__(self, adapter: Adapter) -> None:
        self.adapter, self.policy = adapter, Observed(adapter.policy)
        self.scores: dict[str, Array] = {}

    def collect(self) -> Rollout:
        if isinstance(self.adapter, LLMAdapter):
            self.adapter.scores = self._record_scores(self.adapter)  # type: ignore[assignment]
        rollout = self.adapter.collect()
        place = torch.arange(rollout.mask.numel()).view(rollout.mask.shape)
        self.plain, self.policy.calls = rollout, []
        assert isinstance(rollout.obs, Tensor)
        return replace(rollout, obs={"obs": rollout.obs, "place": place})

    def _record_scores(self, adapter: LLMAdapter) -> Any:
        transforms = getattr(adapter.scores, "transforms", adapter.scores)

        def transform(raw: list[float], ended: list[bool]) -> list[float]:
            used = transforms(raw, ended)
            plain = copy.copy(transforms)
            options = {"score_clip": 0.0, "missing_eos_penalty": 0.0}
            if transforms.config.score_normalize == "running":
                options["score_normalize"] = "reference"  # the statistics already contain these scores
            plain.config = transforms.config.model_copy(update=options)
            self.scores = {"score_normalized": np.array(plain(raw, ended)), "score_used": np.array(used)}
            return list(used)

        transform.transforms = transforms  # type: ignore[attr-defined]
        transform.is_calibrated, transform.calibrate = transforms.is_calibrated, transforms.calibrate  # type: ignore[attr-defined]
        return transform

    def extra_loss(self, generator: torch.Generator) -> None:
        return None


def record(
    adapter: Adapter, ppo: PPO, options: Mapping[str, Any] | None = None, lr: float = 0.05, iterations: int = 1
) -> StoredIteration:
    """Train for some iterations and return the last one. `options` are the run's options outside of `ppo`."""
    ppo = ppo.model_copy(update={"microbatch_columns": 10**6})  # each call of the policy is one minibatch
    observed = ObservedAdapter(adapter)
    learner = make_learner(observed.policy, ppo, Optim(lr=lr), total_iterations=max(iterations, 2))
    run = train(observed, learner)
    for _ in range(iterations):
        state = {"clip_scale": learner.clip_scale, "penalty_coef": learner.progress.penalty_coef,
                 "critic_only": learner.trains_critic_only}  # fmt: skip
        if isinstance(adapter, LLMAdapter):
            state["kl_coef"] = adapter.kl.coef
        iteration = next(run)
    epochs = collect_epochs(observed.policy.calls, iteration.rollout, ppo)
    table = make_step_table(learner, iteration)
    columns = {name: x.numpy() for name, x in table.columns.items()}
    mask = iteration.rollout.mask
    rows = iteration.rollout.rows(mask)
    weight = rows / rows.sum(1, keepdim=True).clamp(min=1) if ppo.loss_mean == "sequence" else rows.float()
    columns["weight"] = weight.view(mask.shape).numpy()
    columns |= llm_columns(observed) if isinstance(adapter, LLMAdapter) else {}
    low, high = clip_range(ppo, state["clip_scale"])
    about = {"iteration": iterations, "step": 0, "steps": int(mask.sum()), "gamma": ppo.gamma, "lam": ppo.lam}
    about |= {"clip": low, "clip_high": high, "advantage_kind": ppo.advantage, "value_target": ppo.value_target}
    return make_stored(
        **about,
        metrics=iteration.metrics | table.metrics,
        columns=to_float32(columns),
        options={"ppo": ppo.model_dump()} | dict(options or {}),
        state=state,
        epochs=to_float32(epochs),
    )


def make_stored(**fields: Any) -> StoredIteration:
    """Return a stored iteration. Fields that are not given are empty, as in files of older versions."""
    own = {"options": {}, "state": {}, "epochs": {}, "alternatives": {}, "observations": {}, "actions": None,
           "record": None, "vocabulary": {}}  # fmt: skip
    return Extended(**own | fields)


def collect_epochs(calls: list[tuple[Tensor, Evaluation]], rollout: Rollout, ppo: PPO) -> dict[str, Array]:
    """Return the arrays [E, N, T] of the epochs."""
    count = min(ppo.minibatches, int(rollout.rows(rollout.mask).any(1).sum()))
    shape = (-(-len(calls) // count), *rollout.mask.shape)
    epochs: dict[str, Array] = {name: np.zeros(shape) for name in OUTPUTS} | {"minibatch": np.full(shape, -1)}
    for number, (places, new) in enumerate(calls):
        epoch, minibatch = divmod(number, count)
        for name, x in zip(("logprob", "entropy", "value"), new, strict=True):
            epochs[name][epoch].flat[places.flatten().numpy()] = x.flatten().numpy()
        epochs["minibatch"][epoch].flat[places.flatten().numpy()] = minibatch
    return epochs


def llm_columns(observed: ObservedAdapter) -> dict[str, Array]:
    assert isinstance(observed.adapter, LLMAdapter)
    columns = explain(observed.adapter, observed.plain)
    mask = observed.plain.mask.numpy()
    last = np.arange(mask.shape[1]) == (mask * np.arange(1, mask.shape[1] + 1)).argmax(1)[:, None]
    return columns | {name: np.where(last, x[:, None], 0.0) for name, x in observed.scores.items()}


def to_float32(arrays: Mapping[str, Array]) -> dict[str, Array]:
    return {name: x.astype(np.float32) if x.dtype.kind == "f" else x for name, x in arrays.items()}
