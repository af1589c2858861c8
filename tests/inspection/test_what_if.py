"""Recomputing a stored iteration gives the run's own numbers, and with other settings those of the engine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from envs.llm.rewards.score_transforms import ScoreTransforms
from ppo_unified.config.schema import PPO
from ppo_unified.engine.batch import standardize
from ppo_unified.engine.diagnostics import Totals, loss_metrics
from ppo_unified.engine.ppo import make_batch, ppo_loss
from ppo_unified.engine.rollout import Evaluation
from ppo_unified.errors import UsageError
from ppo_unified.inspection import what_if
from ppo_unified.inspection.step_formulas import Step, explain
from ppo_unified.inspection.what_if import Settings, recompute
from ppo_unified.runs import samples
from ppo_unified.runs.folder import Run
from ppo_unified.testing import BanditAdapter
from ppo_unified.training.step_table import scatter
from tests.inspection.checks import close
from tests.inspection.recording import (
    GROUP,
    first_rows,
    make_adapter,
    record,
    record_llm,
    sequences,
    without_new_fields,
)

CHANGES: list[dict[str, Any]] = [
    {"gamma": 0.7},
    {"lam": 0.3, "normalize_advantages": "batch"},
    {"advantage": "return", "normalize_advantages": "none", "value_target": "monte-carlo"},
    {"advantage": "td", "normalize_advantages": "minibatch", "value_clip": 0.05},
    {"advantage": "reward-to-go", "objective": "penalty", "penalty_coef": 2.0},
    {"clip": 0.05, "clip_high": 0.5, "dual_clip": 1.1},
    {"objective": "policy-gradient", "gamma": 1.0},
]


@pytest.mark.parametrize("changes", CHANGES, ids=str)
@pytest.mark.parametrize("normalize", ["minibatch", "batch"])
def test_changed_settings_give_the_engines_numbers(changes: dict[str, Any], normalize: str) -> None:
    """With other settings, all quantities equal those that the engine computes for the stored log-probs and values."""
    ppo = PPO.model_validate({"epochs": 2, "minibatches": 2, "normalize_advantages": normalize})
    stored, rollout = record(sequences(), ppo)
    changed, mask = ppo.model_copy(update=changes), rollout.mask
    batch = make_batch(rollout, changed)
    raw = make_batch(rollout, changed.model_copy(update={"normalize_advantages": "none"}))
    found = recompute(stored, replace(Settings.of(stored), **changes), 2)
    valid, numbers = mask.numpy(), stored.epochs["minibatch"][1]
    parts = [mask & torch.tensor(numbers == i) for i in range(2)]
    used, returns = scatter(batch.advantages, batch, mask), scatter(raw.returns, batch, mask)
    if changed.normalize_advantages == "minibatch":
        used = torch.stack([standardize(used, part) for part in parts]).sum(0)
    close(found.columns["advantage"][valid], scatter(raw.advantages, batch, mask)[mask], "advantage")
    close(found.columns["return"][valid], returns[mask], "return")
    close(found.columns["advantage_used"][valid], used[mask], "advantage_used")
    logprobs, entropy, values = (torch.tensor(stored.epochs[name][1]) for name in ("logprob", "entropy", "value"))
    columns = {"logprobs": rollout.logprobs, "values": rollout.values, "advantages": used, "returns": returns}
    whole = replace(batch, **columns, mask=mask, weights=mask.float())
    loss = ppo_loss(Evaluation(logprobs.requires_grad_(), entropy, values), whole, changed, 1.0, changed.penalty_coef)
    totals = Totals(loss.totals.sums | {"weight": mask.sum()}, loss.totals.maxima)
    for name, expected in loss_metrics(totals).items():
        close(found.means[name], expected, name)
    (gradient,) = torch.autograd.grad(loss.policy, logprobs)
    close(found.columns["derivative"][valid], gradient[mask], "derivative")
    means = [float(found.columns["loss"][part.numpy()].mean()) for part in parts]
    close(found.columns["loss_share"].sum(), sum(means), "loss_share")


def test_each_moment_shows_what_its_minibatches_saw() -> None:
    """Also if the update stops in the middle of an epoch."""
    options = {"epochs": 10, "minibatches": 3, "target_kl": 0.02, "loss_mean": "sequence"}
    stored, rollout = record(sequences(), PPO.model_validate(options | {"normalize_advantages": "minibatch"}))
    own, valid, epochs = Settings.of(stored), rollout.mask.numpy(), stored.epochs
    count, expected = len(epochs["minibatch"]), np.zeros(valid.shape)
    assert count > 1
    assert (epochs["minibatch"][-1][valid] < 0).any()
    for epoch in range(1, count + 1):
        found = recompute(stored, own, epoch).columns
        numbers = np.where(valid, epochs["minibatch"][epoch - 1], -1)
        reached = numbers >= 0
        close(found["logprob"][reached], epochs["logprob"][epoch - 1][reached], "logprob")
        close(found["value_new"][reached], epochs["value"][epoch - 1][reached], "value_new")
        close(found["advantage_used"][reached], epochs["advantage_used"][epoch - 1][reached], "advantage_used")
        for number in range(numbers.max() + 1):
            close(found["share"][numbers == number].sum(), 1, "share")
        expected[reached] = epochs["advantage_used"][epoch - 1][reached]
    close(recompute(stored, own, "after").columns["advantage_used"][valid], expected[valid], "advantage_used")


TOKEN_CHANGES: list[dict[str, Any]] = [
    {"kl": "k3", "kl_coef": 0.3, "whiten_rewards": True},
    {"kl": "full", "score_clip": 0.4},
    {"baseline": "rloo", "kl_coef": 0.0},
    {"baseline": "grpo", "score_clip": 0.4},
    {"missing_eos_penalty": 0.2},
    {"missing_eos_penalty": 0.0, "score_normalize": "none", "score_clip": 0.0},
]


@pytest.mark.parametrize("reward", ["vowels", "token_sizes"])
@pytest.mark.parametrize("changes", TOKEN_CHANGES, ids=str)
def test_changed_settings_give_the_adapters_rewards(
    folder: Path, changes: dict[str, Any], reward: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With other settings, rewards and values equal those that the adapter computes for the same responses."""
    penalized: dict[str, Any] = {"missing_eos_penalty": 0.7, "score_clip": 0.9}
    penalized |= {"score_normalize": "running"} if "score_normalize" in changes else {}
    penalized |= {"reward": f"tests.inspection.recording:{reward}"}
    adapter = make_adapter(folder, {"group_size": 3, **penalized}, {})
    config, build, captured = adapter.config, adapter._rollout, list[Any]()

    def capture(*given: Any) -> Any:
        given[0].ended[::2] = True  # untrained models rarely sample the end token
        given[0].ended[1::2] = False
        captured.append(given)
        return build(*given)

    monkeypatch.setattr(adapter, "_rollout", capture)
    stored, _ = record(adapter, config.ppo, config.model_dump(), lr=0.003)
    adapter.config = config.model_copy(update={"llm": config.llm.model_copy(update=changes)})
    adapter.scores = ScoreTransforms(adapter.config.llm)
    adapter.kl.coef = adapter.config.llm.kl_coef
    expected = build(*captured[-1])
    found = recompute(stored, replace(Settings.of(stored), **changes))
    for name, x in (("reward", expected.rewards), ("value", expected.values), ("next_value", expected.next_values)):
        close(found.columns[name][expected.mask.numpy()], x[expected.mask], name)
    for name in ("reward/total", "reward/kl_penalty"):
        close(found.means[name], expected.metrics[name], name)


