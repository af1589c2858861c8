"""Dialogs for a yes/no question, a one-line text input, and a page of text."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from textwrap import wrap
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Input, Static

from ppo_unified.errors import UsageError
from ppo_unified.text import clean
from tui.action import PLACES, Action, Place
from tui.actions import key_name, missing_condition

READABLE = 112  # maximum columns of a page of text
_BOX = """
    {name} {{ align: center middle; }}
    {name} > .box {{
        max-width: 96%; height: auto; max-height: 96%;
        background: $surface; border: round $primary; padding: 0 1;
    }}
    {name} .title {{ text-style: bold; }}
    {name} .hint {{ color: $text-muted; }}
    {name} .error {{ color: $text-error; }}
"""


class ConfirmDialog(ModalScreen[bool]):
    """Asks for confirmation.

    Only `y` confirms: an Enter pressed just before the dialog appeared must not delete a run.
    """

    CSS = _BOX.format(name="ConfirmDialog") + "ConfirmDialog > .box { width: 64; }"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y", "answer(True)", "Yes"),
        Binding("n,escape,q", "answer(False)", "No"),
    ]

    def __init__(self, question: str, detail: str = "") -> None:
        super().__init__()
        self.question, self.detail = question, detail

    def compose(self) -> ComposeResult:
        with Vertical(classes="box"):
            yield Static(self.question, markup=False, classes="title")
            if self.detail:
                yield Static(self.detail, markup=False)
            yield Static("y: yes    n or Esc: no", classes="hint")

    def action_answer(self, answer: bool) -> None:
        self.dismiss(answer)


class PromptDialog(ModalScreen[str | None]):
    """Asks for one line of text and returns it, or None if the user cancels.

    The dialog stays open while `check` raises UsageError.
    """

    CSS = (
        _BOX.format(name="PromptDialog")
        + """
    PromptDialog > .box { width: 74; }
    PromptDialog.-preview { align: center bottom; background: transparent; }
    """
    )
    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "back", "Cancel")]

    def __init__(
        self,
        title: str,
        value: str = "",
        hint: str = "",
        check: Callable[[str], object] | None = None,
        preview: Callable[[str], object] | None = None,
    ) -> None:
        """Create a dialog that calls `preview` with each input, and with the initial value if it is canceled.

        With `preview`, the dialog is at the bottom and does not dim the screen below, so that its changes are visible.
        """
        super().__init__(classes="-preview" if preview else None)
        self.question, self.value, self.hint, self.check, self.preview = title, clean(value), hint, check, preview

    def compose(self) -> ComposeResult:
        with Vertical(classes="box"):
            yield Static(self.question, markup=False, classes="title")
            yield Input(self.value, compact=True)
            yield Static("", markup=False, classes="error")
            if self.hint:
                yield Static(f"Examples: {self.hint}", markup=False, classes="hint")
            yield Static("Enter: apply    Esc: cancel", markup=False, classes="hint")

    def _find_problem(self, text: str) -> str:
        try:
            if self.check is not None:
                self.check(text)
        except UsageError as error:
            return str(error)
        return ""

    def on_input_changed(self, event: Input.Changed) -> None:
        problem = self._find_problem(event.value)
        self.query_one(".error", Static).update(Content(clean(problem)))
        if self.preview is not None:
            self.preview(event.value)

    def on_input_submitted(self, event: Input.Submitted) -> None:
        if not self._find_problem(event.value):
            self.dismiss(event.value)

    def action_back(self) -> None:
        if self.preview is not None:
            self.preview(self.value)
        self.dismiss(None)


class TextDialog(ModalScreen[None]):
    """Shows a text, such as the help or the messages of the session."""

    CSS = (
        _BOX.format(name="TextDialog")
        + f"TextDialog > .box {{ width: 96%; max-width: {READABLE}; scrollbar-size-vertical: 1; }}"
        + "TextDialog .hint { dock: bottom; }"
    )
    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,q,enter,question_mark,f1,M,f2", "dismiss", "Close")]

    @staticmethod
    def text_width(width: int) -> int:
        """Return the columns of text on a screen of this width, without the frame, padding and scrollbar."""
        return min(width * 96 // 100, READABLE) - 6

    def __init__(self, title: str, body: Content | str) -> None:
        super().__init__()
        self.heading, self.body = title, Content(body) if isinstance(body, str) else body

    def compose(self) -> ComposeResult:
        with VerticalScroll(classes="box"):
            yield Static(self.heading, markup=False, classes="title")
            yield Static(self.body)
            yield Static("Esc: close    Arrows: scroll", classes="hint")

    def on_mount(self) -> None:
        self.query_one(VerticalScroll).focus()


def help_text(
    offered: Iterable[tuple[Place, Iterable[Action]]],
    conditions: Collection[str],
    explained: str | None,
    width: int,
    legend: Iterable[tuple[str, Mapping[str, str]]] = (),
) -> Content:
    """Format the description of the focused chart or option, all available keys, and a legend, in `width` columns.

    Actions that do not apply under these `conditions` are muted, with the reason. The legend consists of sections with
    a heading and the meaning of each sign.
    """
    parts: list[Content] = []
    if explained:
        parts += [Content(explained), Content("\n\n")]
    for place, actions in offered:
        parts.append(Content.styled(PLACES[place] + "\n", "bold"))
        parts += [_help_line(action, missing_condition(action, conditions), width) for action in actions]
        parts.append(Content("\n"))
    for heading, signs in legend:
        parts.append(Content.styled(heading + "\n", "bold"))
        parts += [_legend_line(sign, meaning, width) for sign, meaning in signs.items()]
        parts.append(Content("\n"))
    return Content.assemble(*parts).rstrip()


def _legend_line(sign: str, meaning: str, width: int) -> Content:
    head = f"  {sign:<14} "
    lines = wrap(meaning, max(len(head) + 20, width), initial_indent=head, subsequent_indent=" " * len(head))
    return Content("\n".join(lines) + "\n")


def _help_line(action: Action, missing: str, width: int) -> Content:
    keys = " ".join(key_name(key) for key in action.keys.split(","))
    head, label = f"  {keys:<14} ", f"{action.label:<15} "
    indent = " " * len(head + label)
    text = f"{action.help} ({missing})" if missing else action.help
    lines = wrap(text, max(len(indent) + 20, width), initial_indent=indent, subsequent_indent=indent)
    line = Content.assemble(Content.styled(head, "bold"), label, "\n".join(lines).lstrip(), "\n")
    return line.stylize("$foreground-muted") if missing else line
