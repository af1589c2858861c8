"""Checkpoints: if writing one fails or one is damaged, the previous one still loads."""

from __future__ import annotations

import errno
import gc
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from ppo_unified import load_preset
from ppo_unified import run as train
from ppo_unified.errors import UsageError
from ppo_unified.runs import durable
from ppo_unified.runs.folder import Run
from ppo_unified.training import checkpoint
from ppo_unified.training.checkpoint import META, POLICY, STATE, TENSORS, DamagedCheckpointError, Meta
from ppo_unified.training.session import load_adapter

CPU = torch.device("cpu")
CALLS = ("mkdir", "open", "write", "fsync", "close", "read", "stat", "scandir", "rename", "unlink", "rmdir")


def save_checkpoint(run: Run, step: int, best: bool = False, score: float | None = None) -> Path:
    """Save a checkpoint in which every file contains the step."""
    trainer = {"step": step, "moments": torch.full((5,), float(step)), "rates": [float("inf"), 0.1]}
    weights = {"a": torch.full((2, 3), float(step)), "b": torch.zeros(0)}
    return checkpoint.save(run, weights, trainer, Meta(step, step // 10, score=score, best=best))


def check_newest(run: Run) -> int:
    """Load the newest checkpoint, check that all its files are of the same step, and return that step."""
    found = checkpoint.load_newest(run, CPU)
    assert found is not None
    step = found.meta.step
    assert found.trainer["step"] == step == found.meta.iteration * 10
    assert torch.equal(found.trainer["moments"], torch.full((5,), float(step)))
    assert torch.equal(found.policy["a"], torch.full((2, 3), float(step)))
    return step


@pytest.fixture(autouse=True)
def _skip_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip fsync, which would make these tests take a minute."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def run_with_checkpoints(tmp_path: Path) -> Run:
    """A run with checkpoints at steps 10 (the best), 20 and 30."""
    run = Run(tmp_path / "a")
    run.path.mkdir()
    for step in (10, 20, 30):
        save_checkpoint(run, step, best=step == 10, score=float(-step))
    return run


# Faults


class SimulatedKill(BaseException):
    """Ends a simulated process. Its later system calls have no effect."""


class Faults:
    """Counts system calls and makes the call with the given number fail in the given way."""

    def __init__(self, number: int = -1, way: str = "") -> None:
        self.number, self.way, self.calls, self.dead = number, way, list[str](), False

    close = staticmethod(os.close)

    def call(self, real: Callable[..., Any], name: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        if self.dead:
            if name == "close":  # the operating system closes the files of a dead process
                real(*arguments)
            raise SimulatedKill
        self.calls.append(name)
        if len(self.calls) != self.number + 1:
            return real(*arguments, **options)
        return getattr(self, f"_{self.way}")(real, name, arguments, options)

    def _fails(self, real: Callable[..., Any], name: str, arguments: Any, options: Any) -> Any:
        if name == "close":
            real(*arguments)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    def _is_full_after(self, real: Callable[..., Any], name: str, arguments: Any, options: Any) -> Any:
        """Execute the call (a write only by half), then raise an error."""
        if name == "write":
            real(arguments[0], arguments[1][: len(arguments[1]) // 2])
        else:
            self._drop(name, real(*arguments, **options))
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _is_short(self, real: Callable[..., Any], name: str, arguments: Any, options: Any) -> Any:
        """Write or read only half of the bytes, without an error."""
        if name == "write":
            return real(arguments[0], arguments[1][: max(1, len(arguments[1]) // 2)])
        return real(arguments[0], max(1, arguments[1] // 2)) if name == "read" else real(*arguments, **options)

    def _lies(self, real: Callable[..., Any], name: str, arguments: Any, options: Any) -> Any:
        """Write only half of the bytes but report all as written."""
        if name != "write":
            return real(*arguments, **options)
        real(arguments[0], arguments[1][: len(arguments[1]) // 2])
        return len(arguments[1])

    def _dies_before(self, real: Callable[..., Any], name: str, arguments: Any, options: Any) -> Any:
        self.dead = True
        if name == "close":
            real(*arguments)
        raise SimulatedKill

    def _dies_after(self, real: Callable[..., Any], name: str, arguments: Any, options: Any) -> Any:
        self.dead = True
        self._drop(name, real(*arguments, **options))
        raise SimulatedKill

    def _drop(self, name: str, opened: Any) -> None:
        """Close a file or directory that the caller never receives."""
        if name == "open":
            self.close(opened)
        elif name == "scandir":
            opened.close()


@contextmanager
def inject_faults(faults: Faults) -> Iterator[None]:
    """Route the system calls of `os` in the block through `faults`."""
    real = {name: getattr(os, name) for name in CALLS}
    gc.disable()  # otherwise, processes and files that other tests have left behind would be closed through `faults`
    try:
        with pytest.MonkeyPatch.context() as patch:
            for name, function in real.items():
                patch.setattr(os, name, lambda *a, _f=function, _n=name, **o: faults.call(_f, _n, a, o))
            yield
    finally:
        gc.enable()


def save_and_prune(run: Run, faults: Faults) -> bool:
    """Write checkpoint 40 and remove older ones. Return True if both succeed."""
    try:
        with inject_faults(faults):
            save_checkpoint(run, 40)
            checkpoint.prune(run, 1)
    except (OSError, DamagedCheckpointError, SimulatedKill):
        return False
    return True


WAYS: dict[str, tuple[str, ...]] = {"fails": CALLS, "is_full_after": CALLS, "dies_before": CALLS, "dies_after": CALLS}
WAYS |= {"is_short": ("write", "read"), "lies": ("write",)}


# dying after a call is dying before the next one
@pytest.mark.parametrize(
    "way", [pytest.param(way, marks=pytest.mark.exhaustive if way == "dies_after" else ()) for way in WAYS]
)
def test_failed_save_keeps_the_previous_checkpoint(run_with_checkpoints: Run, way: str, tmp_path: Path) -> None:
    shutil.rmtree(checkpoint.checkpoint_folder(run_with_checkpoints, 20))
    before = tmp_path / "before"
    shutil.copytree(run_with_checkpoints.path, before)
    dry = Faults()
    assert save_and_prune(run_with_checkpoints, dry)
    assert set(dry.calls) == set(CALLS)
    failed = 0
    for number in (number for number, name in enumerate(dry.calls) if name in WAYS[way]):
        shutil.rmtree(run_with_checkpoints.path)
        shutil.copytree(before, run_with_checkpoints.path)
        faults = Faults(number, way)
        failed += not save_and_prune(run_with_checkpoints, faults)
        assert len(faults.calls) > number
        checkpoint.remove_leftovers(run_with_checkpoints)  # as the next trainer does
        assert check_newest(run_with_checkpoints) in (30, 40), number
        save_checkpoint(run_with_checkpoints, 50)
        checkpoint.prune(run_with_checkpoints, 1)
        assert check_newest(run_with_checkpoints) == 50
        assert checkpoint.steps(run_with_checkpoints)[0] == 10, number  # the best checkpoint
        assert not list(checkpoint.find_leftovers(run_with_checkpoints))
    assert bool(failed) == (way != "is_short")


# Damaged files


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "truncated": truncate,
    "one bit flipped": flip_bit,
    "missing": Path.unlink,
    "empty": lambda path: path.write_bytes(b""),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"]"),
    "huge": lambda path: path.write_bytes(b"[" * (3 << 20)),
    "other JSON": lambda path: path.write_text('{"format": 2, "crc32c": "0"}'),
}


@pytest.mark.parametrize("name", [META, POLICY, TENSORS, STATE])
@pytest.mark.parametrize("how", DAMAGE)
def test_damaged_newest_checkpoint_falls_back_with_one_message(
    run_with_checkpoints: Run, name: str, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = checkpoint.checkpoint_folder(run_with_checkpoints, 30)
    DAMAGE[how](damaged / name)
    assert check_newest(run_with_checkpoints) == 20
    message = capsys.readouterr().err
    assert len(message.splitlines()) == 1
    assert str(damaged / name) in message
    assert message.endswith("using the checkpoint of step 20 instead\n")
    assert checkpoint.steps(run_with_checkpoints) == [10, 20]
    assert checkpoint.choose(run_with_checkpoints, "latest") == 20
    save_checkpoint(run_with_checkpoints, 30)
    assert check_newest(run_with_checkpoints) == 30
    checkpoint.prune(run_with_checkpoints, 2)
    assert sorted(path.name for path in run_with_checkpoints.checkpoints.iterdir()) == [
        "000000000010",
        "000000000020",
        "000000000030",
    ]
    assert not capsys.readouterr().err


def test_all_checkpoints_damaged_is_an_error(run_with_checkpoints: Run) -> None:
    for step in checkpoint.steps(run_with_checkpoints):
        truncate(checkpoint.checkpoint_folder(run_with_checkpoints, step) / STATE)
    with pytest.raises(UsageError, match=r"every checkpoint is damaged; restore one .*000000000030"):
        checkpoint.load_newest(run_with_checkpoints, CPU)
    assert checkpoint.steps(run_with_checkpoints) == [10, 20, 30]
    assert checkpoint.choose(run_with_checkpoints, "latest") == 30  # the policy is intact


def test_damaged_best_falls_back_and_damaged_step_is_rejected(
    run_with_checkpoints: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert checkpoint.find_best(run_with_checkpoints) == (10, -10.0)
    flip_bit(checkpoint.checkpoint_folder(run_with_checkpoints, 10) / POLICY)
    assert checkpoint.choose(run_with_checkpoints, "best") == 30
    assert "000000000010/policy.safetensors: the file is damaged" in capsys.readouterr().err
    with pytest.raises(UsageError, match=r"000000000010/policy\.safetensors: the file is damaged"):
        checkpoint.choose(run_with_checkpoints, "10")
    truncate(checkpoint.checkpoint_folder(run_with_checkpoints, 10) / META)
    checkpoint.prune(run_with_checkpoints, 1)
    assert checkpoint.steps(run_with_checkpoints) == [10, 30]  # step 10 may be the best, so it is kept


def test_saving_a_step_again_supersedes_it(run_with_checkpoints: Run) -> None:
    save_checkpoint(run_with_checkpoints, 30, best=True, score=5.0)
    assert checkpoint.steps(run_with_checkpoints) == [10, 20, 30]
    assert checkpoint.find_best(run_with_checkpoints) == (30, 5.0)
    checkpoint.prune(run_with_checkpoints, 1)
    assert sorted(path.name for path in run_with_checkpoints.checkpoints.iterdir()) == ["000000000030.1"]


# Malicious files


def test_loading_checkpoint_runs_no_code(run_with_checkpoints: Run, capsys: pytest.CaptureFixture[str]) -> None:
    nested = "[" * 200_000 + "]" * 200_000
    for text in (nested, '{"$exec": "print()"}', '{"step": {"$tensor": "nowhere"}}'):
        folder = save_checkpoint(run_with_checkpoints, 50)
        (folder / STATE).write_text(text)
        written = {name: durable.checksum(folder / name) for name in (POLICY, TENSORS, STATE)}
        (folder / META).write_bytes(checkpoint._encode_meta(Meta(50, 5), written))
        assert check_newest(run_with_checkpoints) == 30
        assert "trainer.json: cannot load the file" in capsys.readouterr().err


# Loading only the policy


def test_policy_loads_without_trainer_state(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"total_steps": 600, "eval": {"every_steps": 600, "episodes": 2}}
    config = load_preset("cartpole", **changes)
    run = Run(train(config, tmp_path).path)
    folder = checkpoint.checkpoint_folder(run, checkpoint.steps(run)[-1])
    found = checkpoint.load_newest(run, CPU)
    assert found is not None
    for name in (TENSORS, STATE):
        (folder / name).unlink()
    adapter, step = load_adapter(run, config, "latest")
    adapter.close()
    assert step == found.meta.step
    assert all(torch.equal(x, found.policy[name]) for name, x in adapter.policy.state_dict().items())
