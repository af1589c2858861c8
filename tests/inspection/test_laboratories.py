"""The critic microscope and the KL laboratory, compared with direct computation and with exact enumeration."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ppo_unified.errors import UsageError
from ppo_unified.inspection import critic, kl_lab
from ppo_unified.inspection.formulas import KL_ESTIMATES, Array
from ppo_unified.inspection.laboratories import LABORATORIES
from ppo_unified.inspection.reward_curves import PARTS, reward_curves, reward_section
from ppo_unified.inspection.sample_statistics import divide, mean_of
from ppo_unified.inspection.sections import Canvas, format_sections
from ppo_unified.inspection.settings import COLUMNS
from ppo_unified.runs.folder import Run
from ppo_unified.runs.stored_iteration import Alternatives, StoredIteration
from ppo_unified.text import display_width
from tests.stored_tokens import CHINESE, ENGLISH, make_token_iteration

COUNTS = ((11, 6, 2, 1), (13, 3, 3, 1))  # so many responses consist of each token, at two different prefixes
P = np.array(COUNTS) / 20  # [2, 4]: the policy at each prefix, the likeliest token first: exactly the frequencies
Q = np.array([[0.3, 0.1, 0.2, 0.4], [0.1, 0.5, 0.2, 0.2]])  # the reference


def enumerated(stored_tokens: int = 4) -> StoredIteration:
    """Return an iteration of 40 responses with one token each, in which each token has exactly its probability."""
    prefix = np.repeat([0, 1], 20)[:, None]
    token = np.concatenate([np.repeat(np.arange(4), counts) for counts in COUNTS])[:, None]
    stored = make_token_iteration(ENGLISH)
    ones = np.ones(token.shape, bool)
    old, ref = np.log(P)[prefix, token], np.log(Q)[prefix, token]
    full = np.sum(P * np.log(P / Q), 1)[prefix]
    columns: dict[str, Any] = {name: np.zeros(token.shape) for name in COLUMNS}
    columns |= {"mask": ones, "continues": ~ones, "token": token, "logprob_old": old, "logprob_ref": ref}
    columns |= {"kl": old - ref, "kl_full": full, "text": np.array(list("abcd"), object)[token]}
    actions = np.broadcast_to(np.arange(stored_tokens), (40, 1, stored_tokens))
    logprobs = np.log(P)[prefix, :stored_tokens]
    return replace(stored, columns=columns, epochs={}, alternatives={"old": Alternatives(actions, logprobs)})


def test_kl_estimates_match_enumeration() -> None:
    report = kl_lab.examine_kl(enumerated())
    log_ratio, share = np.log(P / Q), P / 2
    by_name = {x.name: x for x in report.estimates}
    kl = float(np.sum(share * log_ratio))
    for name, estimate in KL_ESTIMATES.items():
        values = estimate(log_ratio)
        mean = float(np.sum(share * values))
        assert by_name[name].per_token.value == pytest.approx(mean)
        assert by_name[name].negative == pytest.approx(np.sum(share * (values < 0)))
        assert by_name[name].spread == pytest.approx(np.sqrt(np.sum(share * (values - mean) ** 2)))
    for name in ("full", "k1", "k3"):  # unbiased
        assert by_name[name].per_token.value == pytest.approx(kl)


def test_truncated_samplers_match_enumeration() -> None:
    truncations = {x.name: x for x in kl_lab.examine_kl(enumerated()).truncations}
    kept = {"top-k 1": 1, "top-k 2": 2, "top-k 3": 3, "top-p 0.9": 3}  # 0.55, 0.85, 0.95 and 0.65, 0.8, 0.95
    assert truncations.keys() == kept.keys()
    log_ratio = np.log(P / Q)
    for name, size in kept.items():
        mass = P[:, :size].sum(1)
        sampler = np.where(np.arange(4) < size, P, 0) / mass[:, None] / 2
        found = truncations[name]
        assert found.mass == pytest.approx(mass.mean())
        assert found.kept == pytest.approx(mass.mean())
        for estimate, function in KL_ESTIMATES.items():
            expected = float(np.sum(sampler * function(log_ratio)))
            assert found.shifts[estimate].mean.value == pytest.approx(expected)
            assert found.shifts[estimate].shift.value == pytest.approx(expected - np.sum(P * log_ratio) / 2)
        gap = found.shifts["k3"].mean.value - found.shifts["k1"].mean.value  # the reason that the page states
        assert gap == pytest.approx(np.mean(Q[:, :size].sum(1) / mass) - 1)


def test_tokens_with_unknown_kept_sets_are_excluded() -> None:
    report = kl_lab.examine_kl(enumerated(stored_tokens=2))
    assert [x.name for x in report.truncations] == ["top-k 1", "top-k 2"]  # top-p excludes every token
    mixed = enumerated(stored_tokens=2)
    logprobs = mixed.alternatives["old"].logprobs.copy()
    logprobs[:5, 0, 0] = np.log(0.95)
    found = kl_lab.examine_kl(
        replace(mixed, alternatives={"old": Alternatives(mixed.alternatives["old"][0], logprobs)})
    )
    assert (found.truncations[-1].tokens, found.truncations[-1].excluded) == (5, 35)


def test_standard_errors_are_those_of_a_jackknife() -> None:
    """Only the sums over responses are independent, so each left-out unit is a response."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 9, 400).astype(float)
    sums = lengths * rng.normal(1, 0.3, 400) + rng.normal(0, 2, 400)
    mean, _ = mean_of(sums, lengths)
    others = (sums.sum() - sums) / (lengths.sum() - lengths)
    error = np.sqrt(399 / 400 * np.square(others - others.mean()).sum())
    assert mean.value == pytest.approx(sums.sum() / lengths.sum())
    assert mean.error == pytest.approx(error, rel=0.02)


