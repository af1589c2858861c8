"""The list of targets for a new run, with a search box that filters the list as the user types."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container
from textual.content import Content
from textual.events import Resize
from textual.screen import Screen
from textual.widgets import Input, OptionList, Static
from textual.widgets.option_list import Option

from ppo_unified.config.presets import is_file
from ppo_unified.errors import UsageError
from ppo_unified.terminal.chat import wrap_text
from ppo_unified.text import clean, display_width, elide, pad
from tui.action import Place
from tui.actions import bindings
from tui.new_run import form_model
from tui.new_run.form_model import TargetChoice
from tui.status_row import StatusRow

NAME, GAP = 24, 2  # columns that the target names always get, and the columns between a name and its title
BESIDE = 120  # minimum width of the screen to show the description beside the list
FRAME = 3  # columns of the list's padding and scrollbar
OTHER_LINES = 5  # lines of the screen above and below the description


class SearchBox(Input):
    """The search box, which always has the focus. Enter selects the target under the cursor of the list."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("enter", "screen.choose", "Select", show=True)]


class Picker(Screen[None]):
    """The first step of starting a run. It calls `open_form` with the selected target."""

    CSS_PATH = "picker.tcss"
    BINDINGS: ClassVar[list[BindingType]] = [
        *bindings("picker"),
        Binding("up", "move('cursor_up')", "Up", show=False),
        Binding("down", "move('cursor_down')", "Down", show=False),
        Binding("pageup", "move('page_up')", "Page up", show=False),
        Binding("pagedown", "move('page_down')", "Page down", show=False),
    ]
    HORIZONTAL_BREAKPOINTS = [(0, "-stacked"), (BESIDE, "-beside")]  # noqa: RUF012 - as Textual declares it
    places: tuple[Place, ...] = ("picker",)

    def __init__(self, open_form: Callable[[str], None]) -> None:
        super().__init__()
        self.open_form = open_form
        self.known = form_model.list_choices()
        self.shown: list[TargetChoice] = []

    def compose(self) -> ComposeResult:
        yield Static("New run: select a target", id="top", markup=False)
        yield SearchBox(placeholder="Search, or type an environment id or a file", compact=True)
        choices = OptionList(compact=True, markup=False)
        choices.can_focus = False
        with Container(id="panes"):
            yield choices
            yield Static(id="about", markup=False)
        yield StatusRow()

    def on_mount(self) -> None:
        self.query_one(SearchBox).focus()
        self._list("")

    @property
    def current(self) -> TargetChoice | None:
        """The line under the cursor."""
        index = self.query_one(OptionList).highlighted
        return None if index is None else self.shown[index]

    def _list(self, text: str) -> None:
        self.shown = match_choices(self.known, text)
        self._draw(0)

    def _draw(self, cursor: int | None) -> None:
        choices = self.query_one(OptionList)
        choices.clear_options()
        width = self._list_width
        widest = max((display_width(clean(choice.target)) for choice in self.shown), default=0)
        name = max(NAME, min(widest, width // 2))
        choices.add_options([Option(_line(choice, name, width)) for choice in self.shown])
        choices.highlighted = cursor if self.shown else None
        if not self.shown:
            self._show_text(
                "No match. To use another target, type an id such as Name-v1 or a path such as a.toml or my_env.py."
            )

    @property
    def _list_width(self) -> int:
        """The width of the list in columns, excluding the description beside it."""
        width = self.size.width
        return width if width < BESIDE else width - width * 35 // 100

    def _show_text(self, text: Content | str, problem: bool = False) -> None:
        about = self.query_one("#about", Static)
        about.set_class(problem, "-problem")
        about.update(Content(text) if isinstance(text, str) else text)

    def on_resize(self, event: Resize) -> None:
        if self.shown:
            self._draw(self.query_one(OptionList).highlighted)

    def on_input_changed(self, event: Input.Changed) -> None:
        self._list(event.value)

    def on_option_list_option_highlighted(self, event: OptionList.OptionHighlighted) -> None:
        if choice := self.current:
            if self.size.width < BESIDE:
                self._show_text("\n".join([clean(choice.title), *_expectation(choice)]))
            else:
                room = self.size.width - self._list_width - 2
                self._show_text(_description(choice, room, self.size.height - OTHER_LINES))

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        self.action_choose()

    def action_move(self, how: str) -> None:
        getattr(self.query_one(OptionList), f"action_{how}")()

    def action_choose(self) -> None:
        """Open the form of the selected target, or show why it is invalid."""
        choice = self.current
        if choice is None:
            return
        if choice.search:
            self.query_one(SearchBox).value = choice.search
            return
        if not choice.target:
            self._show_text(f"{choice.title}. Type it into the search box above.", problem=True)
            return
        try:
            form_model.fields(choice.target)
        except UsageError as error:
            self._show_text("\n".join(map(clean, str(error).split("\n"))), problem=True)
            return
        self.open_form(choice.target)

    def action_cancel(self) -> None:
        self.app.pop_screen()


def match_choices(choices: list[TargetChoice], text: str) -> list[TargetChoice]:
    """Return the choices that contain every word of the text. Choices whose names start with the text come first.

    If no choice contains every word, return those whose names contain the letters of the text in the same order. If
    the text itself is a valid target, it comes before all choices. Without a text, each group of presets is one line.
    """
    words, text = text.lower().split(), text.strip()
    if not words:
        return form_model.fold_groups(choices)
    found = [choice for choice in choices if all(word in _words(choice) for word in words)]
    found.sort(key=lambda choice: bool(words) and not choice.target.startswith(text.lower()))
    if not found:
        found = [choice for choice in choices if choice.target and _is_subsequence(choice.target, "".join(words))]
    if text not in [choice.target for choice in found] and (form_model.is_target(text) or (text and is_file(text))):
        is_environment = not Path(text).suffix or text.endswith(".py") or ":" in text
        found.insert(0, TargetChoice(text, "A Gymnasium environment" if is_environment else "A configuration file"))
    return found


def _expectation(choice: TargetChoice) -> list[str]:
    score = [f"Expected score: {clean(choice.score)}"] if choice.score else []
    return score + ([f"Time: {clean(choice.time)}"] if choice.time else [])


def _description(choice: TargetChoice, width: int, height: int) -> Content:
    """Describe a target in at most `height` lines: what it is, and the options that it sets."""
    lines = wrap_text("\n".join([choice.title, "", *_expectation(choice)]), width)
    try:
        options = form_model.preset_options(choice.target) if choice.target else []
    except UsageError as error:
        lines += wrap_text(str(error), width)
        options = []
    if options:
        lines += ["", "Options that it sets (default):"]
        widest = max(len(option) for option, _, _ in options)
        for option, before, after in options:
            lines += wrap_text(f"  {option:<{widest}}  {clean(after) or '-'} ({clean(before) or '-'})", width)
    lines = [clean(choice.target), *lines] if choice.target else lines
    if len(lines) > height:
        lines[height - 1 :] = [f"... and {len(lines) - height + 1} more lines"]
    return Content.assemble((lines[0], "bold"), "\n", "\n".join(lines[1:]))


def _words(choice: TargetChoice) -> str:
    return f"{choice.target} {choice.title} {choice.score} {choice.time}".lower()


def _is_subsequence(name: str, letters: str) -> bool:
    rest = iter(name)
    return all(letter in rest for letter in letters)


def _line(choice: TargetChoice, name: int, width: int) -> Content:
    """Format a choice for a list of `width` columns, `name` of them for the target. A hint has no target."""
    room, title, start = width - FRAME, clean(choice.title), choice.target or (choice.search and f"{choice.search}...")
    if not start:
        return Content(pad(title, room).rstrip())
    target = Content.styled(pad(elide(clean(start), name), name), "bold")
    return Content.assemble(target, " " * GAP, pad(title, max(8, room - name - GAP)).rstrip())
