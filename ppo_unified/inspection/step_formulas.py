"""The formulas of PPO for one step, in symbols and filled with the step's numbers."""

from __future__ import annotations

import math
from functools import cached_property
from typing import NamedTuple

import numpy as np

from ppo_unified.inspection import formulas
from ppo_unified.inspection.formulas import Array
from ppo_unified.inspection.settings import (
    Settings,
    count_epochs,
    group_size,
    has_reference,
    has_reward_terms,
    has_token_scores,
    option,
)
from ppo_unified.inspection.what_if import Recomputed, last_epochs
from ppo_unified.runs.stored_iteration import StoredIteration


class Line(NamedTuple):
    """One formula. `symbols` and `numbers` are right sides: the name equals them, and they equal the result."""

    name: str
    symbols: str
    numbers: str  # '' if the formula needs numbers of other steps that are too many to show
    value: float

    @property
    def result(self) -> str:
        return show(self.value)


def show(x: float) -> str:
    """Format a number with about three significant digits, such as -2.208, 0.277, -0.0055 or 1.2e-05."""
    x = x or 0.0  # without the sign of -0.0
    if not math.isfinite(x) or abs(x) >= 1e5 or 0 < abs(x) < 1e-3:
        return f"{x:.2g}"
    text = f"{x:.{2 if abs(x) >= 100 else 3 if abs(x) >= 0.1 else 4}f}"
    return f"{x:.0f}" if x == round(x) else text


def minus(x: float) -> str:
    """Format a number as a subtrahend: '- 2.208', or '+ 2.208' if it is negative."""
    return f"+ {show(-x)}" if x < 0 else f"- {show(x)}"


def plus(x: float) -> str:
    """Format a number as an addend: '+ 2.208', or '- 2.208' if it is negative."""
    return minus(-x)


class Step:
    """One step of a recomputed iteration. `row` and `column` give its place in the rollout."""

    def __init__(self, stored: StoredIteration, recomputed: Recomputed, row: int, column: int) -> None:
        self.stored, self.recomputed, self.row, self.column = stored, recomputed, row, column
        self.settings: Settings = recomputed.settings

    def __getitem__(self, name: str) -> float:
        """Return a recomputed quantity of the step, or the stored one if it was not recomputed."""
        found = self.recomputed.columns.get(name)
        return float((self.stored.columns[name] if found is None else found)[self.row, self.column])

    @cached_property
    def following(self) -> Step | None:
        """The next step of the same episode, or None if the rollout does not contain it."""
        later = np.flatnonzero(self.stored.columns["mask"][self.row, self.column + 1 :])
        if not later.size or not self.stored.columns["continues"][self.row, self.column]:
            return None
        return Step(self.stored, self.recomputed, self.row, self.column + 1 + int(later[0]))

    @cached_property
    def is_last(self) -> bool:
        """True if the row has no later step: the last token of a response."""
        return not self.stored.columns["mask"][self.row, self.column + 1 :].any()

    @property
    def has_tokens(self) -> bool:
        return "token" in self.stored.columns

    @cached_property
    def epoch(self) -> int | None:
        """The epoch whose loss is shown for this step, or None if the update did not reach the step."""
        moment, numbers = self.recomputed.moment, self.stored.epochs.get("minibatch", ())
        epochs = [moment] if isinstance(moment, int) else range(len(numbers), 0, -1)
        return next((epoch for epoch in epochs if numbers[epoch - 1][self.row, self.column] >= 0), None)

    @property
    def is_trained(self) -> bool:
        """False if the update stopped before this step."""
        normalized = self.settings.normalize_advantages == "minibatch" and "minibatch" in self.stored.epochs
        return self["share"] > 0 and not (normalized and self.epoch is None)

    @property
    def is_discarded(self) -> bool:
        """True if ppo.target_kl ended the update at the step's minibatch, whose gradients were therefore not used."""
        moment, target = self.recomputed.moment, option(self.stored, "ppo", "target_kl")
        if not isinstance(target, int | float) or not target or moment == "after":
            return False
        if moment != count_epochs(self.stored):
            return False
        numbers = np.where(self.stored.columns["mask"], self.stored.epochs["minibatch"][moment - 1], -1)
        chosen, columns = numbers == numbers.max(), self.recomputed.columns
        log_ratio = columns["logprob"][chosen] - self.stored.columns["logprob_old"][chosen]
        kl = np.average(formulas.ratio_kl(columns["ratio"][chosen], log_ratio), weights=columns["weight"][chosen])
        return bool(chosen[self.row, self.column] and kl > target)


