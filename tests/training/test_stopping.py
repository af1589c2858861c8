"""A stop request takes effect during a rollout, an evaluation or the creation of a model, without changing results."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Container
from dataclasses import replace
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ppo_unified import load_preset
from ppo_unified.config.schema import RunConfig
from ppo_unified.engine import diagnostics, ppo
from ppo_unified.engine.ppo import Progress
from ppo_unified.runs.event_reader import EventReader
from ppo_unified.runs.folder import Run, Status
from ppo_unified.runs.preparation import prepare, reopen
from ppo_unified.runs.signals import SAME_REQUEST_S, Interrupted, StopRequest, record_user_stop
from ppo_unified.training import checkpoint
from ppo_unified.training.checkpointing import Checkpointer
from ppo_unified.training.session import train_in
from ppo_unified.training.state import Evaluations
from tests import fork_server
from tests.cli.commands import wait_for
from tests.sequences import SequenceAdapter, SequencePolicy, make_config, sequences  # noqa: F401 - a fixture


def train_or_resume(run: Run, config: RunConfig, stop: StopRequest | None = None) -> str:
    """Train in a new or an existing run folder and return the final state."""
    if (run.path / "run.json").exists():
        reopen(run)
    else:
        run = prepare(config, run.path.parent, run.name)
    return train_in(run, config, StopRequest() if stop is None else stop).state


def curves(run: Run) -> dict[str, tuple[list[int], list[float]]]:
    """Return all series except time and system metrics."""
    reader = EventReader(run.path)
    reader.poll()
    shown = {tag: x for tag, x in reader.series.items() if not tag.startswith(("time/", "system/"))}
    return {tag: (x.steps.tolist(), x.values.tolist()) for tag, x in shown.items()}


def weights(run: Run) -> dict[str, torch.Tensor]:
    return checkpoint.load_policy(run, checkpoint.choose(run, "latest"), torch.device("cpu"))


def assert_same(run: Run, other: Run, ignored: Container[str] = ()) -> None:
    ours_only, theirs_only = ({t: x for t, x in curves(r).items() if t not in ignored} for r in (run, other))
    assert ours_only == theirs_only
    ours, theirs = weights(run), weights(other)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def stop_in(method: str, number: int, stop: StopRequest, monkeypatch: pytest.MonkeyPatch, of: type) -> None:
    """Request a stop at the end of the `number`-th call of an adapter's method."""
    original: Callable[..., Any] = getattr(of, method)
    calls = count(1)

    def stop_after_call(self: Any, *arguments: Any) -> Any:
        answer = original(self, *arguments)
        if next(calls) == number:
            stop.handle(signal.SIGTERM, None)
        return answer

    monkeypatch.setattr(of, method, stop_after_call)


@pytest.mark.usefixtures("sequences")
@pytest.mark.parametrize(("method", "numbers"), [("collect", (1, 2)), ("collect", (4, 1)), ("score", (1, 2, 1))])
def test_run_stopped_mid_rollout_equals_uninterrupted(method: str, numbers: tuple[int, ...], tmp_path: Path) -> None:
    config = make_config(eval={"every_steps": 80, "episodes": 5, "at_start": True}, log={"samples_every": 0})
    whole, pieces = Run(tmp_path / "whole"), Run(tmp_path / "pieces")
    assert train_or_resume(whole, config) == "finished"
    for number in numbers:
        stop = StopRequest()
        with pytest.MonkeyPatch.context() as patch:
            stop_in(method, number, stop, patch, SequenceAdapter)
            assert train_or_resume(pieces, config, stop) == "stopped"
        assert pieces.read_status().reason == "stopped by another program (SIGTERM)"
        assert checkpoint.steps(pieces)[-1] == pieces.read_status().step
    assert train_or_resume(pieces, config) == "finished"
    assert_same(pieces, whole)


