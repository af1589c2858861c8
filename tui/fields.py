"""The form's parts: one row for each option, and the line that folds a section."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.events import Click
from textual.message import Message
from textual.reactive import reactive
from textual.widget import Widget
from textual.widgets import Input, Static

from ppo_unified.form import Field
from ppo_unified.text import clean


class Cycle(Widget, can_focus=True):
    """One of a few values: the next with space, Enter or the right arrow, the one before with the left arrow."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("space,enter,right", "turn(1)", "Next value", show=False),
        Binding("left", "turn(-1)", "Value before", show=False),
    ]
    value: reactive[str] = reactive("", init=False)

    class Changed(Message):
        """Another value was chosen."""

    def __init__(self, choices: tuple[str, ...], value: str) -> None:
        super().__init__()
        self.choices = choices
        self.set_reactive(Cycle.value, value)

    def render(self) -> Content:
        if self.choices == ("false", "true"):
            return Content("[x] true" if self.value == "true" else "[ ] false")
        return Content(f"< {clean(self.value)} >")

    def watch_value(self) -> None:
        self.post_message(self.Changed())

    def action_turn(self, by: int) -> None:
        at = self.choices.index(self.value) if self.value in self.choices else -by
        self.value = self.choices[(at + by) % len(self.choices)]

    def on_click(self) -> None:
        self.action_turn(1)


class Row(Vertical):
    """One option: its name, its value, what it is; and below, while something is wrong with it, what."""

    class Typed(Message):
        """The value is another one now; `text` is None where it is the target's own."""

        def __init__(self, option: str, text: str | None) -> None:
            super().__init__()
            self.option, self.text = option, text

    def __init__(self, field: Field, text: str) -> None:
        super().__init__()
        self.field = field
        self.editor = self._made(field, text)
        self._wrong = Static(classes="problem")
        self._problem = ""
        self._mark()

    @staticmethod
    def _made(field: Field, text: str) -> Input | Cycle:
        if field.kind in ("bool", "choice"):
            return Cycle(field.choices or ("false", "true"), text)
        return Input(text, compact=True, select_on_focus=False)

    def compose(self) -> ComposeResult:
        with Horizontal():
            yield Static(Content(self.field.name), classes="name")
            yield self.editor
            yield Static(Content(self.field.description), classes="description")
        yield self._wrong

    @property
    def text(self) -> str:
        return self.editor.value

    def _mark(self) -> None:
        self.set_class(self.text != self.field.default, "-changed")

    def put(self, text: str, field: Field) -> None:
        """Show another text, and hold it to what the target says now."""
        self.field = field
        self.editor.value = text
        self._mark()

    def show_problem(self, problem: str) -> None:
        if problem != self._problem:
            self._problem = problem
            self.set_class(bool(problem), "-wrong")
            self._wrong.update(Content(clean(problem)))

    def on_input_changed(self, event: Input.Changed) -> None:
        event.stop()
        self._say()

    def on_cycle_changed(self, event: Cycle.Changed) -> None:
        event.stop()
        self._say()

    def _say(self) -> None:
        self._mark()
        self.post_message(self.Typed(self.field.name, None if self.text == self.field.default else self.text))


class Fold(Static, can_focus=True):
    """The head of a section: Enter, space or a click opens and closes it."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("enter,space", "turn", "Open or close", show=False)]

    class Turned(Message):
        """The section is to be opened or closed."""

        def __init__(self, section: str) -> None:
            super().__init__()
            self.section = section

    def __init__(self, section: str, options: int) -> None:
        super().__init__()
        self.section, self.options = section, options
        self.show(opened=False, changed=0, wrong=0)

    def show(self, opened: bool, changed: int, wrong: int) -> None:
        counts = [f"{self.options} more option{'s' if self.options > 1 else ''}"]
        counts += [f"{changed} changed"] if changed else []
        counts += [f"{wrong} wrong"] if wrong else []
        self.set_class(bool(wrong), "-wrong")
        self.update(Content(f"{'-' if opened else '+'} {self.section or 'general':<12} {', '.join(counts)}"))

    def action_turn(self) -> None:
        self.post_message(self.Turned(self.section))

    def on_click(self, event: Click) -> None:
        self.action_turn()
