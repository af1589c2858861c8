"""Tests of `eval`, `play` and `export` on a solved CartPole run and on toy environments that draw pictures."""

from __future__ import annotations

import codecs
import contextlib
import fcntl
import io
import json
import os
import pty
import re
import runpy
import shutil
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

from envs.gym import export as gym_export
from envs.gym import play as gym_play
from envs.gym.eval import Player
from envs.gym.options import GymConfig
from envs.gym.spaces import encode
from envs.gym.vector import GymAdapter
from ppo_unified import load_preset
from ppo_unified import run as train
from ppo_unified.cli.main import main
from ppo_unified.cli.policy import describe_reply
from ppo_unified.config.spec import Reply
from ppo_unified.errors import UsageError
from ppo_unified.runs.folder import Run
from ppo_unified.runs.preparation import prepare
from ppo_unified.runs.signals import StopRequest
from ppo_unified.terminal.screen import ENTER, LEAVE
from ppo_unified.training import checkpoint
from ppo_unified.training.session import train_in
from tests import fork_server
from tests.fuzz.readers import is_harmless

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A runs folder with a solved run `pole` and a barely trained run of each toy environment."""
    folder = tmp_path_factory.mktemp("runs")
    train(load_preset("cartpole", seed=3), folder, name="pole")
    for name in ("dot", "words", "unseen", "odd"):
        train(toy(f"tests.pictures:{name.title()}-v0"), folder, name=name)
    train(toy("CartPole-v1"), folder, name="fallen")
    train(toy("tests.pictures:Dot-v0", breaks_at=3), folder, name="broken")
    train(toy("tests.pictures:Dot-v0", says="a line of its own"), folder, name="chatty")
    return folder


def toy(env_id: str, **env_kwargs: Any) -> GymConfig:
    table = {"env_id": env_id, "num_envs": 1, "num_steps": 8, "env_kwargs": env_kwargs}
    ppo = {"minibatches": 1, "epochs": 1}
    options = {"gym": table, "policy": {"hidden": [8]}, "ppo": ppo, "total_steps": 8, "eval": {"episodes": 1}}
    return GymConfig.model_validate(options)


def adapter_of(
    env_id: str, normalize_obs: bool = False, wrappers: Sequence[str] = (), torso: str = "mlp", **env_kwargs: Any
) -> GymAdapter:
    """Return an adapter with an untrained policy whose random weights make its actions depend on the observation."""
    config = toy(env_id, **env_kwargs).replace({"policy.torso": torso, "policy.row_len": 8})
    changes = {"gym": config.gym.model_copy(update={"normalize_obs": normalize_obs, "wrappers": list(wrappers)})}
    adapter = GymAdapter(config.model_copy(update=changes), torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in adapter.policy.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator))
    if adapter.policy.scaler is not None:
        adapter.policy.scaler.update(torch.randn(50, adapter.observations.size, generator=generator) * 3 + 1)
    return adapter


def command(runs: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main([*arguments, "--runs", str(runs)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def evaluate_json(runs: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    code, out, err = command(runs, capsys, "eval", "pole", "--json", *arguments)
    assert (code, err) == (0, "")
    document: dict[str, Any] = json.loads(out)
    return document


# eval


def test_eval_uses_best_checkpoint_and_greedy_actions(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = evaluate_json(runs, capsys, "--episodes", "30", "--seed", "7")
    best = checkpoint.best_step(Run(runs / "pole"))
    assert document.pop("score") == document.pop("mean_return") >= 475
    assert document.pop("std") >= 0
    assert document == {"episodes": 30, "greedy": True, "seed": 7, "checkpoint": "best", "step": best}


def test_checkpoint_without_evaluation_is_not_called_best(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run that was stopped before its first evaluation has no best checkpoint, so the latest one is used."""
    stop, toy_config = StopRequest(), toy("tests.pictures:Dot-v0")
    evaluation = toy_config.eval.model_copy(update={"every_steps": 0, "at_start": False})
    config = toy_config.model_copy(update={"eval": evaluation, "total_steps": 80})
    run = prepare(config, tmp_path, "pole")
    train_in(run, config, stop, lambda status, metrics: stop.handle(signal.SIGTERM, None))
    assert checkpoint.steps(run) == [8]
    document = evaluate_json(tmp_path, capsys, "--episodes", "1")
    assert (document["checkpoint"], document["step"]) == ("latest", 8)
    _, out, _ = command(tmp_path, capsys, "eval", "pole", "--episodes", "1")
    assert "(greedy, seed 0, latest checkpoint, step 8)" in out


