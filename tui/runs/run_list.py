"""The table of runs. It draws only the visible lines, so drawing thousands of runs is as fast as drawing twenty."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.binding import Binding, BindingType
from textual.geometry import Region, Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip

from ppo_unified.runs.folder import ACTIVE, read_warnings
from ppo_unified.runs.progress import format_percent, format_phase
from ppo_unified.runs.trials import PRUNED
from ppo_unified.text import clean, display_width, elide, format_duration, format_number, pad
from tui.runs.entries import Entry, is_ascending
from tui.runs.seeds import UNGROUPED, SeedGroups

_LONGEST_NAME, SHORT_NAME = 40, 24  # longer names are cut to 40 columns; if space is short, down to 24
AGEING_S = 5.0  # interval between updates of the age column


class Column(NamedTuple):
    """One column of the table. It is hidden while all its cells are empty or '-'.

    `width` is the minimum width. If space is short, columns with the highest `drop` are hidden first; 0 means never. A
    text column is as wide as its longest cell but not wider than `most`, and the width of a number column is constant.
    """

    head: str
    width: int
    drop: int
    right: bool
    cell: Callable[[Entry, float], str]
    help: str
    most: int = _LONGEST_NAME


def _remark(entry: Entry, with_eta: bool = False) -> str:
    """Return the text of the note column: the phase, health warnings and note, or the error of an unreadable run.

    If `with_eta` is True, the text starts with the ETA.
    """
    shows_reason = entry.state in ("failed", "crashed") or entry.status.reason.startswith(PRUNED)
    note = entry.note or (entry.status.reason if shows_reason else "")
    eta = f"ETA {format_duration(entry.eta_s)}" if with_eta and entry.eta_s is not None else ""
    parts = (eta, format_phase(entry.status, entry.state), _health(entry), note)
    return entry.problem or "   ".join(filter(None, parts))


def _health(entry: Entry) -> str:
    """Return the names of the health checks that warn."""
    names = ", ".join(warning.name for warning in read_warnings(entry.status))
    return f"! {names}" if names else ""


def _eta(entry: Entry) -> str:
    """Return the ETA. While that of an active run is unknown, return '?', so that the column does not disappear."""
    if entry.eta_s is None:
        return "?" if entry.state in ACTIVE else "-"
    return format_duration(entry.eta_s)


COLUMNS: dict[str, Column] = {  # the keys are the column names of `sort_entries`
    "name": Column("run", 0, 0, False, lambda e, _: clean(e.key), "name of the run folder"),
    "state": Column("state", 8, 0, False, lambda e, _: clean(e.state), "what the run is doing, or how it ended"),
    "preset": Column(
        "preset", 0, 7, False, lambda e, _: clean(e.status.preset) or "-", "the target: a preset or an environment"
    ),
    "step": Column("step", 6, 0, True, lambda e, _: format_number(e.status.step), "environment steps or tokens so far"),
    "percent": Column(
        "done", 4, 3, True, lambda e, _: format_percent(e.status), "completed fraction of the run's limit"
    ),
    "score": Column(
        "score",
        7,
        0,
        True,
        lambda e, _: format_number(e.status.score),
        "score of the last greedy evaluation; for a log of another program, its own metric",
    ),
    "best": Column("best", 7, 4, True, lambda e, _: format_number(e.status.best_score), "highest of these scores"),
    "speed": Column(
        "steps/s",
        7,
        6,
        True,
        lambda e, _: format_number(e.speed) if e.speed else "-",
        "speed over the last few seconds, or over the whole run if it has ended",
    ),
    "eta": Column(
        "ETA", 7, 2, True, lambda e, _: _eta(e), "estimated time until the run reaches its step limit; ? if unknown"
    ),
    "age": Column(
        "age",
        7,
        5,
        True,
        lambda e, now: format_duration(now - e.status.started) if e.status.started else "-",
        "time since the run started",
    ),
}
OPTIONAL = 8  # `drop` of the first column that shows an option that differs; the others follow
ASCII_MARKS = {"◆": "#", "●": "*", "•": "."}  # signs of the pinned, marked and drawn runs without Unicode
NOTE = 8  # minimum width of the note column, which uses the remaining space
NOTE_WITH_ETA = 11  # the same if the notes start with the ETA
REMARK, MINOR = 20, 4  # to show notes, columns with `drop` >= MINOR are hidden until REMARK columns are free
WIDEST_NOTE = 40  # the list wants at most this many columns for the notes


@dataclass
class Marks:
    """The colors, letters and marks of the runs in the list and in the charts."""

    colors: Mapping[str, str] = field(default_factory=dict)  # key of a drawn run -> color
    letters: Mapping[str, str] = field(default_factory=dict)  # key of a drawn run -> letter, or {} without letters
    marked: frozenset[str] = frozenset()
    pinned: str = ""
    seeds: SeedGroups = UNGROUPED


class RunList(ScrollView, can_focus=True):
    """A table of runs. The cursor stays on its run if runs are added, removed or sorted."""

    DEFAULT_CSS = """
    RunList { height: 1fr; scrollbar-size-horizontal: 0; scrollbar-size-vertical: 1; background: $background; }
    RunList > .run-list--head { text-style: bold; color: $foreground; background: $panel; }
    RunList > .run-list--cursor { background: $primary; color: $text; text-style: bold; }
    RunList > .run-list--cursor-away { background: $surface-lighten-1; text-style: bold; }
    RunList > .run-list--good { color: $text-success; }
    RunList > .run-list--warn { color: $text-warning; }
    RunList > .run-list--bad { color: $text-error; }
    RunList > .run-list--dim { color: $text-muted; }
    """
    COMPONENT_CLASSES: ClassVar[set[str]] = {
        f"run-list--{name}" for name in ("head", "cursor", "cursor-away", "good", "warn", "bad", "dim")
    }
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "move(-1)", show=False),
        Binding("down,j", "move(1)", show=False),
        Binding("pageup,ctrl+u", "move_page(-1)", show=False),
        Binding("pagedown,ctrl+d", "move_page(1)", show=False),
        Binding("home", "move(-1000000)", show=False),
        Binding("end", "move(1000000)", show=False),
    ]
    STATES: ClassVar[dict[str, str]] = {
        "running": "good",
        "starting": "good",
        "solved": "good",
        "finished": "dim",
        "log": "dim",
        "stopping": "warn",
        "stopped": "warn",
        "stalled": "warn",
        "failed": "bad",
        "crashed": "bad",
        "unreadable": "bad",
    }

    class Moved(Message):
        """The cursor has moved to another run."""

    class Opened(Message):
        """The run under the cursor was double-clicked."""

    class HeadClicked(Message):
        """A column header was clicked."""

        def __init__(self, column: str) -> None:
            super().__init__()
            self.column = column

    def __init__(self, unicode: bool = True, clock: Callable[[], float] = time.time) -> None:
        super().__init__()
        self.entries: Sequence[Entry] = ()
        self.marks = Marks()
        self.sorted_by, self.reverse = "age", False
        self.empty: str = ""  # the text of an empty list
        self._key, self._row = "", 0
        self._awaited = ""  # the cursor moves to this run as soon as it is listed
        self._unicode, self._clock = unicode, clock
        self.columns: Mapping[str, Column] = COLUMNS  # those with values, which may be more than fit
        self.wanted_width = 0  # width at which all columns fit
        self._remark_width = 0  # width of the widest note; 0 without notes
        self._eta_in_notes = False  # if notes would be cut, they start with the ETA, which then has no column
        self._options: Mapping[str, Column] = {}
        self._widths: dict[str, int] = {}
        self._heads: list[tuple[int, int, str]] = []  # (first column, last column, name) of each header
        self._last_drawn: tuple[object, list[object]] = (None, [])  # layout of the table and content of each line

    @property
    def current(self) -> Entry | None:
        """The run under the cursor."""
        return self.entries[self._row] if self._row < len(self.entries) else None

    def show(self, entries: Sequence[Entry], marks: Marks, options: Mapping[str, Column]) -> None:
        """Show `entries` in this order, with additional columns for `options`.

        The cursor stays on its run, or on its line if the run is gone.
        """
        self.entries, self.marks, self._options = entries, marks, options
        self._remark_width = max((display_width(clean(_remark(entry))) for entry in entries), default=0)
        rows = {entry.key: row for row, entry in enumerate(entries)}
        row = rows.get(self._key, min(self._row, max(0, len(entries) - 1)))
        if self._awaited in rows:
            row, self._awaited = rows[self._awaited], ""
        moved = row != self._row
        self._set_row(row)
        self._measure()
        if moved:
            self._scroll_to_cursor()
        self._refresh_changed()

    def set_marks(self, marks: Marks) -> None:
        """Update the colors, letters and marks."""
        gutter, self.marks = self._gutter, marks
        if self._gutter != gutter:
            self._measure()
        self._refresh_changed()

    def _refresh_changed(self) -> None:
        """Redraw only the lines that have changed, because most runs ended long ago."""
        marks, top, size = self.marks, round(self.scroll_y), self.size
        remarks = self._remark_width > 0
        table = (size, top, self._gutter, self._widths, self.sorted_by, self.reverse, self.empty, remarks)
        lines: list[object] = [
            (entry, row == self._row, entry.key in marks.marked, entry.key == marks.pinned)
            + (marks.colors.get(entry.key), marks.letters.get(entry.key))
            for row, entry in enumerate(self.entries[top : top + size.height], top)
        ]
        before, self._last_drawn = self._last_drawn, (table, lines)
        if before[0] != table or len(before[1]) != len(lines):
            self.refresh()
        elif changed := [y for y, line in enumerate(lines, 1) if line != before[1][y - 1]]:
            self.refresh(*(Region(0, y, size.width, 1) for y in changed))

    def move_to(self, key: str) -> bool:
        """Move the cursor to a run. Return False if it is not listed yet."""
        for row, entry in enumerate(self.entries):
            if entry.key == key:
                self._set_row(row)
                self._scroll_to_cursor()
                self.refresh()
                return True
        self._awaited = key
        return False

    def _set_row(self, row: int) -> None:
        before = self._key
        self._row = row
        if self.current is not None:
            self._key = self.current.key
        if self._key != before:
            self.post_message(self.Moved())

    def _scroll_to_cursor(self) -> None:
        height = max(1, self.scrollable_content_region.height - 1)
        top = round(self.scroll_y)
        if self._row < top:
            self.scroll_to(y=self._row, animate=False, immediate=True)
        elif self._row >= top + height:
            self.scroll_to(y=self._row - height + 1, animate=False, immediate=True)

    def action_move(self, by: int) -> None:
        if self.entries:
            self._awaited = ""  # do not override the user's own move
            self._set_row(min(max(0, self._row + by), len(self.entries) - 1))
            self._scroll_to_cursor()
            self._refresh_changed()

    def action_move_page(self, by: int) -> None:
        self.action_move(by * max(1, self.scrollable_content_region.height - 2))

    def on_click(self, event: events.Click) -> None:
        if event.y == 0:
            for first, last, name in self._heads:
                if first <= event.x <= last:
                    self.post_message(self.HeadClicked(name))
            return
        row = round(self.scroll_y) + event.y - 1
        if row >= len(self.entries):
            return
        again = row == self._row and event.chain >= 2
        self._set_row(row)
        self.refresh()
        if again:
            self.post_message(self.Opened())

    def on_mount(self) -> None:
        self.set_interval(AGEING_S, self.refresh)

    def on_resize(self) -> None:
        self._measure()
        self._scroll_to_cursor()

    def _measure(self) -> None:
        """Determine which columns have values, which of them fit, and how wide they are."""
        now, room = self._clock(), self.scrollable_content_region.width
        self.columns = columns = self._with_values(now)
        widths = {}
        for name, column in columns.items():
            cells = [] if column.right else [column.cell(entry, now) for entry in self.entries]
            widest = max(map(display_width, cells), default=0)
            widths[name] = max(column.width, display_width(column.head), min(column.most, widest))
        # without notes, 1 for the arrow of the last column
        wanted = max(NOTE, min(WIDEST_NOTE, self._remark_width) + 2) if self._remark_width else 1
        self.wanted_width = self._total(widths) + wanted
        standard = {name: width for name, width in widths.items() if columns[name].drop < OPTIONAL}
        self._eta_in_notes = "eta" in widths and self._remark_width > 0 and self._total(standard) + wanted > room
        if self._eta_in_notes:  # few runs have an ETA, so its column would waste space that notes need
            del widths["eta"], standard["eta"]
            wanted = max(wanted, NOTE_WITH_ETA + 2)
        remark = min(REMARK, wanted)
        over = max(0, self._total(standard) + remark - room)
        widths["name"] = max(min(widths["name"], SHORT_NAME), widths["name"] - over)
        for name in sorted((n for n in widths if columns[n].drop), key=lambda n: -columns[n].drop):
            if self._total(widths) + (remark if columns[name].drop >= MINOR else 1) <= room:
                break
            del widths[name]
        if (over := self._total(widths) + 1 - room) > 0:
            widths["name"] = max(8, widths["name"] - over)
        self._widths = widths
        self.virtual_size = Size(room, len(self.entries) + 1)

    def _with_values(self, now: float) -> Mapping[str, Column]:
        columns = {**COLUMNS, **self._options}
        if not self.entries:
            return columns
        return {
            name: column
            for name, column in columns.items()
            if any(column.cell(entry, now) not in ("", "-") for entry in self.entries)
        }

    @property
    def hidden_order(self) -> str:
        """The order of the list, such as 'sorted by optim.lr, descending', or "" if a visible column shows it."""
        ascending, column = is_ascending(self.sorted_by, self.reverse), COLUMNS.get(self.sorted_by)
        if self.sorted_by in self._widths:
            return ""
        if self.sorted_by == "age":
            return "newest first" if ascending else "oldest first"
        head = clean(self.sorted_by) if column is None else column.head
        return f"sorted by {head}, {'ascending' if ascending else 'descending'}"

    def _total(self, widths: Mapping[str, int]) -> int:
        return self._gutter + sum(widths.values()) + 2 * (len(widths) - 1)

    @property
    def _gutter(self) -> int:
        """The width of each run's sign, its letter if the charts show letters, and a space."""
        return 3 if self.marks.letters else 2

    def render_line(self, y: int) -> Strip:
        width = self.scrollable_content_region.width
        if y == 0:
            return self._head(width)
        row = round(self.scroll_y) + y - 1
        if row < len(self.entries):
            return self._line(self.entries[row], row == self._row, width)
        text = self.empty.split("\n")[y - 1] if not self.entries and y <= len(self.empty.split("\n")) else ""
        style = self.get_component_rich_style("run-list--dim")
        return Strip([Segment(pad("  " + text if text else "", width), style)])

    def _head(self, width: int) -> Strip:
        text, self._heads = " " * self._gutter, []
        ascending = is_ascending(self.sorted_by, self.reverse)
        arrow = ("▲" if ascending else "▼") if self._unicode else ("^" if ascending else "v")
        for name, size in self._widths.items():
            column = self.columns[name]
            start = display_width(text)
            self._heads.append((start, start + size - 1, name))
            head = column.head + (arrow if name == self.sorted_by else "")
            head = head.rjust(size) if column.right else head
            text += head + " " * (size + 2 - display_width(head))  # the arrow may be in the gap between two columns
        text += "note" if width - display_width(text) >= NOTE - 2 and self._remark_width else ""
        text = text.rstrip()
        return Strip([Segment(pad(text, width), self.get_component_rich_style("run-list--head"))])

    def _line(self, entry: Entry, current: bool, width: int) -> Strip:
        base = self.rich_style
        if current:
            base = self.get_component_rich_style("run-list--cursor" if self.has_focus else "run-list--cursor-away")
        now = self._clock()
        segments = [self._mark(entry)]
        used = self._gutter
        for number, (name, size) in enumerate(self._widths.items()):
            column = self.columns[name]
            cell = column.cell(entry, now)
            text = pad(cell, size).rstrip().rjust(size) if column.right else pad(elide(cell, size), size)
            style = base
            if name == "state" and not current:
                style = self.get_component_rich_style(f"run-list--{self.STATES.get(entry.state, 'dim')}")
            gap = "" if number == len(self._widths) - 1 else "  "
            segments += [Segment(text, style), Segment(gap, base)]
            used += size + len(gap)
        rest = _remark(entry, self._eta_in_notes)
        kind = "bad" if entry.problem else "warn" if _health(entry) else "dim"
        style = base if current else self.get_component_rich_style(f"run-list--{kind}")
        text = pad("  " + clean(rest), width - used) if width - used >= NOTE and rest else " " * max(0, width - used)
        return Strip([*segments, Segment(text, style)]).crop(0, width)

    def _mark(self, entry: Entry) -> Segment:
        """Return the mark of a run without the cursor's background, on which few colors of curves would be visible."""
        key, marks = entry.key, self.marks
        sign = "◆" if key == marks.pinned else "●" if key in marks.marked else "•" if key in marks.colors else " "
        if not self._unicode:
            sign = ASCII_MARKS.get(sign, sign)
        color, letter = marks.colors.get(key), marks.letters.get(key, "")
        style = self.rich_style + Style(color=color) if color else self.rich_style
        return Segment(pad(sign + letter, self._gutter), style)

    def watch_has_focus(self, value: bool) -> None:
        super().watch_has_focus(value)
        self.refresh(Region(0, 0, *self.size))
