"""Context managers that hide the progress bars and warnings of transformers and peft.

The hidden warnings are not needed, because the adapter itself checks for the problems that they report.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from transformers.utils import logging


@contextmanager
def silence_transformers() -> Iterator[None]:
    """Disable progress bars and all log messages except errors."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


@contextmanager
def silence_peft() -> Iterator[None]:
    """Ignore peft warnings that do not apply here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*fan_in_fan_out.*")  # peft corrects this for GPT-2's Conv1D
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")  # peft uses a deprecated name
        warnings.filterwarnings("ignore", message=".*_pattern keys did not match.*")  # peft overlooks fused experts
        yield
