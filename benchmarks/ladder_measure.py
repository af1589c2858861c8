"""The measurements of benchmarks/ladder.py: learning curves, and gradients over many rollouts of the same policy."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from ladder import RUNGS, Row, preset_of

from envs.gym.options import GymConfig
from envs.gym.vector import GymAdapter
from ppo_unified import ActorCritic, Rollout, load_preset, run
from ppo_unified.engine.ppo import backward, make_batch, make_learner, train
from ppo_unified.runs.event_reader import EventReader
from ppo_unified.training.repeated_update import StoredRollout

ITERATIONS = 20  # of the last rung, after which a policy is partly trained


def measure_curve(rung: str, seed: int) -> dict[str, Any]:
    """Train a rung for all its steps, and return its learning curve."""
    config = load_preset(preset_of(rung), seed=seed, stop_when_solved=False, log={"samples_every": 0})
    with tempfile.TemporaryDirectory() as folder:
        started = time.process_time()
        result = run(config, runs=folder)
        seconds = time.process_time() - started
        reader = EventReader(result.path)
        reader.poll()
    found: dict[str, Any] = {}
    for tag in ("episode/return", "eval/score", "policy/kl", "policy/ratio_max"):
        steps, _, values = reader.series[tag].numpy()
        found |= {f"{tag} steps": steps.tolist(), tag: [float(f"{value:.4g}") for value in values]}
    return found | {"solved_step": result.solved_step, "score": result.score, "cpu_s": round(seconds, 1)}


def make_state(seed: int, iterations: int) -> tuple[ActorCritic, float, float]:
    """Train the last rung for some iterations. Return its policy, the factor of its rewards, and its mean return."""
    config = load_preset(preset_of("clip"), seed=seed)
    assert isinstance(config, GymConfig)
    adapter = GymAdapter(config, torch.device("cpu"))
    learner = make_learner(adapter.policy, config.ppo, config.optim, config.total_steps, seed=seed)
    training, policy = train(adapter, learner), deepcopy(adapter.policy)
    for _ in range(max(1, iterations)):
        metrics = next(training).metrics
    adapter.close()
    assert adapter.rewards is not None
    factor = float(1 / np.sqrt(adapter.rewards.m2 / adapter.rewards.count))
    return adapter.policy if iterations else policy, factor, metrics["episode/return"]


def collect(policy: ActorCritic, factor: float, seed: int, count: int) -> list[Rollout]:
    """Collect rollouts of the presets' size. Between two of them, one is discarded, to make them nearly independent.

    All rewards are multiplied by the same factor, because the presets' running statistics change between rollouts.
    """
    config = load_preset(preset_of("clip"), seed=seed, gym={"normalize_reward": False})
    assert isinstance(config, GymConfig)
    adapter = GymAdapter(config, torch.device("cpu"))
    adapter.policy.load_state_dict(policy.state_dict())
    rollouts = []
    for _ in range(count):
        adapter.collect()
        rollout = adapter.collect()
        rollouts.append(replace(rollout, rewards=factor * rollout.rewards))
    adapter.close()
    return rollouts


def gradients(policy: ActorCritic, rung: str, rollouts: Sequence[Rollout]) -> np.ndarray:
    """Return the gradient of a rung's policy loss for each rollout, as the engine computes it, [M, P]."""
    config = load_preset(preset_of(rung))
    learner, critic = make_learner(policy, config.ppo, config.optim), {id(p) for p in policy.critic_parameters()}
    own, found = [p for p in policy.parameters() if id(p) not in critic], []
    for rollout in rollouts:
        backward(learner, make_batch(rollout, config.ppo), critic_only=False)
        found.append(torch.cat([p.grad.flatten() for p in own if p.grad is not None]).double().numpy().copy())
    return np.stack(found)


def update_once(policy: ActorCritic, rung: str, rollout: Rollout) -> dict[str, float]:
    """Perform a rung's update on a rollout. This changes the policy. Return the update's metrics."""
    config = load_preset(preset_of(rung))
    learner = make_learner(policy, config.ppo, config.optim, config.total_steps)
    return next(train(StoredRollout(rollout, lambda generator: None), learner)).metrics


def describe(sample: np.ndarray, reference: np.ndarray, repetitions: int = 2000) -> dict[str, list[float | None]]:
    """Return the noise and the direction of gradients [M, P], each as the value and the ends of a 95 % interval.

    noise: the trace of the covariance divided by the squared norm of the mean, which is estimated without bias from
    pairs of different rollouts. It is None, for infinite, if this estimate is not positive.
    cosine: the mean cosine between one gradient and the reference. mean_cosine: the cosine of the mean gradient.
    The intervals are bootstrapped over the rollouts.
    """
    gram, toward = sample @ sample.T, sample @ reference / np.linalg.norm(reference)
    cosines, generator = toward / np.sqrt(gram.diagonal()), np.random.default_rng(1)

    def statistics(rows: np.ndarray) -> tuple[float, float, float]:
        pairs, different = gram[np.ix_(rows, rows)], rows[:, None] != rows[None, :]
        signal = pairs[different].mean()
        noise = (gram.diagonal()[rows].mean() - signal) / signal if signal > 0 else np.inf
        return noise, cosines[rows].mean(), toward[rows].mean() / np.sqrt(pairs.mean())

    everything = np.arange(len(sample))
    drawn = [statistics(generator.choice(everything, len(everything))) for _ in range(repetitions)]
    ends = np.quantile(np.array(drawn), [0.025, 0.975], axis=0, method="nearest")
    names = ("noise", "cosine", "mean_cosine")
    return {
        name: [float(f"{x:.4g}") if np.isfinite(x) else None for x in values]
        for name, *values in zip(names, statistics(everything), *ends, strict=True)
    }


def measure_gradients(point: str, seed: int, count: int) -> Row:
    """Measure the gradients of the rungs at the weights of one policy, with `count` rollouts.

    start: the initial weights of the policy and the critic. trained: the weights after some iterations of "clip". At
    both, the ratio is 1, so the last four rungs have the gradient of "gae". moved: the weights after one more update
    of ten epochs without a limit (rung "ratio") on another rollout. There, the rollouts are those of the policy before
    this update, and the critic is the one before it.

    The reference is the mean gradient over other rollouts, which are collected with the weights where the gradients are
    measured. It uses the observed rewards and the critic as baseline (rung "baseline").
    """
    policy, factor, score = make_state(seed, ITERATIONS if point != "start" else 0)
    rollouts, row = collect(policy, factor, 1000 + seed, count), Row(episode_return=score)
    if point == "moved":
        old, policy = policy, deepcopy(policy)
        metrics = update_once(policy, "ratio", collect(policy, factor, 2000 + seed, 1)[0])
        row |= {tag: metrics[tag] for tag in ("policy/kl", "policy/ratio_max")}
        for parameter, before in zip(policy.critic_parameters(), old.critic_parameters(), strict=True):
            parameter.data.copy_(before.data)
    reference = gradients(policy, "baseline", collect(policy, factor, 3000 + seed, count)).mean(0)
    rungs = RUNGS[5:] if point == "moved" else RUNGS[:5]
    row["rungs"] = {rung: describe(gradients(policy, rung, rollouts), reference) for rung in rungs}
    if point == "moved":  # for comparison: the same number of rollouts, collected with the weights after the update
        fresh = collect(policy, factor, 4000 + seed, count)
        row["rungs"]["gae"] = describe(gradients(policy, "gae", fresh), reference)
    return row
