"""Commands whose environment prints, exits, parses the command line, or leaves threads behind."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ppo_unified import run
from ppo_unified.cli.main import main
from ppo_unified.runs.folder import Run
from ppo_unified.runs.play_messages import FrameRequest, Ready
from tests.cli.commands import command, serve
from tests.envs.gym.test_vector import make_config

ROOT = Path(__file__).resolve().parents[2]
FAULTY, CHATTY = "tests.faulty_envs:Faulty-v0", "tests.faulty_envs:Chatty-v0"
SHORT = ("--total-steps", "64", "--gym.num-steps", "16", "--gym.num-envs", "2", "--eval.episodes", "2")
PATH = {"PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="module")
def chatty_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run in the environment that prints."""
    folder = tmp_path_factory.mktemp("chatty")
    done = command("train", CHATTY, "--name", "a", *SHORT, "--gym.vectorization", "async", cwd=folder, env=PATH)
    assert done.returncode == 0, done.stderr
    assert "chat" not in done.stdout
    assert [line.partition(":")[0] for line in done.stdout.splitlines()[-2:]] == ["a", "To watch the agent"]
    for place in ("constructor", "descriptor", "C", "step", "close", "exit"):
        assert f"chat {place}" in done.stderr
    return folder


def test_eval_prints_one_json_document(chatty_run: Path) -> None:
    done = command("eval", "a", "--episodes", "3", "--json", cwd=chatty_run, env=PATH)
    assert json.loads(done.stdout)["score"] == 5.0
    assert {f"chat {place}" for place in ("step", "C", "descriptor", "exit")} <= set(done.stderr.splitlines())


def test_play_and_export_print_only_their_results(chatty_run: Path) -> None:
    played = command("play", "a", "--episodes", "2", cwd=chatty_run, env=PATH)
    assert played.stdout == "episode 1: return 5 (greedy) in 5 steps\nepisode 2: return 5 (greedy) in 5 steps\n"
    exported = command("export", "a", "--to", "policy", cwd=chatty_run, env=PATH)
    assert [Path(line).parent.name for line in exported.stdout.splitlines()] == ["policy"] * 4


def test_play_serve_writes_only_replies(chatty_run: Path) -> None:
    requests = [FrameRequest(8, 8, True, True, False, steps, 60.0) for steps in (1, 2, 9, 9)]
    (ready, *frames), errors = serve(Run(chatty_run / "runs" / "a"), requests, cwd=chatty_run, env=PATH)
    assert isinstance(ready, Ready)
    assert [(frame.episode, frame.step) for frame in frames] == [(1, 0), (1, 2), (1, 5), (2, 0)]
    for place in ("step", "descriptor", "C", "exit"):
        assert f"chat {place}" in errors


@pytest.mark.parametrize("verb", [("eval", "a", "--json"), ("play", "a")])
def test_failing_environment_gives_one_line_and_exit_code_1(verb: tuple[str, ...], tmp_path: Path) -> None:
    gym = {"env_kwargs": {"place": "step", "after": 1000}, "vectorization": "sync"}
    run(make_config(FAULTY, total_steps=14, gym=gym), tmp_path / "runs", "a")
    config = Run(tmp_path / "runs" / "a").config
    config.write_text(config.read_text().replace("1000", "3"))
    done = command(*verb, cwd=tmp_path, env=PATH)
    assert (done.returncode, done.stdout) == (1, "")
    cause = r"ZeroDivisionError: the world broke, in faulty_envs.py, line \d+"
    episode = r"(evaluation episode 1 of \d+ \(seed \d+\)|the episode with seed \d+)"
    assert re.fullmatch(rf"{FAULTY}: step\(\) at step 3 of {episode}: {cause}\n", done.stderr)


def test_dead_worker_fails_the_run_with_one_line(tmp_path: Path) -> None:
    kwargs = json.dumps({"place": "odd step", "fault": "die", "after": 30})
    options = (*SHORT, "--gym.vectorization", "async", "--gym.env-kwargs", kwargs, "--eval.every-steps", "0")
    done = command("train", FAULTY, "--name", "a", *options, cwd=tmp_path, env=PATH)
    assert done.returncode == 1
    shown, failed, *others = [line for line in done.stderr.splitlines() if "steps/s" not in line]
    assert re.fullmatch(rf"a failed: {FAULTY}: step\(\) at step \d+ .*: worker \d of 2 exited with code 3", failed)
    assert len(others) == 1
    assert shown.startswith("preparing ")
    assert "Traceback" in Run(tmp_path / "runs" / "a").log.read_text()


def test_threads_of_an_environment_do_not_delay_the_exit(tmp_path: Path) -> None:
    kwargs = json.dumps({"place": "reset", "fault": "thread"})
    options = (*SHORT, "--gym.vectorization", "sync", "--gym.env-kwargs", kwargs)
    began = time.monotonic()
    done = command("train", FAULTY, "--name", "a", *options, cwd=tmp_path, env=PATH)
    assert time.monotonic() - began < 60  # the threads run for 600 s
    assert done.returncode == 0
    assert "simulator" in done.stderr.splitlines()[-1]
    assert Run(tmp_path / "runs" / "a").read_status().state == "finished"
    assert "\na: finished" in done.stdout


CRASH = """
import sys, threading, time
from ppo_unified.cli import main
def crash(*arguments):
    threading.Thread(target=time.sleep, args=(600,), name="simulator").start()
    raise {}("the program broke")
main._run_command = crash
sys.argv = ["ppo-unified", "runs"]
sys.exit(main.main())
"""


@pytest.mark.parametrize("error", ["ZeroDivisionError", "GeneratorExit"])
def test_threads_do_not_delay_the_exit_after_a_crash(error: str) -> None:
    script = [sys.executable, "-c", CRASH.format(error)]
    done = subprocess.run(script, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    *_, cause, left = done.stderr.splitlines()
    assert cause == f"{error}: the program broke"
    assert left.endswith("will not be waited for: simulator")


def test_uncaught_error_is_raised_to_python_callers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ppo_unified.cli.main._run_command", lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["runs"])


@pytest.mark.parametrize(
    ("place", "mode", "message"),
    [
        ("worker constructor", "async", "gym.env_id = '{}': cannot create the environment with gym.env_kwargs = "),
        ("odd reset", "async", "{}: reset(): ZeroDivisionError: the world broke"),
        ("odd reset", "sync", "{}: reset(): ZeroDivisionError: the world broke"),
    ],
)
def test_failure_at_start_leaves_no_folder(place: str, mode: str, message: str, tmp_path: Path) -> None:
    """The environment fails after the check that precedes the creation of the folder, which resets with seed 0."""
    options = (*SHORT, "--gym.vectorization", mode, "--gym.env-kwargs", json.dumps({"place": place}))
    done = command("train", FAULTY, "--name", "a", *options, cwd=tmp_path, env=PATH)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1].startswith(message.format(FAULTY))
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.glob("runs/*"))


def test_broken_rule_exits_with_2_and_leaves_no_folder(tmp_path: Path) -> None:
    broken = "tests.faulty_envs:BreaksRule-v0"
    options = ("--gym.env-kwargs", '{"rule": "old step"}')
    done = command("train", broken, *options, cwd=tmp_path, env=PATH)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(
        f"{broken}: step(): expected (observation, reward, terminated, truncated, info), got "
    )
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.glob("runs/*"))
