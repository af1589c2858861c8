"""Recompute a stored iteration with other settings, from stored arrays alone and without the policy.

With the run's own settings, the results equal the stored columns and the logged metrics up to rounding. All arrays are
float32, as in the engine, so that rounding does not move a ratio across the end of the clip range.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from ppo_unified.inspection import formulas
from ppo_unified.inspection.formulas import Array, Steps
from ppo_unified.inspection.settings import (
    LLM_SETTINGS,
    check_arrays,
    count_epochs,
    group_size,
    has_reward_terms,
    has_token_scores,
    sequence_weights,
)
from ppo_unified.inspection.settings import Moment as Moment
from ppo_unified.inspection.settings import Settings as Settings
from ppo_unified.inspection.settings import choices as choices
from ppo_unified.inspection.settings import missing_data as missing_data
from ppo_unified.inspection.settings import moments as moments
from ppo_unified.inspection.settings import unavailable as unavailable
from ppo_unified.runs.stored_iteration import StoredIteration


@dataclass(frozen=True)
class Recomputed:
    """The quantities of an iteration at one moment, computed with `settings`."""

    stored: StoredIteration = field(repr=False)
    settings: Settings
    moment: Moment
    columns: dict[str, Array]  # [N, T] each, see `recompute`; entries are undefined at masked steps
    of_rollout: dict[str, Array] = field(repr=False)  # those of `columns` that are the same at all moments
    normalizations: dict[tuple[str, int, int], tuple[float, float]] = field(default_factory=dict, repr=False)
    # mean and standard deviation of a quantity by epoch and minibatch, which step_formulas computes only once

    @property
    def exact(self) -> bool:
        """False if rows that were not stored affect the results, for example in a mean."""
        return int(self.stored.columns["mask"].sum()) == self.stored.steps

    @cached_property
    def means(self) -> dict[str, float]:
        """Means over the iteration, named like the logged metrics."""
        with np.errstate(over="ignore", invalid="ignore"):
            return _update_means(self) | _rollout_means(self)

    def at(self, moment: Moment) -> Recomputed:
        """Return the quantities at another moment. Both results share the arrays that are the same at all moments.
        Raises ValueError for a moment that is not stored."""
        return _add_update(self.stored, self.settings, self.of_rollout, moment)


def recompute(stored: StoredIteration, settings: Settings, moment: Moment = "after") -> Recomputed:
    """Compute all quantities of an iteration with `settings`, at an epoch of the update or after it.

    Columns: reward, value, next_value, delta, advantage (raw), return, advantage_used, logprob, ratio, outside (-1
    below the clip range, 1 above, 0 inside), cut (True if the clip makes the gradient zero), loss (policy loss of the
    step), weight, share (weight divided by the sum of weights in the step's minibatch, or in the iteration if `moment`
    is "after"; 0 if the update did not reach the step), loss_share (share * loss), derivative (of the step's policy
    loss with respect to its log-prob; 0 if the iteration trained only the critic), and in an epoch also value_new and
    value_loss. If the file contains epochs, also entropy (the entropy after the update is not stored; it is that of the
    last epoch that reached the step, or NaN if none did). For language models also kl, score_normalized, score_used and
    token_reward (the reward before whitening or a group baseline).

    An epoch shows each step as its minibatch saw it, just before the optimizer step. If advantages are normalized per
    minibatch, "after" uses the minibatches of the last epoch that reached the step. Raises ValueError for a moment that
    is not stored, and UsageError if the file is damaged.
    """
    check_arrays(stored)
    own = Settings.of(stored)
    for name in ("baseline", "score_normalize"):
        if (value := getattr(settings, name)) not in choices(stored, name):
            raise ValueError(f"{name}: expected one of {choices(stored, name)}, got {value!r}")
    with np.errstate(over="ignore", invalid="ignore"):  # a ratio may overflow, as in the engine
        columns = _rewards(stored, settings, own)
        columns |= _advantages(stored, settings, columns) | {"weight": _weights(stored, settings, own)}
    return _add_update(stored, settings, columns, moment)


def _add_update(
    stored: StoredIteration, settings: Settings, of_rollout: dict[str, Array], moment: Moment
) -> Recomputed:
    """Return all quantities, given those that do not depend on the moment."""
    if moment not in moments(stored):
        raise ValueError(f"moment: expected one of {moments(stored)}, got {moment!r}")
    columns = dict(of_rollout)
    with np.errstate(over="ignore", invalid="ignore"):
        used = _used_advantages(stored, settings, Settings.of(stored), columns["advantage"], moment)
        columns["advantage_used"] = used
        columns |= _policy_terms(stored, settings, columns, moment)
        if count_epochs(stored):
            columns["entropy"] = _entropy(stored, moment)
        if moment != "after":
            columns |= _value_terms(stored, settings, columns, moment)
    return Recomputed(stored, settings, moment, columns, of_rollout)


def _valid(stored: StoredIteration, x: Array) -> Array:
    """Return an array as float32, with 0 at masked steps."""
    return np.where(stored.columns["mask"], x, np.float32(0)).astype(np.float32, copy=False)


def _rewards(stored: StoredIteration, settings: Settings, own: Settings) -> dict[str, Array]:
    """Return the rewards, values and next values; for language models also the KL estimates."""
    mask = stored.columns["mask"]
    columns = {name: _valid(stored, stored.columns[name]) for name in ("reward", "value", "next_value")}
    if not has_reward_terms(stored):
        return columns | ({"kl": _valid(stored, stored.columns["kl"])} if "kl" in stored.columns else {})
    pair = (_valid(stored, stored.columns["logprob_old"]), _valid(stored, stored.columns["logprob_ref"]))
    kl = formulas.kl_estimate(settings.kl, *pair, _valid(stored, stored.columns["kl_full"]))
    suffix = "" if settings.score_normalize == "none" else "_normalized"
    normalized = _valid(stored, stored.columns[f"score{suffix}"])
    penalties = np.where(_last(mask) & (stored.columns["ended"] == 0), np.float32(settings.missing_eos_penalty), 0)
    used = formulas.clip_scores(normalized, settings.score_clip) - penalties
    scores = used.sum(1)
    if has_token_scores(stored):  # the last token gets the rest of the score
        parts = _valid(stored, stored.columns[f"score_token{suffix}"])
        scores = parts + np.where(_last(mask), scores[:, None] - parts.sum(1, keepdims=True), np.float32(0))
        columns["score_here"] = scores
    rewards = formulas.token_rewards(scores, kl, settings.kl_coef, mask)
    columns |= {"kl": kl, "score_normalized": normalized, "score_used": used}
    columns |= {"reward": rewards, "token_reward": rewards}
    if settings.baseline != "critic":
        return columns | _group_rewards(stored, settings, columns)
    if settings.whiten_rewards and not _keeps_means(stored, settings, own, LLM_SETTINGS):
        return columns | {"reward": formulas.whiten(rewards, mask)}
    return columns | ({"reward": _valid(stored, stored.columns["reward"])} if settings.whiten_rewards else {})


def _last(mask: Array) -> Array:
    """Return True at the last valid step of each row, bool [N, T]."""
    return np.asarray((np.arange(mask.shape[1]) == formulas.last_steps(mask)[:, None]) & mask)


def _group_rewards(stored: StoredIteration, settings: Settings, columns: Mapping[str, Array]) -> dict[str, Array]:
    """Return the rewards, values and next values of a group baseline. If the last group is incomplete, its rows keep
    the stored columns."""
    size = group_size(stored)
    rows = len(columns["reward"]) // size * size
    mask = stored.columns["mask"][:rows]
    sums, kept = columns["reward"][:rows].sum(1), np.asarray(mask.any(1))
    returns, baselines = formulas.group_baselines(sums, size, settings.baseline, kept)
    last = _last(mask)
    changed = {
        "reward": np.where(last, returns[:, None], 0),
        "value": np.where(mask, baselines[:, None], 0),
        "next_value": np.where(mask & ~last, baselines[:, None], 0),
    }
    return {name: np.concatenate([x, _valid(stored, stored.columns[name])[rows:]]) for name, x in changed.items()}


def _steps(stored: StoredIteration, columns: Mapping[str, Array]) -> Steps:
    rewards, values, next_values = (columns[name] for name in ("reward", "value", "next_value"))
    return Steps(rewards, values, next_values, stored.columns["continues"], stored.columns["mask"])


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
    mask, kind = stored.columns["mask"], settings.normalize_advantages
    as_stored = _keeps_means(
        stored, settings, own, ("gamma", "lam", "advantage", "normalize_advantages", *LLM_SETTINGS)
    )
    if kind == "none" or (kind == "minibatch" and not count_epochs(stored)):
        return advantages
    if kind == "batch" and as_stored:
        return _valid(stored, stored.columns["advantage_used"])
    if kind == "batch":
        return formulas.standardize(advantages, mask)
    used = np.zeros_like(advantages)
    for epoch, chosen in last_epochs(stored, moment):
        numbers = np.where(mask, stored.epochs["minibatch"][epoch - 1], -1)
        found = stored.epochs["advantage_used"][epoch - 1] if as_stored else None
        used[chosen] = (formulas.standardize_groups(advantages, numbers) if found is None else found)[chosen]
    return used


def last_epochs(stored: StoredIteration, moment: Moment) -> Iterator[tuple[int, Array]]:
    """Yield the epoch of a moment with the steps that it reached, bool [N, T]. After the update, these are the last
    epoch and, if it ended early, the epochs before it with the remaining steps."""
    remaining = stored.columns["mask"]
    for epoch in [moment] if isinstance(moment, int) else range(count_epochs(stored), 0, -1):
        reached = remaining & (stored.epochs["minibatch"][epoch - 1] >= 0)
        if reached.any():
            yield epoch, reached
        remaining = remaining & ~reached


def _keeps_means(stored: StoredIteration, settings: Settings, own: Settings, names: Sequence[str]) -> bool:
    """Return True if some rows are not stored, and a quantity that depends on the settings `names` is unchanged.

    The stored quantity is then used, because its mean includes the other rows. For other settings, the mean of the
    stored rows has to replace it.
    """
    is_partial = int(stored.columns["mask"].sum()) != stored.steps
    return is_partial and all(getattr(settings, name) == getattr(own, name) for name in names)


def _weights(stored: StoredIteration, settings: Settings, own: Settings) -> Array:
    """Return the weight of each step in the loss, [N, T]."""
    weights = sequence_weights(stored, own) if settings.loss_mean == "sequence" else None
    return stored.columns["mask"].astype(np.float32) if weights is None else weights


def _policy_terms(
    stored: StoredIteration, settings: Settings, columns: Mapping[str, Array], moment: Moment
) -> dict[str, Array]:
    """Return the ratio, the policy loss, its derivative, and the steps' shares of the loss."""
    mask, old = stored.columns["mask"], _valid(stored, stored.columns["logprob_old"])
    if isinstance(moment, int):
        minibatch = np.where(mask, stored.epochs["minibatch"][moment - 1], -1)
        logprobs = np.where(minibatch >= 0, stored.epochs["logprob"][moment - 1], old)
        ratio, share = np.exp(logprobs - old), _shares(columns["weight"], minibatch)
    else:
        logprobs = _valid(stored, stored.columns["logprob_new"])
        ratio = np.where(mask, stored.columns["ratio"], 1)
        share = columns["weight"] / columns["weight"].sum()
    used, terms = columns["advantage_used"], settings.terms
    loss = formulas.policy_loss(logprobs, old, used, terms)
    pushes = not stored.state.get("critic_only")
    return {
        "logprob": logprobs,
        "ratio": ratio,
        "outside": formulas.outside(ratio, terms),
        "cut": formulas.is_cut(ratio, used, terms),
        "loss": loss,
        "share": share,
        "loss_share": share * loss,
        "derivative": formulas.policy_derivative(ratio, used, terms) * np.float32(pushes),
    }


