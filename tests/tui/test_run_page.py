"""Tests a run's page with key presses, and the properties of its log view."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from textual.app import App
from textual.content import Content
from textual.pilot import Pilot
from textual.screen import Screen
from textual.widgets import Static

from ppo_unified import load_preset
from ppo_unified.errors import UsageError
from ppo_unified.runs import control, notes, samples
from ppo_unified.runs.event_writer import EventWriter
from ppo_unified.runs.folder import Run, Status
from tui.action import Place
from tui.actions import actions_of
from tui.charts.plots import Plots
from tui.charts.settings import Settings
from tui.runs.entries import Entry
from tui.runs.log_view import MOST_LINES, LogView, Tail
from tui.runs.run_page import TABS, RunPage, TabBar
from tui.runs.run_tabs import Options, System
from tui.runs.seeds import siblings
from tui.store import Changes, Store
from tui.view_state import ViewState

ROOT = Path(__file__).resolve().parents[2]
CONFIG = 'kind = "gym"\nseed = 1\n[ppo]\nclip = {clip}\nlam = 0.95\n[gym]\nenv_id = "CartPole-v1"\nwrappers = []\n'


class Host(App[None]):
    """A minimal app that provides what the page needs."""

    def __init__(self, runs: Path, readonly: bool = False) -> None:
        super().__init__()
        self.runs, self.readonly, self.unicode = runs, readonly, True
        self.state, self.store = ViewState(), Store(runs)
        self.asked: list[tuple[str, str]] = []

    def read_now(self) -> None:
        """Do nothing, because this app updates the store continuously."""

    def attempt(self, work: Callable[[], object]) -> None:
        try:
            work()
        except UsageError as error:
            self.notify(str(error), severity="error")

    def run_in_thread(self, work: Callable[[], str], on_error: Callable[[str], object] | None = None) -> None:
        self.asked.append(("run_in_thread", work()))

    def open_rerun(self, entry: Entry) -> None:
        self.asked.append(("rerun", entry.key))

    def on_run_deleted(self, key: str) -> None:
        self.asked.append(("deleted", key))

    def show_error(self, text: str) -> None:
        self.notify(text, severity="error")

    def on_run_renamed(self, key: str, run: Run) -> None:
        self.asked.append((key, run.name))

    def save_state(self) -> None:
        """Do nothing, because no page changes the state."""

    def open_picker(self) -> None:
        """Do nothing, because no page opens the picker."""

    def on_mount(self) -> None:
        self.set_interval(0.05, self.turn)

    def turn(self) -> None:
        """Update the store, as the UI's reader thread would."""
        changes = self.store.update()
        if changes.is_news:
            self.send_changes(changes)

    def send_changes(self, changes: Changes) -> None:
        for screen in self.screen_stack:
            if isinstance(screen, RunPage):
                screen.update_from_store(changes)


def make_run(runs: Path, name: str = "a", clip: float = 0.2, **changes: object) -> Run:
    run = Run(runs / name)
    run.path.mkdir(parents=True)
    run.config.write_text(CONFIG.format(clip=clip), encoding="utf-8")
    run.command.write_text("ppo-unified train cartpole --seed 1\n", encoding="utf-8")
    status = Status(
        name=name, preset="cartpole", kind="gym", state="finished", step=1500, total_steps=3000, score=412.5
    )
    status.started, status.heartbeat, status.best_step, status.best_score = 1e9, 1e9 + 60, 1000, 450.0
    for key, value in changes.items():
        setattr(status, key, value)
    run.write_status(status)
    writer = EventWriter(run.path)
    for step in range(0, 1500, 100):
        writer.scalars(step, {"eval/score": step / 3, "policy/kl": 0.01, "system/cpu": 90.0, "system/memory_gb": 0.4})
    writer.close()
    return run


def drive(
    host: Host, act: Callable[[Pilot[None], RunPage], Coroutine[Any, Any, None]], key: str = "a", reference: str = ""
) -> None:
    """Open the page of run `key` in a terminal of 80 x 24 and call `act`."""

    async def whole() -> None:
        async with host.run_test(size=(80, 24)) as pilot:
            while host.store.update().pending or key not in host.store.entries:
                pass
            page = RunPage(host, key, host.store, reference or None, Plots(Settings()))
            await host.push_screen(page)
            await pilot.pause()
            await act(pilot, page)

    asyncio.run(whole())


