"""Describes errors in environments and in other code of the user. This module does not import torch."""

from __future__ import annotations

import os
import sysconfig
import traceback
from pathlib import Path

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
