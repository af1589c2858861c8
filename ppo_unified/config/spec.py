"""What an adapter tells about itself, and the small types that it returns. No torch.

An adapter's own modules import these; `ppo_unified.engine.rollout` has the types that training needs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class AdapterSpec:
    """Where an adapter's parts are, each as 'module:attribute'; only `config` and `build` are required.

    A third party publishes one of these under an entry point in the group `ppo_unified.adapters`; the entry point's
    name is the adapter's `kind`.
    """

    config: str  # a RunConfig subclass; its module must not import torch
    build: str  # (config, device: torch.device) -> Adapter
    missing: str = ""  # (config) -> None; raises UsageError for what is yet to be named. A form asks it at every key
    # press, so its module imports little
    check: str = ""  # (config) -> None; raises UsageError for what else can be known before a run folder exists
    target: str = ""  # (word typed after `train`) -> a table of options, or None if the word means nothing here
    presets: str = ""  # a package holding *.toml files
    recipes: str = ""  # a package holding *.toml files: options of a known system, laid over a target's
    export: str = ""  # (adapter, empty folder: Path, about: dict) -> dict; both dicts become the folder's policy.json
    export_merged: str = ""  # the same with what was trained beside the weights added to them (export --merged)
    score_tag: str = "eval/score"  # the score's name among the adapter's own metrics
    prefers_gpu: bool = False  # what device = "auto" means where a GPU is at hand
    report: str = ""  # (adapter, episodes, seed) -> Report: further metrics and texts at each evaluation
    explain: str = ""  # (adapter, rollout) -> {column: array [N, T] of numbers or strings}: what `inspect` shows too;
    # neither `report` nor `explain` may change what training does next
    play: str = ""  # (adapter, episodes, seed, greedy, shows: ("picture", "text") or less) -> iterator of Frame
    chat: str = ""  # (adapter, seed, greedy) -> Chat: what `play` does where there is nothing to watch
    episodes: str = "episodes"  # what people call them here


@dataclass(frozen=True)
class Report:
    """What an adapter adds to an evaluation: metrics, and texts with whatever belongs to them (as JSON has it)."""

    metrics: Mapping[str, float] = field(default_factory=dict)
    responses: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Frame:
    """What there is to see after `step` steps of an episode; step 0 is its beginning."""

    picture: np.ndarray | str  # [height, width, 3] uint8, or text; "" where no drawing was asked for
    seconds: float  # how long the environment means it to be seen
    episode: int  # counted from 1
    step: int
    total: float  # return so far
    action: str  # what was done last; "" at the beginning
    ended: bool


@dataclass(frozen=True)
class Reply:
    """One response to a prompt."""

    text: str
    tokens: int
    ended: bool  # by a token that ends responses; else it was cut off
    score: float | None  # None: `Exchange.remark` says why


@dataclass(frozen=True)
class Exchange:
    """A prompt, and what policy and reference reply."""

    prompt: str
    policy: Reply
    reference: Reply
    kl: float  # of the policy to the reference, summed over its response, in nats
    remark: str = ""


class Chat(Protocol):
    """A policy that can be talked to, as `AdapterSpec.chat` makes it."""

    def answer(self, prompt: str) -> Exchange:
        """Reply to a prompt that somebody typed. Raises UsageError for one that cannot be answered."""
        ...

    def examples(self, count: int) -> Iterator[Exchange]:
        """Replies to `count` prompts that training does not see."""
        ...
