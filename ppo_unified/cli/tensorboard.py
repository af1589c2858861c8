"""`tensorboard`: TensorBoard on this machine alone, over some runs or all of them."""

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

from ppo_unified.cli.common import add_run, add_runs_folder
from ppo_unified.errors import UsageError
from ppo_unified.runs.folder import find

HOST = "127.0.0.1"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_run(parser, many="*")
    parser.add_argument("--port", type=int, default=6006, help="port on 127.0.0.1 (default: 6006)")
    add_runs_folder(parser)


def run(options: argparse.Namespace) -> int:
    """Serve the named runs, or the whole runs folder, until Ctrl-C."""
    runs = [find(reference, options.folder).path for reference in options.run]
    if not options.folder.is_dir() and not runs:
        raise UsageError(f"{options.folder}: there is no runs folder; name one with --runs DIR")
    port = _find_port(options.port)
    with _make_logdir(options.folder, runs) as logdir:
        print(f"TensorBoard: http://{HOST}:{port}/ (Ctrl-C ends it)", flush=True)
        arguments = ["--logdir", str(logdir), "--host", HOST, "--port", str(port)]
        code = _serve([sys.executable, "-m", "tensorboard.main", *arguments])
    return 1 if code else 0


@contextmanager
def _make_logdir(folder: Path, runs: Sequence[Path]) -> Iterator[Path]:
    """The folder itself, or a temporary one with a link per run: TensorBoard's fast reader takes one folder only."""
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
    """`port` if it can be listened at, any free one for 0. Raises UsageError where it can't."""
    if not 0 <= port <= 65535:
        raise UsageError(f"--port {port}: must be between 0 (any free one) and 65535")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a connection that has just ended is no obstacle
        try:
            probe.bind((HOST, port))
        except OSError as error:
            why = f"cannot be listened at ({error.strerror})"
            raise UsageError(f"--port {port}: {why}; choose another, or --port 0 for any free one") from None
        free: int = probe.getsockname()[1]
    return free


def _serve(command: Sequence[str]) -> int:
    """Run a server and return its exit code; it never outlives this call.

    The child shares the terminal, so that Ctrl-C reaches both; other ways to end this process are passed on to it.
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
