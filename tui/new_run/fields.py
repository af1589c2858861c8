"""One widget for all options of the form. It draws each option as a line, and has one input box at the cursor.

For a language model, it would take a second to create one widget per option, and another second for every search.
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

from ppo_unified.text import clean, display_width, pad
from tui.new_run.form_model import Field

GAP, INDENT = 2, 2  # columns: gap before the description, indentation of an error
SHORT_VALUE, VALUE, LONG_VALUE = 16, 22, 36  # columns of a value on a narrow and on a wide screen, and of a long value
DESCRIPTION = 50  # columns that a long value leaves to its description, or a third of a narrow screen
SWITCH = ("false", "true")


class Line(NamedTuple):
    """One line: an option, a section heading, or an error about the option above."""

    kind: Literal["option", "section", "problem"]
    name: str  # the option or the section
    text: str = ""


class Lines(ScrollView, can_focus=True, inherit_bindings=False):
    """Draws the lines and has the focus unless the current line accepts text. Arrow keys move the cursor."""

    COMPONENT_CLASSES: ClassVar[set[str]] = {
        f"lines--{part}" for part in ("name", "changed", "value", "description", "section", "problem", "cursor")
    }
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("space,enter,right", "cycle(1)", "Next value", show=False),
        Binding("left", "cycle(-1)", "Previous value", show=False),
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
        self.owner.scroll_to_cursor()

    def on_click(self, event: Click) -> None:
        self.owner.click(round(self.scroll_y) + event.y, event.x)

    def action_cycle(self, by: int) -> None:
        self.owner.cycle(by)


class Fields(Widget):
    """Shows options with their values, except those in closed sections, and updates `typed` with every key press."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,shift+tab", "move(-1)", "Previous option", show=False),
        Binding("down,tab", "move(1)", "Next option", show=False),
        Binding("pageup", "move(-10)", "Ten options up", show=False),
        Binding("pagedown", "move(10)", "Ten options down", show=False),
    ]

    class Typed(Message):
        """The value of an option has changed."""

    class Moved(Message):
        """The cursor has moved to another line."""

    class Left(Message):
        """The cursor has moved above the first line (-1) or below the last line (1)."""

        def __init__(self, by: int) -> None:
            super().__init__()
            self.by = by

    def __init__(self, typed: dict[str, str]) -> None:
        super().__init__()
        self.typed = typed
        self.fields: Mapping[str, Field] = {}
        self.above: list[str] = []  # options outside of any section, which are always visible
        self.sections: dict[str, list[str]] = {}  # section -> the other options
        self.problems: Mapping[str, str] = {}  # option -> error
        self.opened: set[str] = set()  # open sections
        self.words: Sequence[str] = ()  # the search
        self.shown: list[Line] = []
        self.cursor = 0  # index in `shown`
        self.name_width = 0  # columns of the names; never decreases, so that the values do not move while searching
        self.lines, self.editor = Lines(), Input(compact=True, select_on_focus=False)

    def compose(self) -> ComposeResult:
        yield self.lines
        yield self.editor

    def set_fields(self, fields: Mapping[str, Field]) -> None:
        """Show these options. The first call moves important options, and those already changed, to the top."""
        self.fields = fields
        if not self.above:
            self.above = [name for name, field in fields.items() if field.matters or name in self.typed]
            for name, field in fields.items():
                if name not in self.above:
                    self.sections.setdefault(field.section, []).append(name)

    def open_sections_that_fit(self) -> None:
        """Open as many of the first sections as fit in the height, leaving space for all section headings."""
        room = self.lines.size.height - len(self.shown)
        for section, options in self.sections.items():
            room -= len(options)
            if room < 0:
                break
            self.opened.add(section)
        self.rebuild_lines()

    # values

    @property
    def current(self) -> Line | None:
        """The line under the cursor."""
        return self.shown[self.cursor] if self.shown else None

    @property
    def option(self) -> Field | None:
        """The option under the cursor."""
        line = self.current
        return self.fields[line.name] if line is not None and line.kind == "option" else None

    def text(self, option: str) -> str:
        """Return the text of an option's value."""
        return self.typed.get(option, self.fields[option].default)

    def set_text(self, option: str, text: str) -> None:
        """Store a new text in `typed`, or remove the option from `typed` if the text is the default."""
        if text == self.text(option):
            return
        if text == self.fields[option].default:
            del self.typed[option]
        else:
            self.typed[option] = text
        self.lines.refresh()
        self.post_message(self.Typed())

    def reset(self) -> None:
        """Reset the option under the cursor to its default."""
        if field := self.option:
            self.set_text(field.name, field.default)
            self.place_editor()

    def cycle(self, by: int) -> None:
        """Select the next value of a Boolean or a choice, or open or close the section under the cursor."""
        line, field = self.current, self.option
        if field is None and line is not None:
            self.opened ^= {line.name}
            self.rebuild_lines()
        elif field is not None and (choices := _choices(field)):
            text = self.text(field.name)
            at = choices.index(text) if text in choices else -by
            self.set_text(field.name, choices[(at + by) % len(choices)])

    def on_input_changed(self, event: Input.Changed) -> None:
        """Store the text of the input box.

        The box always contains the value under the cursor, even if this message was sent for a previous option.
        """
        event.stop()
        if (field := self.option) and not _choices(field):
            self.set_text(field.name, self.editor.value)
            self.editor.styles.width = self._value_width(field)

    # lines

    def rebuild_lines(self) -> None:
        """Recompute the lines. The cursor stays on its option if that is still visible."""
        line = self.current
        self.shown = list(self._lines(max(20, self.lines.scrollable_content_region.width - INDENT)))
        self.cursor = next((i for i, other in enumerate(self.shown) if line is not None and other[:2] == line[:2]), 0)
        names = (display_width(clean(other.name)) + 1 for other in self.shown if other.kind == "option")
        self.name_width = max(self.name_width, *names, 0)
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
        counts = [f"{len(options)} {'' if opened else 'more '}option{'s' if len(options) > 1 else ''}"]
        for count, what in (
            (sum(self.text(option) != self.fields[option].default for option in options), "changed"),
            (sum(option in self.problems for option in options), "invalid"),
        ):
            counts += [f"{count} {what}"] if count else []
        return f"{'-' if opened else '+'} {section or 'general':<12} {', '.join(counts)}"

    def line_pieces(self, index: int, width: int) -> list[tuple[str, str]]:
        """Return the parts of a line as (text, style)."""
        if index >= len(self.shown):
            return []
        line, here = self.shown[index], index == self.cursor and self._has_focus
        if line.kind == "problem":
            return [(" " * INDENT + line.text, "problem")]
        if line.kind == "section":
            return [(pad(line.text, width) if here else line.text, "cursor" if here else "section")]
        field, text = self.fields[line.name], self.text(line.name)
        room = self._value_width(field)
        changed = "changed" if text != field.default else "name"
        name = pad(clean(field.name), self.name_width)
        description = pad(clean(field.description), max(1, width - self.name_width - room - GAP))
        return [
            (name, changed),
            (pad(_display_value(field, text), room), "cursor" if here else "value"),
            (" " * GAP + description, "description"),
        ]

    def _value_width(self, field: Field) -> int:
        """Return the number of columns for a value. A long value takes space from its description."""
        wanted = display_width(_display_value(field, self.text(field.name))) + 1  # for the cursor
        width = self.size.width
        usual = max(SHORT_VALUE, min(VALUE, width // 5))
        most = min(LONG_VALUE, width - self.name_width - GAP - min(DESCRIPTION, width // 3))
        return max(usual, min(wanted, most))

    # cursor and focus

    @property
    def _has_focus(self) -> bool:
        return self.screen.focused in (self.lines, self.editor)

    def action_move(self, by: int) -> None:
        """Move the cursor by some options or sections. Beyond the ends, post `Left`."""
        stops = [i for i, line in enumerate(self.shown) if line.kind != "problem"]
        at = stops.index(self.cursor) + by if stops else -1
        if not stops or (abs(by) == 1 and not 0 <= at < len(stops)):
            self.cursor = 0  # start at the top when the focus returns
            self.post_message(self.Left(by))
            return
        self.cursor = stops[max(0, min(at, len(stops) - 1))]
        self.take_focus()

    def go_to_first(self) -> None:
        """Move the cursor to the first option."""
        self.cursor = next((i for i, line in enumerate(self.shown) if line.kind == "option"), 0)
        self.take_focus()

    def go_to(self, option: str) -> None:
        """Move the cursor to an option and open its section."""
        if option not in self.above:
            self.opened.add(self.fields[option].section)
        self.words = ()
        self.rebuild_lines()
        self.cursor = self.shown.index(Line("option", option))
        self.take_focus()

    def take_focus(self) -> None:
        """Focus the input box if the option accepts text, otherwise the lines."""
        self.scroll_to_cursor()
        self.place_editor()
        self.screen.set_focus(self.editor if self.editor.display else self.lines)
        self.lines.refresh()
        self.post_message(self.Moved())

    def scroll_to_cursor(self) -> None:
        """Scroll so that the current option and its error are visible."""
        last = self.cursor
        while last + 1 < len(self.shown) and self.shown[last + 1].kind == "problem":
            last += 1
        top, height = round(self.lines.scroll_y), max(1, self.lines.size.height)
        wanted = min(max(top, last - height + 1), self.cursor)
        if wanted != top:
            self.lines.scroll_to(y=wanted, animate=False, force=True, immediate=True)

    def place_editor(self) -> None:
        """Place the input box over the value under the cursor, or hide it if the line needs no text input."""
        field = self.option
        typing = field is not None and not _choices(field)
        if not typing and self.screen.focused is self.editor:
            self.screen.set_focus(self.lines)
        self.editor.display = typing
        if field is not None and typing:
            if self.editor.value != self.text(field.name):
                self.editor.value = self.text(field.name)
                self.editor.cursor_position = len(self.editor.value)
            self.editor.styles.width = self._value_width(field)
            self.editor.styles.offset = (self.name_width, self.cursor - round(self.lines.scroll_y))

    def click(self, index: int, column: int) -> None:
        """Move the cursor to a line. On a choice or a section heading, also do the same as Enter."""
        if index < len(self.shown) and self.shown[index].kind != "problem":
            self.cursor = index
            self.take_focus()
            if self.option is None or (_choices(self.option) and column >= self.name_width):
                self.cycle(1)


def _choices(field: Field) -> tuple[str, ...]:
    return SWITCH if field.kind == "bool" else field.choices


def _display_value(field: Field, text: str) -> str:
    if field.kind == "bool" and text in SWITCH:
        return f"[{'x' if text == 'true' else ' '}] {text}"
    return f"< {clean(text)} >" if field.choices else clean(text)


def _matches(field: Field, words: Sequence[str]) -> bool:
    """Return True if an option's name or description contains every word."""
    text = f"{field.name} {field.description}".lower()
    return all(word in text for word in words)
