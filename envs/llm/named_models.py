"""Finds the models that have a name instead of a folder or hub id."""

from __future__ import annotations

from envs.llm.options import FETCHED, TINY


def resolve(name: str) -> str:
    """Return the folder or hub id of the model `name`. The model 'tiny' is built on first use.

    Raises UsageError if `name` is a model of `ppo-unified fetch` that has not been fetched.
    """
    if name == TINY:
        from envs.llm.tiny import tiny_model

        return str(tiny_model())
    if name in FETCHED:
        from envs.llm.fetch import fetched_model

        return str(fetched_model(name))
    return name