@pytest.mark.parametrize("whiten", [False, True])
@pytest.mark.parametrize("normalize", ["batch", "minibatch"])
def test_partial_iterations_keep_their_normalization(folder: Path, normalize: str, whiten: bool) -> None:
    """If a file has room for only some rows, normalization needs the mean of the rows that are not stored."""
    llm = {"score_clip": 1.0, "whiten_rewards": whiten}
    stored, _ = record_llm(folder, llm, {"normalize_advantages": normalize, "clip": 0.01})
    part = first_rows(stored, 7)
    mask, own = part.columns["mask"], Settings.of(part)
    found, whole = recompute(part, own, 2), recompute(stored, own, 2)
    assert (whole.exact, found.exact) == (True, False)
    for name in ("reward", "advantage", "advantage_used", "loss", "cut"):
        close(found.columns[name][mask], whole.columns[name][:7][mask], name)
    changed = recompute(part, replace(own, gamma=0.5), 2)
    assert np.isfinite(changed.columns["advantage_used"][mask]).all()


def test_incomplete_groups_keep_their_baselines(folder: Path) -> None:
    stored, _ = record_llm(folder, {"baseline": "rloo", "group_size": 3}, GROUP)
    part = first_rows(stored, 7)  # the third group has one row
    found, whole = (recompute(x, Settings.of(x)) for x in (part, stored))
    for name in ("reward", "value", "advantage"):
        close(found.columns[name], whole.columns[name][:7], name)


