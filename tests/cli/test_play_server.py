"""Tests `play --serve`: its replies, newer checkpoints, and environments that fail or hang."""

from __future__ import annotations

import argparse
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

from ppo_unified import run as train
from ppo_unified.cli import play_server
from ppo_unified.cli.main import main
from ppo_unified.cli.play import add_arguments
from ppo_unified.cli.play_server import Episodes
from ppo_unified.cli.policy import LoadedPolicy, load_policy
from ppo_unified.config.spec import Exchange, Reply
from ppo_unified.errors import UsageError
from ppo_unified.runs.folder import Run
from ppo_unified.runs.play_messages import ErrorReply, FrameRequest, PromptRequest, Ready, decode, encode
from ppo_unified.training import checkpoint
from tests.cli.commands import serve
from tests.cli.test_policies import toy
from tests.envs.gym.test_vector import make_config

ROOT = Path(__file__).resolve().parents[2]


def ask(steps: int = 1, new: bool = False, greedy: bool = True, seconds: float = 60.0) -> FrameRequest:
    return FrameRequest(32, 9, greedy, True, new, steps, seconds)


def load_episodes(run: Run, *flags: str) -> Episodes:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    options = parser.parse_args([str(run.path), *flags])
    return Episodes(load_policy(options), options)


def test_episodes_advance_as_requested(tmp_path: Path) -> None:
    train(toy("tests.pictures:Dot-v0"), tmp_path, "dot")
    episodes = load_episodes(Run(tmp_path / "dot"))
    seen = []
    for request in (ask(), ask(3), ask(0), ask(99), ask(9), ask(seconds=0, steps=9), ask(new=True), ask(greedy=False)):
        episodes.advance(request)
        frame, pixels = episodes.reply(request)
        seen.append((frame.episode, frame.step, frame.total, frame.reward, frame.ended, frame.greedy))
    assert seen[:4] == [
        (1, 0, "0", "", False, True),
        *[(1, 3, "3", "1", False, True)] * 2,
        (1, 12, "12", "1", True, True),
    ]
    assert seen[4:6] == [(2, 0, "0", "", False, True), (2, 1, "1", "1", False, True)]
    assert seen[6:] == [(3, 0, "0", "", False, True), (4, 0, "0", "", False, False)]
    assert (frame.columns, frame.lines, frame.seconds) == (24, 18, 0.04)  # the picture has 16 x 12 pixels
    assert np.frombuffer(pixels, np.uint8).reshape(18, 24, 3)[9, 1].tolist() == [255, 255, 255]
    episodes.close()


def test_next_episode_uses_a_newer_checkpoint(tmp_path: Path) -> None:
    train(toy("CartPole-v1"), tmp_path, "pole")
    run = Run(tmp_path / "pole")
    latest, best = load_episodes(run, "--checkpoint", "latest"), load_episodes(run)
    fixed_step = checkpoint.steps(run)[0]
    fixed = load_episodes(run, "--checkpoint", str(fixed_step))
    policy = latest._loaded.adapter.policy
    weights = {name: torch.full_like(value, 0.5) for name, value in policy.state_dict().items()}

    def next_checkpoints() -> list[str]:
        for episodes in (latest, best):
            episodes.advance(ask(new=True))
        return [episodes.reply(ask())[0].checkpoint for episodes in (latest, best)]

    first = next_checkpoints()
    assert first[1].startswith("best checkpoint, step ")
    checkpoint.save(run, weights, {}, checkpoint.Meta(step=500, score=-1.0))
    assert next_checkpoints() == ["latest checkpoint, step 500", first[1]]
    fixed.advance(ask(new=True))
    assert fixed.reply(ask())[0].checkpoint == f"step {fixed_step}"
    assert all((value == 0.5).all() for value in policy.state_dict().values())
    folder = checkpoint.save(run, weights, {}, checkpoint.Meta(step=600, score=9e9, best=True))
    assert next_checkpoints() == ["latest checkpoint, step 600", "best checkpoint, step 600"]
    (checkpoint.save(run, weights, {}, checkpoint.Meta(step=700)) / checkpoint.POLICY).unlink()
    folder.rename(folder.with_suffix(".damaged"))
    assert next_checkpoints() == ["latest checkpoint, step 600", "best checkpoint, step 600"]
    for episodes in (latest, best, fixed):
        episodes.close()


def test_invalid_requests_and_flags_are_usage_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(toy("CartPole-v1"), tmp_path, "pole")
    replies, errors = serve(Run(tmp_path / "pole"), [PromptRequest("hello", True)], cwd=ROOT)
    assert [type(reply) for reply in replies] == [Ready]
    assert errors.startswith("stdin: expected a message of type FrameRequest, got b'")
    assert errors.count("\n") == 1
    for flags in (["--episodes", "3"], ["--sampled"], ["--fps", "3"]):
        assert main(["play", str(tmp_path / "pole"), "--serve", *flags]) == 2
        assert f"{flags[0]} has no effect with --serve; omit it" in capsys.readouterr().err


@pytest.mark.parametrize("reason", ["the prompt is too long", ""])
def test_failing_held_out_prompt_does_not_end_the_chat(reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class FailingChat:
        def answer(self, prompt: str) -> Exchange:
            reply = Reply(prompt, 1, True, None)
            return Exchange(prompt, reply, reply, 0.0, "")

        def examples(self, count: int) -> Iterator[Exchange]:
            yield from ()
            if reason:
                raise UsageError(reason)

    monkeypatch.setattr(play_server, "load", lambda _: lambda *_: FailingChat())
    loaded = LoadedPolicy(Run(Path("x")), cast("Any", argparse.Namespace(kind="llm")), cast("Any", None), 7, "best")
    requests, stream = [PromptRequest(prompt, True) for prompt in (None, None, "a\ud800")], io.BytesIO()
    play_server._serve_chat(loaded, argparse.Namespace(seed=0), map(encode, requests), stream)
    _, *errors, reply = map(decode, stream.getvalue().splitlines())
    assert errors == [ErrorReply(reason or "there are no held-out prompts; type a prompt")] * 2
    assert reply.policy == "a?"


def test_failing_environment_ends_the_process_with_one_line(tmp_path: Path) -> None:
    train(make_config("tests.faulty_envs:Faulty-v0", total_steps=14, gym={"vectorization": "sync"}), tmp_path, "faulty")
    run = Run(tmp_path / "faulty")
    replies, errors = serve(break_step(run, "raise"), [ask()] * 9, cwd=ROOT)
    assert [reply.step for reply in replies[1:]] == [0, 1, 2]
    assert errors.count("\n") == 1
    assert "step() at step 3" in errors
    assert "the world broke" in errors


@pytest.mark.exhaustive
def test_hanging_process_ends_when_stdin_is_closed(tmp_path: Path) -> None:
    train(make_config("tests.faulty_envs:Faulty-v0", total_steps=14, gym={"vectorization": "sync"}), tmp_path, "faulty")
    replies, errors = serve(break_step(Run(tmp_path / "faulty"), "hang"), [ask()] * 4, cwd=ROOT, answered=3)
    assert (len(replies), errors) == (4, "")


def break_step(run: Run, fault: str) -> Run:
    """Let the third step of the run's environment fail."""
    text, table = run.config.read_text(encoding="utf-8"), "[gym.env_kwargs]\n"
    assert table in text
    changed = f'{table}place = "step"\nfault = "{fault}"\nafter = 3\n'
    run.config.write_text(text.replace(table, changed), encoding="utf-8")
    return run
