"""Runs Python programs in processes that have already imported PyTorch, because each import takes 2 s of CPU time.

`run` sends a command to a server, which forks. The program has its own process, arguments, environment variables,
folder and output, and the process ends like one that was started by a shell. Start a process with `subprocess` instead
if the test is about imports or about options of the interpreter other than `-W`.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import random
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

LIMIT = 1 << 20  # bytes of a message


def run(
    words: Sequence[str], cwd: Path | str = ".", env: Mapping[str, str] = os.environ, timeout: float = 120
) -> subprocess.CompletedProcess[str]:
    """Run `python [-W filter] (-m module | script) arguments`, given without `python`, and capture its output."""
    request = json.dumps({"words": words, "cwd": str(Path(cwd).resolve()), "env": dict(env)}).encode()
    server = _connect()
    with open(os.devnull, "rb") as stdin, tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        socket.send_fds(server, [request], [file.fileno() for file in (stdin, stdout, stderr)])
        process = int(server.recv(LIMIT))
        server.settimeout(timeout)
        try:
            code = int(server.recv(LIMIT))
        except TimeoutError:
            os.kill(process, signal.SIGKILL)
            server.settimeout(None)
            server.recv(LIMIT)
            raise
        server.settimeout(None)
        texts = []
        for file in (stdout, stderr):
            file.seek(0)
            texts.append(file.read().decode())
    return subprocess.CompletedProcess(words, code, *texts)


@cache
def _connect() -> socket.socket:
    """Start the server of this process."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    theirs.set_inheritable(True)
    # unlike an object of Popen, this process may run until the exit of the interpreter without a warning
    server = os.posix_spawn(sys.executable, [sys.executable, __file__, str(theirs.fileno())], os.environ)
    theirs.close()

    def stop() -> None:
        ours.close()
        os.waitpid(server, 0)

    atexit.register(stop)
    return ours


def _serve(connection: socket.socket) -> bytes:
    """Fork for each request. Return it in the new process, and return nothing in the server after the last request."""
    import gymnasium  # noqa: F401
    import torch
    import torch.utils.tensorboard  # noqa: F401

    gc.freeze()
    while True:
        request, files, _, _ = socket.recv_fds(connection, LIMIT, 3)
        if not request:
            return b""
        process = os.fork()
        if not process:
            connection.close()
            for number, file in enumerate(files):
                os.dup2(file, number)
                os.close(file)
            return request
        for file in files:
            os.close(file)
        connection.send(str(process).encode())
        connection.send(str(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])).encode())


def _execute(words: list[str], cwd: str, env: dict[str, str]) -> None:
    import numpy as np

    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    random.seed()
    np.random.seed()
    filters = [text for text in env.get("PYTHONWARNINGS", "").split(",") if text]
    while words[0] == "-W":
        filters.append(words[1])
        words = words[2:]
    sys.warnoptions[:] = filters
    warnings._processoptions(filters)  # type: ignore[attr-defined]
    is_module = words[0] == "-m"
    sys.argv = words[1:] if is_module else words
    sys.path[:1] = [cwd if is_module else str(Path(words[0]).resolve().parent), *filter(None, [env.get("PYTHONPATH")])]
    if is_module:
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(words[0], run_name="__main__")


if __name__ == "__main__":
    if message := _serve(socket.socket(fileno=int(sys.argv[1]))):
        _execute(**json.loads(message))
