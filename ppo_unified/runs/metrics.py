"""Every metric, named once: TensorBoard descriptions, the reference page and the UI's explanations read this table."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class Metric(NamedTuple):
    unit: str
    meaning: str
    healthy: str = ""  # what one expects to see


METRICS: dict[str, Metric] = {
    "episode/return": Metric(
        "reward", "mean return of the last 100 finished training episodes, actions sampled", "rises"
    ),
    "episode/length": Metric("steps", "mean length of the last 100 finished training episodes"),
    "eval/return": Metric(
        "reward", "mean return of greedy evaluation episodes, on seeds that training never sees", "rises"
    ),
    "eval/score": Metric("score", "the one number that says how well, from the evaluation", "rises"),
    "eval/sampled_score": Metric("score", "mean score of sampled responses to held-out prompts", "rises"),
    "eval/gold": Metric(
        "score",
        "mean true score of those sampled responses",
        "rises with eval/sampled_score; falling while that rises is reward hacking",
    ),
    "eval/kl": Metric(
        "nats", "KL to the reference over the whole vocabulary per sampled held-out response", "below 10"
    ),
    "eval/length": Metric("tokens", "mean length of sampled held-out responses"),
    "eval/eos_rate": Metric("share", "sampled held-out responses that ended by themselves", "near 1"),
    "eval/repetition": Metric("share", "token triples that a sampled held-out response had used before", "near 0"),
    "loss/policy": Metric(
        "", "the policy objective, negated; mean over the steps of the last epoch", "near 0; its size says little"
    ),
    "loss/value": Metric(
        "value^2", "half the squared error of the value against its target", "falls, then follows the returns"
    ),
    "loss/entropy": Metric("nats", "minus the policy's entropy: what the entropy bonus would lower"),
    "loss/ptx": Metric("nats", "the pretraining term, per token"),
    "policy/entropy": Metric(
        "nats", "mean entropy of the action distribution", "falls slowly; near 0 early means exploration is over"
    ),
    "policy/kl": Metric(
        "nats",
        "KL(old || new) by ratio - 1 - log ratio, last epoch (Schulman, joschu.net/blog/kl-approx.html)",
        "0.003 to 0.03",
    ),
    "policy/clip_fraction": Metric("share", "steps whose ratio left the clip range in the last epoch", "0.05 to 0.3"),
    "policy/kl_after": Metric(
        "nats",
        "KL from the old policy to the new after the iteration's updates, over all steps; where samples are stored",
    ),
    "policy/clip_fraction_after": Metric(
        "share", "steps whose ratio is outside the clip range after the iteration's updates; where samples are stored"
    ),
    "policy/ratio_max": Metric("", "largest ratio new / old of the last epoch", "below 3"),
    "policy/penalty_coef": Metric("", "weight of KL(old || new) in the penalty objective"),
    "value/explained_variance": Metric(
        "",
        "1 - Var(target - V_old) / Var(target): what the critic foresaw",
        "towards 1; below 0 is worse than a constant",
    ),
    "value/mean": Metric("value", "mean of V_old over valid steps, in the units the critic is trained in"),
    "reward/score": Metric("score", "mean terminal score"),
    "reward/score_std": Metric("score", "standard deviation of terminal scores", "shrinks as the policy settles"),
    "reward/gold": Metric(
        "score",
        "mean true score, where reward/score only stands for it",
        "rises with reward/score; falling while that rises is reward hacking",
    ),
    "reward/total": Metric("reward", "mean sum of rewards, penalties included"),
    "reward/kl_penalty": Metric("reward", "mean sum of the KL penalty"),
    "ref/kl": Metric(
        "nats", "mean KL to the reference per response, by the log-ratio of the sampled tokens (k1)", "below 10"
    ),
    "ref/kl_k2": Metric("nats", "the same by half the squared log-ratio"),
    "ref/kl_k3": Metric("nats", "the same by exp(-log-ratio) - 1 + log-ratio, never negative"),
    "ref/kl_full": Metric("nats", "the same as the exact sum over the vocabulary at every token", "below 10"),
    "ref/kl_coef": Metric("", "weight of the KL penalty"),
    "response/length": Metric("tokens", "mean length of a response"),
    "response/eos_rate": Metric("share", "responses that ended by themselves"),
    "response/repetition": Metric("share", "token triples that a response had used before", "near 0"),
    "optim/lr": Metric("", "learning rate of the policy"),
    "optim/grad_norm": Metric("", "gradient norm before clipping, mean over the iteration's optimizer steps"),
    "optim/steps": Metric(
        "", "optimizer steps in this iteration", "epochs x minibatches, fewer after an early stop by KL"
    ),
    "optim/skipped": Metric(
        "", "minibatches left out for a loss or gradient that was not finite (optim.on_nonfinite = 'skip')", "0"
    ),
    "optim/epochs": Metric("", "epochs begun in this iteration"),
    "time/steps_per_second": Metric("1/s", "steps per second since the start, everything included"),
    "time/collect_s": Metric("s", "time to collect the rollout"),
    "time/generate_s": Metric("s", "part of time/collect_s that sampled responses"),
    "time/score_s": Metric("s", "part of time/collect_s that scored them"),
    "time/update_s": Metric("s", "time to update on it"),
    "invariant/first_ratio_error": Metric(
        "", "largest |ratio - 1| on the first minibatch, before any update", "below 1e-5 in fp32"
    ),
    "invariant/gae_error": Metric(
        "", "largest difference between GAE and its defining sum, on one row", "below 1e-4 of the advantages' size"
    ),
    "invariant/optimizer_steps_error": Metric(
        "", "optimizer steps missing from epochs x minibatches, early stops apart", "0"
    ),
    "health/warnings": Metric("", "health checks that fire; which ones and why: docs/health.md", "0"),
    "system/cpu": Metric("%", "CPU use of this process, 100 = one core"),
    "system/memory_gb": Metric("GB", "resident memory of this process"),
    "system/gpu": Metric("%", "utilisation of the GPU"),
    "system/gpu_memory_gb": Metric("GB", "GPU memory reserved by torch"),
    "histogram/advantages": Metric("", "advantages of one rollout, before a minibatch normalises them"),
    "histogram/ratios": Metric(
        "",
        "ratio new / old at every step after the iteration's updates",
        "a spike at 1 with tails inside the clip range",
    ),
}

USUAL = (  # what one looks at first
    "eval/score",
    "episode/return",
    "policy/kl",
    "policy/entropy",
    "value/explained_variance",
    "loss/value",
)

AWAITED = (  # what the engine logs of every iteration, whatever it trains: charted before there is a point
    "policy/kl",
    "policy/entropy",
    "value/explained_variance",
    "loss/value",
    "loss/policy",
    "policy/clip_fraction",
)


def sort_tags(tags: Iterable[str]) -> list[str]:
    """In the order in which one looks at them, then by name."""
    found = set(tags)
    usual = [tag for tag in USUAL if tag in found]
    return usual + sorted(found - set(usual))


def describe(tag: str) -> str:
    """One line for a tag: meaning, unit, healthy range; empty for tags that adapters add without declaring them."""
    metric = METRICS.get(tag)
    if metric is None:
        return ""
    unit = f" [{metric.unit}]" if metric.unit else ""
    return f"{metric.meaning}{unit}" + (f". Healthy: {metric.healthy}" if metric.healthy else "")
