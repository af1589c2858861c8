"""Live health checks: what a run's metrics say is going wrong, why it matters and what to change. No torch.

A check reads a few metrics of the last iterations and of the run's own beginning, so its verdict is a function of the
metric history alone. It speaks only when its measure has been beyond the limit for several iterations in a row, and
takes that back when it has been within for as many.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from itertools import islice
from statistics import fmean, median
from typing import Any, NamedTuple

import numpy as np

START = 10  # first iterations, with which later ones are compared
WINDOW = 10  # last iterations, whose mean counts
LONG = 50  # last iterations, whose median is what is usual
PERSIST = 5  # iterations in a row that turn a verdict
SETTLED = 30  # iterations after which a critic should have learned something
SPIKES = 3  # of the last WINDOW iterations
EXACT = 0.01  # share of the mean value by which a critic that is right errs


@dataclass
class Track:
    """What is kept of one metric: O(1) however long the run."""

    count: int = 0
    start: list[float] = field(default_factory=list)  # the first START values
    recent: list[float] = field(default_factory=list)  # the last LONG values
    peak: float = 0.0  # largest mean of WINDOW consecutive values so far; there is none before as many

    def add(self, value: float) -> None:
        self.count += 1
        if self.count <= START:
            self.start.append(value)
        self.recent = [*self.recent[1 - LONG :], value]
        if self.count >= WINDOW:
            self.peak = self.recent_mean if self.count == WINDOW else max(self.peak, self.recent_mean)

    @property
    def recent_mean(self) -> float:
        return fmean(self.recent[-WINDOW:])

    @property
    def start_mean(self) -> float:
        return fmean(self.start)


Tracks = Mapping[str, Track]
Measure = Callable[..., float | None]  # of the tracks that a check reads; None where there is nothing to judge


class Check(NamedTuple):
    """One way in which a run goes wrong."""

    name: str
    reads: tuple[str, ...]  # metrics, each a Track handed to `measure`
    measure: Measure
    limit: float
    is_high: bool  # whether it fires above the limit, not below
    rule: str  # what is compared with the limit, in words
    meaning: str
    advice: str
    source: str  # of the limit
    severe: bool = False
    after: int = WINDOW  # iterations that must have gone by

    def is_beyond(self, tracks: Tracks) -> bool:
        """Whether the measure is on the wrong side of the limit now."""
        value = self.value(tracks)
        return value is not None and (value > self.limit if self.is_high else value < self.limit)

    def value(self, tracks: Tracks) -> float | None:
        """The measure; None before it can be taken."""
        found = [tracks[tag] for tag in self.reads if tag in tracks]
        if len(found) < len(self.reads) or min(track.count for track in found) < max(self.after, WINDOW):
            return None
        return self.measure(*found)


def _mean(track: Track) -> float:
    return track.recent_mean


def _smallest_magnitude(track: Track) -> float:
    """The smallest size in the window: beyond the limit only where all are."""
    return min(map(abs, islice(reversed(track.recent), WINDOW)))


def _largest(track: Track) -> float:
    return max(map(abs, islice(reversed(track.recent), WINDOW)))


def _share_of_peak(track: Track) -> float | None:
    """Of entropies; those of continuous actions, which may be negative, cannot be compared as shares."""
    return track.recent_mean / track.peak if min(track.recent) >= 0 and track.peak > 0 else None


def _share_of_start(track: Track) -> float | None:
    return track.recent_mean / track.start_mean if track.start_mean > 0 else None


def _log_share_of_start(track: Track) -> float | None:
    """The factor away from the start in either direction, as a size of its base-2 logarithm."""
    share = _share_of_start(track)
    return abs(math.log2(share)) if share else None


def _eos_share_of_start(track: Track) -> float | None:
    """A task whose responses hardly ever end by themselves from the beginning says nothing by going on so."""
    return _share_of_start(track) if track.start_mean >= 0.1 else None


def _rise(track: Track) -> float:
    return track.recent_mean - track.start_mean


def _lost_gold_share(proxy: Track, gold: Track) -> float | None:
    """Part of the gold score's rise (at least 3 deviations) that is gone, while the proxy score is near its best."""
    risen = proxy.peak - proxy.start_mean
    if risen <= 0 or proxy.recent_mean < proxy.start_mean + 0.8 * risen:
        return None
    noise = float(max(np.std(gold.start), np.std(gold.recent[-WINDOW:]))) + 1e-6
    return (gold.peak - gold.recent_mean) / max(gold.peak - gold.start_mean, 3 * noise)


