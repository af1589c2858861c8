"""One PPO engine for environments and language models. Importing this package imports nothing heavy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["load_preset", "run"]

if TYPE_CHECKING:
    from ppo_unified.config.presets import load_preset
    from ppo_unified.training.session import run


def __getattr__(name: str) -> Any:
    if name == "load_preset":
        from ppo_unified.config.presets import load_preset

        return load_preset
    if name == "run":
        from ppo_unified.training.session import run

        return run
    raise AttributeError(f"module 'ppo_unified' has no attribute {name!r}")
