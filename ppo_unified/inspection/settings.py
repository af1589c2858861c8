"""The options that `recompute` applies to a stored iteration, and which of them can be changed for it."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, TypeAlias, get_args, get_type_hints

import numpy as np

from ppo_unified.errors import UsageError
from ppo_unified.inspection.formulas import Array, Objective
from ppo_unified.runs.stored_iteration import StoredIteration
from ppo_unified.text import clean

Moment: TypeAlias = int | Literal["after"]  # an epoch of the update, from 1, or after the update


@dataclass(frozen=True)
class Settings:
    """The options that `recompute` applies. Names and values are those of the run's options, except where noted."""

    gamma: float = 0.99
    lam: float = 0.95
    clip: float = 0.2  # after annealing
    clip_high: float = 0.0  # after annealing; 0 = same as clip
    dual_clip: float = 0.0
    objective: Literal["clip", "penalty", "ratio", "policy-gradient"] = "clip"
    penalty_coef: float = 1.0  # as adapted by ppo.penalty_target
    advantage: Literal["gae", "td", "reward-to-go", "return"] = "gae"
    value_target: Literal["lambda", "monte-carlo"] = "lambda"
    normalize_advantages: Literal["batch", "minibatch", "none"] = "none"
    loss_mean: Literal["token", "sequence"] = "token"
    value_clip: float = 0.0
    baseline: Literal["critic", "rloo", "grpo"] = "critic"
    kl: Literal["k1", "abs", "k2", "k3", "full"] = "k1"
    kl_coef: float = 0.0  # as adapted by llm.kl_target
    score_clip: float = 0.0
    score_normalize: Literal["none", "reference", "running"] = "none"
    missing_eos_penalty: float = 0.0
    whiten_rewards: bool = False

    @classmethod
    def of(cls, stored: StoredIteration) -> Settings:
        """Return the settings with which the run performed the iteration. Raises UsageError if the file contains an
        invalid value."""
        options, state = _section(stored, "ppo") | _section(stored, "llm"), stored.state
        known = {name: value for name, value in options.items() if name in _NAMES}
        if "normalize_advantages" not in known:
            known["normalize_advantages"] = _guess_normalization(stored)
        known |= {
            "gamma": stored.gamma,
            "lam": stored.lam,
            "clip": stored.clip,
            "clip_high": 0.0 if stored.clip_high == stored.clip else stored.clip_high,
            "advantage": stored.advantage_kind,
            "value_target": stored.value_target,
            **{name: state[name] for name in ("penalty_coef", "kl_coef") if state.get(name) is not None},
        }
        for name, value in known.items():
            _check_value(stored, name, value)
        return cls(**known)

    def with_value(self, name: str, value: Any) -> Settings:
        """Return the settings with another value. A group baseline also sets the values that it requires."""
        required = GROUP_BASELINE if name == "baseline" and value != "critic" else {}
        return replace(self, **required | {name: value})

    @property
    def terms(self) -> Objective:
        """The policy objective with its numbers."""
        return Objective(self.objective, self.clip, self.clip_high or self.clip, self.dual_clip, self.penalty_coef)


_NAMES = {f.name for f in fields(Settings)}
LLM_SETTINGS = (
    *("baseline", "kl", "kl_coef", "score_clip", "score_normalize", "missing_eos_penalty", "whiten_rewards"),
)
COLUMNS = ("logprob_old", "logprob_new", "ratio", "reward", "value", "next_value")  # all that `recompute` needs
REFERENCE_COLUMNS = ("logprob_ref", "kl")
REWARD_COLUMNS = (*REFERENCE_COLUMNS, "kl_full", "score", "score_normalized", "ended")  # the terms of rewards
TOKEN_COLUMNS = ("score_token", "score_token_normalized")  # stored if a reward function returned one number per token
EPOCHS = ("logprob", "value", "entropy", "minibatch")
MAX_MINIBATCHES = 1 << 15
# the values that rloo and grpo require
GROUP_BASELINE: dict[str, Any] = {"gamma": 1.0, "lam": 1.0, "normalize_advantages": "none", "advantage": "gae"}
CHOICES: dict[str, tuple[Any, ...]] = {  # the values of each setting that is not a number
    name: (False, True) if kind is bool else get_args(kind)
    for name, kind in get_type_hints(Settings).items()
    if kind is not float
}


