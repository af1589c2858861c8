"""Runs that start with the policy of another run."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from envs.gym.initialization import check_init
from envs.gym.options import GymConfig
from envs.llm.options import LLMConfig
from ppo_unified import load_preset, run
from ppo_unified.config import presets, registry
from ppo_unified.config.schema import Checkpoint, RunConfig
from ppo_unified.errors import StartError, UsageError
from ppo_unified.runs import durable, preparation
from ppo_unified.runs.folder import Run
from ppo_unified.runs.signals import StopRequest
from ppo_unified.runs.source import find_reference
from ppo_unified.training import checkpoint
from ppo_unified.training.initialization import open_source
from ppo_unified.training.session import train_in
from ppo_unified.training.tensor_json import read_shapes
from ppo_unified.training.trainer import Trainer
from tests.envs.llm.test_adapter import folder, make_config
from tests.training.runs import read, short_config

__all__ = ["folder"]  # a fixture that tests request by name
CPU = torch.device("cpu")
NORMALIZED = {"normalize_obs": True, "normalize_reward": True}


def gym_config(**changes: Any) -> RunConfig:
    """A short CartPole run that evaluates its policy before training and does not stop when it is solved."""
    evaluation = {"every_steps": 1000, "episodes": 5, "at_start": True, "threshold": None}
    return short_config(**{"eval": evaluation, "stop_when_solved": False, "gym": NORMALIZED} | changes)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the runs `source` (CartPole), `counter` and `untrained` (without checkpoints)."""
    runs = tmp_path_factory.mktemp("runs")
    run(gym_config(eval={"every_steps": 1000, "episodes": 5, "threshold": None}), runs, "source")
    run(counter_config("Counter-v0"), runs, "counter")
    preparation.prepare(gym_config(), runs, "untrained").release()
    return runs


def counter_config(env_id: str, **gym: Any) -> RunConfig:
    options = {"num_envs": 2, "num_steps": 8} | gym
    evaluation = {"episodes": 2, "at_start": True}
    changes: dict[str, Any] = {"gym": options, "ppo": {"minibatches": 1}, "eval": evaluation, "total_steps": 32}
    return load_preset(f"tests.gym_envs:{env_id}", policy={"hidden": [8]}, **changes)


def load_step(path: Path, step: int) -> checkpoint.LoadedCheckpoint:
    return checkpoint.load(checkpoint.checkpoint_folder(Run(path), step), CPU)


def best(path: Path) -> checkpoint.LoadedCheckpoint:
    step = checkpoint.best_step(Run(path))
    assert step is not None
    return load_step(path, step)


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def copy_source(runs: Path, to: Path) -> Path:
    """Copy the run `source` to a new runs folder and return the folder."""
    shutil.copytree(runs / "source", to / "source")
    return to


def test_initial_policy_scores_what_its_source_scored(runs: Path, tmp_path: Path) -> None:
    """The new run has other environments, rollouts and optimizer options, and uses the same evaluation episodes."""
    gym = NORMALIZED | {"num_envs": 3, "num_steps": 40}
    config = gym_config(gym=gym, optim={"lr": 1e-3}, total_steps=240)
    result = run(config, tmp_path, "new", init=runs / "source")
    source = best(runs / "source")
    assert source.meta.step > 0
    first = read(result.path).series["eval/score"]
    assert (first.steps[0], first.values[0]) == (0, pytest.approx(source.meta.score))
    record = {"run": "source", "step": source.meta.step, "score": source.meta.score}
    assert Run(result.path).read_status().init.items() >= record.items()
    assert result.state == "finished"


def test_initialization_loads_statistics_but_no_training_state(runs: Path, tmp_path: Path) -> None:
    config = gym_config(gym=NORMALIZED | {"num_envs": 3}, checkpoint={"keep": 1000}, total_steps=1)
    path = run(config, tmp_path, "new", init=runs / "source").path
    source, new = best(runs / "source"), load_step(path, 0)
    assert same(new.policy, source.policy)
    assert "scaler.mean" in new.policy
    old, rewards = source.trainer["adapter"]["rewards"], new.trainer["adapter"]["rewards"]
    assert old["count"] > 1
    assert rewards == old | {"running": [0.0] * 3}
    assert new.trainer["progress"]["steps"] == new.trainer["adapter"]["steps_taken"] == 0
    assert all(not optimizer["state"] for optimizer in new.trainer["optimizers"])
    assert not torch.equal(new.trainer["generator"], source.trainer["generator"])


