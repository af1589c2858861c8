"""Loads a trained policy for `eval`, `play` and `export`. This module imports torch only when it loads a policy.

These commands write only to the export folder of a run, so they never disturb a trainer that uses the run."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from ppo_unified.cli.common import preload
from ppo_unified.config import presets
from ppo_unified.config.registry import find_adapter, load
from ppo_unified.config.schema import RunConfig
from ppo_unified.config.spec import Frame
from ppo_unified.errors import UsageError
from ppo_unified.runs.folder import Run, find

if TYPE_CHECKING:
    from ppo_unified.engine.rollout import Adapter


class LoadedPolicy(NamedTuple):
    """A policy that was loaded from a checkpoint, with the adapter that runs it."""

    run: Run
    config: RunConfig
    adapter: Adapter
    step: int  # the checkpoint's step
    checkpoint: str  # "best" or "latest" if the checkpoint was chosen by that property, else its step


def load_policy(options: Namespace) -> LoadedPolicy:
    """Load the policy from the run and checkpoint that the options name, onto this machine's best device.

    If a trainer removes the checkpoint before it has been read, choose a checkpoint again.
    """
    run = find(options.run, options.folder)
    config = presets.apply_changes(presets.from_file(run.config), {"device": "auto"}, str(run.config))
    preload("ppo_unified.training.session")
    from ppo_unified.training import checkpoint
    from ppo_unified.training.session import load_adapter

    step = checkpoint.choose(run, options.checkpoint)
    try:
        adapter, step = load_adapter(run, config, str(step))
    except UsageError:
        if checkpoint.checkpoint_folder(run, step).exists():
            raise
        adapter, step = load_adapter(run, config, options.checkpoint)
    which = options.checkpoint
    if which == "best" and step != checkpoint.best_step(run):  # the run has not been evaluated, or the best is damaged
        which = "latest" if step == checkpoint.steps(run)[-1] else str(step)
    return LoadedPolicy(run, config, adapter, step, which)


def describe_checkpoint(loaded: LoadedPolicy) -> str:
    kind = f"{loaded.checkpoint} checkpoint, " if not loaded.checkpoint.isdigit() else ""
    return f"{kind}step {loaded.step:,}"


def describe_decoding(options: Namespace) -> str:
    return "sampled" if options.sampled else "greedy"


def play_frames(loaded: LoadedPolicy, options: Namespace, episodes: int, shows: tuple[str, ...]) -> Iterator[Frame]:
    spec = find_adapter(loaded.config.kind)
    if not spec.play:
        raise UsageError(f"{loaded.run.name}: policies of kind {loaded.config.kind!r} cannot be drawn")
    frames: Iterator[Frame] = load(spec.play)(loaded.adapter, episodes, options.seed, not options.sampled, shows)
    return frames