def explain(step: Step) -> list[Line]:
    """Return the formulas of a step in the order of computation: from the KL estimate to the share of the loss."""
    lines = [*_kl(step), *_reward(step), *_baseline(step)]
    r, v, after, gamma = step["reward"], step["value"], step["next_value"], step.settings.gamma
    delta = f"{show(r)} + {gamma:g}*{show(after)} {minus(v)}"
    lines += [Line("delta", "r + gamma*V' - V", delta, step["delta"]), _advantage(step)]
    if step.settings.baseline == "critic":
        lines.append(_value_target(step))
    if not step.is_trained:
        return lines
    lines.append(_used_advantage(step))
    numbers = f"exp({show(step['logprob'])} {minus(step['logprob_old'])})"
    lines.append(Line("ratio", "exp(log new - log old)", numbers, step["ratio"]))
    lines += [_loss(step), _derivative(step)]
    share = f"{show(step['loss'])}*{show(step['share'])}"
    return [*lines, Line("share", "loss*weight / sum of weights", share, step["loss_share"])]


def _kl(step: Step) -> list[Line]:
    if not has_reference(step.stored):
        return []
    old, ref = step["logprob_old"], step["logprob_ref"]
    difference = f"{show(old)} {minus(ref)}"
    if not has_reward_terms(step.stored):  # the estimate of an older version or another adapter is unknown
        return [Line("kl", "estimate of log old - log ref", "", step["kl"])]
    symbols, numbers = {
        "k1": ("log old - log ref", difference),
        "abs": ("|log old - log ref|", f"abs({difference})"),
        "k2": ("(log old - log ref)^2 / 2", f"({difference})^2 / 2"),
        "k3": ("ref/old - 1 + log old - log ref", f"exp({show(ref)} {minus(old)}) - 1 {plus(old)} {minus(ref)}"),
        "full": ("sum over all tokens of old * (log old - log ref)", ""),
    }[step.settings.kl]
    return [Line("kl", symbols, numbers, step["kl"])]


def _reward(step: Step) -> list[Line]:
    """Return the lines of the score and the reward."""
    r, settings = step["reward"], step.settings
    if not has_reference(step.stored):
        is_scaled = option(step.stored, "gym", "normalize_reward") is True
        symbols = "scaled reward (gym.normalize_reward)" if is_scaled else "reward from the environment"
        return [Line("r", symbols, show(r), r)]
    if not has_reward_terms(step.stored):
        return [Line("r", "score - kl_coef*kl", "", r)]
    before, score = step["token_reward"], step["score_used"]
    lines = _score(step) if step.is_last else []
    if has_token_scores(step.stored):
        score = step["score_here"]
        lines += [_rest_of_score(step)] if step.is_last else []
    numbers = f"{show(score)} - {settings.kl_coef:g}*{show(step['kl'])}"
    if settings.baseline != "critic":
        lines.append(Line("r token", "score - kl_coef*kl", numbers, before))
        return [*lines, _group_reward(step)]
    if not settings.whiten_rewards:
        return [*lines, Line("r", "score - kl_coef*kl", numbers, r)]
    lines.append(Line("r token", "score - kl_coef*kl", numbers, before))
    return [*lines, Line("r", "(r token - mean) / std + mean", _whiten(step), r)]


def _whiten(step: Step) -> str:
    """Return the numbers of a whitened reward, or "" if its mean includes rows that are not stored."""
    if not step.recomputed.exact:
        return ""
    known, rewards = step.recomputed.normalizations, step.recomputed.columns["token_reward"]
    if ("reward", 0, 0) not in known:
        known["reward", 0, 0] = formulas.moments_of(rewards[step.stored.columns["mask"]])
    mean, std = known["reward", 0, 0]
    return f"({show(step['token_reward'])} {minus(mean)}) / {show(std)} {plus(mean)}"


