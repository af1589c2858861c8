"""Tests of the command `train`; those that depend on processes start real ones."""

from __future__ import annotations

import io
import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest

from ppo_unified.cli import train
from ppo_unified.cli.common import Parser
from ppo_unified.cli.flags import move_target_first
from ppo_unified.cli.main import main
from ppo_unified.cli.run_training import PLAIN_S, Progress, describe_background, summary
from ppo_unified.config.presets import load_preset
from ppo_unified.errors import UsageError
from ppo_unified.runs import preparation
from ppo_unified.runs.event_reader import EventReader
from ppo_unified.runs.folder import Run, Status, create
from tests import fork_server
from tests.cli.commands import LONG, QUICK, Call, command, wait_for


def test_train_writes_run_folder_and_prints_next_step(tmp_path: Path) -> None:
    done = command("train", "cartpole", "--name", "a", "--ppo.clip", "0.1", *QUICK, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "To watch the agent: ppo-unified play a"
    run = Run(tmp_path / "runs" / "a")
    status = run.read_status()
    assert (status.state, status.reason, run.state(status)) == ("finished", "total_steps reached", "finished")
    assert status.score is not None
    assert status.step >= 1500
    assert run.command.read_text() == f"ppo-unified train cartpole --ppo.clip 0.1 {' '.join(QUICK)} --name a\n"
    assert "clip = 0.1" in run.config.read_text()
    assert "preparing runs/a\n" in run.log.read_text()
    assert not run.is_locked()
    assert not [path for path in run.path.rglob("*") if path.name.endswith(".tmp")]


def test_config_toml_reproduces_the_run(tmp_path: Path, call: Call) -> None:
    assert call("train", "cartpole", "--name", "a", *QUICK)[0] == 0
    assert (
        command("train", "runs/a/config.toml", "--name", "b", cwd=tmp_path, fresh=True).returncode == 0
    )  # another hash seed
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


def test_ctrl_c_saves_checkpoint_and_exits_130(tmp_path: Path) -> None:
    whole = [sys.executable, "-m", "ppo_unified", "train", "cartpole", "--name", "a", *LONG]
    with fork_server.Popen(whole, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
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
if "Broken-v0" not in gym.registry: gym.register("Broken-v0", entry_point="broken:Broken")
"""


def test_unregistered_environment_lists_those_of_its_module(
    call: Call, write_module: Callable[[str, str], None]
) -> None:
    write_module("broken", BROKEN_ENVIRONMENT)
    text = "gym.env_id = 'broken:Nope-v0': module 'broken' does not register the environment 'Nope-v0'; use "
    assert call("train", "broken:Nope-v0")[::2] == (2, f"{text}broken:Broken-v0\n")
    assert call("train", "gymnasium:Nope-v0")[2].endswith("does not register the environment 'Nope-v0'\n")
    assert call("train", "gymnasium:Acrobat-v1")[2].endswith("'Acrobat-v1'; did you mean 'gymnasium:Acrobot-v1'?\n")
    write_module("bare", "")
    code, _, error = call("train", "bare:Nope-v0")
    assert code == 2
    assert error.endswith("does not register the environment 'Nope-v0'; call gymnasium.register() in the module\n")


def test_failing_reset_names_the_environment(call: Call, write_module: Callable[[str, str], None]) -> None:
    source = BROKEN_ENVIRONMENT.replace("super().reset(seed=seed)", "raise ValueError('no map')")
    write_module("lost", source.replace("Broken-v0", "Lost-v0").replace("broken:", "lost:"))
    code, _, error = call("train", "lost:Lost-v0", "--gym.env-kwargs", '{"how": ""}', "--gym.vectorization", "sync")
    assert code == 2
    assert re.fullmatch(r"lost:Lost-v0: reset\(\): ValueError: no map, in lost.py, line \d+\n", error)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("raise", "OverflowError"),
        pytest.param("obs", "returned a non-finite observation", marks=pytest.mark.exhaustive),
        ("reward", "returned a non-finite reward"),
    ],
)
def test_environment_error_fails_run_and_keeps_folder(
    how: str, message: str, tmp_path: Path, call: Call, write_module: Callable[[str, str], None]
) -> None:
    write_module("broken", BROKEN_ENVIRONMENT)
    options = ["--gym.env-kwargs", json.dumps({"how": how}), "--checkpoint.every-s", "0.001", "--eval.every-steps", "0"]
    code, _, error = call("train", "broken:Broken-v0", "--name", "a", *options)
    assert code == 1
    assert message in error
    assert re.search(r" at step \d+ of the rollout \(after [\d,]+ environment steps\)", error)
    assert "Traceback" not in error
    run = Run(tmp_path / "runs" / "a")
    status = run.read_status()
    assert status.state == "failed"
    assert message in status.reason
    assert "Broken-v0" in status.reason
    assert "Traceback" in status.traceback
    assert "Traceback" in run.log.read_text()
    assert list(run.checkpoints.iterdir())


def test_usage_error_during_training_keeps_the_failed_run(
    tmp_path: Path, call: Call, write_module: Callable[[str, str], None]
) -> None:
    """A usage error that occurs during training fails the run and keeps its folder."""
    write_module("broken", "from ppo_unified.errors import UsageError as OverflowError\n" + BROKEN_ENVIRONMENT)
    options = ["--gym.env-kwargs", json.dumps({"how": "raise"}), "--eval.every-steps", "0"]
    assert call("train", "broken:Broken-v0", "--name", "a", *options)[0] == 1
    run = Run(tmp_path / "runs" / "a")
    assert run.read_status().state == "failed"
    assert "the bridge fell down" in run.read_status().reason
    assert call("resume", "a", "--yes")[0] == 1
    assert run.read_status().state == "failed"


OWN_FILE = """
import gymnasium as gym, numpy as np
from numbers_of_mine import LENGTH
class Own(gym.Env):
    observation_space = gym.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gym.spaces.Discrete(2)
    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count = 0
        return self.np_random.random(2).astype(np.float32), {}
    def step(self, action):
        self.count += 1
        return self.np_random.random(2).astype(np.float32), 1.0, False, self.count >= LENGTH, {}
class Halve(gym.RewardWrapper):
    def __init__(self, env, factor):
        super().__init__(env)
        self.factor = factor
    def reward(self, reward):
        return reward * self.factor
"""


@pytest.mark.parametrize("name", ["", pytest.param(":Own", marks=pytest.mark.exhaustive)])
def test_file_works_from_training_to_export(name: str, tmp_path: Path) -> None:
    """All commands run in separate processes, and the environments in worker processes."""
    (tmp_path / "my games").mkdir()
    (tmp_path / "my games" / "own game.py").write_text(OWN_FILE, encoding="utf-8")
    (tmp_path / "my games" / "numbers_of_mine.py").write_text("LENGTH = 6", encoding="utf-8")
    file = "my games/own game.py"
    small = ["--gym.num-envs", "2", "--gym.num-steps", "16", "--ppo.minibatches", "1", "--gym.vectorization", "async"]
    wrapper = ["--gym.wrappers", f"'{file}:Halve(factor=0.5)'", "--eval.episodes", "2"]
    done = command("train", file + name, "--name", "a", "--total-steps", "30", *small, *wrapper, cwd=tmp_path)
    assert (done.returncode, done.stderr.count("Traceback")) == (0, 0), done.stderr
    done = command("resume", "a", "--total-steps", "60", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert Run(tmp_path / "runs" / "a").read_status().resumes[0]["restored"] == "exact"
    done = command("eval", "a", "--json", "--episodes", "2", cwd=tmp_path)
    assert json.loads(done.stdout)["score"] == 3
    assert command("export", "a", "--to", "policy", cwd=tmp_path).returncode == 0
    played = fork_server.run(["policy/play.py"], tmp_path)
    assert (played.returncode, played.stdout) == (0, "mean return 3 over 10 episodes\n")


USAGE_ERRORS = {
    ("train", "cartpol"): "did you mean 'cartpole'",
    ("train",): "ppo-unified train: missing target; expected a preset (see ppo-unified envs)",
    ("train", "--seed", "3"): "ppo-unified train: missing target",
    ("train", "--policy.hidden", "64", "64", "cartpole"): "missing TARGET; write it before --policy.hidden",
    ("train", "--seed", "3", "cartpol"): "did you mean 'cartpole'",
    (
        "train",
        "cartpole",
        "acrobot",
    ): "ppo-unified train cartpole: unexpected argument 'acrobot'; expected only options",
    ("train", "cartpole", "--detac"): "unknown option --detac; did you mean --detach?",
    ("train", "--detac", "cartpole"): "unknown option --detac; did you mean '--detach'?",
    ("train", "cartpole", "--net-arch", "8"): "unknown option --net-arch; did you mean --policy.hidden?",
    ("train", "llm", "--model-name-or-path", "x"): "unknown option --model-name-or-path; did you mean --llm.model?",
    ("train", "cartpole", "--ppo.loss-mean", "sequence"): "; remove ppo.loss_mean",
    ("train", "cartpole", "--ppo.clp", "1"): "unknown option --ppo.clp; did you mean --ppo.clip?",
    ("train", "--ppo.clp", "1", "cartpole"): "unknown option --ppo.clp; did you mean --ppo.clip?",
    ("train", "cartpole", "--runs"): "ppo-unified train: --runs: expected a value; see ppo-unified train --help",
    ("train", "cartpole", "--optim.lr", "nan"): "expected a number > 0 and <= 1, got 'nan'",
    ("train", "cartpole", "--name", "../out"): "start with a letter or digit",
    ("train", "cartpole", "--name", "/tmp/out"): "start with a letter or digit",
    ("train", "cartpole", "--name", ""): None,  # the default name
    ("train", "CartPole-v77"): "did you mean 'CartPole-v1'",
    ("train", "nofile.py"): "gym.env_id = 'nofile.py': no file 'nofile.py' in /",
    ("train", "nofile.py:X", "--gym.wrappers", "A(1)"): "command line: gym.wrappers: expected Name or Name(key=value, ",
    ("train", "nomodule:X-v0"): "cannot import module 'nomodule'",
    ("train", "cartpole", "--runs", "/proc/nowhere"): "/proc/nowhere: cannot create the folder",
    ("train", "cartpole", "--gym.wrappers", "FlatenObservation"): "did you mean 'FlattenObservation'",
    (
        "train",
        "cartpole",
        "--gym.wrappers",
        "Nope",
    ): "no wrapper 'Nope' in gymnasium.wrappers; for your own wrapper",
    (
        "train",
        "cartpole",
        "--gym.wrappers",
        "TransformReward",
    ): "gym.wrappers: TransformReward cannot be used: it needs a function as an argument; write a subclass",
    (
        "train",
        "cartpole",
        "--gym.wrappers",
        "TimeLimit(steps=3)",
    ): "gym.wrappers: TimeLimit has no parameter 'steps'; it accepts max_episode_steps",
    ("train", "cartpole", "--gym.wrappers", "nomodule:X"): "gym.wrappers = 'nomodule:X': cannot import module 'nomodul",
    (
        "train",
        "cartpole",
        "--gym.env-kwargs",
        '{"moon": 1}',
    ): "the environment with gym.env_kwargs = {'moon': 1} (",
    ("train", "cartpole", "--policy.log-std-init", "1"): "has discrete actions",
    ("train", "Acrobot-v1", "--gym.vectorization", "vector_entry_point"): "has no vector version",
    ("resume", "nothing"): "no run 'nothing'",
    ("resume", "--optim.lr", "1e-3", "nothing"): "no run 'nothing'",
    ("resume", "--seed=3"): "ppo-unified resume: missing required argument RUN",
    ("regress", "acrobot"): "no baseline for 'acrobot'",
    ("trian",): "unknown command 'trian'; did you mean 'train'? (see ppo-unified --help)",
    ("stop",): "ppo-unified stop: missing required argument RUN; see ppo-unified stop --help",
    ("reward-model",): "missing required arguments --model, --data, --out; see",
}


@pytest.mark.parametrize("arguments", [a for a in USAGE_ERRORS if USAGE_ERRORS[a]], ids=" ".join)
def test_usage_error_exits_2_and_leaves_no_folder(
    arguments: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    output = capsys.readouterr()
    assert USAGE_ERRORS[arguments] in output.err  # type: ignore[operator]
    assert len(output.err.splitlines()) == 1
    assert output.out == ""
    assert not list(tmp_path.glob("runs/*"))


@pytest.mark.parametrize(
    "options",
    [
        "--seed 3",
        "--seed=3 --name a",
        "--no-stop-when-solved --detach",
        "--stop-when-solved",
        "--stop_when_solved false",
        "--policy.hidden 64 64 --ppo.entropy-coef -1 --seed=3",
        "--ppo.clip --seed 3",
        "--llm.max-new-tokens 5",
        "--unknown 3",
    ],
)
def test_options_may_precede_the_target(options: str) -> None:
    parser = Parser(prog="ppo-unified train", add_help=False)
    train.add_arguments(parser)
    before, after = options.split(), ["--seed", "4"]
    assert move_target_first([*before, "cartpole", *after], parser, "TARGET") == ["cartpole", *before, *after]
    assert move_target_first([*before, "--help"], parser, "TARGET") == ["--help"]


def test_option_before_the_target_is_applied(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "run_training", lambda run, *_: run.release() or 0)
    assert call("train", "--seed", "3", "cartpole", "--name", "a")[0] == 0
    run = Run(Path("runs", "a"))
    assert "seed = 3" in run.config.read_text()
    assert run.command.read_text() == "ppo-unified train cartpole --seed 3 --name a\n"


def test_missing_gpu_is_rejected_and_leaves_no_folder(
    tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    code, _, error = call("train", "cartpole", "--device", "cuda", "--name", "a", *QUICK)
    assert code == 2
    assert error.splitlines()[0] == "preparing runs/a"  # and not "training"
    assert "torch cannot find a GPU" in error.splitlines()[1]
    assert not list(tmp_path.glob("runs/*"))


def test_missing_extra_suggests_pip_command(tmp_path: Path) -> None:
    (tmp_path / "Box2D.py").write_text("raise ImportError('no Box2D here')", encoding="utf-8")
    done = command("train", "lunarlander", cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)})
    assert done.returncode == 2
    assert "pip install 'ppo-unified[box2d]'" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_existing_run_name_is_rejected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "a").mkdir(parents=True)
    for extra in ((), ("--detach",)):
        assert main(["train", "cartpole", "--name", "a", *extra]) == 2
        assert "already exists; resume it" in capsys.readouterr().err


def test_detached_start_reports_rejection_and_leaves_nothing(
    tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    code, _, error = call("train", "cartpole", "--detach", "--device", "cuda")
    assert code == 2
    assert "torch cannot find a GPU" in error
    assert not list(tmp_path.glob("runs/*"))


@pytest.mark.parametrize(
    ("state", "reason", "described"),
    [
        ("running", "", "training in the background as process 7; to stop it: ppo-unified stop a --runs {}"),
        ("finished", "total_steps reached", "a: finished (total_steps reached)"),
        ("failed", "the bridge fell down", "a: failed (the bridge fell down)"),
    ],
)
def test_detach_describes_the_state_of_the_run(state: str, reason: str, described: str, tmp_path: Path) -> None:
    run = Run(tmp_path / "a")
    run.path.mkdir()
    run.write_status(Status(name="a", state=state, reason=reason, pid=7))
    assert describe_background(run) == described.format(tmp_path)


def test_trainer_ignores_modules_in_current_folder(tmp_path: Path) -> None:
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
if "Endless-v0" not in gym.registry: gym.register("Endless-v0", entry_point="endless:Endless")
"""


def test_endless_episode_is_truncated_and_scored(
    tmp_path: Path, call: Call, write_module: Callable[[str, str], None]
) -> None:
    write_module("endless", ENDLESS_ENVIRONMENT)
    options = ["--total-steps", "1000", "--eval.every-steps", "0", "--eval.episodes", "1", "--ppo.epochs", "1"]
    code, _, error = call("train", "endless:Endless-v0", "--name", "a", *options)
    assert code == 0, error
    assert Run(tmp_path / "runs" / "a").read_status().score == 5000.0


def test_help_lists_commands_and_options(capsys: pytest.CaptureFixture[str]) -> None:
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


def test_values_of_a_list_are_trained_in_sequence(tmp_path: Path, call: Call) -> None:
    listed = ["--total-steps", "5e2,6e2", "--seed", "1-2", "--no-stop-when-solved", "--eval.episodes", "1"]
    code, out, err = call("train", "cartpole", *listed, "--eval.every-steps", "0")
    assert code == 0, err
    names = [f"cartpole-total_steps{steps}-s{seed}" for steps in (500, 600) for seed in (1, 2)]
    assert [line.split(":")[0] for line in out.splitlines() if ": finished" in line] == names
    run = Run(tmp_path / "runs" / names[3])
    words = run.command.read_text().split()
    assert words[:7] == ["ppo-unified", "train", "cartpole", "--total-steps", "600", "--seed", "2"]
    assert call(*words[1:], "--name", "alone")[0] == 0
    curves = []
    for name in (names[3], "alone"):
        reader = EventReader(tmp_path / "runs" / name)
        reader.poll()
        curves.append({tag: s.values.tolist() for tag, s in reader.series.items() if not tag.startswith("time/")})
    assert curves[0].keys() == curves[1].keys()
    assert {tag for tag in curves[0] if curves[0][tag] != curves[1][tag]} <= {"memory/process"}


@pytest.mark.parametrize(
    ("codes", "code", "names", "message"),
    [
        ([0, 1, 0], 1, ["x-s1", "x-s2", "x-s3"], ""),
        ([0, 130, 0], 130, ["x-s1", "x-s2"], "1 of 3 runs was not started"),
        ([130, 0, 0], 130, ["x-s1"], "2 of 3 runs were not started"),
    ],
)
def test_sequence_continues_after_failure_but_not_after_stop(
    codes: list[int], code: int, names: list[str], message: str, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = []

    def work(run: Run, *_: object) -> int:
        run.release()
        started.append(run.name)
        return codes[len(started) - 1]

    monkeypatch.setattr(train, "run_training", work)
    result, _, err = call("train", "cartpole", "--seed", "1-3", "--name", "x")
    assert (result, started) == (code, names)
    assert err == (f"{message}\n" if message else "")


def test_existing_name_among_several_starts_nothing(tmp_path: Path, call: Call) -> None:
    (tmp_path / "runs" / "a-s3").mkdir(parents=True)
    for extra in ((), ("--detach",)):
        code, _, err = call("train", "cartpole", "--seed", "1-3", "--name", "a", *extra)
        assert (code, err) == (2, "runs/a-s3 already exists; choose another --name\n")
        assert [path.name for path in (tmp_path / "runs").iterdir()] == ["a-s3"]


@pytest.mark.parametrize(
    "words",
    [
        ["cartpole", "--policy.hidden", "8", "8", "--name", "b c", "--runs", "my runs"],
        ["cartpole", "--optim.lr", "0.01", "--runs", "my runs"],
    ],
)
def test_command_file_starts_the_same_run(
    words: list[str], tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command contains the run's name and its runs folder."""
    monkeypatch.setattr(train, "run_training", lambda run, *_: run.release() or 0)
    assert call("train", *words)[0] == 0
    (folder,) = (tmp_path / "my runs").iterdir()
    first = Run(folder)
    started = shlex.split(first.command.read_text())
    assert started == ["ppo-unified", "train", *words]
    config = first.config.read_text()
    shutil.rmtree(folder)
    assert call(*started[1:])[0] == 0
    assert first.config.read_text() == config


def test_default_names_of_several_runs_are_the_first_free_ones(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    started = []

    def work(run: Run, *_: object) -> int:
        run.release()
        started.append(run.name)
        return 0

    monkeypatch.setattr(train, "run_training", work)
    for _ in range(2):
        assert call("train", "cartpole", "--optim.lr", "1e-3,3e-3")[0] == 0
    assert started[:2] == ["cartpole-lr1e-3-s1", "cartpole-lr3e-3-s1"]
    assert started[2:] == ["cartpole-lr1e-3-s1-2", "cartpole-lr3e-3-s1-2"]


def test_detach_counts_the_runs_that_were_not_started(
    tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(arguments: list[str], runs: Path) -> Run:
        if "3" in arguments:
            raise UsageError("no room")
        run = preparation.prepare(load_preset("cartpole"), tmp_path, f"x{len(list(tmp_path.iterdir()))}")
        run.release()
        return run

    monkeypatch.setattr("ppo_unified.runs.control.start", start)
    code, out, err = call("train", "cartpole", "--seed", "1-4", "--detach")
    assert code == 2
    assert len(out.splitlines()) == 2
    assert err.splitlines()[-1] == "no room; 2 of 4 runs were not started"


def test_progress_and_summary_label_greedy_and_sampled(tmp_path: Path) -> None:
    log = io.StringIO()
    status = Status(name="a", step=500, total_steps=1000, score=490.0, best_score=500.0, state="finished")
    progress = Progress(log, nullcontext())
    progress.last_plain = -PLAIN_S
    progress(status, {"time/steps_per_second": 10.0, "episode/return": 123.0, "policy/kl": 0.01})
    assert re.search(r"return 123 \(sampled\) .{1,2} ?score 490 \(greedy\) ", log.getvalue())
    run = create(tmp_path, "a", "a")
    assert summary(run, status).endswith(", greedy score 490 (best 500)")
