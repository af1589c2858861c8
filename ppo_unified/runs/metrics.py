"""Declares all metrics. TensorBoard, docs/runs.md and the terminal UI show these descriptions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple

from ppo_unified.text import clean


class Metric(NamedTuple):
    unit: str
    meaning: str
    healthy: str = ""  # the range or trend of a healthy run, such as "should rise"
    decoding: Literal["", "greedy", "sampled"] = ""  # how the actions were chosen whose rewards or scores it averages


METRICS: dict[str, Metric] = {
    "episode/return": Metric(
        "reward",
        "mean return of the last 100 finished training episodes (with sampled actions)",
        "should rise",
        decoding="sampled",
    ),
    "episode/length": Metric(
        "steps", "mean length of the last 100 finished training episodes (with sampled actions)", decoding="sampled"
    ),
    "episode/success": Metric(
        "fraction",
        "fraction of successful episodes (is_success or success in the info of the last step) among the last 100 "
        "finished training episodes (with sampled actions); logged only if the environment reports it",
        "should rise",
        decoding="sampled",
    ),
    "eval/success": Metric(
        "fraction",
        "fraction of successful episodes (is_success or success in the info of the last step) in a greedy evaluation; "
        "logged only if the environment reports it",
        "should rise",
        decoding="greedy",
    ),
    "episode/info/KEY": Metric(
        "",
        "mean of the number under KEY (one of gym.info_keys) in the info of the last step, over those of the last "
        "100 finished training episodes (with sampled actions) that report it",
        decoding="sampled",
    ),
    "eval/info/KEY": Metric(
        "",
        "mean of the number under KEY (one of gym.info_keys) in the info of the last step, over the episodes of a "
        "greedy evaluation that report it",
        decoding="greedy",
    ),
    "eval/return": Metric(
        "reward",
        "mean return of the greedy evaluation episodes; their seeds are never used in training",
        "should rise",
        decoding="greedy",
    ),
    "eval/score": Metric(
        "score",
        "mean return (Gymnasium) or mean score (language models) of a greedy evaluation; the headline metric",
        "should rise",
        decoding="greedy",
    ),
    "eval/sampled_score": Metric("score", "mean score of sampled responses to held-out prompts", "should rise"),
    "eval/NAME": Metric(
        "score",
        "mean score that the reward NAME assigns to sampled responses to held-out prompts, before weighting; logged if "
        "llm.reward names several rewards",
        "should rise together with eval/sampled_score; a fall while eval/sampled_score rises can indicate reward "
        "hacking",
        decoding="sampled",
    ),
    "eval/kl": Metric(
        "nats",
        "exact KL to the reference model, summed over a response's tokens and averaged over sampled "
        "responses to held-out prompts",
        "should stay below 10",
    ),
    "eval/length": Metric("tokens", "mean length of sampled responses to held-out prompts"),
    "eval/eos_rate": Metric(
        "fraction",
        "fraction of sampled responses to held-out prompts that end with an end token or a stop string",
        "should be near 1",
    ),
    "eval/repetition": Metric(
        "fraction",
        "fraction of 3-token sequences that repeat an earlier one in the same response, measured on "
        "sampled responses to held-out prompts",
        "should stay near 0",
    ),
    "loss/policy": Metric(
        "", "policy loss (the negated PPO objective), averaged over the steps of the last epoch", "should stay near 0"
    ),
    "loss/value": Metric(
        "value^2",
        "half the squared difference between the critic's value estimate and its target, averaged over "
        "the steps of the last epoch",
        "should fall at first and then vary with the returns",
    ),
    "loss/entropy": Metric("nats", "entropy loss (the policy's mean entropy, negated)"),
    "loss/ptx": Metric("nats", "pretraining loss: mean negative log-likelihood per token of the pretraining texts"),
    "policy/entropy": Metric(
        "nats",
        "mean entropy of the action distribution",
        "should fall slowly; a value near 0 early in training means that the policy no longer explores",
    ),
    "policy/kl": Metric(
        "nats",
        "KL from the old policy to the new one, estimated as the mean of ratio - 1 - log(ratio) over the "
        "last epoch (Schulman, joschu.net/blog/kl-approx.html)",
        "should be between 0.003 and 0.03",
    ),
    "policy/clip_fraction": Metric(
        "fraction",
        "fraction of steps in the last epoch whose probability ratio is outside the clip range",
        "should be between 0.05 and 0.3",
    ),
    "policy/action_clip_fraction": Metric(
        "fraction",
        "fraction of the sampled continuous actions (counted per component) that are outside the bounds of the action "
        "space and are therefore clipped",
        "should start below 0.9",
    ),
    "policy/action_spread": Metric(
        "fraction",
        "standard deviation of the continuous actions that the environment receives, divided by the width of the "
        "action space; the minimum over the components with finite bounds",
        "should start above 0.01",
    ),
    "policy/kl_after": Metric(
        "nats",
        "KL from the old policy to the new one, estimated over all steps after an iteration's last "
        "update; logged only when samples are stored",
    ),
    "policy/clip_fraction_after": Metric(
        "fraction",
        "fraction of all steps whose probability ratio is outside the clip range after an iteration's "
        "last update; logged only when samples are stored",
    ),
    "policy/ratio_max": Metric(
        "", "largest ratio of new to old action probability in the last epoch", "should stay below 3"
    ),
    "policy/penalty_coef": Metric("", "weight of the KL term in the loss; logged only if ppo.objective = 'penalty'"),
    "value/explained_variance": Metric(
        "",
        "1 - Var(target - V_old) / Var(target): the fraction of the targets' variance that the critic explains",
        "should rise towards 1; if it is negative, the critic is worse than a constant",
    ),
    "value/mean": Metric(
        "value",
        "mean of the critic's value estimates V_old over all steps, in the units in which the critic is trained",
    ),
    "reward/score": Metric("score", "mean score of the sampled responses in an iteration", decoding="sampled"),
    "reward/score_std": Metric(
        "score", "standard deviation of the scores of an iteration's responses", "should shrink as the policy converges"
    ),
    "reward/NAME": Metric(
        "score",
        "mean score that the reward NAME assigns to an iteration's sampled responses, before weighting; logged if "
        "llm.reward names several rewards",
        "should rise together with reward/score; a fall while reward/score rises can indicate reward hacking",
        decoding="sampled",
    ),
    "reward/left_out": Metric(
        "fraction",
        "fraction of an iteration's responses that are left out of the loss, because they have no score or because of "
        "llm.drop_truncated; not logged if it is 0",
    ),
    "reward/total": Metric(
        "reward", "total reward of a response, including the KL penalty, averaged over an iteration's responses"
    ),
    "reward/kl_penalty": Metric(
        "reward", "KL penalty summed over a response's tokens and averaged over an iteration's responses"
    ),
    "ref/kl": Metric(
        "nats",
        "k1 estimate of the KL to the reference model: the sum of the log-ratios of a response's tokens, "
        "averaged over responses",
        "should stay below 10",
    ),
    "ref/kl_k2": Metric(
        "nats",
        "k2 estimate of the KL to the reference model: half the sum of the squared log-ratios of a "
        "response's tokens, averaged over responses",
    ),
    "ref/kl_k3": Metric(
        "nats",
        "k3 estimate of the KL to the reference model (never negative): the sum of exp(-log-ratio) - 1 + log-ratio "
        "over a response's tokens, averaged over responses",
    ),
    "ref/kl_full": Metric(
        "nats",
        "exact KL to the reference model, computed over the full vocabulary, summed over a response's "
        "tokens and averaged over responses",
        "should stay below 10",
    ),
    "ref/kl_coef": Metric("", "weight of the KL penalty in the reward"),
    "response/length": Metric("tokens", "mean length of an iteration's responses"),
    "response/eos_rate": Metric(
        "fraction", "fraction of an iteration's responses that end with an end token or a stop string"
    ),
    "response/repetition": Metric(
        "fraction",
        "fraction of 3-token sequences that repeat an earlier one in the same response",
        "should stay near 0",
    ),
    "optim/lr": Metric("", "learning rate of the policy"),
    "optim/grad_norm": Metric("", "gradient norm before clipping, averaged over an iteration's optimizer steps"),
    "optim/steps": Metric(
        "",
        "number of optimizer steps in an iteration",
        "should be epochs x minibatches, or less if ppo.target_kl stops the update early",
    ),
    "optim/skipped": Metric(
        "",
        "number of minibatches skipped because the loss or gradient was not finite (optim.on_nonfinite = 'skip')",
        "should be 0",
    ),
    "optim/epochs": Metric("", "number of epochs started in an iteration"),
    "time/steps_per_second": Metric("1/s", "mean number of steps per second since the training process started"),
    "time/collect_s": Metric("s", "time spent collecting an iteration's rollout"),
    "time/generate_s": Metric("s", "time spent generating responses (part of time/collect_s)"),
    "time/score_s": Metric("s", "time spent scoring responses (part of time/collect_s)"),
    "time/samples_s": Metric("s", "time spent recording an iteration for `inspect`; absent if none was spent"),
    "time/update_s": Metric("s", "time spent updating the policy and the critic in an iteration"),
    "invariant/first_ratio_error": Metric(
        "",
        "largest deviation of the probability ratio from 1 in the first minibatch, before any optimizer step",
        "should stay below 1e-5 in float32",
    ),
    "invariant/sampler_error": Metric(
        "",
        "largest difference between the log-prob with which a token was sampled and its log-prob in training",
        "should stay below 1e-4 in float32 and 1 in bfloat16; not checked if the model selects experts or attention "
        "keys with top-k",
    ),
    "invariant/sampler_error_mean": Metric(
        "",
        "mean of these differences over all sampled tokens",
        "should stay below 1e-5 in float32 and 0.1 in bfloat16; if the model selects experts or attention keys with "
        "top-k, this limit applies to the median",
    ),
    "invariant/gae_error": Metric(
        "",
        "largest difference between the computed advantages and the sum that defines GAE, in the first "
        "row of the rollout",
        "should stay below 1e-4 times the magnitude of the advantages",
    ),
    "invariant/optimizer_steps_error": Metric(
        "",
        "epochs x minibatches minus the actual number of optimizer steps; 0 if ppo.target_kl stops the update early",
        "should be 0",
    ),
    "health/warnings": Metric("", "number of active health warnings; docs/health.md lists all checks", "should be 0"),
    "system/cpu": Metric("%", "CPU usage of the training process; 100 % is one full core"),
    "system/memory_gb": Metric("GB", "resident memory of the training process"),
    "system/gpu": Metric("%", "GPU utilization"),
    "system/gpu_memory_gb": Metric("GB", "GPU memory reserved by PyTorch"),
    "histogram/advantages": Metric(
        "", "advantages of one rollout; they are normalized only if ppo.normalize_advantages = 'batch'"
    ),
    "histogram/ratios": Metric(
        "",
        "ratio of new to old action probability at every step, after an iteration's last update",
        "should peak at 1, with tails inside the clip range",
    ),
}


class Limit(NamedTuple):
    """The limit of a health check."""

    value: float
    is_high: bool  # True if values above the limit are a problem, False if values below it are

    @property
    def name(self) -> str:
        """The words before the value: 'at most' or 'at least'."""
        return "at most" if self.is_high else "at least"


LIMITS = {  # limits of the health checks that compare a metric itself, not a quantity computed from several values
    "policy/kl": Limit(0.3, True),
    "policy/clip_fraction": Limit(0.5, True),
    "policy/action_clip_fraction": Limit(0.9, True),
    "policy/action_spread": Limit(0.01, False),
    "value/explained_variance": Limit(-0.1, False),
    "invariant/first_ratio_error": Limit(1e-2, True),
    "invariant/optimizer_steps_error": Limit(0.0, True),
    "ref/kl": Limit(25.0, True),
    "reward/score_std": Limit(1e-6, False),
}

USUAL = (  # metrics that are shown first, in this order
    "eval/score",
    "episode/return",
    "reward/score",
    "policy/kl",
    "policy/entropy",
    "value/explained_variance",
    "loss/value",
)

AWAITED = (  # every adapter logs these in every iteration, so their charts are shown before they have points
    "policy/kl",
    "policy/entropy",
    "value/explained_variance",
    "loss/value",
    "loss/policy",
    "policy/clip_fraction",
)


def sort_tags(tags: Iterable[str]) -> list[str]:
    """Return the tags in USUAL first, in that order, and then the others, sorted by name."""
    found = set(tags)
    usual = [tag for tag in USUAL if tag in found]
    return usual + sorted(found - set(usual))


def find_metric(tag: str) -> Metric | None:
    """Return a metric's declaration, or None if it is unknown. KEY or NAME in a declared name stands for any text."""
    area, found, _ = tag.partition("/info/")
    if found:
        return METRICS.get(f"{area}/info/KEY")
    return METRICS.get(tag) or METRICS.get(f"{tag.partition('/')[0]}/NAME")