def _section(stored: StoredIteration, name: str) -> dict[str, Any]:
    """Return the run's options in a section; {} if the iteration was stored by an older version."""
    section = stored.options.get(name, {})
    return section if isinstance(section, dict) else {}


def option(stored: StoredIteration, section: str, name: str) -> Any:
    """Return an option of the run, or None if it is unknown. Its value is not validated."""
    return _section(stored, section).get(name)


def _check_value(stored: StoredIteration, name: str, value: Any) -> None:
    known = CHOICES.get(name)
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if value not in known if known else not is_number:
        expected = f"one of {', '.join(map(str, known))}" if known else "a number"
        raise UsageError(
            f"{stored.where}: {option_name(name)}: expected {expected}, got {clean(repr(value))[:50]}; delete the file"
        )


def check_arrays(stored: StoredIteration) -> None:
    """Raise UsageError if arrays are missing or have the wrong type."""
    columns, epochs = stored.columns, stored.epochs
    wrong = [name for name in COLUMNS if name not in columns or columns[name].dtype.kind not in "biuf"]
    wrong += [name for name in TOKEN_COLUMNS if name in columns and columns[name].dtype.kind not in "biuf"]
    wrong += [f"epochs.{name}" for name in EPOCHS if epochs and (name not in epochs or epochs[name].ndim != 3)]
    numbers = epochs.get("minibatch", np.zeros(1, int))
    if numbers.dtype.kind != "i" or numbers.max(initial=0) >= MAX_MINIBATCHES or numbers.min(initial=0) < -1:
        wrong.append("epochs.minibatch")
    if wrong:
        raise UsageError(f"{stored.where}: no valid {', '.join(wrong)}; delete the file")


def has_reference(stored: StoredIteration) -> bool:
    """Return True if the file contains a KL to a reference model at each step."""
    return all(name in stored.columns for name in REFERENCE_COLUMNS)


def has_reward_terms(stored: StoredIteration) -> bool:
    """Return True if the file contains the terms from which the rewards of a language model follow."""
    return all(name in stored.columns for name in REWARD_COLUMNS)


def has_token_scores(stored: StoredIteration) -> bool:
    """Return True if a reward function returned one number per token."""
    return all(name in stored.columns for name in TOKEN_COLUMNS)


def option_name(setting: str) -> str:
    """Return the name of the run's option, such as 'llm.kl' for 'kl'."""
    return f"llm.{setting}" if setting in LLM_SETTINGS else f"ppo.{setting}"


def choices(stored: StoredIteration, setting: str) -> tuple[Any, ...]:
    """Return the values that a setting can have for this iteration, or () for a number."""
    own = getattr(Settings.of(stored), setting)
    known = CHOICES.get(setting, ())
    if setting == "baseline" and own != "critic":
        return tuple(value for value in known if value != "critic")  # the values of a critic are not stored
    if setting == "score_normalize":  # the statistics of other normalizations are not stored
        return tuple(value for value in known if value in (own, "none"))
    if setting == "normalize_advantages" and not count_epochs(stored):
        return tuple(value for value in known if value in (own, "batch", "none"))
    return known


def _guess_normalization(stored: StoredIteration) -> str:
    """Return the kind of normalization of a file without options, from the columns that it contains."""
    used = stored.columns.get("advantage_used")
    if used is None:
        return "minibatch"
    mask = stored.columns["mask"]
    return "none" if np.array_equal(used[mask], stored.columns["advantage"][mask]) else "batch"