def _spike_ratio(track: Track) -> float | None:
    """The SPIKES-th largest of the window over what was usual before it."""
    before = track.recent[:-WINDOW]
    usual = median(before) if len(before) >= WINDOW else 0.0
    return sorted(track.recent[-WINDOW:])[-SPIKES] / usual if usual > 0 else None


def _mean_explained_variance(explained: Track, loss: Track, values: Track) -> float | None:
    """The mean share explained where the critic is not right already, as on a solved task whose returns are all alike:
    what is left to explain there is rounding. None where it is right in half of the window."""
    recent = (track.recent[-WINDOW:] for track in (explained, loss, values))
    wrong = [
        share for share, cost, mean in zip(*recent, strict=False) if math.sqrt(2 * max(0.0, cost)) > EXACT * abs(mean)
    ]
    return fmean(wrong) if 2 * len(wrong) > WINDOW else None


def _largest_explained_variance(explained: Track, loss: Track) -> float | None:
    """The largest share explained in the window; None where the value loss is falling or was nothing to begin with."""
    is_stuck = loss.start_mean > 1e-6 and loss.recent_mean > 0.9 * loss.start_mean
    return _largest(explained) if is_stuck else None


def _relative_error(error: Track, loss: Track) -> float:
    """The error in units of the advantages, whose size is about the root of twice the value loss."""
    return _smallest_magnitude(error) / max(1.0, math.sqrt(2 * max(0.0, loss.recent_mean)))


CRITIC = ("value/explained_variance", "loss/value")  # say nothing about a run without a critic
OWN = "own measurement: benchmarks/health.md"

