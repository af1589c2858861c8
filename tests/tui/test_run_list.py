"""Tests the columns of the list of runs, its layout, and the pane with the details of the selected run."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot
from textual.widgets import Input, Static

from ppo_unified.config.presets import load_preset
from ppo_unified.errors import UsageError
from ppo_unified.runs.event_writer import EventWriter
from ppo_unified.runs.folder import Run, Status
from ppo_unified.runs.notes import write_note
from tests.tui.test_app import (
    drive,
    listed_keys,
    make_run,
    notifications,
    run_list,
    screen_text,
    wait_until,
)
from tui.app import Terminal
from tui.dialogs import PromptDialog, TextDialog
from tui.runs.entries import Entry, sort_entries
from tui.runs.option_columns import rank_differences, read_names
from tui.runs.run_list import COLUMNS, Marks, RunList
from tui.runs.runs_screen import RunsScreen
from tui.view_state import ViewState

pytestmark = pytest.mark.usefixtures("shorten_ui_delays")
NAME = "cartpole-with-a-very-long-name-lr3e-3-and-clip0.2-s{}"


@pytest.fixture(autouse=True)
def _own_state(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the tests away from the user's saved state."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))


def entry(key: str, preset: str = "cartpole", **options: Any) -> Entry:
    options = {name.replace("__", "."): value for name, value in options.items()}
    return Entry(key, Path(key), False, Status(preset=preset), "finished", options=options)


def screen_of(app: Terminal) -> RunsScreen:
    screen = app.screen_stack[1]
    assert isinstance(screen, RunsScreen)
    return screen


def head(app: Terminal) -> str:
    return "".join(segment.text for segment in run_list(app).render_line(0))


# columns


def test_options_that_separate_most_runs_come_first() -> None:
    grid = [
        entry(f"{lr}-{clip}-{seed}", seed=seed, ppo__clip=clip, optim__lr=lr, ppo__epochs=round(1 / clip), gym__n=4)
        for lr in (1e-3, 2e-3, 3e-3)
        for clip in (0.1, 0.2)
        for seed in (1, 2)
    ]
    assert rank_differences(grid) == ["optim.lr", "ppo.clip", "seed", "ppo.epochs"]  # epochs depends on clip
    llm = [entry("llm", "sentiment", seed=1, llm__kl_coef=0.1, ppo__clip=0.4)]  # differs from all others in its preset
    assert rank_differences(grid[:2] + llm) == ["seed"]
    assert rank_differences([entry("a", seed=1), entry("old"), entry("b", seed=1, ppo__x=2)]) == []
    assert rank_differences([]) == []
    lists = [entry("a", policy__hidden=[64, 64]), entry("b", policy__hidden=[64])]
    assert rank_differences(lists) == ["policy.hidden"]


def test_typed_columns_are_option_names() -> None:
    known = {"seed", "optim.lr", "ppo.clip", "llm.clip"}
    assert read_names("lr, SEED optim.lr", known) == ["optim.lr", "seed"]
    assert read_names(" ", known) == []
    for text, message in (
        ("clip", "'clip' is the name of several options; use llm.clip or ppo.clip"),
        ("optim.lrr", "no run has the option 'optim.lrr'; did you mean 'optim.lr'?"),
    ):
        with pytest.raises(UsageError, match=f"^{message.replace('?', '[?]')}$"):
            read_names(text, known)


def test_runs_are_sorted_by_options_as_numbers() -> None:
    entries = [entry("a", optim__lr=1e-2), entry("b", optim__lr=9e-3), entry("c"), entry("d", optim__lr="auto")]
    assert [e.key for e in sort_entries(entries, "optim.lr", False)] == ["b", "a", "d", "c"]
    assert [e.key for e in sort_entries(entries, "optim.lr", True)] == ["d", "a", "b", "c"]


def test_option_columns_are_chosen_or_differ(tmp_path: Path) -> None:
    for seed, lr in ((1, 1e-3), (2, 1e-2)):
        make_run(tmp_path, f"run-{seed}", seed, lr)

    async def act(pilot: Pilot[None], app: Terminal) -> None:
        await wait_until(pilot, lambda: head(app).split()[-2:] == ["lr", "seed"])
        assert "0.01" in screen_text(app).splitlines()[2]
        await pilot.click("RunList", offset=(head(app).index(" lr") + 1, 0))
        assert (app.state.sorted_by, listed_keys(app)) == ("optim.lr", ["run-1", "run-2"])
        await pilot.press("C")
        assert isinstance(app.screen, PromptDialog)
        assert "Examples: optim.lr seed" in screen_text(app)
        app.screen.query_one(Input).value = "env-id sed"
        await pilot.press("enter")
        assert (
            str(app.screen.query_one(".error", Static).content) == "no run has the option 'sed'; did you mean 'seed'?"
        )
        app.screen.query_one(Input).value = "env-id"
        await pilot.press("enter")
        assert head(app).split()[-1] == "env_id"
        assert "CartPole-v1" in screen_text(app)
        assert "sorted by optim.lr" in screen_text(app)
        app.save_state()
        assert ViewState.load(app.runs).columns == ["gym.env_id"]

    drive(tmp_path, act)


def test_columns_without_values_are_hidden(tmp_path: Path) -> None:
    for seed in (1, 2):
        make_run(tmp_path, NAME.format(seed), seed, score=None, preset="")

    async def act(pilot: Pilot[None], app: Terminal) -> None:
        await wait_until(pilot, lambda: head(app).split()[-1] == "seed")
        assert head(app).split() == ["run", "state", "step", "done", "age▲", "seed"]
        for seed, line in zip((2, 1), screen_text(app).splitlines()[2:], strict=False):
            name = line[2:].split()[0]
            assert name == f"cartpole-with-a-ver~r3e-3-and-clip0.2-s{seed}"
        run = Run(tmp_path / NAME.format(1))
        run.write_status(replace(run.read_status(), score=12.5))
        await wait_until(pilot, lambda: "score" in head(app))

    drive(tmp_path, act)


def test_docs_and_help_explain_every_column(tmp_path: Path) -> None:
    make_run(tmp_path, "a")
    docs = (Path(__file__).parents[2] / "docs" / "tui.md").read_text()
    table = dict(re.findall(r"^\| ([\w/]+) \| ([^|]+) \|$", docs, re.MULTILINE))
    assert {column.head: column.help for column in COLUMNS.values()}.items() <= table.items()

    async def act(pilot: Pilot[None], app: Terminal) -> None:
        await pilot.press("question_mark")
        assert isinstance(app.screen, TextDialog)
        assert "score of the last greedy evaluation" in str(app.screen.body)

    drive(tmp_path, act)


# layout


def test_wide_screen_shows_all_columns_and_the_details(tmp_path: Path) -> None:
    for seed in range(1, 4):
        run = make_run(tmp_path, f"run-number-{seed}", seed, best_score=120.0, elapsed_s=10.0)
        write_note(run, "a note that is longer than the column")

    async def act(pilot: Pilot[None], app: Terminal) -> None:
        await wait_until(pilot, lambda: "seed" in run_list(app).columns)
        narrow = head(app).split()
        assert {"preset", "best", "steps/s", "age▲", "note"} <= set(narrow)
        await pilot.resize_terminal(200, 60)
        await wait_until(pilot, lambda: screen_of(app).details.size.height > 30)
        assert {*narrow, "seed"} <= set(head(app).split())
        assert 70 <= screen_of(app).plots.size.width <= 200 - run_list(app).size.width
        await wait_until(pilot, lambda: "end of the log" not in screen_text(app))
        width = run_list(app).size.width
        await pilot.press("less_than_sign", "less_than_sign", "less_than_sign")
        await wait_until(pilot, lambda: run_list(app).size.width < width - 10)
        assert (app.state.list_share, bool(app.state.list_width)) == (40, True)
        await pilot.press(*["greater_than_sign"] * 3)
        assert app.state.list_width == 0  # the list is again as wide as its columns need
        await wait_until(pilot, lambda: run_list(app).size.width == width)
        assert "a note that is longer than the column" in screen_text(app)
        await pilot.press(*["less_than_sign"] * 3)
        await pilot.press("t")
        await wait_until(pilot, lambda: run_list(app).size.height > 50)
        await pilot.resize_terminal(80, 24)
        await wait_until(pilot, lambda: run_list(app).size.width == 80)
        assert screen_of(app).plots.size.height > 10
        await pilot.press("t", "l")
        await wait_until(pilot, lambda: screen_of(app).details.size.height > 10)
        assert not screen_of(app).plots.settings.log_y  # the charts are hidden, so their keys do nothing
        assert "a note that is longer than the column" in screen_text(app)
        assert (app.state.details, app.state.details_beside) == (True, False)

    drive(tmp_path, act)


def test_heads_and_counts_stay_whole_on_a_small_screen(tmp_path: Path) -> None:
    for seed in (1, 2, 3):
        run = make_run(tmp_path, f"run-{seed}", seed, best_score=120.0, elapsed_s=10.0)
        config = run.config.read_text().replace("CartPole-v1", f"a_long_module_name.envs:AnEnvironment-v{seed}")
        run.config.write_text(config)
    state = ViewState(marked=["run-1", "run-2", "run-3"], query="!run-3")
    state.save(tmp_path)

    async def act(pilot: Pilot[None], app: Terminal) -> None:
        await wait_until(pilot, lambda: "seed" in run_list(app).columns)
        heads, hidden = run_list(app).columns, set()
        for name in heads:
            app.state.sorted_by = name
            screen_of(app)._relist()
            found = re.search(rf"{re.escape(heads[name].head)}[▲▼] ", head(app) + " ")
            hidden |= set() if found else {name}
            assert found or name not in run_list(app)._widths, head(app)
            assert bool(found) != bool(run_list(app).hidden_order)
        assert len(hidden) < 6
        assert "3 marked, 1 hidden" in screen_text(app).splitlines()[0]
        app.state.columns = ["gym.env_id"]
        screen_of(app)._relist()
        assert run_list(app)._widths["gym.env_id"] == 16
        app.state.query = "nothing-like-it"
        screen_of(app).focus_run("run-2")
        await pilot.pause()
        assert "run-2 is hidden by the filter; press / to change it." in notifications(app)
        assert listed_keys(app) == []

    drive(tmp_path, act, size=(80, 24), unicode=True)


def test_order_of_the_list_states_its_direction() -> None:
    runs = RunList()
    orders = []
    for runs.sorted_by, runs.reverse in (("age", False), ("age", True), ("percent", False), ("optim.lr", True)):
        orders.append(runs.hidden_order)
    assert orders == ["newest first", "oldest first", "sorted by done, descending", "sorted by optim.lr, descending"]


@pytest.mark.parametrize("width", [80, 140])
def test_notes_use_the_space_of_a_nearly_empty_column(tmp_path: Path, width: int) -> None:
    make_run(tmp_path, "a")
    note = "clip was too wide"
    entries = [
        replace(entry("cartpole-clip0.2-lr0.001-1"), state="running", eta_s=108.0),
        replace(entry("cartpole-2"), note=note),
    ]

    async def act(pilot: Pilot[None], app: Terminal) -> None:
        run_list(app).show(entries, Marks(), {})
        await pilot.pause()
        lines = [run_list(app).render_line(row).text for row in range(3)]
        assert ("ETA" in lines[0].split()) == (width == 140), lines
        assert ("ETA 1.8 min" in lines[1]) == (width == 80), lines
        assert " 1.8 min " in lines[1]
        assert note in lines[2]

    drive(tmp_path, act, size=(width, 24))


# details


def test_details_follow_the_cursor(tmp_path: Path) -> None:
    health = [{"name": "kl", "since": 1234, "text": "the policy changes too fast; lower optim.lr"}]
    run = make_run(tmp_path, "bad", 3, state="failed", reason="the loss is not finite", health=health)
    run.config.write_text(load_preset("cartpole", seed=3, ppo={"clip": 0.4}).to_toml())
    run.log.write_text("".join(f"line {number} [b]\n" for number in range(100)) + "last\x1b[2J line")
    write_note(run, "too [bold]wide")
    other = make_run(tmp_path, "gone", 2, init={"run": "bad", "step": 1000})
    other.config.write_text(other.config.read_text().replace('"cartpole"', '"my-file"'))
    plain = make_run(tmp_path, "plain", 2)
    plain.config.write_text(plain.config.read_text().replace('"cartpole"', '""'))
    (tmp_path / "other").mkdir()
    writer = EventWriter(tmp_path / "other")
    writer.scalars(7, {"rollout/ep_rew_mean": 3.5})
    writer.close()

    async def act(pilot: Pilot[None], app: Terminal) -> None:
        run_list(app).move_to("bad")
        await wait_until(pilot, lambda: "last line" in screen_text(app))
        lines = [line.rstrip() for line in screen_text(app).splitlines()]
        for expected in (
            " the loss is not finite",
            " ! kl since step 1,234: the policy changes too fast; lower optim.lr",
            " note: too [bold]wide",
            " options that differ from the preset cartpole",
            " seed      1       3",
            " ppo.clip  0.2     0.4",
            " line 99 [b]",
        ):
            assert any(expected == line[: len(expected)] for line in lines), (expected, lines)
        run_list(app).move_to("gone")
        unknown = "Options cannot be compared, because the options of my-file are unknown."
        await wait_until(pilot, lambda: unknown in screen_text(app))
        assert "Started with the policy of bad, step 1,000." in screen_text(app)
        assert "last line" not in screen_text(app)
        run_list(app).move_to("plain")
        missing = "Options cannot be compared, because this run has no preset."
        await wait_until(pilot, lambda: missing in screen_text(app))
        run_list(app).move_to("other")
        await wait_until(pilot, lambda: "Another program wrote this log: " in screen_text(app))
        assert "KiB" not in screen_text(app)
        screen_of(app).details.show(replace(app.store.entries["other"], partial=True), "")
        parts = ("To list logs quickly", "last 256 KiB", "the best score may be unknown", "Press Enter to read")
        await wait_until(pilot, lambda: all(part in " ".join(screen_text(app).split()) for part in parts))
        assert notifications(app) == ""

    ViewState(details=True).save(tmp_path)
    drive(tmp_path, act)