def _shares(weights: Array, minibatch: Array) -> Array:
    """Return each step's weight divided by the sum of weights in its minibatch, [N, T], or 0 outside minibatches."""
    shares = np.zeros_like(weights)
    for number in range(int(minibatch.max()) + 1):
        chosen = minibatch == number
        shares += np.where(chosen, weights / max(float(weights[chosen].sum()), 1e-9), 0)
    return shares


def _entropy(stored: StoredIteration, moment: Moment) -> Array:
    """Return the entropy of the policy at each step, in the last epoch that reached the step, or NaN."""
    entropy = np.full(stored.columns["mask"].shape, np.nan, np.float32)
    for epoch, reached in last_epochs(stored, moment):
        entropy[reached] = stored.epochs["entropy"][epoch - 1][reached]
    return entropy


def _value_terms(
    stored: StoredIteration, settings: Settings, columns: Mapping[str, Array], moment: int
) -> dict[str, Array]:
    """Return the value estimates of an epoch and their loss. With a group baseline, the estimate is the baseline."""
    old, targets = columns["value"], columns["return"]
    if settings.baseline == "critic":
        values = _valid(stored, stored.epochs["value"][moment - 1])
        return {"value_new": values, "value_loss": formulas.value_loss(values, old, targets, settings.value_clip)}
    mask = stored.columns["mask"]
    returns = columns["reward"][np.arange(len(mask)), formulas.last_steps(mask)]
    return {"value_new": old, "value_loss": formulas.value_loss(old, old, np.where(mask, returns[:, None], old))}


