"""Health checks detect common problems from a run's metrics, explain them and suggest changes.

The result of a check depends only on the metrics of the first and the latest iterations. A check starts to warn after
PERSIST consecutive iterations beyond its limit, and it recovers after PERSIST consecutive iterations within the limit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np

from ppo_unified.runs.metrics import LIMITS
from ppo_unified.training import measures
from ppo_unified.training.measures import (
    EVALUATED,
    EXACT,
    LONG,
    NEAR,
    START,
    WINDOW,
    Measure,
    Track,
    Tracks,
    is_solved,
)

PERSIST = 5  # number of consecutive iterations until a check warns or recovers
SETTLED = 30  # number of iterations after which a critic should have learned something


class Check(NamedTuple):
    """A health check for one kind of problem."""

    name: str
    reads: tuple[str, ...]  # names of metrics; `measure` is called with their tracks
    measure: Measure
    limit: float
    is_high: bool  # True if values above the limit are a problem, False if values below it are
    rule: str  # describes the measure, as the subject of "... is above LIMIT"
    meaning: str  # describes the problem
    advice: str
    source: str  # reason for the limit
    severe: bool = False
    after: int = WINDOW  # number of iterations before the check starts
    scope: str = ""  # a sentence on when the check applies, or which iterations it ignores
    ignores_solved: bool = False  # True if the check does not apply while the task is solved

    def is_beyond(self, value: float | None) -> bool:
        """Return True if a value of the measure is on the wrong side of the limit."""
        return value is not None and (value > self.limit if self.is_high else value < self.limit)

    def value(self, tracks: Tracks) -> float | None:
        """Return the measure, or None if there are too few iterations or no meaningful value."""
        found = [tracks[tag] for tag in self.reads if tag in tracks]
        if len(found) < len(self.reads) or min(track.count for track in found) < max(self.after, WINDOW):
            return None
        return self.measure(*found)


WATCHED = "reward/NAME"  # in `Check.reads`, stands for each reward with weight 0
CRITIC = ("value/explained_variance", "loss/value")  # checks that read one of these need a critic
OWN = "The limit is based on our measurements of healthy and faulty runs (benchmarks/health.md)."
UNSOLVED = "The check does not apply while the score of the last evaluation reaches `eval.threshold`."
IF_SOLVED = "If the task is solved, ignore this, or set `eval.threshold` to the score of a solved task."

CHECKS: tuple[Check, ...] = (
    Check(
        "kl",
        ("policy/kl",),
        measures.mean,
        *LIMITS["policy/kl"],
        f"The mean KL over the last {WINDOW} iterations",
        "The policy changes so much in one iteration that the collected samples no longer represent it.",
        "Lower `optim.lr` or `ppo.epochs`, or set `ppo.target_kl`.",
        "Spinning Up suggests a target_kl of at most 0.05 (https://spinningup.openai.com/en/latest/algorithms/"
        "ppo.html); healthy runs of the preset `arithmetic` reach 0.13 (benchmarks/health.md).",
        severe=True,
    ),
    Check(
        "clip_fraction",
        ("policy/clip_fraction",),
        measures.mean,
        *LIMITS["policy/clip_fraction"],
        f"The mean clip fraction over the last {WINDOW} iterations",
        "At more than half of the steps, the ratio is outside the clip range, so clipping may stop the gradient there.",
        "Lower `optim.lr` or `ppo.epochs`, or collect a larger rollout and split it into more `ppo.minibatches`.",
        OWN,
    ),
    Check(
        "entropy",
        ("policy/entropy",),
        measures.share_of_peak,
        0.01,
        False,
        f"The mean entropy over the last {WINDOW} iterations, divided by the highest such mean so far,",
        "The policy is almost deterministic and has stopped exploring.",
        f"Raise `ppo.entropy_coef` or lower `optim.lr`. For a language model, raise `llm.kl_coef`. {IF_SOLVED}",
        OWN,
        scope=UNSOLVED,
        ignores_solved=True,
    ),
    Check(
        "action_clipping",
        ("policy/action_clip_fraction",),
        measures.smaller_mean,
        *LIMITS["policy/action_clip_fraction"],
        f"The mean fraction of clipped actions, both over the first {START} and over the last {WINDOW} iterations,",
        "Almost all continuous actions are outside the bounds, so after clipping the environment receives almost "
        "only the minimum and maximum values.",
        "Set `gym.rescale_actions`, or lower `policy.log_std_init`.",
        OWN,
    ),
    Check(
        "action_spread",
        ("policy/action_spread",),
        measures.peak,
        *LIMITS["policy/action_spread"],
        f"The highest spread of the actions so far, averaged over {WINDOW} iterations,",
        "The policy has tried only a tiny part of the action space, so it cannot find good actions elsewhere.",
        "Set `gym.rescale_actions`, or raise `policy.log_std_init`.",
        OWN,
    ),
    Check(
        "explained_variance",
        (*CRITIC, "value/mean"),
        measures.mean_explained_variance,
        *LIMITS["value/explained_variance"],
        f"From iteration {SETTLED} on, the mean explained variance over the last {WINDOW} iterations",
        "The critic predicts the returns worse than a constant would, so the advantages are noisier than necessary.",
        "Lower `optim.critic_lr` (with `optim.joint` off), raise `ppo.value_coef`, or set `ppo.critic_warmup`.",
        "A constant prediction has an explained variance of 0 (https://stable-baselines3.readthedocs.io/en/master/"
        "common/logger.html).",
        after=SETTLED,
        scope=f"Iterations in which the critic's error is below {EXACT:.0%} of the mean value estimate are ignored.",
    ),
    Check(
        "dead_critic",
        CRITIC,
        measures.largest_explained_variance,
        0.05,
        False,
        f"From iteration {SETTLED} on, the largest absolute explained variance of the last {WINDOW} iterations",
        "The critic does not learn: its predictions explain almost none of the variance of the returns.",
        "Raise `ppo.value_coef` (or `optim.critic_lr` if `optim.joint` is off), or set `gym.normalize_reward`.",
        OWN,
        after=SETTLED,
        scope="The check applies only while the value loss is above 90% of its initial value.",
    ),
    Check(
        "first_ratio",
        ("invariant/first_ratio_error",),
        measures.smallest_magnitude,
        *LIMITS["invariant/first_ratio_error"],
        f"The smallest first-ratio error of the last {WINDOW} iterations",
        "The log-probs at the start of the update differ from those in the rollout, although the weights are the same.",
        "Check whether the adapter's `collect` and its policy's `evaluate` use the same dropout, temperature, padding "
        "and precision.",
        "Rounding causes errors of up to 1e-5 in float32 and 1e-2 in bfloat16. A float32 run fails if the "
        "error exceeds 1e-2.",
    ),
    Check(
        "optimizer_steps",
        ("invariant/optimizer_steps_error",),
        measures.smallest_magnitude,
        *LIMITS["invariant/optimizer_steps_error"],
        f"The smallest number of missing optimizer steps in the last {WINDOW} iterations",
        "The updates took fewer optimizer steps than the number of epochs times the number of minibatches.",
        "This is a bug in the engine. Please report it and attach config.toml.",
        "A correct update takes every step, so no step is missing.",
        severe=True,
    ),
    Check(
        "gae",
        ("invariant/gae_error", "loss/value"),
        measures.relative_error,
        1e-3,
        True,
        f"The smallest GAE error of the last {WINDOW} iterations, relative to the size of the advantages,",
        "The computed advantages differ from those that the definition of GAE gives.",
        "Check the adapter's `next_values`, `continues` and `mask`. Very large values can also cause rounding errors.",
        "Rounding causes relative errors of up to 1e-4.",
        severe=True,
    ),
    Check(
        "grad_norm",
        ("optim/grad_norm",),
        measures.spike_ratio,
        10.0,
        True,
        f"The third-largest gradient norm of the last {WINDOW} iterations, divided by the reference norm (the "
        f"median of up to {LONG - WINDOW} earlier iterations or of the first {START}, whichever is larger),",
        "Several recent gradients are many times larger than usual in this run.",
        "Lower `optim.lr` or `optim.max_grad_norm`. Check whether some rewards are rare but very large.",
        OWN,
    ),
    Check(
        "ref_kl",
        ("ref/kl",),
        measures.mean,
        *LIMITS["ref/kl"],
        f"The mean KL to the reference model over the last {WINDOW} iterations, in nats per response,",
        "The policy has drifted so far from the reference model that a learned reward can no longer be trusted.",
        "Raise `llm.kl_coef`, set `llm.kl_target`, or lower `optim.lr`.",
        "As the KL grows, the true score first rises and then falls (Gao et al. 2022, arXiv:2210.10760). Our limit is "
        "more than twice the highest KL of the preset `sentiment`.",
    ),
    Check(
        "gold",
        ("reward/score", WATCHED),
        measures.lost_gold_share,
        0.5,
        True,
        "The fraction of the improvement of a reward with weight 0 that has been lost again",
        "The score stays high while a reward with weight 0 falls. If that reward measures what you really want, the "
        "policy exploits flaws in the trained reward.",
        "Raise `llm.kl_coef`, stop earlier (the best checkpoint is kept), or fix the reward.",
        "Gao et al. 2022 (arXiv:2210.10760) describe this overoptimization; the limit is based on our measurements.",
        severe=True,
        after=START + WINDOW,
        scope=f"The check applies only while `reward/score` keeps at least {NEAR:.0%} of its largest improvement.",
    ),
    Check(
        "length",
        ("response/length",),
        measures.log_share_of_start,
        1.0,
        True,
        f"The change in the mean response length since the first {START} iterations, as an absolute base-2 logarithm,",
        "Responses are now more than twice as long as at the start, or less than half as long.",
        "Check whether the reward depends on the length. Raise `llm.kl_coef` or set `llm.missing_eos_penalty`.",
        "RLHF often makes responses longer (Singhal et al. 2023, arXiv:2310.03716); the limit is based on our "
        "measurements.",
        after=START + WINDOW,
        scope="A value of 1 means twice or half the length.",
    ),
    Check(
        "eos_rate",
        ("response/eos_rate",),
        measures.eos_share_of_start,
        0.5,
        False,
        f"The fraction of responses with an end token in the last {WINDOW} iterations, divided by the fraction in the "
        f"first {START},",
        "Far fewer responses end with an end token than at the start of training; the others are cut off at the limit.",
        "Set `llm.missing_eos_penalty`, or raise `llm.max_new_tokens`.",
        "Huang et al. 2024 (arXiv:2403.17031) penalize missing end tokens; the limit is based on our measurements.",
        after=START + WINDOW,
        scope=f"The check applies only if the fraction in the first {START} iterations is at least 0.1.",
    ),
    Check(
        "repetition",
        ("response/repetition",),
        measures.increase,
        0.2,
        True,
        f"The mean repetition over the last {WINDOW} iterations, minus the mean over the first {START},",
        "Responses repeat themselves much more than at the start.",
        "Raise `llm.kl_coef` or lower `optim.lr`. Check whether the reward favors repetition.",
        OWN,
        after=START + WINDOW,
    ),
    Check(
        "reward_spread",
        ("reward/score_std",),
        measures.largest,
        *LIMITS["reward/score_std"],
        f"The largest standard deviation of the scores in the last {WINDOW} iterations",
        "All responses get the same score, so the policy cannot learn from them.",
        "Use prompts that are neither too easy nor too hard, or a reward that distinguishes between responses. "
        f"{IF_SOLVED}",
        "Equal scores do not show which response is better. The limit allows for rounding errors.",
        scope=UNSOLVED,
        ignores_solved=True,
    ),
)


@dataclass
class _Verdict:
    """The current state of a check."""

    run: int = 0  # number of consecutive iterations that contradict the current state
    since: int | None = None  # step at which the warning began; None if the check does not warn


class Health:
    """The health checks of one run. Its state is part of every checkpoint. `threshold` is the option eval.threshold.

    `watched` are the metrics of scores that are only logged, see `RunConfig.watched_scores`.
    """

    def __init__(self, has_critic: bool = True, threshold: float | None = None, watched: Sequence[str] = ()) -> None:
        self.threshold = threshold
        self.checks = [
            check._replace(reads=(*check.reads[:-1], *watched)) if WATCHED in check.reads else check
            for check in CHECKS
            if (has_critic or not set(check.reads) & set(CRITIC)) and (watched or WATCHED not in check.reads)
        ]
        self.tracks: dict[str, Track] = {}
        self._verdicts = {check.name: _Verdict() for check in self.checks}
        self._read = {EVALUATED, *(tag for check in self.checks for tag in check.reads)}

    def update(self, step: int, metrics: Mapping[str, float]) -> list[str]:
        """Add an iteration's metrics. Return a message for each check that starts to warn or recovers.

        Values are rounded to float32, as in the event file. NaN and infinity are ignored, but after an evaluation with
        such a score, the task does not count as solved.
        """
        for tag in self._read & metrics.keys():
            value = float(np.float32(metrics[tag]))
            if math.isfinite(value):
                self.tracks.setdefault(tag, Track()).add(value)
            elif tag == EVALUATED:
                self.tracks.pop(tag, None)
        return [line for check in self.checks if (line := self._update_verdict(check, step))]

    def value(self, check: Check) -> float | None:
        """Return the current value of a check's measure, or None if the check does not apply now."""
        value, ignores = check.value(self.tracks), check.ignores_solved
        return None if ignores and check.is_beyond(value) and is_solved(self.tracks, self.threshold) else value

    def _update_verdict(self, check: Check, step: int) -> str:
        verdict = self._verdicts[check.name]
        beyond = check.is_beyond(self.value(check))
        verdict.run = verdict.run + 1 if beyond == (verdict.since is None) else 0
        if verdict.run < PERSIST:
            return ""
        verdict.run, verdict.since = 0, step if verdict.since is None else None
        return f"{check.name}: {warning_text(check)}" if beyond else f"{check.name} recovered."

    def active_warnings(self) -> list[dict[str, Any]]:
        """Return the active warnings in the format of run.json and in the order of CHECKS."""
        return [
            {"name": check.name, "since": since, "severe": check.severe, "text": warning_text(check)}
            for check in self.checks
            if (since := self._verdicts[check.name].since) is not None
        ]

    def state_dict(self) -> dict[str, Any]:
        """Return the state as numbers, lists, dicts and strings."""
        return {
            "tracks": {tag: asdict(track) for tag, track in self.tracks.items()},
            "verdicts": {name: asdict(verdict) for name, verdict in self._verdicts.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a saved state. Checks that are missing from it keep their initial state."""
        self.tracks = {tag: Track(**saved) for tag, saved in state["tracks"].items()}
        known = {name: _Verdict(**saved) for name, saved in state["verdicts"].items() if name in self._verdicts}
        self._verdicts |= known


def warning_text(check: Check) -> str:
    """Return the text of a check's warning: its meaning and advice, without Markdown."""
    return f"{check.meaning} {check.advice}".replace("`", "")
