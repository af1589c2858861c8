"""`what-if` repeats stored updates exactly, and shows the effect of other options."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from envs.llm.options import LLMConfig
from ppo_unified import run as train
from ppo_unified.cli import what_if
from ppo_unified.cli.main import main
from ppo_unified.config.schema import RunConfig
from ppo_unified.runs import samples
from ppo_unified.runs.folder import Run
from ppo_unified.training import checkpoint, repeated_update
from tests.cli.commands import Call
from tests.cli.test_inspect import gym_config
from tests.models import save_model
from tests.sequences import make_config, sequences

__all__ = ["sequences"]  # a fixture, requested by name

KEEP: dict[str, Any] = {"checkpoint": {"keep": 99}}


def report(capsys: pytest.CaptureFixture[str], folder: Path, *arguments: str) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["what-if", "latest", "--runs", str(folder), "--json", *arguments]) == 0
    output = capsys.readouterr()
    assert "differs" not in output.err
    found: dict[str, Any] = json.loads(output.out)
    return found


def gym_normalized() -> RunConfig:
    gym = {"env_id": "CartPole-v1", "num_envs": 3, "num_steps": 40, "normalize_obs": True, "normalize_reward": True}
    return gym_config(gym=gym, ppo={"epochs": 3, "minibatches": 2}, optim={"anneal": True, "joint": False}, **KEEP)


CONFIGS: dict[str, Callable[[], RunConfig]] = {
    "gym": gym_normalized,
    "toy": lambda: make_config(total_iterations=4, log={"samples_every": 1}, **KEEP),
    "adaptive penalty": lambda: make_config(
        total_iterations=4,
        log={"samples_every": 1},
        ppo={"objective": "penalty", "penalty_target": 1e-3, "normalize_advantages": "batch", "epochs": 2},
        **KEEP,
    ),
    "target_kl, critic_warmup": lambda: make_config(
        total_iterations=4,
        log={"samples_every": 1},
        ppo={"target_kl": 1e-3, "critic_warmup": 2, "anneal_clip": True, "epochs": 4, "entropy_coef": 0.01},
        **KEEP,
    ),
}


@pytest.mark.usefixtures("sequences")
@pytest.mark.parametrize("name", CONFIGS)
def test_own_options_repeat_the_logged_update(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(what_if, "LARGEST_ERROR", 0.0)
    a_run = Run(train(CONFIGS[name](), tmp_path, "run").path)
    for number in samples.iterations(a_run):
        found = report(capsys, tmp_path, "--iteration", str(number))
        assert (found["iteration"], found["changed"], found["largest_error"]) == (number, {}, 0.0)
        assert all(row["run"] == row["now"] == row["logged"] for row in found["metrics"].values())
        assert {"policy/kl", "policy/kl_after", "loss/policy", "optim/grad_norm"} <= set(found["metrics"])
        assert found["cosine_weight_change"] in (None, pytest.approx(1.0))


def test_changed_options_equal_a_run_that_used_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The first rollout of two runs with the same seed is the same, whatever the options of the update are."""
    changes: dict[str, Any] = {"clip": 0.05, "epochs": 3, "gamma": 0.9, "normalize_advantages": "batch"}
    train(gym_config(ppo=changes), tmp_path / "changed", "run")
    train(gym_config(), tmp_path / "plain", "run")
    flags = [word for key, value in changes.items() for word in (f"--ppo.{key.replace('_', '-')}", str(value))]
    found = report(capsys, tmp_path / "plain", "--iteration", "1", *flags)
    expected = samples.read(Run(tmp_path / "changed" / "run"), 1).metrics
    shown = {name: row["now"] for name, row in found["metrics"].items()}
    assert shown == {name: expected[name] for name in shown}
    plain = samples.read(Run(tmp_path / "plain" / "run"), 1).metrics
    assert {name: row["run"] for name, row in found["metrics"].items()} == {name: plain[name] for name in shown}
    assert found["changed"]["ppo.clip"] == [0.2, 0.05]
    assert -1 < found["cosine_weight_change"] < 0.999
    assert found["largest_error"] == 0


