"""Tests the picker and the form with key presses."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
from textual.app import App
from textual.binding import BindingType
from textual.pilot import Pilot
from textual.widgets import Input, OptionList, Static

from ppo_unified.config.presets import preset_files
from tui.actions import actions_of, bindings
from tui.new_run import form_model
from tui.new_run.fields import GAP, LONG_VALUE, VALUE
from tui.new_run.form import Form, Recipes
from tui.new_run.picker import Picker, match_choices
from tui.themes import OURS

ROOT = Path(__file__).resolve().parents[2]
SIZES = [(80, 24), pytest.param((120, 40), marks=pytest.mark.exhaustive)]


class Host(App[None]):
    """A minimal app that provides what the form needs."""

    BINDINGS: ClassVar[list[BindingType]] = bindings("app")

    def __init__(self, runs: Path) -> None:
        super().__init__()
        self.runs = runs
        self.opened: list[str] = []
        self.started: list[Sequence[Sequence[str]]] = []
        self.copied: list[str] = []
        self.typed: dict[str, str] = {}

    def on_mount(self) -> None:
        for theme in OURS:
            self.register_theme(theme)
        self.theme = OURS[0].name

    def copy_to_clipboard(self, text: str) -> None:
        self.copied.append(text)

    async def open_form(self, target: str = "cartpole", recipe: str = "") -> Form:
        screen = Form(target, recipe=recipe, typed=self.typed, runs=self.runs, start=self.started.append)
        await self.push_screen(screen)
        return screen

    def open_picker(self) -> Picker:
        picker = Picker(self.opened.append)
        self.push_screen(picker)
        return picker


Driven = Callable[[Pilot[None], Host], Awaitable[None]]


def drive(work: Driven, tmp_path: Path, size: tuple[int, int] = (80, 24)) -> None:
    async def run() -> None:
        app = Host(tmp_path)
        async with app.run_test(size=size) as pilot:
            await work(pilot, app)

    asyncio.run(run())


async def wait_until(pilot: Pilot[None], condition: Callable[[], object]) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        await pilot.pause(0.01)


def static_text(screen: Form, name: str) -> str:
    return str(screen.query_one(f"#{name}", Static).render())


def screen_lines(app: App[None]) -> list[str]:
    """Return the lines on the screen."""
    strips = app.screen._compositor.render_strips(app.size)
    return ["".join(segment.text for segment in strip) for strip in strips]


async def move_to(pilot: Pilot[None], screen: Form, option: str) -> None:
    """Move the cursor to a visible option with arrow keys."""
    options = screen.options
    if screen.option is None:
        await pilot.press("tab", "tab")
    stops = [line.name for line in options.shown if line.kind == "option"]
    assert screen.option is not None
    by = stops.index(option) - stops.index(screen.option.name)
    await pilot.press(*["down" if by > 0 else "up"] * abs(by))
    assert screen.option.name == option


async def write(pilot: Pilot[None], text: str) -> None:
    """Replace the text in the input box."""
    await pilot.press("end", "ctrl+u", *text)


# picker


@pytest.mark.parametrize("size", SIZES)
def test_picker_opens_the_target_under_its_cursor(size: tuple[int, int], tmp_path: Path) -> None:
    async def work(pilot: Pilot[None], app: Host) -> None:
        picker = app.open_picker()
        await pilot.pause()
        await pilot.press("enter")
        assert app.opened == ["cartpole"]
        await pilot.press("down", "enter")
        assert app.opened[-1] == "acrobot"
        await pilot.press(*"lunar", "down", "enter")
        assert app.opened[-1] == "lunarlander-continuous"
        assert isinstance(app.focused, Input)
        assert any("Expected score: 250" in line for line in screen_lines(app))
        await pilot.press("pagedown", "pageup", "up", "enter")
        assert app.opened[-1] == "lunarlander-continuous"  # the cursor wraps around from the first line to the last
        assert app.screen is picker
        await pilot.press("escape")
        assert not isinstance(app.screen, Picker)

    drive(work, tmp_path, size)


@pytest.mark.parametrize("height", [24, 40])
def test_wide_picker_describes_the_target_beside_the_list(height: int, tmp_path: Path) -> None:
    """Nothing is cut without a sign: a description that is too long ends with the number of hidden lines."""

    async def work(pilot: Pilot[None], app: Host) -> None:
        app.open_picker()
        await pilot.pause()
        lines = screen_lines(app)
        assert any("cartpole" in line[:24] and "cartpole" in line[78:] for line in lines)
        assert any(line[78:].split() == ["optim.lr", "0.002", "(0.0003)"] for line in lines)
        await pilot.press(*"sentiment")
        await pilot.pause()
        shown = "\n".join(line[78:] for line in screen_lines(app))
        hidden = re.search(r"\.\.\. and (\d+) more lines", shown)
        assert (hidden is not None) == (height == 24)
        assert ("llm.kl_coef" in shown) == (height == 40)
        await pilot.press(*["backspace"] * 9, *"no.toml")
        await pilot.pause()
        assert "no.toml: file not found" in "\n".join(screen_lines(app))
        await pilot.press("escape")

    drive(work, tmp_path, (120, height))


@pytest.mark.parametrize("target", ["Foo-v1", "ALE/Pong-v5", "my.module:Foo-v0", "llm"])
def test_picker_accepts_environment_id(target: str, tmp_path: Path) -> None:
    async def work(pilot: Pilot[None], app: Host) -> None:
        app.open_picker()
        await pilot.pause()
        app.screen.query_one(Input).value = target
        await pilot.pause()
        await pilot.press("enter")
        assert app.opened == [target]

    drive(work, tmp_path)


def test_picker_accepts_file_and_reports_a_bad_one(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.toml", tmp_path / "bad.toml"
    good.write_text('kind = "gym"\n')
    bad.write_text('kind = "gym"\n[ppo]\nclp = 1\n')

    async def work(pilot: Pilot[None], app: Host) -> None:
        app.open_picker()
        await pilot.pause()
        for path, complaint in ((bad, "did you mean 'clip'"), (tmp_path / "no.toml", "file not found"), (good, "")):
            app.screen.query_one(Input).value = str(path)
            await pilot.pause()
            await pilot.press("enter")
            await pilot.pause()
            assert complaint in " ".join(str(app.screen.query_one("#about", Static).render()).split())
        assert app.opened == [str(good)]

    drive(work, tmp_path, (120, 40))


def test_picker_explains_what_to_type_without_a_target(tmp_path: Path) -> None:
    async def work(pilot: Pilot[None], app: Host) -> None:
        picker = app.open_picker()
        await pilot.pause()
        await pilot.press("up", "enter")
        assert app.opened == []
        assert "search box above" in str(picker.query_one("#about", Static).render())
        await pilot.press(*"zzz", "enter")
        assert app.opened == []
        assert "No match" in str(picker.query_one("#about", Static).render())

    drive(work, tmp_path)


def test_value_columns_leave_room_for_descriptions(tmp_path: Path) -> None:
    async def work(pilot: Pilot[None], app: Host) -> None:
        screen = await app.open_form("lunarlander")
        rows = [line for line in screen_lines(app) if line.startswith(" optim.lr ")]
        assert rows[0].index("Adam's") == 1 + screen.options.name_width + VALUE + GAP
        await move_to(pilot, screen, "name")
        await write(pilot, "n" * 70)
        assert screen.options.editor.size.width == LONG_VALUE
        assert next(line for line in screen_lines(app) if line.startswith(" name ")).split()[2] == "name"

    drive(work, tmp_path, (120, 40))


def test_narrow_form_gives_unused_columns_to_descriptions(tmp_path: Path) -> None:
    async def work(pilot: Pilot[None], app: Host) -> None:
        screen = await app.open_form("lunarlander")
        shown = "\n".join(screen_lines(app))
        assert "number of steps between evaluations;" in shown
        assert "LunarLander-v3" in shown
        widest = max(len(line.name) for line in screen.options.shown if line.kind == "option")
        assert screen.options.name_width == widest + 1
        await move_to(pilot, screen, "gym.env_id")
        await write(pilot, "e" * 70)
        row = next(line for line in screen_lines(app) if line.startswith(" gym.env_id "))
        assert "id of a Gymnasium envir" in row

    drive(work, tmp_path, (80, 24))


@pytest.mark.parametrize("size", [(80, 60), (120, 60), (200, 60)])
def test_picker_shows_the_whole_title_of_each_target(size: tuple[int, int], tmp_path: Path) -> None:
    async def work(pilot: Pilot[None], app: Host) -> None:
        app.open_picker()
        await pilot.pause()
        lines = screen_lines(app)
        for choice in form_model.fold_groups(form_model.list_choices()):
            name = choice.target or (choice.search and f"{choice.search}...")
            start = f" {name:<24}  {choice.title}" if name else f" {choice.title}"
            assert any(line.startswith(start) for line in lines), start

    drive(work, tmp_path, size)


def test_group_of_presets_is_one_line_until_selected(tmp_path: Path) -> None:
    async def work(pilot: Pilot[None], app: Host) -> None:
        picker = app.open_picker()
        await pilot.pause()
        assert not any(choice.target.startswith("ladder-") for choice in picker.shown)
        await pilot.press(*["up"] * 4)  # over two hints and "llm"
        assert picker.current is not None
        assert picker.current.title.endswith("(9 presets)")
        await pilot.press("enter")
        await pilot.pause()
        assert [choice.target for choice in picker.shown] == [x for x in preset_files() if x.startswith("ladder-")]
        await pilot.press("enter")
        assert app.opened == ["ladder-1-return"]

    drive(work, tmp_path, (80, 24))


def test_picker_shows_both_ends_of_a_long_target(tmp_path: Path) -> None:
    target = "/home/user/experiments/2026/lander/environments/wind.py:Windy"

    async def work(pilot: Pilot[None], app: Host) -> None:
        app.open_picker()
        await pilot.pause()
        await pilot.press(*target)
        line = next(line for line in screen_lines(app) if "Gymnasium" in line)
        name = line.split()[0]
        assert name == (target if app.size.width > 140 else "/home/user/experime~nments/wind.py:Windy")

    drive(work, tmp_path, (80, 24))
    drive(work, tmp_path, (240, 24))


def test_click_selects_a_target(tmp_path: Path) -> None:
    async def work(pilot: Pilot[None], app: Host) -> None:
        app.open_picker()
        await pilot.pause()
        await pilot.click(OptionList, offset=(4, 3))
        await wait_until(pilot, lambda: app.opened)
        assert app.opened == [form_model.list_choices()[3].target]

    drive(work, tmp_path)


def test_search_matches_words_prefixes_and_subsequences() -> None:
    def names(text: str) -> list[str]:
        return [pick.target for pick in match_choices(form_model.list_choices(), text)]

    assert names("")[0] == "cartpole"
    assert names("pole")[0] == "cartpole"
    assert names("learns LANGUAGE") == ["arithmetic", "sentiment"]
    assert names("mountain") == ["mountaincar", "mountaincar-continuous"]
    assert names("cpl") == ["cartpole"]
    assert names("Foo-v1") == ["Foo-v1"]
    assert names("my envs/own.py:Env") == ["my envs/own.py:Env"]
    titles = {text: match_choices([], text)[0].title for text in ("a.toml", "b.py", "c.py:Env", "Env-v2")}
    assert titles == {"a.toml": "A configuration file"} | dict.fromkeys(
        ("b.py", "c.py:Env", "Env-v2"), "A Gymnasium environment"
    )
    assert names("qqq") == []


# form


@pytest.mark.parametrize("size", SIZES)
def test_two_enters_train_cartpole(size: tuple[int, int], tmp_path: Path) -> None:
    async def work(pilot: Pilot[None], app: Host) -> None:
        opened: list[Any] = []

        def open_form(target: str) -> None:
            opened.append(Form(target, typed=app.typed, runs=app.runs, start=app.started.append))
            app.push_screen(opened[0])

        app.push_screen(Picker(open_form))
        await pilot.pause()
        await pilot.press("enter", "enter")
        await wait_until(pilot, lambda: bool(app.started))
        assert app.started == [[["cartpole"]]]

    drive(work, tmp_path, size)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("key", ["ctrl+s", "f5", "enter"])
def test_started_run_uses_the_typed_options(key: str, size: tuple[int, int], tmp_path: Path) -> None:
    async def work(pilot: Pilot[None], app: Host) -> None:
        screen = await app.open_form()
        await move_to(pilot, screen, "optim.lr")
        await write(pilot, "0.001")
        await move_to(pilot, screen, "stop_when_solved")
        await pilot.press("space")
        await wait_until(pilot, lambda: "--optim.lr 0.001" in static_text(screen, "command"))
        assert app.typed == {"optim.lr": "0.001", "stop_when_solved": "false"}
        assert "optim.lr 0.002 -> 0.001" in static_text(screen, "verdict")
        await move_to(pilot, screen, "optim.lr")
        await pilot.press(key, *(["enter"] if key == "enter" else []))  # the first Enter moves the focus to Start
        await wait_until(pilot, lambda: bool(app.started))
        assert app.started == [[["cartpole", "--no-stop-when-solved", "--optim.lr", "0.001"]]]

    drive(work, tmp_path, size)


@pytest.mark.parametrize("size", SIZES)
def test_invalid_value_is_shown_below_field_and_blocks_start(size: tuple[int, int], tmp_path: Path) -> None:
    async def work(pilot: Pilot[None], app: Host) -> None:
        screen = await app.open_form()
        await move_to(pilot, screen, "ppo.gamma")
        await write(pilot, "1.5")
        await wait_until(pilot, lambda: any("expected a number >= 0 and <= 1" in line for line in screen_lines(app)))
        lines = screen_lines(app)
        (at_line,) = [i for i, line in enumerate(lines) if line.strip().startswith("ppo.gamma  ")]
        assert lines[at_line + 1].strip() == "ppo.gamma: expected a number >= 0 and <= 1, got '1.5'"
        assert "Invalid options: ppo.gamma" in static_text(screen, "verdict")
        await pilot.press("enter", "enter")
        assert app.started == []
        assert screen.option is not None
        assert screen.option.name == "ppo.gamma"
        await write(pilot, "0.9")
        await wait_until(pilot, lambda: screen.verdict.good)
        await pilot.press("ctrl+s")
        await wait_until(pilot, lambda: bool(app.started))
        assert app.started == [[["cartpole", "--ppo.gamma", "0.9"]]]

    drive(work, tmp_path, size)


def test_wide_form_explains_the_option_beside_open_sections(tmp_path: Path) -> None:
    async def work(pilot: Pilot[None], app: Host) -> None:
        screen = await app.open_form()
        await wait_until(pilot, lambda: "ppo" in screen.options.opened)
        lines = screen_lines(app)
        assert any(line.startswith(" + policy ") for line in lines)  # all headings are visible
        assert any(line.startswith(" ppo.dual_clip ") for line in lines)
        await move_to(pilot, screen, "ppo.gamma")
        await write(pilot, "1.5")
        error = "ppo.gamma: expected a number >= 0 and <= 1, got '1.5'"
        await wait_until(pilot, lambda: error in " ".join(static_text(screen, "about").split()))
        lines = static_text(screen, "about").split("\n")
        assert lines[0] == "ppo.gamma"
        assert lines[-3:] == ["value: 1.5", "", error]
        beside = " ".join(line[150:].strip() for line in screen_lines(app))
        for text in ("discount factor per step", "a number >= 0 and <= 1", "default: 0.98", "value: 1.5", "got '1.5'"):
            assert text in beside, text
        await pilot.press("ctrl+z")
        await wait_until(pilot, lambda: "expected" not in static_text(screen, "about"))

    drive(work, tmp_path, (200, 60))


def test_long_explanation_is_complete_at_80_columns(tmp_path: Path) -> None:
    async def work(pilot: Pilot[None], app: Host) -> None:
        screen = await app.open_form("sentiment")
        await pilot.press("tab", "tab", *["down"] * 25)  # beyond the last visible line
        for option in ("llm.reward", "seed", "threads"):
            screen.options.go_to(option)
            await pilot.pause()
            lines = [" ".join(line.split()) for line in screen_lines(app)]
            explained = " ".join(lines)
            assert f"Default: {screen.options.fields[option].default}" in explained, option
            assert any(line.startswith(f"{option} {screen.options.text(option)}") for line in lines), option

    drive(work, tmp_path)


def test_invalid_value_in_closed_section_is_revealed(tmp_path: Path) -> None:
    async def work(pilot: Pilot[None], app: Host) -> None:
        screen = await app.open_form()
        app.typed["ppo.clip"] = "2"
        screen.check_options()
        await pilot.pause()
        screen.query_one("#search", Input).value = "seed"
        await pilot.press("ctrl+s")
        await pilot.pause()
        assert app.started == []
        assert screen.option is not None
        assert screen.option.name == "ppo.clip"
        assert any("1 invalid" in line for line in screen_lines(app))
        assert any(
            line.strip().startswith("ppo.clip: expected a number > 0 and < 1, got '2'") for line in screen_lines(app)
        )
        footer = screen_lines(app)[-1]
        assert ["Copy command" in footer, "Reset field" in footer] == [False, True]
        screen.query_one("#start").focus()
        await wait_until(pilot, lambda: "Enter selects the first invalid option" in static_text(screen, "about"))
        await wait_until(pilot, lambda: "Reset field" not in screen_lines(app)[-1])
        await pilot.press("ctrl+z")
        assert [message.message for message in app._notifications] == ["Select an option first."]

    drive(work, tmp_path, (120, 40))


@pytest.mark.parametrize("size", SIZES)
def test_several_seeds_start_several_runs(size: tuple[int, int], tmp_path: Path) -> None:
    async def work(pilot: Pilot[None], app: Host) -> None:
        screen = await app.open_form()
        await move_to(pilot, screen, "name")
        await write(pilot, "pole")
        await move_to(pilot, screen, "seed")
        await write(pilot, "1-3")
        await wait_until(pilot, lambda: "3 runs" in static_text(screen, "verdict"))
        await pilot.press("ctrl+s")
        assert [shown[-2:] for shown in app.started[0]] == [["--name", f"pole-s{seed}"] for seed in (1, 2, 3)]

    drive(work, tmp_path, size)


@pytest.mark.parametrize("size", SIZES)
def test_recipe_is_applied_and_removed(size: tuple[int, int], tmp_path: Path) -> None:
    async def work(pilot: Pilot[None], app: Host) -> None:
        screen = await app.open_form("sentiment")
        await move_to(pilot, screen, "optim.lr")
        assert screen.options.editor.value == "0.0005"
        await pilot.press("ctrl+r")
        await wait_until(pilot, lambda: isinstance(app.screen, Recipes))
        await pilot.press("end", "enter")
        await wait_until(pilot, lambda: app.screen is screen)
        assert screen.recipe == app.typed["recipe"] == "trl-early"
        assert screen.options.editor.value == "1.41e-05"
        assert "--recipe trl-early" in static_text(screen, "command")
        await pilot.press("ctrl+r", "escape", "ctrl+s")
        await wait_until(pilot, lambda: bool(app.started))
        assert app.started == [[["sentiment", "--recipe", "trl-early"]]]
        await pilot.press("ctrl+r", "home", "enter")
        await wait_until(pilot, lambda: screen.recipe == "")
        assert screen.options.editor.value == "0.0005"
        await pilot.press("escape")
        assert (
            await app.open_form("sentiment", "trl-early")
        ).recipe == ""  # the selected recipe, not the one of the run

    drive(work, tmp_path, size)


def test_form_explains_when_no_recipe_fits(tmp_path: Path) -> None:
    async def work(pilot: Pilot[None], app: Host) -> None:
        screen = await app.open_form("cartpole")
        await pilot.press("ctrl+r")
        assert app.screen is screen
        assert len(app._notifications) == 1

    drive(work, tmp_path)


@pytest.mark.parametrize("size", SIZES)
def test_search_shows_only_matches_unfolded(size: tuple[int, int], tmp_path: Path) -> None:
    async def work(pilot: Pilot[None], app: Host) -> None:
        screen = await app.open_form()
        await pilot.press("slash", *"clip", "enter")
        await wait_until(pilot, lambda: screen.option is not None)
        options = [line.name for line in screen.options.shown if line.kind == "option"]
        assert options[0] == "ppo.objective"
        assert {"ppo.clip", "ppo.value_clip", "optim.max_grad_norm"} <= set(options)
        assert all("clip" in f"{name} {screen.options.fields[name].description}".lower() for name in options)
        await pilot.press("right", "down")
        assert app.typed == {"ppo.objective": "penalty"}
        await pilot.press("escape")
        await wait_until(pilot, lambda: not screen.options.words)
        assert any("1 changed" in line.text for line in screen.options.shown)
        assert app.screen is screen
        await pilot.press("escape")
        assert app.screen is not screen

    drive(work, tmp_path, size)


@pytest.mark.parametrize("size", SIZES)
def test_field_is_reset_to_preset_value(size: tuple[int, int], tmp_path: Path) -> None:
    async def work(pilot: Pilot[None], app: Host) -> None:
        screen = await app.open_form()
        await move_to(pilot, screen, "optim.lr")
        await write(pilot, "7")
        assert app.typed == {"optim.lr": "7"}
        await pilot.press("ctrl+z")
        assert app.typed == {}
        assert screen.options.editor.value == "0.002"
        await move_to(pilot, screen, "stop_when_solved")
        await pilot.press("right", "ctrl+z")
        assert app.typed == {}

    drive(work, tmp_path, size)


@pytest.mark.parametrize("size", SIZES)
def test_command_is_copied_to_clipboard(size: tuple[int, int], tmp_path: Path) -> None:
    async def work(pilot: Pilot[None], app: Host) -> None:
        screen = await app.open_form()
        await move_to(pilot, screen, "seed")
        await write(pilot, "5")
        await pilot.press("ctrl+y")
        command = f"ppo-unified train cartpole --seed 5 --runs {tmp_path}"
        assert app.copied == [command]
        await write(pilot, "x")
        await pilot.press("ctrl+y")
        assert app.copied == [command]

    drive(work, tmp_path, size)


def test_long_command_is_wrapped(tmp_path: Path) -> None:
    async def work(pilot: Pilot[None], app: Host) -> None:
        app.typed |= {"optim.lr": "0.001", "ppo.gamma": "0.97", "ppo.lam": "0.8", "gym.num_envs": "12", "seed": "77"}
        app.typed |= {"eval.threshold": "450", "eval.episodes": "33"}
        screen = await app.open_form()
        await pilot.pause()
        words = set(" ".join(screen_lines(app)).split())
        assert set(screen.verdict.command.split()) <= words

    drive(work, Path("runs"))


def test_form_keeps_input_when_reopened(tmp_path: Path) -> None:
    async def work(pilot: Pilot[None], app: Host) -> None:
        screen = await app.open_form("sentiment", "tldr")
        await move_to(pilot, screen, "seed")
        await write(pilot, "1x")
        await pilot.press("escape")
        assert app.screen is not screen
        assert app.typed == {"seed": "1x"}
        again = await app.open_form("sentiment")
        await pilot.pause()
        assert again.options.text("seed") == "1x"
        assert again.verdict.problems.keys() == {"seed"}

    drive(work, tmp_path)


def test_form_state_of_another_version_is_discarded(tmp_path: Path) -> None:
    async def work(pilot: Pilot[None], app: Host) -> None:
        app.typed |= {"ppo.gone": "1", "seed": "3", "recipe": ""}
        screen = await app.open_form()
        await pilot.pause()
        assert screen.verdict.good
        assert app.typed == {"seed": "3", "recipe": ""}

    drive(work, tmp_path)


def test_unreadable_target_starts_nothing(tmp_path: Path) -> None:
    async def work(pilot: Pilot[None], app: Host) -> None:
        screen = await app.open_form("nowhere.toml")
        await pilot.press("down", "down", "down", "ctrl+z", "ctrl+r", "ctrl+s", "slash", *"x", "enter")
        assert app.started == []
        assert "nowhere.toml: file not found" in static_text(screen, "verdict")
        assert screen.explain() is None

    drive(work, tmp_path)


def test_rejection_is_shown_until_an_edit(tmp_path: Path) -> None:
    async def work(pilot: Pilot[None], app: Host) -> None:
        screen = await app.open_form("Foo-v1")
        await pilot.pause()
        screen.show_start_error("gym.env_id = 'Foo-v1': Gymnasium knows\n\x1b[31mno such environment")
        assert static_text(screen, "verdict").endswith("knows\nno such environment")
        await move_to(pilot, screen, "seed")
        await write(pilot, "2")
        await wait_until(pilot, lambda: "1 run of Foo-v1" in static_text(screen, "verdict"))

    drive(work, tmp_path)


def test_help_describes_the_focused_option(tmp_path: Path) -> None:
    async def work(pilot: Pilot[None], app: Host) -> None:
        screen = await app.open_form()
        assert screen.explain() is None
        await move_to(pilot, screen, "ppo.gamma")
        text = screen.explain() or ""
        for part in ("ppo.gamma", "discount", "a number >= 0 and <= 1", "0.98"):
            assert part in text
        assert "discount" in static_text(screen, "about")

    drive(work, tmp_path)


@pytest.mark.parametrize("target", ["cartpole", pytest.param("llm", marks=pytest.mark.exhaustive)])
def test_cursor_scrolls_its_option_into_view(target: str, tmp_path: Path) -> None:
    """Move down through all open sections to the Start button, then up to the search box."""

    async def work(pilot: Pilot[None], app: Host) -> None:
        screen = await app.open_form(target)
        options = screen.options
        visited: set[str] = set()
        await pilot.press("tab", "tab")
        options.opened |= set(options.sections)
        options.rebuild_lines()
        while options.cursor or not visited:
            line = options.current
            assert line is not None
            visited.add(line.name)
            await pilot.pause()
            top, size = round(options.lines.scroll_y), options.lines.size
            assert top <= options.cursor < top + size.height
            if line.kind == "option":
                typing = options.fields[line.name].kind not in ("bool", "choice")
                assert app.focused is (options.editor if typing else options.lines)
                assert not typing or options.editor.region.y == options.lines.region.y + options.cursor - top
            options.action_move(1)
        assert visited == {*options.fields, *options.sections}
        assert app.typed == {}
        await pilot.pause()
        assert app.focused is screen.query_one("#start")
        await pilot.press("tab", "tab", "pagedown", "pageup", "up")
        assert app.focused is screen.query_one("#search")

    drive(work, tmp_path)


def test_clicks_focus_fields_toggle_switches_open_sections(tmp_path: Path) -> None:
    async def work(pilot: Pilot[None], app: Host) -> None:
        screen = await app.open_form()
        await pilot.pause()
        lines = [line.name for line in screen.options.shown]
        await pilot.click(screen.options.lines, offset=(30, lines.index("stop_when_solved")))
        assert app.typed == {"stop_when_solved": "false"}
        await pilot.click(screen.options.lines, offset=(3, lines.index("optim.lr")))
        assert app.focused is screen.options.editor
        await write(pilot, "0.1")
        await pilot.click(screen.options.lines, offset=(3, lines.index("ppo", lines.index("optim.lr"))))
        assert app.typed == {"stop_when_solved": "false", "optim.lr": "0.1"}
        assert "ppo" in screen.options.opened

    drive(work, tmp_path, (120, 40))


def test_keys_typed_ahead_reach_their_field(tmp_path: Path) -> None:
    async def work(pilot: Pilot[None], app: Host) -> None:
        await app.open_form()
        await pilot.press("tab", "tab", *"one", "down", "7", "down", "backspace", "9", "up", "up", "s")
        assert app.typed == {"name": "ones", "seed": "17", "total_steps": "60009"}

    drive(work, tmp_path)


@pytest.mark.parametrize("name", [action.name for place in ("picker", "form") for action in actions_of(place)])
def test_every_declared_action_exists(name: str) -> None:
    assert any(hasattr(screen, f"action_{name}") for screen in (Picker, Form))
