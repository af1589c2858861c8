"""The last row of each screen: the footer with the keys of the actions that apply now, or a message."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from textual.content import Content
from textual.events import MouseDown, MouseMove
from textual.geometry import Size
from textual.message import Message
from textual.widget import Widget

from ppo_unified.text import display_width
from tui.action import ALWAYS, PROMINENT
from tui.actions import applicable_actions, conditions_of

if TYPE_CHECKING:
    from textual.screen import Screen

GAP = 2  # columns between two hints
PAIRS: dict[tuple[str, str], str] = {  # two opposite actions -> label of the hint in the footer that shows both keys
    ("tab_previous", "tab_next"): "Tab",
    ("older", "newer"): "Sample",
    ("page_previous", "page_next"): "Page",
    ("step_left", "step_right"): "Step",
    ("sample_previous", "sample_next"): "Sample",
    ("moment_previous", "moment_next"): "Epoch",
    ("iteration_previous", "iteration_next"): "Iteration",
    ("option_previous", "option_next"): "Option",
    ("less", "more"): "Value",
    ("topic_previous", "topic_next"): "Formula",
}


class Hint(NamedTuple):
    """The key of one action, or the keys of two opposite actions."""

    key: str  # Textual's name
    sign: str  # as displayed
    label: str
    help: str
    rank: int
    before: tuple[str, str] = ("", "")  # name and sign of the opposite action's key, which is shown on the left

    @property
    def signs(self) -> str:
        """The displayed keys."""
        return f"{self.before[1]} {self.sign}".lstrip()

    def key_at(self, x: int) -> str:
        """Return the key at a column of the hint."""
        return self.before[0] if x < display_width(self.before[1]) else self.key

    @property
    def width(self) -> int:
        """The width of the hint in columns, excluding the gap."""
        return display_width(self.signs) + 1 + display_width(self.label)


class StatusRow(Widget, can_focus=False):
    """Shows the keys that apply now, in one line. A message replaces the keys and may use up to three lines."""

    class Dismissed(Message):
        """The message was clicked."""

    ALLOW_SELECT = False
    DEFAULT_CSS = "StatusRow { dock: bottom; height: auto; padding: 0 1; background: $panel; color: $foreground; }"

    def __init__(self) -> None:
        super().__init__()
        self._hints: list[Hint] = []
        self._lines: list[Content] = []

    def on_mount(self) -> None:
        self.screen.bindings_updated_signal.subscribe(self, lambda _: self._update_keys())
        self.app.screen_change_signal.subscribe(self, lambda _: self.refresh())
        self._update_keys()
        self.update_message()

    def _update_keys(self) -> None:
        hints = list_hints(self.app, self.screen)
        if hints != self._hints:
            self._hints = hints
            self.refresh()

    def update_message(self) -> None:
        """Show the current message, or the keys. In a dialog without a message, hide the row."""
        lines = self._message_lines(self.content_size.width or self.screen.size.width - self.gutter.width)
        self.display = bool(lines) or not self.screen.is_modal
        self.refresh(layout=max(1, len(lines)) != max(1, len(self._lines)))
        self._lines = lines

    def _message_lines(self, width: int) -> list[Content]:
        show = getattr(self.app, "message_lines", None)  # other apps keep Textual's toasts
        return show(width) if show and width else []

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        return max(1, len(self._message_lines(width)))

    def on_resize(self) -> None:
        self.update_message()

    def render(self) -> Content:
        if self._lines:
            return Content("\n").join(self._lines)
        if not self.screen.is_active:  # below a dialog, which has other keys
            return Content("")
        parts: list[Any] = []
        for hint in fit_hints(self._hints, self.content_size.width):
            parts += [" " * GAP] * bool(parts) + [(hint.signs, "bold $text-accent"), f" {hint.label}"]
        return Content.assemble(*parts)

    # mouse

    def _hint_at(self, event: MouseDown | MouseMove) -> tuple[Hint, str] | None:
        """Return the hint under the mouse and the key that a click on it presses."""
        x = event.get_content_offset_capture(self).x
        for hint in fit_hints(self._hints, self.content_size.width):
            if 0 <= x < hint.width:
                return hint, hint.key_at(x)
            x -= hint.width + GAP
        return None

    def on_mouse_move(self, event: MouseMove) -> None:
        found = None if self._lines else self._hint_at(event)
        self.tooltip = found[0].help if found else None

    def on_mouse_down(self, event: MouseDown) -> None:
        """Run the action under the mouse, or remove the message."""
        if self._lines:
            self.post_message(self.Dismissed())
        elif found := self._hint_at(event):
            self.app.simulate_key(found[1])


def list_hints(app: Any, screen: Screen[Any]) -> list[Hint]:
    """Return a hint for each action or pair that applies to the screen and whose key works, in the order of ranks."""
    keys: dict[str, str] = {}  # "action key" -> the key as displayed
    for key, active in screen.active_bindings.items():
        keys[f"{active.binding.action.rpartition('.')[2]} {key}"] = app.get_key_display(active.binding)
    conditions, hints = conditions_of(screen), dict[str, Hint]()
    for action in applicable_actions(app, screen):
        working = [key for key in action.keys.split(",") if f"{action.name} {key}" in keys]
        if working:
            rank = min(action.rank, PROMINENT) if action.prominent in conditions else action.rank
            sign = keys[f"{action.name} {working[0]}"]
            hints[action.name] = Hint(working[0], sign, action.label, action.help, rank)
    for (left, right), label in PAIRS.items():
        if left in hints and right in hints:
            one, other = hints.pop(left), hints[right]
            text, rank = f"{one.help}\n{other.help}", min(one.rank, other.rank)
            hints[right] = Hint(other.key, other.sign, label, text, rank, (one.key, one.sign))
    return sorted(hints.values(), key=lambda hint: hint.rank)


def fit_hints(hints: Sequence[Hint], width: int) -> list[Hint]:
    """Return the hints that fit, those with the lowest rank first. The hints that are always shown come last."""
    last = [hint for hint in hints if hint.rank == ALWAYS]
    room, chosen = width + GAP - sum(hint.width + GAP for hint in last), []
    for hint in hints:
        if hint.rank != ALWAYS and hint.width + GAP <= room:
            chosen.append(hint)
            room -= hint.width + GAP
    return [*chosen, *last]
