"""Start processes of this program in the background, some of them before their command is known.

To keep startup fast, this module imports no other module of this project.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from contextlib import ExitStack, suppress

DETACHED_VARIABLE = "PPO_UNIFIED_DETACHED"  # contains the number of the file descriptor of `Background.report`


class Background:
    """A child process of this program, in a new session. It writes its errors and its run's folder to separate files.

    Pipes would break if the parent process ended first.
    """

    def __init__(self, *arguments: str, module: str = "ppo_unified", stdin: int = subprocess.DEVNULL) -> None:
        with ExitStack() as files:
            self.errors, self.report = (files.enter_context(tempfile.TemporaryFile()) for _ in range(2))
            self.child = subprocess.Popen(
                [sys.executable, "-P", "-m", module, *arguments],  # -P ignores modules in the current folder
                stdin=stdin,
                stdout=subprocess.DEVNULL,
                stderr=self.errors,
                start_new_session=True,
                pass_fds=[self.report.fileno()],
                env=os.environ | {DETACHED_VARIABLE: str(self.report.fileno())},
            )
            if self.child.stdin is not None:
                files.enter_context(self.child.stdin)
            self._files = files.pop_all()
        # reap the child, so that a long-running terminal UI does not accumulate zombies
        threading.Thread(target=self.child.wait, name=f"wait for {self.child.pid}", daemon=True).start()

    def close(self) -> None:
        """Close this process's files. The child process continues."""
        self._files.close()


class Standby(Background):
    """A process that has imported torch and waits for a command, so that a run starts sooner.

    It ends if the parent process ends first, or if it receives no command for `standby.STANDBY_S` seconds.
    """

    def __init__(self) -> None:
        self._lock, self._stopped_waiting = threading.Lock(), False
        super().__init__(module="ppo_unified.cli.standby", stdin=subprocess.PIPE)

    @property
    def is_waiting(self) -> bool:
        """True if the process still waits for a command."""
        return not self._stopped_waiting and self.child.returncode is None

    def send(self, arguments: Sequence[str]) -> bool:
        """Send a command's arguments to the process. Return False if it has ended or received a command before."""
        with self._lock:
            if self._stopped_waiting or self.child.stdin is None:
                return False
            self._stopped_waiting = True
            with suppress(BrokenPipeError), self.child.stdin as pipe:
                pipe.write(encode_arguments(arguments))
                return True
            self.close()
            return False

    def discard(self) -> None:
        """End the process unless it has received a command."""
        with self._lock:
            if not self._stopped_waiting:
                self._stopped_waiting = True
                self.child.kill()
                self.close()


class StandbySlot:
    """At most one standby process, for the next run that this process starts."""

    def __init__(self) -> None:
        self._standby: Standby | None = None

    def fill(self) -> None:
        """Start a standby process unless one is waiting. If this fails, the next run only starts later."""
        if self._standby is None or not self._standby.is_waiting:
            self.clear()
            with suppress(OSError):
                self._standby = Standby()

    def take(self) -> Standby | None:
        """Remove and return the standby process, or return None. The caller must send it a command or discard it."""
        standby, self._standby = self._standby, None
        return standby

    def clear(self) -> None:
        """End the standby process."""
        if standby := self.take():
            standby.discard()


def encode_arguments(arguments: Sequence[str]) -> bytes:
    """Return the arguments as bytes that start with their number."""
    return b"".join(os.fsencode(text) + b"\0" for text in (str(len(arguments)), *arguments))


def decode_arguments(data: bytes) -> list[str]:
    """Return the arguments that a standby process has received. The list is empty if some or all are missing."""
    count, *arguments = data.split(b"\0")[:-1] or [b"0"]
    return [os.fsdecode(argument) for argument in arguments] if len(arguments) == int(count) else []
