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
from contextlib import suppress

DETACHED_VARIABLE = "PPO_UNIFIED_DETACHED"  # contains the number of the file descriptor of `Background.report`
STANDBY_S = 300.0  # a standby process that gets no command in this time ends, because it takes 300 MB of memory


class Background:
    """A process of this program in a new session. It writes its errors and the folder of its run to two files.

    They are files, not pipes, because the process may still write after this process has ended.
    """

    def __init__(self, *arguments: str, module: str = "ppo_unified", stdin: int = subprocess.DEVNULL) -> None:
        self.errors, self.report = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115 - see close()
        self.child = subprocess.Popen(
            [sys.executable, "-P", "-m", module, *arguments],  # -P ignores modules in the current folder
            stdin=stdin,
            stdout=subprocess.DEVNULL,
            stderr=self.errors,
            start_new_session=True,
            pass_fds=[self.report.fileno()],
            env=os.environ | {DETACHED_VARIABLE: str(self.report.fileno())},
        )
        # reap the child, so that a long-running terminal UI does not accumulate zombies
        threading.Thread(target=self._reap, name=f"wait for {self.child.pid}", daemon=True).start()

    def _reap(self) -> None:
        self.child.wait()

    def close(self) -> None:
        """Close this process's files. The child process continues."""
        self.errors.close()
        self.report.close()


class Standby(Background):
    """A process that has imported torch and waits for a command, so that a run starts sooner.

    It ends if this process ends first, or if it gets no command within STANDBY_S seconds.
    """

    def __init__(self) -> None:
        self._lock, self._settled = threading.Lock(), threading.Event()
        super().__init__(module="ppo_unified.cli.standby", stdin=subprocess.PIPE)

    def _reap(self) -> None:
        if not self._settled.wait(STANDBY_S):
            self.discard()
        super()._reap()

    @property
    def is_waiting(self) -> bool:
        """True if the process still waits for a command."""
        return not self._settled.is_set() and self.child.returncode is None

    def send(self, arguments: Sequence[str]) -> bool:
        """Send a command's arguments to the process. Return False if it has ended or received a command before."""
        with self._lock:
            if not self.is_waiting or self.child.stdin is None:
                return False
            self._settled.set()
            with suppress(BrokenPipeError), self.child.stdin as pipe:
                pipe.write(encode_arguments(arguments))
                return True
            return False

    def discard(self) -> None:
        """End the process unless it has received a command."""
        with self._lock:
            if not self._settled.is_set():
                self._settled.set()
                self.child.kill()
                self.close()

    def close(self) -> None:
        super().close()
        if self.child.stdin is not None:
            self.child.stdin.close()


class Reserve:
    """At most one standby process, for the next run that this process starts."""

    def __init__(self) -> None:
        self._standby: Standby | None = None

    def fill(self) -> None:
        """Start a standby process unless there is one."""
        if self._standby is None or not self._standby.is_waiting:
            self._standby = Standby()

    def take(self) -> Standby | None:
        """Return the standby process, which the caller must use, or None if there is none."""
        standby, self._standby = self._standby, None
        return standby

    def clear(self) -> None:
        """End the standby process."""
        if standby := self.take():
            standby.discard()


def encode_arguments(arguments: Sequence[str]) -> bytes:
    return b"".join(os.fsencode(argument) + b"\0" for argument in arguments)


def decode_arguments(data: bytes) -> list[str]:
    """Return the arguments that a standby process has received. The list is empty if the sender has ended."""
    return [os.fsdecode(argument) for argument in data.split(b"\0")[:-1]]
