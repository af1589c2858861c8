"""Start a run with the policy of another run.

The new run gets the policy, the critic and the statistics for normalization from a checkpoint of the other run, which
is called its source. It gets a new optimizer, step count and random state.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ppo_unified.config import presets
from ppo_unified.config.registry import find_adapter, load
from ppo_unified.config.schema import RunConfig
from ppo_unified.config.values import format_flag, show_value
from ppo_unified.engine.rollout import Adapter
from ppo_unified.errors import UsageError
from ppo_unified.runs.source import Reference
from ppo_unified.text import clean, print_err
from ppo_unified.training import checkpoint
from ppo_unified.training.tensor_json import read_shapes


@dataclass(frozen=True)
class Source:
    """The checkpoint that a run starts from, and the options of its run."""

    run: str  # name of the run
    folder: Path  # folder of the checkpoint
    meta: checkpoint.Meta
    config: RunConfig

    def record(self) -> dict[str, Any]:
        """Return the entry `init` for run.json."""
        return {"run": self.run, "step": self.meta.step, "score": self.meta.score, "checkpoint": str(self.folder)}


def open_source(reference: Reference) -> Source:
    """Choose and verify the checkpoint of a source. Without a given checkpoint, this is the best one of the run.

    Raises UsageError if the run has no checkpoint, or if the checkpoint or the run's config.toml cannot be read.
    """
    run = reference.run
    folder = reference.checkpoint or checkpoint.checkpoint_folder(run, checkpoint.choose(run, "best")).absolute()
    return Source(run.name, folder, checkpoint.check(folder), presets.from_file(run.config))


def check_fit(source: Source, config: RunConfig) -> None:
    """Check that a policy with the options `config` can be loaded from `source`. Raises UsageError if it cannot."""
    where, theirs = f"init from {source.run}", source.config
    if theirs.kind != config.kind:
        raise UsageError(f"{where}: expected a run of kind {config.kind!r}, got one of kind {theirs.kind!r}")
    own, needed = config.network_options(), theirs.network_options()
    for option in own:
        if option in needed and own[option] != needed[option]:
            values = [show_value(options.flatten()[option]) for options in (config, theirs)]
            flag = " ".join(format_flag(option, theirs.flatten()[option]))
            raise UsageError(
                f"{where}: {option} = {values[0]} does not fit, because the policy has {option} = {values[1]}; "
                f"add {flag}"
            )
    hook = find_adapter(config.kind).check_init
    if hook:
        try:
            shapes = read_shapes(source.folder / checkpoint.POLICY)
            load(hook)(config, theirs, shapes, checkpoint.load_adapter_state(source.folder))
        except UsageError as error:
            raise UsageError(f"{where}: {error}") from None


def initialize(adapter: Adapter, record: Mapping[str, Any], device: torch.device) -> None:
    """Load the policy and the statistics from the checkpoint in the entry `init` of run.json.

    Raises UsageError if the checkpoint cannot be loaded or does not fit.
    """
    where, folder = f"init from {record.get('run')}", Path(str(record.get("checkpoint")))
    if not folder.is_dir():
        raise UsageError(
            f"{where}: {folder} no longer exists, and this run has no checkpoint of its own yet; start a new run with "
            "--init and another checkpoint"
        )
    try:
        theirs = presets.from_file(folder.parent.parent / "config.toml")
        loaded = checkpoint.load(folder, device)
    except UsageError as error:
        raise UsageError(
            f"{where}: the run has no checkpoint of its own yet, so it needs its source: {error}"
        ) from None
    try:
        adapter.policy.load_state_dict(loaded.policy)
    except RuntimeError as error:
        first = str(error).splitlines()[-1].strip()
        raise UsageError(f"{where}: the policy does not fit ({first}); use the options of this run") from None
    hook = find_adapter(theirs.kind).init
    if hook:
        try:
            load(hook)(adapter, loaded.trainer["adapter"], theirs)
        except UsageError as error:
            raise UsageError(f"{where}: {error}") from None
    score = "" if loaded.meta.score is None else f", score {loaded.meta.score:.4g}"
    print_err(clean(f"starting with the policy of {record.get('run')} (step {loaded.meta.step:,}{score})"))
