"""The description of an adapter and the types that its optional functions return.

The types that training needs are in `ppo_unified.engine.rollout`. To keep startup fast, this module avoids torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class AdapterSpec:
    """The parts of an adapter. Classes and functions are given as 'module:attribute'.

    Only `config` and `build` are required. Another package can provide an adapter through an entry point in the group
    `ppo_unified.adapters` that refers to an AdapterSpec. The entry point's name is the adapter's `kind`. The functions
    `report` and `explain` must not change the training state.
    """

    config: str  # a subclass of RunConfig; its module must not import torch
    build: str  # (config, device: torch.device) -> Adapter
    build_text: str = ""  # what `build` does, such as "loading the model": the run's progress shows this text
    missing: str = ""  # (config) -> None; raises UsageError if a required option is not set. The form calls it on every
    # key press, so its module should import as little as possible
    choose: str = ""  # (config) -> Choice: numbers for options that are 'auto'; called before a run folder exists
    check: str = ""  # (config) -> None; raises UsageError for errors that can be detected before a run folder exists.
    # The options that `choose` chooses are numbers
    target: str = ""  # (argument of `train`) -> a table of options, or None if the adapter does not recognize it
    presets: str = ""  # a package that contains the presets as *.toml files
    recipes: str = ""  # a package that contains the recipes as *.toml files
    check_init: str = ""  # (config, configuration of the source, {name: shape} of its policy's tensors, state of its
    # adapter without tensors) -> None; raises UsageError if the source's policy cannot be loaded (train --init)
    init: str = (
        ""  # (adapter, state of the source's adapter, configuration of the source) -> None; loads statistics that
    )
    # are not part of the policy, after the policy has been loaded (train --init)
    export: str = ""  # (adapter, empty folder: Path, about: dict) -> dict; both dicts are written to policy.json
    export_merged: str = ""  # like `export`, with the LoRA weights merged into the model (export --merged)
    estimate: str = ""  # (adapter) -> Estimate: the run's memory and time; called before the first iteration. It must
    # not change the training state, except for options that are 'auto', which it sets in the adapter
    score_tag: str = "eval/score"  # the metric that contains the score
    prefers_gpu: bool = False  # True: device = "auto" selects a GPU if there is one
    report: str = ""  # (adapter, episodes, seed) -> Report: additional metrics and texts of an evaluation
    explain_mismatch: str = ""  # (adapter, weights of a checkpoint) -> why the adapter's environment or task does not
    # fit the weights, or "" if it fits
    explain: str = ""  # (adapter, rollout) -> {column: array [N, T] of numbers or strings}: columns for `inspect`
    alternatives: str = ""  # (adapter, rollout, reference: bool) -> the likeliest actions at each step under the policy
    # or the reference model, int64 [N, T, K], their log-probs, most likely first, and the log-probs [N, T] of the
    # rollout's actions, or None to let the engine evaluate them; None instead of the tuple if all this is unknown
    action_texts: str = (
        ""  # (adapter, actions: list[int]) -> {action: text}: how `alternatives` are shown; default: ids
    )
    record: str = ""  # (adapter, rollout) -> the JSON value that `replay` needs; called before the rollout's update
    replay: str = ""  # (config, record, StoredEpisode, shows: as for `play`, first: int) -> iterator of Frame: the
    # states of an episode from step `first` on; raises ReplayError at the first step that cannot be drawn
    code: str = ""  # (config) -> the code that the configuration names and `replay` imports, such as 'env.py:Env', or
    # ""; the user must allow it
    play: str = ""  # (adapter, episodes, seed, greedy, shows: a subset of ("picture", "text")) -> iterator of Frame
    chat: str = ""  # (adapter, seed, greedy) -> Chat: used by `play` if the adapter has no `play` function
    episodes: str = "episodes"  # the word for episodes in printed text, such as "responses"


@dataclass(frozen=True)
class Choice:
    """Numbers that an adapter chose for options that are 'auto'."""

    values: Mapping[str, int | float]  # an option's full name, such as 'optim.lr' -> its number
    reason: str  # what they depend on, such as '135 million weights'


@dataclass(frozen=True)
class Report:
    """An adapter's additions to an evaluation: metrics, and responses as dicts of JSON values."""

    metrics: Mapping[str, float] = field(default_factory=dict)
    responses: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class WorkCounter:
    """Counts how much of a rollout, an evaluation or an update is done. Another thread reads it.

    An adapter may have a WorkCounter as its attribute `counter`. Its `collect` and `score` then call `begin` and
    increase `done` and `ticks`. A run counts as stalled if `done` is below `total` and no field changes for a minute.
    """

    done: int = 0  # completed units, such as steps of a rollout or episodes of an evaluation
    total: int = 0  # 0 if unknown
    ticks: int = 0  # increases with every small piece of work within a unit, such as a step of an episode
    work: str = ""  # what is being done, such as "scoring"; with a `unit`, the words before it; "" to show the phase
    unit: str = ""  # the singular of what `done` counts, such as "token"; if "", a percentage is shown instead

    def begin(self, work: str, unit: str = "", total: int = 0) -> None:
        """Start to count the next part of the work, such as ("generating", "token", 64)."""
        self.total = 0  # first, so that the reading thread never compares the old number with the new `done`
        self.done, self.work, self.unit = 0, work, unit
        self.total = total

    def describe(self) -> str:
        """Return the current work, such as 'generating token 12 of 64', 'update 3 of 16 (14%)', 'scoring' or ''."""
        done, total, work = self.done, self.total, self.work  # read once, because another thread may change them
        if self.unit and total:
            return f"{work} {self.unit} {min(done + 1, total):,} of {total:,}".lstrip()
        return f"{work} ({100 * done // total}%)" if work and total else work


@dataclass(frozen=True)
class Frame:
    """The state of an episode after `step` steps, with a picture or text. Step 0 is the initial state."""

    picture: np.ndarray | str  # [height, width, 3] uint8, or text; "" if no picture was requested
    seconds: float  # the display time that the environment specifies
    episode: int  # counted from 1
    step: int
    total: float  # return so far
    action: str  # the last action; "" for the initial state
    ended: bool
    cut: bool = False  # True if the episode ended only because of this program's own limit on its length


@dataclass(frozen=True)
class StoredEpisode:
    """The steps of one episode in a stored rollout. Arrays have the same values as in the rollout."""

    row: int
    column: int  # of the first step
    actions: np.ndarray  # [steps, ...]
    observations: Mapping[str, np.ndarray]  # [steps, ...] each, or [steps + 1, ...] if the rollout has a next column


class ReplayError(Exception):
    """The reason why an episode cannot be drawn from `step` on. The states before it can be drawn."""

    def __init__(self, reason: str, step: int = 0) -> None:
        super().__init__(reason)
        self.step = step


@dataclass(frozen=True)
class Reply:
    """One response to a prompt."""

    text: str
    tokens: int
    ended: bool  # True if it ends with an end token, False if it was truncated
    score: float | None  # None if the response has no score; `Exchange.remark` then contains the reason


@dataclass(frozen=True)
class Exchange:
    """A prompt and the responses of the policy and the reference model."""

    prompt: str
    policy: Reply
    reference: Reply
    kl: float  # KL(policy || reference model) in nats, summed over the policy's response
    remark: str = ""


class Chat(Protocol):
    """A policy that responds to prompts; `AdapterSpec.chat` names the function that creates it."""

    def answer(self, prompt: str) -> Exchange:
        """Respond to a prompt. Raises UsageError for an invalid prompt."""
        ...

    def examples(self, count: int) -> Iterator[Exchange]:
        """Respond to `count` held-out prompts."""
        ...
