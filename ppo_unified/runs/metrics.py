"""Declarations of all metrics, used for TensorBoard descriptions, docs/runs.md and the help of the terminal UI."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class Metric(NamedTuple):
    unit: str
    meaning: str
    healthy: str = ""  # the expected range or trend


METRICS: dict[str, Metric] = {
    "episode/return": Metric(
        "reward", "mean return over the last 100 finished training episodes; actions are sampled", "rises"
    ),
    "episode/length": Metric("steps", "mean length of the last 100 finished training episodes"),
    "eval/return": Metric(
        "reward", "mean return over the greedy evaluation episodes, whose seeds are never used in training", "rises"
    ),
    "eval/score": Metric("score", "headline metric: mean return or score of an evaluation", "rises"),
    "eval/sampled_score": Metric("score", "mean score of sampled responses to held-out prompts", "rises"),
    "eval/gold": Metric(
        "score",
        "mean score that the true reward (llm.proxy_of) assigns to sampled responses to held-out prompts",
        "rises together with eval/sampled_score; reward hacking if it falls while eval/sampled_score rises",
    ),
    "eval/kl": Metric(
        "nats",
        "exact KL to the reference model, summed over the tokens of a sampled held-out response; mean over responses",
        "below 10",
    ),
    "eval/length": Metric("tokens", "mean length of sampled responses to held-out prompts"),
    "eval/eos_rate": Metric(
        "fraction", "fraction of sampled held-out responses that end with an end-of-sequence token", "near 1"
    ),
    "eval/repetition": Metric(
        "fraction",
        "fraction of 3-token sequences that occurred earlier in the same sampled held-out response",
        "near 0",
    ),
    "loss/policy": Metric(
        "", "policy loss (the negated PPO objective), mean over the steps of the last epoch", "near 0"
    ),
    "loss/value": Metric(
        "value^2",
        "half the squared difference between the value and its target, mean over the steps of the last epoch",
        "falls at first, then varies with the returns",
    ),
    "loss/entropy": Metric("nats", "entropy loss: the negated mean entropy of the policy"),
    "loss/ptx": Metric("nats", "pretraining loss: mean negative log-likelihood per token of the pretraining texts"),
    "policy/entropy": Metric(
        "nats",
        "mean entropy of the action distribution",
        "falls slowly; if it is near 0 early in training, exploration has ended",
    ),
    "policy/kl": Metric(
        "nats",
        "KL from the old to the new policy, estimated as the mean of ratio - 1 - log(ratio) over the last epoch "
        "(Schulman, joschu.net/blog/kl-approx.html)",
        "0.003 to 0.03",
    ),
    "policy/clip_fraction": Metric(
        "fraction",
        "fraction of steps in the last epoch whose probability ratio is outside the clip range",
        "0.05 to 0.3",
    ),
    "policy/kl_after": Metric(
        "nats",
        "KL from the old to the new policy over all steps, estimated after the updates of an iteration; logged only if "
        "samples are stored",
    ),
    "policy/clip_fraction_after": Metric(
        "fraction",
        "fraction of all steps whose probability ratio is outside the clip range after the updates of an iteration; "
        "logged only if samples are stored",
    ),
    "policy/ratio_max": Metric("", "largest ratio of new to old action probability in the last epoch", "below 3"),
    "policy/penalty_coef": Metric("", "weight of the KL term in the loss (ppo.objective = 'penalty')"),
    "value/explained_variance": Metric(
        "",
        "1 - Var(target - V_old) / Var(target): fraction of the variance of the targets that the critic predicted",
        "rises towards 1; a negative value means that the critic is worse than a constant",
    ),
    "value/mean": Metric("value", "mean of the critic's values V_old over all steps, in the critic's training units"),
    "reward/score": Metric("score", "mean score of the responses of one iteration"),
    "reward/score_std": Metric(
        "score",
        "standard deviation of the scores of the responses of one iteration",
        "shrinks as the policy converges",
    ),
    "reward/gold": Metric(
        "score",
        "mean score that the true reward (llm.proxy_of) assigns to the responses of one iteration",
        "rises together with reward/score; reward hacking if it falls while reward/score rises",
    ),
    "reward/total": Metric("reward", "mean total reward of a response, including the KL penalty"),
    "reward/kl_penalty": Metric("reward", "mean KL penalty of a response, summed over its tokens"),
    "ref/kl": Metric(
        "nats",
        "KL to the reference model, estimated as the sum of the log-ratios of a response's tokens (k1); "
        "mean over responses",
        "below 10",
    ),
    "ref/kl_k2": Metric(
        "nats",
        "KL to the reference model, estimated as the sum of half the squared log-ratios of a response's tokens (k2); "
        "mean over responses",
    ),
    "ref/kl_k3": Metric(
        "nats",
        "KL to the reference model, estimated as the sum of exp(-log-ratio) - 1 + log-ratio over a response's tokens "
        "(k3, never negative); mean over responses",
    ),
    "ref/kl_full": Metric(
        "nats",
        "exact KL to the reference model over the full vocabulary, summed over a response's tokens; "
        "mean over responses",
        "below 10",
    ),
    "ref/kl_coef": Metric("", "weight of the KL penalty in the reward"),
    "response/length": Metric("tokens", "mean length of the responses of one iteration"),
    "response/eos_rate": Metric("fraction", "fraction of responses that end with an end-of-sequence token"),
    "response/repetition": Metric(
        "fraction", "fraction of 3-token sequences that occurred earlier in the same response", "near 0"
    ),
    "optim/lr": Metric("", "learning rate of the policy"),
    "optim/grad_norm": Metric("", "gradient norm before clipping, mean over the optimizer steps of one iteration"),
    "optim/steps": Metric(
        "",
        "number of optimizer steps in one iteration",
        "epochs x minibatches; fewer if ppo.target_kl stops the update early",
    ),
    "optim/skipped": Metric(
        "",
        "number of minibatches skipped because the loss or gradient was not finite (optim.on_nonfinite = 'skip')",
        "0",
    ),
    "optim/epochs": Metric("", "number of epochs started in one iteration"),
    "time/steps_per_second": Metric("1/s", "mean number of steps per second since the training process started"),
    "time/collect_s": Metric("s", "time spent collecting the rollout of one iteration"),
    "time/generate_s": Metric("s", "time spent sampling responses (included in time/collect_s)"),
    "time/score_s": Metric("s", "time spent scoring responses (included in time/collect_s)"),
    "time/update_s": Metric("s", "time spent updating the policy and the critic in one iteration"),
    "invariant/first_ratio_error": Metric(
        "",
        "largest deviation of the probability ratio from 1 in the first minibatch, before any optimizer step",
        "below 1e-5 in float32",
    ),
    "invariant/gae_error": Metric(
        "",
        "largest difference between the computed advantages and the sum that defines GAE, in the first rollout row",
        "below 1e-4 times the size of the advantages",
    ),
    "invariant/optimizer_steps_error": Metric(
        "",
        "epochs x minibatches minus the actual number of optimizer steps; 0 if ppo.target_kl stops the update early",
        "0",
    ),
    "health/warnings": Metric("", "number of active health warnings; docs/health.md lists all checks", "0"),
    "system/cpu": Metric("%", "CPU use of the training process; 100 % is one full core"),
    "system/memory_gb": Metric("GB", "resident memory of the training process"),
    "system/gpu": Metric("%", "GPU utilization"),
    "system/gpu_memory_gb": Metric("GB", "GPU memory reserved by PyTorch"),
    "histogram/advantages": Metric(
        "", "advantages of one rollout; normalized only if ppo.normalize_advantages = 'batch'"
    ),
    "histogram/ratios": Metric(
        "",
        "ratio of new to old action probability at every step, after the updates of an iteration",
        "a peak at 1, with tails inside the clip range",
    ),
}

USUAL = (  # shown first, in this order
    "eval/score",
    "episode/return",
    "policy/kl",
    "policy/entropy",
    "value/explained_variance",
    "loss/value",
)

AWAITED = (  # logged in every iteration by every adapter, so empty charts appear before the first point
    "policy/kl",
    "policy/entropy",
    "value/explained_variance",
    "loss/value",
    "loss/policy",
    "policy/clip_fraction",
)


def sort_tags(tags: Iterable[str]) -> list[str]:
    """Sort tags with those in USUAL first, in that order, and then the others by name."""
    found = set(tags)
    usual = [tag for tag in USUAL if tag in found]
    return usual + sorted(found - set(usual))


def describe(tag: str) -> str:
    """Return one line with a tag's meaning, unit and healthy range, or an empty string for an undeclared tag."""
    metric = METRICS.get(tag)
    if metric is None:
        return ""
    unit = f" [{metric.unit}]" if metric.unit else ""
    return f"{metric.meaning}{unit}" + (f". Healthy: {metric.healthy}" if metric.healthy else "")
