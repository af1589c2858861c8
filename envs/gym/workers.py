"""Runs each environment in its own worker process, and reports failed, dead and hanging workers."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing import connection
from typing import Any

import gymnasium as gym
from gymnasium.vector import AsyncVectorEnv, AutoresetMode
from gymnasium.vector.async_vector_env import AsyncState, _async_worker

from envs.gym.errors import DescribedError, close_env, describe_error
from ppo_unified.errors import UsageError
from ppo_unified.text import print_err

CLOSE_S = 15.0  # maximum seconds for `close` in all workers; a wrapper may write a video there
EXIT_S = 5.0  # maximum seconds between the end of a worker's connection and the end of its process


def make_in_worker(make: Callable[[int | None], gym.Env[Any, Any]], rank: int) -> gym.Env[Any, Any]:
    """Create one environment in a worker process, which then ignores Ctrl-C and the closing of the terminal.

    The training process handles these signals. AsyncVectorEnv also calls this function once in the training process, to
    read the spaces. In this case, the environment gets the spare number, and the signal handlers are not changed.
    """
    if multiprocessing.parent_process() is None:
        return make(None)
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a forked process inherits the trainer's handler
    return make(rank)


class QuietClose(gym.Wrapper[Any, Any, Any, Any]):
    """Ignores errors in `close`."""

    def close(self) -> None:
        close_env(self.env)


def make_first_quiet(make: Callable[[], gym.Env[Any, Any]]) -> gym.Env[Any, Any]:
    """Create an environment. Gymnasium creates one in the training process, and closes it after reading its spaces."""
    return make() if multiprocessing.parent_process() is not None else QuietClose(make())


class Workers(AsyncVectorEnv):
    """An AsyncVectorEnv with autoreset mode NEXT_STEP that raises DescribedError if a worker fails or has died.

    Gymnasium's class prints the tracebacks of failed workers, reports a dead worker only as a closed connection, and
    waits without limit for workers to exit.
    """

    def __init__(self, makers: Sequence[Callable[[], gym.Env[Any, Any]]]) -> None:
        try:
            with self._name_dead_workers():
                made = [partial(make_first_quiet, make) for make in makers]
                super().__init__(made, worker=run_worker, autoreset_mode=AutoresetMode.NEXT_STEP)
        except BaseException:
            self.close()
            raise

    def reset(self, **arguments: Any) -> tuple[Any, dict[str, Any]]:
        with self._name_dead_workers():
            return super().reset(**arguments)

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        with self._name_dead_workers():
            return super().step(actions)

    def call(self, name: str, *arguments: Any, **more: Any) -> tuple[Any, ...]:
        with self._name_dead_workers():
            return super().call(name, *arguments, **more)

    def set_attr(self, name: str, values: Any) -> None:
        with self._name_dead_workers():
            super().set_attr(name, values)

    @contextmanager
    def _name_dead_workers(self) -> Iterator[None]:
        """Convert the error of a closed connection into a DescribedError that names the dead worker."""
        try:
            yield
        except (EOFError, OSError) as error:
            workers = self._started()
            ready = connection.wait([worker.sentinel for worker in workers], EXIT_S)
            for worker in workers:
                if worker.sentinel in ready:
                    worker.join(EXIT_S)  # the sentinel can become ready shortly before the exit code is known
            dead = [
                f"worker {number} of {self.num_envs} {_describe_exit(worker.exitcode)}"
                for number, worker in enumerate(workers, start=1)
                if worker.exitcode is not None
            ]
            raise DescribedError(", ".join(dead) or describe_error(error)) from error

    def _started(self) -> list[Any]:
        """Return the worker processes. There may be fewer workers than environments if `__init__` failed."""
        return [process for process in getattr(self, "processes", []) if process.pid is not None]

    def _raise_if_errors(self, successes: Iterable[bool]) -> None:
        """Raise the first error of the workers, with the worker's traceback as its cause."""
        if not all(successes):
            _, _, error, trace = self.error_queue.get()
            kind = UsageError if isinstance(error, UsageError) else DescribedError
            raise kind(describe_error(error)) from DescribedError(f"in the worker:\n{trace}")

    def close_extras(self, timeout: float | None = None, terminate: bool = False) -> None:
        """Close the environments and end all workers. Raises DescribedError if a worker has to be killed.

        If a worker has died or a call has not returned, all workers are killed without warning.
        """
        timeout = CLOSE_S if timeout is None else timeout
        workers = self._started()
        idle = getattr(self, "_state", None) is AsyncState.DEFAULT and all(worker.is_alive() for worker in workers)
        if idle and not terminate:
            for pipe in self.parent_pipes:
                with suppress(OSError):
                    pipe.send(("close", None))
            deadline = time.monotonic() + timeout
            for worker in workers:
                worker.join(max(0.0, deadline - time.monotonic()))
        hanging = [number for number, worker in enumerate(workers, start=1) if worker.is_alive()]
        for worker in workers:
            worker.kill()
            worker.join()
        for pipe in getattr(self, "parent_pipes", []):
            pipe.close()
        self.closed = True
        if idle and hanging and not terminate:
            several = "s" * (len(hanging) > 1)
            named = f"worker{several} {', '.join(map(str, hanging))} of {self.num_envs}"
            raise DescribedError(f"{named} did not exit within {timeout:g} s and had to be killed")


def _describe_exit(code: int) -> str:
    """Describe the exit code of a process, which is negative if a signal killed it."""
    if code >= 0:
        return f"exited with code {code}"
    name = (
        f" ({signal.Signals(-code).name})" if -code in list(signal.Signals) else ""
    )  # most real-time signals have no name
    return f"was killed by signal {-code}{name}"


def run_worker(
    index: int, make: Callable[[], Any], pipe: Any, parent_pipe: Any, memory: Any, errors: Any, *more: Any
) -> None:
    """Run Gymnasium's worker in a worker process. Also report errors of the constructor and of `close`.

    The process ends here if the environment has started threads, because Python would wait for them.
    """
    try:
        env = make()
    except (Exception, SystemExit) as error:
        parent_pipe.close()
        kind = UsageError if isinstance(error, UsageError) else DescribedError
        errors.put((index, kind, kind(describe_error(error)), traceback.format_exc()))
        with suppress(EOFError, OSError):
            pipe.recv()  # the training process expects the worker to live until it has answered the first request
            pipe.send((None, False))
        return
    try:
        _async_worker(index, lambda: env, pipe, parent_pipe, memory, errors, *more)
    except (Exception, SystemExit) as error:  # the errors of other calls have been sent to the training process
        print_err(f"worker {index + 1}: close(): {describe_error(error)}")
    if any(not thread.daemon for thread in threading.enumerate() if thread is not threading.current_thread()):
        errors.close()
        errors.join_thread()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(0)