def episodes(count: int = 300, seed: int = 0) -> tuple[StoredIteration, Array]:
    """Return an iteration of episodes with up to 4 steps, whose V explains a known part, and G [n]."""
    rng = np.random.default_rng(seed)
    mask = np.arange(4) < rng.integers(1, 5, count)[:, None]
    last = mask & ~np.roll(np.pad(mask, ((0, 0), (0, 1))), -1, 1)[:, :4]
    signal = rng.normal(0, 1, (count, 1))
    reward = np.where(last, signal + rng.normal(0, 1, (count, 1)), 0.0)
    value = np.where(mask, np.where(np.arange(4) == 0, 0.0, signal), 0.0)  # at the first step, V knows nothing
    columns = make_token_iteration(ENGLISH).columns
    zeros: dict[str, Any] = {name: np.zeros(mask.shape) for name in columns if name not in ("text", "token")}
    zeros |= {"mask": mask, "continues": mask & ~last, "reward": reward, "value": value}
    zeros |= {"next_value": np.where(mask & ~last, np.roll(value, -1, 1), 0), "ratio": np.ones(mask.shape)}
    options = {"kind": "gym", "ppo": {"gamma": 1.0, "lam": 0.95, "normalize_advantages": "batch"}}
    stored = replace(make_token_iteration(ENGLISH), columns=zeros, options=options, epochs={}, alternatives={})
    return stored, np.broadcast_to(reward.sum(1, keepdims=True), mask.shape)


def test_explained_variance_matches_its_definition() -> None:
    stored, g = episodes()
    report = critic.examine_critic(stored)
    mask, value = stored.columns["mask"], stored.columns["value"]
    for position, group in enumerate(report.by_position):
        chosen = mask & (np.arange(4) == position)
        expected = 1 - (g - value)[chosen].var() / g[chosen].var()
        assert (group.first, group.last, group.steps) == (position + 1, position + 1, chosen.sum())
        assert group.explained.value == pytest.approx(expected)
        true = 0.0 if position == 0 else 0.5
        assert group.explained.low is not None
        assert group.explained.high is not None
        assert group.explained.low <= true + 0.02
        assert true - 0.02 <= group.explained.high
    assert [group.first for group in report.by_length] == [1, 2, 3, 4]
    assert report.overall.explained.value == pytest.approx(1 - (g - value)[mask].var() / g[mask].var())


def test_intervals_count_samples_and_not_steps() -> None:
    """Repeating each step adds no information, so the interval must not shrink."""
    stored, _ = episodes(80)
    one = replace(stored, columns={name: x[:, :1] for name, x in stored.columns.items()})
    one.columns["continues"] = np.zeros((80, 1), bool)
    one.columns["value"] = one.columns["reward"] * 0.5
    one.columns["next_value"] = np.zeros((80, 1))
    many = replace(one, columns={name: np.repeat(x, 30, 1) for name, x in one.columns.items()})
    many.columns["continues"] = np.broadcast_to(np.arange(30) < 29, (80, 30))
    many.columns["reward"] = np.where(np.arange(30) == 29, one.columns["reward"], 0)
    many.columns["next_value"] = np.where(many.columns["continues"], many.columns["value"], 0)
    short, long = (critic.examine_critic(x).overall.explained for x in (one, many))
    assert short.value == pytest.approx(long.value)
    assert short.low == pytest.approx(long.low)
    assert short.high == pytest.approx(long.high)


