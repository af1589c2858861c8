"""Tests the screen that shows a policy, with a real policy, and with child processes that send what a test needs."""

from __future__ import annotations

import asyncio
import math
import os
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from rich.segment import Segment
from textual.app import App
from textual.pilot import Pilot
from textual.widgets import Input, Static

from ppo_unified import run as train
from ppo_unified.runs.folder import Run
from ppo_unified.runs.play_messages import FrameReply, FrameRequest, Ready, decode, encode, picture_bytes
from ppo_unified.terminal.chat import format_blocks
from ppo_unified.text import display_width
from tests.envs.gym.test_vector import make_config
from tests.scenes import player_command
from tui.status_row import list_hints
from tui.watch import player
from tui.watch.chat import ChatView, shorten_prompt
from tui.watch.frames import has_backlog
from tui.watch.picture import Picture, character_lines, half_block_lines, text_lines
from tui.watch.player import play_command
from tui.watch.screen import WatchScreen
from tui.watch.speed import format_speed, frame_interval_s, steps_due

ROOT = Path(__file__).resolve().parents[2]
Act = Callable[[Pilot[None], WatchScreen], Coroutine[Any, Any, None]]

FRAMES = """
send(Ready(False, "latest checkpoint, step 8"))
for n, request in enumerate(requests):
    send(FrameReply({columns}, {lines}, {text!r}, 0.02, 1, n, "nan", "0", "[0.5 " + 40 * "1 ", False, False,
                    request.greedy, "latest checkpoint, step 8"), {columns} * {lines} * 3 * b"\\x80")
"""
CHAT = """
send(Ready(True, "best checkpoint, step 5"))
for request in requests:
    if request.prompt == "too long":
        send(ErrorReply("expected a prompt of at most 2 tokens, got 3"))
    else:
        how = "greedy" if request.greedy else "sampled"
        send(PromptReply(request.prompt or "from the file", "mine", how + ", score 1, KL 0.5", "theirs", how, "note"))
"""


class Host(App[None]):
    """A minimal app that shows the screen."""

    def __init__(self, command: Sequence[str], color: bool = True) -> None:
        super().__init__()
        self.watch_screen = WatchScreen("a[b]名", command, color)

    def on_mount(self) -> None:
        self.push_screen(self.watch_screen)


def screen_text(app: App[Any]) -> str:
    return "\n".join(strip.text for strip in app.screen._compositor.render_strips(app.size))


