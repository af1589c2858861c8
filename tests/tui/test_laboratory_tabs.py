"""Tests the tabs of the inspector that show the critic microscope and the KL laboratory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pytest
from textual.pilot import Pilot

from ppo_unified.inspection.laboratories import CriticMicroscope
from ppo_unified.runs.folder import Run
from ppo_unified.runs.stored_iteration import StoredIteration
from tests.scenes import screen_text
from tests.stored_tokens import CHINESE, ENGLISH, make_token_iteration
from tests.tui.test_app import wait_until
from tests.tui.test_inspector import drive, make_runs, shown, type_text
from tui.app import Terminal
from tui.inspector.laboratory_pane import LaboratoryPane
from tui.inspector.screen import InspectorScreen


@pytest.fixture(autouse=True)
def _own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)


async def see(pilot: Pilot[None], *texts: str) -> None:
    assert isinstance(pilot.app, Terminal)
    app = pilot.app
    await wait_until(pilot, lambda: all(text in screen_text(app) for text in texts))


def test_digits_select_tabs_and_reports_are_computed_once(tmp_path: Path) -> None:
    make_runs(tmp_path, make_token_iteration(ENGLISH, 4), make_token_iteration(CHINESE, 8))
    computed: list[int] = []
    original = CriticMicroscope.of.__func__  # type: ignore[attr-defined]

    def count(cls: type[CriticMicroscope], run: Run, stored: StoredIteration) -> CriticMicroscope:
        computed.append(stored.iteration)
        found: CriticMicroscope = original(cls, run, stored)
        return found

    async def act(pilot: Pilot[None], screen: InspectorScreen) -> None:
        await pilot.press("2")
        await see(pilot, "talk > critic", "Explained variance of V", "Sample 0: what the critic expected", "1 Steps")
        assert "What if" not in screen_text(screen.app)  # type: ignore[arg-type]
        await pilot.press("down", "right")
        await see(pilot, f"Sample {shown(screen).number}: what the critic")
        await pilot.press("left_curly_bracket")
        await see(pilot, "iteration 4", "5 responses")
        await pilot.press("right_curly_bracket")
        await see(pilot, "iteration 8", "4 responses")
        await pilot.press("3")
        await see(pilot, "talk > KL", "Estimates of the KL to the reference model")
        await pilot.press("question_mark")
        await see(pilot, "This screen computes all estimates of the KL")
        await pilot.press("escape")
        await pilot.press("2", "1")
        await see(pilot, "A used")
        assert not screen.query_one(LaboratoryPane).display
        assert computed == [8, 4]

    with patch.object(CriticMicroscope, "of", classmethod(count)):
        drive(tmp_path, act)


def test_laboratory_scrolls_on_a_small_screen(tmp_path: Path) -> None:
    make_runs(tmp_path, make_token_iteration(ENGLISH + CHINESE))

    async def act(pilot: Pilot[None], screen: InspectorScreen) -> None:
        await pilot.press("2")
        await see(pilot, "Explained variance of V", "lines 1 to ")
        await pilot.press(*["pagedown"] * 9)
        await see(pilot, "Sample 0: what the critic expected")
        await pilot.press(*["pageup"] * 9)
        await see(pilot, "lines 1 to ")
        await pilot.press("1", "w", "2")  # a digit starts the value of an option
        await see(pilot, "gamma (run: ")

    drive(tmp_path, act, size=(80, 24))


def test_tab_states_why_it_has_no_report(tmp_path: Path) -> None:
    stored = make_token_iteration(ENGLISH)
    columns = {name: x for name, x in stored.columns.items() if name not in ("kl", "kl_full", "logprob_ref")}
    make_runs(tmp_path, replace(stored, columns=columns))

    async def act(pilot: Pilot[None], screen: InspectorScreen) -> None:
        assert "3 KL" not in await type_text(pilot)
        await pilot.press("3")
        await see(pilot, "no KL to a reference model")

    drive(tmp_path, act)
