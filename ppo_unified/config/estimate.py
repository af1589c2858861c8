"""The estimate of a run's memory, disk space and time, which an adapter computes before the first iteration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from ppo_unified.text import format_duration, format_scaled

LORA_RANK = 16  # the default of large models, and the recommendation if training all weights needs too much memory
UNITS = {"MB": 1e6, "GB": 1e9, "TB": 1e12}


@dataclass(frozen=True)
class Estimate:
    """What a run needs and what is available. Sizes are in bytes and times in seconds."""

    memory: Mapping[str, float] = field(default_factory=dict)  # at the peak of an iteration, by part
    available: float = 0.0  # memory that this process may use, including what it already uses
    checkpoint: float = 0.0  # size of one checkpoint
    checkpoints: int = 0  # number of checkpoints that are kept
    seconds: Mapping[str, float] = field(default_factory=dict)  # of an iteration, by phase
    evaluation_s: float | None = None  # one evaluation; None if unknown
    steps: int = 1  # environment steps or tokens per iteration
    iterations: int = 0  # of the whole run
    evaluations: int = 0  # of the whole run
    options: Mapping[str, int] = field(default_factory=dict)  # values of options that depend on the estimate
    remark: str = ""  # what the times assume
    advice: str = ""  # if the run does not fit: the options to change

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Estimate:
        """Return the estimate in run.json. Other versions may have stored other keys."""
        return cls(**{f.name: stored[f.name] for f in fields(cls) if f.name in stored})

    @property
    def peak(self) -> float:
        return sum(self.memory.values())

    @property
    def iteration_s(self) -> float:
        return sum(self.seconds.values())

    @property
    def total_s(self) -> float:
        """The duration of the run, without evaluations if their duration is unknown."""
        return self.iterations * self.iteration_s + self.evaluations * (self.evaluation_s or 0.0)

    @property
    def disk(self) -> float:
        """The size of all checkpoints that are kept."""
        return self.checkpoint * self.checkpoints

    @property
    def fits(self) -> bool:
        return self.peak <= self.available

    def summary(self) -> str:
        """Describe the estimate in one line."""
        remark = f", if {self.remark}" if self.remark else ""
        chosen = "".join(f"; chosen: {option} = {value}" for option, value in self.options.items())
        return (
            f"estimate: {format_bytes(self.peak)} of memory ({format_bytes(self.available)} available), "
            f"{format_duration(self.iteration_s)} per iteration, {format_duration(self.total_s)} in total"
            f"{remark}{chosen}"
        )

    def table(self, free: float) -> list[str]:
        """Return the lines of a table. `free` is the free disk space in bytes."""
        rows = [("memory at the peak", format_bytes(self.peak))]
        rows += [(f"  {part}", format_bytes(size)) for part, size in self.memory.items() if size]
        rows += [("memory available", format_bytes(self.available))]
        if self.checkpoint:
            each = f"up to {self.checkpoints} checkpoints of {format_bytes(self.checkpoint)}"
            rows += [("disk space", f"{format_bytes(self.disk)} ({each})"), ("disk space free", format_bytes(free))]
        if self.seconds:
            rows += [("time per iteration", format_duration(self.iteration_s))]
            rows += [(f"  {phase}", format_duration(s)) for phase, s in self.seconds.items() if s]
            counts = [_count(self.iterations, "iteration")]
            if self.evaluation_s is not None:
                rows += [("time per evaluation", format_duration(self.evaluation_s))]
                counts += [_count(self.evaluations, "evaluation")]
            rows += [("total time", f"{format_duration(self.total_s)} ({', '.join(counts)})")]
        rows += [(option, str(value)) for option, value in self.options.items()]
        width = max(len(name) for name, _ in rows)
        lines = [f"{name:{width}}  {value}" for name, value in rows]
        if self.seconds:
            lines += [f"The times assume that {self.remark}."] if self.remark else []
            lines += ["The total time does not include evaluations."] if self.evaluation_s is None else []
        return lines if self.fits else [*lines, self.problem()]

    def problem(self) -> str:
        """Describe in one line why the run does not fit."""
        return explain_shortage(self.peak, self.available, self.advice)


def explain_shortage(needed: float, available: float, advice: str) -> str:
    """Return the message for a run that needs more memory than is available."""
    return (
        f"this run needs {format_bytes(needed)} of memory, but only {format_bytes(available)} is available; "
        f"{advice or 'use a smaller model'}"
    )


def compare(estimate: Mapping[str, Any]) -> str:
    """Return a line that compares the estimate in run.json with the real values, or "" if one of them is missing."""
    found, real = Estimate.from_dict(estimate), estimate.get("real")
    if not (isinstance(real, Mapping) and found.memory and found.seconds and {"memory", "iteration_s"} <= real.keys()):
        return ""
    expected = _describe(found.peak, found.iteration_s)
    return f"estimate: {expected}; real: {_describe(real['memory'], real['iteration_s'])}"


def _describe(memory: float, iteration_s: float) -> str:
    return f"{format_bytes(memory)} and {format_duration(iteration_s)} per iteration"


def _count(number: int, word: str) -> str:
    return f"{number:,} {word}{'' if number == 1 else 's'}"


def format_bytes(size: float) -> str:
    """Format a number of bytes with up to three digits, such as '2.9 GB' or '310 MB'."""
    return format_scaled(size, UNITS)
