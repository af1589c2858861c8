"""Tests the terminal UI with keys and mouse events: the list of runs, real runs, notices and the saved state."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast
from unittest.mock import Mock

import pytest
from textual.events import Key
from textual.pilot import Pilot
from textual.widgets import Input, Static

from ppo_unified.errors import UsageError
from ppo_unified.runs import background, control
from ppo_unified.runs.event_writer import EventWriter
from ppo_unified.runs.folder import Run, Status
from ppo_unified.runs.metrics import AWAITED
from ppo_unified.runs.notes import write_note
from ppo_unified.runs.processes import stop
from ppo_unified.terminal.ticks import GUTTER
from tui import pacing
from tui.action import PLACES, Place
from tui.actions import ACTIONS, actions_of, applicable_actions
from tui.app import Terminal
from tui.charts.metric_screen import MetricScreen, OnePlot
from tui.charts.plots import Plots
from tui.dialogs import ConfirmDialog, PromptDialog, TextDialog
from tui.new_run.form import Form
from tui.new_run.picker import Picker
from tui.pacing import TYPING_S, Pacer
from tui.palette import ActionProvider
from tui.reader import NOTHING
from tui.runs.compare_screen import CompareScreen
from tui.runs.run_list import RunList
from tui.runs.run_page import RunPage
from tui.runs.runs_screen import RunsScreen
from tui.runs.sweep_screen import SweepScreen
from tui.store import Store
from tui.view_state import ViewState
from tui.watch.screen import WatchScreen

CONFIG = """
kind = "gym"
preset = "cartpole"
seed = {seed}
[optim]
lr = {lr}
[gym]
env_id = "CartPole-v1"
rescale_actions = true
"""
TAGS = ("eval/score", "episode/return", "policy/kl", "policy/entropy", "loss/value", "custom/thing")
PAUSES = {"REFRESH_S": 0.5, "IDLE_SHARE": 10, "TYPING_SHARE": 60, "EAGER_SHARE": 3}  # for the test of these pauses
pytestmark = pytest.mark.usefixtures("shorten_ui_delays")
Act = Callable[[Pilot[None], Terminal], Coroutine[Any, Any, None]]


@pytest.fixture(autouse=True)
def _own_state(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the tests away from the user's saved state."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("config")))


def make_run(runs: Path, name: str, seed: int = 1, lr: float = 1e-3, **changes: Any) -> Run:
    """Create a run folder as a trainer would."""
    run = Run(runs / name)
    run.path.mkdir(parents=True)
    run.config.write_text(CONFIG.format(seed=seed, lr=lr), encoding="utf-8")
    run.command.write_text(f"ppo-unified train cartpole --seed {seed}\n", encoding="utf-8")
    status = Status(name=name, preset="cartpole", kind="gym", state="finished", step=1000, total_steps=4000)
    run.write_status(
        replace(status, **{"started": 1e9 + seed, "heartbeat": 1e9, "seed": seed, "score": 100.0} | changes)
    )
    writer = EventWriter(run.path)
    for step in range(50, 1050, 50):
        writer.scalars(step, dict.fromkeys(TAGS, seed + step / 100))
    writer.close()
    return run


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Create a finished, a stopped and a failed run."""
    folder = tmp_path / "runs"
    make_run(folder, "alpha", 1, score=300.0)
    make_run(folder, "beta", 2, score=400.0, state="stopped", best_score=450.0)
    make_run(folder, "gamma", 3, lr=5e-4, score=None, state="failed", reason="it broke")
    return folder


def drive(runs: Path, act: Act, size: tuple[int, int] = (120, 40), **options: Any) -> None:
    """Start the UI and call `act` after the list of runs has been read."""

    async def session() -> None:
        app = Terminal(runs, **options)
        async with app.run_test(size=size, notifications=True) as pilot:
            await wait_until(pilot, lambda: isinstance(app.screen, RunsScreen) and bool(app.store.folder))
            if runs.exists():
                expected = len([path for path in runs.iterdir() if path.is_dir()])
                await wait_until(pilot, lambda: len(app.store.entries) == expected and len(run_list(app).entries) > 0)
            async with asyncio.timeout(240):  # a traceback shows where a test hangs
                await act(pilot, app)

    asyncio.run(session())