def _update_means(recomputed: Recomputed) -> dict[str, float]:
    """Return the means that the update logs: weighted over an epoch, or over all valid steps after the update."""
    stored, columns = recomputed.stored, recomputed.columns
    mask, weights = stored.columns["mask"], columns["weight"]
    seen = np.where(columns["share"] > 0, weights, 0)  # with target_kl, the last epoch may not contain all steps
    kl = formulas.ratio_kl(columns["ratio"], columns["logprob"] - _valid(stored, stored.columns["logprob_old"]))
    outside, loss = columns["outside"] != 0, columns["loss"]
    if not isinstance(recomputed.moment, int):
        after = _means(mask, {"policy/clip_fraction_after": outside, "policy/kl_after": kl})
        return after | _means(seen, {"loss/policy": loss})
    means = {"loss/policy": loss, "policy/entropy": columns["entropy"], "policy/kl": kl}
    means["policy/clip_fraction"] = outside
    found = _means(seen, means)
    # the LLM adapter logs the value loss of a group baseline, over all responses
    found |= _means(
        seen if recomputed.settings.baseline == "critic" else weights, {"loss/value": columns["value_loss"]}
    )
    largest = float(np.where(seen > 0, columns["ratio"], 0).max())
    return found | {"loss/entropy": -found["policy/entropy"], "policy/ratio_max": largest}