def test_unfinished_episodes_are_excluded() -> None:
    stored, _ = episodes(100)
    columns = dict(stored.columns)
    columns["next_value"] = columns["next_value"].copy()
    columns["next_value"][:30, :] = np.where(columns["mask"][:30], 5.0, 0)  # truncated: what followed is unknown
    report = critic.examine_critic(replace(stored, columns=columns))
    steps = int(columns["mask"][:30].sum())
    assert (report.samples, report.excluded_samples, report.excluded_steps) == (70, 30, steps)
    rest = replace(stored, columns={name: x[30:] for name, x in columns.items()})
    assert report.overall.explained.value == pytest.approx(critic.examine_critic(rest).overall.explained.value)
    columns["next_value"] = np.full_like(columns["next_value"], 5.0)
    with pytest.raises(UsageError, match="no episode of iteration 4 ended in the rollout"):
        critic.examine_critic(replace(stored, columns=columns))


def test_calibration_and_trajectory_match_the_arrays() -> None:
    stored = make_token_iteration(ENGLISH + CHINESE)
    g, mask = critic.followed(stored), stored.columns["mask"]
    bins = critic.examine_critic(stored).calibration
    assert sum(bin_.steps for bin_ in bins) == mask.sum()
    assert all(one.value < other.value for one, other in pairwise(bins))
    total = sum(bin_.steps * (bin_.followed.value or 0) for bin_ in bins)
    assert total == pytest.approx(g[mask].sum())
    sample = stored.samples()[1]
    path = critic.trajectory(stored, sample)
    np.testing.assert_allclose(path["followed"][-1], path["reward"][-1])
    np.testing.assert_allclose(np.cumsum(path["reward"][::-1])[::-1], path["followed"], rtol=1e-5)
    np.testing.assert_allclose(path["value"][1:], path["next_value"][:-1])


def test_runs_without_critic_or_reference_get_an_error() -> None:
    stored = make_token_iteration(ENGLISH)
    group = replace(stored, options={**stored.options, "llm": {**stored.options["llm"], "baseline": "rloo"}})
    with pytest.raises(UsageError, match="the run has no critic, because"):
        critic.examine_critic(group)
    with pytest.raises(UsageError, match="no KL to a reference model"):
        kl_lab.examine_kl(replace(stored, columns={n: x for n, x in stored.columns.items() if n != "kl_full"}))


def test_groups_have_similar_sizes_and_no_common_numbers() -> None:
    x = np.random.default_rng(1).integers(1, 40, 1000)
    ends, groups = divide(x, 8)
    assert len(ends) == len(set(groups.tolist())) <= 8
    assert all(one[1] < other[0] for one, other in pairwise(ends))
    assert np.bincount(groups).max() < 250


def test_proxy_that_rises_while_gold_stops_is_found() -> None:
    count = 10 * PARTS
    steps, rng = np.arange(1, count + 1), np.random.default_rng(0)
    proxy = np.linspace(0, 4, count) + rng.normal(0, 0.05, count)
    gold = np.minimum(np.linspace(0, 4, count), 2) + rng.normal(0, 0.05, count)
    series = {"reward/sentiment": proxy, "reward/sentiment-gold": gold, "reward/score": proxy, "ref/kl_full": steps / 9}
    proxy[3] = np.nan  # ignored
    watched = ["reward/sentiment-gold"]
    curves = reward_curves({name: (7 * steps, x) for name, x in series.items()}, 7 * count, watched)
    assert curves is not None
    assert (curves.proxy, curves.gold) == (["sentiment"], ["sentiment-gold"])
    assert curves.stops("sentiment-gold") == PARTS // 2
    assert curves.parts[-1].last == 7 * count
    assert "no significant rise of sentiment-gold was found" in format_sections([reward_section(curves, Canvas(300))])
    assert reward_curves({"reward/sentiment": (steps, proxy), "ref/kl_full": (steps, steps)}, count, watched) is None


def test_sections_fit_the_width() -> None:
    stored = make_token_iteration(ENGLISH + CHINESE)
    for kind in LABORATORIES:
        laboratory = kind.of(Run(Path("runs/none")), stored)
        for canvas in (Canvas(30), Canvas(60), Canvas(80, False), Canvas(120)):
            sections = [*laboratory.sections(canvas), laboratory.sample_section(6, canvas, 2, 5)]
            lines = ["".join(text for text, _ in line) for section in sections for line in section.lines]
            assert max(map(display_width, lines)) <= canvas.width
            assert canvas.unicode or not set("─●│±") & set("".join(lines))


def test_rewards_after_an_unfinished_sample_are_unknown() -> None:
    stored = make_token_iteration(ENGLISH)
    sample = stored.samples()[0]
    assert np.isfinite(critic.trajectory(stored, sample)["followed"]).all()
    stored.columns["next_value"][sample.row, sample.columns[-1]] = 0.5  # a time limit ended it
    assert np.isnan(critic.trajectory(stored, sample)["followed"]).all()
    assert np.isnan(critic.trajectory(stored, sample)["error"]).all()
