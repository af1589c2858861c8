"""The form's options in one widget: it draws a hundred of them as lines, and one input box stands where the cursor is.

A widget for each option would take a second to make for a language model's options, and at every search again.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar, Literal, NamedTuple

from rich.segment import Segment
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.events import Click, Resize
from textual.geometry import Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip
from textual.widget import Widget
from textual.widgets import Input

from ppo_unified.text import clean, pad
from tui.new_run.form_model import Field

NAME, GAP, INDENT = 27, 2, 2  # columns of an option's name, before its description, before what is wrong with it
VALUES = ((110, 36), (0, 22))  # from this width on: columns of the value
SWITCH = ("false", "true")


class Line(NamedTuple):
    """One line: an option, a section's head, or what is wrong with the option above."""

    kind: Literal["option", "section", "problem"]
    name: str  # of the option or the section
    text: str = ""


class Lines(ScrollView, can_focus=True, inherit_bindings=False):
    """Draws the lines, and has the focus where there is nothing to type. The arrows move the cursor, not the view."""

    COMPONENT_CLASSES: ClassVar[set[str]] = {
        f"lines--{part}" for part in ("name", "changed", "value", "description", "section", "problem", "cursor")
    }
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("space,enter,right", "cycle(1)", "Next value", show=False),
        Binding("left", "cycle(-1)", "Value before", show=False),
    ]

    @property
    def owner(self) -> Fields:
        assert isinstance(self.parent, Fields)
        return self.parent

    def render_line(self, y: int) -> Strip:
        width = self.scrollable_content_region.width
        pieces = self.owner.line_pieces(round(self.scroll_y) + y, width)
        segments = [Segment(text, self.get_component_rich_style(f"lines--{style}")) for text, style in pieces]
        return Strip(segments).adjust_cell_length(width, self.rich_style)

    def watch_scroll_y(self, old_value: float, new_value: float) -> None:
        super().watch_scroll_y(old_value, new_value)
        self.owner.place_editor()

    def on_focus(self) -> None:
        self.owner.take_focus()

    def on_resize(self, event: Resize) -> None:
        self.owner.rebuild_lines()

    def on_click(self, event: Click) -> None:
        self.owner.click(round(self.scroll_y) + event.y, event.x)

    def action_cycle(self, by: int) -> None:
        self.owner.cycle(by)


