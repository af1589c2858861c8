"""Compares screens of the UI, with an artificial runs folder and a fixed clock, to the files in golden/screens.

PPO_UPDATE_SCREENS=1 rewrites the files. Check the diff before you commit it.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.style import Style
from textual.scrollbar import ScrollBar
from textual.widget import Widget
from textual.widgets import Input

from tests.scenes import SIZES, make_scenes, screen_text, trainers, visit_screens
from tui.actions import ACTIONS
from tui.app import Terminal
from tui.status_row import PAIRS, StatusRow

GOLDEN = Path(__file__).parents[1] / "golden" / "screens"
KEPT = (
    "runs",
    "metric",
    "details",
    "seeds",
    "compare",
    "sweep",
    "picker",
    "form",
    "form-error",
    "options",
    "samples",
    "responses",
    "events",
    "page-log",
    "inspector",
    "inspector-chinese",
    "inspector-study",
    "inspector-study-zh",
    "inspector-what-if",
    "inspector-critic",
    "inspector-kl",
    "inspector-episode",
)
UPDATE = bool(os.environ.get("PPO_UPDATE_SCREENS"))


@pytest.fixture(autouse=True)
def _fix_time_and_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Use a fixed time zone, relative paths and an empty view state."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    monkeypatch.chdir(tmp_path)
    yield
    monkeypatch.undo()
    time.tzset()


LARGER = [pytest.param(size, marks=pytest.mark.exhaustive) for size in SIZES[1:]]


@pytest.mark.parametrize("size", [SIZES[0], *LARGER], ids=lambda size: "x".join(map(str, size)))
def test_screens_match_golden_files(size: tuple[int, int]) -> None:
    seen: dict[str, str] = {}

    def look(name: str, app: Terminal) -> None:
        seen[name] = text = screen_text(app)
        assert [cell_len(line) for line in text.splitlines()] == [size[0]] * size[1], name
        _check_scrollbars(app, name)
        _check_footer(app, name)

    make_scenes(Path("runs"))
    with trainers(Path("runs")):
        asyncio.run(visit_screens(Path("runs"), size, look))
    for name in KEPT:
        path = GOLDEN / f"{name}-{size[0]}x{size[1]}.txt"
        lines = "".join(line.rstrip() + "\n" for line in seen[name].splitlines())
        if UPDATE:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(lines, encoding="utf-8")
        assert lines == path.read_text(encoding="utf-8"), f"{name} at {size} looks different; {__doc__}"


def test_screens_need_neither_unicode_nor_color(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")

    def look(name: str, app: Terminal) -> None:
        strange = {character for character in screen_text(app) if not character.isascii()}
        assert not strange, f"{name}: {strange}"
        _check_styles(app, name)

    make_scenes(Path("runs"))
    with trainers(Path("runs")):
        asyncio.run(visit_screens(Path("runs"), (80, 24), look, unicode=False))


def _check_scrollbars(app: Terminal, name: str) -> None:
    """Check that there are no horizontal scrollbars, and vertical ones only if there is something to scroll."""
    for widget in app.screen.walk_children():
        if isinstance(widget, Widget) and widget.display and widget.is_scrollable:
            assert not (widget.show_horizontal_scrollbar and widget.scrollbar_size_horizontal), f"{name}: {widget}"
            if widget.show_vertical_scrollbar:
                assert widget.max_scroll_y > 0, f"{name}: {widget}"
                assert widget.vertical_scrollbar.position == pytest.approx(widget.scroll_y, abs=1 / 8), name


def _check_styles(app: Terminal, name: str) -> None:
    """Check that scrollbars have a visible thumb and text fields a visible width."""
    strips = app.screen._compositor.render_strips(app.size)
    for widget in app.screen._compositor.visible_widgets:
        x, y, width, height = widget.content_region
        rows = [strip.crop(x, x + width) for strip in strips[y : y + height]]
        styles = [segment.style or Style() for row in rows for segment in row if segment.text]
        if isinstance(widget, ScrollBar):
            assert {bool(style.reverse) for style in styles} == {True, False}, f"{name}: {widget.parent}"
        if isinstance(widget, Input):
            assert all(style.underline for style in styles), f"{name}: {widget}"


def _check_footer(app: Terminal, name: str) -> None:
    """Check that the footer contains no truncated words."""
    if app.screen.query(StatusRow):
        words = {word for label in (*PAIRS.values(), *(action.label for action in ACTIONS)) for word in label.split()}
        line = screen_text(app).splitlines()[-1].split()
        assert [word for word in line if len(word) > 1 and word[0].isupper() and word not in words] == [], name
        assert line[-1] in words, f"{name}: a key without a label"