def moments(stored: StoredIteration) -> list[Moment]:
    """Return the moments for which `recompute` has data: the epochs that the update began, and "after"."""
    return [*range(1, count_epochs(stored) + 1), "after"]


def count_epochs(stored: StoredIteration) -> int:
    """Return the number of epochs that the update began, or 0 if the file does not contain epochs."""
    numbers, mask = stored.epochs.get("minibatch", ()), stored.columns["mask"]
    begun = (epoch for epoch in range(len(numbers), 0, -1) if ((numbers[epoch - 1] >= 0) & mask).any())
    return next(begun, 0)


def group_size(stored: StoredIteration) -> int:
    """Return the number of responses to each prompt."""
    size = option(stored, "llm", "group_size")
    return size if isinstance(size, int) and size > 0 else 1


def sequence_weights(stored: StoredIteration, own: Settings) -> Array | None:
    """Return the weights for loss_mean = 'sequence', or None if the length of the update's rows is unknown."""
    mask, row_len = stored.columns["mask"], stored.state.get("row_len")
    if own.loss_mean == "sequence" and "weight" in stored.columns:
        return np.where(mask, stored.columns["weight"], 0).astype(np.float32)
    if not isinstance(row_len, int) or row_len < 1 or mask.shape[1] % row_len:
        return None
    rows = mask.reshape(-1, row_len)
    weights = rows / np.maximum(rows.sum(1, keepdims=True), 1)
    return np.asarray(weights, np.float32).reshape(mask.shape)


def unavailable(stored: StoredIteration, settings: Settings | None = None) -> dict[str, str]:
    """Return the settings that cannot be changed for this iteration, or whose change has no effect, with the reason.

    `settings` are the current settings, by default the run's own. The reason completes the message "NAME: ...".
    """
    now, reasons = settings or Settings.of(stored), missing_data(stored)
    for name, reason in _without_effect(now):
        reasons.setdefault(name, reason)
    return reasons


def missing_data(stored: StoredIteration) -> dict[str, str]:
    """Return the settings that cannot be changed because arrays that this needs are not stored, with the reason."""
    found, older = list[tuple[str, str]](), "the iteration was stored by an older version"
    if not has_reference(stored):
        found += [(name, "the log-probs of a reference model are not stored") for name in LLM_SETTINGS]
    elif not has_reward_terms(stored):
        found += [(name, "the terms of the rewards are not stored") for name in LLM_SETTINGS]
    elif len(choices(stored, "score_normalize")) < 2:
        found.append(("score_normalize", "the statistics that normalize scores are not stored"))
    if group_size(stored) < 2:
        found.append(("baseline", "it needs several responses to each prompt (llm.group_size > 1)"))
    if not count_epochs(stored):
        found.append(("value_clip", older))
    if sequence_weights(stored, Settings.of(stored)) is None:
        found.append(("loss_mean", "the length of the update's rows is not stored"))
    return dict(reversed(found))  # of several reasons, the first one counts


def _without_effect(now: Settings) -> list[tuple[str, str]]:
    """List the settings that have no effect because of the other settings."""
    objective, found = f"no effect with ppo.objective = {now.objective!r}", list[tuple[str, str]]()
    if now.objective != "clip":
        found += [(name, objective) for name in ("clip", "clip_high", "dual_clip")]
    if now.objective != "penalty":
        found.append(("penalty_coef", objective))
    if now.advantage != "gae" and now.value_target != "lambda":
        found.append(("lam", f"no effect with ppo.advantage = {now.advantage!r} and ppo.value_target = 'monte-carlo'"))
    if now.baseline != "critic":
        found += [(name, f"llm.baseline = {now.baseline!r} requires {value}") for name, value in GROUP_BASELINE.items()]
        without_critic = f"no effect with llm.baseline = {now.baseline!r}"
        found += [(name, without_critic) for name in ("value_target", "value_clip", "whiten_rewards")]
    if not now.kl_coef:
        found.append(("kl", "no effect with llm.kl_coef = 0"))
    return found