async def wait_until(pilot: Pilot[None], condition: Callable[[], object], seconds: float = 60.0) -> None:
    """Let the app run until a condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"timed out; {screen_text(cast(Terminal, pilot.app))}"
        await pilot.pause(0.02)
    await pilot.pause()


def start(app: Terminal, *arguments: str) -> None:
    """Start a run without a form."""
    app.run_in_thread(lambda: control.start(arguments, app.runs).name)


def run_list(app: Terminal) -> RunList:
    screen = app.screen_stack[1]
    assert isinstance(screen, RunsScreen)
    return screen.run_list


def find_plots(app: Terminal) -> Plots:
    screen = app.screen_stack[1]
    assert isinstance(screen, RunsScreen)
    return screen.plots


def current_key(app: Terminal) -> str:
    current = run_list(app).current
    return "" if current is None else current.key


def listed_keys(app: Terminal) -> list[str]:
    return [entry.key for entry in run_list(app).entries]


def curve_keys(app: Terminal) -> list[str]:
    """Return the runs whose curves are in the first chart, the topmost one first."""
    plots = find_plots(app)
    return [trace.key for trace in plots.traces(plots.tags[0])] if plots.tags else []


def notifications(app: Terminal) -> str:
    return "\n".join(message.message for message in app.messages)


def screen_text(app: Terminal) -> str:
    """Return the text on the screen."""
    return "\n".join(strip.text for strip in app.screen._compositor.render_strips())


@pytest.mark.parametrize(
    ("place", "classes"),
    [
        ("app", [Terminal]),
        ("runs", [RunsScreen]),
        ("control", [RunsScreen, RunPage]),
        ("charts", [RunsScreen, RunPage, Plots]),
        ("metric", [MetricScreen]),
        ("run", [RunPage]),
        ("watch", [WatchScreen]),
        ("compare", [CompareScreen]),
        ("sweep", [SweepScreen]),
        ("picker", [Picker]),
        ("form", [Form]),
    ],
)
def test_every_action_has_a_method_in_its_places(place: Place, classes: list[type]) -> None:
    for action in actions_of(place):
        for kind in classes:
            assert hasattr(kind, f"action_{action.name}"), f"{kind.__name__} has no {action.name}"


def test_no_key_is_bound_twice_in_one_place() -> None:
    together: list[tuple[Place, ...]] = [("runs", "control", "charts", "app"), ("run", "control", "charts")]
    together += [("watch",), ("compare",), ("sweep",), ("picker",), ("form",)]
    for places in together:
        keys = [key for action in ACTIONS if action.place in places for key in action.keys.split(",")]
        assert len(keys) == len(set(keys)), sorted(key for key in keys if keys.count(key) > 1)


# the list of runs


def test_runs_list_sorts_by_any_column(runs: Path) -> None:
    async def act(pilot: Pilot[None], app: Terminal) -> None:
        assert listed_keys(app) == ["gamma", "beta", "alpha"]
        await pilot.press("O")
        assert listed_keys(app) == ["alpha", "beta", "gamma"]
        await wait_until(pilot, lambda: list(run_list(app).columns)[-2:] == ["optim.lr", "seed"])
        await pilot.press("o", "o")
        assert listed_keys(app) == ["alpha", "beta", "gamma"]  # by seed
        await pilot.press("o")  # after the last column comes the first one
        assert (app.state.sorted_by, app.state.reverse) == ("name", False)
        assert listed_keys(app) == ["alpha", "beta", "gamma"]
        head = "".join(segment.text for segment in run_list(app).render_line(0))
        await pilot.click(RunList, offset=(head.index("score") + 1, 0))
        assert app.state.sorted_by == "score"
        assert listed_keys(app) == ["beta", "alpha", "gamma"]  # the best first, a missing score last
        await pilot.click(RunList, offset=(head.index("score") + 1, 0))
        assert listed_keys(app) == ["alpha", "beta", "gamma"]

    drive(runs, act)


def test_cursor_stays_on_its_run(runs: Path) -> None:
    async def act(pilot: Pilot[None], app: Terminal) -> None:
        await pilot.press("down")
        assert current_key(app) == "beta"
        make_run(runs, "delta", 9)
        await wait_until(pilot, lambda: listed_keys(app) == ["delta", "gamma", "beta", "alpha"])
        assert current_key(app) == "beta"
        await pilot.press("O")
        assert current_key(app) == "beta"
        shutil.rmtree(runs / "beta")
        await wait_until(pilot, lambda: len(listed_keys(app)) == 3)
        assert current_key(app)

    drive(runs, act)


def test_partial_repaint_equals_full_repaint(runs: Path) -> None:

    async def act(pilot: Pilot[None], app: Terminal) -> None:
        def picture() -> list[list[Any]]:
            return [list(strip) for strip in app.screen._compositor.render_strips()]

        for keys in ("down", "space", "space", "up", "p", "o", "O", "a", "a", "end", "p", "down"):
            await pilot.press(keys)
            await pilot.pause()
            partly = picture()
            run_list(app).refresh()
            await pilot.pause()
            assert picture() == partly
        for step, text in ((1_500, " 1500 "), (2_500, " 2500 ")):
            run = Run(runs / "beta")
            run.write_status(replace(run.read_status(), step=step))
            await wait_until(pilot, lambda step=step: app.store.entries["beta"].status.step == step)  # type: ignore[misc]
            await wait_until(pilot, lambda text=text: text in screen_text(app))  # type: ignore[misc]

    drive(runs, act)


def test_unread_run_is_requested_immediately(runs: Path) -> None:
    store = Store(runs)
    store.update()
    assert store.watch(["alpha"])
    assert not store.watch(["alpha"])  # already requested
    store.update(1.0)
    assert store.watch(["beta", "alpha"])
    store.update(1.0)
    assert not store.watch(["alpha", "beta"])


def test_query_filters_runs_while_typing(runs: Path) -> None:
    async def act(pilot: Pilot[None], app: Terminal) -> None:
        assert current_key(app) == "gamma"
        await pilot.press("slash", *"alp")
        await wait_until(pilot, lambda: listed_keys(app) == ["alpha"])
        await pilot.press("escape")
        await wait_until(pilot, lambda: len(listed_keys(app)) == 3)
        assert current_key(app) == "gamma"  # the cursor returns to its run after the filter
        await pilot.press("slash", *"score>350")
        assert isinstance(app.screen, PromptDialog)
        await wait_until(pilot, lambda: listed_keys(app) == ["beta"])
        await pilot.press("enter")
        assert isinstance(app.screen, RunsScreen)
        assert "filter: score>350   1 of 3 runs" in screen_text(app)
        await pilot.press("slash")
        app.screen.query_one(Input).value = "!failed optim.lr>0.0006"
        await wait_until(pilot, lambda: listed_keys(app) == ["beta", "alpha"])
        await pilot.press("escape")  # restores the previous filter
        await wait_until(pilot, lambda: listed_keys(app) == ["beta"])
        await pilot.press("slash")
        app.screen.query_one(Input).value = "nothing-of-that-name"
        await wait_until(pilot, lambda: not listed_keys(app))
        await pilot.press("enter")
        assert "None of the 3 runs matches the filter." in screen_text(app)

    drive(runs, act)


def test_invalid_query_shows_an_error_below_it(runs: Path) -> None:
    async def act(pilot: Pilot[None], app: Terminal) -> None:
        await pilot.press("slash", *"alpha")
        await wait_until(pilot, lambda: listed_keys(app) == ["alpha"])
        app.screen.query_one(Input).value = "color:red"
        await pilot.press("enter")
        assert isinstance(app.screen, PromptDialog)
        assert "color" in str(app.screen.query_one(".error", Static).content)
        await wait_until(pilot, lambda: len(listed_keys(app)) == 3)
        assert "unknown key 'color'" in str(app.home._query.content)
        assert screen_text(app).splitlines()[-2].rstrip().endswith("~")  # the list of known keys is longer
        await pilot.press("escape")
        assert app.state.query == ""

    drive(runs, act)


def test_marked_runs_are_drawn_with_pinned_on_top(runs: Path) -> None:
    async def act(pilot: Pilot[None], app: Terminal) -> None:
        await wait_until(pilot, lambda: curve_keys(app) == ["gamma"])  # the run under the cursor
        await pilot.press("down")
        await wait_until(pilot, lambda: curve_keys(app) == ["beta"])
        await pilot.press("space", "space")
        await wait_until(pilot, lambda: curve_keys(app) == ["beta", "alpha"])
        colors = {trace.key: trace.color for trace in find_plots(app).traces("eval/score")}
        assert len(set(colors.values())) == 2
        await pilot.press("home", "p")
        await wait_until(pilot, lambda: curve_keys(app) == ["gamma", "beta", "alpha"])
        pinned = find_plots(app).traces("eval/score")[0]
        assert pinned.pinned
        assert pinned.color.lower() == "#ffffff"
        for trace in find_plots(app).traces("eval/score")[1:]:
            assert trace.color == colors[trace.key]  # drawing another run changes no color
        await pilot.press("a")
        assert set(app.state.marked) == {"alpha", "beta", "gamma"}
        await pilot.press("a", "p")
        assert app.state.marked == []
        assert app.state.pinned == ""

    drive(runs, act)


def test_seeds_view_draws_one_run_per_seed(runs: Path) -> None:
    make_run(runs, "alpha-2", 1, started=1e9 + 10)  # the newest run of seed 1 that has a score
    make_run(runs, "alpha-3", 1, started=1e9 + 20, score=None)

    async def act(pilot: Pilot[None], app: Terminal) -> None:
        def labels() -> list[str]:
            return [one.label for one in find_plots(app).plots[0].curves]

        await pilot.press("a", "A")
        await wait_until(pilot, lambda: labels() == ["alpha-2 (2 seeds, 2 repeats hidden)", "gamma"])
        assert "x_axis" not in [action.name for action in applicable_actions(app, app.screen)]
        group = find_plots(app).plots[0].curves[0]
        assert group.seeds is not None
        assert set(group.seeds.keys) == {"alpha-2", "beta"}
        run_list(app).move_to("alpha")
        await pilot.press("p")  # the pinned run has its own curve, and newer ones with its seed are repeats
        await wait_until(pilot, lambda: labels() == ["alpha", "beta (2 repeats hidden)", "gamma"])
        assert [one.pinned for one in find_plots(app).plots[0].curves] == [True, False, False]
        assert "2 repeats hidden" in str(find_plots(app).query_one(".page", Static).render())

    drive(runs, act)


def test_run_page_starts_with_all_metrics_on_the_first_page(runs: Path) -> None:
    async def act(pilot: Pilot[None], app: Terminal) -> None:
        await wait_until(pilot, lambda: len(find_plots(app).tags) == len(TAGS))
        settings = find_plots(app).settings
        settings.page, settings.group, settings.words, settings.window = 2, "policy", "kl", (100.0, 300.0)
        settings.grid, settings.smoothing, settings.x_axis, settings.follow = 2, 0.9, "relative", False
        await pilot.press("enter")
        await wait_until(pilot, lambda: isinstance(app.screen, RunPage) and bool(app.screen.plots.plots))
        page = app.screen
        assert isinstance(page, RunPage)
        assert [plot.tag for plot in page.plots.plots] == ["eval/score", "episode/return"]
        kept = page.plots.settings
        assert (kept.grid, kept.smoothing, kept.x_axis, kept.window, kept.follow) == (2, 0.9, "relative", None, True)
        await pilot.press("escape")
        assert (settings.page, settings.group, settings.words) == (2, "policy", "kl")

    drive(runs, act)


def test_charts_draw_only_listed_marked_runs(runs: Path) -> None:
    write_note(Run(runs / "beta"), "the reference")
    state = ViewState(marked=["alpha", "beta"], query="failed|note:reference")
    state.save(runs)

    async def act(pilot: Pilot[None], app: Terminal) -> None:
        await wait_until(pilot, lambda: curve_keys(app) == ["beta"])
        assert "2 marked, 1 hidden" in screen_text(app)
        await pilot.press("c")
        assert "Mark at least two" in notifications(app)
        await pilot.press("a")  # marks the listed runs and keeps the hidden mark
        assert app.state.marked == ["alpha", "gamma", "beta"]
        app.state.marked, app.state.query = ["alpha", "beta"], "gamma"
        await pilot.press("p")  # the filter hides all marked runs, so the run under the cursor is drawn
        await wait_until(pilot, lambda: curve_keys(app) == ["gamma"])
        app.state.query = ""
        await pilot.press("O")
        await wait_until(pilot, lambda: curve_keys(app) == ["gamma", "alpha", "beta"])  # gamma is pinned
        assert "hidden" not in screen_text(app)

    drive(runs, act)


def test_standard_metrics_come_first(runs: Path) -> None:
    async def act(pilot: Pilot[None], app: Terminal) -> None:
        await wait_until(pilot, lambda: len(find_plots(app).tags) == len(TAGS))
        assert find_plots(app).tags[:3] == ["eval/score", "episode/return", "policy/kl"]
        assert find_plots(app).tags[-1] == "custom/thing"

    drive(runs, act)


def test_sweep_screen_follows_the_trials(runs: Path) -> None:
    entry = {"name": "try", "objective": "score"}
    for number, score in ((0, 300.0), (1, 50.0)):
        sweep = entry | {"trial": number, "options": {"optim.lr": f"0.00{number + 1}"}}
        make_run(runs, f"try-{number}", 8 - number, score=score, sweep=sweep)

    async def act(pilot: Pilot[None], app: Terminal) -> None:
        run_list(app).move_to("alpha")
        await pilot.press("S")
        assert "not a trial of a sweep" in notifications(app)
        run_list(app).move_to("try-0")
        await pilot.press("S")
        assert isinstance(app.screen, SweepScreen)
        await wait_until(pilot, lambda: "try: 2 complete; best score 300 (try-0)" in screen_text(app))
        assert re.search(r"0 +complete +300 +1,000 +0\.001 *\n.*1 +complete +50 +1,000 +0\.002", screen_text(app))
        run = Run(runs / "try-1")
        run.write_status(replace(run.read_status(), score=400.0))
        await wait_until(pilot, lambda: "best score 400 (try-1)" in screen_text(app))
        await pilot.press("escape")
        assert isinstance(app.screen, RunsScreen)

    drive(runs, act)


def test_compare_screen_shows_results_and_differing_options(runs: Path) -> None:
    folder = runs / "CartPole-v1__ppo__1"
    folder.mkdir()
    writer = EventWriter(folder)
    writer.scalars(1, {"charts/episodic_return": 1.0})
    writer.close()
    make_run(runs, "torn").config.write_text("kind = ")

    async def act(pilot: Pilot[None], app: Terminal) -> None:
        await pilot.press("c")
        assert "Mark at least two runs" in notifications(app)
        await pilot.press("a", "c")
        assert isinstance(app.screen, CompareScreen)
        shown = screen_text(app)
        assert "Comparison of 3 runs" in shown
        assert "Not compared, because another program wrote them: CartPole-v1__ppo__1" in shown
        assert "Not compared: torn, because " in shown
        app.screen.show_text = shown_again = Mock()  # type: ignore[method-assign]
        entry = app.store.entries["alpha"]
        for change, drawn in ((replace(entry, speed=3.0), 0), (replace(entry, state="running"), 1)):
            app.store.entries = {**app.store.entries, "alpha": change}
            app.screen.update_from_store(NOTHING)
            assert shown_again.call_count == drawn
        del app.screen.show_text
        assert re.search(r"optim\.lr .* 0\.0005", shown)
        assert "env_id" not in shown
        assert re.search(r"alpha ... beta +various +1,000 +350 ", shown)
        assert re.search(r"gamma +failed +1,000 +- ", shown)
        await pilot.press("D", "end")
        await wait_until(pilot, lambda: re.search(r"gym\.env_id +CartPole-v1", screen_text(app)))
        await pilot.press("D")
        status = Run(runs / "gamma").read_status()
        status.step = 7654
        Run(runs / "gamma").write_status(status)
        await wait_until(pilot, lambda: "7,654" in screen_text(app))
        await pilot.press("q")
        assert isinstance(app.screen, RunsScreen)

    drive(runs, act)


def list_marks(app: Terminal) -> list[str]:
    """Return the signs, the letter and the name at the start of each line of the list."""
    runs = run_list(app)
    return [runs.render_line(y + 1).text[:8].rstrip() for y in range(len(runs.entries))]


def test_list_shows_the_letters_of_the_curves(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    make_run(runs, "delta", 4, lr=5e-4)
    writer = EventWriter(runs / "alpha")
    writer.scalars(2000, {"policy/only_alpha": 1.0})
    writer.close()

    async def act(pilot: Pilot[None], app: Terminal) -> None:
        assert list_marks(app) == ["• delta", "  gamma", "  beta", "  alpha"]  # a single curve needs no letter
        await pilot.press("space", "down", "space", "space", "p")
        tag = "policy/only_alpha"
        await wait_until(pilot, lambda: tag in find_plots(app).tags and len(curve_keys(app)) == 3)
        assert list_marks(app) == ["●B delta", "   gamma", "●C beta", "◆A alpha"]
        assert screen_text(app).splitlines()[1].startswith("   run")
        letters = {trace.key: trace.letter for trace in find_plots(app).traces("eval/score")}
        assert letters == {"alpha": "A", "delta": "B", "beta": "C"}
        assert [trace.letter for trace in find_plots(app).traces(tag)] == ["A"]
        await pilot.press("p", "a", "A")
        await wait_until(pilot, lambda: len(find_plots(app).plots[0].curves) == 2)
        assert list_marks(app) == ["●A delta", "●A gamma", "●C beta", "●C alpha"]
        assert sorted(one.letter for one in find_plots(app).plots[0].curves) == ["A", "C"]
        await pilot.press("A")
        await wait_until(pilot, lambda: list_marks(app)[-1] == "●D alpha")
        await pilot.press("n", "enter")  # the form's Start button is reversed only if it has the focus
        await wait_until(pilot, lambda: isinstance(app.screen, Form))
        for focused in (True, False):
            await pilot.pause()
            strip = app.screen._compositor.render_strips(app.size)[2]
            assert [s.style is not None and bool(s.style.reverse) for s in strip if "Start" in s.text] == [focused]
            await pilot.press("tab")

    drive(runs, act)


def test_letters_appear_with_the_fifth_curve(runs: Path) -> None:
    for seed in (4, 5):
        make_run(runs, f"run-{seed}", seed)

    async def act(pilot: Pilot[None], app: Terminal) -> None:
        await pilot.press(*["space"] * 4)
        await wait_until(pilot, lambda: len(curve_keys(app)) == 4)
        assert [line[:3] for line in list_marks(app)] == ["● r", "● r", "● g", "● b", "  a"]
        await pilot.press("space")
        await wait_until(pilot, lambda: len(curve_keys(app)) == 5)
        assert [line[:3] for line in list_marks(app)] == ["●A ", "●B ", "●C ", "●D ", "●E "]
        assert re.search(r"  A (run-\d )?[-\d.]+", screen_text(app))

    drive(runs, act, unicode=True)


def test_seeds_of_one_run_are_drawn_as_one_curve(runs: Path) -> None:
    async def act(pilot: Pilot[None], app: Terminal) -> None:
        await pilot.press("a", "A")
        await wait_until(pilot, lambda: len(curve_keys(app)) == 3)
        groups = {trace.key: trace.group for trace in find_plots(app).traces("eval/score")}
        assert groups["alpha"] == groups["beta"] != groups["gamma"]

    drive(runs, act)


def test_split_between_list_and_charts_is_adjustable(runs: Path) -> None:
    for number in range(20):
        make_run(runs, f"more-{number}", 10 + number)

    async def act(pilot: Pilot[None], app: Terminal) -> None:
        await pilot.pause()
        before = run_list(app).size.height
        await pilot.press("greater_than_sign")
        await wait_until(pilot, lambda: run_list(app).size.height > before)
        await pilot.press("less_than_sign", "less_than_sign")
        await wait_until(pilot, lambda: run_list(app).size.height < before)
        await pilot.resize_terminal(200, 60)
        await wait_until(pilot, lambda: run_list(app).size.width < 110 and find_plots(app).size.height > 50)
        await pilot.resize_terminal(80, 24)
        await wait_until(pilot, lambda: run_list(app).size.width == 80)

    drive(runs, act)


def test_enter_and_second_click_open_a_run(runs: Path) -> None:
    async def act(pilot: Pilot[None], app: Terminal) -> None:
        await pilot.press("enter")
        assert isinstance(app.screen, RunPage)
        assert app.screen.key == "gamma"
        await pilot.press("escape")
        await pilot.click(RunList, offset=(5, 2), times=2)
        await wait_until(pilot, lambda: isinstance(app.screen, RunPage))
        assert app.screen.key == "beta"

    drive(runs, act)


def test_metric_screen_opens_from_list_and_run_page(runs: Path) -> None:
    for config in runs.glob("*/config.toml"):
        config.write_text(config.read_text(encoding="utf-8") + "[eval]\nthreshold = 6.5\n", encoding="utf-8")

    async def act(pilot: Pilot[None], app: Terminal) -> None:
        await wait_until(pilot, lambda: find_plots(app).current is not None)
        await wait_until(pilot, lambda: "solved 6.5" in screen_text(app))
        await pilot.press("f")
        await wait_until(pilot, lambda: isinstance(app.screen, MetricScreen))
        assert len([screen for screen in app.screen_stack if isinstance(screen, MetricScreen)]) == 1
        await pilot.press("n", "l", "f")
        await wait_until(pilot, lambda: isinstance(app.screen, RunsScreen))
        assert find_plots(app).settings.log_y
        await pilot.press("enter")
        await wait_until(pilot, lambda: isinstance(app.screen, RunPage) and app.screen.plots.current is not None)
        await wait_until(pilot, lambda: "solved 6.5" in screen_text(app))
        await pilot.press("f")
        await wait_until(pilot, lambda: isinstance(app.screen, MetricScreen))
        await wait_until(pilot, lambda: bool(app.screen.query_one(OnePlot).tags))
        await pilot.press("escape")
        assert isinstance(app.screen, RunPage)

    drive(runs, act)


def test_foreign_logs_are_listed_and_drawn(runs: Path) -> None:
    folder = runs / "CartPole-v1__ppo__1"
    folder.mkdir()
    writer = EventWriter(folder)
    for step in range(10):
        writer.scalars(step, {"charts/episodic_return": 1.0 * step})
    writer.close()

    async def act(pilot: Pilot[None], app: Terminal) -> None:
        run_list(app).move_to("CartPole-v1__ppo__1")
        await wait_until(pilot, lambda: curve_keys(app) == ["CartPole-v1__ppo__1"])
        await pilot.press("s")
        assert "it was written by another program" in notifications(app)
        await pilot.press("space", "c")
        assert "Not compared, because another program wrote them: CartPole-v1__ppo__1" in notifications(app)
        await pilot.press("a", "c")  # compare the other runs
        assert isinstance(app.screen, CompareScreen)
        assert re.search(r"optim\.lr .* 0\.0005", screen_text(app))
        assert "cannot read the file" not in notifications(app)

    drive(runs, act)


def test_text_of_runs_is_shown_literally(runs: Path) -> None:
    evil = "[bold red]\x1b[31mname\x1b]0;title\x07[/]"
    make_run(runs, "odd", 7, state="failed", reason=evil, preset="[blink]x")
    write_note(Run(runs / "odd"), evil)

    async def act(pilot: Pilot[None], app: Terminal) -> None:
        await wait_until(pilot, lambda: "[bold red]name[/]" in screen_text(app))
        assert "\x1b" not in screen_text(app)
        run_list(app).move_to("odd")
        await pilot.press("enter")
        await wait_until(pilot, lambda: "[bold red]name[/]" in screen_text(app))

    drive(runs, act, size=(200, 60))


# starting and stopping runs


@pytest.mark.exhaustive  # test_terminal.py tests the same in a real terminal
def test_three_keys_train_cartpole_until_solved(tmp_path: Path) -> None:
    """Also stop, resume and delete a second run, with real processes."""
    folder = tmp_path / "runs"

    async def act(pilot: Pilot[None], app: Terminal) -> None:
        assert "n, Enter, Enter" in screen_text(app)
        await pilot.press("n")
        assert isinstance(app.screen, Picker)
        await pilot.press("enter")
        assert isinstance(app.screen, Form)
        await pilot.press("enter")
        await wait_until(pilot, lambda: isinstance(app.screen, RunsScreen) and listed_keys(app) == ["cartpole-s1"])
        await wait_until(pilot, lambda: curve_keys(app) == ["cartpole-s1"])
        await wait_until(pilot, lambda: app.store.entries["cartpole-s1"].state == "solved", 120)
        await wait_until(pilot, lambda: "cartpole-s1: solved after" in notifications(app))
        await wait_until(pilot, lambda: "eval/score" in screen_text(app))

    drive(folder, act)


def test_charts_appear_before_the_first_point(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also check that every chart action works on empty charts."""
    run = make_run(runs, "omega", 9, state="starting", step=0, heartbeat=time.time())
    for path in run.path.glob("events*"):
        path.unlink()
    monkeypatch.setattr(Run, "is_locked", lambda self: self.path == run.path)

    async def act(pilot: Pilot[None], app: Terminal) -> None:
        plots = find_plots(app)
        run_list(app).move_to("omega")
        await wait_until(pilot, lambda: plots.tags == list(AWAITED))
        for action in actions_of("charts"):
            if action.name not in ("enlarge", "metrics", "group", "zoom_reset"):
                await plots.run_action(action.name)
        for name in ("zoom_reset", "grid_less", "x_axis", "x_axis"):
            await plots.run_action(name)
        await wait_until(pilot, lambda: "has no points yet" in notifications(app))  # from the export action
        widgets = list(plots.plots)
        empty = " " * GUTTER + "no points yet"
        assert screen_text(app).count(empty) == len(widgets) > 1
        await pilot.press("f")
        await wait_until(pilot, lambda: isinstance(app.screen, MetricScreen))
        assert "no points yet" in screen_text(app)
        await pilot.press("escape")
        writer = EventWriter(run.path)
        for step in (100, 200):
            writer.scalars(step, dict.fromkeys(AWAITED, 0.5))
        writer.close()
        await wait_until(pilot, lambda: empty not in screen_text(app))
        assert plots.plots == widgets
        plots.settings.group = "reward"
        plots.show([*AWAITED], lambda _: ())
        await wait_until(
            pilot, lambda: "No curves yet" in screen_text(app)
        )  # the saved group filter may match later metrics

    drive(runs, act)


