"""Describes and converts errors in the user's code, such as environments. This module does not import torch."""

from __future__ import annotations

import os
import sys
import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ppo_unified.errors import ForeignCodeError, UsageError


class DescribedError(Exception):
    """The description of an error in an environment: a broken rule, or the type, message and place of an exception.

    Unlike the original exception, it can always be sent from a worker process to the training process.
    """


def describe_error(error: BaseException) -> str:
    """Return the type, message and location of an error in one line, without the text that Gymnasium appends."""
    if isinstance(error, (DescribedError, ForeignCodeError, UsageError)):
        return str(error)
    text = " ".join(str(error).partition(" was raised from the environment creator")[0].split())
    libraries = (*map(sysconfig.get_path, ("stdlib", "purelib", "platlib")), f"{Path(__file__).parent}{os.sep}", "<")
    frames = [x for x in traceback.extract_tb(error.__traceback__) if not x.filename.startswith(libraries)]
    place = f", in {Path(frames[-1].filename).name}, line {frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{': ' if text else ''}{text}{place}"


@contextmanager
def guard(env_id: str, call: str) -> Iterator[None]:
    """Convert an exception in an environment's code into a ForeignCodeError that names the environment and `call`.

    SystemExit is converted too, because an environment that calls sys.exit() must not silently end the program.
    """
    try:
        yield
    except (UsageError, ForeignCodeError):
        raise
    except (Exception, SystemExit) as error:
        raise make_failure(env_id, call, error) from error


def make_failure(env_id: str, call: str, error: BaseException) -> ForeignCodeError:
    """Return the exception that reports `error` in the environment's function `call`, such as "reset()"."""
    return ForeignCodeError(f"{env_id}: {call}: {describe_error(error)}")


def close_env(env: Any) -> None:
    """Close an environment that is no longer needed. Ignore errors, because they cannot change any result."""
    with suppress(Exception, SystemExit):
        env.close()


@contextmanager
def close_after_error(env: Any) -> Iterator[None]:
    """Close an environment if an exception occurs, because a port or another resource may stay in use otherwise."""
    try:
        yield
    except BaseException:
        close_env(env)
        raise


@contextmanager
def hidden_arguments() -> Iterator[None]:
    """Hide the arguments in sys.argv inside the block, so that the user's code cannot parse those of this program."""
    argv, sys.argv = sys.argv, sys.argv[:1]
    try:
        yield
    finally:
        sys.argv = argv
