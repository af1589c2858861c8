"""Tests `inspect --serve`: frames of stored steps in any order, reasons, memory, and permission to import code."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ppo_unified import run as train
from ppo_unified.cli import replay_server
from ppo_unified.cli.main import main
from ppo_unified.cli.replay_server import BACK, Replays
from ppo_unified.config import presets
from ppo_unified.runs import samples
from ppo_unified.runs.folder import Run
from ppo_unified.runs.play_messages import ErrorReply, FrameReply, PromptRequest, Ready, ReplayRequest, Request
from tests.cli.commands import serve
from tests.envs.gym.test_vector import make_config

ROOT = Path(__file__).resolve().parents[2]
SERVE = ("inspect", "--serve")


def ask(step: int, sample: int = 0, iteration: int = 1, columns: int = 16, lines: int = 6) -> ReplayRequest:
    return ReplayRequest(iteration, sample, step, columns, lines, True)


def train_dots(folder: Path, env_id: str = "tests.pictures:Dot-v0") -> Run:
    """Train in an environment whose picture shows the number of steps. Its episodes have 12 steps."""
    gym = {"vectorization": "sync"}
    train(make_config(env_id, num_envs=1, num_steps=30, total_steps=25, gym=gym), folder, "dots")
    return Run(folder / "dots")


def make_replays(run: Run) -> Replays:
    return Replays(run, presets.from_file(run.config))


def dot_place(answer: tuple[FrameReply | ErrorReply, bytes]) -> int:
    """Return the first white column of a picture."""
    reply, pixels = answer
    assert isinstance(reply, FrameReply)
    row = pixels[3 * reply.columns * (reply.lines // 2) :]
    return row.index(255) // 3


def test_steps_are_drawn_in_any_order(tmp_path: Path) -> None:
    replays = make_replays(train_dots(tmp_path))
    for step in (0, 1, 2, 7, 6, 0, 12, 3):
        reply, pixels = replays.answer(ask(step))
        assert isinstance(reply, FrameReply)
        assert dot_place((reply, pixels)) == reply.step == step
        assert (reply.episode, reply.total, reply.ended) == (0, str(step), step == 12)
    assert dot_place(replays.answer(ask(2, sample=1))) == 2
    assert dot_place(replays.answer(ask(3, sample=2))) == 3
    reply, _ = replays.answer(ask(2, columns=8, lines=3))
    assert isinstance(reply, FrameReply)
    assert (reply.columns, reply.lines) == (8, 6)


def test_steps_backwards_are_kept_and_memory_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replays, started = make_replays(train_dots(tmp_path)), list[int]()
    start = replays._start

    def count_start(request: ReplayRequest) -> None:
        started.append(request.step)
        start(request)

    monkeypatch.setattr(replays, "_start", count_start)
    for step in (12, 11, 5, 0, 12):
        replays.answer(ask(step))
    assert BACK > 12
    assert started == [12]
    size = len(replays.answer(ask(0))[1])
    monkeypatch.setattr(replay_server, "MAX_BYTES", 3 * size)
    for step in (12, 0, 12, 0):
        assert dot_place(replays.answer(ask(step, sample=1))) == step
    assert len(replays._kept) <= 3
    assert replays._bytes == size * len(replays._kept)


def test_long_way_forwards_is_not_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay_server, "BACK", 2)
    replays = make_replays(train_dots(tmp_path))
    replays.answer(ask(0))
    replays.answer(ask(10))
    assert [request.step for request in replays._kept] == [0, 8, 9, 10]


def test_frames_that_are_drawn_twice_count_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay_server, "BACK", 2)
    replays = make_replays(train_dots(tmp_path))
    for step in (10, 5, 11):  # before step 11, steps 9 and 10 are drawn again
        size = len(replays.answer(ask(step))[1])
    assert sorted(request.step for request in replays._kept) == [3, 4, 5, 8, 9, 10, 11]
    assert replays._bytes == size * len(replays._kept)


def test_impossible_requests_are_explained(tmp_path: Path) -> None:
    run = train_dots(tmp_path)
    replays = make_replays(run)
    for request, text in (
        (ask(13), "sample 0 of iteration 1 has no step 13"),
        (ask(-1), "has no step -1"),
        (ask(0, sample=9), "iteration 1 has no sample 9"),
        (ask(0, iteration=7), "the samples of iteration 7 have been deleted"),
        (ask(2, sample=2), ""),
        (ask(4, sample=2), "the state after the last step is not stored, because the rollout ends there"),
        (ask(3, sample=2), ""),
    ):
        reply, _ = replays.answer(request)
        assert text in reply.text if text else isinstance(reply, FrameReply), reply
    assert [type(replays.answer(ask(0, columns=-1, lines=0))[0])] == [FrameReply]


def test_reason_replaces_only_the_frames_after_a_difference(tmp_path: Path) -> None:
    replays = make_replays(train_dots(tmp_path, "tests.gym_envs:Wanders-v0"))
    for step in (4, 8, 2, 3, 0):
        reply, _ = replays.answer(ask(step))
        differs = isinstance(reply, ErrorReply) and "differs from the stored one at step 3" in reply.text
        assert differs == (step >= 3)


def test_failing_environment_is_explained(tmp_path: Path) -> None:
    run = train_dots(tmp_path)
    text = run.config.read_text(encoding="utf-8")
    run.config.write_text(text.replace("[gym.env_kwargs]\n", "[gym.env_kwargs]\nbreaks_at = 3\n"), encoding="utf-8")
    replays = make_replays(run)
    for step in (1, 5, 2):
        reply, _ = replays.answer(ask(step))
        assert isinstance(reply, ErrorReply) == (step > 2)
        assert step < 3 or "render(): ZeroDivisionError: the brush broke" in reply.text


def test_process_imports_no_torch_and_answers_each_request(tmp_path: Path) -> None:
    gym = {"vectorization": "sync"}
    train(make_config("CartPole-v1", total_steps=40, num_steps=20, gym=gym), tmp_path, "pole")
    (tmp_path / "torch.py").write_text("raise ImportError('torch is not needed')")
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    requests: list[Request] = [ask(0), ask(1), PromptRequest("hello", True)]
    replies, errors = serve(Run(tmp_path / "pole"), requests, cwd=ROOT, env={"PYTHONPATH": path}, command=SERVE)
    assert [type(reply) for reply in replies] == [Ready, FrameReply, FrameReply]
    assert errors.startswith("stdin: expected a message of type ReplayRequest, got b'")
    assert errors.count("\n") == 1


def test_code_of_the_configuration_needs_permission(tmp_path: Path) -> None:
    """A file that config.toml names is imported only with --trust."""
    world, ran = tmp_path / "world.py", tmp_path / "ran"
    world.write_text(f"import pathlib\npathlib.Path({str(ran)!r}).touch()\nfrom tests.pictures import Dot\n")
    run = train_dots(tmp_path)
    text = run.config.read_text(encoding="utf-8")
    run.config.write_text(text.replace("tests.pictures:Dot-v0", f"{world}:Dot"), encoding="utf-8")
    (ready, reply), _ = serve(run, [ask(0)], cwd=ROOT, command=SERVE)
    assert ready.code == f"{world}:Dot"
    assert "is imported only with --trust" in reply.text
    assert not ran.exists()
    (ready, reply), _ = serve(run, [ask(0)], cwd=ROOT, command=(*SERVE, "--trust"))
    assert (ready.code, type(reply)) == ("", FrameReply)
    assert ran.exists()


def test_flags_and_runs_are_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = train_dots(tmp_path)
    for flags in (["--iteration", "1"], ["--sample", "1"], ["--json"]):
        assert main(["inspect", str(run.path), "--serve", *flags]) == 2
        assert f"{flags[0]} has no effect with --serve; omit it" in capsys.readouterr().err
    assert main(["inspect", str(run.path), "--trust"]) == 2
    assert "--trust has no effect without --serve" in capsys.readouterr().err


def test_samples_of_older_versions_are_explained(tmp_path: Path) -> None:
    run = train_dots(tmp_path)
    stored = samples.read(run, 1)
    samples.write(run, type(stored)(**{**vars(stored), "record": None}))
    assert "the starts of the episodes are not stored, because an older version" in str(
        make_replays(run).answer(ask(0))[0]
    )
    samples.write(run, type(stored)(**{**vars(stored), "actions": None}))
    assert "no observations, because an older version" in str(make_replays(run).answer(ask(0))[0])
