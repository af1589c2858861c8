"""Tests the inspector with key presses on artificial iterations, and its parts with random data."""

from __future__ import annotations

import asyncio
import csv
from collections.abc import Callable, Coroutine
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from rich.cells import cell_len
from textual.pilot import Pilot
from textual.widgets import Input, Static

from ppo_unified.inspection.heat import HEATS, LEVELS, Scale, make_scale
from ppo_unified.inspection.settings import Settings
from ppo_unified.inspection.step_formulas import Step, explain
from ppo_unified.inspection.what_if import recompute
from ppo_unified.runs import samples
from ppo_unified.runs.folder import Run
from ppo_unified.runs.stored_iteration import StoredIteration
from tests.color_vision import VISIONS, ciede2000, contrast, seen_lab
from tests.scenes import screen_text
from tests.stored_tokens import CHINESE, ENGLISH, Response, make_token_iteration
from tests.tui.test_app import make_run, wait_until
from tui.app import Terminal
from tui.inspector.formula_pane import FormulaPane
from tui.inspector.frame_pane import FramePane
from tui.inspector.heat import heat_letter, heat_style
from tui.inspector.inspection import Inspection, View
from tui.inspector.numbers import WIDTH, cell, percent
from tui.inspector.screen import InspectorScreen
from tui.inspector.shown import Look
from tui.inspector.strips_pane import StripsPane
from tui.inspector.summary_pane import SummaryPane
from tui.inspector.table_pane import TablePane
from tui.inspector.text_pane import TextPane
from tui.inspector.token_layout import PROMPT, arrange_tokens
from tui.inspector.what_if_pane import WhatIfPane, listed_options, neighbor_value, parse_value
from tui.runs.run_page import RunPage
from tui.store import Changes
from tui.themes import OURS

Act = Callable[[Pilot[None], InspectorScreen], Coroutine[Any, Any, None]]


@pytest.fixture(autouse=True)
def _own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)


def make_runs(folder: Path, *iterations: StoredIteration, **changes: Any) -> Run:
    run = make_run(folder / "runs", "talk", **changes)
    for stored in iterations:
        samples.write(run, stored)
    return run


def drive(folder: Path, act: Act, size: tuple[int, int] = (120, 40), loaded: bool = True, **options: Any) -> None:
    """Open the inspector on the run in `folder` from the list of runs, and call `act`."""

    async def session() -> None:
        app = Terminal(folder / "runs", **options)
        async with app.run_test(size=size, notifications=True) as pilot:
            await wait_until(pilot, lambda: app.store.entries and "talk" in screen_text(app))
            await pilot.press("i")
            await wait_until(pilot, lambda: isinstance(app.screen, InspectorScreen))
            screen = app.screen
            assert isinstance(screen, InspectorScreen)
            if loaded:
                await wait_until(pilot, lambda: screen.inspection is not None)
                await pilot.pause()
            await act(pilot, screen)
            await pilot.press("ctrl+q")

    asyncio.run(session())


def shown(screen: InspectorScreen) -> Inspection:
    assert screen.inspection is not None
    return screen.inspection


async def type_text(pilot: Pilot[None], *keys: str) -> str:
    """Press keys and return the text on the screen."""
    await pilot.press(*keys)
    await pilot.pause()
    assert isinstance(pilot.app, Terminal)
    return screen_text(pilot.app)


def test_one_key_shows_the_formulas_of_a_cut_token(tmp_path: Path) -> None:
    make_runs(tmp_path, make_token_iteration(ENGLISH))

    async def act(pilot: Pilot[None], screen: InspectorScreen) -> None:
        text = await type_text(pilot)
        found, sample = shown(screen), shown(screen).samples[0]
        assert (found.number, found.step) == (0, 2)
        assert found.now.columns["cut"][sample.row, sample.columns[2]]
        step = Step(found.stored, found.now, sample.row, int(sample.columns[2]))
        for line in explain(step):
            assert line.numbers in text
            assert line.result in text
        for words in ("A > 0: this token did better", "no further push", "─ token 3 ' delight'", "likeliest tokens"):
            assert words in text

    drive(tmp_path, act)


