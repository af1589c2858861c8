"""Restores the terminal after the UI, and repairs a terminal in which an earlier UI was killed."""

from __future__ import annotations

import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager, suppress

# turn off mouse reports, bracketed paste, focus reports and the kitty keyboard protocol; show the cursor; reset colors
_PLAIN = "\x1b[?1000l\x1b[?1002l\x1b[?1003l\x1b[?1006l\x1b[?1015l\x1b[?2004l\x1b[?1004l\x1b[<u\x1b[?25h\x1b[0m"
_LEAVE = "\x1b[?1049l"  # leave the alternate screen


@contextmanager
def restore_terminal() -> Iterator[None]:
    """Leave the terminal in a state that a shell can use, even after an error or if it was broken before."""
    with suppress(termios.error, ValueError, OSError):
        if repair_modes():
            sys.stderr.write(_PLAIN + _LEAVE)
            sys.stderr.flush()
    try:
        yield
    finally:
        with suppress(ValueError, OSError):
            if sys.stdout.isatty():
                sys.stdout.write(_PLAIN)
                sys.stdout.flush()


def repair_modes() -> bool:
    """Switch a terminal that was left in raw mode back to line mode. Return True if a repair was necessary."""
    attributes = termios.tcgetattr(sys.stdin.fileno())
    local = attributes[3]
    wanted = termios.ICANON | termios.ECHO | termios.ISIG | termios.IEXTEN
    if local & wanted == wanted:
        return False
    attributes[0] |= termios.ICRNL | termios.IXON | termios.BRKINT
    attributes[1] |= termios.OPOST
    attributes[3] |= wanted | termios.ECHOE | termios.ECHOK
    termios.tcsetattr(sys.stdin.fileno(), termios.TCSANOW, attributes)
    return True