async def wait_until(pilot: Pilot[None], condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, screen_text(pilot.app)
        await pilot.pause(0.02)


async def shows(pilot: Pilot[None], *texts: str) -> None:
    """Wait until the screen shows all texts. Line breaks and the number of spaces do not matter."""
    await wait_until(pilot, lambda: all(join_words(text) in join_words(screen_text(pilot.app)) for text in texts))


def join_words(text: str) -> str:
    return " ".join(text.split())


def drive(command: Sequence[str], act: Act, size: tuple[int, int] = (80, 24), color: bool = True) -> None:
    """Show the screen, call `act`, and check that the child process ends with the screen."""

    async def session() -> None:
        app = Host(command, color)
        async with app.run_test(size=size) as pilot:
            await wait_until(pilot, lambda: app.screen is app.watch_screen and app.watch_screen._player)
            child = app.watch_screen._player
            async with asyncio.timeout(120):
                await act(pilot, app.watch_screen)
            await pilot.press("escape")
            await wait_until(pilot, lambda: app.screen is not app.watch_screen)
            assert child is not None
            await wait_until(pilot, lambda: child._process is None or child._ended)

    asyncio.run(session())


# frames


def test_backlog_is_output_that_the_terminal_does_not_accept(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()  # the kernel passes the output of a pseudo-terminal on later, so it may accept more
    os.set_blocking(writing, False)
    with open(reading, "rb", buffering=0) as terminal, open(writing, "wb", buffering=0) as stream:
        monkeypatch.setattr("sys.__stderr__", stream)
        assert not has_backlog()
        while stream.write(b"x" * 4096):
            pass
        assert has_backlog()
        while has_backlog():
            assert terminal.read(4096)


@pytest.fixture(scope="module")
def cartpole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The folder of a barely trained run."""
    folder = tmp_path_factory.mktemp("runs")
    train(make_config("CartPole-v1", total_steps=16), folder, "pole")
    return Run(folder / "pole")


def test_policy_is_shown_step_by_step(cartpole: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))

    async def act(pilot: Pilot[None], screen: WatchScreen) -> None:
        await shows(pilot, "Loading the policy ...")
        assert screen.check_action("pause", ()) is False
        await shows(pilot, "playing", "1x", "episode 1", "best checkpoint, step 28", "greedy", "▀")
        view = screen._frames()
        await pilot.press("space", "n")
        await shows(pilot, "paused", "episode 2  step 0  return 0 ")
        before = view.frame
        await pilot.pause(0.1)
        assert view.frame is before
        for key, step in (("full_stop", 1), ("right", 2)):
            await pilot.press(key)
            await shows(pilot, f"step {step}  return {step}  reward 1  action ")
        await pilot.press("g")
        await shows(pilot, "sampled", "episode 3  step 0")
        await pilot.resize_terminal(120, 40)
        await wait_until(pilot, lambda: view.frame and view.frame.lines == 2 * view.query_one(Picture).size.height)
        await shows(pilot, "episode 3  step 0")
        await pilot.press("plus", "plus", "plus", "plus", "space")
        await shows(pilot, "playing  max", "episode 4")

    drive(play_command(cartpole), act)


@pytest.mark.parametrize("color", [True, False])
@pytest.mark.parametrize(
    ("columns", "lines", "text"), [(3, 2, ""), (78, 2, ""), (0, 0, "\n   |名" + 99 * "x" + "\n|\n")]
)
def test_frames_of_any_size_are_centered(columns: int, lines: int, text: str, color: bool) -> None:
    async def act(pilot: Pilot[None], screen: WatchScreen) -> None:
        await shows(pilot, "return nan", "reward 0", "action [0.5")
        rows = screen_text(pilot.app).splitlines()
        assert len(rows) == 24
        assert rows[0].startswith(" a[b]名  latest checkpoint, step 8  greedy")
        assert rows[-2].rstrip().endswith("~")  # the action is cut
        if text:
            assert rows[10].startswith("   |名xxx")
            assert rows[10].endswith("x~")
            assert rows[11].strip() == "|"

    drive(player_command(FRAMES.format(columns=columns, lines=lines, text=text)), act, color=color)


def test_keys_take_effect_after_the_awaited_frame() -> None:
    sent: list[FrameRequest] = []

    async def act(pilot: Pilot[None], screen: WatchScreen) -> None:
        await shows(pilot, "playing")
        view = screen._frames()
        await pilot.press("space")
        await wait_until(pilot, lambda: not view._waiting)
        view._send = sent.append  # replies arrive when the test calls `show`
        await pilot.press("full_stop", "full_stop", "right", "minus", "minus", "minus")
        assert view.frame is not None
        assert len(sent) == 1
        for _ in range(3):
            view.show(view.frame, b"")
        assert [(request.steps, request.new_episode) for request in sent] == [(1, False)] * 3
        await pilot.press("full_stop", "full_stop", "g")
        assert screen_text(pilot.app).splitlines()[0].rstrip().endswith("step 8  greedy (next episode: sampled)")
        view.show(replace(view.frame, ended=True), b"")
        await shows(pilot, "paused  0.25x  episode 1 ended  step")
        view.show(replace(view.frame, cut=True), b"")
        assert view._status().startswith(
            "paused  0.25x  episode 1 cut, because the environment has no time limit  step"
        )
        view._waiting, view._requested = True, time.monotonic() - 3.4
        assert view._status().startswith("waiting for the environment ... 3 s  0.25x")

    drive(player_command(FRAMES.format(columns=0, lines=0, text="x")), act)


def test_speed_keeps_the_rate_of_the_environment() -> None:
    assert frame_interval_s(0.25, 1, False) == 0.25
    assert frame_interval_s(0.02, 1, False) == pytest.approx(0.04)  # two steps, because of 30 frames per second
    assert frame_interval_s(0.02, 0.25, False) == pytest.approx(0.08)
    assert frame_interval_s(0.02, math.inf, False) == frame_interval_s(0, 1, False) == pytest.approx(1 / 30)
    assert [frame_interval_s(0.02, speed, True) for speed in (0.5, 1, 2)] == [2, 1, 0.5]
    assert [steps_due(elapsed, 0.02, 1) for elapsed in (0, 0.02, 0.041, 0.4)] == [1, 1, 2, 20]
    assert (steps_due(0.25, 0.25, 1), steps_due(0.04, 0.02, 8)) == (1, 16)
    assert min(steps_due(0.1, 0.1, math.inf), steps_due(0.1, 0, 1)) > 1000
    assert [format_speed(speed) for speed in (0.25, 8.0, math.inf)] == ["0.25x", "8x", "max"]


def test_pixels_become_half_blocks_or_characters() -> None:
    black, white, red = (0, 0, 0), (255, 255, 255), (255, 0, 0)
    pixels = np.array([[black, black, white, red], [black, black, red, red]], np.uint8)
    (row,) = half_block_lines(pixels)
    assert [segment.text for segment in row] == ["  ", "▀", " "]
    colors = [(style.color.triplet, style.bgcolor.triplet) for _, style, _ in row if style]  # type: ignore[union-attr]
    assert colors == [(black, black), (white, red), (red, red)]
    assert character_lines(pixels) == [[Segment("  @-")], [Segment("  --")]]
    assert text_lines("observation " + "1 " * 20, 20, 9)[1][0].text.startswith("1 1 1")  # a single line is wrapped
    assert [row[0].text for row in text_lines("a\n b\nc\nd", 5, 3)] == ["a ", " b", "~ "]


def test_only_lines_that_change_are_drawn_again(monkeypatch: pytest.MonkeyPatch) -> None:
    picture, drawn = Picture(), []
    monkeypatch.setattr(picture, "refresh", lambda *regions: drawn.append([region.y for region in regions]))
    for rows in (["a", "b"], ["a", "c"], ["a", "c"], ["a"]):
        picture.show([[Segment(row)] for row in rows])
    assert drawn == [[], [1], []]


# language models


def test_conversation_shows_prompts_replies_and_errors() -> None:
    async def act(pilot: Pilot[None], screen: WatchScreen) -> None:
        await shows(pilot, "best checkpoint, step 5  greedy", "Ctrl-N for a held-out prompt")
        labels = [hint.label for hint in list_hints(pilot.app, screen)]
        assert {"Send", "Earlier prompt", "Later prompt", "Scroll up", "Scroll down", "Greedy/sampled"} <= {*labels}

        def typed() -> str:
            return screen.query_one(Input).value

        await pilot.press(*"quit?", "enter")
        await shows(pilot, "prompt     quit?", "policy     mine", "score 1, KL 0.5", "reference  theirs", "note")
        await pilot.press("ctrl+g", "ctrl+n")
        assert typed() == ""
        await shows(pilot, "step 5  sampled", "prompt     from the file", "sampled, score 1")
        await pilot.press(*"too", "space", *"long", "enter")
        await shows(pilot, "prompt     too long", "error: expected a prompt of at most 2 tokens, got 3")
        await pilot.press("x", "up", "up")
        assert typed() == "quit?"
        await pilot.press("down", "down", "down")
        assert typed() == "x"
        await pilot.press("pageup")
        await shows(pilot, "prompt     quit?")
        await pilot.resize_terminal(120, 40)
        await wait_until(
            pilot, lambda: any(row.split() == ["mine", "theirs"] for row in screen_text(pilot.app).split("\n"))
        )

    drive(player_command(CHAT), act)


def test_waiting_for_a_response_shows_the_time() -> None:
    async def act(pilot: Pilot[None], screen: WatchScreen) -> None:
        await shows(pilot, "Type a prompt")
        view = screen.query_one(ChatView)
        await pilot.press("a", "enter", "b", "enter")
        await shows(pilot, "generating ... 0 s")
        assert screen.query_one(Input).value == "b"  # it can be sent later
        view._requested = time.monotonic() - 7.4
        view._report_progress()
        assert str(view.query_one("#state", Static).content) == "generating ... 7 s"
        await pilot.press("ctrl+g")
        assert screen_text(pilot.app).splitlines()[0].rstrip().endswith("step 5  greedy (next prompt: sampled)")
        assert screen._player is not None
        assert screen._player._process is not None
        screen._player._process.kill()
        await shows(
            pilot, "Stopped watching a[b]名: the process was killed", "prompt a", "error: no response", "sampled"
        )
        assert screen.query_one(Input).value == "b"
        labels = [hint.label for hint in list_hints(pilot.app, screen)]
        assert "Scroll up" in labels
        assert "Send" not in labels

    drive(player_command('send(Ready(True, "step 5"))\nnext(requests)\nlist(requests)'), act)


def test_long_prompts_are_shortened() -> None:
    for columns in (30, 80):
        assert shorten_prompt("one\n two", columns, 3) == "one\n two"
        for prompt in ("word " * 100_000, "名" * 100_000, "a\n" * 100_000):
            rows = format_blocks([], columns, prompt=shorten_prompt(prompt, columns, 3))
            assert len(rows) == 3
            assert rows[-1].endswith(" ...")
            assert max(map(display_width, rows)) <= columns


# errors


@pytest.mark.parametrize(
    ("body", "texts"),
    [
        ("print('a: b\\x1b[31mroke', file=sys.stderr); sys.exit(2)", ["ended with exit code 2.", "a: broke"]),
        ("os.kill(os.getpid(), signal.SIGKILL)", ["the process was killed by SIGKILL."]),
        ("print('hello', flush=True); time.sleep(600)", ["invalid message: expected a message, got b'hello"]),
        ("print('[1]', flush=True); time.sleep(600)", ["invalid message: expected a message, got b'[1]"]),
        ("send(Ready(False, 'x')); next(requests); raise ValueError('the world broke')", ["the world broke", "code 1"]),
        ("send(FrameReply(9999, 9999, '', 1, 1, 1, '', '', '', False, False, True, ''))", ["1048576 pixels"]),
        ("os.close(1); time.sleep(600)", ["killed by SIGKILL"]),
    ],
)
def test_end_of_the_process_is_explained(body: str, texts: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(player, "GRACE_S", 0.2)

    async def act(pilot: Pilot[None], screen: WatchScreen) -> None:
        what = "Stopped watching" if "Ready" in body else "Cannot watch"
        await shows(pilot, f"{what} a[b]名:", "Press Esc to return.")
        text = join_words(screen_text(pilot.app))
        assert all(part in text for part in texts), text
        assert screen.check_action("pause", ()) is False
        await wait_until(pilot, lambda: "Pause" not in screen_text(pilot.app))

    drive(player_command(body), act)


def test_missing_program_is_explained() -> None:
    async def act(pilot: Pilot[None], screen: WatchScreen) -> None:
        await shows(pilot, "/nowhere/python: cannot start the process (No such file or directory)")

    drive(["/nowhere/python"], act)


def test_hanging_process_is_killed_with_its_children(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(player, "GRACE_S", 0.2)
    found = tmp_path / "pid"
    body = f"""
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if not (pid := os.fork()):
    time.sleep(600)
open({str(found)!r}, "w").write(str(pid))
time.sleep(600)
"""

    async def act(pilot: Pilot[None], screen: WatchScreen) -> None:
        await wait_until(pilot, lambda: found.exists() and found.read_text())
        assert screen._player is not None
        assert screen._player._process is not None
        assert os.getpgid(screen._player._process.pid) != os.getpgid(0)  # Ctrl-C does not reach it

    drive(player_command(body), act)
    deadline, pid = time.monotonic() + 10, int(found.read_text())
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline


# messages


def test_messages_are_validated() -> None:
    request = FrameRequest(80, 24, True, True, False, 3, 0.5)
    ready = Ready(True, "best checkpoint, step 1 \ud800")
    assert [decode(encode(message)) for message in (request, ready)] == [request, ready]
    for line in (b"", b"1", b"[]", b"{}", b'{"message": "Run"}', b'{"message": "Ready"}', b"\xff", b'{"message": []}'):
        with pytest.raises(ValueError, match="expected a message"):
            decode(line)
    with pytest.raises(ValueError, match="expected a message of type PromptRequest"):
        decode(encode(request), "PromptRequest")
    for columns, lines in ((-1, 5), (1 << 20, 2)):
        with pytest.raises(ValueError, match="pixels"):
            picture_bytes(FrameReply(columns, lines, "", 1, 1, 1, "", "", "", False, False, True, ""))
