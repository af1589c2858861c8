"""The step table has every PPO quantity at the right step, for any arrangement of rows and minibatches."""

from __future__ import annotations

import ast
from dataclasses import replace

import numpy as np
import pytest
import torch

from ppo_unified.config.schema import PPO, Optim
from ppo_unified.engine.batch import standardize
from ppo_unified.engine.ppo import Iteration, Progress, gae, make_batch, make_learner
from ppo_unified.engine.rollout import Rollout, map_obs
from ppo_unified.runs import samples
from ppo_unified.testing import BanditPolicy
from ppo_unified.training.step_table import convert_to_arrays, make_step_table
from tests.toys import make_policy, random_rollout, with_next_values


def iteration_of(rollout: Rollout, ppo: PPO) -> Iteration:
    return Iteration({}, rollout, make_batch(rollout, ppo))


def test_known_logprobs_replace_the_evaluation() -> None:
    rollout, ppo = with_next_values(random_rollout(n=7, row_len=4, ragged=True, holes=0.4)), PPO()
    learner, iteration = make_learner(make_policy(BanditPolicy), ppo, Optim()), iteration_of(rollout, ppo)
    expected = make_step_table(learner, iteration)
    learner.policy.evaluate = None  # type: ignore[assignment, method-assign] # a call would fail
    seen = make_step_table(learner, iteration, expected.columns["logprob_new"])
    assert all(torch.equal(seen.columns[name], x) for name, x in expected.columns.items())
    assert seen.metrics == expected.metrics


@pytest.mark.parametrize("row_len", [1, 4, 12])
@pytest.mark.parametrize("normalize", ["batch", "minibatch", "none"])
@pytest.mark.parametrize("columns", [5, 24, 10_000])
def test_step_table_matches_every_training_step(row_len: int, normalize: str, columns: int) -> None:
    """Every value is at its step of the rollout, although the batch splits, sorts and omits rows."""
    rollout = with_next_values(random_rollout(n=7, row_len=row_len, ragged=True, holes=0.4))
    rollout = replace(rollout, mask=rollout.mask & (torch.arange(7) != 3)[:, None])
    options = {"normalize_advantages": normalize, "microbatch_columns": columns, "clip": 0.2, "clip_high": 1.5}
    policy, ppo = make_policy(BanditPolicy), PPO.model_validate(options)
    seen = make_step_table(make_learner(policy, ppo, Optim()), iteration_of(rollout, ppo))
    mask, own = rollout.mask, seen.columns
    with torch.no_grad():
        new = policy.evaluate(map_obs(rollout.rows, rollout.obs), rollout.rows(rollout.actions)).logprobs.view(
            mask.shape
        )
    ratio = (new - rollout.logprobs).exp()
    advantages = gae(rollout, ppo.gamma, ppo.lam)
    expected = {
        "logprob_old": rollout.logprobs,
        "logprob_new": new,
        "ratio": ratio,
        "clipped": (ratio < 0.8) | (ratio > 2.5),
        "reward": rollout.rewards,
        "value": rollout.values,
        "next_value": rollout.next_values,
        "delta": rollout.rewards + ppo.gamma * rollout.next_values - rollout.values,
        "advantage": advantages,
        "advantage_used": standardize(advantages, mask) if normalize == "batch" else advantages,
        "return": advantages + rollout.values,
        "continues": rollout.continues,
        "weight": torch.ones(mask.shape),
    }
    assert ("advantage_used" in own) == (normalize != "minibatch")
    for name in set(own) - {"mask"}:
        torch.testing.assert_close(own[name][mask], expected[name][mask], msg=name)
        assert not own[name][~mask & (name != "ratio")].any(), name
    assert torch.equal(own["mask"], mask)
    assert seen.metrics["policy/clip_fraction_after"] == pytest.approx(float(own["clipped"][mask].double().mean()))
    kl = (ratio - 1 - ratio.log())[mask].mean()
    assert seen.metrics["policy/kl_after"] == pytest.approx(float(kl))
    assert sorted(seen.histograms["histogram/ratios"]) == pytest.approx(sorted(ratio[mask].tolist()))


