"""Helpers that configure short CartPole runs with few optimizer steps and read their results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ppo_unified import load_preset
from ppo_unified.config.schema import RunConfig
from ppo_unified.runs.event_reader import EventReader
from ppo_unified.runs.folder import Run


def short_config(**changes: Any) -> RunConfig:
    options: dict[str, Any] = {"total_steps": 2000, "eval": {"every_steps": 1000, "episodes": 5}}
    return load_preset("cartpole", **options | {"ppo": {"epochs": 2, "minibatches": 2}} | changes)


def read(path: Path) -> EventReader:
    reader = EventReader(path)
    reader.poll()
    return reader


def result_step(path: Path) -> int:
    return Run(path).read_status().step
