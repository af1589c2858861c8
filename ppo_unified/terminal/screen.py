"""Shows moving pictures on a terminal and restores the terminal afterwards. Uses only the standard library."""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from types import FrameType
from typing import TYPE_CHECKING, NoReturn, TextIO

from ppo_unified.text import can_color, can_unicode

if TYPE_CHECKING:
    from ppo_unified.terminal.frames import Style

ENTER = "\x1b[?1049h\x1b[?25l"  # the alternate screen, without a cursor
LEAVE = "\x1b[0m\x1b[?25h\x1b[?1049l"


def style_for(stream: TextIO) -> Style:
    """Return the best style that the terminal behind `stream` supports."""
    if not (can_color(stream) and can_unicode(stream)):
        return "ascii"
    return "truecolor" if os.environ.get("COLORTERM", "").lower() in ("truecolor", "24bit") else "256"


class Screen:
    """A terminal screen of text rows. Only rows that change are rewritten."""

    def __init__(self, terminal: int) -> None:
        """Create a screen that writes to the file descriptor `terminal`, so that redirecting stdout has no effect."""
        self.terminal = terminal
        self._shown: list[str] = []
        self._size = (0, 0)

    def size(self) -> tuple[int, int]:
        """Return the current columns and lines, or 80 and 24 if the terminal does not report its size."""
        columns, lines = os.get_terminal_size(self.terminal)
        return (columns or 80, lines or 24)

    def paint(self, rows: Sequence[str]) -> None:
        """Show `rows` and nothing else. If the window's size has changed, rewrite all rows."""
        parts = ["\x1b[H"]
        if self.size() != self._size:
            self._size, self._shown = self.size(), []
            parts.append("\x1b[0m\x1b[2J")
        for number in range(max(len(rows), len(self._shown))):
            row = rows[number] if number < len(rows) else ""
            if number >= len(self._shown) or row != self._shown[number]:
                # clear before writing: after a full row the cursor is still on its last cell and would clear it
                parts.append(f"\x1b[{number + 1};1H\x1b[K{row}")
        self._shown = list(rows)
        self.write("".join(parts))

    def write(self, text: str) -> None:
        left = text.encode("utf-8", errors="replace")
        while left:
            left = left[os.write(self.terminal, left) :]


class _Terminated(BaseException):
    """Raised by SIGTERM. It is not a SystemExit, which an environment could raise or handle."""


@contextmanager
def open_screen(stream: TextIO) -> Iterator[Screen]:
    """Open the alternate screen of the terminal behind `stream`, and restore the terminal at the end of the block.

    In the block, Ctrl-C raises KeyboardInterrupt. SIGTERM ends the block and raises SystemExit(143). Neither of them
    can interrupt the code that restores the terminal. Output that Python code prints in the block is written to stderr
    afterwards.
    """
    stream.flush()
    shown = Screen(stream.fileno())
    before = signal.signal(signal.SIGTERM, _terminate)
    aside = io.StringIO()
    try:
        shown.write(ENTER)
        with redirect_stdout(aside), redirect_stderr(aside):
            yield shown
    except _Terminated:
        raise SystemExit(128 + signal.SIGTERM) from None
    finally:
        interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        shown.write(LEAVE)
        signal.signal(signal.SIGINT, interrupt)
        signal.signal(signal.SIGTERM, before)
        sys.stderr.write(aside.getvalue())


def _terminate(_number: int, _frame: FrameType | None) -> NoReturn:
    raise _Terminated
