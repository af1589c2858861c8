"""A PPO engine for Gymnasium environments and language models.

The public names are imported when they are first used, so importing this package does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ppo_unified.config.presets import load_preset
    from ppo_unified.config.schema import RunConfig
    from ppo_unified.config.spec import AdapterSpec
    from ppo_unified.engine.rollout import ActorCritic, Adapter, Evaluation, Rollout
    from ppo_unified.testing import check_adapter
    from ppo_unified.training.session import run

__version__ = "0.2.0"
__all__ = [
    "ActorCritic",
    "Adapter",
    "AdapterSpec",
    "Evaluation",
    "Rollout",
    "RunConfig",
    "check_adapter",
    "load_preset",
    "run",
]

_MODULES = {
    "ActorCritic": "engine.rollout",
    "Adapter": "engine.rollout",
    "AdapterSpec": "config.spec",
    "Evaluation": "engine.rollout",
    "Rollout": "engine.rollout",
    "RunConfig": "config.schema",
    "check_adapter": "testing",
    "load_preset": "config.presets",
    "run": "training.session",
}


def __getattr__(name: str) -> Any:
    """Import a public name's module when the name is first used."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
