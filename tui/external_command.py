"""Letting another command have the terminal: `play`, `inspect`. The UI waits aside and comes back whatever happens."""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from textual.app import App, SuspendNotSupported

from ppo_unified.terminal.screen import LEAVE
from ppo_unified.text import clean

INTERRUPTED = (130, -signal.SIGINT)  # how a command ends that the user ended
AT_ONCE_S = 3.0  # what ends sooner has not been seen


def run_external_command(app: App[Any], arguments: Sequence[str]) -> None:
    """Run `ppo-unified ARGUMENTS` in the terminal until it ends; where that cannot be, say what to type elsewhere."""
    try:
        with app.suspend():
            _run_command(arguments)  # must not raise: the UI would not come back
    except SuspendNotSupported:
        command = clean(shlex.join(["ppo-unified", *arguments]))
        app.notify(f"This terminal cannot be lent out. Type elsewhere: {command}", timeout=20, markup=False)


def _run_command(arguments: Sequence[str]) -> None:
    with _keep_terminal_modes(), _ignore_interrupts():
        began = time.monotonic()
        try:
            command = [sys.executable, "-P", "-m", "ppo_unified", *arguments]
            code = subprocess.run(command, check=False).returncode
        except OSError as error:
            print(f"ppo-unified {shlex.join(arguments)}: cannot be started ({error.strerror})", file=sys.stderr)
            code = 1
        if code < 0:
            print(LEAVE, end="", flush=True)  # it was killed, and may have left its pictures on
        if _has_unread_output(arguments, code, time.monotonic() - began):
            _wait_for_enter()


def _has_unread_output(arguments: Sequence[str], code: int, seconds: float) -> bool:
    """Whether the terminal holds what nobody has read yet. `play` shows all it has while it goes on."""
    if code in INTERRUPTED:
        return False
    return code != 0 or "play" not in arguments[:1] or seconds < AT_ONCE_S


def _wait_for_enter() -> None:
    """Ctrl-C goes back as well."""
    terminal: Any = sys.__stdin__
    before = signal.getsignal(signal.SIGINT)
    with suppress(OSError, ValueError, termios.error, KeyboardInterrupt):
        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            termios.tcflush(terminal, termios.TCIFLUSH)  # what was typed ahead was not for us
            print("\nPress Enter to go back.", end="", flush=True)
            terminal.readline()
        finally:
            signal.signal(signal.SIGINT, before)


@contextmanager
def _ignore_interrupts() -> Iterator[None]:
    """Ctrl-C is the command's alone. A handler and not SIG_IGN, which the command would inherit."""
    before = signal.signal(signal.SIGINT, lambda number, frame: None)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _keep_terminal_modes() -> Iterator[None]:
    """The terminal's modes afterwards are those of before, and what was typed into a dead command is forgotten."""
    terminal: Any = sys.__stdin__
    try:
        attributes = termios.tcgetattr(terminal)
    except (termios.error, ValueError, AttributeError, OSError):
        yield
        return
    try:
        yield
    finally:
        with suppress(termios.error, OSError):
            termios.tcsetattr(terminal, termios.TCSAFLUSH, attributes)
