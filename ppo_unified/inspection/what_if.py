"""Recompute a stored iteration with other settings, from stored arrays alone and without the policy.

With the run's own settings, the results equal the stored columns and the logged metrics up to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeAlias, get_args, get_type_hints

import numpy as np

from ppo_unified.inspection import formulas
from ppo_unified.inspection.formulas import Array, Objective, Steps
from ppo_unified.runs.samples import StoredIteration

Moment: TypeAlias = int | Literal["after"]  # an epoch of the update, from 1, or after the update


@dataclass(frozen=True)
class Settings:
    """The options that `recompute` applies. Names and values are those of the run's options, except where noted."""

    gamma: float = 0.99
    lam: float = 0.95
    clip: float = 0.2  # after annealing
    clip_high: float = 0.0  # after annealing; 0 = same as clip
    dual_clip: float = 0.0
    objective: Literal["clip", "penalty", "ratio", "policy-gradient"] = "clip"
    penalty_coef: float = 1.0  # as adapted by ppo.penalty_target
    advantage: Literal["gae", "td", "reward-to-go", "return"] = "gae"
    value_target: Literal["lambda", "monte-carlo"] = "lambda"
    normalize_advantages: Literal["batch", "minibatch", "none"] = "none"
    loss_mean: Literal["token", "sequence"] = "token"
    value_clip: float = 0.0
    baseline: Literal["critic", "rloo", "grpo"] = "critic"
    kl: Literal["k1", "abs", "k2", "k3", "full"] = "k1"
    kl_coef: float = 0.0  # as adapted by llm.kl_target
    score_clip: float = 0.0
    whiten_rewards: bool = False

    @classmethod
    def of(cls, stored: StoredIteration) -> Settings:
        """Return the settings with which the run performed the iteration."""
        ppo, llm, state = stored.options.get("ppo", {}), stored.options.get("llm", {}), stored.state
        known = {name: value for name, value in (ppo | llm).items() if name in _NAMES}
        if not ppo:
            known["normalize_advantages"] = _guess_normalization(stored)
        return cls(**known | {
            "gamma": stored.gamma,
            "lam": stored.lam,
            "clip": stored.clip,
            "clip_high": 0.0 if stored.clip_high == stored.clip else stored.clip_high,
            "advantage": stored.advantage_kind,
            "value_target": stored.value_target,
            **{name: state[name] for name in ("penalty_coef", "kl_coef") if state.get(name) is not None},
        })  # fmt: skip

    @property
    def terms(self) -> Objective:
        """The policy objective with its numbers."""
        return Objective(self.objective, self.clip, self.clip_high or self.clip, self.dual_clip, self.penalty_coef)


_NAMES = {f.name for f in fields(Settings)}
_LLM = ("baseline", "kl", "kl_coef", "score_clip", "whiten_rewards")
CHOICES: dict[str, tuple[Any, ...]] = {  # the values of each setting that is not a number
    name: (False, True) if kind is bool else get_args(kind)
    for name, kind in get_type_hints(Settings).items()
    if kind is not float
}


def option_name(setting: str) -> str:
    """Return the name of the run's option, such as 'llm.kl' for 'kl'."""
    return f"llm.{setting}" if setting in _LLM else f"ppo.{setting}"


def choices(stored: StoredIteration, setting: str) -> tuple[Any, ...]:
    """Return the values that a setting can have for this iteration, or () for a number."""
    own = getattr(Settings.of(stored), setting)
    known = CHOICES.get(setting, ())
    if setting == "baseline" and own != "critic":
        return tuple(value for value in known if value != "critic")  # the values of a critic are not stored
    if setting == "normalize_advantages" and not _count_epochs(stored):
        return tuple(value for value in known if value in (own, "batch", "none"))
    return known


def _guess_normalization(stored: StoredIteration) -> str:
    """Return the kind of normalization of a file without options, from the columns that it contains."""
    used = stored.columns.get("advantage_used")
    if used is None:
        return "minibatch"
    mask = stored.columns["mask"]
    return "none" if np.array_equal(used[mask], stored.columns["advantage"][mask]) else "batch"