def test_keys_move_through_steps_and_samples(tmp_path: Path) -> None:
    make_runs(tmp_path, make_token_iteration(ENGLISH))

    async def act(pilot: Pilot[None], screen: InspectorScreen) -> None:
        found, steps = shown(screen), len(shown(screen).samples[0].columns)
        for key, step in (
            ("right", 3),
            ("left", 2),
            ("end", steps - 1),
            ("right", steps - 1),
            ("home", 0),
            ("left", 0),
        ):
            await pilot.press(key)
            assert found.step == step, key
        await pilot.press("down")
        assert found.number == found.order[1]
        await pilot.press("up", "up")
        assert found.number == found.order[0]
        await pilot.press("home", "n")
        assert found.step == 2
        assert "The clip cut no gradient at a later" in await type_text(pilot, *["n"] * 5)
        await pilot.press("b")
        assert found.number == 0
        await pilot.press("B")
        assert found.number == 3

    drive(tmp_path, act)


def test_epochs_show_how_a_token_moves(tmp_path: Path) -> None:
    make_runs(tmp_path, make_token_iteration(ENGLISH))

    async def act(pilot: Pilot[None], screen: InspectorScreen) -> None:
        seen = []
        for key in ("[", "[", "[", "["):
            text = await type_text(pilot, {"[": "left_square_bracket"}[key])
            seen.append(float(shown(screen).now.columns["ratio"][0, 3]))
            assert f"epoch {shown(screen).view.moment} of 3" in text
        assert seen == pytest.approx([np.exp(0.5 * share) for share in (2 / 3, 1 / 3, 0, 0)], rel=1e-5)
        assert shown(screen).view.moment == 1
        assert "ratio by epoch 1.000 → 1.181 → 1.396 → after 1.649" in text
        assert "after the update" in await type_text(pilot, *["right_square_bracket"] * 3)

    drive(tmp_path, act)


def test_iterations_keep_the_view(tmp_path: Path) -> None:
    run = make_runs(tmp_path, make_token_iteration(ENGLISH, 3), make_token_iteration(CHINESE, 7))

    async def act(pilot: Pilot[None], screen: InspectorScreen) -> None:
        assert "iteration 7 (2 of 2 stored)" in await type_text(pilot, "h", "o", "left_square_bracket")
        await pilot.press("left_curly_bracket")
        await wait_until(pilot, lambda: shown(screen).stored.iteration == 3)
        assert (shown(screen).view.heat, shown(screen).view.sort, shown(screen).view.moment) == ("ratio", "score", 3)
        assert "no older stored iteration" in await type_text(pilot, "left_curly_bracket")
        samples.write(run, make_token_iteration(ENGLISH, 9))  # a new one does not replace the shown one
        await wait_until(pilot, lambda: "} shows 2 newer" in screen_text(cast("Terminal", pilot.app)))
        assert shown(screen).stored.iteration == 3

    drive(tmp_path, act)


def test_sample_now_shows_the_requested_iteration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_runs(tmp_path, make_token_iteration(ENGLISH, 3))

    async def act(pilot: Pilot[None], screen: InspectorScreen) -> None:
        assert "only an active run" in await type_text(pilot, "S")
        assert not samples.is_requested(run)
        monkeypatch.setattr(screen, "_is_active", lambda: True)
        assert "stores its next iteration" in await type_text(pilot, "S")
        assert samples.is_requested(run)
        samples.write(run, make_token_iteration(CHINESE, 4))
        await wait_until(pilot, lambda: shown(screen).stored.iteration == 4)

    drive(tmp_path, act)


def test_filter_sort_and_heat_change_the_panes(tmp_path: Path) -> None:
    make_runs(tmp_path, make_token_iteration(ENGLISH))

    async def act(pilot: Pilot[None], screen: InspectorScreen) -> None:
        text = await type_text(pilot, "slash", *"wrong")
        assert "2 of 5 samples" in text
        assert shown(screen).order == [2, 3]
        assert shown(screen).number == 2
        assert "unknown key 'klo'" in await type_text(pilot, *[":"], *"", "backspace", "space", *"klo>1")
        await pilot.press("escape")  # restores the filter that was there before
        assert shown(screen).order[:1] == [0]
        assert len(shown(screen).order) == 5
        assert "No sample matches" in await type_text(pilot, "slash", *"absent", "enter")
        await pilot.press("slash", *["backspace"] * 6, "enter")
        for heading in ("highest score", "highest KL", "largest |A|", "longest", "in order", "most clipped"):
            assert heading in await type_text(pilot, "o")
        for heat in (*HEATS[1:], HEATS[0]):
            assert f"heat {heat.label} " in await type_text(pilot, "h")

    drive(tmp_path, act)


