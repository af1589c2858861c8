"""The child process that plays a policy or replays samples, so that environment code never runs in the UI."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import IO, TypeAlias

from ppo_unified.runs.folder import Run
from ppo_unified.runs.play_messages import MAX_LINE_BYTES, FrameReply, Reply, Request, decode, encode, picture_bytes
from ppo_unified.text import clean

GRACE_S = 1.0  # time to close the environment before the process is killed
KEPT_CHUNKS = 4  # of stderr
SHOWN_LINES = 8


@dataclass(frozen=True)
class Ended:
    """The process has ended, or sent something that is not a message."""

    reason: str
    lines: Sequence[str]  # the last lines that it wrote to stderr


Receive: TypeAlias = Callable[[Reply | Ended, bytes], object]


def play_command(run: Run) -> list[str]:
    """Return the command that plays the policy of a run."""
    return _serve_command("play", run)


def replay_command(run: Run, trust: bool) -> list[str]:
    """Return the command that replays the stored samples of a run. With `trust`, it imports the code of the run."""
    return [*_serve_command("inspect", run), *(["--trust"] if trust else [])]


def _serve_command(command: str, run: Run) -> list[str]:
    # -P ignores modules in the current folder
    return [sys.executable, "-P", "-m", "ppo_unified", command, run.name, "--serve", "--runs", str(run.path.parent)]


class Player:
    """Starts the process and passes each reply, with the pixels that belong to it, to `receive` in another thread."""

    def __init__(self, command: Sequence[str], receive: Receive) -> None:
        self._receive = receive
        self._chunks: deque[bytes] = deque(maxlen=KEPT_CHUNKS)
        self._closed = self._ended = False
        self._ending = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,  # Ctrl-C does not reach it, and it can be killed with all its children
            )
        except OSError as error:
            receive(Ended(f"{command[0]}: cannot start the process ({error.strerror})", ()), b"")
        else:
            threading.Thread(target=self._read, args=(self._process,), name="player", daemon=True).start()

    def send(self, request: Request) -> None:
        """Send a request. If the process has ended, do nothing; `receive` gets an Ended message."""
        if self._process is not None and self._process.stdin is not None:
            with suppress(OSError, ValueError):
                self._process.stdin.write(encode(request))
                self._process.stdin.flush()

    def close(self) -> None:
        """End the process. This method returns immediately, and `receive` is not called any more."""
        self._closed = True
        if self._process is not None:
            # not a daemon thread: the UI may quit now, but the process must not survive it
            threading.Thread(target=self._end, args=(self._process,), name="end player").start()

    def _read(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        assert process.stderr is not None
        errors = threading.Thread(target=self._read_errors, args=(process.stderr,), name="player errors", daemon=True)
        errors.start()
        problem = ""
        with suppress(OSError):
            try:
                while line := process.stdout.readline(MAX_LINE_BYTES):
                    reply = decode(line)
                    size = picture_bytes(reply) if isinstance(reply, FrameReply) else 0
                    pixels = process.stdout.read(size)
                    if len(pixels) < size:
                        break
                    self._pass_on(reply, pixels)
            except ValueError as error:
                problem = f"the process sent an invalid message: {clean(error)}"
        self._end(process)
        errors.join(GRACE_S)
        process.stdout.close()
        process.stderr.close()
        self._pass_on(Ended(problem or _describe_exit(process.returncode), self._last_lines()), b"")

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        """Close the stdin of the process, and kill it and its children if it does not end in time."""
        with self._ending:
            if self._ended:  # its process ID may belong to another process now
                return
            with suppress(OSError, ValueError):
                if process.stdin is not None:
                    process.stdin.close()
            with suppress(subprocess.TimeoutExpired):
                process.wait(GRACE_S)
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            self._ended = True

    def _pass_on(self, reply: Reply | Ended, pixels: bytes) -> None:
        if not self._closed:
            self._receive(reply, pixels)

    def _read_errors(self, stream: IO[bytes]) -> None:
        with suppress(OSError, ValueError):
            while chunk := os.read(stream.fileno(), 4096):
                self._chunks.append(chunk)

    def _last_lines(self) -> list[str]:
        text = b"".join(self._chunks).decode("utf-8", "replace")
        lines = [clean(line) for line in re.split(r"[\r\n]+", text)]  # a progress bar separates its lines with \r
        return [line for line in lines if line][-SHOWN_LINES:]


def _describe_exit(code: int) -> str:
    if code < 0:
        return f"the process was killed by {signal.Signals(-code).name}"
    return f"the process ended with exit code {code}"
