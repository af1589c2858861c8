"""The base of the screens that show a title and a text about several runs."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text
from textual.app import ComposeResult
from textual.containers import VerticalScroll
from textual.content import Content
from textual.screen import Screen
from textual.widgets import Static

from tui.status_row import StatusRow
from tui.store import Changes, Store

MARGIN = 3  # columns of the padding and the scrollbar


class TextScreen(Screen[None]):
    """Shows a title and a text that can be scrolled. Both are updated when the displayed values of the runs change."""

    DEFAULT_CSS = """
    TextScreen #top { height: auto; padding: 0 1; background: $primary; color: $text; text-style: bold; }
    TextScreen VerticalScroll {
        height: 1fr; padding: 0 1; background: $background; scrollbar-size-vertical: 1; scrollbar-gutter: stable;
    }
    TextScreen VerticalScroll > Static { width: 1fr; height: auto; }
    """

    def __init__(self, store: Store) -> None:
        super().__init__()
        self.store = store
        self._shown: Sequence[object] = ()  # the displayed values

    def read_values(self) -> Sequence[object]:
        """Return the values of the runs that the text shows. If there are none, the last text stays."""
        raise NotImplementedError

    def format_text(self, width: int) -> tuple[str, Sequence[str]]:
        """Return the title and the lines of the text, with ANSI colors."""
        raise NotImplementedError

    def compose(self) -> ComposeResult:
        yield Static(id="top", markup=False)
        with VerticalScroll():
            yield Static(id="text", markup=False)
        yield StatusRow()

    def on_mount(self) -> None:
        self.query_one(VerticalScroll).focus()

    def on_resize(self) -> None:
        self.show_text()

    def update_from_store(self, changes: Changes) -> None:
        """Update the text."""
        if self.read_values() != self._shown:
            self.show_text()

    def show_text(self) -> None:
        self._shown = self.read_values()
        if not self._shown:
            return
        title, lines = self.format_text(max(20, self.size.width - MARGIN))
        self.query_one("#top", Static).update(Content(title))
        text = Text.from_ansi("\n".join(lines), no_wrap=False)
        self.query_one("#text", Static).update(Content.from_rich_text(text))

    def action_back(self) -> None:
        self.app.pop_screen()