def moments(stored: StoredIteration) -> list[Moment]:
    """Return the moments for which `recompute` has data: the epochs that the update began, and "after"."""
    return [*range(1, _count_epochs(stored) + 1), "after"]


def _count_epochs(stored: StoredIteration) -> int:
    if "minibatch" not in stored.epochs:
        return 0
    return int((stored.epochs["minibatch"][:, stored.columns["mask"]] >= 0).any(1).sum())


def unavailable(stored: StoredIteration, settings: Settings | None = None) -> dict[str, str]:
    """Return the settings that cannot be changed for this iteration, or whose change has no effect, with the reason.

    `settings` are the current settings, by default the run's own. The reason completes the message "NAME: ...".
    """
    own = Settings.of(stored)
    now = settings or own
    reasons: dict[str, str] = {}
    for name, reason in (*_missing_data(stored, own), *_without_effect(now)):
        reasons.setdefault(name, reason)
    return reasons


def _missing_data(stored: StoredIteration, own: Settings) -> list[tuple[str, str]]:
    """List the settings that the stored arrays do not allow to change."""
    columns, found = stored.columns, list[tuple[str, str]]()
    older = "the iteration was stored by an older version"
    if "logprob_ref" not in columns:
        found += [(name, "only language models have it") for name in _LLM]
    elif "score_used" not in columns:
        found += [(name, older) for name in _LLM]
    if _group_size(stored) < 2:
        found.append(("baseline", "it needs several responses to each prompt (llm.group_size > 1)"))
    if not _count_epochs(stored):
        found.append(("value_clip", older))
    if _sequence_weights(stored, own) is None:
        found.append(("loss_mean", "the length of the update's rows is not stored"))
    return found


def _without_effect(now: Settings) -> list[tuple[str, str]]:
    """List the settings that have no effect because of the other settings."""
    objective, found = f"no effect with ppo.objective = {now.objective!r}", list[tuple[str, str]]()
    if now.objective != "clip":
        found += [(name, objective) for name in ("clip", "clip_high", "dual_clip")]
    if now.objective != "penalty":
        found.append(("penalty_coef", objective))
    if now.advantage != "gae" and now.value_target != "lambda":
        found.append(("lam", f"no effect with ppo.advantage = {now.advantage!r} and ppo.value_target = 'monte-carlo'"))
    if now.baseline != "critic":
        without_critic = f"no effect with llm.baseline = {now.baseline!r}"
        found += [(name, without_critic) for name in ("value_target", "value_clip", "whiten_rewards")]
    if not now.kl_coef:
        found.append(("kl", "no effect with llm.kl_coef = 0"))
    return found


@dataclass(frozen=True)
class Recomputed:
    """The quantities of an iteration at one moment, computed with `settings`."""

    settings: Settings
    moment: Moment
    columns: dict[str, Array]  # [N, T] each, see `recompute`; entries are undefined at masked steps
    means: dict[str, float]  # means over the iteration, named like the logged metrics
    exact: bool  # False if rows that were not stored affect the results, for example in a mean


def recompute(stored: StoredIteration, settings: Settings, moment: Moment = "after") -> Recomputed:
    """Compute all quantities of an iteration with `settings`, at an epoch of the update or after it.

    Columns: kl, reward, value, next_value, delta, advantage (raw), return, advantage_used, logprob, ratio, outside (-1
    below the clip range, 1 above, 0 inside), cut (True if the clip makes the gradient zero), loss (policy loss of the
    step), weight, share (weight divided by the sum of weights in the step's minibatch, or in the iteration if `moment`
    is "after"; 0 if the update did not reach the step), loss_share (share * loss), derivative (of the step's policy
    loss with respect to its log-prob), and in an epoch also value_new and value_loss. For language models also kl and
    token_reward (the reward before whitening or a group baseline).

    An epoch shows each step as its minibatch saw it, just before the optimizer step. If advantages are normalized per
    minibatch, "after" uses the minibatches of the last epoch. Raises ValueError for a moment that is not stored.
    """
    if moment not in moments(stored):
        raise ValueError(f"expected one of the moments {moments(stored)}, got {moment!r}")
    own = Settings.of(stored)
    if settings.baseline not in choices(stored, "baseline"):
        raise ValueError(f"baseline: expected one of {choices(stored, 'baseline')}, got {settings.baseline!r}")
    columns = _rewards(stored, settings, own)
    columns |= _advantages(stored, settings, columns)
    columns["advantage_used"] = _used_advantages(stored, settings, own, columns["advantage"], moment)
    columns["weight"] = _weights(stored, settings, own)
    columns |= _policy_terms(stored, settings, columns, moment)
    if moment != "after":
        columns |= _value_terms(stored, settings, columns, moment)
    partial = int(stored.columns["mask"].sum()) != stored.steps
    means = _update_means(stored, settings, columns, moment) | _rollout_means(stored, settings, columns)
    return Recomputed(settings, moment, columns, means, not partial)