@pytest.mark.parametrize("normalize", ["batch", "minibatch", "none"])
def test_older_files_can_be_recomputed(folder: Path, normalize: str) -> None:
    """Files of older versions have neither options nor epochs, so only the moment after the update is available."""
    stored, _ = record_llm(folder, {}, {"normalize_advantages": normalize})
    older = without_new_fields(stored)
    assert what_if.moments(older) == ["after"]
    own, mask = Settings.of(older), older.columns["mask"]
    assert own.normalize_advantages == normalize
    found, expected = recompute(older, own), recompute(stored, Settings.of(stored))
    for name in ("reward", "advantage", "return", "ratio", *(("loss",) if normalize != "minibatch" else ())):
        close(found.columns[name][mask], expected.columns[name][mask], name)
    reasons = what_if.unavailable(older)
    assert {"kl", "kl_coef", "score_clip", "baseline", "loss_mean", "value_clip"} <= reasons.keys()
    assert {"gamma", "lam", "clip", "advantage"}.isdisjoint(reasons)
    assert ("minibatch" in what_if.choices(older, "normalize_advantages")) == (normalize == "minibatch")
    with pytest.raises(ValueError, match=r"moment: expected one of \['after'\], got 1"):
        recompute(older, own, 1)


def test_unavailable_settings_have_reasons(folder: Path) -> None:
    bandit, _ = record(BanditAdapter(), PPO(epochs=1), {"kind": "gym"})
    reasons = what_if.unavailable(bandit)
    assert reasons["kl"] == "the log-probs of a reference model are not stored"
    assert {"gamma", "clip", "loss_mean", "normalize_advantages"}.isdisjoint(reasons)
    plain = what_if.unavailable(bandit, replace(Settings.of(bandit), objective="ratio", advantage="td"))
    assert plain["clip"] == plain["dual_clip"] == "no effect with ppo.objective = 'ratio'"
    assert "lam" not in plain  # the value target still depends on it
    rloo, _ = record_llm(folder, {"baseline": "rloo", "group_size": 3}, GROUP)
    assert what_if.choices(rloo, "baseline") == ("rloo", "grpo")
    assert what_if.unavailable(rloo)["value_clip"] == "no effect with llm.baseline = 'rloo'"
    assert what_if.unavailable(rloo)["gamma"] == "llm.baseline = 'rloo' requires 1.0"
    critic = Settings(gamma=0.9, normalize_advantages="batch")
    assert critic.with_value("baseline", "rloo") == Settings(gamma=1.0, lam=1.0, baseline="rloo")
    assert critic.with_value("kl", "k3") == replace(critic, kl="k3")
    with pytest.raises(ValueError, match="baseline: expected one of"):
        recompute(rloo, replace(Settings.of(rloo), baseline="critic"))


