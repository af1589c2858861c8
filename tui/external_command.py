"""Suspends the UI while another command, such as `inspect`, uses the terminal. The UI always resumes."""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from textual.app import App, SuspendNotSupported

from ppo_unified.terminal.screen import LEAVE
from ppo_unified.text import clean

INTERRUPTED = (130, -signal.SIGINT)  # exit codes of a command that the user interrupted


def run_external_command(app: App[Any], arguments: Sequence[str]) -> None:
    """Run `ppo-unified ARGUMENTS` in the terminal until it ends.

    If the UI cannot be suspended, show the command for the user to run in another terminal.
    """
    try:
        with app.suspend():
            _run_command(arguments)  # must not raise: the UI would not resume
    except SuspendNotSupported:
        command = clean(shlex.join(["ppo-unified", *arguments]))
        app.notify(f"Can't suspend the UI here. Run this in another shell: {command}", timeout=20, markup=False)


def _run_command(arguments: Sequence[str]) -> None:
    with _keep_terminal_modes(), _ignore_interrupts():
        try:
            command = [sys.executable, "-P", "-m", "ppo_unified", *arguments]
            code = subprocess.run(command, check=False).returncode
        except OSError as error:
            print(f"ppo-unified {shlex.join(arguments)}: cannot start ({error.strerror})", file=sys.stderr)
            code = 1
        if code < 0:
            print(LEAVE, end="", flush=True)  # a killed command may not have left the alternate screen
        if code not in INTERRUPTED:
            _wait_for_enter()


def _wait_for_enter() -> None:
    """Wait until the user presses Enter or Ctrl-C."""
    terminal: Any = sys.__stdin__
    before = signal.getsignal(signal.SIGINT)
    with suppress(OSError, ValueError, termios.error, KeyboardInterrupt):
        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            termios.tcflush(terminal, termios.TCIFLUSH)  # discard input meant for the command
            print("\nPress Enter to return.", end="", flush=True)
            terminal.readline()
        finally:
            signal.signal(signal.SIGINT, before)


@contextmanager
def _ignore_interrupts() -> Iterator[None]:
    """Ignore Ctrl-C in this process only. The command would inherit SIG_IGN, but it does not inherit this handler."""
    before = signal.signal(signal.SIGINT, lambda number, frame: None)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _keep_terminal_modes() -> Iterator[None]:
    """Restore the terminal's modes afterwards and discard input that the command did not read."""
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