CHECKS: tuple[Check, ...] = (
    Check(
        "kl",
        ("policy/kl",),
        _mean,
        0.3,
        True,
        f"mean of {WINDOW} iterations",
        "The policy moves so far in one iteration that its samples no longer tell about it.",
        "Lower `optim.lr` or `ppo.epochs`, or set `ppo.target_kl`.",
        "six times the 0.05 that Spinning Up names as the upper end of target_kl (https://spinningup.openai.com/en/latest/"
        "algorithms/ppo.html), over twice what the preset `arithmetic` reaches on its way: benchmarks/health.md",
        severe=True,
    ),
    Check(
        "clip_fraction",
        ("policy/clip_fraction",),
        _mean,
        0.5,
        True,
        f"mean of {WINDOW} iterations",
        "Most steps leave the clip range, where the objective gives them no gradient.",
        "Lower `optim.lr` or `ppo.epochs`, or use more `ppo.minibatches` of a larger rollout.",
        OWN,
    ),
    Check(
        "entropy",
        ("policy/entropy",),
        _share_of_peak,
        0.01,
        False,
        "share of the largest it has been",
        "The policy hardly tries anything but its first choice any more; what it has not found, it will not find.",
        "Raise `ppo.entropy_coef` or lower `optim.lr`; for a language model raise `llm.kl_coef`.",
        OWN,
    ),
    Check(
        "explained_variance",
        (*CRITIC, "value/mean"),
        _mean_explained_variance,
        -0.1,
        False,
        f"mean of {WINDOW} iterations, after {SETTLED}, those apart where the critic errs by under {EXACT:.0%} of the "
        "mean value",
        "The critic foresees less than a constant would, so advantages are noisier than without it.",
        "Lower `optim.critic_lr` (with `optim.joint` off), raise `ppo.value_coef`, or set `ppo.critic_warmup`.",
        "below 0 is worse than predicting nothing (https://stable-baselines3.readthedocs.io/en/master/common/logger.html)",
        after=SETTLED,
    ),
    Check(
        "dead_critic",
        CRITIC,
        _largest_explained_variance,
        0.05,
        False,
        f"largest size of the explained variance in {WINDOW} iterations, after {SETTLED}, with a value loss that has "
        "not fallen by a tenth",
        "The critic explains nothing and does not learn: advantages are plain returns.",
        "Raise `ppo.value_coef`, or `optim.critic_lr` where `optim.joint` is off; set `gym.normalize_reward`.",
        OWN,
        after=SETTLED,
    ),
    Check(
        "first_ratio",
        ("invariant/first_ratio_error",),
        _smallest_magnitude,
        1e-2,
        True,
        f"smallest of {WINDOW} iterations",
        "The policy that learns is not the one that acted, even before any update.",
        "Look at the adapter's `collect` and its policy's `evaluate`: dropout, temperature, padding, precision.",
        "rounding explains 1e-5 in fp32 and 1e-2 in bf16; a run in fp32 fails at once beyond the second",
    ),
    Check(
        "optimizer_steps",
        ("invariant/optimizer_steps_error",),
        _smallest_magnitude,
        0.0,
        True,
        f"smallest of {WINDOW} iterations",
        "Fewer optimizer steps were taken than epochs times minibatches.",
        "This is a defect of the engine: please report it with config.toml.",
        "it is 0 by definition",
        severe=True,
    ),
    Check(
        "gae",
        ("invariant/gae_error", "loss/value"),
        _relative_error,
        1e-3,
        True,
        f"smallest of {WINDOW} iterations, in units of the advantages",
        "The advantages are not what their definition says.",
        "Look at the adapter's `next_values`, `continues` and `mask`; values may also be too large for float32.",
        "rounding explains 1e-4 of the advantages' size",
        severe=True,
    ),
    Check(
        "grad_norm",
        ("optim/grad_norm",),
        _spike_ratio,
        10.0,
        True,
        f"third largest of {WINDOW} iterations, over the median of up to {LONG - WINDOW} before",
        "Gradients are many times what is usual for this run.",
        "Lower `optim.lr` or `optim.max_grad_norm`; look for rewards that are rare and huge.",
        OWN,
    ),
    Check(
        "ref_kl",
        ("ref/kl",),
        _mean,
        25.0,
        True,
        f"mean of {WINDOW} iterations, nats per response",
        "The policy has left the reference model so far behind that a learned reward is no longer to be trusted.",
        "Raise `llm.kl_coef`, set `llm.kl_target`, or lower `optim.lr`.",
        "gold scores of learned rewards peak early and fall as KL grows (Gao et al. 2022, arXiv:2210.10760); "
        "the limit is our own choice, over twice what the preset `sentiment` reaches",
    ),
    Check(
        "gold",
        ("reward/score", "reward/gold"),
        _lost_gold_share,
        0.5,
        True,
        "part of its rise that the true score has lost again, while the score is near its best",
        "The score rises and what it stands for falls: the policy exploits the reward.",
        "Raise `llm.kl_coef`, stop earlier (the best checkpoint is kept), or mend the reward.",
        "overoptimisation as in Gao et al. 2022, arXiv:2210.10760; the limit is our own measurement",
        severe=True,
        after=START + WINDOW,
    ),
    Check(
        "length",
        ("response/length",),
        _log_share_of_start,
        1.0,
        True,
        f"doublings or halvings of the first {START} iterations' mean",
        "Responses have become twice as long, or half as long, as they were.",
        "See whether the reward pays for length; raise `llm.kl_coef` or set `llm.missing_eos_penalty`.",
        "length as what RLHF optimises: Singhal et al. 2023, arXiv:2310.03716; the limit is our own measurement",
        after=START + WINDOW,
    ),
    Check(
        "eos_rate",
        ("response/eos_rate",),
        _eos_share_of_start,
        0.5,
        False,
        f"share of the first {START} iterations' mean, where that is at least 0.1",
        "Responses no longer end by themselves: they are cut off at the limit.",
        "Set `llm.missing_eos_penalty`, or raise `llm.max_new_tokens`.",
        "the missing-EOS penalty of Huang et al. 2024, arXiv:2403.17031; the limit is our own measurement",
        after=START + WINDOW,
    ),
    Check(
        "repetition",
        ("response/repetition",),
        _rise,
        0.2,
        True,
        f"rise over the first {START} iterations' mean",
        "Responses repeat themselves much more than they did.",
        "Raise `llm.kl_coef` or lower `optim.lr`; see whether the reward pays for repetition.",
        OWN,
        after=START + WINDOW,
    ),
    Check(
        "reward_spread",
        ("reward/score_std",),
        _largest,
        1e-6,
        False,
        f"largest of {WINDOW} iterations",
        "All responses get the same score, so there is nothing to learn from.",
        "Take prompts that are neither too easy nor too hard, or a reward that tells responses apart.",
        "no difference, no advantage; 1e-6 is rounding",
    ),
)


