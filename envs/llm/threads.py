"""Chooses the number of CPU threads for PyTorch."""

from __future__ import annotations

import os
from collections.abc import Iterable

from torch import nn

WEIGHTS_PER_THREAD, MOST_THREADS = 8_000_000, 16


def choose_threads(models: Iterable[nn.Module]) -> int:
    """Return the number of CPU threads for running these models, which depends on the largest one.

    More threads make a small model slower, because they wait for each other after every operation.
    """
    weights = max(sum(parameter.numel() for parameter in model.parameters()) for model in models)
    return max(1, min(weights // WEIGHTS_PER_THREAD, MOST_THREADS, _available_cores()))


def _available_cores() -> int:
    """Return the number of cores that this process may use, which containers and batch systems often limit."""
    if hasattr(os, "sched_getaffinity"):  # missing on macOS and Windows
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