def _score(step: Step) -> list[Line]:
    """Return the formula of the score in the reward, if it differs from the raw score."""
    raw, normalized, score = (step[name] for name in ("score", "score_normalized", "score_used"))
    limit = step.settings.score_clip
    if math.isclose(raw, score, rel_tol=1e-4, abs_tol=1e-4):
        return []
    clipped = float(formulas.clip_scores(np.array(normalized), limit))
    symbols, numbers = "raw score", show(raw)
    if not math.isclose(raw, normalized, rel_tol=1e-4, abs_tol=1e-4):
        symbols, numbers = "normalized score", show(normalized)
    if limit:
        symbols, numbers = f"clip({symbols}, -{limit:g}, {limit:g})", f"clip({numbers}, -{limit:g}, {limit:g})"
    if not math.isclose(clipped, score, rel_tol=1e-4, abs_tol=1e-4):
        symbols, numbers = f"{symbols} - penalty", f"{numbers} {minus(clipped - score)}"
    return [Line("score", symbols, numbers, score)]


def _rest_of_score(step: Step) -> Line:
    """Return the formula of the score at the last token, if other tokens have a part of the response's score."""
    score, here = step["score_used"], step["score_here"]
    return Line("score here", "score - parts of the other tokens", f"{show(score)} {minus(score - here)}", here)


def _group_reward(step: Step) -> Line:
    """Return the formula of the reward with a group baseline: the response's total reward, at its last token."""
    r = step["reward"]
    if not step.is_last:
        return Line("r", "0; the sum over the response is at its last token", show(r), r)
    total = float(step.recomputed.columns["token_reward"][step.row].sum())
    if step.settings.baseline == "rloo":
        return Line("r", "sum of r token over the response", show(total), r)
    return Line("r", "sum of r token / std in the group", f"{show(total)} / {show(total / r if r else 1.0)}", r)


