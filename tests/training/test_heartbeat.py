"""The heartbeat shows what a run is doing, and tells slow runs from stalled ones."""

from __future__ import annotations

import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from envs.gym.vector import GymAdapter
from ppo_unified import load_preset
from ppo_unified.cli.run_training import Progress
from ppo_unified.config.spec import WorkCounter
from ppo_unified.runs.folder import STALLED_S, Run, Status, has_stalled
from ppo_unified.runs.heartbeat import Heartbeat
from ppo_unified.runs.preparation import prepare
from ppo_unified.runs.progress import LONGEST_WORK, format_phase
from ppo_unified.runs.signals import StopRequest
from ppo_unified.testing import BanditPolicy
from ppo_unified.training.session import build_adapter, train_in
from tests import fork_server
from tests.cli.commands import wait_for
from tests.models import save_model
from tests.sequences import SequenceAdapter, make_config, sequences

__all__ = ["sequences"]  # a fixture that tests request by name


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Replace the clocks of the heartbeat by a number that the test sets."""
    value = [1000.0]
    for name in ("time", "monotonic"):
        monkeypatch.setattr(f"ppo_unified.runs.heartbeat.time.{name}", lambda: value[0])
    return value


@pytest.fixture
def heartbeat(tmp_path: Path) -> Iterator[Heartbeat]:
    """Return the heartbeat of a locked run, whose thread has not started."""
    run = Run(tmp_path / "a")
    run.path.mkdir()
    run.acquire()
    yield Heartbeat(run, Status(name="a", state="running"))
    run.release()


def beat(heartbeat: Heartbeat) -> Status:
    heartbeat.write()
    return heartbeat.run.read_status()


def test_moving_counter_is_progress_and_idle_counter_stalls(heartbeat: Heartbeat, now: list[float]) -> None:
    counter = WorkCounter()
    heartbeat.enter("collecting", counter)
    counter.begin("collecting", "step", 2048)
    for counter.done in range(0, 400, 100):  # each change takes nearly a minute
        now[0] += STALLED_S - 1
        status = beat(heartbeat)
        assert (status.phase, status.phase_done, status.progressed) == ("collecting", counter.done / 2048, now[0])
        assert not has_stalled(status, now[0])
    idle_since = now[0]
    for idle_s, stalled in ((STALLED_S, False), (STALLED_S + 2, True), (STALLED_S + 4, True)):
        now[0] = idle_since + idle_s
        status = beat(heartbeat)
        assert (status.heartbeat, status.progressed) == (now[0], idle_since)
        assert has_stalled(status, now[0]) == stalled
    counter.ticks += 1
    assert not has_stalled(beat(heartbeat), now[0])


@pytest.mark.parametrize("counter", [None, WorkCounter(done=5, total=0), WorkCounter(done=8, total=8)])
def test_uncounted_work_never_stalls(counter: WorkCounter | None, heartbeat: Heartbeat, now: list[float]) -> None:
    """Examples are loading a model, an adapter without a counter, and scoring after all tokens were generated."""
    done, total = (counter.done, counter.total) if counter else (0, 0)
    heartbeat.enter("collecting", counter)
    if counter is not None:
        counter.total, counter.done = total, done
    beat(heartbeat)
    now[0] += 10 * STALLED_S
    status = beat(heartbeat)
    assert not has_stalled(status, now[0])
    assert status.phase_done == (1.0 if total else None)
    assert has_stalled(status, now[0] + STALLED_S + 1)  # the heartbeat itself has stopped


def test_new_phase_is_progress(heartbeat: Heartbeat, now: list[float]) -> None:
    counter = WorkCounter()
    heartbeat.enter("collecting", counter)
    counter.total = 10
    beat(heartbeat)
    now[0] += STALLED_S + 1
    heartbeat.enter("evaluating", counter)
    counter.total = 10
    assert not has_stalled(beat(heartbeat), now[0])


def test_status_of_an_older_version_stalls_by_its_heartbeat() -> None:
    assert not has_stalled(Status(state="running", heartbeat=1000.0), 1000.0 + STALLED_S)
    assert has_stalled(Status(state="running", heartbeat=1000.0), 1001.0 + STALLED_S)


def run_until_written(work: str, owner: Any, method: str, run: Run, config: Any) -> list[Status]:
    """Train, and block the first call of a method until run.json names the phase `work`. Return this status."""
    original: Callable[..., Any] = getattr(owner, method)
    found: list[Status] = []

    def wait(*arguments: Any) -> Any:
        if not found:
            began = time.time()  # an earlier write may show the phase before its total is known
            wait_for(lambda: (status := run.read_status()).phase == work and status.heartbeat > began)
            found.append(run.read_status())
        return original(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ppo_unified.runs.heartbeat.HEARTBEAT_S", 0.01)
        patch.setattr(owner, method, wait)
        assert train_in(run, config, StopRequest()).state == "finished"
    return found


@pytest.mark.usefixtures("sequences")
@pytest.mark.parametrize(
    ("phase", "owner", "method"),
    [
        ("starting", SequenceAdapter, "__init__"),
        ("collecting", SequenceAdapter, "collect"),
        ("updating", BanditPolicy, "evaluate"),
        ("evaluating", SequenceAdapter, "score"),
        ("saving", Run, "checkpoint_folders"),
    ],
)
def test_thread_writes_during_every_phase(phase: str, owner: Any, method: str, tmp_path: Path) -> None:
    """Each block is within a single call, so that only a thread can write run.json."""
    run = prepare(make_config(), tmp_path, "a")
    (status,) = run_until_written(phase, owner, method, run, make_config())
    assert status.phase_done == (0.0 if phase == "updating" else None)  # this adapter does not count its work
    final = run.read_status()
    assert (final.phase, final.phase_done, final.iteration) == ("", None, 8)
    assert not [thread for thread in threading.enumerate() if thread.name == "heartbeat"]


@pytest.mark.usefixtures("sequences")
def test_training_is_identical_with_constant_heartbeats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.interruption import find_differences, train_to_end

    runs = [prepare(make_config(), tmp_path, name) for name in ("rare", "frequent")]
    train_to_end(runs[0])
    monkeypatch.setattr("ppo_unified.runs.heartbeat.HEARTBEAT_S", 0.0)
    train_to_end(runs[1])
    assert find_differences(*runs) == []


def test_thread_does_not_write_into_a_replaced_folder(
    heartbeat: Heartbeat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ppo_unified.runs.heartbeat.HEARTBEAT_S", 0.01)
    with heartbeat:
        wait_for((heartbeat.run.path / "run.json").exists)
        heartbeat.run.path.rename(tmp_path / "moved")
        wait_for(lambda: not any(thread.name == "heartbeat" for thread in threading.enumerate()))
    assert not heartbeat.run.path.exists()


def test_failed_writes_do_not_end_the_heartbeat(
    heartbeat: Heartbeat, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("ppo_unified.runs.heartbeat.HEARTBEAT_S", 0.01)
    attempts: list[Status] = []

    def fail(self: Run, status: Status) -> None:
        attempts.append(status)
        raise OSError(28, os.strerror(28))

    with monkeypatch.context() as patch:
        patch.setattr(Run, "write_status", fail)
        heartbeat.__enter__()
        wait_for(lambda: len(attempts) >= 3)
    wait_for((heartbeat.run.path / "run.json").exists)
    heartbeat.stop()
    assert capsys.readouterr().err.count("cannot write run.json") == 1


def test_gap_between_writes_is_at_most_one_interval(heartbeat: Heartbeat, monkeypatch: pytest.MonkeyPatch) -> None:
    """The trainer's last write comes shortly before the thread would have written, for each of these offsets."""
    clock, times = [0.0], list[float]()

    def wait(seconds: float | None = None) -> bool:
        due = clock[0] + max(0.0, seconds or 0.0)
        if clock[0] < 1.5 < due:  # the trainer writes while the thread waits
            clock[0] = 1.5
            heartbeat.write()
        clock[0] = max(due, clock[0] + 1e-3)
        return clock[0] > 10.0

    monkeypatch.setattr("ppo_unified.runs.heartbeat.time.monotonic", lambda: clock[0])
    monkeypatch.setattr(heartbeat, "_written", 0.0)
    monkeypatch.setattr(heartbeat._ending, "wait", wait)
    monkeypatch.setattr(Run, "write_status", lambda run, status: times.append(clock[0]))
    heartbeat._beat()
    assert times[:3] == [1.5, 3.5, 5.5]


