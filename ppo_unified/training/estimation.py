"""Estimate what a run needs before its first iteration, and measure what it really needs."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import psutil
import torch

from ppo_unified.config.devices import available_bytes, peak_bytes
from ppo_unified.config.estimate import Estimate, format_bytes
from ppo_unified.config.registry import find_adapter, load
from ppo_unified.config.schema import RunConfig
from ppo_unified.engine.ppo import make_learner, train
from ppo_unified.engine.rollout import Adapter
from ppo_unified.errors import UsageError
from ppo_unified.runs.folder import Run, Status, free_space, write_atomically
from ppo_unified.text import print_err


def estimate_new_run(adapter: Adapter, config: RunConfig, run: Run, status: Status) -> RunConfig:
    """Estimate what a new run needs, print the estimate and store it in `status`.

    Return the configuration with the values that depend on the estimate, and write it to config.toml. Raises
    UsageError if the run needs more memory than is available.
    """
    found = estimate(adapter, config)
    if not found.fits:
        raise UsageError(found.problem())
    print_err(found.summary())
    free = free_space(run.path)
    if found.disk > free:
        print_err(
            f"warning: the checkpoints need {format_bytes(found.disk)} of disk space, but only {format_bytes(free)} "
            f"is free; lower checkpoint.keep, or use another --runs folder"
        )
    status.estimate = asdict(found)
    if found.options:
        config = config.replace(found.options)
        write_atomically(run.config, config.to_toml())
    return config


def add_totals(found: Estimate, config: RunConfig) -> Estimate:
    """Add the numbers of iterations and evaluations, which follow from the run's totals and the steps per iteration."""
    limits = [config.total_iterations or math.inf, config.total_steps / found.steps if config.total_steps else math.inf]
    iterations = math.ceil(min(limits))
    every = config.eval.every_steps
    during = (iterations * found.steps - 1) // every if every else 0
    kept = config.checkpoint.keep + 1  # and the best one
    return replace(found, iterations=iterations, evaluations=during + 1 + int(config.eval.at_start), checkpoints=kept)


def estimate(adapter: Adapter, config: RunConfig) -> Estimate:
    """Estimate what a run needs. If the adapter has no function for this, run two iterations to measure it."""
    hook = find_adapter(config.kind).estimate
    return add_totals(load(hook)(adapter) if hook else _measure(adapter, config), config)


def _measure(adapter: Adapter, config: RunConfig) -> Estimate:
    learner = make_learner(adapter.policy, config.ppo, config.optim, total_iterations=2, seed=config.seed)
    for done in train(adapter, learner):
        metrics, steps = done.metrics, int(done.batch.mask.sum())
    policy = sum(x.nbytes for x in adapter.policy.state_dict().values())
    trained = sum(p.nbytes for p in adapter.policy.parameters() if p.requires_grad)
    device, children = next(adapter.policy.parameters()).device, 0
    if device.type == "cpu":  # environments may run in child processes
        children = sum(child.memory_info().rss for child in psutil.Process().children(recursive=True))
    return Estimate(
        memory={"this process": peak_bytes(device), "child processes": children},
        available=available_bytes(device) + children,
        checkpoint=policy + 2 * trained,
        seconds={"collect": metrics["time/collect_s"], "update": metrics["time/update_s"]},
        steps=steps,
    )


def add_real_values(estimate: Mapping[str, Any], device: torch.device, iteration_s: Sequence[float]) -> dict[str, Any]:
    """Return the estimate of run.json with the real peak of memory and the real seconds per iteration."""
    if not estimate or not iteration_s:
        return dict(estimate)
    usual = statistics.median(iteration_s[1:] or iteration_s)  # the first iteration is slower
    return {**estimate, "real": {"memory": peak_bytes(device), "iteration_s": usual}}
