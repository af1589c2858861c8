"""What every test relies on: this checkout is what is imported, and small networks run on one thread."""

from __future__ import annotations

import gc
import os
import signal
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def pytest_configure(config: pytest.Config) -> None:
    """One clear sentence where another installed package has one of our names (`envs` is a common one)."""
    spec = find_spec("ppo_unified")
    found = Path(spec.origin).resolve().parent if spec and spec.origin else None
    if found != ROOT / "ppo_unified":
        raise pytest.UsageError(f"`import ppo_unified` finds {found}, not {ROOT / 'ppo_unified'}: make install")
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in the background of a script: no child could be stopped
        signal.signal(signal.SIGINT, signal.default_int_handler)
    gc.disable()  # until the tests are collected: what their imports make stays, and looking through it takes seconds
    # of the processes that tests start, too: several test files run at a time
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from ppo_unified.cli.shadowing import shadowed_packages

    problems = shadowed_packages(ROOT)
    if problems:
        raise pytest.UsageError("; ".join(problems))


@pytest.fixture(autouse=True, scope="session")
def _use_one_thread() -> None:
    """One thread, and a collector that is seldom at work."""
    import torch

    torch.set_num_threads(1)
    gc.freeze()  # to look through all that torch brought takes a tenth of a second each time
    gc.set_threshold(20_000, 20, 100)
    gc.enable()


@pytest.fixture
def shorten_ui_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    """The terminal UI looks and draws as often as it can: tests wait for what it shows, not for its pauses."""
    from tui import pacing, reader, store
    from tui.runs import run_page

    for module, name in (
        (reader, "QUIET_S"),
        (pacing, "REFRESH_S"),
        (store, "SCAN_S"),
        (store, "LOOK_S"),
        (run_page, "LOOK_S"),
    ):
        monkeypatch.setattr(module, name, 0.05)
    monkeypatch.setattr(pacing, "TYPING_SHARE", 2)
    monkeypatch.setattr(pacing, "IDLE_SHARE", 2)