def test_error_in_listener_does_not_end_the_heartbeat(
    heartbeat: Heartbeat, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("ppo_unified.runs.heartbeat.HEARTBEAT_S", 0.01)

    def fail(status: Status) -> None:
        raise ZeroDivisionError("division by zero")

    heartbeat.listener = fail
    with heartbeat:
        for _ in range(3):
            written = heartbeat.status.heartbeat
            wait_for(lambda before=written: heartbeat.status.heartbeat > before)
    assert capsys.readouterr().err.count("(ZeroDivisionError: division by zero); training continues") == 1


def test_stop_request_during_an_update_is_shown(heartbeat: Heartbeat) -> None:
    heartbeat.stop_request = stop = StopRequest()
    heartbeat.enter("updating", WorkCounter())
    assert beat(heartbeat).state == "running"
    stop.handle(signal.SIGTERM, None)
    assert beat(heartbeat).state == "stopping"


@pytest.mark.usefixtures("sequences")
def test_trainer_passes_stop_request_to_the_heartbeat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The update is completed, because the newest checkpoint does not contain the start of its iteration."""
    stop, seen = StopRequest(), list[str]()
    run = prepare(make_config(), tmp_path, "a")
    extra_loss = SequenceAdapter.extra_loss

    def request(self: SequenceAdapter, generator: torch.Generator) -> Any:
        if not stop and run.read_status().iteration:
            stop.handle(signal.SIGTERM, None)
            wait_for(lambda: run.read_status().state != "running")
            seen.append(run.read_status().state)
        return extra_loss(self, generator)

    monkeypatch.setattr("ppo_unified.runs.heartbeat.HEARTBEAT_S", 0.01)
    monkeypatch.setattr(SequenceAdapter, "extra_loss", request)
    assert train_in(run, make_config(), stop).state == "stopped"
    assert seen == ["stopping"]


@pytest.mark.usefixtures("sequences")
def test_phase_after_initial_evaluation_is_collecting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    phases, write = list[str](), Run.write_status

    def record(self: Run, status: Status) -> None:
        phases.append(status.phase)
        write(self, status)

    monkeypatch.setattr("ppo_unified.runs.heartbeat.HEARTBEAT_S", 600.0)  # only the trainer writes
    monkeypatch.setattr(Run, "write_status", record)
    config = make_config(eval={"at_start": True, "episodes": 2})
    train_in(prepare(config, tmp_path, "a"), config, StopRequest())
    assert "saving" not in phases
    assert "collecting" in phases


@pytest.mark.parametrize(
    ("phase", "done", "shown"),
    [
        ("collecting", 0.345, "collecting 34%"),
        ("collecting", 17.3, "collecting 100%"),
        ("collecting", -1.0, "collecting 0%"),
        ("collecting", math.nan, "collecting 0%"),
        ("collecting", math.inf, "collecting 100%"),
        ("x" * 500, 0.5, ""),
    ],
)
def test_phase_in_damaged_status_is_clamped(phase: str, done: float, shown: str) -> None:
    assert format_phase(Status(phase=phase, phase_done=done), "running") == shown


def test_work_in_damaged_status_is_clean_and_short() -> None:
    shown = format_phase(Status(phase="collecting", work="\x1b[31mscoring\n" + "x" * 500), "running")
    assert shown.startswith("scoring xx")
    assert len(shown) == LONGEST_WORK


@pytest.mark.parametrize(
    ("counter", "text"),
    [
        (WorkCounter(), ""),
        (WorkCounter(done=2, total=9), ""),  # the phase and its percentage are shown
        (WorkCounter(work="scoring"), "scoring"),
        (WorkCounter(work="update 3 of 16", done=145, total=1000), "update 3 of 16 (14%)"),
        (WorkCounter(work="collecting", unit="step", done=1199, total=2048), "collecting step 1,200 of 2,048"),
        (WorkCounter(work="generating", unit="token", done=64, total=64), "generating token 64 of 64"),
        (WorkCounter(unit="episode", total=20), "episode 1 of 20"),
    ],
)
def test_counter_describes_its_work(counter: WorkCounter, text: str) -> None:
    assert counter.describe() == text


def test_work_of_an_evaluation_follows_its_phase() -> None:
    texts = [format_phase(Status(phase=phase, work="scoring"), "running") for phase in ("collecting", "evaluating")]
    assert texts == ["scoring", "evaluating: scoring"]


# counters of the adapters


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Acrobot-v1"])  # only CartPole has its own vector environment
def test_gym_adapter_counts_steps_and_episodes(env_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    gym = {"env_id": env_id, "num_steps": 12, "num_envs": 3, "env_kwargs": {"max_episode_steps": 30}}
    config = load_preset("cartpole", gym=gym)
    adapter, seen = build_adapter(config, torch.device("cpu")), list[WorkCounter]()
    assert isinstance(adapter, GymAdapter)
    step = GymAdapter._step

    def watch(self: GymAdapter, *arguments: Any) -> Any:
        seen.append(replace(self.counter))
        return step(self, *arguments)

    monkeypatch.setattr(GymAdapter, "_step", watch)
    adapter.collect()
    assert [(counter.done, counter.total) for counter in seen] == [(number, 12) for number in range(12)]
    assert (adapter.counter.done, adapter.counter.total) == (12, 12)
    lengths = [abs(total) for total in adapter.score(4, 1, True)]  # no episode ends with a reward of 0 here
    assert (adapter.counter.done, adapter.counter.total) == (4, 4)
    assert adapter.counter.ticks == (max(lengths) if env_id == "CartPole-v1" else sum(lengths))
    adapter.close()


def test_language_model_names_its_work(tmp_path: Path) -> None:
    """The counter describes every call that can be slow, in a rollout and in an evaluation with two batches."""
    from envs.llm import evaluation, generate
    from envs.llm.policy import TokenPolicy
    from envs.llm.rewards import scoring

    (tmp_path / "prompts.txt").write_text("ab\ncd\nef\ngh\n", encoding="utf-8")
    llm: dict[str, Any] = {"rollout_batch": 3, "max_new_tokens": 6, "min_new_tokens": 6}
    llm |= {"model": str(save_model(tmp_path / "model")), "prompts": str(tmp_path / "prompts.txt"), "reward": "regex:a"}
    config = load_preset("arithmetic", llm=llm, ppo={"minibatches": 2, "microbatch_columns": 20})
    adapter: Any = build_adapter(config, torch.device("cpu"))
    seen: list[str] = []

    def watch(owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def call(*arguments: Any) -> Any:
            seen.append(adapter.counter.describe())
            return original(*arguments)

        patch.setattr(owner, name, call)

    with pytest.MonkeyPatch.context() as patch:
        for owner, name in ((generate.CachedDecoder, "step"), (scoring, "score"), (TokenPolicy, "compare")):
            watch(owner, name)
        adapter.collect()
        collected = seen.copy()
        evaluation.report(adapter, 4, 0)
    compared = "comparing with the reference, row"
    tokens = [f"token {number} of 6" for number in range(2, 7)]
    assert collected[:5] == [f"generating {text}" for text in tokens]
    assert collected[5:] == ["scoring with regex", f"{compared} 1 of 3", f"{compared} 2 of 3"]
    evaluated = dict.fromkeys(seen[len(collected) :])  # without repetitions by the parts of the evaluation
    assert list(evaluated)[:10] == [f"generating batch {number} of 2, {text}" for number in (1, 2) for text in tokens]
    assert list(evaluated)[10:] == ["scoring with regex", f"{compared} 1 of 4", f"{compared} 3 of 4"]


# the lines of the command line


class Log:
    """Collects what is written to it."""

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> int:
        self.text += text
        return len(text)


def test_progress_lines_name_phase_before_the_first_iteration(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("ppo_unified.cli.run_training.time.monotonic", lambda: clock[0])
    monkeypatch.setattr("ppo_unified.cli.run_training.time.time", lambda: clock[0])
    log: Any = Log()
    progress, status = Progress(log, nullcontext()), Status(state="running", total_steps=4000, phase="starting")

    def line_after(seconds: float) -> str:
        log.text, clock[0] = "", clock[0] + seconds
        status.heartbeat = status.progressed = clock[0]
        progress.show(status)
        text: str = log.text
        return text.replace(" | ", " · ").rstrip()

    assert line_after(4.0) == ""
    assert line_after(2.0) == "0 steps (0%) · starting"
    status.work = "loading the model"
    assert line_after(6.0) == "0 steps (0%) · loading the model"
    status.step, status.phase, status.work = 1000, "collecting", ""
    progress(status, {"time/steps_per_second": 50.0, "policy/kl": 0.01})
    status.work = "generating token 12 of 64"
    assert line_after(10.0) == "1,000 steps (25%) · generating token 12 of 64 · ETA 50 s · KL 0.0100 · 50 steps/s"
    assert "ETA" not in line_after(3600.0)  # the iteration takes longer than estimated


SLOW = """
import time
import gymnasium as gym, numpy as np
class Slow(gym.Env):
    observation_space = gym.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gym.spaces.Discrete(2)
    steps = 0
    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}
    def step(self, action):
        self.steps += 1
        time.sleep(600 if self.steps == HANGS else 0.02)
        return np.zeros(2, np.float32), 0.0, False, False, {}