@pytest.mark.parametrize("reference", ["folder", "checkpoint", "name", "latest"])
def test_source_can_be_a_run_or_a_checkpoint(reference: str, runs: Path, tmp_path: Path) -> None:
    here = copy_source(runs, tmp_path)
    steps = checkpoint.steps(Run(here / "source"))
    chosen: dict[str, str | Path] = {
        "folder": here / "source",
        "checkpoint": checkpoint.checkpoint_folder(Run(here / "source"), steps[-1]),
        "name": "source",
        "latest": "latest",
    }
    path = run(gym_config(total_steps=1), here, "new", init=chosen[reference]).path
    expected = steps[-1] if reference == "checkpoint" else checkpoint.best_step(Run(here / "source"))
    assert Run(path).read_status().init["step"] == expected


def test_initialization_works_with_another_id_and_equal_spaces(runs: Path, tmp_path: Path) -> None:
    path = run(counter_config("TimedCounter-v0", num_envs=3), tmp_path, "new", init=runs / "counter").path
    assert same(load_step(path, 0).policy, best(runs / "counter").policy)


def interrupt(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make `run` fail before it writes the first checkpoint, or directly after that."""

    def fail(*_: Any) -> None:
        raise KeyboardInterrupt

    if where == "before":
        monkeypatch.setattr("ppo_unified.training.session.initialize", fail)
    else:
        monkeypatch.setattr(Trainer, "_train_until_stopped", fail)


@pytest.mark.parametrize("where", ["before", "after"])
def test_interrupted_run_resumes_with_initial_policy(
    where: str, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, config = copy_source(runs, tmp_path), gym_config(total_steps=600)
    complete = run(config, here, "complete", init="source").path
    with monkeypatch.context() as patch:
        interrupt(where, patch)
        with pytest.raises(KeyboardInterrupt):
            run(config, here, "killed", init="source")
    killed = Run(here / "killed")
    assert checkpoint.steps(killed) == ([] if where == "before" else [0])
    if where == "after":
        shutil.rmtree(here / "source")
    status = preparation.reopen(killed)
    killed.write_status(preparation.claim(status, config))
    train_in(killed, config, StopRequest())
    last = checkpoint.steps(killed)[-1]
    assert same(load_step(killed.path, last).policy, load_step(complete, last).policy)


def test_stop_during_first_checkpoint_completes_it(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, config, stop = copy_source(runs, tmp_path), gym_config(), StopRequest()
    record = open_source(find_reference("source", here)).record()
    write = durable.write_file

    def request(*arguments: Any) -> Any:
        stop.handle(signal.SIGTERM, None)
        monkeypatch.undo()
        return write(*arguments)

    monkeypatch.setattr(durable, "write_file", request)
    new = preparation.prepare(config, here, "new", init=record)
    status = train_in(new, config, stop)
    assert (status.state, status.reason) == ("stopped", "stopped by another program (SIGTERM)")
    assert checkpoint.steps(new) == [0]


def test_failed_first_checkpoint_names_the_needed_source(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    here, save = copy_source(runs, tmp_path), checkpoint.save

    def fail_once(*_: Any) -> None:
        monkeypatch.setattr(checkpoint, "save", save)
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(checkpoint, "save", fail_once)
    run(gym_config(total_steps=600, eval={}), here, "new", init="source")
    lines = capsys.readouterr().err.splitlines()
    folder = Run(here / "new").read_status().init["checkpoint"]
    (number,) = [number for number, line in enumerate(lines) if "cannot write the checkpoint of step 0" in line]
    assert lines[number + 1] == f"new: until it has written a checkpoint, resuming this run needs its source, {folder}"
    assert checkpoint.steps(Run(here / "new"))[-1] > 0


@pytest.mark.parametrize("gone", ["source", "source/checkpoints"])
def test_deleted_source_is_reported_if_it_is_still_needed(
    gone: str, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, config = copy_source(runs, tmp_path), gym_config()
    with monkeypatch.context() as patch:
        interrupt("before", patch)
        with pytest.raises(KeyboardInterrupt):
            run(config, here, "killed", init="source")
    shutil.rmtree(here / gone)
    killed = Run(here / "killed")
    killed.write_status(preparation.claim(preparation.reopen(killed), config))
    message = r"init from source: .*/source/checkpoints/\d+ no longer exists, and this run has no checkpoint of its own"
    with pytest.raises(StartError, match=message):
        train_in(killed, config, StopRequest())


MISFITS: dict[str, tuple[Callable[[], RunConfig], str]] = {
    "hidden": (
        lambda: gym_config(policy={"hidden": [32]}),
        r"policy.hidden = \[32\] does not fit, because the policy has policy.hidden = \[64, 64\]; add --policy.hidden",
    ),
    "activation": (lambda: gym_config(policy={"activation": "relu"}), "add --policy.activation tanh"),
    "normalization": (lambda: gym_config(gym={}), "gym.normalize_obs = false .* add --gym.normalize-obs"),
    "observations": (
        lambda: load_preset("Acrobot-v1", policy={"hidden": [64, 64]}, gym=NORMALIZED),
        "Acrobot-v1 has observations of 6 numbers, but the policy was trained on observations of 4 numbers in "
        "CartPole-v1",
    ),
    "number of actions": (
        lambda: gym_config(gym=NORMALIZED | {"env_id": "tests.gym_info:Poles-v0"}),
        "has actions of 3 choices, but the policy was trained on actions of 2 choices in CartPole-v1; "
        "use an environment with the same spaces",
    ),
    "kind of actions": (
        lambda: gym_config(gym=NORMALIZED | {"env_id": "tests.gym_info:Poles-v0", "env_kwargs": {"numbers": True}}),
        "has actions of 2 numbers, but the policy was trained on actions of 2 choices",
    ),
    "kind of run": (lambda: load_preset("arithmetic"), "expected a run of kind 'llm', got one of kind 'gym'"),
}


@pytest.mark.parametrize("case", MISFITS)
def test_misfit_is_reported_before_the_run_folder_exists(case: str, runs: Path, tmp_path: Path) -> None:
    config, message = MISFITS[case]
    with pytest.raises(UsageError, match=f"^init from source: .*{message}") as caught:
        run(config(), tmp_path, "new", init=runs / "source")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "new").exists()


def panel(**spaces: str) -> GymConfig:
    config = load_preset(
        "tests.space_envs:Panel-v0",
        gym={"num_envs": 2, "num_steps": 8, "env_kwargs": spaces},
        policy={"hidden": [8]},
        ppo={"minibatches": 1},
        eval={"episodes": 1},
        total_steps=16,
    )
    assert isinstance(config, GymConfig)
    return config


@pytest.fixture(scope="module")
def panels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("panels")
    run(panel(observations="5 numbers", actions="5 choices"), runs, "numbers")
    run(panel(observations="5 choices", actions="2 and 3 choices"), runs, "choices")
    run(panel(observations="2 numbers and 3 choices", actions="5 numbers"), runs, "parts")
    return runs


@pytest.mark.parametrize(
    ("source", "spaces", "message"),
    [
        (
            "numbers",
            {"actions": "2 and 3 choices"},
            r"actions of \(2, 3\) choices, .* trained on actions of 5 choices in tests",
        ),
        (
            "numbers",
            {"observations": "5 choices"},
            "observations of 5 choices, but the policy was trained on observations of 5 numbers",
        ),
        ("numbers", {"observations": "2 numbers and 3 choices"}, r"2 numbers at \['a'\], 3 choices at \['b'\], but"),
        (
            "choices",
            {"actions": "3 and 2 choices"},
            r"actions of \(3, 2\) choices, .* trained on actions of \(2, 3\) choices",
        ),
        (
            "choices",
            {"actions": "10 choices"},
            r"10 choices, but the policy was trained on actions of \(2, 3\) choices",
        ),
        ("choices", {"actions": "5 bits"}, r"5 x 2 choices, but the policy was trained on actions of \(2, 3\) choices"),
        (
            "choices",
            {"observations": "2 and 3 choices"},
            r"\(2, 3\) choices, but the policy was trained on observations of 5 choices",
        ),
        ("parts", {"observations": "3 numbers and 2 numbers"}, r"3 numbers at \[0\], 2 numbers at \[1\], but the"),
        (
            "parts",
            {"observations": "5 numbers"},
            r"of 5 numbers, .* trained on observations of 2 numbers at \['a'\], 3 choices at",
        ),
    ],
)
def test_spaces_of_equal_size_but_other_structure_are_rejected(
    source: str, spaces: dict[str, str], message: str, panels: Path, tmp_path: Path
) -> None:
    own = presets.from_file(panels / source / "config.toml")
    assert isinstance(own, GymConfig)
    with pytest.raises(UsageError, match=message):
        run(panel(**own.gym.env_kwargs | spaces), tmp_path, "new", init=panels / source)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("spaces", [{}, {"observations": "5 by 1 numbers"}, {"observations": "5 bits"}])
def test_spaces_of_equal_structure_are_accepted(spaces: dict[str, str], panels: Path, tmp_path: Path) -> None:
    config = panel(**spaces).model_copy(update={"checkpoint": Checkpoint(keep=9)})
    path = run(config, tmp_path, "new", init=panels / "numbers").path
    assert same(load_step(path, 0).policy, best(panels / "numbers").policy)


def test_checkpoints_without_spaces_are_compared_by_size(panels: Path) -> None:
    """Version 0.2.0 did not record the spaces."""
    trained = Run(panels / "numbers")
    shapes = read_shapes(checkpoint.checkpoint_folder(trained, checkpoint.steps(trained)[-1]) / checkpoint.POLICY)
    source = panel()
    check_init(panel(observations="5 choices"), source, shapes, {})
    with pytest.raises(UsageError, match="actions of 10 choices, but the policy was trained on actions of 5 choices"):
        check_init(panel(actions="10 choices"), source, shapes, {})
    with pytest.raises(
        UsageError, match="observations of 10 numbers, but the policy was trained on observations of 5 numbers"
    ):
        check_init(panel(observations="10 choices"), source, shapes, {})


def test_vector_environment_is_checked_before_the_run_exists(runs: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match="GoalVector-v0 has observations of 1 numbers, but the policy was trained on observations of 4"
    ):
        run(
            gym_config(gym=NORMALIZED | {"env_id": "tests.gym_info:GoalVector-v0"}),
            tmp_path,
            "new",
            init=runs / "source",
        )
    assert not (tmp_path / "new").exists()


def test_unusable_sources_are_one_line_errors(runs: Path, tmp_path: Path) -> None:
    here = copy_source(runs, tmp_path)
    weights = checkpoint.checkpoint_folder(Run(here / "source"), checkpoint.steps(Run(here / "source"))[-1])
    (weights / checkpoint.POLICY).write_bytes(b"x")
    loose = shutil.copytree(weights, tmp_path / "elsewhere" / weights.name)
    (tmp_path / "empty").mkdir()
    cases = {
        "sorce": "init: no run 'sorce' in the folder .*; did you mean 'source'",
        str(tmp_path / "empty"): "init: no run",
        str(weights): "policy.safetensors: the file is damaged",
        str(loose): "init: .*: expected a checkpoint in a run folder, but .*config.toml does not exist",
        str(runs / "untrained"): "no checkpoint has been written yet",
        str(here / "source" / "checkpoints"): "source/checkpoints' is neither a run folder nor .*; use .*/source or",
        str(
            here / "source" / "run.json"
        ): "source/run.json' is neither .*; use .*/source or .*/source/checkpoints/STEP",
        str(weights.with_name("1" * 12)): "111' is neither .*; use .*/source or .*/source/checkpoints/STEP",
    }
    for reference, message in cases.items():
        with pytest.raises(UsageError, match=message) as caught:
            run(gym_config(), here, "new", init=reference)
        assert "\n" not in str(caught.value)
    assert not (here / "new").exists()


def test_adapter_without_checks_reports_misfit_at_start(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = replace(registry.BUILT_IN["gym"], check_init="", init="")
    monkeypatch.setitem(registry.BUILT_IN, "gym", spec)
    config = load_preset("Acrobot-v1", policy={"hidden": [64, 64]}, gym=NORMALIZED)
    with pytest.raises(StartError, match=r"init from source: the policy does not fit .*size mismatch") as caught:
        run(config, tmp_path, "new", init=runs / "source")
    assert "\n" not in str(caught.value)


def llm_config(folder: Path, **llm: Any) -> LLMConfig:
    tables = {"optim": {"lr": 0.01}, "eval": {"every_steps": 0, "at_start": True, "episodes": 6}}
    tables["checkpoint"] = {"keep": 1000}
    llm = {"score_normalize": "running", "max_new_tokens": 6} | llm
    config = make_config(folder, llm, ppo={"epochs": 1, "minibatches": 1}, **tables)
    return config.model_copy(update={"total_steps": 0, "total_iterations": 2})


@pytest.fixture(scope="module")
def language_models(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Run]:
    """Return a function that returns a trained run of this LoRA rank."""
    runs = tmp_path_factory.mktemp("runs")
    return cache(lambda rank: Run(run(llm_config(folder, lora_rank=rank), runs / str(rank), "source").path))


@pytest.mark.parametrize("lora_rank", [pytest.param(0, marks=pytest.mark.exhaustive), 2])
def test_language_model_starts_with_the_policy_of_its_source(
    lora_rank: int, folder: Path, language_models: Callable[[int], Run], tmp_path: Path
) -> None:
    trained = language_models(lora_rank)
    step = checkpoint.steps(trained)[-1]
    source = load_step(trained.path, step)
    other = llm_config(folder, lora_rank=lora_rank, rollout_batch=4, kl_coef=0.2)
    path = run(other, tmp_path, "new", init=checkpoint.checkpoint_folder(trained, step)).path
    first = read(path).series["eval/score"]
    assert (first.steps[0], first.values[0]) == (0, pytest.approx(source.meta.score))
    new = load_step(path, 0)
    assert same(new.policy, source.policy)
    assert new.trainer["adapter"]["scores"] == source.trainer["adapter"]["scores"]
    assert new.trainer["adapter"]["kl_coef"] == 0.2
    assert source.trainer["adapter"]["scores"]["count"] == 12


def test_different_model_is_reported_before_folder_exists(
    folder: Path, language_models: Callable[[int], Run], tmp_path: Path
) -> None:
    from tests.models import save_model

    source = language_models(0).path
    wide = save_model(tmp_path / "wide", hidden_size=64)
    with pytest.raises(UsageError, match=r"init from source: llm.model = .*wide.* does not fit.*expected \[.*32\]"):
        run(llm_config(folder, model=str(wide)), tmp_path, "new", init=source)
    with pytest.raises(UsageError, match=r"llm.lora_rank = 2 does not fit.*add --llm.lora-rank 0"):
        run(llm_config(folder, lora_rank=2), tmp_path, "new", init=source)
    assert not (tmp_path / "new").exists()
    run(llm_config(folder, model=str(folder / "other")), tmp_path, "new", init=source)


def test_lora_weights_need_the_same_base_model(
    folder: Path, language_models: Callable[[int], Run], tmp_path: Path
) -> None:
    source = language_models(2).path
    with pytest.raises(StartError, match=r"init from source: llm.model = .*other.* differs from the base model"):
        run(llm_config(folder, lora_rank=2, model=str(folder / "other")), tmp_path, "new", init=source)