def test_clip_changes_no_first_gradient(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(gym_config(ppo={"epochs": 8, "minibatches": 2}), tmp_path, "run")
    found = report(capsys, tmp_path, "--ppo.clip", "0.01")
    assert found["cosine_first_gradient"] == pytest.approx(1.0, abs=1e-6)  # the ratio is 1 in the first minibatch
    assert found["cosine_weight_change"] < 0.999
    kl = found["metrics"]["policy/kl_after"]
    assert kl["now"] < kl["run"]
    assert kl["difference"] == pytest.approx(kl["now"] - kl["run"])


@pytest.mark.usefixtures("sequences")
def test_start_of_initialized_run_is_its_source(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = train(make_config(), tmp_path / "source", "source").path
    config = make_config(total_iterations=9, checkpoint={"keep": 1})
    a_run = Run(train(config, tmp_path / "runs", "run", init=source).path)
    assert 0 not in checkpoint.steps(a_run)
    assert report(capsys, tmp_path / "runs", "--iteration", "1")["largest_error"] == 0


@pytest.mark.usefixtures("sequences")
def test_options_of_the_time_are_repeated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A resume changes options; an iteration before it is repeated with its own."""
    config = make_config(total_iterations=4, log={"samples_every": 4}, **KEEP)
    train(config, tmp_path, "run")
    changes = ["--optim.lr", "0.001", "--ppo.clip", "0.4"]
    assert main(["resume", "run", "--runs", str(tmp_path), "--total-iterations", "8", *changes]) == 0
    for number, clip in ((4, 0.2), (8, 0.4)):
        found = report(capsys, tmp_path, "--iteration", str(number), "--ppo.clip", "0.3")
        assert found["largest_error"] == 0
        assert found["changed"] == {"ppo.clip": [clip, 0.3]}


def vowels(prompts: list[str], responses: list[str], **columns: Any) -> list[float]:
    return [sum(letter in "aeiou" for letter in response) - 1.0 for response in responses]


def llm_config(folder: Path, **llm: Any) -> LLMConfig:
    save_model(folder / "lm")
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": f"say {n}"}) + "\n" for n in range(20)))
    options: dict[str, Any] = {
        "model": str(folder / "lm"),
        "prompts": str(folder / "prompts.jsonl"),
        "reward": f"{__name__}:vowels",
    }
    options |= {"max_new_tokens": 8, "rollout_batch": 12, "kl_coef": 0.1}
    group = {"gamma": 1.0, "lam": 1.0, "value_coef": 0.0, "normalize_advantages": "none"}
    return LLMConfig.model_validate({
        "llm": options | llm,
        "ppo": {"epochs": 2, "minibatches": 3} | (group if "baseline" in llm else {}),
        "optim": {"lr": 1e-3},
        "threads": 1,
        "total_steps": 0,
        "total_iterations": 3,
        "eval": {"every_steps": 0, "episodes": 2},
        "log": {"samples_every": 2},
    })  # fmt: skip


@pytest.mark.parametrize(
    "llm",
    [
        pytest.param({}, marks=pytest.mark.exhaustive),  # the next test contains this case
        {"lora_rank": 2, "critic": "shared"},
        pytest.param({"baseline": "rloo", "group_size": 3}, marks=pytest.mark.exhaustive),
    ],
)
def test_language_model_update_is_repeated(
    llm: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a_run = Run(train(llm_config(tmp_path, **llm), tmp_path / "runs", "run").path)
    assert samples.iterations(a_run) == [1, 2, 3]
    for number in (1, 3):
        found = report(capsys, tmp_path / "runs", "--iteration", str(number), "--ppo.entropy-coef", "0.5")
        assert found["largest_error"] <= 1e-6
        assert found["metrics"]["policy/entropy"]["difference"] > 0
        assert ("loss/value" in found["metrics"]) == ("baseline" not in llm)


def test_rewards_are_recomputed_for_options_of_llm(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The KL coefficient changes the rewards, and with them the advantages and the gradient."""
    train(llm_config(tmp_path), tmp_path / "runs", "run")
    same = report(capsys, tmp_path / "runs", "--llm.kl-coef", "0.1")
    assert (same["changed"], same["largest_error"]) == ({}, pytest.approx(0, abs=1e-6))
    found = report(capsys, tmp_path / "runs", "--llm.kl-coef", "5", "--llm.kl", "k3")
    assert found["changed"] == {"llm.kl": ["k1", "k3"], "llm.kl_coef": [0.1, 5.0]}
    assert found["metrics"]["value/explained_variance"]["difference"] != 0
    assert found["cosine_first_gradient"] < 0.999
    assert found["largest_error"] <= 1e-6
    penalized = report(capsys, tmp_path / "runs", "--llm.missing-eos-penalty", "9")
    assert penalized["metrics"]["loss/value"]["difference"] > 1
    assert main(["what-if", str(tmp_path / "runs" / "run"), "--llm.score-normalize", "running"]) == 2
    assert "the statistics that normalize scores are not stored" in capsys.readouterr().err
    for command in ("what-if", "resume"):
        assert main([command, str(tmp_path / "runs" / "run"), "--ppo.microbatch-columns", "auto"]) == 2
        why = r"ppo\.microbatch_columns cannot be changed from \d+ to auto.*, because numbers for"
        assert re.search(why, capsys.readouterr().err)


MISTAKES = {
    ("--seed", "3"): r"run: seed cannot be changed from 1 to 3, because .*can change the options in ppo and optim$",
    ("--eval.episodes", "3"): r"eval\.episodes cannot be changed from 5 to 3, because it concerns the rollout",
    ("--optim.no-joint",): r"optim\.joint cannot be changed from true to false, because the optimizer state",
    ("--ppo.clip", "2"): r"--?ppo\.clip: expected a number .*, got '?2",
    ("--ppo.clipp", "0.1"): r"--ppo\.clipp.*did you mean --ppo\.clip",
    ("--ppo.penalty-coef", "2"): r"ppo\.penalty_coef = 2.* has no effect because ppo\.objective = 'clip'",
    ("--iteration", "3"): r"run has no checkpoint from before iteration 3; iterations that can be repeated: 1, 8$",
    ("--iteration", "5"): r"--iteration: run has no stored samples of iteration 5; available: 1, 3, 6, 8$",
}


@pytest.mark.usefixtures("sequences")
@pytest.mark.parametrize("arguments", MISTAKES, ids=" ".join)
def test_what_if_mistake_is_one_line(arguments: tuple[str, ...], tmp_path: Path, call: Call) -> None:
    train(make_config(checkpoint={"every_s": 1e6, "keep": 1}), tmp_path / "runs", "run")
    code, out, err = call("what-if", "run", *arguments)
    assert (code, out) == (2, "")
    assert re.search(MISTAKES[arguments], err.splitlines()[-1])


@pytest.mark.usefixtures("sequences")
def test_removed_checkpoint_is_reported(tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    """The trainer of an active run can remove the checkpoint while what-if creates the models."""
    train(make_config(), tmp_path / "runs", "run")
    monkeypatch.setattr(repeated_update, "find_start", lambda run, stored: run.checkpoints / "000000000001")
    code, out, err = call("what-if", "run", "--ppo.clip", "0.1")
    assert (code, out) == (2, "")
    assert err == "run has removed the checkpoint 000000000001 meanwhile; choose a newer iteration\n"


@pytest.mark.usefixtures("sequences")
def test_incomplete_and_older_files_are_rejected(
    tmp_path: Path, call: Call, capsys: pytest.CaptureFixture[str]
) -> None:
    a_run = Run(train(make_config(), tmp_path / "runs", "run").path)
    stored = samples.read(a_run, 8)
    wrong = {
        "older version": replace(stored, options={}, state={}, epochs={}, observations={}, actions=None),
        "no observations and actions, because": replace(stored, observations={}),
        r"contains only \d+ of the iteration's \d+ steps": stored.head(3),
        r"no valid rollout .*row_len: expected a divisor of T = 12, got 5": replace(
            stored, state=stored.state | {"row_len": 5}
        ),
        "the update of iteration 8 fails: The size": replace(
            stored, observations={"obs": np.zeros((6, 12), np.float32)}
        ),
        "options: .*clip: expected": replace(stored, options=stored.options | {"ppo": {"clip": 7}}),
    }
    for message, changed in wrong.items():
        samples.write(a_run, changed)
        code, out, err = call("what-if", "run", "--ppo.clip", "0.1")
        assert (code, out, err.count("\n")) == (2, "", 1), message
        assert re.search(message, err)


@pytest.mark.usefixtures("sequences")
def test_table_shows_run_now_and_difference(tmp_path: Path, call: Call) -> None:
    train(make_config(), tmp_path / "runs", "run")
    code, out, err = call("what-if", "run", "--ppo.epochs", "4", "--optim.lr", "0.1")
    assert (code, err) == (0, "")
    assert out.startswith("run, iteration 8: the same rollout, with ppo.epochs 2 -> 4, optim.lr 0.05 -> 0.1\n\nmetric ")
    rows = {line.split("  ")[0]: line.split()[-3:] for line in out.splitlines() if "/" in line}
    assert rows["optim/steps"] == ["4", "8", "+4"]
    assert "cosine between both weight changes of the policy: 0." in out
    assert max(map(len, out.splitlines())) <= 80


@pytest.mark.usefixtures("sequences")
def test_unequal_repetition_is_reported(tmp_path: Path, call: Call) -> None:
    a_run = Run(train(make_config(), tmp_path / "runs", "run").path)
    stored = samples.read(a_run, 8)
    unequal = replace(stored, metrics=stored.metrics | {"policy/kl": 0.5})
    unknown = np.full_like(stored.columns["logprob_new"], np.nan)
    not_a_number = replace(stored, columns=stored.columns | {"logprob_new": unknown})
    differs = r"the repeated update differs from the logged one by up to 0\.\d+, because"
    for changed, message in ((unequal, differs), (not_a_number, "the repeated or the logged update contains NaN, so")):
        samples.write(a_run, changed)
        code, out, err = call("what-if", "run")
        assert (code, bool(out), err.count("\n")) == (0, True, 1)
        assert re.match(message, err)
