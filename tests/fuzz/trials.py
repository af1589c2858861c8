"""Run one input, or many in a process, with limits on time and memory."""

from __future__ import annotations

import gc
import multiprocessing
import signal
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

from hypothesis import HealthCheck, Phase, given, seed, settings

from ppo_unified.errors import UsageError
from ppo_unified.text import clean_lines
from tests.fuzz.parsers import Parser, parsers
from tests.fuzz.readers import is_harmless

SLOWEST_S, LARGEST_MB = 1.0, 200
HANGS_S = 20  # wall time after which an input counts as hanging


class Trial(NamedTuple):
    """The result of one input."""

    rejected: bool  # True if the parser raised UsageError
    took_s: float  # processor time
    grown_mb: float  # peak memory minus the memory before


class Outcome(NamedTuple):
    """The summary of all inputs of one parser."""

    inputs: int
    rejected: int
    slowest_s: float
    grown_mb: float


def try_one(parser: Parser, value: Any) -> Trial:
    """Run a parser on an input. Raises any unexpected error of the parser, or AssertionError if it exceeds a limit.

    Objects that already exist are hidden from the garbage collector during the run. Scanning the thousands of inputs
    that the fuzzer keeps would take longer than most parsers.
    """
    rejected = False
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        gc.freeze()
        before, began = _memory_mb(reset=True), time.process_time()
        try:
            parser.read(value, Path(folder))
        except UsageError as error:
            assert is_harmless(clean_lines(error))
            assert len(str(error)) < 100_000, "error message too long"
            rejected = True
        finally:
            gc.unfreeze()
        tried = Trial(rejected, time.process_time() - began, _memory_mb() - before)
    beyond = tried.took_s >= SLOWEST_S or tried.grown_mb >= LARGEST_MB
    assert not beyond, f"it took {tried.took_s:.2f} s and {tried.grown_mb:.0f} MB"
    return tried


def warm_up(parser: Parser) -> None:
    """Run a parser on its typical inputs without limits, so that it imports its modules."""
    for value in parser.usual:
        with tempfile.TemporaryDirectory(prefix="fuzz-") as folder, suppress(UsageError):
            parser.read(value, Path(folder))


def try_many(name: str, count: int, number: int | None = None) -> Outcome:
    """Run a parser on generated inputs. They are the same for the same seed `number`, and also without one."""
    parser = parsers()[name]
    warm_up(parser)
    found: list[Trial] = []

    def try_value(value: Any) -> None:
        signal.setitimer(signal.ITIMER_REAL, HANGS_S)
        try:
            found.append(try_one(parser, value))
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)

    options = settings(
        max_examples=count,
        derandomize=number is None,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink),
        print_blob=False,
    )
    test = options(given(parser.inputs)(try_value))
    (test if number is None else seed(number)(test))()
    rejected, took, grown = zip(*found, strict=True)
    return Outcome(len(found), sum(rejected), max(took), max(grown))


def _memory_mb(reset: bool = False) -> float:
    """Return the peak memory of this process, 0 if not on Linux. `reset` restarts the measurement first."""
    if sys.platform != "linux":
        return 0.0
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def try_in_child(name: str, count: int, number: int) -> Outcome | str:
    """Run `try_many` in a separate process. Return its outcome, or a description of the error."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    child = context.Process(target=_run_child, args=(name, count, number, theirs))
    child.start()
    theirs.close()
    try:
        answer: Outcome | str = ours.recv()
    except EOFError:
        answer = "the process died"
    child.join()
    return answer


def _run_child(name: str, count: int, number: int, answer: Any) -> None:
    signal.signal(signal.SIGALRM, _raise_timeout)
    try:
        with tempfile.TemporaryDirectory() as folder, patch.dict("os.environ", TMPDIR=folder):
            answer.send(try_many(name, count, number))
    except BaseException as error:
        notes = "\n".join(getattr(error, "__notes__", []))
        answer.send(f"{type(error).__name__}: {str(error)[:500]}\n{notes[:3000]}")
        raise


def _raise_timeout(*_: Any) -> None:
    raise TimeoutError(f"an input took more than {HANGS_S} s")
