"""Shared test setup: tests import this checkout, and PyTorch uses one thread."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from functools import wraps
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).resolve().parents[1]


def pytest_configure(config: pytest.Config) -> None:
    """Exit with a one-line error if an installed package with the same name (such as `envs`) is imported instead."""
    spec = find_spec("ppo_unified")
    found = Path(spec.origin).resolve().parent if spec and spec.origin else None
    if found != ROOT / "ppo_unified":
        raise pytest.UsageError(f"`import ppo_unified` finds {found}, not {ROOT / 'ppo_unified'}: make install")
    if (
        signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    ):  # as for a background job of a script: child processes could not be interrupted
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # a busy computer must not fail tests
    settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("untimed")
    gc.disable()  # during test collection: the imported objects persist, and examining them takes seconds
    # also for the processes that tests start, because several test files run in parallel
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from ppo_unified.cli.shadowing import shadowed_packages

    problems = shadowed_packages(ROOT)
    if problems:
        raise pytest.UsageError("; ".join(problems))


@pytest.fixture(autouse=True, scope="session")
def _use_one_thread() -> None:
    """Use one thread and run the garbage collector rarely."""
    import torch

    torch.set_num_threads(1)
    gc.freeze()  # examining all objects of torch takes 0.1 s per collection
    gc.set_threshold(20_000, 20, 100)
    gc.enable()


@pytest.fixture(autouse=True, scope="session")
def _parse_style_sheets_once() -> Iterator[None]:
    """Parse each style sheet of the terminal UI once per process instead of once per app."""
    from textual.css.stylesheet import Stylesheet

    parse, parsed = Stylesheet._parse_rules, dict[tuple[object, ...], Any]()

    def parse_once(sheet: Stylesheet, *arguments: Any, **named: Any) -> Any:
        key = (*sorted(sheet._variables.items()), *arguments, *sorted(named.items()))
        if key not in parsed:
            parsed[key] = parse(sheet, *arguments, **named)
        return parsed[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Stylesheet, "_parse_rules", parse_once)
        yield


@pytest.fixture(autouse=True, scope="session")
def _draw_before_waiting() -> Iterator[None]:
    """Let simulated keys and `pilot.pause()` wait until all events are processed and the screen is drawn.

    Textual waits without drawing first, and therefore up to a second per key.
    """
    from textual import app as app_module
    from textual import pilot
    from textual._context import active_app

    async def process_events() -> None:
        loop: Any = asyncio.get_running_loop()
        deadline = time.monotonic() + 1  # an app that draws continuously is never idle
        await asyncio.sleep(0)
        while loop._ready and time.monotonic() < deadline:
            await asyncio.sleep(0)

    async def settle(*_: object) -> bool:
        app, deadline, used = active_app.get(), time.monotonic() + 1, 1.0
        while used > 0.004 and time.monotonic() < deadline:  # threads also cause events
            for _round in range(2):  # drawing can cause events that change the screen
                await process_events()
                app._check_resize()
                if app.screen_stack:
                    app.screen._on_timer_update()
            started = time.process_time()
            await asyncio.sleep(0.02)
            used = time.process_time() - started
        await process_events()
        return True

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(app_module, "wait_for_idle", settle)
        patch.setattr(pilot, "wait_for_idle", settle)
        patch.setattr(pilot.Pilot, "_wait_for_screen", settle)
        yield


@pytest.fixture(autouse=True, scope="session")
def _estimate_equal_models_once() -> Iterator[None]:
    """Measure what runs with equal models need once per process, because this takes a fifth of a short run's time."""
    from ppo_unified.training import estimation

    measured, measure = dict[object, Any](), estimation.estimate

    @wraps(measure)
    def estimate(adapter: Any, config: Any) -> Any:
        llm, ppo = config.llm, config.ppo
        sizes = llm.max_new_tokens, llm.rollout_batch, llm.ptx_coef, ppo.minibatches, ppo.microbatch_columns
        policy = [(name, p.shape, p.dtype, p.requires_grad) for name, p in adapter.policy.named_parameters()]
        key = repr((sizes, llm.reward, llm.gradient_checkpointing, policy))
        if key not in measured:
            measured[key] = measure(adapter, config)
        adapter.config = adapter.config.replace(measured[key].options)
        return estimation.add_totals(measured[key], config)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(estimation, "estimate", estimate)
        yield


@pytest.fixture(autouse=True, scope="session")
def _start_detached_runs_faster() -> Iterator[None]:
    """Start the processes of detached runs and of the terminal UI as copies of one that has imported PyTorch."""
    from ppo_unified.runs import background
    from tests.fork_server import Popen
    from tui.watch import player

    faster = SimpleNamespace(**vars(subprocess) | {"Popen": Popen})
    with pytest.MonkeyPatch.context() as patch:
        for module in (background, player):
            patch.setattr(module, "subprocess", faster)
        yield


@pytest.fixture
def shorten_ui_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten all refresh intervals of the terminal UI, so that tests do not wait for them."""
    from tui import pacing, reader, store
    from tui.runs import detail_pane, run_page

    for module, name in (
        (reader, "QUIET_S"),
        (pacing, "REFRESH_S"),
        (store, "SCAN_S"),
        (store, "LOOK_S"),
        (run_page, "LOOK_S"),
        (detail_pane, "READ_S"),
    ):
        monkeypatch.setattr(module, name, 0.05)
    for name in ("TYPING_SHARE", "IDLE_SHARE", "EAGER_SHARE"):
        monkeypatch.setattr(pacing, name, 2)