def _valid(stored: StoredIteration, name: str) -> Array:
    """Return a stored column as float64, with 0 at masked steps."""
    return np.where(stored.columns["mask"], stored.columns[name], 0).astype(np.float64)


def _group_size(stored: StoredIteration) -> int:
    return int(stored.options.get("llm", {}).get("group_size", 1))


def _rewards(stored: StoredIteration, settings: Settings, own: Settings) -> dict[str, Array]:
    """Return the rewards, values and next values; for language models also the KL estimates."""
    mask = stored.columns["mask"]
    columns = {name: _valid(stored, name) for name in ("reward", "value", "next_value")}
    if "logprob_ref" not in stored.columns:
        return columns
    if "score_used" not in stored.columns:
        return columns | {"kl": _valid(stored, "kl")}
    pair = (_valid(stored, "logprob_old"), _valid(stored, "logprob_ref"))
    kl = formulas.kl_estimate(settings.kl, *pair, _valid(stored, "kl_full"))
    ends = np.arange(len(mask)), formulas.last_steps(mask)
    normalized, used = (_valid(stored, name)[ends] for name in ("score_normalized", "score_used"))
    penalties = formulas.clip_scores(normalized, own.score_clip) - used
    scores = formulas.clip_scores(normalized, settings.score_clip) - penalties
    rewards = formulas.token_rewards(scores, kl, settings.kl_coef, mask)
    columns |= {"kl": kl, "reward": rewards, "token_reward": rewards}
    if settings.baseline != "critic":
        return columns | _group_rewards(stored, settings, columns)
    return columns | ({"reward": formulas.whiten(rewards, mask)} if settings.whiten_rewards else {})


def _group_rewards(stored: StoredIteration, settings: Settings, columns: Mapping[str, Array]) -> dict[str, Array]:
    """Return the rewards, values and next values of a group baseline. If the last group is incomplete, its rows keep
    the stored columns."""
    size = _group_size(stored)
    rows = len(columns["reward"]) // size * size
    mask = stored.columns["mask"][:rows]
    returns, baselines = formulas.group_baselines(columns["reward"][:rows].sum(1), size, settings.baseline)
    last = np.arange(mask.shape[1]) == formulas.last_steps(mask)[:, None]
    changed = {
        "reward": np.where(last & mask, returns[:, None], 0),
        "value": np.where(mask, baselines[:, None], 0),
        "next_value": np.where(mask & ~last, baselines[:, None], 0),
    }
    return {name: np.concatenate([x, _valid(stored, name)[rows:]]) for name, x in changed.items()}


def _steps(stored: StoredIteration, columns: Mapping[str, Array]) -> Steps:
    order = (columns[name] for name in ("reward", "value", "next_value"))
    return Steps(*order, stored.columns["continues"], stored.columns["mask"])


def _advantages(stored: StoredIteration, settings: Settings, columns: Mapping[str, Array]) -> dict[str, Array]:
    """Return the temporal-difference errors, raw advantages and value targets."""
    steps, horizon = _steps(stored, columns), (settings.gamma, settings.lam)
    advantages = formulas.advantages_of(settings.advantage, steps, *horizon)
    same = settings.advantage == "gae" and settings.value_target == "lambda"
    targets = advantages + steps.values if same else formulas.value_targets(settings.value_target, steps, *horizon)
    return {"delta": formulas.td_errors(steps, settings.gamma), "advantage": advantages, "return": targets}


