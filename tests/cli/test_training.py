"""train, resume, stop and regress as people call them, in real processes where processes are the point."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ppo_unified.cli import main, training
from ppo_unified.config.presets import load_preset
from ppo_unified.runs import preparation
from ppo_unified.runs.event_reader import EventReader
from ppo_unified.runs.folder import Run

QUICK = ("--total-steps", "1500", "--no-stop-when-solved", "--eval.every-steps", "0", "--eval.episodes", "4")
LONG = ("--total-steps", "100000000", "--no-stop-when-solved", "--eval.every-steps", "0")


Call = Callable[..., tuple[int, str, str]]  # arguments -> exit code, stdout, stderr


def command(*arguments: str, cwd: Path, **more: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONWARNINGS": "error::DeprecationWarning:ppo_unified"} | more
    whole = [sys.executable, "-m", "ppo_unified", *arguments]
    return subprocess.run(whole, capture_output=True, text=True, cwd=cwd, env=environment, timeout=120, check=False)


@pytest.fixture
def called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """A command without a process of its own, in `tmp_path`."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> tuple[int, str, str]:
        code, said = main(arguments), capsys.readouterr()
        return code, said.out, said.err

    return call


def wait_for(condition: object, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def test_train_leaves_a_whole_run_folder_and_says_what_to_do_next(tmp_path: Path) -> None:
    done = command("train", "cartpole", "--name", "a", "--ppo.clip", "0.1", *QUICK, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "Next: watch it with: ppo-unified play a"
    run = Run(tmp_path / "runs" / "a")
    status = run.read_status()
    assert (status.state, status.reason, run.state(status)) == ("finished", "total_steps reached", "finished")
    assert status.score is not None
    assert status.step >= 1500
    assert run.command.read_text() == f"ppo-unified train cartpole --ppo.clip 0.1 {' '.join(QUICK)}\n"
    assert "clip = 0.1" in run.config.read_text()
    assert "training in" in run.log.read_text()
    assert not run.is_locked()
    assert not [path for path in run.path.rglob("*") if path.name.endswith(".tmp")]


def test_a_run_is_repeated_by_its_own_configuration(tmp_path: Path, called: Call) -> None:
    assert called("train", "cartpole", "--name", "a", *QUICK)[0] == 0
    assert command("train", "runs/a/config.toml", "--name", "b", cwd=tmp_path).returncode == 0  # another hash seed
    curves = []
    for name in ("a", "b"):
        reader = EventReader(tmp_path / "runs" / name)
        reader.poll()
        curves.append(
            {
                tag: (s.steps.tolist(), s.values.tolist())
                for tag, s in reader.series.items()
                if tag.startswith(("loss", "episode"))
            }
        )
    assert curves[0] == curves[1]


def test_stop_checkpoints_and_resume_goes_on_in_one_curve(tmp_path: Path) -> None:
    started = command("train", "cartpole", "--name", "a", "--detach", *LONG, cwd=tmp_path)
    assert started.returncode == 0, started.stderr
    run = Run(tmp_path / "runs" / "a")
    wait_for(lambda: run.read_status().step > 0)
    assert run.is_locked()
    second = command("resume", "a", cwd=tmp_path)
    assert second.returncode == 2
    assert "another process is training in this folder" in second.stderr
    stopped = command("stop", "a", cwd=tmp_path)
    assert stopped.returncode == 0, stopped.stderr
    status = run.read_status()
    assert (status.state, status.reason) == ("stopped", "stopped by SIGTERM")
    further = command("resume", "a", "--total-steps", str(status.step + 1000), cwd=tmp_path)
    assert further.returncode == 0, further.stderr
    after = run.read_status()
    assert after.state == "finished"
    assert after.step >= status.step + 1000
    assert len(after.resumes) == 1
    reader = EventReader(run.path)
    reader.poll()
    steps = list(reader.series["policy/kl"].steps)
    assert steps == sorted(set(steps))
    assert steps[-1] == after.step
    assert command("stop", "a", cwd=tmp_path).returncode == 2


def test_a_solved_run_is_resumed_only_further(tmp_path: Path, called: Call) -> None:
    easy = ("--eval.threshold", "5", "--eval.every-steps", "500", "--eval.episodes", "4")
    assert "finished (solved)" in called("train", "cartpole", "--name", "a", *easy)[1]
    run = Run(tmp_path / "runs" / "a")
    steps = run.read_status().step
    code, _, error = called("resume", "a")
    assert code == 2
    assert "was solved at" in error
    assert called("resume", "a", "--total-steps", str(steps + 1500))[0] == 0
    status = run.read_status()
    assert (status.reason, status.solved_step) == ("total_steps reached", steps)
    assert status.step >= steps + 1500


def test_a_solved_run_goes_on_for_a_higher_threshold_until_it_reaches_that(tmp_path: Path, called: Call) -> None:
    easy = ("--eval.threshold", "5", "--eval.every-steps", "500", "--eval.episodes", "4")
    assert called("train", "cartpole", "--name", "a", *easy)[0] == 0
    _, output, error = called("resume", "a", "--total-steps", "90000", "--eval.threshold", "12")
    assert "finished (solved)" in output, error
    assert Run(tmp_path / "runs" / "a").read_status().step < 90_000


def test_a_killed_run_is_seen_to_be_dead_and_starts_anew_without_a_checkpoint(tmp_path: Path) -> None:
    assert command("train", "cartpole", "--name", "a", "--detach", *LONG, cwd=tmp_path).returncode == 0
    run = Run(tmp_path / "runs" / "a")
    wait_for(lambda: run.read_status().step > 0)
    os.kill(run.read_status().pid, signal.SIGKILL)
    wait_for(lambda: not run.is_locked())
    assert run.state(run.read_status()) == "crashed"
    again = command("resume", "a", "--total-steps", "1", cwd=tmp_path)
    assert again.returncode == 2  # run.json knows of more steps than that
    again = command("resume", "a", "--detach", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    wait_for(lambda: run.read_status().state == "running")
    assert command("stop", "a", "--kill", cwd=tmp_path).returncode == 0


def test_ctrl_c_stops_with_a_checkpoint_and_exit_code_130(tmp_path: Path) -> None:
    whole = [sys.executable, "-m", "ppo_unified", "train", "cartpole", "--name", "a", *LONG]
    with subprocess.Popen(whole, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        run = Run(tmp_path / "runs" / "a")
        wait_for(lambda: (run.path / "run.json").exists() and run.read_status().step > 0)
        process.send_signal(signal.SIGINT)
        output = process.communicate(timeout=60)[0].decode()
        assert process.returncode == 130
    assert "ppo-unified resume a" in output
    assert list(run.checkpoints.iterdir())


BROKEN_ENVIRONMENT = """
import gymnasium as gym, numpy as np
class Broken(gym.Env):
    observation_space = gym.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gym.spaces.Discrete(2)
    def __init__(self, how): self.how, self.count = how, 0
    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}
    def step(self, action):
        self.count += 1
        bad = self.count > 300
        if bad and self.how == "raise": raise OverflowError("the bridge fell down")
        obs = np.full(2, np.nan if bad and self.how == "obs" else 0.5, np.float32)
        return obs, float("inf") if bad and self.how == "reward" else 1.0, False, self.count % 20 == 0, {}
gym.register("Broken-v0", entry_point=Broken)
"""


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("raise", "OverflowError"),
        pytest.param("obs", "non-finite observation", marks=pytest.mark.exhaustive),
        ("reward", "non-finite reward"),
    ],
)
def test_an_environment_that_breaks_fails_the_run_and_keeps_everything(how: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text(BROKEN_ENVIRONMENT, encoding="utf-8")
    options = ["--gym.env-kwargs", json.dumps({"how": how}), "--checkpoint.every-s", "0.001", "--eval.every-steps", "0"]
    done = command("train", "broken:Broken-v0", "--name", "a", *options, cwd=tmp_path)
    assert done.returncode == 1
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    run = Run(tmp_path / "runs" / "a")
    status = run.read_status()
    assert status.state == "failed"
    assert says in status.reason
    assert "Broken-v0" in status.reason
    assert "Traceback" in status.traceback
    assert "Traceback" in run.log.read_text()
    assert list(run.checkpoints.iterdir())


def test_a_mistake_that_shows_only_while_it_trains_fails_the_run_and_keeps_it(tmp_path: Path) -> None:
    """Only what is refused before it trains leaves nothing."""
    late = "from ppo_unified.errors import UsageError as OverflowError\n" + BROKEN_ENVIRONMENT
    (tmp_path / "broken.py").write_text(late, encoding="utf-8")
    options = ["--gym.env-kwargs", json.dumps({"how": "raise"}), "--eval.every-steps", "0"]
    assert command("train", "broken:Broken-v0", "--name", "a", *options, cwd=tmp_path).returncode == 1
    run = Run(tmp_path / "runs" / "a")
    assert run.read_status().state == "failed"
    assert "the bridge fell down" in run.read_status().reason
    assert command("resume", "a", cwd=tmp_path).returncode == 1
    assert run.read_status().state == "failed"


REFUSED = {
    ("train", "cartpol"): "did you mean 'cartpole'",
    ("train",): "name a preset",
    ("train", "cartpole", "--ppo.clp", "1"): "did you mean --ppo.clip",
    ("train", "cartpole", "--optim.lr", "nan"): "finite number",
    ("train", "cartpole", "--name", "../out"): "it names a folder inside the runs folder",
    ("train", "cartpole", "--name", "/tmp/out"): "it names a folder inside the runs folder",
    ("train", "cartpole", "--name", ""): None,  # the default name
    ("train", "CartPole-v77"): "did you mean 'CartPole-v1'",
    ("train", "nomodule:X-v0"): "module 'nomodule' cannot be imported",
    ("train", "cartpole", "--runs", "/proc/nowhere"): "the runs folder cannot be written",
    ("train", "cartpole", "--gym.wrappers", "FlatenObservation"): "did you mean 'FlattenObservation'",
    ("train", "cartpole", "--gym.env-kwargs", '{"moon": 1}'): "cannot be made with gym.env_kwargs = {'moon': 1}",
    ("train", "cartpole", "--policy.log-std-init", "1"): "has discrete actions",
    ("train", "Acrobot-v1", "--gym.vectorization", "vector_entry_point"): "has no vector version",
    ("resume", "nothing"): "no run 'nothing'",
    ("regress", "acrobot"): "no baseline for 'acrobot'",
    ("trian",): "did you mean 'train'",
    ("stop",): "required",
}


@pytest.mark.parametrize("arguments", [a for a in REFUSED if REFUSED[a]], ids=" ".join)
def test_a_mistake_gets_one_line_exit_code_2_and_leaves_nothing(
    arguments: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    output = capsys.readouterr()
    assert REFUSED[arguments] in output.err  # type: ignore[operator]
    assert len(output.err.splitlines()) == 1
    assert output.out == ""
    assert not list(tmp_path.glob("runs/*"))


def test_a_gpu_that_is_not_there_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    done = command("train", "cartpole", "--device", "cuda", *QUICK, cwd=tmp_path, CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 2
    assert "torch sees no GPU" in done.stderr
    assert not list(tmp_path.glob("runs/*"))


def test_a_missing_extra_names_the_pip_command(tmp_path: Path) -> None:
    (tmp_path / "Box2D.py").write_text("raise ImportError('no Box2D here')", encoding="utf-8")
    done = command("train", "lunarlander", cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert done.returncode == 2
    assert "pip install 'ppo-unified[box2d]'" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_taken_name_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "a").mkdir(parents=True)
    for extra in ((), ("--detach",)):
        assert main(["train", "cartpole", "--name", "a", *extra]) == 2
        assert "exists already" in capsys.readouterr().err


def test_a_refusal_reaches_the_user_of_detach_and_leaves_nothing(tmp_path: Path) -> None:
    done = command("train", "cartpole", "--detach", "--device", "cuda", cwd=tmp_path, CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 2
    assert "torch sees no GPU" in done.stderr
    assert not list(tmp_path.glob("runs/*"))


def test_a_refused_resume_leaves_the_run_as_it_was(tmp_path: Path, called: Call) -> None:
    assert called("train", "cartpole", "--name", "a", *QUICK)[0] == 0
    run = Run(tmp_path / "runs" / "a")
    before = run.read_status()
    for path in run.checkpoints.glob("*/trainer.json"):
        path.write_bytes(b"torn")
    code, _, error = called("resume", "a", "--total-steps", "9000")
    assert code == 2
    assert "trainer.json: has 4 bytes" in error
    assert run.read_status() == before
    assert "total_steps = 1500" in run.config.read_text()
    assert not run.original_config.exists()
    detached = command("resume", "a", "--total-steps", "9000", "--detach", cwd=tmp_path)
    assert detached.returncode == 2
    assert "trainer.json: has 4 bytes" in detached.stderr
    assert run.read_status() == before


@pytest.fixture
def stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A run that `resume` takes up and does not train."""
    run = preparation.prepare(load_preset("cartpole"), tmp_path, "a")
    status = run.read_status()
    status.state, status.step = "stopped", 4000
    run.write_status(status)
    run.release()
    monkeypatch.setattr(training, "_work", lambda run, *_: run.release() or 0)
    return run


FASTER = ("resume", "a", "--total-steps", "9000", "--optim.lr", "1e-5")


def test_a_resume_that_is_killed_before_its_change_is_made_can_be_repeated(
    stopped: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [*FASTER, "--runs", str(stopped.path.parent)]

    class Killed(BaseException):
        pass

    def killed(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(training, "write_atomically", killed)
        with pytest.raises(Killed):
            main(arguments)
    assert "lr = 1e-05" not in stopped.config.read_text()
    assert main(arguments) == 0
    first, second = stopped.read_status().resumes
    assert "changed" not in first
    assert second["changed"]["optim.lr"] == [0.002, 1e-5]
    assert "lr = 1e-05" in stopped.config.read_text()
    assert main(["resume", "a", "--runs", str(stopped.path.parent)]) == 0
    assert stopped.read_status().resumes[1]["changed"] == second["changed"]


def test_a_resume_that_cannot_be_written_leaves_the_run_as_it_was(
    stopped: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = stopped.read_status(), stopped.config.read_text()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(training, "write_atomically", full)
    assert main([*FASTER, "--runs", str(stopped.path.parent)]) == 2
    assert "cannot be written (No space left on device)" in capsys.readouterr().err
    assert (stopped.read_status(), stopped.config.read_text()) == before


def test_who_starts_at_step_0_is_told_and_what_lies_there_instead_of_checkpoints(
    stopped: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    again = ["resume", "a", "--runs", str(stopped.path.parent)]
    for names, told in (
        ((), "a has no checkpoint: it starts at step 0"),
        ((".000000004000.12.tmp",), "a has no checkpoint: it starts at step 0"),
        (("000000004000.bak",), "holds 000000004000.bak): it starts at step 0"),
        (("000000004000",), ""),
    ):
        for name in names:
            (stopped.checkpoints / name).mkdir(parents=True)
        assert main(again) == 0
        said = capsys.readouterr().err
        assert told in said
        assert bool(told) == ("step 0" in said)


def test_more_steps_than_a_whole_number_holds_are_refused(stopped: Run, capsys: pytest.CaptureFixture[str]) -> None:
    before = stopped.read_status()
    assert main(["resume", "a", "--total-steps", "9" * 25, "--runs", str(stopped.path.parent)]) == 2
    assert "total_steps" in capsys.readouterr().err.replace("-", "_")
    assert stopped.read_status() == before


def test_modules_of_the_current_folder_do_not_shadow_the_trainers(tmp_path: Path) -> None:
    (tmp_path / "random.py").write_text("raise RuntimeError('shadowed')", encoding="utf-8")
    whole = [sys.executable, "-P", "-m", "ppo_unified", "train", "cartpole", "--name", "a", "--detach", *QUICK]
    done = subprocess.run(whole, capture_output=True, text=True, cwd=tmp_path, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    run = Run(tmp_path / "runs" / "a")
    wait_for(lambda: run.read_status().state == "finished")


ENDLESS_ENVIRONMENT = """
import gymnasium as gym, numpy as np
class Endless(gym.Env):
    observation_space = gym.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gym.spaces.Discrete(2)
    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}
    def step(self, action): return np.zeros(2, np.float32), 0.5, False, False, {}
gym.register("Endless-v0", entry_point=Endless)
"""


def test_an_episode_that_nothing_ends_is_cut_and_scored(tmp_path: Path) -> None:
    (tmp_path / "endless.py").write_text(ENDLESS_ENVIRONMENT, encoding="utf-8")
    options = ["--total-steps", "1000", "--eval.every-steps", "0", "--eval.episodes", "1"]
    done = command("train", "endless:Endless-v0", "--name", "a", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert Run(tmp_path / "runs" / "a").read_status().score == 5000.0


def test_help_is_quick_to_reach_and_lists_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    shown = capsys.readouterr().out
    for name in ("train", "resume", "stop", "runs", "show", "eval", "play", "compare", "export", "regress", "doctor"):
        assert name in shown
    assert main(["train", "--help"]) == 0
    assert "--detach" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="0"):
        main(["train", "cartpole", "--help"])
    assert "(default: 0.98)" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["5", "null", "[1]", '{"cartpole": 5}', '{"cartpole": {"seeds": 1}}', "{", ""])
def test_what_is_no_baseline_is_refused_in_one_line(
    tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "b.json"
    path.write_text(text)
    assert main(["regress", "--baseline", str(path)]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"{path}: is not a baseline file (")
    assert said.count("\n") == 1


def test_regress_measures_against_a_baseline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    baseline = tmp_path / "baseline.json"
    assert main(["regress", "cartpole", "--seeds", "1", "--baseline", str(baseline), "--update"]) == 0
    measured = json.loads(baseline.read_text())["cartpole"]
    assert measured["solved"] == 1
    capsys.readouterr()
    monkeypatch.setattr(training, "_measure", lambda preset, seeds: measured)  # it was measured for good once
    assert main(["regress", "cartpole", "--seeds", "1", "--baseline", str(baseline), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["good"] is True
    baseline.write_text(json.dumps({"cartpole": measured | {"worst_steps": measured["worst_steps"] // 2}}))
    assert main(["regress", "cartpole", "--seeds", "1", "--baseline", str(baseline), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["good"] is False
