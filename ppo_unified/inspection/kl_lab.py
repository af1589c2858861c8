"""Estimates of the KL to the reference model, side by side on the same tokens. This module does not import torch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ppo_unified.errors import UsageError
from ppo_unified.inspection.formulas import KL_ESTIMATES, Array, kl_estimate
from ppo_unified.inspection.sample_statistics import (
    Mean,
    error_of,
    mean_of,
    sample_of_steps,
    sum_by_sample,
    valid_numbers,
)
from ppo_unified.inspection.settings import Settings, check_arrays
from ppo_unified.runs.stored_iteration import Sample, StoredIteration

ESTIMATES = (*KL_ESTIMATES, "full")
TOP_K, TOP_P = (1, 2, 3), 0.9
LARGEST = 100  # nats; k3 grows exponentially
WHY = (
    "k1 and k3 are unbiased only if the policy itself samples the tokens. A truncated sampler never draws unlikely "
    "tokens, but the log-probs are those of the complete policy. The mean of k1 is then usually too high. The mean of "
    "k3 is that of k1 plus ref(kept)/pi(kept) - 1, because the mean of ref/pi is no longer 1."
)


@dataclass(frozen=True)
class Estimate:
    """One estimator on the tokens of an iteration."""

    name: str  # k1, abs, k2, k3 or full
    per_token: Mean
    per_response: Mean
    negative: float  # share of tokens with a negative value
    spread: float  # standard deviation over tokens
    relative_spread: float | None  # spread divided by that of full


@dataclass(frozen=True)
class Shift:
    """The mean of an estimator per token under a truncated sampler."""

    mean: Mean
    shift: Mean  # the mean minus the full KL of the policy without truncation


@dataclass(frozen=True)
class Truncation:
    """The effect that a truncated sampler would have on the estimators, at the same prefixes."""

    name: str  # such as top-k 2
    tokens: int  # tokens that are used
    excluded: int  # tokens whose kept set may contain more tokens than are stored
    kept: float  # share of the used tokens that the sampler could have drawn
    mass: float  # mean probability of the kept set
    shifts: dict[str, Shift]


@dataclass(frozen=True)
class KLReport:
    """The estimators of KL(pi || pi_ref) on the tokens of one iteration, which the old policy sampled."""

    used: str  # the estimator in the reward, llm.kl
    coef: float
    tokens: int
    responses: int
    stored: int  # stored likeliest tokens per step
    estimates: list[Estimate]
    truncations: list[Truncation]


@dataclass(frozen=True)
class Tokens:
    """The valid tokens of an iteration, [n] each."""

    estimates: dict[str, Array]
    numbers: Array  # of each token's response
    responses: int

    @classmethod
    def of(cls, stored: StoredIteration) -> Tokens:
        """Raises UsageError if there is no reference model."""
        if missing := [name for name in ("logprob_ref", "kl_full") if name not in stored.columns]:
            raise UsageError(
                f"the samples contain no KL to a reference model (no column {missing[0]}); expected a run of a "
                "language model"
            )
        check_arrays(stored)
        old, ref, full = valid_numbers(stored, "logprob_old", "logprob_ref", "kl_full")
        if np.abs(old - ref).max() > LARGEST:
            raise UsageError(
                f"{stored.where}: expected log-probs that differ by at most {LARGEST} from those of the reference, got "
                f"{np.abs(old - ref).max():.3g}; choose another --iteration"
            )
        numbers, _ = sample_of_steps(stored)
        estimates = {name: kl_estimate(name, old, ref, full) for name in ESTIMATES}
        return cls(estimates, numbers, int(numbers[-1]) + 1)

    def by_response(self, x: Array) -> Array:
        """Return the sums of `x` [n] over each response."""
        return sum_by_sample(x, self.numbers, self.responses)


def examine_kl(stored: StoredIteration) -> KLReport:
    """Compare the estimators on the tokens of an iteration. Raises UsageError if there is no reference model."""
    tokens, settings = Tokens.of(stored), Settings.of(stored)
    alternatives = stored.alternatives.get("old")
    return KLReport(
        used=settings.kl,
        coef=settings.kl_coef,
        tokens=len(tokens.numbers),
        responses=tokens.responses,
        stored=0 if alternatives is None else alternatives.actions.shape[-1],
        estimates=_estimates(tokens),
        truncations=_truncations(stored, tokens),
    )


def _estimates(tokens: Tokens) -> list[Estimate]:
    lengths = tokens.by_response(np.ones(len(tokens.numbers)))
    spread_of_full = float(tokens.estimates["full"].std())
    found = []
    for name, x in tokens.estimates.items():
        sums, spread = tokens.by_response(x), float(x.std())
        found.append(
            Estimate(
                name=name,
                per_token=mean_of(sums, lengths)[0],
                per_response=mean_of(sums, np.ones_like(sums))[0],
                negative=float((x < 0).mean()),
                spread=spread,
                relative_spread=spread / spread_of_full if spread_of_full > 0 else None,
            )
        )
    return found


def _truncations(stored: StoredIteration, tokens: Tokens) -> list[Truncation]:
    alternatives, mask = stored.alternatives.get("old"), stored.columns["mask"]
    if alternatives is None or stored.columns.get("token", mask).dtype.kind not in "iu":
        return []
    likeliest, probabilities = alternatives.actions[mask], np.exp(alternatives.logprobs[mask].astype(np.float64))
    chosen = likeliest == stored.columns["token"][mask][:, None]  # [n, K]
    total, most = probabilities.cumsum(1), likeliest.shape[1]
    found = []
    for k in TOP_K:
        if k <= most:
            size = np.full(len(likeliest), k)
            found.append(_truncate(f"top-k {k}", tokens, chosen, total, size))
    reached = total >= TOP_P
    size = np.where(reached.any(1), reached.argmax(1) + 1, 0)  # 0: more tokens than are stored
    found.append(_truncate(f"top-p {TOP_P}", tokens, chosen, total, size))
    return [truncation for truncation in found if truncation is not None]


def _truncate(name: str, tokens: Tokens, chosen: Array, total: Array, size: Array) -> Truncation | None:
    """Return the effect of a sampler that keeps the `size` [n] likeliest tokens; 0 excludes a token.

    The expectation under the truncated sampler is that of the stored tokens with weights 1[token is kept] / probability
    of the kept set, divided by the sum of the weights.
    """
    used = size > 0
    if not used.any():
        return None
    mass = np.minimum(np.take_along_axis(total, np.maximum(size - 1, 0)[:, None], 1)[:, 0], 1.0)
    kept = used & (chosen & (np.arange(chosen.shape[1]) < size[:, None])).any(1)
    if not kept.any():
        return None
    weights = np.where(kept, 1 / np.maximum(mass, 1e-300), 0)
    by_response = tokens.by_response
    full, own = mean_of(by_response(np.where(used, tokens.estimates["full"], 0)), by_response(used.astype(float)))
    shifts = {}
    for estimate, x in tokens.estimates.items():
        mean, influence = mean_of(by_response(weights * np.where(kept, x, 0)), by_response(weights))
        shifts[estimate] = Shift(mean, Mean(mean.value - full.value, error_of(influence - own)))
    count = int(used.sum())
    return Truncation(name, count, len(used) - count, float(kept[used].mean()), float(mass[used].mean()), shifts)


def token_estimates(stored: StoredIteration, sample: Sample) -> dict[str, list[float]]:
    """Return the log-probs and every estimator at each token of a response."""
    place = sample.row, sample.columns
    names = ("logprob_old", "logprob_ref", "kl_full")
    old, ref, full = (stored.columns[name][place].astype(np.float64) for name in names)
    estimates = {name: kl_estimate(name, old, ref, full) for name in ESTIMATES}
    return {name: x.tolist() for name, x in {"logprob_old": old, "logprob_ref": ref, **estimates}.items()}