def widget_text(screen: Screen[Any], selector: str) -> str:
    return str(screen.query_one(selector, Static).visual)


def screen_text(app: App[Any]) -> str:
    """Return the text on the screen."""
    width, height = app.size
    lines = [[" "] * width for _ in range(height)]
    strips = app.screen._compositor.render_strips()
    return "\n".join(strip.text for strip in strips) if strips else str(lines)


async def wait_until(pilot: Pilot[None], holds: Callable[[], object], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, screen_text(pilot.app)
        await pilot.pause(0.02)


# tabs and header


def test_head_shows_run_status(tmp_path: Path) -> None:
    run = make_run(tmp_path, state="failed", reason="OverflowError: fell\x1b[31m [red]")
    notes.write_note(run, "too [b]fast[/b]")

    async def act(pilot: Pilot[None], page: RunPage) -> None:
        head = widget_text(page, "#head")
        for part in ("a  failed", "1500 of 3000 steps (50%)", "score 412.5", "best 450"):
            assert part in head
        assert "OverflowError: fell [red]" in head
        assert "too [b]fast[/b]" in head

    drive(Host(tmp_path), act)


def test_other_seeds_can_be_drawn_as_one_curve(tmp_path: Path) -> None:
    make_run(tmp_path)
    for number, name in enumerate(("b", "c"), 2):
        run = make_run(tmp_path, name)
        run.config.write_text(CONFIG.format(clip=0.2).replace("seed = 1", f"seed = {number}"), encoding="utf-8")
    make_run(tmp_path, "d", clip=0.3)
    run = make_run(tmp_path, "e", init={"run": "cp", "step": 1490})
    run.config.write_text(CONFIG.format(clip=0.2).replace("seed = 1", "seed = 4"), encoding="utf-8")

    async def act(pilot: Pilot[None], page: RunPage) -> None:
        def drawn_labels() -> list[str]:
            return [one.label for one in page.plots.plots[0].curves]

        await wait_until(pilot, lambda: bool(page.plots.plots) and drawn_labels() == ["a"])
        await pilot.press("A")
        await wait_until(pilot, lambda: len(drawn_labels()) == 2)
        assert drawn_labels()[0] == "a"
        assert siblings(page.store, "a") == ["b", "c"]
        assert any("2 seeds" in label for label in drawn_labels())
        await pilot.press("A")
        await wait_until(pilot, lambda: drawn_labels() == ["a"])

    drive(Host(tmp_path), act)


def test_run_without_other_seeds_is_not_grouped(tmp_path: Path) -> None:
    make_run(tmp_path)

    async def act(pilot: Pilot[None], page: RunPage) -> None:
        await wait_until(pilot, lambda: bool(page.plots.plots))
        settings = page.plots.settings
        settings.x_axis = "time"
        await pilot.press("A")
        await pilot.pause()
        assert (settings.aggregate, settings.axis) == (False, "time")
        messages = [notification.message for notification in pilot.app._notifications]
        assert messages == ["No other run differs from a only in the seed."]

    drive(Host(tmp_path), act)


@pytest.mark.parametrize(("preset", "drawn"), [("cartpole", ["b", "a"]), ("acrobot", ["a"]), ("", ["a"])])
def test_pinned_run_is_drawn_and_named_if_it_has_the_preset(tmp_path: Path, preset: str, drawn: list[str]) -> None:
    make_run(tmp_path)
    make_run(tmp_path, "b", preset=preset)
    host = Host(tmp_path)
    host.state.pinned = "b"

    async def act(pilot: Pilot[None], page: RunPage) -> None:
        await wait_until(pilot, lambda: "eval/score" in screen_text(pilot.app))
        await wait_until(pilot, lambda: [one.label for one in page.plots.plots[0].curves] == drawn)
        assert ("pinned: b" in str(page.plots.query_one(".page", Static).render())) == (len(drawn) > 1)
        assert ("b 466.7 pin" in page.plots.plots[0].render_line(0).text) == (len(drawn) > 1)
        host.state.pinned = "a"  # the page of the pinned run itself
        page._draw_curves()
        await pilot.pause()
        assert [(one.label, one.pinned) for one in page.plots.plots[0].curves] == [("a", True)]
        assert "pinned" not in str(page.plots.query_one(".page", Static).render())

    drive(host, act)


def test_repeated_run_is_not_another_seed(tmp_path: Path) -> None:
    make_run(tmp_path)
    make_run(tmp_path, "a-2")  # the same options and seed
    for name, seed in (("b-1", 2), ("b-1-2", 2), ("b-2", 3)):
        run = make_run(tmp_path, name)
        run.config.write_text(CONFIG.format(clip=0.2).replace("seed = 1", f"seed = {seed}"), encoding="utf-8")

    async def act(pilot: Pilot[None], page: RunPage) -> None:
        await pilot.press("A")
        labels = ["a", "b (2 seeds, 1 repeat hidden)"]
        await wait_until(pilot, lambda: sorted(one.label for one in page.plots.plots[0].curves) == labels)

    drive(Host(tmp_path), act)


def test_tabs_open_by_digit_bracket_and_click(tmp_path: Path) -> None:
    make_run(tmp_path)

    async def act(pilot: Pilot[None], page: RunPage) -> None:
        panes = page.query_one("#panes")
        for number, tab in enumerate(TABS, 1):
            await pilot.press(str(number))
            assert page.tab == panes.current == tab  # type: ignore[attr-defined]
        for tab in TABS:
            await pilot.press("greater_than_sign")
            assert page.tab == tab
        for tab in reversed(TABS[:-1]):
            await pilot.press("less_than_sign")
            assert page.tab == tab
        for place, tab in ((15, "options"), (50, "events"), (2, "curves")):
            await pilot.click(TabBar, offset=(place, 0))
            await pilot.pause()
            assert page.tab == tab

    drive(Host(tmp_path), act)


@pytest.mark.parametrize("key", ["escape", "q"])
@pytest.mark.parametrize("tab", ["1", "3"])
def test_escape_and_q_return_to_the_list(key: str, tab: str, tmp_path: Path) -> None:
    make_run(tmp_path)

    async def act(pilot: Pilot[None], page: RunPage) -> None:
        await pilot.press(tab, key)
        assert pilot.app.screen is not page
        assert pilot.app.is_running

    drive(Host(tmp_path), act)


def test_run_page_has_a_method_for_every_action() -> None:
    places: tuple[Place, ...] = RunPage.places
    missing = [
        action.name for place in places for action in actions_of(place) if not hasattr(RunPage, f"action_{action.name}")
    ]
    assert not missing


def test_chart_keys_work_only_on_curves_tab(tmp_path: Path) -> None:
    make_run(tmp_path)

    async def act(pilot: Pilot[None], page: RunPage) -> None:
        await wait_until(pilot, lambda: "eval/score" in screen_text(pilot.app))
        await pilot.press("l")
        assert page.plots.settings.log_y
        await pilot.press("2", "l")
        assert page.plots.settings.log_y
        await pilot.press("1", "f")
        await pilot.pause()
        assert pilot.app.screen is not page
        await pilot.press("escape")
        assert pilot.app.screen is page

    drive(Host(tmp_path), act)


# options


def test_options_are_grouped_and_compared_with_preset(tmp_path: Path) -> None:
    make_run(tmp_path)
    make_run(tmp_path, "b", clip=0.3, init={"run": "cp", "step": 1490})

    async def act(pilot: Pilot[None], page: RunPage) -> None:
        await pilot.press("2")
        await pilot.pause()
        lines = widget_text(page, "#options Static").splitlines()
        assert [line for line in lines[1:] if line and not line.startswith(" ")] == ["run", "ppo", "gym"]
        assert lines[0].startswith("No option is marked, because this run has no preset")
        assert "  clip      0.2" in lines
        await pilot.press("D")
        shown = widget_text(page, "#options Static")
        assert "Options that differ from b" in shown
        assert shown.splitlines()[-2].split() == ["ppo.clip", "0.2", "0.3"]
        assert shown.splitlines()[-1].split() == ["init", "-", "cp,", "step", "1,490"]
        await pilot.press("D")
        assert "lam" in widget_text(page, "#options Static")

    drive(Host(tmp_path), act, reference="b")


def test_options_that_differ_from_the_preset_are_marked(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"seed": 3, "ppo": {"clip": 0.4}, "eval": {"threshold": None}, "stop_when_solved": False}
    make_run(tmp_path).config.write_text(load_preset("cartpole", **changes).to_toml(), encoding="utf-8")
    config = make_run(tmp_path, "b").config
    config.write_text(load_preset("sentiment", recipe="trl-early").to_toml(), encoding="utf-8")
    newer = make_run(tmp_path, "c").config
    newer.write_text('kind = "gym"\nseed = 7\n[ppo]\nfuture = 1\n', encoding="utf-8")

    async def act(pilot: Pilot[None], page: RunPage) -> None:
        def shown() -> str:
            return widget_text(page, "#options Static")

        await pilot.press("2")
        await wait_until(pilot, lambda: "options differ" in shown())
        lines = shown().splitlines()
        assert lines[0].startswith("* 4 options differ from the preset cartpole ")
        assert [line.split() for line in lines[1:] if line.startswith("*")] == [
            ["*", "seed", "3", "preset:", "1"],
            ["*", "stop_when_solved", "false", "preset:", "true"],
            ["*", "clip", "0.4", "preset:", "0.2"],
            ["*", "threshold", "-", "preset:", "490.0"],
        ]
        assert "clip range" not in shown()  # there is no space for descriptions
        await pilot.resize_terminal(120, 40)
        await wait_until(pilot, lambda: "clip range of the ratio: [1 - clip, 1 + clip]" in shown())
        lines = shown().splitlines()
        clip = next(line for line in lines if line.startswith("* clip "))
        assert " ".join(clip.split()).startswith("* clip 0.4 preset: 0.2 clip range")
        assert any(line.endswith("~") for line in lines)
        assert max(map(len, lines)) <= page.query_one(Options).scrollable_content_region.width
        page.query_one(Options).refresh_text(page.store.entries["b"], None)
        assert shown().startswith("No option differs from the preset sentiment-trl-early ")
        page.query_one(Options).refresh_text(page.store.entries["c"], None)
        assert "[ppo] has no option 'future'" in shown().splitlines()[0]
        assert "  future  1" in shown().splitlines()

    drive(Host(tmp_path), act)


def test_difference_key_needs_another_run(tmp_path: Path) -> None:
    make_run(tmp_path)

    async def act(pilot: Pilot[None], page: RunPage) -> None:
        await pilot.press("D")
        await pilot.pause()
        assert page.tab == "options"
        assert "To compare options, first pin" in widget_text(page, "#options Static")

    drive(Host(tmp_path), act)


def test_unreadable_options_are_reported(tmp_path: Path) -> None:
    make_run(tmp_path).config.write_text("[[", encoding="utf-8")

    async def act(pilot: Pilot[None], page: RunPage) -> None:
        await pilot.press("2")
        await wait_until(pilot, lambda: "invalid TOML" in widget_text(page, "#options Static"))

    drive(Host(tmp_path), act)


# log


def test_only_the_end_of_a_long_log_is_read(tmp_path: Path) -> None:
    path = tmp_path / "log.txt"
    path.write_text("".join(f"line {i}\n" for i in range(1_000_000)), encoding="utf-8")
    tail = Tail(path)
    tail.poll()
    assert tail.skipped
    assert list(tail.lines)[-1] == "line 999999"
    assert tail.lines[0] > "line 980000"
    assert len(tail.lines) == MOST_LINES
    with open(path, "a", encoding="utf-8") as file:
        for i in range(20_000):
            file.write(f"more {i}\n")
            if i % 1000 == 0:
                file.flush()
                tail.poll()
    while tail.poll():
        pass
    assert len(tail.lines) == MOST_LINES
    assert list(tail.lines) == [f"more {i}" for i in range(15_000, 20_000)]


@pytest.mark.parametrize("seed", range(5))
def test_log_lines_do_not_depend_on_read_sizes(seed: int, tmp_path: Path) -> None:
    pick = random.Random(seed)
    text = "".join(pick.choice(["ä", "line", "\n", "\r", " ", "\t", "☃", "\x1b[1m"]) for _ in range(2000))
    whole, piecewise = tmp_path / "whole", tmp_path / "pieces"
    whole.write_bytes(text.encode())
    piecewise.touch()
    tails = Tail(whole), Tail(piecewise)
    tails[0].poll()
    left = text.encode()
    while left:
        size = pick.randint(1, 50)
        with open(piecewise, "ab") as file:
            file.write(left[:size])
        left = left[size:]
        tails[1].poll()
    assert tails[0].lines == tails[1].lines
    assert tails[0].rest == tails[1].rest


@pytest.mark.parametrize("later", [[b"one\n", b"two\n"], [b"\n", b"one\n", b"two\n"]], ids=["ended", "a progress bar"])
def test_log_tail_drops_only_the_partial_first_line(later: list[bytes], tmp_path: Path) -> None:
    path = tmp_path / "log.txt"
    bar = b"".join(b"\r%5d of 9000 .........." % k for k in range(9000))
    path.write_bytes(bar + b"\n" * (3 - len(later)))
    tail = Tail(path)
    tail.poll()
    assert tail.rest.startswith(" 8999") == (len(later) == 3)
    for lines in later:
        with open(path, "ab") as file:
            file.write(lines)
        tail.poll()
    assert list(tail.lines) == ["one", "two"]


def test_replaced_or_truncated_log_is_reread(tmp_path: Path) -> None:
    path = tmp_path / "log.txt"
    tail = Tail(path)
    assert tail.poll() == []
    path.write_text("one\ntwo\n", encoding="utf-8")
    assert tail.poll() is None
    assert list(tail.lines) == ["one", "two"]
    path.write_text("new\n", encoding="utf-8")
    assert tail.poll() is None
    assert list(tail.lines) == ["new"]
    path.unlink()
    assert tail.poll() is None
    assert tail.poll() == []
    assert not tail.lines


def test_log_follows_its_end_until_scrolled(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    run.log.write_text("".join(f"line {i}\n" for i in range(100)), encoding="utf-8")

    def write(text: str) -> None:
        with open(run.log, "a", encoding="utf-8") as file:
            file.write(text)

    async def act(pilot: Pilot[None], page: RunPage) -> None:
        await pilot.press("3")
        await wait_until(pilot, lambda: "line 99" in screen_text(pilot.app))
        write("\x1b[31mred\x1b[0m [b]bold[/b]\x07\n")
        await wait_until(pilot, lambda: "red [b]bold[/b]" in screen_text(pilot.app))
        await pilot.press("up", "up")
        await wait_until(pilot, lambda: not page.query_one(LogView).follows)
        top = screen_text(pilot.app).splitlines()[5]
        write("later\n")
        await wait_until(pilot, lambda: "later" in page.query_one(LogView).tail.lines)
        assert screen_text(pilot.app).splitlines()[5] == top
        await pilot.press("F")
        await wait_until(pilot, lambda: "later" in screen_text(pilot.app))
        await pilot.press("1", "F")
        assert page.tab == "log"

    drive(Host(tmp_path), act)


# samples

RESPONSE = {"prompt": "[red]1 + 1 =", "response": "2\x1b[2J", "score": 1.0, "kl": 0.25, "reference": "3"}


def check_directions(page: RunPage, hint: str, applicable: set[str]) -> None:
    """Check that the first line of the samples and the conditions of the page name only samples that exist."""
    assert widget_text(page, "#samples Static").split("\n")[0].partition("stored)")[2] == hint
    assert page.conditions & {"older", "newer"} == applicable


def test_responses_step_through_evaluations_and_follow_newest(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    for step in (0, 100, 200):
        samples.append_responses(run, step, step // 100, [RESPONSE | {"response": f"at {step}"}, RESPONSE])

    def shows(*parts: str) -> Callable[[], bool]:
        return lambda: all(part in widget_text(page_of[0], "#samples Static") for part in parts)

    page_of: list[RunPage] = []

    async def act(pilot: Pilot[None], page: RunPage) -> None:
        page_of.append(page)
        await pilot.press("4")
        await wait_until(pilot, shows("step 200", "3 of 3", "at 200", "[red]1 + 1 =", "score 1", "KL 0.25"))
        check_directions(page, "   { older   (newest)", {"older"})
        assert "\x1b" not in widget_text(page, "#samples Static")
        await pilot.press("left_curly_bracket")
        await wait_until(pilot, shows("2 of 3", "at 100"))
        check_directions(page, "   { older   } newer", {"older", "newer"})
        await pilot.press("left_curly_bracket")
        await wait_until(pilot, shows("1 of 3", "at 0"))
        check_directions(page, "   } newer", {"newer"})
        await pilot.press("right_curly_bracket")
        await wait_until(pilot, shows("2 of 3", "at 100"))
        samples.append_responses(run, 300, 3, [RESPONSE | {"response": "at 300"}])
        await wait_until(pilot, shows("2 of 4", "at 100"))
        await pilot.press("right_curly_bracket", "right_curly_bracket")
        await wait_until(pilot, shows("4 of 4", "at 300"))
        samples.append_responses(run, 400, 4, [RESPONSE | {"response": "at 400"}])
        await wait_until(pilot, shows("5 of 5", "at 400"))

    drive(Host(tmp_path), act)


def write_samples(run: Run, iteration: int) -> None:
    shape = (2, 5)
    columns: dict[str, np.ndarray] = {name: np.full(shape, 0.5) for name in ("reward", "value", "advantage", "ratio")}
    columns |= {"mask": np.ones(shape, bool), "continues": np.ones(shape, bool)}
    about: dict[str, Any] = {"gamma": 1.0, "lam": 0.95, "clip": 0.2, "clip_high": 0.2}
    about |= {"advantage_kind": "gae", "value_target": "lambda", "metrics": {}, "columns": columns}
    samples.write(run, samples.StoredIteration(iteration=iteration, step=10 * iteration, steps=10, **about))


def test_stored_samples_are_shown_without_responses(tmp_path: Path) -> None:
    run = make_run(tmp_path)

    async def act(pilot: Pilot[None], page: RunPage) -> None:
        await pilot.press("left_curly_bracket")  # from another tab
        assert page.tab == "samples"
        await wait_until(pilot, lambda: "No samples yet" in widget_text(page, "#samples Static"))
        write_samples(run, 1)
        write_samples(run, 7)
        await wait_until(pilot, lambda: "iteration 7" in widget_text(page, "#samples Static"))
        assert "Sample 1 (available: 0 to 1)" in widget_text(page, "#samples Static")
        await pilot.press("left_curly_bracket")
        await wait_until(pilot, lambda: "iteration 1" in widget_text(page, "#samples Static"))

    drive(Host(tmp_path), act)


# system, events


def test_system_tab_shows_host_and_resources(tmp_path: Path) -> None:
    make_run(tmp_path, host="box", pid=4711)

    async def act(pilot: Pilot[None], page: RunPage) -> None:
        await pilot.press("5")
        await wait_until(pilot, lambda: "system/cpu" in widget_text(page, "#system Static"))
        shown = widget_text(page, "#system Static")
        for part in ("box", "4711", "system/memory_gb", "0.4"):
            assert part in shown
        color = page.plots.plots[0].curves[0].color
        assert color in styles(page)  # as in the tab Curves
        pilot.app.theme = "textual-light"
        await wait_until(pilot, lambda: color not in styles(page))
        await pilot.resize_terminal(200, 60)
        both = ("system/cpu:", "system/memory_gb:")  # the charts are side by side
        await wait_until(pilot, lambda: any(all(name in line for name in both) for line in shown_lines(page)))
        assert max(map(len, shown_lines(page))) <= page.query_one(System).scrollable_content_region.width

    def shown_lines(page: RunPage) -> list[str]:
        return widget_text(page, "#system Static").splitlines()

    def styles(page: RunPage) -> set[object]:
        content = page.query_one("#system Static", Static).visual
        assert isinstance(content, Content)
        return {span.style for span in content.spans}

    drive(Host(tmp_path), act)


def test_events_tab_shows_whole_traceback(tmp_path: Path) -> None:
    traceback = "Traceback (most recent call last):\n" + "".join(f'  File "x{i}.py"\n' for i in range(60)) + "E: fell\n"
    make_run(tmp_path, state="failed", reason="E: fell", traceback=traceback)

    async def act(pilot: Pilot[None], page: RunPage) -> None:
        await pilot.press("6")
        await wait_until(pilot, lambda: "failed" in widget_text(page, "#events Static"))
        lines = widget_text(page, "#events Static").splitlines()
        assert lines[0].split() == ["time", "step", "event"]
        assert '        File "x59.py"' in lines
        best = next(line for line in lines if "best score" in line)
        assert best.startswith(time.strftime("%Y-"))  # the time comes from the curve

    drive(Host(tmp_path), act)


def test_long_event_uses_the_full_width(tmp_path: Path) -> None:
    reason = "the gradient of the policy is not finite; lower optim.lr or"  # fits into one line below, but not beside
    make_run(tmp_path, state="failed", reason=f"{reason} check the rewards of the environment", traceback="E: fell")

    async def act(pilot: Pilot[None], page: RunPage) -> None:
        await pilot.press("6")
        await wait_until(pilot, lambda: "E: fell" in widget_text(page, "#events Static"))
        lines = widget_text(page, "#events Static").splitlines()
        at = next(number for number, line in enumerate(lines) if line.rstrip().endswith("failed"))
        assert lines[at + 1].startswith(" " * 6 + reason)
        await pilot.resize_terminal(200, 60)
        await wait_until(pilot, lambda: f"failed      {reason} check the" in widget_text(page, "#events Static"))

    drive(Host(tmp_path), act)


def test_only_the_visible_tab_is_refreshed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_run(tmp_path)
    host = Host(tmp_path)

    async def act(pilot: Pilot[None], page: RunPage) -> None:
        written: list[str] = []
        await pilot.press("6")
        await pilot.pause()
        before = Static.update

        def update(self: Static, *arguments: Any, **more: Any) -> None:
            written.append(str(self.parent.id if self.parent else ""))
            before(self, *arguments, **more)

        monkeypatch.setattr(Static, "update", update)
        for _ in range(3):
            host.send_changes(Changes(True, frozenset({"a"}), False))
            await pilot.pause()
        monkeypatch.undo()
        assert not {name for name in written if name in TABS}

    drive(host, act)


# changes of the run folder


def test_page_follows_a_renamed_run(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    host = Host(tmp_path)

    async def act(pilot: Pilot[None], page: RunPage) -> None:
        control.rename(run, "b")
        await wait_until(pilot, lambda: page.key == "b")
        assert pilot.app.screen is page
        await wait_until(pilot, lambda: "b  finished" in widget_text(page, "#head"))
        await wait_until(pilot, lambda: [one.label for plot in page.plots.plots[:1] for one in plot.curves] == ["b"])

    drive(host, act)


def test_page_closes_when_its_run_is_deleted(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    host = Host(tmp_path)

    async def act(pilot: Pilot[None], page: RunPage) -> None:
        await pilot.press("d")
        await pilot.pause()
        await pilot.press("y")
        await wait_until(pilot, lambda: not run.path.exists())
        await wait_until(pilot, lambda: pilot.app.screen is not page)

    drive(host, act)


def test_foreign_logs_have_curves_and_empty_other_tabs(tmp_path: Path) -> None:
    writer = EventWriter(make_run(tmp_path, "x").path)  # creates the parent folder
    writer.close()
    (tmp_path / "sb3").mkdir()
    log = EventWriter(tmp_path / "sb3")
    log.scalars(1, {"rollout/ep_rew_mean": 1.0})
    log.close()

    async def act(pilot: Pilot[None], page: RunPage) -> None:
        for number in "123456":
            await pilot.press(number)
            await pilot.pause()
        assert "written by another program" in widget_text(page, "#options Static")

    drive(Host(tmp_path), act, key="sb3")


# actions on the run


def test_run_keys_work_on_the_run_page(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    host = Host(tmp_path)

    async def act(pilot: Pilot[None], page: RunPage) -> None:
        await pilot.press("R")
        assert host.asked == [("rerun", "a")]
        await pilot.press("y")
        assert host.clipboard == "ppo-unified train cartpole --seed 1"
        await pilot.press("N", *"good", "enter")
        assert notes.read_note(run) == "good"
        await pilot.press("e", "b", "enter")
        assert host.asked[-1] == ("a", "b")

    drive(host, act)


def test_readonly_mode_removes_writing_actions(tmp_path: Path) -> None:
    run = make_run(tmp_path)

    async def act(pilot: Pilot[None], page: RunPage) -> None:
        await pilot.press("d")
        assert pilot.app.screen is page
        assert run.path.exists()

    drive(Host(tmp_path, readonly=True), act)