def test_masked_nonfinite_values_are_excluded() -> None:
    rollout = random_rollout(row_len=12)
    fields = {name: getattr(rollout, name).clone() for name in ("logprobs", "values", "rewards", "next_values")}
    for x in fields.values():
        x[~rollout.mask] = float("nan")
    ppo = PPO(normalize_advantages="batch")
    learner = make_learner(make_policy(BanditPolicy), ppo, Optim())
    seen = make_step_table(learner, iteration_of(replace(rollout, **fields), ppo))
    assert all(x.isfinite().all() for x in seen.columns.values())
    assert all(np.isfinite(x) for x in seen.metrics.values())


def test_clip_range_is_that_of_the_finished_iteration() -> None:
    rollout = random_rollout()
    learned = int(rollout.mask.sum())
    progress = Progress(total_steps=5 * learned, steps=3 * learned, iteration=3)
    annealed = PPO(clip=0.2, clip_high=0.3, anneal_clip=True)
    for ppo, expected in ((annealed, (0.2 * 0.6, 0.3 * 0.6)), (PPO(), (0.2, 0.2))):
        learner = replace(make_learner(make_policy(BanditPolicy), ppo, Optim()), progress=progress)
        table = make_step_table(learner, iteration_of(rollout, ppo))
        assert (table.clip, table.clip_high) == pytest.approx(expected)


def test_arrays_hold_the_stored_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    mask = np.array([[1, 1, 0], [1, 1, 1], [0, 0, 0], [1, 0, 0]], bool)
    monkeypatch.setattr(samples, "MAX_STEPS", 5)
    columns = {"mask": torch.from_numpy(mask), "value": torch.arange(12.0, dtype=torch.float64).view(4, 3)}
    arrays = convert_to_arrays(columns, {"text": [["a", "b", "c"]] * 4}, "hook", samples.rows_to_keep(mask))
    assert {name: x.shape for name, x in arrays.items()} == dict.fromkeys(("mask", "value", "text"), (3, 3))


MISTAKES = {
    "value": ("1", r"my:explain: column 'value': expected another name, because each sample file has its own 'value'"),
    "gamma": ("1", "my:explain: column 'gamma': expected another name"),
    "advantage_used": ("1", "my:explain: column 'advantage_used': expected another name"),
    "a b": ("1", "my:explain: column 'a b': expected a Python identifier other than 'column' as its name"),
    "column": ("1", "my:explain: column 'column': expected a"),
    "shape": (
        "[1]",
        r"my:explain: column 'shape': expected numbers or strings of shape \[2, 3\], got int64 of shape \[2, 3, 1\]",
    ),
    "complex": ("1j", "my:explain: column 'complex': expected numbers or strings .*, got complex128"),
    "objects": ("None", "my:explain: column 'objects': expected numbers or strings .*, got object"),
    "score": ("'a'", "my:explain: column 'score': expected numbers .*, got <U1"),
    "text": ("1", "my:explain: column 'text': expected strings .*, got int64"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_in_an_adapters_columns_are_explained(name: str) -> None:
    value, message = MISTAKES[name]
    columns = {"mask": torch.ones(2, 3, dtype=torch.bool), "value": torch.zeros(2, 3)}
    column = [[ast.literal_eval(value)] * 3] * 2
    with pytest.raises(ValueError, match=f"^{message}"):
        convert_to_arrays(columns, {name: column}, "my:explain", 2)
    free = {"weight_": [[1] * 3] * 2, "file": [["a"] * 3] * 2, "score": np.zeros((2, 3))}
    assert convert_to_arrays(columns, free, "my:explain", 2).keys() == columns.keys() | free.keys()
