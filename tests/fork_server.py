"""Runs Python programs in processes that have already imported PyTorch, because each import takes 2 s of CPU time.

`Popen` and `run` send a command to a server, which forks. The program has its own process, arguments, environment
variables, folder and files. It is a child of this process and ends like one that was started by a shell. Start a
process with `subprocess` instead if the test is about imports or about options of the interpreter other than `-W`.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import importlib
import io
import json
import os
import random
import runpy
import socket
import subprocess
import sys
import threading
import warnings
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

# The server imports these packages, and those of LANGUAGE if this process has imported them
LIBRARIES = ("gymnasium", "torch", "torch.utils.tensorboard", "pydantic", "rich.console", "rich.progress")
LANGUAGE = ("transformers.models.auto.modeling_auto", "transformers.models.llama.modeling_llama")
LIMIT = 1 << 20  # bytes of a message
FILES = 8  # of a message
STARTING = threading.Lock()
PR_SET_CHILD_SUBREAPER = 36


def run(
    words: Sequence[str], cwd: Path | str = ".", env: Mapping[str, str] = os.environ, timeout: float = 120
) -> subprocess.CompletedProcess[str]:
    """Run `python [-W filter] (-m module | -c code | script) arguments`, given without `python`. Capture its output."""
    pipe = subprocess.PIPE
    command = [sys.executable, *words]
    with Popen(command, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, cwd=cwd, env=env, text=True) as process:
        try:
            output, errors = process.communicate(timeout=timeout)
        finally:
            process.kill()
    return subprocess.CompletedProcess(words, process.returncode, output, errors)


class Popen(subprocess.Popen[Any]):
    """A process as in `subprocess`. On Linux, the server starts commands of the form `[sys.executable, *words]`."""

    def _execute_child(self, *arguments: Any) -> None:
        (args, _, _, _, pass_fds, cwd, env, _, _, _, *ends, _, _, _, _, _, new_session, _) = arguments
        if sys.platform != "linux" or args[0] != sys.executable:
            super()._execute_child(*arguments)  # type: ignore[misc] # a method that typeshed does not declare
            return
        child_ends = [ends[0], ends[3], ends[5]]  # of stdin, stdout and stderr; -1 to share this process's
        files = [file if file >= 0 else number for number, file in enumerate(child_ends)] + list(pass_fds)
        request = {
            "words": list(map(os.fsdecode, args[1:])),
            "cwd": str(Path(cwd or ".").resolve()),
            "env": dict(os.environ if env is None else env),
            "files": [0, 1, 2, *pass_fds],
            "new_session": new_session,
        }
        with STARTING:
            server = _connect()
            _adopt_orphans(True)
            socket.send_fds(server, [json.dumps(request).encode()], files)
            self.pid = int(server.recv(LIMIT))
            _adopt_orphans(False)
        self._child_created = True
        self._close_pipe_fds(*ends)  # type: ignore[attr-defined] # as above


def _adopt_orphans(yes: bool) -> None:
    """Choose whether a grandchild becomes a child of this process when its parent ends."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, int(yes), 0, 0, 0)


@cache
def _connect() -> socket.socket:
    """Start the server of this process."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    theirs.set_inheritable(True)
    # unlike an object of Popen, this process may run until the exit of the interpreter without a warning
    libraries = [*LIBRARIES, *(name for name in LANGUAGE if name in sys.modules)]
    command = [sys.executable, __file__, str(theirs.fileno()), *libraries]
    server = os.posix_spawn(sys.executable, command, os.environ)
    theirs.close()

    def stop() -> None:
        ours.close()
        os.waitpid(server, 0)

    atexit.register(stop)
    return ours


def _serve(connection: socket.socket, libraries: Sequence[str]) -> dict[str, Any]:
    """Fork for each request. Return it in the new process, and exit in the server after the last request."""
    for name in libraries:
        importlib.import_module(name)
    gc.freeze()
    while True:
        message, files, _, _ = socket.recv_fds(connection, LIMIT, FILES)
        if not message:
            os._exit(0)
        request: dict[str, Any] = json.loads(message)
        reading, writing = os.pipe()
        parent = os.fork()
        if not parent:
            process = os.fork()
            if process:  # the orphan becomes a child of the process that sent the request
                os.write(writing, str(process).encode())
                os._exit(0)
            for file in (connection.detach(), reading, writing):
                os.close(file)
            _set_files(files, request.pop("files"))
            return request
        os.waitpid(parent, 0)
        connection.send(os.read(reading, LIMIT))
        for file in (*files, reading, writing):
            os.close(file)


def _set_files(files: list[int], numbers: list[int]) -> None:
    """Give each file the number that it has in the process that sent the request."""
    first_free = max(*files, *numbers) + 1
    moved = [os.dup2(file, first_free + i, inheritable=False) for i, file in enumerate(files)]
    for file in files:
        os.close(file)
    for file, number in zip(moved, numbers, strict=True):
        os.dup2(file, number)
        os.close(file)
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream = io.FileIO(number, "w", closefd=False)
        errors = "backslashreplace" if name == "stderr" else "strict"
        by_line = name == "stderr" or stream.isatty()
        text = io.TextIOWrapper(io.BufferedWriter(stream), "utf-8", errors, line_buffering=by_line)
        setattr(sys, name, text)
        setattr(sys, f"__{name}__", text)


def _execute(words: list[str], cwd: str, env: dict[str, str], new_session: bool) -> None:
    import numpy as np

    if new_session:
        os.setsid()
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
    path = [text for text in env.get("PYTHONPATH", "").split(os.pathsep) if text]
    if words[0] == "-P":
        words = words[1:]
    else:
        path.insert(0, cwd if words[0] in ("-m", "-c") else str(Path(words[0]).resolve().parent))
    sys.path[:1] = path
    if words[0] == "-m":
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    elif words[0] == "-c":
        sys.argv = ["-c", *words[2:]]
        exec(compile(words[1], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv = words
        runpy.run_path(words[0], run_name="__main__")


def _exit(code: object) -> None:
    """Exit as Python does, but destroy no objects, because this takes 0.3 s of CPU time after importing torch."""
    if isinstance(code, str):
        print(code, file=sys.stderr)
    threading._shutdown()  # type: ignore[attr-defined] # waits for threads, as at the end of a program
    atexit._run_exitfuncs()
    sys.stdout.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


if __name__ == "__main__":
    request = _serve(socket.socket(fileno=int(sys.argv[1])), sys.argv[2:])
    try:
        _execute(**request)
    except SystemExit as exit:
        _exit(exit.code)
    _exit(0)
