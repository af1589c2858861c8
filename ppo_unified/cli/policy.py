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
from ppo_unified.config.spec import Chat, Exchange, Frame, Reply
from ppo_unified.errors import UsageError
from ppo_unified.runs.folder import Run, find
from ppo_unified.terminal.chat import Block
from ppo_unified.text import format_number

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
    return LoadedPolicy(run, config, adapter, step, _name_choice(run, options.checkpoint, step))


def _name_choice(run: Run, which: str, step: int) -> str:
    """Return `which`, or the actual choice if the run has not been evaluated or its best checkpoint is damaged."""
    from ppo_unified.training import checkpoint

    if which == "best" and step != checkpoint.best_step(run):
        return "latest" if step == checkpoint.steps(run)[-1] else str(step)
    return which


def load_newer(loaded: LoadedPolicy, which: str) -> LoadedPolicy:
    """If `which` is 'best' or 'latest' and now selects a newer checkpoint, load its weights into the same adapter."""
    from ppo_unified.config.registry import resolve_device
    from ppo_unified.training import checkpoint
    from ppo_unified.training.checkpointing import restore_policy

    if which not in ("best", "latest"):
        return loaded
    run = loaded.run
    there = checkpoint.steps(run)
    best = checkpoint.best_step(run) if which == "best" else None
    step = best if best is not None else max(there, default=loaded.step)
    if step <= loaded.step:
        return loaded
    try:
        weights = checkpoint.load_policy(run, step, resolve_device(loaded.config))
    except UsageError:  # damaged, or removed by the trainer; the next episode tries again
        return loaded
    restore_policy(loaded.adapter, run, loaded.config, step, weights)
    return loaded._replace(step=step, checkpoint=_name_choice(run, which, step))


def describe_checkpoint(loaded: LoadedPolicy) -> str:
    """Describe the loaded checkpoint, such as 'best checkpoint, step 2,048'."""
    kind = f"{loaded.checkpoint} checkpoint, " if not loaded.checkpoint.isdigit() else ""
    return f"{kind}step {loaded.step:,}"


def describe_decoding(greedy: bool) -> str:
    return "greedy" if greedy else "sampled"


def describe_reply(reply: Reply, how: str) -> str:
    """Describe a response that was decoded as `how` says, such as 'greedy, score 0.5, 3 tokens, ended'."""
    score = [] if reply.score is None else [f"score {format_number(reply.score)}"]
    count = f"{reply.tokens} token{'s' * (reply.tokens != 1)}"
    return ", ".join([how, *score, count, "ended" if reply.ended else "cut off"])


def exchange_blocks(exchange: Exchange, how: str) -> list[Block]:
    """Return the responses of the policy and the reference model, with facts about each."""
    policy, reference = exchange.policy, exchange.reference
    return [
        Block("policy", policy.text, f"{describe_reply(policy, how)}, KL {format_number(exchange.kl)}"),
        Block("reference", reference.text, describe_reply(reference, how)),
    ]


def held_out_exchanges(chat: Chat, count: int) -> Iterator[Exchange]:
    """Yield responses to `count` held-out prompts. Raises UsageError if there are none."""
    exchanges = chat.examples(count)
    first = next(exchanges, None)
    if first is None:
        raise UsageError("there are no held-out prompts; type a prompt")
    yield first
    yield from exchanges


def play_frames(
    loaded: LoadedPolicy, episodes: int, seed: int, greedy: bool, shows: tuple[str, ...]
) -> Iterator[Frame]:
    """Yield the frames of some episodes, the first of which uses `seed`. `shows` is as in `AdapterSpec.play`.

    Raises UsageError if the adapter cannot draw its policies.
    """
    spec = find_adapter(loaded.config.kind)
    if not spec.play:
        raise UsageError(f"{loaded.run.name}: policies of kind {loaded.config.kind!r} cannot be drawn")
    frames: Iterator[Frame] = load(spec.play)(loaded.adapter, episodes, seed, greedy, shows)
    return frames
