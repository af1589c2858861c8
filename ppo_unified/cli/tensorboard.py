"""`tensorboard`: start TensorBoard for some or all runs. It can be reached only from this machine."""

from __future__ import annotations

import argparse
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn

from ppo_unified.cli.common import add_run, add_runs_folder, integer
from ppo_unified.errors import UsageError
from ppo_unified.runs.folder import find

HOST = "127.0.0.1"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_run(parser, many="*")
    about = "port on 127.0.0.1, or 0 for any free port (default: 6006)"
    parser.add_argument("--port", type=integer, default=6006, help=about)
    add_runs_folder(parser)


def run(options: argparse.Namespace) -> int:
    """Serve the named runs, or all runs in the runs folder, until Ctrl-C."""
    runs = [find(reference, options.folder).path for reference in options.run]
    if not options.folder.is_dir() and not runs:
        raise UsageError(f"runs folder {options.folder} not found; choose one with --runs DIR")
    port = _find_port(options.port)
    with _make_logdir(options.folder, runs) as logdir:
        print(f"TensorBoard: http://{HOST}:{port}/ (press Ctrl-C to stop)", flush=True)
        arguments = ["--logdir", str(logdir), "--host", HOST, "--port", str(port)]
        code = _serve([sys.executable, "-m", "tensorboard.main", *arguments])
    return 1 if code else 0


@contextmanager
def _make_logdir(folder: Path, runs: Sequence[Path]) -> Iterator[Path]:
    """Yield the folder itself, or a temporary folder with a link per run, since TensorBoard reads only one folder."""
    if not runs:
        yield folder.resolve()
        return
    with tempfile.TemporaryDirectory(prefix="ppo-unified-tensorboard-") as links:
        for path in dict.fromkeys(run.resolve() for run in runs):
            name, number = path.name, 1
            while Path(links, name).exists():
                number += 1
                name = f"{path.name}-{number}"
            Path(links, name).symlink_to(path)
        yield Path(links)


def _find_port(port: int) -> int:
    """Return `port`, or any free port if `port` is 0. Raises UsageError if `port` is not free."""
    if not 0 <= port <= 65535:
        raise UsageError(f"--port: expected an integer from 0 (any free port) to 65535, got {port}")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # ignore connections that have just closed
        try:
            probe.bind((HOST, port))
        except OSError as error:
            why = f"cannot listen on this port ({error.strerror})"
            raise UsageError(f"--port {port}: {why}; choose another port, or 0 for any free port") from None
        free: int = probe.getsockname()[1]
    return free


def _serve(command: Sequence[str]) -> int:
    """Run a server until it exits and return its exit code. The server never outlives this call.

    Ctrl-C reaches both processes, because they share the terminal. SIGTERM is passed on to the server.
    """
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        with subprocess.Popen(command) as child:
            try:
                return child.wait()
            finally:
                if child.poll() is None:
                    child.terminate()
                    with suppress(subprocess.TimeoutExpired):
                        child.wait(timeout=5)
                    child.kill()
    finally:
        signal.signal(signal.SIGTERM, before)


def _terminate(number: int, _frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)
