"""Tests the pane with the frame of a stored step, with a real run and with child processes that send given messages."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from textual.app import App, ComposeResult
from textual.pilot import Pilot

from ppo_unified import run as train
from ppo_unified.runs.folder import Run
from tests.envs.gym.test_vector import make_config
from tests.scenes import player_command
from tests.tui.test_watch import ROOT, screen_text, shows, wait_until
from tui.inspector.frame_pane import FramePane, has_frames
from tui.watch.player import replay_command

Act = Callable[[Pilot[None], FramePane], Coroutine[Any, Any, None]]
Command = Callable[[Run, bool], list[str]]

TEXTS = """
send(Ready(False, ""))
for request in requests:
    if request.step == 9:
        send(ErrorReply("the replayed observation differs from the stored one at step 9"))
    elif request.step == 5:
        time.sleep(2)
    else:
        text = f"iteration {request.iteration} sample {request.sample} step {request.step} "
        text += f"{request.columns}x{request.lines}"
        send(FrameReply(0, 0, text, 0.02, request.sample, request.step, "0", "", "", False, False, False, ""))
"""
CODE = """
trust = "--trust" in sys.argv
send(Ready(False, "", "" if trust else "world.py:[b]World"))
for request in requests:
    send(FrameReply(0, 0, "trusted", 0.02, 0, 0, "0", "", "", False, False, False, "") if trust else ErrorReply("no"))
"""


class Host(App[None]):
    """A minimal app that shows the pane."""

    def __init__(self, command: Command, color: bool) -> None:
        super().__init__()
        self.pane = FramePane(color, command=command)

    def compose(self) -> ComposeResult:
        yield self.pane


def drive(command: Command, act: Act, size: tuple[int, int] = (60, 16), color: bool = True) -> None:
    """Show the pane, call `act`, and check that the child process ends with the pane."""

    async def session() -> None:
        app = Host(command, color)
        async with app.run_test(size=size) as pilot:
            async with asyncio.timeout(60):
                await act(pilot, app.pane)
            child = app.pane._player
            await app.pane.remove()
            await wait_until(pilot, lambda: child is None or child._ended)

    asyncio.run(session())


def send(body: str) -> Command:
    return lambda run, trust: [*player_command(body), *(["--trust"] if trust else [])]


@pytest.fixture(scope="module")
def dots(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run with samples of a white dot, which has moved by one column at each step."""
    folder = tmp_path_factory.mktemp("runs")
    gym = {"vectorization": "sync"}
    train(make_config("tests.pictures:Dot-v0", num_envs=1, num_steps=30, total_steps=25, gym=gym), folder, "dots")
    return Run(folder / "dots")


def test_frames_follow_the_cursor_in_both_directions(dots: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))

    def dot_place(app: App[Any]) -> int:
        row = next((row for row in screen_text(app).splitlines() if "@" in row), "")
        return row.find("@")

    async def act(pilot: Pilot[None], pane: FramePane) -> None:
        pane.show(dots, 1, 0, 0)
        await shows(pilot, "Frames need code that the run's config.toml names: tests.pictures:Dot-v0")
        assert pane.needs_permission
        pane.allow_code()
        assert not pane.needs_permission
        places = []
        for step in (0, 1, 2, 1, 12, 11, 0):
            pane.show(dots, 1, 0, step)
            await wait_until(pilot, lambda: pane._sent is None and pane._is_ready)
            await pilot.pause()
            places.append(dot_place(pilot.app))
        assert [(place - places[0]) // 2 for place in places] == [0, 1, 2, 1, 12, 11, 0]
        pane.show(dots, 1, 2, 4)
        await shows(pilot, "No frame: the state after the last step is not stored, because the rollout ends there.")

    drive(replay_command, act, size=(32, 12), color=False)


def test_only_the_newest_step_is_requested_after_a_wait(dots: Run) -> None:
    async def act(pilot: Pilot[None], pane: FramePane) -> None:
        for step in range(4):
            pane.show(dots, 3, 2, step)
        await shows(pilot, "iteration 3 sample 2 step 3 60x16")
        sent = [pane._sent]
        pane.show(dots, 3, 2, 3)  # nothing to do
        assert sent == [pane._sent] == [None]
        await pilot.resize_terminal(40, 10)
        await shows(pilot, "step 3 40x10")
        pane.show(dots, 3, 2, 9)
        await shows(pilot, "No frame: the replayed observation differs from the stored one at step 9.")
        pane.show(dots, 3, 2, 8)
        await shows(pilot, "step 8 40x10")

    drive(send(TEXTS), act)


def test_stale_frame_is_hidden_while_the_next_one_is_awaited(dots: Run) -> None:
    async def act(pilot: Pilot[None], pane: FramePane) -> None:
        pane.show(dots, 1, 0, 1)
        await shows(pilot, "step 1")
        pane.show(dots, 1, 0, 5)
        await shows(pilot, "Replaying the episode ... ")
        assert "step 1" not in screen_text(pilot.app)

    drive(send(TEXTS), act)


def test_code_is_imported_only_with_permission(dots: Run, tmp_path: Path) -> None:
    async def act(pilot: Pilot[None], pane: FramePane) -> None:
        pane.show(dots, 1, 0, 1)
        await shows(pilot, "names: world.py:[b]World. If you trust it, press f to show them.")
        pane.show(dots, 1, 0, 2)
        assert pane._player is None
        pane.allow_code()
        await shows(pilot, "trusted")
        pane.show(Run(tmp_path / "other"), 1, 0, 2)  # permission is for one run
        await shows(pilot, "If you trust it")

    drive(send(CODE), act)


def test_end_of_the_process_is_explained(dots: Run) -> None:
    """Another process starts for another sample, but not for another step of the same sample."""

    async def act(pilot: Pilot[None], pane: FramePane) -> None:
        for sample, step, started in ((0, 1, 1), (0, 2, 1), (1, 2, 2)):
            pane.show(dots, 1, sample, step)
            assert pane._players == started
            await wait_until(pilot, lambda: pane._player is None)
            await shows(pilot, "No frames: the process ended with exit code 3.", "the world [b]broke")

    drive(send("print('the world [b]broke', file=sys.stderr); sys.exit(3)"), act)


def test_kinds_with_frames() -> None:
    assert [has_frames(kind) for kind in ("gym", "llm", "unknown")] == [True, False, False]