def test_page_of_run_without_points_has_no_charts(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(runs, "omega", 9, state="starting", step=0, heartbeat=time.time())
    for path in run.path.glob("events*"):
        path.unlink()
    alive = True
    monkeypatch.setattr(Run, "is_locked", lambda self: alive and self.path == run.path)

    async def act(pilot: Pilot[None], app: Terminal) -> None:
        nonlocal alive
        run_list(app).move_to("omega")
        await pilot.press("enter")
        await wait_until(pilot, lambda: isinstance(app.screen, RunPage) and "no points yet" in screen_text(app))
        run.write_status(replace(run.read_status(), heartbeat=time.time() - 3600))
        await wait_until(pilot, lambda: app.store.entries["omega"].state == "stalled")
        assert "no points yet" in screen_text(app)
        alive = False
        await wait_until(pilot, lambda: "No curves yet" in screen_text(app))
        alive = True
        await wait_until(pilot, lambda: "no points yet" in screen_text(app))

    drive(runs, act)


@pytest.mark.exhaustive  # test_terminal.py tests the same in a real terminal
def test_run_can_be_stopped_resumed_killed_and_deleted(tmp_path: Path) -> None:
    folder = tmp_path / "runs"

    async def act(pilot: Pilot[None], app: Terminal) -> None:
        options = ["cartpole", "--name", "long", "--no-stop-when-solved", "--total-steps", "10000000"]
        start(app, *options)

        def state() -> str:
            return app.store.entries["long"].state if "long" in app.store.entries else ""

        await wait_until(pilot, lambda: state() == "running" and app.store.entries["long"].status.step > 0, 120)
        await pilot.press("d", "y")
        assert "long cannot be deleted while it is training; stop it first" in notifications(app)
        await pilot.press("s")
        await wait_until(pilot, lambda: state() == "stopped", 120)
        step = app.store.entries["long"].status.step
        await pilot.press("r")
        await wait_until(pilot, lambda: state() == "running" and app.store.entries["long"].status.step > step, 120)
        await pilot.press("K")
        assert isinstance(app.screen, ConfirmDialog)
        await pilot.press("n")
        assert state() == "running"
        await pilot.press("K", "y")
        await wait_until(pilot, lambda: state() == "crashed", 120)
        await wait_until(pilot, lambda: "long: crashed" in notifications(app))
        await pilot.press("d", "n")
        assert (folder / "long").exists()
        await pilot.press("d", "y")
        await wait_until(pilot, lambda: not listed_keys(app))
        assert not (folder / "long").exists()

    drive(folder, act)


@pytest.mark.exhaustive  # test_terminal.py tests the same in a real terminal
def test_quitting_keeps_runs_running(tmp_path: Path) -> None:
    folder = tmp_path / "runs"

    async def begin(pilot: Pilot[None], app: Terminal) -> None:
        start(app, "cartpole", "--name", "on", "--no-stop-when-solved", "--total-steps", "10000000")
        await wait_until(pilot, lambda: "on" in app.store.entries and app.store.entries["on"].state == "running", 120)
        await pilot.press("q")

    async def check_reopened(pilot: Pilot[None], app: Terminal) -> None:
        assert app.store.entries["on"].state == "running"

    drive(folder, begin)
    try:
        drive(folder, check_reopened)
    finally:
        assert stop(Run(folder / "on"), kill=False) == "stopped"


def test_form_shows_start_errors_and_keeps_input(tmp_path: Path) -> None:
    """Only the started process can detect that an environment does not exist."""

    async def act(pilot: Pilot[None], app: Terminal) -> None:
        await pilot.press("n", *"NoSuchWorld-v7", "enter")
        assert isinstance(app.screen, Form)
        form: Form = app.screen
        form.typed["optim.lr"] = "0.01"
        await pilot.press("enter", "enter")  # the second Enter must not start another run
        await wait_until(pilot, lambda: not form.waiting)
        assert app.screen is form
        assert "NoSuchWorld" in str(form.query_one("#verdict", Static).content)
        assert "1 run of" not in str(form.query_one("#verdict", Static).content)
        assert form.typed == {"optim.lr": "0.01"}
        assert not app.store.entries

    drive(tmp_path / "runs", act)


def test_pending_start_does_not_change_a_newly_opened_form(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If a run fails to start, its input is restored. Each run is started by a standby process of its own."""
    goes_on, started, refusals = threading.Event(), list[list[str]](), list[str]()
    used, ready = list[object](), list[object]()

    def start(arguments: Sequence[str], folder: Path, on_created: Callable[[Run], object], standby: object) -> Run:
        started.append(list(arguments))
        used.append(standby)
        on_created(run := make_run(folder, f"new-{len(started)}", 9))
        assert goes_on.wait(60)
        if refusals:
            raise UsageError(refusals[0])
        return run

    def make_standby() -> object:
        ready.append(Mock(is_waiting=True))
        return ready[-1]

    monkeypatch.setattr(control, "start", start)
    monkeypatch.setattr(background, "Standby", make_standby)

    async def act(pilot: Pilot[None], app: Terminal) -> None:
        async def start_with(lr: str) -> None:
            assert isinstance(app.screen, Form)
            app.screen.typed["optim.lr"] = lr
            await pilot.press("ctrl+s")
            await wait_until(pilot, lambda: isinstance(app.screen, RunsScreen))

        await pilot.press("n", "enter")
        await start_with("0.5")
        await pilot.press("n", "enter")
        assert isinstance(app.screen, Form)
        assert app.screen.typed == {}
        app.screen.typed["optim.lr"] = "0.25"
        goes_on.set()
        await wait_until(pilot, lambda: "new-1: training started" in notifications(app))
        assert app.screen.typed == {"optim.lr": "0.25"}
        goes_on.clear()
        refusals.append("no such luck")
        await start_with("0.125")
        assert app.state.typed == {}
        goes_on.set()
        await wait_until(pilot, lambda: refusals[0] in notifications(app))
        assert app.state.typed == {"cartpole": {"optim.lr": "0.125"}}

    drive(runs, act, standby_slot=background.StandbySlot())
    assert [arguments[-1] for arguments in started] == ["0.5", "0.125"]
    assert used == ready


def test_run_can_be_renamed_and_annotated(runs: Path) -> None:
    async def act(pilot: Pilot[None], app: Terminal) -> None:
        await pilot.press("space", "home", "e")
        assert isinstance(app.screen, PromptDialog)
        app.screen.query_one(Input).value = "alpha"
        await pilot.press("enter")
        assert isinstance(app.screen, PromptDialog)  # the name is already in use
        app.screen.query_one(Input).value = "omega"
        await pilot.press("enter")
        await wait_until(pilot, lambda: "omega" in listed_keys(app))
        assert app.state.marked == ["omega"]
        await wait_until(pilot, lambda: current_key(app) == "omega")
        await pilot.press("N")
        app.screen.query_one(Input).value = "learnt to hop"
        await pilot.press("enter")
        await wait_until(pilot, lambda: app.store.entries["omega"].note == "learnt to hop")
        await wait_until(pilot, lambda: "learnt to hop" in screen_text(app))
        note = Run(runs / "omega").note
        write_note(Run(runs / "omega"), "first\nsecond\tline")
        before = note.stat().st_ino
        await pilot.press("N", "enter", "N")
        assert isinstance(app.screen, PromptDialog)
        assert note.stat().st_ino == before  # an unchanged note is not written
        await pilot.press("end", "!", "enter")
        await wait_until(pilot, lambda: app.store.entries["omega"].note == "first!")
        assert note.read_text(encoding="utf-8") == "first!\nsecond\tline\n"

    drive(runs, act, size=(200, 60))


def test_finished_run_resumes_only_with_higher_total(runs: Path) -> None:
    async def act(pilot: Pilot[None], app: Terminal) -> None:
        run_list(app).move_to("alpha")
        await pilot.press("r")
        assert isinstance(app.screen, PromptDialog)
        app.screen.query_one(Input).value = "900"
        await pilot.press("enter")
        assert "expected an integer > 1000" in screen_text(app)

    drive(runs, act)


def test_restart_at_step_0_is_confirmed_first(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_run(runs, "omega", 9, state="running")  # killed before its first checkpoint
    resumed: list[str] = []
    monkeypatch.setattr(control, "resume", lambda run, *flags: resumed.append(run.name))

    async def act(pilot: Pilot[None], app: Terminal) -> None:
        await wait_until(pilot, lambda: "omega  crashed" in screen_text(app))
        run_list(app).move_to("omega")
        assert "killed? (no reason" in screen_text(app)
        await pilot.press("r")
        assert isinstance(app.screen, ConfirmDialog)
        assert "Restart omega at step 0?" in screen_text(app)
        assert "discards the curves and samples of 1,000 steps" in app.screen.detail
        await pilot.press("n")
        assert not resumed
        await pilot.press("r", "y")
        await wait_until(pilot, lambda: resumed == ["omega"])
        (runs / "omega" / "checkpoints" / "000000000900").mkdir(parents=True)
        await pilot.press("r")
        await wait_until(pilot, lambda: resumed == ["omega", "omega"])  # without a question

    drive(runs, act, size=(150, 40))


def test_rerun_opens_form_with_the_runs_options(runs: Path) -> None:
    async def act(pilot: Pilot[None], app: Terminal) -> None:
        await pilot.press("R")
        assert isinstance(app.screen, Form)
        assert app.screen.typed["optim.lr"] == "0.0005"
        slot.fill.assert_called_once()
        await pilot.press("escape")
        (runs / "gamma" / "config.toml").write_text("[")
        await pilot.press("R")
        assert "config.toml" in notifications(app)
        slot.fill.assert_called_once()  # a form that does not open starts no run

    slot = Mock()
    drive(runs, act, standby_slot=slot)


def test_rerun_form_keeps_only_that_runs_input(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Input for a rerun is stored until a run starts. It follows a renamed run; a new run of the old name gets none."""

    def start(arguments: Sequence[str], folder: Path, on_created: Callable[[Run], object], **_: object) -> Run:
        on_created(run := make_run(folder, "new", 0))
        return run

    monkeypatch.setattr(control, "start", start)

    async def act(pilot: Pilot[None], app: Terminal) -> None:
        async def rerun(key: str, lr: str, then: str) -> None:
            run_list(app).move_to(key)
            await pilot.press("R")
            assert isinstance(app.screen, Form)
            assert app.screen.typed.get("optim.lr") == lr
            app.screen.typed["optim.lr"] = "0.03"
            await pilot.press(then)
            await wait_until(pilot, lambda: isinstance(app.screen, RunsScreen))

        await rerun("gamma", "0.0005", "ctrl+s")
        await wait_until(pilot, lambda: "new: training started" in notifications(app) and "new" in listed_keys(app))
        await rerun("gamma", "0.0005", "escape")
        run_list(app).move_to("gamma")
        await pilot.press("e", "end", "2", "enter")
        await wait_until(pilot, lambda: "gamma2" in listed_keys(app))
        await rerun("gamma2", "0.03", "escape")
        shutil.rmtree(runs / "gamma2")  # as if another terminal deleted it
        make_run(runs, "gamma2", 8, lr=4e-3)
        await wait_until(pilot, lambda: ("gamma2", 8) in [(e.key, e.status.seed) for e in app.store.entries.values()])
        await rerun("gamma2", "0.004", "escape")
        assert len(app.state.typed) == 1
        run_list(app).move_to("gamma2")
        await pilot.press("d", "y")
        assert app.state.typed == {}

    drive(runs, act)


def test_command_is_copied_to_clipboard(runs: Path) -> None:
    async def act(pilot: Pilot[None], app: Terminal) -> None:
        await pilot.press("y")
        assert app.clipboard == "ppo-unified train cartpole --seed 3"

    drive(runs, act)


@pytest.mark.parametrize("readonly", [pytest.param(False, marks=pytest.mark.exhaustive), True])
def test_watch_opens_a_screen_if_there_is_a_checkpoint(runs: Path, readonly: bool) -> None:
    (runs / "beta" / "checkpoints" / f"{0:012d}").mkdir(parents=True)

    async def act(pilot: Pilot[None], app: Terminal) -> None:
        await pilot.press("w")
        assert isinstance(app.screen, RunsScreen)
        assert "Cannot watch gamma: it has not written a checkpoint yet." in notifications(app)
        for keys in (["j"], ["enter"]):  # from the list, and from the run's page
            before = app.screen
            await pilot.press(*keys, "w")
            assert isinstance(app.screen, WatchScreen)
            await wait_until(pilot, lambda: "Cannot watch beta" in screen_text(app))
            assert "every checkpoint is damaged" in " ".join(screen_text(app).split())
            await pilot.press("q")
            assert isinstance(app.screen, type(before) if keys == ["j"] else RunPage)

    drive(runs, act, readonly=readonly)


# the app as a whole


def test_readonly_mode_changes_nothing(runs: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in runs.rglob("*")}

    async def act(pilot: Pilot[None], app: Terminal) -> None:
        assert "read-only" in screen_text(app)
        for action in ACTIONS:
            if action.writes:
                for key in action.keys.split(","):
                    await pilot.press(key)
                    assert isinstance(app.screen, RunsScreen), action
        await pilot.press("enter", "d", "e", "s")
        assert isinstance(app.screen, RunPage)
        await pilot.press("question_mark")
        assert "Delete" not in screen_text(app)

    drive(runs, act, readonly=True)
    assert before == {path: path.stat().st_mtime_ns for path in runs.rglob("*")}


def test_redraws_slow_down_while_typing_or_when_expensive(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def act(_: Pilot[None], app: Terminal) -> None:
        now, pacer = 100.0, Pacer()
        app.pacer = pacer  # a separate pacer, so that other redraws do not count
        with monkeypatch.context() as patch:
            patch.setattr("time.monotonic", lambda: now)
            for name, value in PAUSES.items():
                patch.setattr(pacing, name, value)
            intervals = []
            for took in (0.2, 0.001, 0.1, 0.1):  # a single slow redraw has no effect
                pacer.end(now - took)
                intervals.append(pacer.interval_s())
            assert intervals == [0.5, 0.5, pytest.approx(1.0), pytest.approx(1.0)]
            await app.on_event(Key("z", "z"))
            assert pacer.interval_s() == pytest.approx(6.0)
            now += TYPING_S
            assert pacer.interval_s() == pytest.approx(1.0)
            pacer.touch()
            assert pacer.interval_s() == pytest.approx(6.0)
            pacer.be_eager()  # the user waits for the first point of a run
            assert pacer.interval_s() == pytest.approx(0.3)

    drive(runs, act)


def test_help_lists_every_key_and_explains_the_chart(runs: Path) -> None:
    async def act(pilot: Pilot[None], app: Terminal) -> None:
        await wait_until(pilot, lambda: find_plots(app).current is not None)
        await pilot.press("question_mark")
        assert isinstance(app.screen, TextDialog)
        body = str(app.screen.body)
        assert body.startswith("eval/score:")
        for place in ("runs", "control", "charts", "app"):
            for action in actions_of(place):
                assert action.label in body
        explained = body[body.index("Columns of the list") :]
        heads = [column.head for column in app.home.run_list.columns.values() if column.help]
        for sign in (*heads, "●", "◆", "•", "~", "n=3", "n=1 of 3", "pin"):
            assert f"\n  {sign} " in explained, sign
        for key in ("home", "end"):
            await pilot.press(key)
            await pilot.pause()
            assert "Esc: close" in screen_text(app)

    drive(runs, act, size=(80, 24))


def test_help_and_palette_list_only_keys_of_current_tab(runs: Path) -> None:
    async def act(pilot: Pilot[None], app: Terminal) -> None:
        await pilot.press("enter")
        for tab, charts in (("1", True), ("3", False), ("1", True)):
            await pilot.press(tab, "question_mark")
            assert isinstance(app.screen, TextDialog)
            body = str(app.screen.body)
            assert (PLACES["charts"] in body, "Smooth more" in body) == (charts, charts)
            assert "Next tab" in body
            assert "Rename" not in body
            await pilot.press("escape")
            labels = {str(hit.prompt) async for hit in ActionProvider(app.screen).discover() if hasattr(hit, "prompt")}
            assert any(label.startswith("Smooth more") for label in labels) == charts

    drive(runs, act, readonly=True)


def test_palette_finds_and_runs_actions(runs: Path) -> None:
    async def act(pilot: Pilot[None], app: Terminal) -> None:
        await pilot.press("ctrl+p")
        await pilot.press(*"reverse")
        await pilot.pause(0.5)
        await pilot.press("enter")
        await wait_until(pilot, lambda: app.state.reverse)
        provider = ActionProvider(app.screen)
        hits = [hit async for hit in provider.discover()]
        names = {str(hit.prompt).split("  ")[0] for hit in hits if hasattr(hit, "prompt")}
        for place in ("runs", "control", "charts"):
            assert {
                action.label
                for action in actions_of(place)
                if action.needs not in ("active", "checkpoint", "pages", "sweep")
            } <= names
        assert not {"Stop", "Kill"} & names  # no run is active

    drive(runs, act)


def test_theme_and_view_are_restored(runs: Path) -> None:
    async def act(pilot: Pilot[None], app: Terminal) -> None:
        await wait_until(pilot, lambda: "seed" in run_list(app).columns)
        await pilot.press("T", "space", "p", "o", "l", "f")
        await wait_until(pilot, lambda: isinstance(app.screen, MetricScreen))
        await pilot.press("escape", "q")

    async def come_back(pilot: Pilot[None], app: Terminal) -> None:
        assert app.theme == "ppo-light"
        assert not app.current_theme.dark
        assert app.state.marked == ["gamma"]
        assert app.state.pinned == "beta"
        assert app.state.sorted_by == "optim.lr"
        await wait_until(pilot, lambda: listed_keys(app) == ["gamma", "alpha", "beta"])
        assert find_plots(app).settings.log_y

    drive(runs, act)
    drive(runs, come_back)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[1]",
        '{"marked": 3, "theme": "none such", "sorted_by": "x", "typed": {"a": 1}, "charts": {"grid": "x"}, "odd": 1,'
        ' "language": "../en"}',
    ],
)
def test_damaged_view_file_does_not_prevent_start(runs: Path, text: str) -> None:
    ViewState().save(runs)
    (path,) = Path(str(ViewState.path(runs))).parent.glob("*.json")
    path.write_text(text, encoding="utf-8")

    async def act(pilot: Pilot[None], app: Terminal) -> None:
        assert len(listed_keys(app)) == 3
        assert app.theme == "ppo-dark"
        assert app.state.language == "en"

    drive(runs, act)


def test_unwritable_state_and_deleted_runs_folder_do_no_harm(
    runs: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))  # simulates an unwritable folder

    async def act(pilot: Pilot[None], app: Terminal) -> None:
        await pilot.press("space", "T")
        shutil.rmtree(runs)
        await wait_until(pilot, lambda: not listed_keys(app))

    drive(runs, act)


