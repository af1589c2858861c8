"""The formulas of a step with its numbers give the shown results, and a sentence states what the clip did."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ppo_unified.config.schema import PPO
from ppo_unified.inspection import formulas, what_if
from ppo_unified.inspection.clip_sentence import describe_clip
from ppo_unified.inspection.formulas import Array
from ppo_unified.inspection.step_formulas import Step, explain, show
from ppo_unified.inspection.what_if import Settings, recompute
from ppo_unified.runs.stored_iteration import StoredIteration
from tests.inspection.recording import (
    LLM_OPTIONS,
    record,
    record_llm,
    sequences,
)

EXAMPLE = {  # tokens 5 to 8 of the response to 34+77=
    "logprob_old": [-0.003, -0.020, -2.208, -0.0001],
    "logprob_new": [-0.002, -0.013, -3.387, -0.0001],
    "logprob_ref": [-0.025, -0.331, -2.485, -0.0001],
    "value": [0.619, 0.711, 0.735, 0.687],
}


def example(used: float = -2.117, ratio: float | None = None, actions: Any = None, **options: Any) -> Step:
    """Return the third token of the example as a step, optionally with another A used or ratio."""
    columns: dict[str, Array] = {name: np.array([x], dtype=np.float32) for name, x in EXAMPLE.items()}
    if ratio:
        columns["logprob_new"][0, 2] = columns["logprob_old"][0, 2] + np.log(ratio)
    last = np.array([[False, False, False, True]])
    columns |= {"mask": last | True, "continues": ~last, "score": last * 0.0, "ended": last}
    columns |= {"score_normalized": last * 0.0, "kl_full": last * 0.0, "weight": last + np.float32(1)}
    columns["token"] = np.array([[5, 6, 7, 8]])
    columns["kl"] = columns["logprob_old"] - columns["logprob_ref"]
    columns["reward"] = -0.02 * columns["kl"]
    columns["next_value"] = np.array([[0.711, 0.735, 0.687, 0.0]], dtype=np.float32)
    columns["ratio"] = np.exp(columns["logprob_new"] - columns["logprob_old"])
    columns["clipped"] = (columns["ratio"] < 0.8) | (columns["ratio"] > 1.2)
    if options.pop("environment", False):
        tokens = ("logprob_ref", "kl", "kl_full", "score", "score_normalized", "ended", "token")
        columns = {name: x for name, x in columns.items() if name not in tokens}
    columns |= {"advantage": columns["reward"], "return": columns["reward"]}
    llm = {"kl_coef": 0.02, "baseline": options.pop("baseline", "critic"), "group_size": 4}
    ppo = {"normalize_advantages": "batch"} | options
    stored = StoredIteration(
        4, 7126, 4, 1.0, 0.95, 0.2, 0.2, options.pop("advantage", "gae"), "lambda", {}, columns,
        {"kind": "llm", "ppo": ppo, "llm": llm}, options.pop("state", {}), actions=actions,
    )  # fmt: skip
    found = recompute(stored, Settings.of(stored))
    found.columns["advantage_used"][0, 2] = used
    ratio_used = found.columns["ratio"][0, 2:3], np.array([used])
    for name, function in (("cut", formulas.is_cut), ("derivative", formulas.policy_derivative)):
        found.columns[name][0, 2] = function(*ratio_used, found.settings.terms)[0]
    return Step(stored, found, 0, 2)


def test_lines_of_the_example() -> None:
    lines = {line.name: (line.symbols, line.numbers, line.result) for line in explain(example())}
    assert lines["kl"] == ("log old - log ref", "-2.208 + 2.485", "0.277")
    assert lines["d loss"] == ("0; the clipped term is constant", "", "0")
    assert lines["loss"] == (
        "-min(ratio*A_used, clip(ratio)*A_used)",
        "-min(0.308*-2.117, 0.8*-2.117)",
        lines["loss"][2],
    )
    assert lines["r"] == ("score - kl_coef*kl", "0 - 0.02*0.277", "-0.0055")
    assert lines["delta"] == ("r + gamma*V' - V", "-0.0055 + 1*0.687 - 0.735", "-0.0535")
    assert lines["A"] == ("delta + gamma*lam*A'", "-0.0535 + 1*0.95*-0.687", "-0.706")
    assert lines["return"] == ("A + V", "-0.706 + 0.735", "0.0288")
    assert lines["ratio"] == ("exp(log new - log old)", "exp(-3.387 + 2.208)", "0.308")


WORSE = "A < 0: this token did worse than the critic expected, so the update tries to make it less likely. "
BETTER = "A > 0: this token did better than the critic expected, so the update tries to make it more likely. "
WORSE_SENTENCES: dict[str, dict[str, Any]] = {
    "Its probability is already 69 % lower (ratio 0.308 < 0.8), so the clip stops the gradient: no further push.": {},
    "Its probability is 10 % lower (ratio 0.900, still inside 0.8 to 1.2), so the gradient pushes it further down.": {
        "ratio": 0.9
    },
    "Its probability is unchanged (ratio 1, inside 0.8 to 1.2), so the gradient pushes it down.": {"ratio": 1.0},
    "Its probability is 10 % higher (ratio 1.100, inside 0.8 to 1.2) because of other steps; the gradient of this step "
    "pushes it down.": {"ratio": 1.1},
    "Its probability is 50 % higher (ratio 1.500 > 1.2), the wrong way: the clip does not stop the gradient, which "
    "pushes it back down.": {"ratio": 1.5},
    "Its probability is already 3 times as high as before (ratio 3 > 2), so the dual clip stops the gradient: "
    "the loss is limited to 2*|A|, no push.": {"ratio": 3.0, "dual_clip": 2.0},
    "Its probability is already 20 % lower (ratio 0.799500 < 0.8), so the clip stops the gradient: no further push.": {
        "ratio": 0.7995
    },
    "Its probability is 30 % lower (ratio 0.700). There is no clip (ppo.objective = 'ratio'): the gradient pushes it "
    "down.": {"ratio": 0.7, "objective": "ratio"},
    "Its probability is 69 % lower (ratio 0.308). There is no clip (ppo.objective = 'policy-gradient'): the gradient "
    "pushes it down.": {"objective": "policy-gradient"},
    "Its probability is 69 % lower (ratio 0.308). The KL penalty (weight 0.5) pulls it back, but A is stronger, so the "
    "gradient pushes it down.": {"objective": "penalty", "penalty_coef": 0.5},
    "Its probability is 69 % lower (ratio 0.308). The KL penalty (weight 9) is stronger than A here, so the gradient "
    "pulls it back.": {"objective": "penalty", "penalty_coef": 9.0},
    "Its probability is 50 % higher (ratio 1.500). The KL penalty (weight 1) does not hold it back, so the gradient "
    "pushes it down.": {"objective": "penalty", "ratio": 1.5},
}
BETTER_SENTENCES: dict[str, dict[str, Any]] = {
    "Its probability is already 50 % higher (ratio 1.500 > 1.2), so the clip stops the gradient: no further push.": {
        "ratio": 1.5
    },
    "Its probability is 50 % lower (ratio 0.500 < 0.8), the wrong way: the clip does not stop the gradient, which "
    "pushes it back up.": {"ratio": 0.5},
    "Its probability is 0.4 % higher (ratio 1.004, still inside 0.8 to 1.2), so the gradient pushes it further up.": {
        "ratio": 1.004
    },
}


@pytest.mark.parametrize(("sentence", "options"), WORSE_SENTENCES.items())
def test_sentence_for_a_bad_token(options: dict[str, Any], sentence: str) -> None:
    assert describe_clip(example(**options)) == WORSE + sentence


@pytest.mark.parametrize(("sentence", "options"), BETTER_SENTENCES.items())
def test_sentence_for_a_good_token(options: dict[str, Any], sentence: str) -> None:
    step = example(used=1.5, **options)
    step.recomputed.columns["advantage"][0, 2] = 0.5
    assert describe_clip(step) == BETTER + sentence


def test_sentence_without_a_push() -> None:
    """If A used is 0, only the KL penalty can push."""
    even = example(used=0.0)
    even.recomputed.columns["advantage"][0, 2] = 0.0
    neutral = "A = 0: this token did exactly as well as the critic expected, so its advantage does not push it."
    assert describe_clip(even) == neutral
    above = example(used=0.0)
    assert (
        describe_clip(above)
        == "A used = 0: A = -0.706 is equal to the mean of the batch, so its advantage does not push it."
    )
    penalty = example(used=0.0, objective="penalty", penalty_coef=0.5)
    penalty.recomputed.columns["advantage"][0, 2] = 0.0
    assert describe_clip(penalty) == (
        f"{neutral} Its probability is 69 % lower (ratio 0.308), and the KL penalty (weight 0.5) pulls it back."
    )


def test_rounding_at_the_end_of_the_range() -> None:
    """Both terms of the loss can be equal after rounding, so the clip passes half of the gradient."""
    tie = example(used=1.5, ratio=1.2000002)
    tie.recomputed.columns["advantage"][0, 2] = 0.5
    tie.recomputed.columns["cut"][0, 2] = False
    assert tie["outside"] == 1
    assert "so the clip stops the gradient" in describe_clip(tie)


def test_equal_advantages_have_a_true_formula() -> None:
    """With equal advantages, normalization gives 0, although the standard deviation is 0."""
    step = example()
    step.recomputed.columns["advantage"][:] = 0.5
    step.recomputed.columns["advantage_used"][:] = 0.0
    (line,) = (line for line in explain(step) if line.name == "A used")
    assert line[1:] == ("(A - mean) / std", "(0.500 - 0.500) / 0.0001", 0.0)
    step.recomputed.columns["advantage_used"][:] = 0.5  # a minibatch of one step
    step.recomputed.normalizations.clear()
    (line,) = (line for line in explain(step) if line.name == "A used")
    assert line[1:] == ("A", "0.500", 0.5)


def test_discarded_gradients_have_a_sentence() -> None:
    """ppo.target_kl ends the update before the optimizer step of the minibatch whose KL is too large."""
    ppo = PPO(target_kl=1e-4, epochs=10, minibatches=3)
    stored, _ = record(sequences(), ppo, {"kind": "sequences"}, iterations=2)
    epoch = len(what_if.moments(stored)) - 1
    found, numbers = recompute(stored, Settings.of(stored), epoch), stored.epochs["minibatch"][epoch - 1]
    last = int(numbers[stored.columns["mask"]].max())
    sentences = set[tuple[int, str]]()
    for row, column in np.argwhere(stored.columns["mask"]):
        sentence = describe_clip(Step(stored, found, int(row), int(column)))
        if sentence.startswith("The update ended"):
            sentences.add((int(numbers[row, column]), sentence))
    expected = {(last, "The update ended at this minibatch (ppo.target_kl = 0.0001), so it did not push this action.")}
    if last < 2:
        expected.add((-1, "The update ended (ppo.target_kl) before it reached this action in this epoch."))
    assert sentences == expected


def test_critic_warmup_has_no_policy_gradient() -> None:
    stored, _ = record(sequences(), PPO(critic_warmup=3), {"kind": "sequences"})
    found = recompute(stored, Settings.of(stored), 1)
    assert not found.columns["derivative"].any()
    row, column = np.argwhere(stored.columns["mask"])[0]
    line = next(line for line in explain(Step(stored, found, row, column)) if line.name == "d loss")
    assert line.symbols == "0; this iteration trains only the critic"


def test_scaled_rewards_are_named() -> None:
    step = example(environment=True)
    assert {line.name: line.symbols for line in explain(step)}["r"] == "reward from the environment"
    step.stored.options["gym"] = {"normalize_reward": True}
    assert {line.name: line.symbols for line in explain(step)}["r"] == "scaled reward (gym.normalize_reward)"


def test_sentence_names_the_source_of_the_advantage() -> None:
    assert describe_clip(example(used=1.0)).startswith("A used > 0: A = -0.706 is above the mean of the batch, so the")
    assert describe_clip(example(state={"critic_only": True})).startswith("This iteration trained only the critic")
    rloo = example(baseline="rloo", normalize_advantages="none")
    rloo.recomputed.columns["advantage"][0, 2] = -1.0
    assert describe_clip(rloo).startswith("A < 0: this response did worse than the other responses to its prompt")
    environment = example(environment=True, actions=np.zeros((1, 4, 2), np.float32), advantage="return")
    environment.recomputed.columns["advantage"][0, 2] = -1.0
    assert describe_clip(environment) == (
        "A < 0: the rewards of its episode add up to less than 0, so the update tries to make it less likely. Its "
        "probability density is already 69 % lower (ratio 0.308 < 0.8), so the "
        "clip stops the gradient: no further push."
    )


@pytest.mark.parametrize(
    ("x", "text"),
    [(0.0, "0"), (-0.0, "0"), (1.0, "1"), (0.99996, "1.000"), (-2.2081, "-2.208"), (0.05349, "0.0535"), (1e-5, "1e-05"),
     (123.456, "123.46"), (500.0, "500"), (1.5e6, "1.5e+06"), (math.nan, "nan"), (math.inf, "inf")],
)  # fmt: skip
def test_numbers_are_short(x: float, text: str) -> None:
    assert show(x) == text


def test_last_token_shows_an_exact_score() -> None:
    """The score is not the difference of two rounded numbers."""
    step = example()
    last = {line.name: line for line in explain(Step(step.stored, step.recomputed, 0, 3))}
    assert last["r"].numbers == "0 - 0.02*0"
    inside = {line.name: line for line in explain(example(ratio=0.9))}
    assert inside["loss"].numbers == "-min(0.900*-2.117, 0.900*-2.117)"
    assert inside["d loss"].symbols == "-ratio*A_used"


def test_rounding_errors_are_not_shown(folder: Path) -> None:
    stored, _ = record_llm(folder, *LLM_OPTIONS["default"])
    found = recompute(stored, Settings.of(stored))
    wrong = np.argwhere(stored.columns["mask"] & (stored.columns["score"] == 0))
    for row, column in wrong:
        lines = {line.name: line.numbers for line in explain(Step(stored, found, int(row), int(column)))}
        assert lines["r"].startswith("0 - ")
        ratio, clipped = re.findall(r"([\d.]+)\*", lines["loss"])
        assert clipped in (ratio, "0.8", "1.2")