def describe(tag: str) -> str:
    """Return a metric's meaning, unit and healthy range in one line, or an empty string if it is not in METRICS."""
    metric = find_metric(tag)
    if metric is None:
        return ""
    unit = f" (unit: {metric.unit})" if metric.unit else ""
    return f"{metric.meaning}{unit}" + (f". It {metric.healthy}." if metric.healthy else "")


def is_score(tag: str) -> bool:
    """Return True for the metrics that the option eval.threshold refers to."""
    return tag in ("eval/score", "eval/return")


class Threshold(NamedTuple):
    """The score at which the task of a run is solved."""

    score: float
    preset: str  # of the run, or ""


def score_threshold(options: Mapping[str, Any], preset: str) -> Threshold | None:
    """Return the threshold in a run's options with dotted keys, or None if it is missing or invalid."""
    score = options.get("eval.threshold")
    if not isinstance(score, int | float) or isinstance(score, bool):
        return None
    return Threshold(float(score), preset) if -1e300 < score < 1e300 else None  # a file may contain any number


def levels(tag: str, thresholds: Iterable[Threshold | None], limits: bool = True) -> list[tuple[float, str]]:
    """Return the values that a chart of the metric marks with dashed lines, with their names.

    For a score, these are the different `thresholds` of the drawn runs (None for a run without a threshold), if there
    are at most three. Unless all runs have the same threshold, its name contains the presets of its runs. For another
    metric, it is the health limit, if `limits` is True.
    """
    if not is_score(tag):
        return [(LIMITS[tag].value, LIMITS[tag].name)] if limits and tag in LIMITS else []
    drawn = set(thresholds)
    solved = sorted({threshold.score for threshold in drawn if threshold is not None})
    if len(solved) > 3:
        return []
    if len(solved) == 1 and None not in drawn:
        return [(solved[0], "solved")]
    presets = {score: sorted(clean(one.preset) for one in drawn if one and one.score == score) for score in solved}
    return [(score, f"{'/'.join(filter(None, presets[score]))} solved".strip()) for score in solved]


def title(tag: str) -> str:
    """Return a metric's tag and, if it is a return or a score, how the actions were chosen: 'eval/score (greedy)'."""
    metric = find_metric(tag)
    return f"{tag} ({metric.decoding})" if metric and metric.decoding else tag