def _used_advantages(
    stored: StoredIteration, settings: Settings, own: Settings, advantages: Array, moment: Moment
) -> Array:
    """Return the advantages that the loss uses, [N, T]."""
    mask = stored.columns["mask"]
    if settings.normalize_advantages == "none":
        return advantages
    epoch = _count_epochs(stored) if moment == "after" else moment
    if int(mask.sum()) != stored.steps and _same_advantages(settings, own):
        return _stored_advantages(stored, advantages, epoch)  # the mean needs the rows that were not stored
    if settings.normalize_advantages == "batch":
        return formulas.standardize(advantages, mask)
    if not epoch:
        return advantages
    return formulas.standardize_groups(advantages, np.where(mask, stored.epochs["minibatch"][epoch - 1], -1))


def _same_advantages(settings: Settings, own: Settings) -> bool:
    """Return True if both settings give the same advantages, before and after normalization."""
    names = ("gamma", "lam", "advantage", "normalize_advantages", *_LLM)
    return all(getattr(settings, name) == getattr(own, name) for name in names)


def _stored_advantages(stored: StoredIteration, advantages: Array, epoch: int) -> Array:
    """Return the stored advantages after normalization, or `advantages` if they are not stored."""
    if "advantage_used" in stored.columns:
        return _valid(stored, "advantage_used")
    if epoch and "advantage_used" in stored.epochs:
        return np.where(stored.columns["mask"], stored.epochs["advantage_used"][epoch - 1], 0).astype(np.float64)
    return advantages


def _sequence_weights(stored: StoredIteration, own: Settings) -> Array | None:
    """Return the weights for loss_mean = 'sequence', or None if the length of the update's rows is unknown."""
    mask = stored.columns["mask"]
    if own.loss_mean == "sequence" and "weight" in stored.columns:
        return _valid(stored, "weight")
    kind = stored.options.get("kind")
    if kind == "gym":  # each row of the update is a single step
        return mask.astype(np.float64)
    return mask / np.maximum(mask.sum(1, keepdims=True), 1) if kind == "llm" else None


def _weights(stored: StoredIteration, settings: Settings, own: Settings) -> Array:
    """Return the weight of each step in the loss, [N, T]."""
    weights = _sequence_weights(stored, own) if settings.loss_mean == "sequence" else None
    return stored.columns["mask"].astype(np.float64) if weights is None else weights


def _policy_terms(
    stored: StoredIteration, settings: Settings, columns: Mapping[str, Array], moment: Moment
) -> dict[str, Array]:
    """Return the ratio, the policy loss, its derivative, and the steps' shares of the loss."""
    mask, old = stored.columns["mask"], stored.columns["logprob_old"]
    after = moment == "after"
    logprobs = stored.columns["logprob_new"] if after else stored.epochs["logprob"][moment - 1]
    minibatch = np.zeros(mask.shape, int) if after else stored.epochs["minibatch"][moment - 1]
    logprobs, old = np.where(mask & (minibatch >= 0), logprobs, old), np.where(mask, old, 0)
    logprobs = np.where(mask, logprobs, 0)
    # float32, as in the engine, so that rounding does not move a ratio across the end of the clip range
    ratio = np.where(mask, stored.columns["ratio"], 1) if after else np.exp(logprobs - old)
    used, terms = columns["advantage_used"], settings.terms
    loss = formulas.policy_loss(logprobs, old, used, terms)
    share = _shares(columns["weight"], np.where(mask, minibatch, -1))
    return {
        "logprob": logprobs,
        "ratio": ratio,
        "outside": formulas.outside(ratio, terms),
        "cut": formulas.is_cut(ratio, used, terms),
        "loss": loss,
        "share": share,
        "loss_share": share * loss,
        "derivative": formulas.policy_derivative(ratio, used, terms),
    }