def test_screen_is_ascii_without_unicode(runs: Path) -> None:
    async def act(pilot: Pilot[None], app: Terminal) -> None:
        await pilot.press("space")
        await wait_until(pilot, lambda: "eval/score" in screen_text(app))
        rows = screen_text(app).splitlines()
        assert all(row.isascii() for row in rows[:-1]), [row for row in rows if not row.isascii()]
        await pilot.press("t")
        await wait_until(pilot, lambda: "options" in screen_text(app))
        rows = screen_text(app).splitlines()
        assert all(row.isascii() for row in rows[:-1]), [row for row in rows if not row.isascii()]

    drive(runs, act, unicode=False)


def test_clock_set_back_does_no_harm(runs: Path) -> None:
    from tui.store import Store

    now = [time.time()]

    async def act(pilot: Pilot[None], app: Terminal) -> None:
        now[0] -= 1e6
        make_run(runs, "later", 8)
        await wait_until(pilot, lambda: "later" in listed_keys(app))

    drive(runs, act, store=Store(runs, clock=lambda: now[0]))


def test_view_is_stored_per_folder(runs: Path, tmp_path: Path) -> None:
    ViewState(query="failed").save(runs)
    assert ViewState.load(runs).query == "failed"
    assert ViewState.load(tmp_path).query == ""
    table = json.loads(ViewState.path(runs).read_text(encoding="utf-8"))
    assert table["runs"] == str(runs.resolve())


