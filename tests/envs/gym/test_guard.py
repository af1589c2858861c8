"""Errors in an environment's code: each is reported in one line with the environment's id, the call and the cause."""

from __future__ import annotations

import re
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from envs.gym import make, workers
from envs.gym.play import play
from envs.gym.spaces import describe_observations, encode
from envs.gym.vector import GymAdapter
from ppo_unified import run
from ppo_unified.errors import ForeignCodeError, UsageError
from ppo_unified.runs.folder import Run
from tests.envs.gym.test_vector import make_config
from tests.faulty_envs import Counted

FAULTY = "tests.faulty_envs:Faulty-v0"
CAUSE = r"ZeroDivisionError: the world broke, in faulty_envs\.py, line \d+"


def make_adapter(place: str, fault: str = "raise", after: int = 1, mode: str = "sync", num_envs: int = 2) -> GymAdapter:
    gym = {"env_kwargs": {"place": place, "fault": fault, "after": after}, "vectorization": mode}
    return GymAdapter(make_config(FAULTY, num_envs, gym=gym), torch.device("cpu"))


def fail(*arguments: Any, **more: Any) -> str:
    """Return the error of creating an adapter and collecting two rollouts, without the environment's id."""

    def collect() -> None:
        with closing(make_adapter(*arguments, **more)) as adapter:
            adapter.collect()
            adapter.collect()

    with pytest.raises((ForeignCodeError, UsageError)) as caught:
        collect()
    assert "\n" not in str(caught.value)
    return str(caught.value).removeprefix(f"{FAULTY}: ")


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_step_error_names_step_and_cause(mode: str) -> None:
    expected = rf"step\(\) at step 2 of the rollout \(after 12 environment steps\): {CAUSE}"
    assert re.fullmatch(expected, fail("step", after=8, mode=mode))


@pytest.mark.parametrize("mode", ["sync", "async"])
@pytest.mark.parametrize(
    ("fault", "cause"),
    [("exit", r"SystemExit: 3, in .*"), ("unpicklable", r"NeedsTwoArguments: a lock, in faulty_envs\.py, line \d+")],
)
def test_any_exception_arrives_from_a_worker(mode: str, fault: str, cause: str) -> None:
    assert re.fullmatch(rf"reset\(\): {cause}", fail("reset", fault, mode=mode))


@pytest.mark.parametrize(
    ("fault", "cause"), [("die", "exited with code 3"), ("kill", "was killed by signal 9 (SIGKILL)")]
)
def test_dead_worker_is_named_by_number(fault: str, cause: str) -> None:
    """Seeds of neighbouring environments differ by 1, so exactly one of two workers dies."""
    message = fail("odd step", fault, after=2, mode="async")
    assert re.fullmatch(rf"step\(\) at step 2 of the rollout \(.*\): worker [12] of 2 {re.escape(cause)}", message)


@pytest.mark.parametrize(("code", "text"), [(-11, "signal 11 (SIGSEGV)"), (-35, "signal 35"), (-63, "signal 63")])
def test_signal_without_a_name_is_described_by_number(code: int, text: str) -> None:
    assert workers._describe_exit(code) == f"was killed by {text}"


def test_error_in_a_workers_constructor_is_reported() -> None:
    assert re.fullmatch(rf"gym.env_id = '{FAULTY}': .*\({CAUSE}\)", fail("worker constructor", mode="async"))


def test_worker_that_hangs_in_close_is_killed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(workers, "CLOSE_S", 1.0)
    adapter = make_adapter("worker close", "hang", mode="async")
    adapter.collect()
    assert isinstance(adapter.envs, workers.Workers)
    processes = adapter.envs.processes
    adapter.close()
    assert capsys.readouterr().err == (
        f"{FAULTY}: close(): workers 1, 2 of 2 did not exit within 1 s and had to be killed\n"
    )
    assert not any(process.is_alive() for process in processes)


def test_worker_with_a_thread_exits() -> None:
    adapter = make_adapter("reset", "thread", mode="async")
    began = time.monotonic()
    adapter.close()
    assert isinstance(adapter.envs, workers.Workers)
    assert time.monotonic() - began < workers.CLOSE_S / 2  # not killed after the time limit
    assert [process.exitcode for process in adapter.envs.processes] == [0, 0]