def _shares(weights: Array, minibatch: Array) -> Array:
    """Return each step's weight divided by the sum of weights in its minibatch, [N, T], or 0 outside minibatches."""
    chosen = minibatch >= 0
    sums = np.bincount(minibatch[chosen], weights[chosen])
    shares = np.zeros_like(weights)
    shares[chosen] = weights[chosen] / sums[minibatch[chosen]]
    return shares


def _value_terms(
    stored: StoredIteration, settings: Settings, columns: Mapping[str, Array], moment: int
) -> dict[str, Array]:
    """Return the value estimates of an epoch and their loss. With a group baseline, the estimate is the baseline."""
    if settings.baseline != "critic":
        targets = columns["value"] + _row_errors(stored, settings, columns)
        return {
            "value_new": columns["value"],
            "value_loss": formulas.value_loss(columns["value"], columns["value"], targets),
        }
    mask = stored.columns["mask"]
    values = np.where(mask, stored.epochs["value"][moment - 1], 0).astype(np.float64)
    loss = formulas.value_loss(values, columns["value"], columns["return"], settings.value_clip)
    return {"value_new": values, "value_loss": loss}


def _row_errors(stored: StoredIteration, settings: Settings, columns: Mapping[str, Array]) -> Array:
    """Return each row's return minus its baseline, at every valid step, [N, T]."""
    mask = stored.columns["mask"]
    ends = np.arange(len(mask)), formulas.last_steps(mask)
    errors = columns["reward"][ends] - columns["value"][ends]
    return np.where(mask, errors[:, None], 0)


def _update_means(
    stored: StoredIteration, settings: Settings, columns: Mapping[str, Array], moment: Moment
) -> dict[str, float]:
    """Return the means that the update logs: weighted over an epoch, or over all valid steps after the update."""
    mask, weights = stored.columns["mask"], columns["weight"]
    after = moment == "after"
    seen = mask & (columns["share"] > 0)
    total = float(weights[seen].sum()) or math.nan

    def mean(x: Array) -> float:
        return float((x[seen] * weights[seen]).sum() / total)

    ratio = columns["ratio"].astype(np.float64)
    kl = formulas.ratio_kl(ratio, columns["logprob"].astype(np.float64) - _valid(stored, "logprob_old"))
    is_outside = columns["outside"] != 0
    means = {"loss/policy": mean(columns["loss"])}
    if after:
        return means | {
            "policy/clip_fraction_after": float(is_outside[mask].mean()),
            "policy/kl_after": float(kl[mask].mean()),
        }
    entropy = mean(stored.epochs["entropy"][moment - 1]) if "entropy" in stored.epochs else math.nan
    return means | {
        "loss/value": mean(columns["value_loss"])
        if settings.baseline == "critic"
        else _group_value_loss(columns, mask),
        "loss/entropy": -entropy,
        "policy/entropy": entropy,
        "policy/kl": mean(kl),
        "policy/clip_fraction": mean(is_outside),
        "policy/ratio_max": float(ratio[seen].max(initial=1.0)),
    }


def _group_value_loss(columns: Mapping[str, Array], mask: Array) -> float:
    """Return the value loss that the LLM adapter logs for a group baseline: a mean over all responses."""
    weights = columns["weight"][mask]
    return float((columns["value_loss"][mask] * weights).sum() / weights.sum())


def _rollout_means(stored: StoredIteration, settings: Settings, columns: Mapping[str, Array]) -> dict[str, float]:
    """Return the means that do not depend on the update. Rewards and KL are summed over each response, then averaged
    over responses."""
    mask = stored.columns["mask"]
    values, targets = columns["value"][mask], columns["return"][mask]
    variance = float(targets.var())
    means = {
        "value/mean": float(values.mean()),
        "value/explained_variance": 1 - float((targets - values).var()) / variance if variance > 0 else 0.0,
    }
    if "token_reward" in columns:
        means["reward/total"] = float(columns["token_reward"].sum(1).mean())
        means["reward/kl_penalty"] = settings.kl_coef * float(columns["kl"].sum(1).mean())
    return means