def test_run_page_updates_while_other_runs_are_marked(runs: Path) -> None:
    async def act(pilot: Pilot[None], app: Terminal) -> None:
        await pilot.press("space", "up")  # mark gamma
        run_list(app).move_to("alpha")
        await pilot.press("enter")
        assert isinstance(app.screen, RunPage)
        page: RunPage = app.screen
        make_run(runs, "another", 9)  # must also update the list below this screen
        await wait_until(pilot, lambda: "another" in app.store.entries)
        writer = EventWriter(runs / "alpha", 1001)
        writer.scalars(1100, dict.fromkeys(TAGS, 7.0))
        writer.close()
        await wait_until(pilot, lambda: page.plots.traces("eval/score")[0].curve[0][-1] == 1100)
        await pilot.press("escape")
        await wait_until(pilot, lambda: curve_keys(app) == ["gamma"])

    drive(runs, act)


def test_damage_is_reported_while_the_run_is_shown(runs: Path) -> None:
    (found,) = (runs / "beta").glob("events*")
    whole = found.read_bytes()
    found.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))

    async def act(pilot: Pilot[None], app: Terminal) -> None:
        await wait_until(pilot, lambda: curve_keys(app) == ["gamma"])
        assert "damaged" not in screen_text(app)
        await pilot.press("down")
        await wait_until(pilot, lambda: "damaged" in screen_text(app))
        await pilot.press("enter")
        await wait_until(
            pilot, lambda: isinstance(app.screen, RunPage) and "Some curves could not be read" in screen_text(app)
        )
        await pilot.press("escape", "down")
        await wait_until(pilot, lambda: curve_keys(app) == ["alpha"] and "damaged" not in screen_text(app))

    drive(runs, act)