gym.register("Slow-v0", entry_point=Slow)
"""


@pytest.mark.parametrize("hangs", [0, 20])
def test_slow_environment_is_not_stalled_but_a_hanging_one_is(
    hangs: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a limit of 2 s, the first rollout of 2,048 steps takes longer than the limit."""
    (tmp_path / "slow.py").write_text(SLOW.replace("HANGS", str(hangs)), encoding="utf-8")
    options = ["--name", "a", "--gym.num-envs", "1", "--gym.num-steps", "2048", "--gym.vectorization", "sync"]
    program = "import sys; from ppo_unified.cli.main import main; from ppo_unified.runs import heartbeat; "
    program += "heartbeat.HEARTBEAT_S = 0.1; main(sys.argv[1:])"
    words = [sys.executable, "-c", program, "train", "slow:Slow-v0", *options]
    monkeypatch.setattr("ppo_unified.runs.folder.STALLED_S", 2.0)
    run = Run(tmp_path / "runs" / "a")
    with fork_server.Popen(words, cwd=tmp_path, stderr=subprocess.PIPE, start_new_session=True) as process:
        try:
            wait_for(lambda: (run.path / "run.json").exists() and run.read_status().phase_done)
            states, until = set(), time.monotonic() + 4.0
            while time.monotonic() < until:
                states.add(run.state(run.read_status()))
                time.sleep(0.1)
            status = run.read_status()
        finally:
            os.killpg(process.pid, signal.SIGKILL)
    assert status.phase == "collecting"
    if hangs:
        assert "stalled" in states
        assert status.phase_done == (hangs - 1) / 2048
        assert run.state(status) == "crashed"
    else:
        assert states == {"running"}
        assert 100 / 2048 < (status.phase_done or 0) < 1.0


def test_lost_folder_is_reported_by_the_main_thread(heartbeat: Heartbeat) -> None:
    shutil.rmtree(heartbeat.run.path)
    with pytest.raises(Exception, match="was removed or replaced during training"):
        heartbeat.write()