@dataclass
class _Verdict:
    """How long a check has been beyond its limit or within, and since which step it fires."""

    run: int = 0  # consecutive iterations that speak against `since`
    since: int | None = None


class Health:
    """The checks of one run, fed its metrics iteration by iteration; `state_dict` is checkpointed."""

    def __init__(self, has_critic: bool = True, checks: Iterable[Check] = CHECKS) -> None:
        self.checks = [check for check in checks if has_critic or not set(check.reads) & set(CRITIC)]
        self.tracks: dict[str, Track] = {}
        self._verdicts = {check.name: _Verdict() for check in self.checks}
        self._read = {tag for check in self.checks for tag in check.reads}

    def update(self, step: int, metrics: Mapping[str, float]) -> list[str]:
        """Take an iteration's metrics; a line for every check that begins to fire or has healed.

        Values count as the event files hold them, in float32; one that is not finite is left out.
        """
        for tag in self._read & metrics.keys():
            value = float(np.float32(metrics[tag]))
            if math.isfinite(value):
                self.tracks.setdefault(tag, Track()).add(value)
        return [line for check in self.checks if (line := self._update_verdict(check, step))]

    def _update_verdict(self, check: Check, step: int) -> str:
        verdict = self._verdicts[check.name]
        beyond = check.is_beyond(self.tracks)
        verdict.run = verdict.run + 1 if beyond == (verdict.since is None) else 0
        if verdict.run < PERSIST:
            return ""
        verdict.run, verdict.since = 0, step if verdict.since is None else None
        return f"{check.name}: {warning_text(check)}" if beyond else f"{check.name} is well again"

    def active_warnings(self) -> list[dict[str, Any]]:
        """What run.json tells of the checks that fire, in the order of the table."""
        return [
            {"name": check.name, "since": since, "severe": check.severe, "text": warning_text(check)}
            for check in self.checks
            if (since := self._verdicts[check.name].since) is not None
        ]

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers, lists and texts."""
        return {
            "tracks": {tag: asdict(track) for tag, track in self.tracks.items()},
            "verdicts": {name: asdict(verdict) for name, verdict in self._verdicts.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there. Checks that it does not know begin anew."""
        self.tracks = {tag: Track(**saved) for tag, saved in state["tracks"].items()}
        known = {name: _Verdict(**saved) for name, saved in state["verdicts"].items() if name in self._verdicts}
        self._verdicts |= known


def checks_table(checks: Iterable[Check] = CHECKS) -> list[str]:
    """The lines of docs/health.md's table."""
    lines = [
        "| check | reads | fires when | meaning | what to change | source of the limit |",
        "|---|---|---|---|---|---|",
    ]
    for check in checks:
        reads = " ".join(f"`{tag}`" for tag in check.reads)
        rule = f"{check.rule}: {'above' if check.is_high else 'below'} {check.limit:g}"
        name = f"**{check.name}**" if check.severe else check.name
        lines.append(f"| {name} | {reads} | {rule} | {check.meaning} | {check.advice} | {check.source} |")
    return lines


def warning_text(check: Check) -> str:
    """What a check says where it fires."""
    return f"{check.meaning} {check.advice}".replace("`", "")