def _means(weights: Array, quantities: Mapping[str, Array]) -> dict[str, float]:
    """Return the weighted mean of each quantity over the steps whose weight is positive."""
    chosen = weights > 0
    positive = weights[chosen]
    total = positive.sum(dtype=np.float64)
    return {name: float((x[chosen] * positive).sum(dtype=np.float64) / total) for name, x in quantities.items()}


def _rollout_means(recomputed: Recomputed) -> dict[str, float]:
    """Return the means that do not depend on the update. Rewards and KL are summed over each response, then averaged
    over responses."""
    mask, columns = recomputed.stored.columns["mask"], recomputed.columns
    values, targets = (columns[name][mask] for name in ("value", "return"))
    variance = float(targets.var(dtype=np.float64))
    unexplained = float((targets - values).var(dtype=np.float64))
    means = {
        "value/mean": float(values.mean(dtype=np.float64)),
        "value/explained_variance": 1 - unexplained / variance if variance > 0 else 0.0,
    }
    if "token_reward" in columns:
        scored = mask.any(1)  # not the responses that are left out of the loss
        means["reward/total"] = float(columns["token_reward"].sum(1)[scored].mean())
        means["reward/kl_penalty"] = recomputed.settings.kl_coef * float(columns["kl"].sum(1)[scored].mean())
    return means