def test_study_text_has_the_numbers_of_the_step(tmp_path: Path) -> None:
    make_runs(tmp_path, make_token_iteration(ENGLISH))

    async def act(pilot: Pilot[None], screen: InspectorScreen) -> None:
        texts = [await type_text(pilot, "g"), await type_text(pilot, "right")]
        for text, column in zip(texts, (2, 3), strict=True):
            found, sample = shown(screen), shown(screen).samples[0]
            lines = explain(Step(found.stored, found.now, sample.row, int(sample.columns[column])))
            (line,) = [line for line in lines if line.name == "A"]
            assert f"= {line.numbers} = {line.result}" in text
        assert "─ ratio: The ratio ─" in await type_text(pilot, "h")
        assert "─ loss: Limit by the clip ─" in await type_text(pilot, "j")
        text = await type_text(pilot, "L")
        assert "─ loss: 用截断限制 ─" in text
        assert {cell_len(line) for line in text.splitlines()} == {screen.size.width}
        assert "用截断限制" not in await type_text(pilot, "escape")
        assert "概率比" in await type_text(pilot, "g")

    drive(tmp_path, act)
    (state,) = (tmp_path / "state").rglob("*.json")
    assert '"language": "zh"' in state.read_text(encoding="utf-8")


def test_what_if_recomputes_the_step_and_the_iteration(tmp_path: Path) -> None:
    stored = make_token_iteration(ENGLISH)
    make_runs(tmp_path, stored)

    async def act(pilot: Pilot[None], screen: InspectorScreen) -> None:
        await pilot.press("w", "down", "down")
        text = await type_text(pilot, *["greater_than_sign"] * 6)
        expected = recompute(stored, replace(Settings.of(stored), clip=1.0))
        assert shown(screen).settings.clip == 1.0
        assert not expected.columns["cut"][0, 3]
        assert "what if: clip" in text
        assert "still inside" in text
        loss = [line.result for line in explain(Step(stored, expected, 0, 3)) if line.name == "loss"]
        assert loss[0] in text
        assert "< 1 >" in text
        await pilot.press("0")
        assert isinstance(pilot.app.screen.query_one(Input).value, str)
        text = await type_text(pilot, *".3")
        assert shown(screen).settings.clip == 0.3
        assert "expected a number >= 0, got '0.3x'" in await type_text(pilot, "x")
        await pilot.press("backspace", "enter")
        assert shown(screen).view.changes == {"clip": 0.3}
        await pilot.press("r")
        assert not shown(screen).view.changes
        await pilot.press("up", "enter", *["backspace"] * 4, *"1", "enter")
        assert shown(screen).settings.lam == 1
        await pilot.press("escape")
        assert not screen.what_if
        assert pilot.app.screen is screen

    drive(tmp_path, act)


def test_options_without_effect_state_the_reason(tmp_path: Path) -> None:
    make_runs(tmp_path, make_token_iteration(ENGLISH))

    async def act(pilot: Pilot[None], screen: InspectorScreen) -> None:
        await pilot.press("w")
        screen.query_one(WhatIfPane).option = "penalty_coef"
        assert "no effect with ppo.objective = 'clip'" in await type_text(pilot, "greater_than_sign")
        assert not shown(screen).view.changes

    drive(tmp_path, act)


