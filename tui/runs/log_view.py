"""Shows the end of a growing log file. Only the last part is read, and the number of lines in memory is limited."""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import ClassVar

from rich.segment import Segment
from textual.geometry import Size
from textual.reactive import var
from textual.scroll_view import ScrollView
from textual.strip import Strip

from ppo_unified.terminal.chat import wrap_text
from ppo_unified.text import clean, pad

MOST_LINES = 5_000  # lines in memory
LONGEST_LINE = 4_000  # characters; longer lines are truncated
MOST_BYTES = 1 << 17  # maximum size of one read, and of the part that is read first


class Tail:
    """Reads the last lines of a text file as it grows."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.skipped = False  # the file contains more text before `lines`
        self.lines: deque[str] = deque(maxlen=MOST_LINES)
        self.rest = ""  # the unfinished last line
        self._bytes = b""  # the bytes of `rest`
        self._offset, self._inode = 0, 0
        self._inside = False  # reading started in the middle of a line and has not reached its end

    def poll(self) -> list[str] | None:
        """Return the new lines since the last call, or None if the file was replaced and `lines` has been rebuilt."""
        try:
            with open(self.path, "rb") as file:
                found = self.path.stat()
                replaced = found.st_ino != self._inode or found.st_size < self._offset
                if replaced or found.st_size - self._offset > MOST_BYTES:
                    self._start(found.st_ino, max(0, found.st_size - MOST_BYTES))
                    replaced = True
                file.seek(self._offset)
                block = file.read(MOST_BYTES)
        except OSError:
            gone = bool(self._inode)
            self._start(0, 0)
            return None if gone else []
        self._offset += len(block)
        new = self._add_block(block)
        return None if replaced else new

    def _start(self, inode: int, offset: int) -> None:
        self._inode, self._offset = inode, offset
        self.skipped = self._inside = offset > 0
        self._bytes, self.rest = b"", ""
        self.lines.clear()

    def _add_block(self, block: bytes) -> list[str]:
        complete = (self._bytes + block).split(b"\n")
        self._bytes = complete.pop()[-LONGEST_LINE * 4 :]
        if self._inside and complete:
            del complete[0]
            self._inside = False
        new = [_decode_line(line) for line in complete]
        if len(self.lines) + len(new) > MOST_LINES:
            self.skipped = True
        self.lines.extend(new)
        self.rest = _decode_line(self._bytes)
        return new


def _decode_line(line: bytes) -> str:
    """Return the text after the last carriage return, which is the part that a terminal would show."""
    text = line.decode("utf-8", "replace").rstrip("\r").rpartition("\r")[2].expandtabs(4)
    return text if len(text) <= LONGEST_LINE else text[:LONGEST_LINE] + " ..."


class LogView(ScrollView, can_focus=True):
    """A log view that follows the end of the file unless the user has scrolled up."""

    COMPONENT_CLASSES: ClassVar[set[str]] = {"log-view--dim"}
    follows: var[bool] = var(True)

    def __init__(self, path: Path, id: str) -> None:
        super().__init__(id=id)
        self.tail = Tail(path)
        self._rows: list[str] = []  # wrapped to `_width`, without the unfinished last line
        self._width = 0

    def set_path(self, path: Path) -> None:
        """Set the new path of the log after a rename."""
        self.tail.path = path

    def append_new_lines(self) -> None:
        """Show the lines written since the last call."""
        rest = self.tail.rest
        new = self.tail.poll()
        if new is None:
            self._wrap_all()
        elif new or self.tail.rest != rest:
            self._append(new)

    def on_resize(self) -> None:
        if self._width != self.scrollable_content_region.width:
            self._wrap_all()
        elif self.follows:
            self.follow()

    def watch_scroll_y(self, old: float, new: float) -> None:
        super().watch_scroll_y(old, new)
        self.follows = new >= self.max_scroll_y

    def watch_show_vertical_scrollbar(self) -> None:
        """Update the thumb of a scrollbar that appears after `follow` has scrolled."""
        self.vertical_scrollbar.position = self.scroll_y

    def follow(self) -> None:
        """Scroll to the end and follow new lines."""
        self.follows = True
        self.scroll_to(y=self.max_scroll_y, animate=False, immediate=True, force=True)  # there may be no scrollbar yet

    def _wrap_all(self) -> None:
        self._width = self.scrollable_content_region.width
        self._rows = []
        self._append(self.tail.lines)

    def _append(self, lines: deque[str] | list[str]) -> None:
        following = self.follows
        for line in lines:
            self._rows += wrap_text(line, max(10, self._width))
        dropped = max(0, len(self._rows) - MOST_LINES)
        del self._rows[:dropped]
        self.virtual_size = Size(self._width, len(self._tail_rows()) + len(self._rows) + self._heading())
        if following:
            self.follow()
        elif dropped:  # do not move the text that the user is reading
            self.scroll_to(y=self.scroll_y - dropped, animate=False, immediate=True, force=True)
        self.refresh()

    def _tail_rows(self) -> list[str]:
        return wrap_text(self.tail.rest, max(10, self._width)) if self.tail.rest else []

    def _heading(self) -> int:
        """Return the number of message rows above the log: 1 if lines were skipped or the log is empty, otherwise 0."""
        return 1 if self.tail.skipped or not (self._rows or self.tail.rest) else 0

    def render_line(self, y: int) -> Strip:
        width, row = self.scrollable_content_region.width, round(self.scroll_y) + y
        style = self.rich_style
        if self._heading() and row == 0:
            style = self.get_component_rich_style("log-view--dim")
            text = f"(earlier lines are in {clean(self.tail.path)})" if self.tail.skipped else "The log is empty."
        else:
            rows = row - self._heading()
            after = self._tail_rows() if rows >= len(self._rows) else []
            later = rows - len(self._rows)
            text = self._rows[rows] if later < 0 else after[later] if later < len(after) else ""
        return Strip([Segment(pad(text, width), style)])
