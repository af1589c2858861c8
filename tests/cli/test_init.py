"""The flag --init of the command `train`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ppo_unified.runs.folder import Run, all_runs
from tests.cli.commands import QUICK, Call, command, wait_for

ROOT = str(Path(__file__).resolve().parents[2])


def test_all_runs_of_a_grid_start_with_the_same_policy(tmp_path: Path, call: Call) -> None:
    """'latest' is resolved once: the first new run is not the source of the second one."""
    assert call("train", "cartpole", "--name", "a", *QUICK)[0] == 0
    code, _, err = call("train", "cartpole", "--seed", "1-2", "--name", "b", "--init", "latest", *QUICK)
    assert code == 0, err
    runs = [Run(tmp_path / "runs" / name) for name in ("b-s1", "b-s2")]
    assert [run.read_status().init["run"] for run in runs] == ["a", "a"]
    assert all(" --init a " in run.command.read_text() for run in runs)
    assert "starting with the policy of a (step " in runs[0].log.read_text()
    _, out, _ = call("show", "b-s1", "--once")
    assert "started with the policy of a, step " in out
    _, out, _ = call("runs", "b-s1", "--json")
    assert json.loads(out)[0]["init"]["run"] == "a"


@pytest.mark.exhaustive
def test_default_name_contains_the_source(tmp_path: Path, call: Call) -> None:
    """The name is the same with and without options, in the foreground and in the background."""
    assert call("train", "cartpole", "--name", "a", *QUICK)[0] == 0
    from ppo_unified import load_preset, run

    folder = tmp_path / "runs"
    assert run(load_preset("cartpole", total_steps=1), folder, init="a").path.name == "cartpole-init-a-s1"
    grid = ["--init", "a", "--seed", "1,3", "--ppo.clip", "0.1"]
    assert call("train", "cartpole", *grid, *QUICK)[0] == 0
    code, out, err = call("train", "cartpole", "--detach", "--init", "a", "--seed", "4-5", *QUICK)
    assert code == 0, err
    started = {f"cartpole-init-a-epochs1-s{seed}" for seed in (4, 5)}
    assert {Path(line).name for line in out.splitlines()} == started
    wait_for(lambda: all(Run(folder / name).read_status().state == "finished" for name in started))
    here = {"a", "cartpole-init-a-s1", *(f"cartpole-init-a-epochs1-clip0.1-s{seed}" for seed in (1, 3))}
    assert {run.name for run, _ in all_runs(folder)} == started | here
    assert all(" --name " not in Run(folder / name).command.read_text() for name in started)


def test_environment_may_print_and_read_the_command_line(tmp_path: Path) -> None:
    """Besides the environments of the run, only two are created: one to compare spaces, and one for the check."""
    small = ("--gym.num-envs", "1", "--gym.num-steps", "16", "--gym.vectorization", "sync", "--total-steps", "32")
    first, second = (
        command(
            "train",
            "tests.faulty_envs:Chatty-v0",
            "--name",
            name,
            *init,
            *small,
            cwd=tmp_path,
            env={"PYTHONPATH": ROOT},
        )
        for name, init in (("a", ()), ("b", ("--init", "a")))
    )
    assert (first.returncode, second.returncode) == (0, 0), second.stderr
    assert "chat" not in second.stdout
    counts = [done.stderr.count("chat constructor") for done in (first, second)]
    assert counts[1] == counts[0] + 1


def test_empty_name_is_an_error(tmp_path: Path, call: Call) -> None:
    code, out, err = call("train", "cartpole", "--init", "", *QUICK)
    assert (code, out) == (2, "")
    assert err == "init: expected a run or the folder of a checkpoint, got an empty name\n"
    assert not (tmp_path / "runs").exists()


def test_detached_runs_start_with_the_policy_of_their_source(tmp_path: Path, call: Call) -> None:
    assert call("train", "cartpole", "--name", "a", *QUICK)[0] == 0
    folder = str(next((tmp_path / "runs" / "a" / "checkpoints").iterdir()))
    code, _, err = call("train", "cartpole", "--name", "b", "--init", folder, "--detach", *QUICK)
    assert code == 0, err
    run = Run(tmp_path / "runs" / "b")
    assert run.read_status().init["checkpoint"] == folder
    assert f"--init {folder}" in run.command.read_text()
    wait_for(lambda: run.read_status().state == "finished")
    code, out, err = call("train", "cartpole", "--init", "a", "--policy.hidden", "8", "--name", "c", "--detach")
    assert (code, out) == (2, "")
    assert "init from a: policy.hidden = [8] does not fit" in err
    assert err.count("\n") == 1
    code, _, err = call("train", "cartpole", "--init", "aa", "--detach")
    assert (code, err.count("\n")) == (2, 1)
    assert "init: no run 'aa'" in err
    assert {run.name for run, _ in all_runs(tmp_path / "runs")} == {"a", "b"}
