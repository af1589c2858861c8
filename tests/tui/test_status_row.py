"""Tests the last row of each screen: keys and messages; also confirmations and the bell."""

from __future__ import annotations

import sys
import time
from argparse import ArgumentParser
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from textual.app import App
from textual.notifications import Notification
from textual.pilot import Pilot

from ppo_unified.cli import tui as cli_tui
from ppo_unified.runs import samples
from ppo_unified.runs.folder import Run
from tests.scenes import hold_locks, screen_text
from tests.tui.test_app import drive, make_run, run_list, wait_until
from tui import app as program
from tui import messages
from tui import store as store_module
from tui.action import NEEDS
from tui.actions import ACTIONS
from tui.app import Terminal
from tui.dialogs import ConfirmDialog, TextDialog
from tui.messages import format_message
from tui.new_run.picker import Picker
from tui.notices import Notice, Notices, desktop_notification
from tui.palette import ActionProvider
from tui.runs.run_page import RunPage
from tui.runs.runs_screen import RunsScreen
from tui.status_row import Hint, StatusRow, fit_hints
from tui.store import Store

pytestmark = pytest.mark.usefixtures("shorten_ui_delays")
HEALTH = [{"name": "kl", "since": 10, "text": "policy/kl is above 0.1"}]


@pytest.fixture(autouse=True)
def _own_state(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the tests away from the user's saved state."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Create a finished run, a stopped run, and a folder with event files of another program."""
    folder = tmp_path / "runs"
    make_run(folder, "alpha", 1)
    (folder / "alpha" / "checkpoints" / f"{900:012d}").mkdir(parents=True)
    make_run(folder, "beta", 2, state="stopped")
    other = make_run(folder, "other", 3)
    for path in other.path.iterdir():
        if "tfevents" not in path.name:
            path.unlink()
    return folder


def last_rows(app: Terminal, rows: int = 1) -> str:
    """Return the last rows of the screen in one line."""
    return " ".join(" ".join(screen_text(app).split("\n")[-rows:]).split())


async def move_to(pilot: Pilot[None], app: Terminal, key: str) -> None:
    run_list(app).move_to(key)
    await wait_until(pilot, lambda: run_list(app).current is not None and run_list(app).current.key == key)  # type: ignore[union-attr]


@contextmanager
def running_trainer(run: Run) -> Iterator[None]:
    """Hold the lock of a run, as its trainer would."""
    now = time.time()
    run.write_status(replace(run.read_status(), state="running", started=now, heartbeat=now, progressed=now))
    with hold_locks([run]):
        yield


# keys


@pytest.mark.parametrize("width", [80, 200])
def test_footer_lists_what_applies_to_the_run(width: int, runs: Path) -> None:
    async def act(pilot: Pilot[None], app: Terminal) -> None:
        await move_to(pilot, app, "alpha")
        finished = last_rows(app)
        assert "R Rerun" in finished
        assert "w Watch" in finished
        assert "Stop" not in finished
        await move_to(pilot, app, "beta")
        assert "r Resume" in last_rows(app)
        assert "w Watch" not in last_rows(app)  # it has no checkpoint
        assert "Stop" not in last_rows(app)
        await move_to(pilot, app, "other")
        foreign = last_rows(app)
        assert "space Mark" in foreign
        assert not {"Rerun", "Resume", "Stop", "Watch", "Delete"} & set(foreign.split())
        assert finished.endswith("? Help q Quit")
        assert foreign.endswith("? Help q Quit")
        assert len(screen_text(app).split("\n")[-1].rstrip()) > width - 16  # no room for another key
        await move_to(pilot, app, "beta")
        run = Run(runs / "beta")
        with running_trainer(run):
            await wait_until(pilot, lambda: "s Stop" in last_rows(app))  # the state changes below the cursor
            assert "K Kill" in last_rows(app)
            assert "Resume" not in last_rows(app)
            assert "Rename" not in last_rows(app)
            await pilot.press("e")  # the key explains itself before a name is typed
            await wait_until(pilot, lambda: "Warning: Cannot rename beta: it is running." in last_rows(app))

    drive(runs, act, size=(width, 24))


def test_footer_without_runs_offers_a_new_run(tmp_path: Path) -> None:
    async def act(pilot: Pilot[None], app: Terminal) -> None:
        assert last_rows(app).startswith("n New run")
        assert not {"Open", "Mark", "Stop", "Filter", "Metrics"} & set(last_rows(app).split())

    drive(tmp_path / "runs", act, size=(200, 24))


def test_footer_follows_tabs_focus_and_clicks(runs: Path) -> None:
    async def act(pilot: Pilot[None], app: Terminal) -> None:
        for step in (100, 200):
            samples.append_responses(Run(runs / "alpha"), step, 1, [{"response": "a"}])
        await move_to(pilot, app, "alpha")
        await pilot.press("enter")
        for tab, hint in (("1", "m Metrics"), ("2", "D Differences"), ("3", "F Follow log"), ("4", "{ Older sample")):
            await pilot.press(tab)
            if tab == "4":
                await wait_until(pilot, lambda: "2 of 2 stored" in screen_text(app))
            assert hint in last_rows(app)
            assert last_rows(app).startswith("< > Tab")
            assert last_rows(app).endswith("esc Back ? Help")
        (Run(runs / "alpha").samples / samples.RESPONSES).unlink()
        samples.append_responses(Run(runs / "alpha"), 100, 1, [{"response": "a"}])
        await wait_until(pilot, lambda: "1 of 1 stored" in screen_text(app))
        assert not {"{", "}"} & set(screen_text(app))
        samples.append_responses(Run(runs / "alpha"), 200, 2, [{"response": "b"}])
        await wait_until(pilot, lambda: "{ Older sample" in last_rows(app))
        samples.append_responses(Run(runs / "alpha"), 300, 3, [{"response": "c"}])
        await wait_until(pilot, lambda: "3 of 3 stored" in screen_text(app))
        await pilot.press("left_curly_bracket")
        await wait_until(pilot, lambda: "{ } Sample" in last_rows(app))
        for column, tab in ((1, "log"), (3, "samples")):  # a click on '<', then on '>'
            await pilot.click(offset=(column, 23))
            assert isinstance(app.screen, RunPage)
            assert app.screen.tab == tab
        await pilot.press("escape", "f")
        await wait_until(pilot, lambda: "n Next metric" in last_rows(app))
        await pilot.press("escape")
        column = screen_text(app).split("\n")[-1].index("n New run")
        await pilot.click(offset=(column + 3, 23))
        assert isinstance(app.screen, Picker)
        assert last_rows(app).endswith("esc Cancel f1 Help")  # the search box consumes "?"
        await pilot.press("enter")
        assert last_rows(app).startswith("^s Start")
        assert last_rows(app).endswith("esc Cancel ? Help")

    drive(runs, act, size=(80, 24))


def test_help_and_palette_know_what_applies(runs: Path) -> None:
    async def act(pilot: Pilot[None], app: Terminal) -> None:
        await move_to(pilot, app, "alpha")
        labels = {str(hit.prompt) async for hit in ActionProvider(app.screen).discover() if hasattr(hit, "prompt")}
        assert "Rerun  (R)" in labels
        assert "Stop  (s)" not in labels
        await pilot.press("question_mark")
        assert isinstance(app.screen, TextDialog)
        body = " ".join(str(app.screen.body).split())
        assert "stop the run (needs an active run)" in body
        assert "start a new run (needs" not in body
        await pilot.press("escape", "s")  # the key explains itself
        assert "Cannot stop alpha: it is finished." in last_rows(app)

    drive(runs, act)


def test_hints_never_lose_a_word_and_keep_help() -> None:
    hints = [Hint("n", "n", "New run", "", 1), Hint("a", "a", "Mark all", "", 9), Hint("p", "p", "Pin", "", 9)]
    hints += [Hint("q", "q", "Quit", "", 0)]
    widths = {width: [hint.key for hint in fit_hints(hints, width)] for width in range(6, 40)}
    assert widths[6] == ["q"]
    assert widths[17] == ["n", "q"]
    assert widths[24] == ["n", "p", "q"]
    assert widths[39] == ["n", "a", "p", "q"]


def test_every_condition_of_an_action_is_known() -> None:
    assert {action.needs for action in ACTIONS} - {""} <= NEEDS.keys()


# messages


def test_messages_use_the_status_row_of_any_screen(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def act(pilot: Pilot[None], app: Terminal) -> None:
        above = screen_text(app).split("\n")[:-1]
        await pilot.press("s")
        assert "Cannot stop" in last_rows(app)
        assert screen_text(app).split("\n")[:-1] == above  # nothing is covered or moved
        await pilot.press("question_mark")
        app.show_error("the disk is full")
        await wait_until(pilot, lambda: "Error: the disk is full (+1 more, F2)" in last_rows(app))
        assert app.screen.query_one(StatusRow).display  # the row of the screen below is dimmed
        await pilot.press("escape", "n")  # seen on the next screens, too
        assert "Error: the disk is full" in last_rows(app)
        await pilot.press("escape", "f2")
        assert isinstance(app.screen, TextDialog)
        listed = str(app.screen.body)
        assert listed.index("Error: the disk is full") < listed.index("Cannot stop")
        monkeypatch.setattr(messages, "READ_S", 0.0)
        await pilot.press("escape")
        assert "n New run" in last_rows(app)

    drive(runs, act, size=(80, 24))


def test_long_errors_push_the_screen_up(runs: Path) -> None:
    text = "runs/a1/config.toml: [ppo] has no option 'clip_range'; did you mean 'clip'?\n" + "word " * 40

    async def act(pilot: Pilot[None], app: Terminal) -> None:
        await pilot.press("enter")
        assert isinstance(app.screen, RunPage)
        app.show_error(text)
        await wait_until(pilot, lambda: "... (F2: all)" in last_rows(app))
        assert last_rows(app, 3).startswith("Error: runs/a1/config.toml: [ppo]")
        await pilot.press("escape")
        assert isinstance(app.screen, RunsScreen)
        await wait_until(pilot, lambda: last_rows(app, 3).startswith("Error: runs/a1/config.toml: [ppo]"))
        assert "turn page" in screen_text(app).split("\n")[-4]
        await pilot.press("M")
        assert screen_text(app).count("word") >= 40
        await pilot.press("escape")
        await pilot.click(offset=(5, 22))
        await wait_until(pilot, lambda: "n New run" in last_rows(app))
        assert "turn page" in screen_text(app).split("\n")[-2]

    drive(runs, act, size=(80, 24))


def test_message_disappears_after_its_timeout(runs: Path) -> None:
    async def act(pilot: Pilot[None], app: Terminal) -> None:
        app.show_error("stays")
        app.notify("soon gone", timeout=0.1)
        await wait_until(pilot, lambda: "soon gone" in last_rows(app))
        await wait_until(pilot, lambda: last_rows(app) == "Error: stays")
        app.show_error("stays")  # a repeated message does not count twice
        await pilot.pause()
        assert last_rows(app) == "Error: stays"

    drive(runs, act, size=(80, 24))


@pytest.mark.parametrize("width", range(20, 90, 7))
def test_message_lines_fit_and_name_the_rest(width: int) -> None:
    for length in range(0, 300, 9):
        for others in (0, 2):
            lines = format_message(Notification("統計 " * (length // 5), severity="warning"), others, width)
            assert 1 <= len(lines) <= 3
            assert all(line.cell_length <= width for line in lines)
            whole = "".join(line.plain for line in lines)
            assert others == 0 or "+2 more, F2" in " ".join(whole.split())
            assert whole.count("統計") == length // 5 or "F2: all" in whole or "more, F2" in whole


# confirmation


def test_delete_and_kill_need_y(runs: Path) -> None:
    async def act(pilot: Pilot[None], app: Terminal) -> None:
        await move_to(pilot, app, "alpha")
        await pilot.press("d", "enter")
        assert isinstance(app.screen, ConfirmDialog)
        assert "y: yes    n or Esc: no" in screen_text(app)
        await pilot.press("space", "enter", "escape")
        assert isinstance(app.screen, RunsScreen)
        assert (runs / "alpha").exists()
        await pilot.press("d", "y")
        await wait_until(pilot, lambda: not (runs / "alpha").exists())

    drive(runs, act)


NAME = "a" * 55 + "-lr0.001-s1"


def test_dialogs_show_all_of_a_question_and_only_their_keys(tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    make_run(folder, NAME, 1)

    def inside(app: Terminal) -> str:
        box = app.screen.query_one(".box").content_region
        return "".join(line[box.x : box.right].strip() for line in screen_text(app).splitlines()[box.y : box.bottom])

    async def act(pilot: Pilot[None], app: Terminal) -> None:
        for key in ("d", "e", "r"):
            await pilot.press(key)
            await wait_until(pilot, lambda: app.screen.is_modal and NAME in inside(app))
            assert last_rows(app) == ""
            await pilot.press("escape")
            await wait_until(pilot, lambda: "n New run" in last_rows(app))
        for key in ("M", "f2"):
            await pilot.press("M", key)
            assert isinstance(app.screen, RunsScreen)
        before = screen_text(app).splitlines()
        await pilot.press("slash")
        await wait_until(pilot, lambda: "List only" in screen_text(app))
        dialog = app.screen.query_one(".box").region
        assert (dialog.width, dialog.bottom) == (74, app.size.height)
        assert screen_text(app).splitlines()[: dialog.y] == before[: dialog.y]

    drive(folder, act, size=(80, 24))
    drive(folder, act, size=(200, 60))


# bell


def test_notices_tell_of_health_but_not_of_stopping(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "SCAN_S", 0.0)
    monkeypatch.setattr(store_module, "LOOK_S", 0.0)
    run = make_run(tmp_path, "a", state="stopped")
    store, notices = Store(tmp_path), Notices()
    with running_trainer(run):
        store.update()
        assert notices.update(store.entries) == []
        run.write_status(replace(run.read_status(), health=HEALTH))
        store.update()
        assert [(n.text, n.severity) for n in notices.update(store.entries)] == [
            ("a: kl: policy/kl is above 0.1", "warning")
        ]
    run.write_status(replace(run.read_status(), state="stopped"))
    store.update()
    assert notices.update(store.entries) == []  # the user stopped it


@pytest.mark.parametrize("rings", [True, False])
def test_bell_rings_once_for_many_ends(rings: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program, "BELL_PAUSE_S", 0.3)
    sent: list[str] = []

    def show(app: Terminal, *texts: str) -> None:
        app._show_notices([Notice(text, "warning") for text in texts])

    async def act(pilot: Pilot[None], app: Terminal) -> None:
        def keep(text: str, write: Callable[[str], Any] = app._driver.write) -> None:  # type: ignore[union-attr]
            sent.append(text) if text.startswith(("\x07", "\x1b]9")) else write(text)

        monkeypatch.setattr(App, "is_headless", property(lambda _: False))
        monkeypatch.setattr(app._driver, "write", keep)
        show(app, "4;1;50: \x1b]0;evil\x07crashed", "b: finished", "c: finished")
        assert len(sent) == 2 * rings
        show(app, "d: finished")
        show(app, "e: finished")
        assert len(sent) == 2 * rings
        app.bell()  # such as the form's bell
        await pilot.pause(0.8)
        assert len(app.messages) == 5

    drive(tmp_path / "runs", act, rings=rings)
    expected = ["4;1;50: crashed (and 2 more)", "d: finished (and 1 more)"]
    texts = [text for text in sent if text != "\x07"]
    assert texts == [f"\x1b]9;ppo-unified: {text}\x07" for text in expected] * rings
    assert sent.count("\x07") == 3 * rings


def test_no_bell_option_reaches_the_app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Any, ...]] = []

    def record(*arguments: Any) -> int:
        calls.append(arguments)
        return 0

    monkeypatch.setattr(program, "run", record)
    monkeypatch.setattr(cli_tui, "is_drawable", lambda _: True)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    parser = ArgumentParser()
    cli_tui.add_arguments(parser)
    for options in ([], ["--no-bell"]):
        assert cli_tui.run(parser.parse_args([*options, "--runs", str(tmp_path)])) == 0
    assert [call[:3] for call in calls] == [(tmp_path, False, True), (tmp_path, False, False)]


def test_desktop_notification_is_one_safe_sequence() -> None:
    text = desktop_notification("a\x1b\\\x07\nb" + "x" * 1000, 0)
    assert text.startswith("\x1b]9;ppo-unified: a")
    assert sum(not character.isprintable() for character in text) == 2
    assert len(text) < 250