def test_deleted_run_disappears_everywhere(runs: Path) -> None:
    async def act(pilot: Pilot[None], app: Terminal) -> None:
        await pilot.press("space", "home", "p", "d", "y")
        await wait_until(pilot, lambda: listed_keys(app) == ["beta", "alpha"])
        assert app.state.marked == []
        assert app.state.pinned == ""
        await wait_until(pilot, lambda: len(curve_keys(app)) == 1)

    drive(runs, act)


def test_renamed_run_keeps_its_mark(runs: Path) -> None:
    make_run(runs / "group", "one", 5)

    async def act(pilot: Pilot[None], app: Terminal) -> None:
        await wait_until(pilot, lambda: "group/one" in listed_keys(app))
        run_list(app).move_to("group/one")
        await pilot.press("space")
        run_list(app).move_to("group/one")
        await pilot.press("e")
        app.screen.query_one(Input).value = "alpha"  # a run of this name exists in the parent folder
        await pilot.press("enter")
        await wait_until(pilot, lambda: current_key(app) == "group/alpha")
        assert app.state.marked == ["group/alpha"]

    drive(runs, act)


def test_unusual_names_and_times_are_shown(runs: Path) -> None:
    """Names may be invalid UTF-8, and times may be out of range."""
    make_run(runs, os.fsdecode(b"odd-\xff"), 8, started=1e20, resumes=[{"time": 1e18, "step": 1}])

    async def act(pilot: Pilot[None], app: Terminal) -> None:
        await pilot.press("home", "x", "x")
        await wait_until(pilot, lambda: bool(curve_keys(app)))
        await pilot.press("enter", "6")
        await wait_until(pilot, lambda: "started" in screen_text(app))

    drive(runs, act)


def test_unusual_input_in_picker_and_form_does_no_harm(runs: Path) -> None:
    async def act(pilot: Pilot[None], app: Terminal) -> None:
        await pilot.press("n")
        app.screen.query_one(Input).value = "x" * 5000
        await pilot.pause()
        app.screen.query_one(Input).value = "cartpole"
        await pilot.press("enter", "slash", *"zzz", "down", "pagedown", "pageup", "up")
        assert isinstance(app.screen, Form)

    drive(runs, act)


def test_run_name_is_checked_in_the_shown_folder(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run of the same name in the default runs folder does not matter."""
    make_run(runs.parent / "runs", "taken", 4)
    other = runs.parent / "other"
    started: list[list[str]] = []
    monkeypatch.chdir(runs.parent)

    def start(arguments: Sequence[str], folder: Path, **_: object) -> Run:
        started.append(list(arguments))
        return Run(folder / "taken")

    monkeypatch.setattr(control, "start", start)

    async def act(pilot: Pilot[None], app: Terminal) -> None:
        app.state.typed["cartpole"] = {"name": "taken"}
        await pilot.press("n", "enter", "enter")
        await wait_until(pilot, lambda: bool(started))

    drive(other, act)
    assert started == [["cartpole", "--name", "taken"]]