def test_extreme_ratios_give_no_warning() -> None:
    stored, _ = record(BanditAdapter(), PPO(epochs=1, normalize_advantages="none"))
    columns = stored.columns | {"logprob_new": stored.columns["logprob_new"] + 200}
    with np.errstate(over="ignore"):
        columns["ratio"] = np.exp(columns["logprob_new"] - columns["logprob_old"])
    found = recompute(replace(stored, columns=columns), Settings.of(stored))
    assert (found.columns["outside"][stored.columns["mask"]] == 1).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [({"ppo": {"objective": "clap"}}, "ppo.objective: expected one of clip, penalty, .*, got 'clap'"),
     ({"ppo": {"value_clip": "0.1"}}, "ppo.value_clip: expected a number, got '0.1'"),
     ({"ppo": {"dual_clip": [2]}}, r"ppo.dual_clip: expected a number, got \[2\]")],
)  # fmt: skip
def test_damaged_options_are_an_error(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    stored, _ = record(BanditAdapter(), PPO(epochs=1))
    samples.write(Run(tmp_path), replace(stored, options=options))
    with pytest.raises(UsageError, match=rf"samples/00000001.npz: {message}; delete the file"):
        Settings.of(samples.read(Run(tmp_path), 1))
    assert Settings.of(replace(stored, options={"ppo": [], "llm": 3})).objective == "clip"


def test_damaged_arrays_are_an_error() -> None:
    stored, _ = record(BanditAdapter(), PPO(epochs=1))
    own = Settings.of(stored)
    without_ratio = replace(stored, columns={name: x for name, x in stored.columns.items() if name != "ratio"})
    huge = replace(stored, epochs=stored.epochs | {"minibatch": stored.epochs["minibatch"].astype(np.int64) + 10**12})
    without_entropy = replace(stored, epochs={name: x for name, x in stored.epochs.items() if name != "entropy"})
    for damaged, name in ((without_ratio, "ratio"), (huge, "epochs.minibatch"), (without_entropy, "epochs.entropy")):
        with pytest.raises(UsageError, match=f"samples: no valid {name}; delete the file"):
            recompute(damaged, own)


@pytest.mark.parametrize("names", [("logprob_ref",), ("kl",), ("score", "score_used"), ("kl", "logprob_ref", "score")])
def test_an_adapter_can_provide_some_columns_of_language_models(names: tuple[str, ...]) -> None:
    stored, _ = record(BanditAdapter(), PPO(epochs=1))
    stored = replace(stored, columns=stored.columns | dict.fromkeys(names, stored.columns["reward"]))
    found = recompute(stored, Settings.of(stored))
    assert ("kl" in found.columns) == ("kl" in names)
    assert "token_reward" not in found.columns
    assert {"kl", "kl_coef", "score_clip"} <= what_if.unavailable(stored).keys()
    lines = explain(Step(stored, found, *map(int, np.argwhere(stored.columns["mask"])[0])))
    assert ("kl" in [line.name for line in lines]) == ({"kl", "logprob_ref"} <= {*names})
    reward = next(line for line in lines if line.name == "r")
    assert ("kl_coef" in reward.symbols) == ({"kl", "logprob_ref"} <= {*names})


@pytest.mark.parametrize("row_len", [1, 4, 8])
def test_sequence_weights_follow_the_rows_of_the_update(row_len: int) -> None:
    """loss_mean = 'sequence' divides by the steps of a row of the update, which can be part of a row of the file."""
    ppo = PPO(normalize_advantages="none")
    token, sequence = (
        record(BanditAdapter(row_len=row_len), x).stored
        for x in (ppo, ppo.model_copy(update={"loss_mean": "sequence"}))
    )
    assert "loss_mean" not in what_if.unavailable(token)
    found = recompute(token, replace(Settings.of(token), loss_mean="sequence"))
    mask = token.columns["mask"]
    close(found.columns["weight"][mask], sequence.columns["weight"][mask], "weight")