def test_copy_and_csv_contain_the_numbers(tmp_path: Path) -> None:
    stored = make_token_iteration(ENGLISH)
    make_runs(tmp_path, stored)

    async def act(pilot: Pilot[None], screen: InspectorScreen) -> None:
        await pilot.press("y", "E")
        copied = pilot.app.clipboard
        assert "A = delta + gamma*lam*A' = " in copied
        assert copied.splitlines()[-1].startswith("A > 0:")
        (path,) = tmp_path.glob("exports/*.csv")
        with open(path, encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        assert [row["text"] for row in rows] == list(ENGLISH[0].tokens)
        for name in ("ratio", "advantage", "advantage_used", "reward"):
            own = stored.columns[name][0, 1:10]
            np.testing.assert_allclose([float(row[name]) for row in rows], own, rtol=1e-5, atol=1e-6)

    drive(tmp_path, act)


@pytest.mark.parametrize(
    "size",
    [(60, 16), *(pytest.param(size, marks=pytest.mark.exhaustive) for size in ((80, 24), (120, 40), (200, 60)))],
    ids=lambda size: "x".join(map(str, size)),
)
@pytest.mark.parametrize("unicode", [True, False])
def test_long_and_strange_texts_keep_the_layout(tmp_path: Path, size: tuple[int, int], unicode: bool) -> None:
    words = (" the", "影", "שלום", "مرحبا", "\n", "\x1b]0;x\x07", "[red]", "\udce5", "\udc9b\udcbd", "e\u0301",
             "\u0301", "\U0001f468\u200d\U0001f469", "", "x" * 500, "\t")  # fmt: skip
    tokens = [words[number % len(words)] for number in range(4000)]
    make_runs(tmp_path, make_token_iteration((Response("影" * 300, tokens, 1.0), ENGLISH[0])))

    async def act(pilot: Pilot[None], screen: InspectorScreen) -> None:
        pane = screen.query_one(TextPane)
        for keys in (
            (),
            ("end",),
            ("pageup", "pageup"),
            ("home", "pagedown"),
            ("n",),
            ("t",),
            ("t",),
            ("w",),
            ("right",),
        ):
            text = await type_text(pilot, *keys)
            assert "\x1b" not in text
            assert [cell_len(line) for line in text.splitlines()] == [size[0]] * size[1]
            if not unicode:
                assert text.isascii()
            if not pane.size.width:
                continue
            lines = pane.paint(*pane.size)
            assert len(lines) <= pane.size.height
            cursor = [
                part
                for line in lines
                for part, style in line
                if style in ("cursor", "inverse") or getattr(style, "reverse", False)
            ]
            assert cursor, keys

    drive(tmp_path, act, size, unicode=unicode)


def test_text_without_colors_has_letters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    make_runs(tmp_path, make_token_iteration(ENGLISH))

    async def act(pilot: Pilot[None], screen: InspectorScreen) -> None:
        lines = (await type_text(pilot)).splitlines()
        row = next(number for number, line in enumerate(lines) if "delight" in line and "│a│" in line)
        found = shown(screen)
        levels = make_scale(HEATS[0], found.now.columns["advantage"][found.stored.columns["mask"]]).levels(
            found.now.columns["advantage"][0]
        )
        start = lines[row].index("│a│") + 1
        assert lines[row + 1][start] == heat_letter(int(levels[1]))
        assert lines[row + 2][lines[row].index(" delight")] == "x"

    drive(tmp_path, act)


def test_clicks_select_steps_and_samples(tmp_path: Path) -> None:
    make_runs(tmp_path, make_token_iteration(ENGLISH))

    async def act(pilot: Pilot[None], screen: InspectorScreen) -> None:
        lines = (await type_text(pilot)).splitlines()
        row = next(number for number, line in enumerate(lines) if "│a│ quiet│" in line)
        await pilot.click(offset=(lines[row].index("quiet"), row))
        assert shown(screen).step == 1
        row = next(number for number, line in enumerate(lines) if line.startswith("    3"))
        await pilot.click(offset=(4, row))
        assert shown(screen).number == 3

    drive(tmp_path, act)


def test_narrow_screen_shows_the_list_on_demand(tmp_path: Path) -> None:
    make_runs(tmp_path, make_token_iteration(ENGLISH))

    async def act(pilot: Pilot[None], screen: InspectorScreen) -> None:
        assert "most clipped first" not in await type_text(pilot)
        text = await type_text(pilot, "l", "down")
        assert "most clipped first" in text
        assert "A used" not in text
        text = await type_text(pilot, "escape")
        assert "A used" in text
        assert shown(screen).number == shown(screen).order[1]
        await pilot.resize_terminal(120, 40)
        assert "most clipped first" in await type_text(pilot)
        assert "most clipped first" not in await type_text(pilot, "l")

    drive(tmp_path, act, (80, 24))


def test_episodes_are_strips_over_time(tmp_path: Path) -> None:
    stored = make_token_iteration(ENGLISH)
    columns = {name: x for name, x in stored.columns.items() if name not in ("text", "token", "kl", "kl_full")}
    columns = {name: x for name, x in columns.items() if not name.startswith(("score", "logprob_ref"))}
    columns["action"] = np.arange(columns["mask"].size).reshape(columns["mask"].shape) % 3
    options = {"kind": "toy", "ppo": stored.options["ppo"]}
    make_runs(tmp_path, replace(stored, columns=columns, options=options, alternatives={}, vocabulary={}))

    async def act(pilot: Pilot[None], screen: InspectorScreen) -> None:
        lines = (await type_text(pilot)).splitlines()
        (strip,) = (line for line in lines if "│ action  " in line)
        row = lines.index(strip)
        start = strip.index("│ action") + 11
        assert strip[start : start + 9] == "".join(str(action) for action in columns["action"][0, 1:10])
        assert "this action did better than the critic expected" in " ".join(lines)
        await pilot.click(offset=(start + 5, row))
        assert shown(screen).step == 5
        await pilot.press("end", "pageup")
        assert shown(screen).step == 0

    drive(tmp_path, act)


def test_missing_and_damaged_files_are_explained(tmp_path: Path) -> None:
    run = make_runs(tmp_path)

    async def act(pilot: Pilot[None], screen: InspectorScreen) -> None:
        assert "No iteration is stored yet." in await type_text(pilot, "right", "h", "w", "y", "t", "S", "slash")
        run.samples.mkdir()
        samples.sample_path(run, 5).write_bytes(b"nonsense")
        await wait_until(pilot, lambda: "invalid sample file" in str(screen.query_one("#notice", Static).content))
        samples.write(run, make_token_iteration(ENGLISH, 6))
        await wait_until(pilot, lambda: screen.inspection is not None)
        await pilot.press("left_curly_bracket")
        await wait_until(pilot, lambda: "invalid sample file" in cast("Terminal", pilot.app).messages[-1].message)
        assert shown(screen).stored.iteration == 6

    drive(tmp_path, act, loaded=False)


def test_damaged_newest_file_does_not_hide_older_ones(tmp_path: Path) -> None:
    run = make_runs(tmp_path, make_token_iteration(ENGLISH, 3))
    samples.sample_path(run, 5).write_bytes(b"nonsense")

    async def act(pilot: Pilot[None], screen: InspectorScreen) -> None:
        await wait_until(pilot, lambda: "invalid sample file" in str(screen.query_one("#notice", Static).content))
        await pilot.press("left_curly_bracket")
        await wait_until(pilot, lambda: screen.inspection is not None)
        assert "iteration 3 (1 of 2 stored)" in await type_text(pilot)

    drive(tmp_path, act, loaded=False)


def test_thinned_out_iteration_stays_and_is_reported(tmp_path: Path) -> None:
    run = make_runs(tmp_path, *(make_token_iteration(ENGLISH, number) for number in (3, 5, 9)))

    async def act(pilot: Pilot[None], screen: InspectorScreen) -> None:
        await pilot.press("left_curly_bracket")
        await wait_until(pilot, lambda: shown(screen).stored.iteration == 5)
        samples.sample_path(run, 5).unlink()
        await wait_until(pilot, lambda: "iteration 5 (no longer stored)" in screen_text(cast("Terminal", pilot.app)))
        await pilot.press("left_curly_bracket")
        await wait_until(pilot, lambda: shown(screen).stored.iteration == 3)
        screen.numbers = [3, 5, 9]  # the file is deleted before the screen looks again
        await pilot.press("right_curly_bracket")
        await wait_until(pilot, lambda: "Iteration 5 is no longer stored." in screen_text(cast("Terminal", pilot.app)))

    drive(tmp_path, act)


def test_waiting_ends_when_the_run_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_runs(tmp_path)

    async def act(pilot: Pilot[None], screen: InspectorScreen) -> None:
        assert "Only an active run" in await type_text(pilot)
        monkeypatch.setattr(screen, "_is_active", lambda: True)
        assert "Waiting for the next iteration" in await type_text(pilot, "S")
        monkeypatch.setattr(screen, "_is_active", lambda: False)
        screen.update_from_store(Changes(True, frozenset(), False))
        assert "Only an active run" in await type_text(pilot)

    drive(tmp_path, act, loaded=False)


def test_typed_values_keep_every_digit_and_name(tmp_path: Path) -> None:
    stored = make_token_iteration(ENGLISH)
    clip = 0.2 * 11 / 15  # as annealed
    options = stored.options | {"ppo": stored.options["ppo"] | {"advantage": "reward-to-go"}}
    make_runs(tmp_path, replace(stored, clip=clip, clip_high=clip, advantage_kind="reward-to-go", options=options))

    async def act(pilot: Pilot[None], screen: InspectorScreen) -> None:
        await pilot.press("w")
        screen.query_one(WhatIfPane).option = "clip"
        await pilot.press("enter", "1", "escape")
        assert not shown(screen).view.changes
        await pilot.press("enter", "enter")
        assert not shown(screen).view.changes
        screen.query_one(WhatIfPane).option = "advantage"
        assert "'reward-to-go'" not in await type_text(pilot, "enter")
        assert pilot.app.screen.query_one(Input).value == "reward-to-go"
        assert "< reward-to-go >" in await type_text(pilot, "escape")
        screen.query_one(WhatIfPane).option = "penalty_coef"
        assert "no effect with ppo.objective = 'clip'" in await type_text(pilot, "enter")
        assert pilot.app.screen is screen

    drive(tmp_path, act)


def test_new_probability_is_that_of_the_moment(tmp_path: Path) -> None:
    make_runs(tmp_path, make_token_iteration(ENGLISH))

    async def act(pilot: Pilot[None], screen: InspectorScreen) -> None:
        old = percent(float(shown(screen).stored.columns["logprob_old"][0, 3]))
        text = await type_text(pilot, *["left_square_bracket"] * 3)
        assert f"old {old} → new {old}" in text  # epoch 1 begins with the old policy

    drive(tmp_path, act, (200, 60))


def test_frames_key_is_listed_only_if_permission_is_needed(tmp_path: Path) -> None:
    make_runs(tmp_path, make_token_iteration(ENGLISH))

    async def act(pilot: Pilot[None], screen: InspectorScreen) -> None:
        assert "permission" not in screen.conditions
        assert screen.query_one(FramePane).needs_permission is False
        screen.query_one(FramePane)._code = "world.py"
        assert "permission" in screen.conditions

    drive(tmp_path, act)


def test_csv_files_contain_parts_of_characters(tmp_path: Path) -> None:
    make_runs(tmp_path, make_token_iteration((Response("say ", ("\udce5", "\udc9b\udcbd", "=1", "</s>"), 1.0),)))

    async def act(pilot: Pilot[None], screen: InspectorScreen) -> None:
        await pilot.press("E")
        (path,) = tmp_path.glob("exports/*.csv")
        with open(path, encoding="utf-8", newline="") as file:
            assert [row["text"] for row in csv.DictReader(file)] == ["\\xe5", "\\x9b\\xbd", "=1", "</s>"]

    drive(tmp_path, act)


def test_inspector_opens_from_the_run_page_and_returns(tmp_path: Path) -> None:
    make_runs(tmp_path, make_token_iteration(ENGLISH))

    async def act(pilot: Pilot[None], screen: InspectorScreen) -> None:
        await pilot.press("escape", "enter", "i")
        await wait_until(pilot, lambda: isinstance(pilot.app.screen, InspectorScreen))
        assert "how PPO changed the policy" in await type_text(pilot, "question_mark")
        await pilot.press("escape", "escape")
        assert isinstance(pilot.app.screen, RunPage)

    drive(tmp_path, act)


def test_readonly_mode_requests_no_samples(tmp_path: Path) -> None:
    run = make_runs(tmp_path, make_token_iteration(ENGLISH))

    async def act(pilot: Pilot[None], screen: InspectorScreen) -> None:
        await pilot.press("S")
        assert not samples.is_requested(run)

    drive(tmp_path, act, readonly=True)


# parts


@pytest.mark.parametrize("kind", ["discrete", "continuous", "several"])
@pytest.mark.parametrize("height", [7, 40])
def test_strips_show_values_and_actions_of_every_kind(kind: str, height: int) -> None:
    stored = make_token_iteration((ENGLISH[0], Response("", ("",), 1.0)))  # the second episode has one step
    shape = stored.columns["mask"].shape
    actions = np.arange(12 * np.prod(shape)).reshape(*shape, 12) % 5
    single = {"discrete": actions[..., 1], "continuous": actions[..., 1] / np.float32(7)}
    texts = np.array([" ".join(map(str, x)) for x in actions.reshape(-1, 12)], dtype=object).reshape(shape)
    columns = {name: x for name, x in stored.columns.items() if name not in ("text", "token")}
    found = Inspection(
        replace(stored, columns=columns | {"action": single.get(kind, texts)}, actions=actions, alternatives={}),
        View(),
    )
    for number, step in ((0, 4), (1, 0)):
        found.select(number)
        found.select_step(step)
        state = found.show(Look(True, True, True, "#000000"))
        lines = StripsPane("x").make_lines(state, 60, height)
        texts_of = ["".join(text for text, _ in line) for line in lines]
        assert len(lines) <= height
        assert all(cell_len(text) <= 60 for text in texts_of)
        names = [text[:9].strip() for text in texts_of[1:]]
        assert {"V", "A", "clip", "reward"} <= set(names)
        assert names[0] == ("action 1" if kind == "several" else "action")
        assert ("action 12" in names) == (kind == "several" and height > 20)


@pytest.mark.parametrize("objective", ["clip", "ratio", "policy-gradient", "penalty"])
@pytest.mark.parametrize("number", [np.inf, np.nan, 0.0])
def test_extreme_numbers_have_lines(objective: str, number: float) -> None:
    stored = make_token_iteration(ENGLISH)
    shape = stored.columns["mask"].shape
    names = ("ratio", "logprob_new", "reward", "value", "next_value")
    columns = stored.columns | {name: np.full(shape, number, np.float32) for name in names}
    options = stored.options | {"ppo": stored.options["ppo"] | {"objective": objective}}
    columns = {name: x for name, x in columns.items() if not name.startswith(("score", "logprob_ref", "kl"))}
    broken = replace(stored, columns=columns, options=options, epochs={})
    found = Inspection(broken, View())
    state = found.show(Look(True, True, True, "#000000"))
    with np.errstate(all="ignore"):
        for pane in (SummaryPane, StripsPane, FormulaPane, TablePane, TextPane, WhatIfPane):
            assert pane("x").make_lines(state, 80, 30), pane


def test_own_settings_reproduce_the_stored_numbers() -> None:
    stored = make_token_iteration(ENGLISH)
    found, mask = Inspection(stored, View()), stored.columns["mask"]
    assert found.settings == found.own
    for name in ("reward", "delta", "advantage", "advantage_used", "return", "ratio"):
        np.testing.assert_allclose(found.now.columns[name][mask], stored.columns[name][mask], atol=1e-5)


def test_an_invalid_view_is_replaced() -> None:
    view = View(heat="kl", moment=9, changes={"clip": 0.1})
    found = Inspection(make_token_iteration(ENGLISH), view)
    assert (found.view.heat, found.view.moment, found.settings.clip) == ("kl", "after", 0.1)
    assert found.recomputed(found.own, "after") is found.recomputed(found.own, "after")


@pytest.mark.parametrize("seed", range(20))
def test_token_layout_keeps_every_character(seed: int) -> None:
    rng = np.random.default_rng(seed)
    pieces = ["".join(rng.choice(list("ab 好漢é"), rng.integers(1, 30))) for _ in range(rng.integers(1, 40))]
    breaks, prompt = (rng.random(len(pieces)) < 0.1).tolist(), "問" * int(rng.integers(0, 50))
    width = int(rng.integers(2, 40))
    layout = arrange_tokens(prompt, pieces, breaks, width)
    assert all(sum(cell_len(text) for _, text in line) <= width for line in layout.lines)
    for index in (PROMPT, *range(len(pieces))):
        text = "".join(part for line in layout.lines for i, part in line if i == index)
        assert text == (prompt if index == PROMPT else pieces[index])
    assert all(any(i == index for i, _ in layout.lines[line]) for index, line in enumerate(layout.line_of))
    order = [i for line in layout.lines for i, _ in line]
    assert order == sorted(order)


@pytest.mark.parametrize("theme", OURS, ids=lambda theme: theme.name)
def test_heat_is_legible_and_color_blind_safe(theme: Any) -> None:
    def colors(level: int) -> tuple[str, str]:
        style = heat_style(level, theme.dark, theme.background)
        assert style.color is not None
        assert style.bgcolor is not None
        return style.color.get_truecolor().hex, style.bgcolor.get_truecolor().hex

    levels = [level for level in range(-LEVELS, LEVELS + 1) if level]
    assert all(contrast(*colors(level)) >= 4.5 for level in levels)
    backgrounds = {level: colors(level)[1] for level in levels}
    for vision in VISIONS:
        seen = {level: seen_lab(color, vision) for level, color in backgrounds.items()}
        for one, other in ((a, -a) for a in range(2, LEVELS + 1)):
            assert ciede2000(seen[one], seen[other]) > 10, (vision, one)
        for one, other in pairwise([level for level in levels if level > 0]):
            assert ciede2000(seen[one], seen[other]) > 5, (vision, one)


def test_scales_are_signed_and_robust() -> None:
    signed = make_scale(HEATS[0], np.array([-1, 0.5, 1, np.inf, np.nan]))
    np.testing.assert_array_equal(signed.levels(np.array([-9, -1, 0, 0.5, 1, np.nan, np.inf])), [-4, -4, 0, 2, 4, 0, 0])
    ratio = Scale(0.5, 1, 2, True)
    np.testing.assert_array_equal(ratio.levels(np.array([0.0, 0.25, 0.5, 1, 2**0.5, 2])), [0, -4, -4, 0, 2, 4])
    flat = make_scale(HEATS[3], np.full(5, 0.25))
    np.testing.assert_array_equal(flat.levels(np.full(3, 0.25)), [0, 0, 0])
    assert make_scale(HEATS[0], np.array([np.nan])) == Scale(-1, 0, 1)
    assert [heat_letter(level) for level in (-4, -1, 0, 1, 4)] == ["d", "a", " ", "A", "D"]


@pytest.mark.parametrize("seed", range(5))
def test_cells_are_narrow(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for x in rng.choice([-1, 1], 300) * 10 ** rng.uniform(-12, 12, 300):
        assert len(cell(float(x))) <= WIDTH
        assert float(cell(float(x)).replace("k", "e3").replace("M", "e6").replace("G", "e9").replace("T", "e12")) == (
            pytest.approx(float(x), rel=0.5)
        )
    assert [cell(x) for x in (0.0, -0.0, 1.0, -0.7066, 123.456)] == ["0.0000", "0.0000", "1.000", "-0.707", "123.46"]
    assert [percent(x) for x in (0.0, np.log(0.083), -5.0, -20.0, 0.1)] == [
        "100.0 %",
        "8.3 %",
        "0.67 %",
        "<0.01 %",
        "100.0 %",
    ]


def test_option_values_step_and_parse() -> None:
    stored = make_token_iteration(ENGLISH)
    own = Settings.of(stored)
    assert [neighbor_value(stored, own, "clip", by) for by in (-1, 1)] == [0.15, 0.25]
    assert neighbor_value(stored, own, "gamma", 1) == 1
    assert neighbor_value(stored, own, "advantage", 1) == "td"
    assert neighbor_value(stored, own, "whiten_rewards", 1) is True
    assert parse_value(stored, "whiten_rewards", "yes") is True
    assert parse_value(stored, "kl", "k3") == "k3"
    for name, text, words in (
        ("gamma", "1.5", "from 0 to 1"),
        ("clip", "nan", ">= 0"),
        ("kl", "k9", "k1 or abs or k2"),
    ):
        with pytest.raises(Exception, match=f"{name}: expected .*{words}.*, got '{text}'"):
            parse_value(stored, name, text)
    listed = listed_options(stored)
    assert listed[:5] == ["gamma", "lam", "clip", "clip_high", "kl_coef"]
    assert "baseline" not in listed
