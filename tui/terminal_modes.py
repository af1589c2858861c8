"""The terminal before and after the UI: left as it was found, and mended where an earlier UI was killed in it."""

from __future__ import annotations

import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager, suppress

# mouse reports, bracketed paste, focus reports and the kitty keyboard off; cursor on; no colours
_PLAIN = "\x1b[?1000l\x1b[?1002l\x1b[?1003l\x1b[?1006l\x1b[?1015l\x1b[?2004l\x1b[?1004l\x1b[<u\x1b[?25h\x1b[0m"
_LEAVE = "\x1b[?1049l"  # the alternate screen


@contextmanager
def restore_terminal() -> Iterator[None]:
    """Leave the terminal in a state that a shell can use, whatever happens inside, also if it was found in none."""
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
    """Give a terminal that someone left in raw mode its line discipline back; whether there was anything to mend."""
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
