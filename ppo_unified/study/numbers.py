"""The numbers and formulas of one step that the study pages show, and those of the run from which the pages take them.

Names: "formula.A" is the right side of the formula of A, "here.A" is A at a step, and "here.A.numbers" is the formula
filled with the step's numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from ppo_unified.inspection import formulas
from ppo_unified.inspection.step_formulas import Step, explain
from ppo_unified.inspection.step_path import ratio_path
from ppo_unified.inspection.token_text import pieces_of
from ppo_unified.inspection.what_if import Recomputed, Settings, recompute
from ppo_unified.runs import samples
from ppo_unified.runs.folder import Run
from ppo_unified.runs.stored_iteration import Sample, StoredIteration
from ppo_unified.study.pages import Number


class Example(NamedTuple):
    """A token of the committed run: the number of its response and its place in the response, from 0."""

    sample: int
    token: int


EXAMPLES = {  # in the last stored iteration
    "example": Example(61, 2),  # a wrong digit that the clip cuts
    "first": Example(61, 0),  # the tokens before and after it
    "second": Example(61, 1),
    "last": Example(61, 3),
    "good_first": Example(72, 0),
    "good_second": Example(72, 1),
    "good": Example(72, 2),  # a correct digit that the clip cuts
    "good_last": Example(72, 3),
}
VARIANTS: dict[str, dict[str, Any]] = {  # suffix of a name -> changed settings
    "lam0": {"lam": 0.0},
    "lam1": {"lam": 1.0},
    "td": {"advantage": "td"},
    "to_go": {"advantage": "reward-to-go"},
    "whole": {"advantage": "return"},
    "policy_gradient": {"objective": "policy-gradient"},
    "unclipped": {"objective": "ratio"},
    "penalty": {"objective": "penalty"},
    **{kind: {"kl": kind} for kind in ("k1", "abs", "k2", "k3", "full")},
}


def step_numbers(step: Step, prefix: str = "here") -> dict[str, Number]:
    """Return the numbers and formulas of a step. The names of numbers begin with `prefix`."""
    found: dict[str, Number] = {}
    for line in explain(step):
        name = line.name.replace(" ", "_")
        found |= {f"formula.{name}": line.symbols, f"{prefix}.{name}": line.value}
        found[f"{prefix}.{name}.numbers"] = line.numbers or "..."
    return found | {f"{prefix}.{name}": value for name, value in _quantities(step)}


def _quantities(step: Step) -> Iterator[tuple[str, Number]]:
    """Yield the numbers of a step that are not the result of a formula."""
    settings, columns = step.settings, step.stored.columns
    yield from (("V", step["value"]), ("V_next", step["next_value"]))
    yield from (("log_old", step["logprob_old"]), ("log_new", step["logprob"]))
    if "logprob_ref" in columns:
        yield "log_ref", step["logprob_ref"]
    if "action" not in columns or columns["action"].dtype.kind in "biu":  # other actions have densities
        for name in ("old", "ref") if "logprob_ref" in columns else ("old",):
            yield f"p_{name}", _probability(step[f"logprob_{name}"])
        yield "p_new", _probability(step["logprob"])
    if "entropy" in step.recomputed.columns:
        yield "entropy", step["entropy"]
    for name in ("gamma", "lam", "clip", "kl_coef"):
        yield name, float(getattr(settings, name))
    terms = settings.terms
    yield from (("low", round(1 - terms.below, 6)), ("high", round(1 + terms.above, 6)))
    if "text" in columns:
        yield "text", pieces_of([str(columns["text"][step.row, step.column])], True)[0].strip()
    if step.following is not None:
        yield "A_next", step.following["advantage"]


def _probability(logprob: float) -> float:
    return math.exp(min(logprob, 0.0))


def run_numbers(run: Run) -> dict[str, Number]:
    """Return all numbers of a run with two stored iterations, the first and the last, that pages can show."""
    first, last = (samples.read(run, iteration) for iteration in samples.iterations(run))
    settings = Settings.of(last)
    recomputed = recompute(last, settings)
    found = _iteration_numbers(recomputed) | _start_numbers(first)
    for prefix, example in EXAMPLES.items():
        found |= step_numbers(_step_of(recomputed, example), prefix) | _sample_numbers(recomputed, prefix, example)
    found |= step_numbers(_step_of(recomputed, EXAMPLES["example"]))
    for suffix, changed in VARIANTS.items():
        found |= _variant_numbers(recompute(last, replace(settings, **changed)), suffix)
    return found


def _step_of(recomputed: Recomputed, example: Example) -> Step:
    sample = recomputed.stored.samples()[example.sample]
    return Step(recomputed.stored, recomputed, sample.row, int(sample.columns[example.token]))


def _variant_numbers(recomputed: Recomputed, suffix: str) -> dict[str, Number]:
    """Return the formulas and numbers of the example with other settings. Their names end with `suffix`."""
    found: dict[str, Number] = {"run.cut_" + suffix: _count(recomputed, "cut")}
    for line in explain(_step_of(recomputed, EXAMPLES["example"])):
        name = f"{line.name.replace(' ', '_')}_{suffix}"
        found |= {f"formula.{name}": line.symbols, f"example.{name}": line.value}
        found |= {f"example.{name}.numbers": line.numbers} if line.numbers else {}
    kl = recomputed.columns["kl"][recomputed.stored.columns["mask"]]
    found |= {f"run.kl_{suffix}": float(kl.mean(dtype=np.float64)), f"run.kl_std_{suffix}": float(kl.std())}
    return found | {f"run.kl_negative_{suffix}": float((kl < -1e-6).mean())}


def _count(recomputed: Recomputed, flag: str) -> int:
    return int((recomputed.columns[flag].astype(bool) & recomputed.stored.columns["mask"]).sum())


def _iteration_numbers(recomputed: Recomputed) -> dict[str, Number]:
    """Return the counts, means and options of an iteration."""
    stored, settings = recomputed.stored, recomputed.settings
    mask, options = stored.columns["mask"], stored.options
    variances = [float(_advantage(recomputed, lam)[mask].std()) for lam in (0.0, settings.lam, 1.0)]
    found: dict[str, Number] = {
        "run.iteration": stored.iteration,
        "run.responses": int(mask.any(1).sum()),
        "run.tokens": stored.steps,
        "run.cut": _count(recomputed, "cut"),
        "run.outside": _count(recomputed, "outside"),
        "run.epochs": int(options["ppo"]["epochs"]),
        "run.minibatches": int(options["ppo"]["minibatches"]),
        "run.mean_score": float(stored.columns["score"][mask].sum() / mask.any(1).sum()),
        "run.mean_value": recomputed.means["value/mean"],
        "run.explained_variance": recomputed.means["value/explained_variance"],
        "run.mean_ratio": float(recomputed.columns["ratio"][mask].mean(dtype=np.float64)),
        "run.kl_after": recomputed.means["policy/kl_after"],
        "run.positive": int((recomputed.columns["advantage"][mask] > 0).sum()),
    }
    found |= dict(zip(("run.std_lam0", "run.std_A", "run.std_lam1"), variances, strict=True))
    found["run.optimizer_steps"] = int(found["run.epochs"]) * int(found["run.minibatches"])
    found["run.minibatch_responses"] = int(found["run.responses"]) // int(found["run.minibatches"])
    return found | {f"run.{name}": float(getattr(settings, name)) for name in ("gamma", "lam", "clip", "kl_coef")}


def _advantage(recomputed: Recomputed, lam: float) -> formulas.Array:
    return recompute(recomputed.stored, replace(recomputed.settings, lam=lam)).columns["advantage"]


def _start_numbers(stored: StoredIteration) -> dict[str, Number]:
    """Return numbers of the first iteration, in which the critic predicts 0 and the policy equals the reference."""
    mask, columns = stored.columns["mask"], stored.columns
    return {
        "start.mean_value": float(columns["value"][mask].mean()),
        "start.mean_score": float(columns["score"][mask].sum() / mask.any(1).sum()),
        "start.largest_kl": float(np.abs(columns["kl"][mask]).max()),
        "start.first_ratio": float(np.exp(stored.epochs["logprob"][0] - columns["logprob_old"])[_first(stored)].mean()),
    }


def _first(stored: StoredIteration) -> formulas.Array:
    """Return True at the steps of the first minibatch, bool [N, T]."""
    return np.asarray((stored.epochs["minibatch"][0] == 0) & stored.columns["mask"])


def _sample_numbers(recomputed: Recomputed, prefix: str, example: Example) -> dict[str, Number]:
    """Return numbers about the response of an example."""
    stored = recomputed.stored
    sample = stored.samples()[example.sample]
    column = int(sample.columns[example.token])
    path = ratio_path(stored, sample.row, column)
    found: dict[str, Number] = {
        f"{prefix}.prompt": stored.text_before(sample),
        f"{prefix}.response": stored.text_of(sample).partition("<|")[0],
        f"{prefix}.length": len(sample.columns),
        f"{prefix}.score": float(stored.columns["score"][sample.row, sample.columns[-1]]),
        f"{prefix}.sum_log_old": float(stored.columns["logprob_old"][sample.row, sample.columns].sum()),
        f"{prefix}.rewards_to_go": _rewards_to_go(recomputed, sample, example.token),
        f"{prefix}.kl_full": float(stored.columns["kl_full"][sample.row, column]),
    }
    deltas = recomputed.columns["delta"][sample.row, sample.columns[example.token :]].astype(float)
    sums = np.cumsum(recomputed.settings.gamma ** np.arange(len(deltas)) * deltas)
    found |= {f"{prefix}.A_{count}": float(estimate) for count, estimate in enumerate(sums, 1)}
    return found | {f"{prefix}.ratio_{moment}": ratio for moment, ratio in path.items()}


def _rewards_to_go(recomputed: Recomputed, sample: Sample, token: int) -> float:
    rewards = recomputed.columns["reward"][sample.row, sample.columns[token:]].astype(float)
    return float((recomputed.settings.gamma ** np.arange(len(rewards)) * rewards).sum())