class Fields(Widget):
    """Options with their values, those of closed sections left out. `typed` is kept up to date as one types."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,shift+tab", "move(-1)", "Option before", show=False),
        Binding("down,tab", "move(1)", "Next option", show=False),
        Binding("pageup", "move(-10)", "Ten options up", show=False),
        Binding("pagedown", "move(10)", "Ten options down", show=False),
    ]

    class Typed(Message):
        """An option has another value."""

    class Moved(Message):
        """The cursor is on another line."""

    class Left(Message):
        """The cursor has been moved over the first line (-1) or the last (1)."""

        def __init__(self, by: int) -> None:
            super().__init__()
            self.by = by

    def __init__(self, typed: dict[str, str]) -> None:
        super().__init__()
        self.typed = typed
        self.fields: Mapping[str, Field] = {}
        self.above: list[str] = []  # options that are always in sight
        self.sections: dict[str, list[str]] = {}  # the others
        self.problems: Mapping[str, str] = {}
        self.opened: set[str] = set()
        self.words: Sequence[str] = ()  # searched for
        self.shown: list[Line] = []
        self.cursor = 0  # index of the line
        self.lines, self.editor = Lines(), Input(compact=True, select_on_focus=False)

    def compose(self) -> ComposeResult:
        yield self.lines
        yield self.editor

    def set_fields(self, fields: Mapping[str, Field]) -> None:
        """Take these options. What matters, or was typed before, stands above; that never changes later."""
        self.fields = fields
        if not self.above:
            self.above = [name for name, field in fields.items() if field.matters or name in self.typed]
            for name, field in fields.items():
                if name not in self.above:
                    self.sections.setdefault(field.section, []).append(name)

    # values

    @property
    def current(self) -> Line | None:
        return self.shown[self.cursor] if self.shown else None

    @property
    def option(self) -> Field | None:
        """The option under the cursor."""
        line = self.current
        return self.fields[line.name] if line is not None and line.kind == "option" else None

    def text(self, option: str) -> str:
        return self.typed.get(option, self.fields[option].default)

    def set_text(self, option: str, text: str) -> None:
        """Remember what was typed; the target's own value is nothing typed."""
        if text == self.text(option):
            return
        if text == self.fields[option].default:
            del self.typed[option]
        else:
            self.typed[option] = text
        self.lines.refresh()
        self.post_message(self.Typed())

    def reset(self) -> None:
        """Give the option under the cursor the target's value back."""
        if field := self.option:
            self.set_text(field.name, field.default)
            self.place_editor()

    def cycle(self, by: int) -> None:
        """The next value of a switch or a choice; open or close a section."""
        line, field = self.current, self.option
        if field is None and line is not None:
            self.opened ^= {line.name}
            self.rebuild_lines()
        elif field is not None and (choices := _choices(field)):
            text = self.text(field.name)
            at = choices.index(text) if text in choices else -by
            self.set_text(field.name, choices[(at + by) % len(choices)])

    def on_input_changed(self, event: Input.Changed) -> None:
        """The box always holds the value under the cursor, also when this message is of one before."""
        event.stop()
        if (field := self.option) and not _choices(field):
            self.set_text(field.name, self.editor.value)

    # lines

    def rebuild_lines(self) -> None:
        """Work out the lines anew; the cursor stays on its option where that is still in sight."""
        line = self.current
        self.shown = list(self._lines(max(20, self.lines.scrollable_content_region.width - INDENT)))
        self.cursor = next((i for i, other in enumerate(self.shown) if line is not None and other[:2] == line[:2]), 0)
        self.lines.virtual_size = Size(self.lines.scrollable_content_region.width, len(self.shown))
        self.lines.refresh()
        self.place_editor()

    def _lines(self, width: int) -> Iterator[Line]:
        found = {name for name, field in self.fields.items() if _matches(field, self.words)}
        for option in self.above:
            if option in found:
                yield from self._option_lines(option, width)
        for section, options in self.sections.items():
            inside = [option for option in options if option in found]
            opened = bool(self.words) or section in self.opened
            if inside or not self.words:
                yield Line("section", section, self._section_heading(section, opened))
            for option in inside if opened else ():
                yield from self._option_lines(option, width)

    def _option_lines(self, option: str, width: int) -> Iterator[Line]:
        yield Line("option", option)
        for text in textwrap.wrap(clean(self.problems.get(option, "")), width):
            yield Line("problem", option, text)

    def _section_heading(self, section: str, opened: bool) -> str:
        options = self.sections[section]
        counts = [f"{len(options)} more option{'s' if len(options) > 1 else ''}"]
        for count, what in (
            (sum(self.text(option) != self.fields[option].default for option in options), "changed"),
            (sum(option in self.problems for option in options), "wrong"),
        ):
            counts += [f"{count} {what}"] if count else []
        return f"{'-' if opened else '+'} {section or 'general':<12} {', '.join(counts)}"

    def line_pieces(self, index: int, width: int) -> list[tuple[str, str]]:
        """A line's pieces: text and style."""
        if index >= len(self.shown):
            return []
        line, here = self.shown[index], index == self.cursor and self._has_focus
        if line.kind == "problem":
            return [(" " * INDENT + line.text, "problem")]
        if line.kind == "section":
            return [(pad(line.text, width) if here else line.text, "cursor" if here else "section")]
        field, text, room = self.fields[line.name], self.text(line.name), self._value_width
        changed = "changed" if text != field.default else "name"
        name = pad(clean(field.name), NAME)
        description = pad(clean(field.description), max(1, width - NAME - room - GAP))
        return [
            (name, changed),
            (pad(_display_value(field, text), room), "cursor" if here else "value"),
            (" " * GAP + description, "description"),
        ]

    @property
    def _value_width(self) -> int:
        """Columns of a value."""
        return next(room for width, room in VALUES if self.size.width >= width)

    # cursor and focus

    @property
    def _has_focus(self) -> bool:
        return self.screen.focused in (self.lines, self.editor)

    def action_move(self, by: int) -> None:
        """To another option or section; beyond the ends, out of here."""
        stops = [i for i, line in enumerate(self.shown) if line.kind != "problem"]
        at = stops.index(self.cursor) + by if stops else -1
        if not stops or (abs(by) == 1 and not 0 <= at < len(stops)):
            self.cursor = 0  # where one comes in again
            self.post_message(self.Left(by))
            return
        self.cursor = stops[max(0, min(at, len(stops) - 1))]
        self.take_focus()

    def go_to_first(self) -> None:
        """Put the cursor on the first option."""
        self.cursor = next((i for i, line in enumerate(self.shown) if line.kind == "option"), 0)
        self.take_focus()

    def go_to(self, option: str) -> None:
        """Put the cursor on an option, its section opened."""
        if option not in self.above:
            self.opened.add(self.fields[option].section)
        self.words = ()
        self.rebuild_lines()
        self.cursor = self.shown.index(Line("option", option))
        self.take_focus()

    def take_focus(self) -> None:
        """Take the focus: the box where there is something to type, else the lines."""
        self._scroll_to_cursor()
        self.place_editor()
        self.screen.set_focus(self.editor if self.editor.display else self.lines)
        self.lines.refresh()
        self.post_message(self.Moved())

    def _scroll_to_cursor(self) -> None:
        """Scroll so that the option is seen, and what is wrong with it."""
        last = self.cursor
        while last + 1 < len(self.shown) and self.shown[last + 1].kind == "problem":
            last += 1
        top, height = round(self.lines.scroll_y), max(1, self.lines.size.height)
        wanted = min(max(top, last - height + 1), self.cursor)
        if wanted != top:
            self.lines.scroll_to(y=wanted, animate=False, force=True, immediate=True)

    def place_editor(self) -> None:
        """Put the box over the value under the cursor, or away."""
        field = self.option
        typing = field is not None and not _choices(field)
        if not typing and self.screen.focused is self.editor:
            self.screen.set_focus(self.lines)
        self.editor.display = typing
        if field is not None and typing:
            if self.editor.value != self.text(field.name):
                self.editor.value = self.text(field.name)
                self.editor.cursor_position = len(self.editor.value)
            self.editor.styles.width = self._value_width
            self.editor.styles.offset = (NAME, self.cursor - round(self.lines.scroll_y))

    def click(self, index: int, column: int) -> None:
        """Go to the line; on a value or a section's head, do what Enter does."""
        if index < len(self.shown) and self.shown[index].kind != "problem":
            self.cursor = index
            self.take_focus()
            if self.option is None or (_choices(self.option) and column >= NAME):
                self.cycle(1)


def _choices(field: Field) -> tuple[str, ...]:
    return SWITCH if field.kind == "bool" else field.choices


def _display_value(field: Field, text: str) -> str:
    if field.kind == "bool" and text in SWITCH:
        return f"[{'x' if text == 'true' else ' '}] {text}"
    return f"< {clean(text)} >" if field.choices else clean(text)


def _matches(field: Field, words: Sequence[str]) -> bool:
    """Whether an option's name or description has every word."""
    text = f"{field.name} {field.description}".lower()
    return all(word in text for word in words)