@pytest.mark.usefixtures("sequences")
@pytest.mark.parametrize(
    ("number", "slow_s", "kept", "saved"),
    [(3, 20.0, 0, []), (15, 20.0, 4, [4]), (15, 0.0, 3, [2, 3])],
    ids=["first iteration", "fast update", "slow update"],
)
def test_run_stopped_in_update_equals_uninterrupted(
    number: int, slow_s: float, kept: int, saved: list[int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An iteration has 4 optimizer steps. Call 3 is in the first iteration and call 15 in the fourth."""
    config = make_config(log={"samples_every": 0}, ppo={"epochs": 2, "minibatches": 2, "objective": "penalty"})
    whole, pieces = Run(tmp_path / "whole"), Run(tmp_path / "pieces")
    assert train_or_resume(whole, config) == "finished"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ppo_unified.training.checkpointing.SLOW_UPDATE_S", slow_s)
        patch.setattr("ppo_unified.training.checkpointing.SAVING_SHARE", 0)
        stop = StopRequest()
        stop_in("evaluate", number, stop, patch, SequencePolicy)
        assert train_or_resume(pieces, config, stop) == "stopped"
    status = pieces.read_status()
    assert (status.iteration, status.reason) == (kept, "stopped by another program (SIGTERM)")
    steps = {0: 0} | dict(enumerate(curves(whole)["policy/kl"][0], 1))  # iteration -> step
    assert status.step == steps[kept]
    assert checkpoint.steps(pieces) == [steps[iteration] for iteration in saved]
    discards = f"iteration {kept + 1}; the iteration is discarded, and resume repeats it from step {steps[kept]:,}"
    assert (discards in capsys.readouterr().err) == (kept < 4)
    assert train_or_resume(pieces, config) == "finished"
    assert_same(pieces, whole)


@pytest.mark.usefixtures("sequences")
def test_interrupted_update_never_overwrites_the_checkpoint(tmp_path: Path) -> None:
    """A stop can arrive at any line of an update, and even after its last line."""
    config = make_config(log={"samples_every": 0}, eval={"every_steps": 0, "at_start": True, "episodes": 2})
    whole, pieces = Run(tmp_path / "whole"), Run(tmp_path / "pieces")
    assert train_or_resume(whole, config) == "finished"
    places = [(ppo, name) for name in ("make_batch", "gae", "update", "backward")]
    places += [(diagnostics, name) for name in ("explained_variance", "gae_error")]
    for module, place in places:
        with pytest.MonkeyPatch.context() as patch:
            stop, original = StopRequest(), getattr(module, place)

            def stopping(*arguments: Any, stop: StopRequest = stop, original: Any = original) -> Any:
                result = original(*arguments)
                stop.handle(signal.SIGINT, None)
                return result

            patch.setattr(module, place, stopping)
            assert train_or_resume(pieces, config, stop) == "stopped", place
        assert (pieces.read_status().step, checkpoint.steps(pieces)) == (0, [0]), place
    assert train_or_resume(pieces, config) == "finished"
    assert_same(pieces, whole)


def test_checkpoint_is_due_after_a_slow_update(monkeypatch: pytest.MonkeyPatch) -> None:
    checkpointer = Checkpointer.__new__(Checkpointer)
    checkpointer.state = SimpleNamespace(  # type: ignore[assignment]
        evaluations=Evaluations(), learner=SimpleNamespace(progress=Progress(steps=5))
    )
    checkpointer.config = make_config()
    monkeypatch.setattr("ppo_unified.training.checkpointing.time.monotonic", lambda: 100.0)
    checkpointer._attempted = 100.0
    for save_s, update_s, due in ((0.0, 19.0, False), (0.0, 21.0, True), (5.0, 49.0, False), (5.0, 51.0, True)):
        checkpointer._save_s = save_s
        assert checkpointer.is_due(update_s) == due


def test_stopped_llm_run_equals_uninterrupted(tmp_path: Path) -> None:
    from envs.llm.adapter import LLMAdapter
    from tests.models import save_model

    (tmp_path / "prompts.txt").write_text("a\nbc\ndef\nghij\n", encoding="utf-8")
    config = load_preset(
        "arithmetic",
        total_iterations=4,
        llm={
            "model": str(save_model(tmp_path / "model")),
            "prompts": str(tmp_path / "prompts.txt"),
            "reward": "length:3",
            "rollout_batch": 3,
            "kl_target": 0.1,
            "score_normalize": "running",
        },
        ppo={"minibatches": 2, "epochs": 1},
        eval={"every_steps": 0, "episodes": 2, "at_start": False},
    )
    whole = Run(tmp_path / "whole")
    assert train_or_resume(whole, config) == "finished"
    # after sampling and changing the KL coefficient; between minibatches
    for method, number, iteration in (("_rollout", 3, 2), ("extra_loss", 2, 0)):
        pieces, stop = Run(tmp_path / f"stopped in {method}"), StopRequest()
        with pytest.MonkeyPatch.context() as patch:
            stop_in(method, number, stop, patch, LLMAdapter)
            assert train_or_resume(pieces, config, stop) == "stopped"
        assert pieces.read_status().iteration == iteration
        assert train_or_resume(pieces, config) == "finished"
        assert_same(pieces, whole)


def test_stop_before_first_iteration_resumes_at_step_0(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from envs.gym import vector

    stop, build = StopRequest(), vector.build

    def build_slowly(*arguments: Any) -> Any:
        stop.handle(signal.SIGHUP, None)
        return build(*arguments)

    config = load_preset("cartpole", total_steps=1000, stop_when_solved=False, eval={"threshold": None, "episodes": 2})
    run = Run(tmp_path / "a")
    with monkeypatch.context() as patch:
        patch.setattr(vector, "build", build_slowly)
        assert train_or_resume(run, config, stop) == "stopped"
    assert run.read_status().reason == "stopped because the terminal was closed (SIGHUP) before training began"
    assert not run.is_locked()
    run.write_status(replace(run.read_status(), step=400, iteration=3))
    run.write_status(reopen(run))
    assert train_in(run, config, StopRequest()).state == "finished"
    status = run.read_status()
    assert (status.resumes[-1]["step"], status.resumes[-1]["checkpoint"]) == (400, None)


def test_error_after_a_stop_request_counts_as_the_stop() -> None:
    """The same signal may, for example, end a worker process, which then causes an error here."""

    def swallow_interrupt() -> None:
        with pytest.raises(Interrupted):
            stop.handle(signal.SIGTERM, None)
        raise EOFError

    stop = StopRequest()
    with pytest.raises(Interrupted), stop.interruptible():
        swallow_interrupt()
    with pytest.raises(EOFError), StopRequest().interruptible():
        raise EOFError


def test_stop_request_outside_rollout_is_only_recorded() -> None:
    stop = StopRequest()
    with stop.interruptible():
        pass
    stop.handle(signal.SIGINT, None)
    assert stop
    with pytest.raises(Interrupted), stop.interruptible():
        raise AssertionError("the block must not run")


@pytest.mark.parametrize(
    ("first", "second", "later_s", "ends"),
    [
        (signal.SIGINT, signal.SIGINT, 0.0, 130),
        (signal.SIGTERM, signal.SIGINT, 0.0, 130),
        (signal.SIGTERM, signal.SIGTERM, SAME_REQUEST_S / 2, None),
        (signal.SIGHUP, signal.SIGTERM, SAME_REQUEST_S / 2, None),
        (signal.SIGTERM, signal.SIGTERM, SAME_REQUEST_S, 143),
        (signal.SIGTERM, signal.SIGHUP, SAME_REQUEST_S, 129),
    ],
)
def test_second_signal_exits_unless_it_is_a_repeat(
    first: int, second: int, later_s: float, ends: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    codes: list[int] = []
    now = [100.0]
    monkeypatch.setattr("ppo_unified.runs.signals.time.monotonic", lambda: now[0])
    monkeypatch.setattr(os, "_exit", codes.append)
    stop = StopRequest()
    stop.handle(first, None)
    now[0] += later_s
    stop.handle(second, None)
    assert codes == ([] if ends is None else [ends])
    assert stop.signal == first


@pytest.mark.parametrize(
    ("number", "offset", "reason"),  # the user stopped the process with the own id that started `offset` s later
    [
        (signal.SIGINT, None, "stopped by Ctrl-C"),
        (signal.SIGTERM, None, "stopped by another program (SIGTERM)"),
        (signal.SIGTERM, 0, "stopped by the user"),
        (signal.SIGTERM, -60.0, "stopped by another program (SIGTERM)"),  # an earlier trainer; containers reuse ids
        (signal.SIGHUP, None, "stopped because the terminal was closed (SIGHUP)"),
    ],
)
def test_reason_names_who_stopped_the_run(number: int, offset: float | None, reason: str, tmp_path: Path) -> None:
    stop, run = StopRequest(), Run(tmp_path)
    status = Status(pid=os.getpid(), pid_started=1e9 + 0.25)
    run.write_status(status)
    stop.show_in(run)
    if offset is not None:
        record_user_stop(run, replace(status, pid_started=status.pid_started + offset))
    stop.handle(number, None)
    assert stop.reason == reason


def test_nohup_is_respected() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest().handle_signals():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        with StopRequest().handle_signals() as stop:
            assert signal.getsignal(signal.SIGHUP) == stop.handle
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, before)


def test_ctrl_c_interrupts_a_long_update(tmp_path: Path) -> None:
    # without samples, which contain numbers of every epoch
    options = ["--name", "a", "--ppo.epochs", "1000000", "--log.samples-every", "0"]
    words = [sys.executable, "-m", "ppo_unified", "train", "cartpole", *options]
    run = Run(tmp_path / "runs" / "a")
    with fork_server.Popen(words, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            wait_for(lambda: (run.path / "run.json").exists() and run.read_status().phase == "updating")
            process.send_signal(signal.SIGINT)
            output = process.communicate(timeout=60)[1].decode()
        finally:
            process.kill()
    assert process.returncode == 130, output
    assert "a: stopped by Ctrl-C during the update of iteration 1; the iteration is discarded" in output
    status = run.read_status()
    assert (status.state, status.reason, status.step) == ("stopped", "stopped by Ctrl-C", 0)
    assert checkpoint.steps(run) == []


SLOW_ENVIRONMENT = """
import time
import gymnasium as gym, numpy as np
class Slow(gym.Env):
    observation_space = gym.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gym.spaces.Discrete(2)
    taken = 0
    def __init__(self, fast=1):
        self.fast = fast
    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}
    def step(self, action):
        Slow.taken += 1  # the first step is that of the check before the run
        if Slow.taken <= self.fast:
            return np.zeros(2, np.float32), 0.0, False, False, {}
        open("stepping", "w").close()
        time.sleep(600)
gym.register("Slow-v0", entry_point=Slow)
"""


@pytest.mark.parametrize(("vectorization", "whom"), [("sync", "trainer"), ("async", "group")])
def test_hanging_step_does_not_block_stop(vectorization: str, whom: str, tmp_path: Path) -> None:
    """This holds for worker processes too, and for signals to the trainer or to its process group."""
    (tmp_path / "slow.py").write_text(SLOW_ENVIRONMENT, encoding="utf-8")
    options = ["--name", "a", "--gym.num-envs", "2", "--gym.vectorization", vectorization]
    whole = [sys.executable, "-m", "ppo_unified", "train", "slow:Slow-v0", *options]
    with fork_server.Popen(whole, cwd=tmp_path, stderr=subprocess.PIPE, start_new_session=True) as process:
        wait_for((tmp_path / "stepping").exists)
        (os.kill if whom == "trainer" else os.killpg)(process.pid, signal.SIGTERM)
        try:
            output = process.communicate(timeout=60)[1].decode()
        finally:
            process.kill()
    assert process.returncode == 130, output
    assert "Traceback" not in output
    assert "failed" not in output
    run = Run(tmp_path / "runs" / "a")
    assert (run.read_status().state, checkpoint.steps(run)) == ("stopped", [0])


def test_stop_interrupts_the_check_before_a_run(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(SLOW_ENVIRONMENT, encoding="utf-8")
    whole = [sys.executable, "-m", "ppo_unified", "train", "slow:Slow-v0", "--gym.env-kwargs", '{"fast": 0}']
    with fork_server.Popen(whole, cwd=tmp_path, stderr=subprocess.PIPE, start_new_session=True) as process:
        wait_for((tmp_path / "stepping").exists)
        process.send_signal(signal.SIGTERM)
        try:
            output = process.communicate(timeout=60)[1].decode()
        finally:
            process.kill()
    assert (process.returncode, output) == (130, "stopped by another program (SIGTERM) before a run was created\n")
    assert not list(tmp_path.glob("runs/*"))