def test_eval_is_repeatable_and_depends_on_options(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def score(*arguments: str) -> float:
        _, out, _ = command(runs, capsys, "eval", "fallen", "--json", "--episodes", "20", *arguments)
        return float(json.loads(out)["score"])

    assert score("--seed", "1") == score("--seed", "1") != score("--seed", "2")
    assert score("--seed", "1") != score("--seed", "1", "--sampled") == score("--seed", "1", "--sampled")


def test_eval_uses_the_given_checkpoint(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    steps = checkpoint.steps(Run(runs / "pole"))
    for which, step in (("latest", steps[-1]), (str(steps[0]), steps[0])):
        document = evaluate_json(runs, capsys, "--episodes", "2", "--checkpoint", which)
        assert (document["checkpoint"], document["step"]) == (which, step)
    words = command(runs, capsys, "eval", "words", "--episodes", "2")
    assert words[1] == "words: score 12 +- 0 over 2 episodes (greedy, seed 0, best checkpoint, step 8)\n"


def test_eval_accepts_run_of_another_machine(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """config.toml may require a GPU that this machine does not have."""
    copy = shutil.copytree(runs / "dot", tmp_path / "far")
    config = (copy / "config.toml").read_text(encoding="utf-8")
    assert 'device = "auto"' in config
    (copy / "config.toml").write_text(config.replace('device = "auto"', 'device = "cuda"'), encoding="utf-8")
    assert command(tmp_path, capsys, "eval", "far", "--episodes", "1")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("eval", "pole", "--episodes", "0"), "--episodes: expected an integer >= 1, got 0"),
        (("eval", "pole", "--episodes", "x"), "eval: --episodes: expected an integer, got 'x'; see ppo-unified eval"),
        (("eval", "pole", "--seed", "-1"), "--seed: expected an integer >= 0, got -1"),
        (("eval", "pole", "--checkpoint", "first"), "checkpoint 'first' not found; available: best, latest, "),
        (("eval", "pole", "--checkpoint", "17"), "checkpoint '17' not found"),
        (("eval", "poel"), "did you mean 'pole'?"),
        (("eval", "words", "--video"), "expected a render mode rgb_array, got ansi"),
        (("eval", "unseen", "--video"), "expected a render mode rgb_array, got none"),
        (
            ("eval", "odd", "--video"),
            "render(): expected a picture [height, width, 3] of uint8, got float64 of shape [4, 4, 7]",
        ),
        (("play", "pole", "--episodes", "0"), "--episodes: expected an integer >= 1, got 0"),
        (("play", "pole", "--fps", "nan"), "--fps: expected a number > 0, or 0 for the environment's rate, got nan"),
        (("play", "pole", "--fps", "-1"), "--fps: expected a number > 0, or 0 for the environment's rate, got -1"),
        (("play", "pole", "--fps", "x"), "play: --fps: expected a number, got 'x'; see ppo-unified play --help"),
        (("export", "poel", "--to", "never-made"), "did you mean 'pole'?"),
        (
            ("export", "pole", "--to", "/etc/passwd"),
            "--to /etc/passwd: expected a folder, got a file; choose",
        ),
        (
            ("export", "pole", "--to", "/etc/passwd/x"),
            "passwd/x: /etc/passwd is not a folder; choose",
        ),
        (
            ("export", "pole", "--to", "/dev/null/x"),
            "--to /dev/null/x: /dev/null is not a folder; choose",
        ),
    ],
)
def test_usage_errors_are_one_line(
    runs: Path, capsys: pytest.CaptureFixture[str], arguments: Sequence[str], named: str
) -> None:
    code, out, err = command(runs, capsys, *arguments)
    assert (code, out) == (2, "")
    assert named in err
    assert err.count("\n") == 1
    assert not Path("never-made").exists()
    assert not (runs / "odd" / "export").exists() or not os.listdir(runs / "odd" / "export")


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    files = [path for path in folder.rglob("*") if path.is_file() and "export" not in path.parts]
    return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def test_eval_leaves_running_trainer_undisturbed(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A trainer that holds the lock keeps it, and only the export folder changes."""
    code = "import sys; from ppo_unified.runs.folder import *; run = Run(Path(sys.argv[1]))"
    code += "; run.acquire(); print(); input()"
    run, before = Run(runs / "dot"), contents(runs / "dot")
    with subprocess.Popen(
        [sys.executable, "-u", "-c", code, str(run.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as trainer:
        assert trainer.stdout is not None
        assert trainer.stdout.readline() == "\n"
        assert command(runs, capsys, "eval", "dot", "--episodes", "2", "--video")[0] == 0
        assert run.is_locked()
        assert contents(runs / "dot") == before
        trainer.communicate("\n")
    assert not run.is_locked()


def test_eval_rechooses_a_checkpoint_pruned_meanwhile(
    runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = checkpoint.choose, []

    def choose_stale(run: Run, which: str) -> int:
        """Return a checkpoint that no longer exists on the first calls."""
        calls.append(which)
        return 1 if len(calls) < 3 else real(run, which)

    monkeypatch.setattr(checkpoint, "choose", choose_stale)
    assert evaluate_json(runs, capsys, "--episodes", "1")["step"] == checkpoint.best_step(Run(runs / "pole"))
    assert calls == ["best", "1", "best"]


def test_eval_saves_episode_video(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = command(runs, capsys, "eval", "dot", "--episodes", "1", "--video", "--seed", "4")
    path = runs / "dot" / "export" / "step8-seed4.gif"
    assert code == 0
    assert out.endswith(f"video: {path}\n")
    with Image.open(path) as gif:
        pictures = [np.asarray(image.convert("L")) for image in ImageSequence.Iterator(gif)]
        assert gif.info["loop"] == 0
    assert [int(np.argmax(picture[5] > 128)) for picture in pictures] == list(range(13))
    assert all(entry.suffix == ".gif" for entry in path.parent.iterdir())


@pytest.mark.parametrize("arguments", [("eval", "dot", "--episodes", "1", "--video"), ("export", "pole", "--to", "")])
def test_folder_names_are_sanitized_for_the_terminal(
    runs: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
) -> None:
    monkeypatch.setattr(gym_export, "export", lambda adapter, folder, about: {})  # the real one is slow
    folder = tmp_path / "a\x1b[31mb"
    folder.symlink_to(runs)
    code, out, _ = command(folder, capsys, *(word or str(folder / "out") for word in arguments))
    assert code == 0
    assert str(tmp_path / "ab") in out
    assert is_harmless(out)


def test_eval_json_with_video_is_one_document(runs: Path) -> None:
    """The test needs a new process, because the drawing libraries print to stdout and stderr when they are loaded."""
    command = ["-m", "ppo_unified", "eval", "fallen", "--episodes", "1", "--json", "--video"]
    ended = fork_server.run([*command, "--runs", str(runs)])
    assert (ended.returncode, ended.stderr) == (0, "")
    with Image.open(json.loads(ended.stdout)["video"]) as gif:
        assert gif.size == (480, 320)


# play


def test_play_without_terminal_prints_one_line_per_episode(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("dot", "words", "unseen", "odd"):
        code, out, err = command(runs, capsys, "play", name, "--episodes", "2")
        assert (code, err) == (0, "")
        assert out == "episode 1: return 12 (greedy) in 12 steps\nepisode 2: return 12 (greedy) in 12 steps\n"


def test_play_yields_one_frame_per_step() -> None:
    frames = list(gym_play.play(adapter_of("tests.pictures:Dot-v0"), 2, 0, True, ("picture", "text")))
    assert [(frame.episode, frame.step) for frame in frames] == [(e, s) for e in (1, 2) for s in range(13)]
    assert [frame.total for frame in frames] == [float(frame.step) for frame in frames]
    assert [frame.ended for frame in frames] == [frame.step == 12 for frame in frames]
    for frame in frames:
        assert isinstance(frame.picture, np.ndarray)
        assert int(np.argmax(frame.picture[5, :, 0])) == frame.step  # the picture shows the state after the step
        assert bool(frame.action) == (frame.step > 0)
        assert frame.seconds == 1 / 25


def test_same_seed_plays_the_same_episode() -> None:
    adapter = adapter_of("CartPole-v1")
    played = [[f.action for f in gym_play.play(adapter, 2, seed, False, ())] for seed in (1, 1, 2)]
    assert played[0] == played[1] != played[2]


def test_play_rejects_vector_only_environment() -> None:
    with pytest.raises(UsageError, match=r"OnlyVector-v0: cannot play .* because it only has a vector version"):
        gym_play.play(adapter_of("tests.gym_envs:OnlyVector-v0"), 1, 0, True, ())


# play on a terminal


def open_terminal() -> tuple[int, int]:
    """Open a pseudo-terminal of 80 x 24 cells and return the test's end and the program's end."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    return ours, theirs


def read_until(terminal: int, text: str, already: str = "") -> str:
    """Read from a terminal until `text` appears or the other end is closed."""
    decode = codecs.getincrementaldecoder("utf-8")().decode  # a piece may end inside a character
    while text not in already:
        try:
            piece = os.read(terminal, 1 << 16)
        except OSError:  # on Linux: the other end is closed
            break
        if not piece:
            break
        already += decode(piece)
    return already


def run_on_terminal(monkeypatch: pytest.MonkeyPatch, *arguments: str, **environ: str) -> tuple[int, str]:
    """Run a command in this process and return its exit code and everything that it wrote to its terminal."""
    usual = {"TERM": "xterm-256color", "LC_ALL": "C.UTF-8", "NO_COLOR": "", "COLORTERM": "truecolor"}
    for name, value in (usual | environ).items():
        monkeypatch.setenv(name, value)
    ours, theirs = open_terminal()
    with ThreadPoolExecutor() as readers:  # writing blocks if the terminal is not read
        text = readers.submit(read_until, ours, "\0")
        with os.fdopen(theirs, "w", encoding="utf-8") as stream, monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", stream)
            patch.setattr(sys, "stderr", stream)
            code = main(arguments)
    os.close(ours)
    return code, text.result()


def test_play_draws_and_restores_the_terminal(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, text = run_on_terminal(monkeypatch, "play", "dot", "--fps", "1000", "--runs", str(runs))
    before, picture, after = re.split(f"{re.escape(ENTER)}|{re.escape(LEAVE)}", text)
    assert (code, before, after) == (0, "", "episode 1: return 12 (greedy) in 12 steps\r\n")
    assert "▀" in picture or "48;2;255;255;255m" in picture
    assert "step 12  return 12.0  action " in picture
    assert "\n" not in picture


@pytest.mark.parametrize(
    ("environ", "has", "lacks"),
    [
        ({"COLORTERM": ""}, "48;5;231", "48;2;"),
        ({"NO_COLOR": "1"}, "@@@@", "48;"),
        ({"LC_ALL": "C"}, "@@@@", "48;"),
    ],
)
def test_play_respects_terminal_capabilities(
    runs: Path, monkeypatch: pytest.MonkeyPatch, environ: dict[str, str], has: str, lacks: str
) -> None:
    code, text = run_on_terminal(monkeypatch, "play", "dot", "--fps", "1000", "--runs", str(runs), **environ)
    assert code == 0
    assert has in text
    assert lacks not in text
    assert text.isascii() or environ == {"COLORTERM": ""}


def test_play_shows_text_frames(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, text = run_on_terminal(monkeypatch, "play", "words", "--fps", "1000", "--runs", str(runs))
    assert code == 0
    assert "  S ............" in text
    assert "\x07" not in text
    assert "\x1b[41m" not in text


def test_dumb_terminal_gets_plain_lines(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = run_on_terminal(monkeypatch, "play", "dot", "--runs", str(runs), TERM="dumb")
    assert shown == (0, "episode 1: return 12 (greedy) in 12 steps\r\n")


def test_play_shows_observations_without_a_render_mode(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, text = run_on_terminal(monkeypatch, "play", "unseen", "--fps", "1000", "--runs", str(runs))
    assert code == 0
    assert "observation [0.]" in text
    assert "observation [0.5]" in text  # after 6 of 12 steps


def test_environment_output_appears_below_the_frame(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, text = run_on_terminal(monkeypatch, "play", "chatty", "--fps", "1000", "--runs", str(runs))
    assert code == 0
    assert "a line of its own" not in text.partition(LEAVE)[0]
    assert text.partition(LEAVE)[2].count("a line of its own\r\n") == 12


def start_on_a_terminal(*arguments: str) -> tuple[fork_server.Popen, int]:
    """Start `ppo-unified` on a new terminal and return the process and the test's end of the terminal."""
    ours, theirs = open_terminal()
    process = fork_server.Popen(
        [sys.executable, "-m", "ppo_unified", *arguments],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        cwd=ROOT,
        env=os.environ | {"TERM": "xterm-256color"},
        start_new_session=True,
    )
    os.close(theirs)
    return process, ours


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.exhaustive)]
)
def test_signal_restores_the_terminal(runs: Path, number: signal.Signals, code: int) -> None:
    process, terminal = start_on_a_terminal("play", "dot", "--fps", "0.01", "--runs", str(runs))
    text = read_until(terminal, "step 0")
    assert ENTER in text
    assert LEAVE not in text
    process.send_signal(number)
    assert read_until(terminal, "\0", text).endswith(LEAVE)
    assert process.wait() == code
    os.close(terminal)


def test_environment_error_restores_the_terminal(runs: Path) -> None:
    process, terminal = start_on_a_terminal("play", "broken", "--fps", "1000", "--runs", str(runs))
    text = read_until(terminal, "\0")
    assert process.wait() == 1
    assert "ZeroDivisionError: the brush broke" in text.partition(LEAVE)[2]
    assert "Traceback" not in text.partition(LEAVE)[0]
    os.close(terminal)


# export

EXPORTED = ["README.md", "play.py", "policy.json", "policy.pt2"]
WITHOUT_PROJECT = """
import runpy, sys
import numpy as np, torch
folder, obs, actions = sys.argv[1:]
policy = torch.export.load(f"{folder}/policy.pt2").module()
np.save(actions, policy(torch.from_numpy(np.load(obs))).numpy())
assert not {"ppo_unified", "envs", "gymnasium"} & set(sys.modules)
runpy.run_path(f"{folder}/play.py", run_name="__main__")
assert not {"ppo_unified", "envs"} & set(sys.modules)
"""


@pytest.fixture(scope="module")
def export_folder(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exports") / "deep" / "pole"
    assert main(["export", "pole", "--to", str(folder), "--runs", str(runs)]) == 0
    return folder


def test_exported_policy_describes_itself(runs: Path, export_folder: Path) -> None:
    description = json.loads((export_folder / "policy.json").read_text(encoding="utf-8"))
    status = Run(runs / "pole").read_status()
    assert sorted(os.listdir(export_folder)) == description["files"] == EXPORTED
    assert (description["env_id"], description["score"]) == ("CartPole-v1", status.best_score)
    assert (description["step"], description["run"]) == (status.best_step, "pole")
    assert (description["obs"]["shape"], description["obs"]["dtype"]) == (["batch", 4], "float32")
    assert (description["action"]["shape"], description["action"]["dtype"]) == (["batch"], "int64")
    assert description["action_mask"] is None
    assert description["versions"]["torch"] == torch.__version__


def test_exported_policy_runs_without_this_project(runs: Path, export_folder: Path, tmp_path: Path) -> None:
    """The policy chooses the same actions without this project, and its example reaches the score of the run."""
    pole = Run(runs / "pole")
    config = load_preset("cartpole")
    assert isinstance(config, GymConfig)
    adapter = GymAdapter(config, torch.device("cpu"))
    policy = checkpoint.load_policy(pole, checkpoint.choose(pole, "best"), torch.device("cpu"))
    adapter.policy.load_state_dict(policy)
    player = Player(adapter.policy, adapter.observations, adapter.actions, torch.device("cpu"), None)
    obs = np.random.default_rng(0).standard_normal((200, 4)).astype(np.float32)
    np.save(tmp_path / "obs.npy", obs)
    files = [str(export_folder), str(tmp_path / "obs.npy"), str(tmp_path / "actions.npy")]
    words = [sys.executable, "-c", WITHOUT_PROJECT, *files]
    ended = subprocess.run(words, cwd=tmp_path, check=True, stdout=subprocess.PIPE, text=True)
    np.testing.assert_array_equal(np.load(files[2]), player(obs, {}))
    assert set(np.load(files[2])) == {0, 1}
    found = re.fullmatch(r"mean return ([\d.]+) over 10 episodes\n", ended.stdout)
    assert found
    assert float(found[1]) >= 475


MASKED = ("tests.gym_envs:Locks-v0", "tests.gym_envs:Locks", "Taxi-v4", "tests.gym_info:Doors-v0")
WORLDS: list[tuple[str, dict[str, Any]]] = [
    ("tests.gym_envs:Locks-v0", {"torso": "gru"}),  # a flat Dict with an action mask, MultiDiscrete with starts
    ("Taxi-v4", {}),  # one-hot observations, an action mask in the info
    ("tests.gym_info:Doors-v0", {}),  # a method action_masks
    ("Pendulum-v1", {"normalize_obs": True, "g": 9.0, "torso": "lstm", "wrappers": ["TimeLimit(max_episode_steps=9)"]}),
    ("Pendulum-v1", {"wrappers": ["TimeLimit(max_episode_steps=9)", "FrameStackObservation(stack_size=2)"]}),
    ("CartPole-v1", {"wrappers": ["tests.gym_envs:Weighted(weight=[0.5, 2.0])"]}),
    ("tests.gym_envs:Locks", {}),  # a class, used without its registration
    *(("tests.gym_envs:Echo-v0", {"space": space}) for space in ("box", "started", "multi", "grid", "bits")),
]


@pytest.mark.parametrize(
    ("env_id", "options"),
    [pytest.param(*world, marks=() if i % 3 == 0 else pytest.mark.exhaustive) for i, world in enumerate(WORLDS)],
)
def test_exported_example_plays_as_play_does(
    env_id: str, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = adapter_of(env_id, **options)
    about = {"run": "a", "kind": "gym", "step": 1, "score": None, "versions": {}}
    facts = gym_export.export(adapter, tmp_path, about)
    totals = [frame.total for frame in gym_play.play(adapter, 10, 0, True, ()) if frame.ended]
    monkeypatch.setattr(sys, "path", list(sys.path))
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        runpy.run_path(str(tmp_path / "play.py"))
    assert printed.getvalue() == f"mean return {np.mean(totals):.6g} over 10 episodes\n"
    assert (facts["action_mask"] is not None) == (adapter.masks is not None) == (env_id in MASKED)
    assert json.dumps(facts, allow_nan=False)


def test_export_rejects_program_with_different_actions(tmp_path: Path) -> None:
    ours, other = adapter_of("Pendulum-v1"), adapter_of("Pendulum-v1")
    with torch.no_grad():
        list(other.policy.head.parameters())[-1].add_(0.01)
    gym_export.write_program(other.policy, ours.observations, ours.actions, False, tmp_path / "policy.pt2")
    gym_export.check_program(other.policy, ours.observations, ours.actions, False, tmp_path / "policy.pt2")
    with pytest.raises(RuntimeError, match=r"returns different actions from the policy"):
        gym_export.check_program(ours.policy, ours.observations, ours.actions, False, tmp_path / "policy.pt2")


def test_exported_program_applies_action_mask(tmp_path: Path) -> None:
    adapter = adapter_of("Taxi-v4")
    gym_export.write_program(adapter.policy, adapter.observations, adapter.actions, True, tmp_path / "policy.pt2")
    program = torch.export.load(tmp_path / "policy.pt2").module()
    obs = torch.from_numpy(encode(np.arange(500), adapter.observations))
    for only in range(6):
        assert (program(obs, (torch.arange(6) == only).expand(500, 6)) == only).all()


def test_export_replaces_only_an_earlier_export(
    runs: Path, export_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def modified_at() -> int:
        return (export_folder / "policy.pt2").stat().st_mtime_ns

    first = modified_at()
    code, out, err = command(runs, capsys, "export", "pole", "--to", str(export_folder))
    assert (code, err) == (0, "")
    assert out.splitlines() == [str(export_folder / name) for name in EXPORTED]
    assert sorted(os.listdir(export_folder)) == EXPORTED
    second = modified_at()
    assert second > first
    code, out, err = command(runs, capsys, "export", "fallen", "--to", str(export_folder))
    assert (code, out) == (2, "")
    assert "the folder contains an export of pole; choose another folder or delete it" in err
    (export_folder / "notes.txt").touch()
    code, out, err = command(runs, capsys, "export", "pole", "--to", str(export_folder))
    assert (code, out) == (2, "")
    assert "the folder contains other files (notes.txt); choose an empty folder or a new one" in err
    assert modified_at() == second
    (export_folder / "notes.txt").unlink()


def test_export_keeps_foreign_policy_json(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for text in ("{", "[]", "{}", '{"format": "theirs", "files": ["policy.json"]}'):
        (tmp_path / "policy.json").write_text(text, encoding="utf-8")
        assert command(runs, capsys, "export", "pole", "--to", str(tmp_path))[0] == 2
        assert (tmp_path / "policy.json").read_text(encoding="utf-8") == text


def test_reply_facts_are_formatted() -> None:
    assert describe_reply(Reply("text", 40, True, 0.123456), "greedy") == "greedy, score 0.1235, 40 tokens, ended"
    assert describe_reply(Reply("text", 1, False, None), "sampled") == "sampled, 1 token, cut off"