@pytest.mark.parametrize("fault", ["raise", "exit"])
@pytest.mark.parametrize("mode", ["sync", "async"])
def test_error_in_close_does_not_change_the_result(
    mode: str, fault: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    gym = {"env_kwargs": {"place": "close", "fault": fault}, "vectorization": mode}
    result = run(make_config(FAULTY, gym=gym, total_steps=14, eval={"episodes": 2}, seed=1), tmp_path)
    assert (result.state, result.score) == ("finished", 5.0)
    cause = "ZeroDivisionError: the world broke" if fault == "raise" else "SystemExit: 3"
    shown = capfd.readouterr().err
    for name in [FAULTY] if mode == "sync" else ["worker 1", "worker 2"]:
        assert f"{name}: close(): {cause}, in faulty_envs.py, line " in shown


def test_evaluation_error_names_seed_and_step() -> None:
    adapter = make_adapter("step", after=3)
    with pytest.raises(
        ForeignCodeError,
        match=rf"^{FAULTY}: step\(\) at step 3 of evaluation episode 1 of 4 \(seed \d+\): {CAUSE}$",
    ):
        adapter.score(4, 1, True)
    adapter.close()


BROKEN = {
    "shape": "observation: expected shape [2] and type float32",
    "object": "observation: expected shape [2] and type float32",
    "text": "observation: expected shape [2] and type float32",
    "nan": "observation: expected finite numbers, got nan",
    "reward": "reward: expected finite numbers, got inf",
    "ends": "terminated: expected one number, got ndarray of shape [2]",
    "info": "expected (observation, reward, terminated, truncated, info), got (",
}


@pytest.mark.parametrize("rule", BROKEN)
def test_evaluation_and_play_report_broken_rules(rule: str) -> None:
    env_id = "tests.faulty_envs:BreaksLater-v0"
    config = make_config(env_id, gym={"env_kwargs": {"rule": rule}, "vectorization": "sync"})
    with closing(GymAdapter(config, torch.device("cpu"))) as adapter:
        with pytest.raises(ForeignCodeError, match=r"evaluation episode \d of 2 \(seed \d+\)") as evaluated:
            adapter.score(2, 1, True)
        with pytest.raises(ForeignCodeError, match="of the episode with seed 1") as played:
            list(play(adapter, 1, 1, True, ()))
    for caught in (evaluated, played):
        assert str(caught.value).startswith(f"{env_id}: step() at step 3 of ")
        assert f": {BROKEN[rule]}" in str(caught.value)


@pytest.mark.parametrize("rule", ["info", "ends"])
def test_speed_test_reports_broken_rules(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    config = make_config("tests.faulty_envs:BreaksLater-v0", gym={"env_kwargs": {"rule": rule}})
    with pytest.raises(ForeignCodeError, match=f"step 3 of the initial speed test: {re.escape(BROKEN[rule])}"):
        GymAdapter(config, torch.device("cpu"))


def test_evaluation_in_vector_version_reports_broken_rules() -> None:
    config = make_config("tests.faulty_envs:VectorBreaksRule-v0", gym={"env_kwargs": {"rule": "vector reward"}})
    with (
        closing(GymAdapter(config, torch.device("cpu"))) as adapter,
        pytest.raises(ForeignCodeError, match=r"step 1 of an evaluation with seed \d+: reward: expected an array of 3"),
    ):
        adapter.score(3, 1, True)


@pytest.mark.parametrize(
    ("kwargs", "options"),
    [
        ({"place": "step", "after": 8}, {}),  # in the evaluation of `use_all`
        ({"place": "step", "after": 8}, {"vectorization": "auto"}),  # in the speed test
        ({"place": "constructor", "after": "{rank}"}, {}),  # in the second environment
        ({"place": "metadata", "after": 2}, {}),  # in `play`
        ({}, {"wrappers": ["tests.faulty_envs:FailingWrapper"]}),
        ({"has_numbers": False}, {}),
    ],
)
def test_environments_are_closed_after_an_error(
    kwargs: dict[str, Any], options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    monkeypatch.setattr(Counted, "open", 0)
    gym = {"env_kwargs": kwargs, "vectorization": "sync"} | options

    def use_all() -> None:
        config = make_config("tests.faulty_envs:Counted-v0", 3, 2, gym=gym)
        with closing(GymAdapter(config, torch.device("cpu"))) as adapter:
            list(play(adapter, 1, 1, True, ()))
            adapter.score(20, 1, True)

    with pytest.raises((ForeignCodeError, UsageError)):
        use_all()
    assert Counted.open == 0


@pytest.mark.parametrize("place", ["reset", "step", "render"])
def test_play_error_names_the_call(place: str) -> None:
    adapter = make_adapter(place, after=10**9)
    adapter.config.gym.env_kwargs["after"] = 1
    with pytest.raises(ForeignCodeError, match=rf"^{FAULTY}: {place}\(\).*: {CAUSE}$"):
        list(play(adapter, 1, 1, True, ("picture",)))
    adapter.close()


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_log_contains_the_environments_traceback(mode: str, tmp_path: Path) -> None:
    gym = {"env_kwargs": {"place": "step", "after": 4}, "vectorization": mode}
    with pytest.raises(ForeignCodeError, match=r"Faulty-v0: step\(\) at step 4 of the rollout"):
        run(make_config(FAULTY, gym=gym, total_steps=14), tmp_path, "a")
    saved = Run(tmp_path / "a")
    assert 'faulty_envs.py", line' in saved.log.read_text()
    assert saved.read_status().reason.startswith(
        f"{FAULTY}: step() at step 4 of the rollout (after 0 environment steps)"
    )


def test_infos_that_cannot_be_sent_exclude_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment would be slow enough for worker processes, but its infos contain a lock."""
    monkeypatch.setattr(make, "SLOW_STEP_S", 0.0)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    found = {}
    for kind in ("plain", "lock"):
        config = make_config("tests.faulty_envs:OddResults-v0", gym={"env_kwargs": {"kind": kind}})
        with closing(GymAdapter(config, torch.device("cpu"))) as adapter:
            adapter.collect()
            found[kind] = type(adapter.envs).__name__
    assert found == {"plain": "Workers", "lock": "SyncVectorEnv"}


@pytest.mark.parametrize("obs", [0, 4])
def test_discrete_observation_outside_its_range_is_an_error(obs: int) -> None:
    layout = describe_observations(spaces.Discrete(3, start=1), "X-v0", normalize=False)
    assert encode(np.array([1, 3]), layout).tolist() == [[1, 0, 0], [0, 0, 1]]
    with pytest.raises(ForeignCodeError, match=rf"^X-v0: environment 1: expected observations from 1 to 3, got {obs};"):
        encode(np.array([1, obs]), layout, "X-v0")