def _baseline(step: Step) -> list[Line]:
    """Return the formula of V, if it is the baseline of a group and not a critic's estimate."""
    size = group_size(step.stored)
    group = step.stored.columns["mask"][step.row // size * size :][:size]
    others = int(group.any(1).sum()) - 1  # responses that are left out of the loss do not count
    if not others and step.settings.baseline != "critic":
        return [Line("V", "the response's own total reward, the only one in its group", "", step["value"])]
    return {
        "critic": [],
        "rloo": [Line("V", f"mean total reward of the {others} other responses", "", step["value"])],
        "grpo": [Line("V", f"mean total reward of the {others + 1} responses / std", "", step["value"])],
    }[step.settings.baseline]


def _advantage(step: Step) -> Line:
    settings, after, a = step.settings, step.following, step["advantage"]
    match settings.advantage:
        case "gae" if after is not None:
            numbers = f"{show(step['delta'])} + {settings.gamma:g}*{settings.lam:g}*{show(after['advantage'])}"
            return Line("A", "delta + gamma*lam*A'", numbers, a)
        case "gae" | "td":
            return Line("A", "delta", show(step["delta"]), a)
        case "reward-to-go":
            return _reward_to_go(step, "A", "advantage")
        case _:
            return Line("A", "sum of the episode's discounted rewards", "", a)


def _reward_to_go(step: Step, symbol: str, name: str) -> Line:
    """Return r + gamma * the same quantity at the next step, or V' if the rollout ends before the episode."""
    after = step.following
    next_symbol, x = ("V'", step["next_value"]) if after is None else (f"{symbol}'", after[name])
    numbers = f"{show(step['reward'])} + {step.settings.gamma:g}*{show(x)}"
    return Line(symbol, f"r + gamma*{next_symbol}", numbers, step[name])


def _value_target(step: Step) -> Line:
    if step.settings.value_target == "monte-carlo":
        return _reward_to_go(step, "return", "return")
    v, target = step["value"], step["return"]
    symbol = "A" if step.settings.advantage == "gae" else "GAE"
    return Line("return", f"{symbol} + V", f"{show(target - v)} {plus(v)}", target)


def _used_advantage(step: Step) -> Line:
    a, used, kind = step["advantage"], step["advantage_used"], step.settings.normalize_advantages
    mean, std = _normalization(step)
    if kind == "none" or std == 0:
        return Line("A used", "A", show(a), used)
    over = "" if kind == "batch" else " of the minibatch"
    return Line("A used", f"(A - mean) / std{over}", f"({show(a)} {minus(mean)}) / {show(std)}", used)


def _normalization(step: Step) -> tuple[float, float]:
    """Return the mean and standard deviation that normalize the advantage of a step, or (0, 0) if it is unchanged.

    They follow from the smallest and the largest advantage before and after normalization, which also works if some
    rows are not stored. Each minibatch is computed only once, because a page may show thousands of its steps.
    """
    known, epoch, minibatch = step.recomputed.normalizations, 0, 0
    if step.settings.normalize_advantages == "minibatch" and step.epoch is not None:
        epoch = step.epoch
        minibatch = int(step.stored.epochs["minibatch"][epoch - 1, step.row, step.column])
    key = ("advantage", epoch, minibatch)
    if key not in known:
        chosen = step.stored.columns["mask"]
        if epoch:
            reached = dict(last_epochs(step.stored, step.recomputed.moment))[epoch]
            chosen = reached & (step.stored.epochs["minibatch"][epoch - 1] == minibatch)
        known[key] = _compute_normalization(step.recomputed, chosen)
    return known[key]


def _compute_normalization(recomputed: Recomputed, chosen: Array) -> tuple[float, float]:
    """Return the mean and standard deviation that normalize the advantages of the chosen steps, bool [N, T]."""
    raw, used = (recomputed.columns[name][chosen].astype(float) for name in ("advantage", "advantage_used"))
    low, high = raw.argmin(), raw.argmax()
    if np.array_equal(raw, used):
        return 0.0, 0.0
    std = formulas.SMALLEST_STD if used[high] == used[low] else (raw[high] - raw[low]) / (used[high] - used[low])
    return float(raw[high] - std * used[high]), float(std)


def _loss(step: Step) -> Line:
    terms, used, ratio = step.settings.terms, step["advantage_used"], step["ratio"]
    gain = f"{show(ratio)}*{show(used)}"
    match terms.kind:
        case "policy-gradient":
            symbols, numbers = "-log new*A_used", f"{show(-step['logprob'])}*{show(used)}"
        case "ratio":
            symbols, numbers = "-ratio*A_used", f"-{gain}"
        case "penalty":
            symbols = "penalty_coef*(ratio - 1 - log ratio) - ratio*A_used"
            log_ratio = step["logprob"] - step["logprob_old"]
            numbers = f"{terms.penalty_coef:g}*({show(ratio)} - 1 {minus(log_ratio)}) - {gain}"
        case _:
            clipped = min(max(ratio, 1 - terms.below), 1 + terms.above)
            limited = show(ratio) if clipped == ratio else f"{clipped:.6g}"
            symbols, numbers = "min(ratio*A_used, clip(ratio)*A_used)", f"min({gain}, {limited}*{show(used)})"
            if terms.dual_clip and used < 0:
                symbols = f"max({symbols}, dual_clip*A_used)"
                numbers = f"max({numbers}, {terms.dual_clip:g}*{show(used)})"
            symbols, numbers = f"-{symbols}", f"-{numbers}"
    return Line("loss", symbols, numbers, step["loss"])


def _derivative(step: Step) -> Line:
    """Return the derivative of the loss with respect to the log-prob: its negative is the push on the probability."""
    terms, used, ratio, derivative = step.settings.terms, step["advantage_used"], step["ratio"], step["derivative"]
    name, gain = "d loss", f"{show(ratio)}*{show(used)}"
    if step.stored.state.get("critic_only"):
        return Line(name, "0; this iteration trains only the critic", "0", derivative)
    if step["cut"]:
        return Line(name, "0; the clipped term is constant", "", derivative)
    if terms.kind == "policy-gradient":
        return Line(name, "-A_used", show(-used), derivative)
    if terms.kind == "penalty":
        numbers = f"{terms.penalty_coef:g}*({show(ratio)} - 1) - {gain}"
        return Line(name, "penalty_coef*(ratio - 1) - ratio*A_used", numbers, derivative)
    half = used != 0 and abs(derivative) < 0.75 * abs(ratio * used)  # two terms of the loss are equal
    return Line(name, "-ratio*A_used" + " / 2" * half, f"-{gain}" + " / 2" * half, derivative)
