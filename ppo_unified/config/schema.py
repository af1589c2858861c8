"""The schema of all options. TOML keys, command-line flags, form fields, bounds and help texts come from here.

Sections are frozen pydantic models. An adapter adds its own sections by subclassing `RunConfig`. Optional numbers use 0
for "off", because TOML has no null. It is an error to set an option that has no effect because of the other options.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, TypeVar

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo

from ppo_unified.config.suggestions import suggest
from ppo_unified.config.values import describe, format_mismatch, show_value
from ppo_unified.errors import UsageError, did_you_mean
from ppo_unified.parsing import parse_toml, read_bytes

RECORDS = ("kind", "preset", "recipe")  # set by the target and the recipe, not by flags
LARGEST_WHOLE = 2**63 - 1  # the largest integer in TOML and in event files


class Section(BaseModel):
    """The base class of all sections. A section is immutable and rejects unknown keys, NaN and infinity."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True)

    def is_default(self, option: str) -> bool:
        return bool(getattr(self, option) == type(self).model_fields[option].get_default(call_default_factory=True))


class PPO(Section):
    """Options of the PPO update."""

    epochs: int = Field(10, ge=1, description="number of passes over each rollout")
    minibatches: int = Field(4, ge=1, description="number of minibatches per epoch; each takes one optimizer step")
    microbatch_columns: int = Field(
        65536,
        ge=1,
        description="maximum number of steps per forward pass, including padding; a lower number saves memory; on a "
        "CPU, at most 2,048 for rows of one step",
    )
    gamma: float = Field(0.99, ge=0, le=1, description="discount factor per step")
    lam: float = Field(0.95, ge=0, le=1, description="GAE's lambda: 0 = rely on the critic, 1 = rely on the rewards")
    advantage: Literal["gae", "td", "reward-to-go", "return"] = Field(
        "gae", description="advantage estimator: GAE, one-step TD error, reward-to-go, or the episode's return"
    )
    value_target: Literal["lambda", "monte-carlo"] = Field(
        "lambda",
        description="target for the critic: lambda = GAE + V_old, monte-carlo = discounted sum of rewards",
    )
    normalize_advantages: Literal["batch", "minibatch", "none"] = Field(
        "minibatch",
        description="normalize advantages to mean 0 and variance 1 over the batch or over each minibatch; "
        "none = do not normalize",
    )
    loss_mean: Literal["token", "sequence"] = Field(
        "token", description="how the loss is averaged: with equal weight for every token, or for every sequence"
    )
    objective: Literal["clip", "penalty", "ratio", "policy-gradient"] = Field(
        "clip",
        description="policy loss: clipped ratio, ratio with a KL penalty, plain ratio, or plain policy gradient",
    )
    clip: float = Field(0.2, gt=0, lt=1, description="clip range of the ratio: [1 - clip, 1 + clip]")
    anneal_clip: bool = Field(False, description="decrease the clip range to 0 during the run (see optim.schedule)")
    clip_high: float = Field(
        0.0, ge=0, description="the ratio is clipped from above at 1 + clip_high; 0 = use 1 + clip"
    )
    dual_clip: float = Field(
        0.0,
        ge=0,
        description="if the advantage is negative, limit the loss to this factor (> 1) times |advantage|; 0 = off",
    )
    value_clip: float = Field(
        0.0, ge=0, description="clip value estimates to V_old +- value_clip in the value loss; 0 = do not clip"
    )
    value_coef: float = Field(0.5, ge=0, description="weight of the value loss in the total loss")
    entropy_coef: float = Field(0.0, ge=0, description="weight of the entropy bonus")
    anneal_entropy: bool = Field(
        False, description="decrease the weight of the entropy bonus to 0 during the run (see optim.schedule)"
    )
    penalty_coef: float = Field(1.0, gt=0, description="weight of KL(old || new) in the penalty objective")
    penalty_target: float = Field(
        0.0, ge=0, description="adapt ppo.penalty_coef to keep the KL near this value; 0 = do not adapt it"
    )
    target_kl: float = Field(
        0.0, ge=0, description="end the update early once the KL of a minibatch exceeds this value; 0 = off"
    )
    critic_warmup: int = Field(0, ge=0, description="number of initial iterations that train only the critic")


class Optim(Section):
    """Options of the optimizers."""

    lr: float = Field(3e-4, gt=0, le=1, description="Adam's learning rate")
    anneal: bool = Field(True, description="decrease the learning rates to 0 during the run (see optim.schedule)")
    schedule: Literal["linear", "cosine"] = Field(
        "linear",
        description="how optim.anneal, ppo.anneal_clip and ppo.anneal_entropy decrease values: linear, or cosine = "
        "slowly at the start and at the end",
    )
    warmup: int = Field(
        0,
        ge=0,
        description="number of initial iterations in which the learning rates rise linearly to their full values; "
        "0 = off",
    )
    joint: bool = Field(True, description="train policy and critic with one Adam optimizer instead of two")
    critic_lr: float = Field(
        0.0, ge=0, le=1, description="learning rate of the critic if optim.joint is false; 0 = same as optim.lr"
    )
    eps: float = Field(1e-5, gt=0, description="Adam's epsilon")
    betas: list[float] = Field(
        [0.9, 0.999], min_length=2, max_length=2, description="Adam's two decay rates, each in [0, 1)"
    )
    max_grad_norm: float = Field(0.5, ge=0, description="maximum gradient norm; larger gradients are clipped; 0 = off")
    on_nonfinite: Literal["stop", "skip"] = Field(
        "stop", description="what to do if a loss or gradient is NaN or infinite: stop the run, or skip the minibatch"
    )

    @model_validator(mode="after")
    def _check_betas(self) -> Self:
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"optim.betas: expected two numbers >= 0 and < 1, got {self.betas}")
        return self

    def anneal_factor(self, remaining: float) -> float:
        """Return the factor of a value that is annealed: 1 at the start of the run, 0 at its end.

        `remaining` is the fraction of the run that remains. The cosine is that of Loshchilov & Hutter 2017
        (arXiv:1608.03983, eq. 5).
        """
        return remaining if self.schedule == "linear" else 0.5 - 0.5 * math.cos(math.pi * remaining)

    def lr_scale(self, iteration: int, remaining: float) -> float:
        """Return the factor in (0, 1] by which the learning rates are multiplied in an iteration.

        `iteration` is the number of completed iterations, and `remaining` is the fraction of the run that remains.
        """
        warm = min(1.0, (iteration + 1) / self.warmup) if self.warmup else 1.0
        return warm * (self.anneal_factor(remaining) if self.anneal else 1.0)


class Checkpoint(Section):
    """Options for checkpoints."""

    every_s: float = Field(
        60.0,
        gt=0,
        description="number of seconds between checkpoints; each update that takes longer than 20 s adds a checkpoint",
    )
    keep: int = Field(2, ge=1, description="number of recent checkpoints to keep, in addition to the best one")


class Eval(Section):
    """Options for the greedy evaluations during training, whose scores determine the best checkpoint."""

    every_steps: int = Field(
        20_000, ge=0, description="number of steps between evaluations; 0 = evaluate only at the end of the run"
    )
    episodes: int = Field(
        20, ge=1, description="number of episodes per evaluation; their seeds are fixed and not used in training"
    )
    threshold: float | None = Field(
        None,
        description="score at which the task counts as solved; two evaluations of 100 new episodes each must confirm "
        "it",
    )
    at_start: bool = Field(False, description="also evaluate before the first iteration")


class Log(Section):
    """Options for the event file and stored samples."""

    every: int = Field(1, ge=1, description="number of iterations between entries in the event file")
    samples_every: int = Field(
        20, ge=0, description="store samples for `inspect` and histograms every this many iterations; 0 = never"
    )
    samples_mb: float = Field(
        500.0,
        gt=0,
        description="maximum disk space for samples in MB; above it, the oldest samples are thinned out first",
    )


CHANGEABLE = frozenset(  # options and sections that may change when a run is resumed
    ["total_steps", "total_iterations", "device", "threads", "stop_when_solved"]
    + ["ppo", "optim", "checkpoint", "eval", "log"]
)


class RunConfig(Section):
    """The options of a run. Each adapter defines a subclass that adds its own sections."""

    unsupported: ClassVar[dict[str, str]] = {}  # options that users may expect but that do not exist: name -> reason

    kind: str = Field(description="name of the adapter")
    preset: str = Field("", description="source of the configuration: a preset, file name or environment id")
    recipe: str = Field("", description="recipe that was applied on top of the preset; '' = none")
    seed: int = Field(1, ge=0, le=2**31 - 1, description="random seed for weights, sampling and environments")
    total_steps: int = Field(
        500_000, ge=0, le=LARGEST_WHOLE, description="length of the run in environment steps or tokens; 0 = no limit"
    )
    total_iterations: int = Field(
        0, ge=0, le=LARGEST_WHOLE, description="length of the run in iterations; 0 = no limit"
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="device for training; auto = the CPU, or a GPU for language models if one is available"
    )
    threads: int = Field(1, ge=1, le=256, description="number of CPU threads for PyTorch; 1 is best for small networks")
    stop_when_solved: bool = Field(False, description="end the run once the task is solved (see eval.threshold)")
    ppo: PPO = PPO()
    optim: Optim = Optim()
    checkpoint: Checkpoint = Checkpoint()
    eval: Eval = Eval()
    log: Log = Log()

    @classmethod
    def model_of_stored(cls, table: Mapping[str, Any]) -> type[RunConfig]:
        """Return the class that validates the stored configuration of a run.

        An older version may have stored fewer options. Adapters override this method if the default of a missing option
        would change how the run behaves.
        """
        return cls

    @classmethod
    def convert_stored(cls, table: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return a run's stored configuration, with options that no longer exist replaced by current ones."""
        return table

    def ignored_options(self) -> Iterable[tuple[str, bool, str]]:
        """Yield (option, ignored, reason) for each option that other options can make ineffective.

        It is an error to change an ignored option from its default value. The reason completes the message "has no
        effect because ...". Adapters override this method to add their own options.
        """
        ppo, objective = self.ppo, f"ppo.objective = {self.ppo.objective!r}"
        for name in ("clip", "anneal_clip", "clip_high", "dual_clip"):
            yield f"ppo.{name}", ppo.objective != "clip", objective
        for name in ("penalty_coef", "penalty_target"):
            yield f"ppo.{name}", ppo.objective != "penalty", objective
        yield (
            "ppo.lam",
            ppo.advantage != "gae" and ppo.value_target != "lambda",
            f"ppo.advantage = {ppo.advantage!r} and ppo.value_target = {ppo.value_target!r}",
        )
        once = ppo.epochs * ppo.minibatches == 1  # KL is measured before each step, so it is 0 before the only step
        for name in ("target_kl", "penalty_target"):
            yield f"ppo.{name}", once, "ppo.epochs = 1 and ppo.minibatches = 1"
        yield "ppo.anneal_entropy", not ppo.entropy_coef, "ppo.entropy_coef = 0"
        constant = not (self.optim.anneal or ppo.anneal_clip or ppo.anneal_entropy)
        yield "optim.schedule", constant, "optim.anneal, ppo.anneal_clip and ppo.anneal_entropy are false"
        yield "ppo.value_coef", not self.optim.joint, "optim.joint = false"
        yield "optim.critic_lr", self.optim.joint, "optim.joint = true"
        yield "stop_when_solved", self.eval.threshold is None, "eval.threshold is not set"
        yield "stop_when_solved", not self.eval.every_steps, "eval.every_steps = 0"

    @property
    def watched_scores(self) -> Sequence[str]:
        """The metrics of scores that are only logged, so that a health check can compare them with `reward/score`."""
        return ()

    @property
    def ratio_tolerance(self) -> float:
        """A run fails if its invariant/first_ratio_error exceeds this limit. The error is below 1e-5 in float32."""
        return 1e-2

    @model_validator(mode="after")
    def _check_options(self) -> Self:
        if not self.total_steps and not self.total_iterations:
            raise ValueError("total_steps = 0 and total_iterations = 0: the run would never end; set one of them")
        if 0 < self.ppo.dual_clip <= 1:
            raise ValueError(f"ppo.dual_clip: expected 0 (off) or a number > 1, got {self.ppo.dual_clip}")
        for option, ignored, why in self.ignored_options():
            owner, name = self.owner(option)
            if ignored and not owner.is_default(name):
                value = show_value(getattr(owner, name))
                verb = "set" if why.endswith("is not set") else "change"
                fix = f" or {verb} ".join([option, *re.findall(r"[a-z]+\.[a-z_]+", why)])
                raise ValueError(f"{option} = {value} has no effect because {why}; remove {fix}")
        return self

    def why_fixed(self, option: str) -> str:
        """Return why an option cannot be changed when a run is resumed, or '' if it can be changed."""
        section, _, name = option.rpartition(".")
        if option == "optim.joint":
            return "the optimizer state in the checkpoint requires the old value"
        if option == "ppo.penalty_coef" and self.ppo.penalty_target:
            return "ppo.penalty_target has adapted it during training"
        if (section or name) in CHANGEABLE:
            return ""
        return "a resumed run keeps its policy and training data"

    def network_options(self) -> dict[str, Any]:
        """Return the options that determine the networks' structure, or a property of an option if only that matters.

        A run can start with the policy of another run (--init) only if these values are equal in both.
        """
        return {}

    def beside_training(self) -> Self:
        """Return the options for another process that loads the policy, perhaps while the run is still training."""
        return self

    @property
    def origin(self) -> str:
        """The preset's name and, if there is a recipe, the recipe's name: 'sentiment' or 'sentiment-trl-early'."""
        return "-".join(part for part in (self.preset or self.kind, self.recipe) if part)

    def owner(self, option: str) -> tuple[Section, str]:
        """Return the section that contains an option, and the option's key: 'ppo.clip' -> (self.ppo, 'clip')."""
        section, _, name = option.rpartition(".")
        return (getattr(self, section) if section else self), name

    def flatten(self) -> dict[str, Any]:
        """Return all options by their full names, such as {'seed': 1, 'ppo.clip': 0.2}."""
        options: dict[str, Any] = {}
        for name in type(self).model_fields:
            value = getattr(self, name)
            inner = (
                {f"{name}.{k}": getattr(value, k) for k in type(value).model_fields}
                if isinstance(value, Section)
                else {name: value}
            )
            options.update(inner)
        return options

    def replace(self, options: Mapping[str, Any]) -> Self:
        """Return a copy with other values of some options, given by their full names. The result is not validated."""
        changes: dict[str, Any] = {}
        for option, value in options.items():
            owner, name = self.owner(option)
            section = option.rpartition(".")[0]
            changes |= (
                {section: changes.get(section, owner).model_copy(update={name: value})} if section else {name: value}
            )
        return self.model_copy(update=changes)

    def to_toml(self) -> str:
        return tomli_w.dumps(self.model_dump(exclude_none=True))


def known_options(model: type[RunConfig]) -> dict[str, type[Section]]:
    """Return every option's full name, such as 'ppo.clip', and the section class that declares it."""
    options: dict[str, type[Section]] = {}
    for name, f in model.model_fields.items():
        if isinstance(f.annotation, type) and issubclass(f.annotation, Section):
            options.update({f"{name}.{key}": f.annotation for key in f.annotation.model_fields})
        else:
            options[name] = model
    return options


def typed_options(model: type[RunConfig]) -> dict[str, FieldInfo]:
    """Return the declarations of all options that have a flag: all except `kind`, `preset` and `recipe`."""
    return {
        option: section.model_fields[option.rpartition(".")[2]]
        for option, section in known_options(model).items()
        if option not in RECORDS
    }


C = TypeVar("C", bound=RunConfig)


def validate(model: type[C], data: Mapping[str, Any], where: str) -> C:
    """Validate `data` and return an instance of `model`. Raises UsageError with one line for each mistake."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise UsageError("\n".join(_explain(model, problem, where) for problem in error.errors())) from None


def _explain(model: type[RunConfig], problem: Any, where: str) -> str:
    location = [str(part) for part in problem["loc"]]
    option, kind, found = ".".join(location), problem["type"], problem["input"]
    declared = {name: owner.model_fields[name.rpartition(".")[2]] for name, owner in known_options(model).items()}
    if kind == "extra_forbidden":
        text = _explain_unknown(model, location, found)
    elif kind == "missing":
        text = f"{option} is required: expected {describe(declared[option])}" if option in declared else ""
        text = text or f"section [{option}] is required"
    elif kind in ("value_error", "assertion_error"):  # raised by a validator, which may already name the option
        text = str(problem["ctx"]["error"])
        text = text if option in text else f"{option}: {text}"
    elif kind in ("model_type", "model_attributes_type"):
        text = f"{option}: expected a table of options, got {show_value(found)}".removeprefix(": ")
    else:  # the option of a list's element is the list
        names = (option, ".".join(location[:2]), *location[:1])
        name = next((name for name in names if name in declared), "")
        text = f"{name}: {format_mismatch(declared[name], found)}" if name else f"{option}: {problem['msg']}"
    return f"{where}: {text}"


def _explain_unknown(model: type[RunConfig], location: Sequence[str], found: object) -> str:
    option = ".".join(location)
    if option in model.unsupported:
        return f"{option} is not supported: {model.unsupported[option]}"
    if len(location) == 1 and isinstance(found, Mapping):
        sections = {name.partition(".")[0] for name in known_options(model) if "." in name}
        return f"unknown section [{option}]{did_you_mean(option, sorted(sections))}"
    subject = f"[{location[0]}] has no" if len(location) > 1 else "unknown"
    return f"{subject} option {location[-1]!r}{_suggest_key(model, option)}"


def _suggest_key(model: type[RunConfig], unknown: str) -> str:
    """Return '; did you mean 'x'?' for an unknown key, or '' if no option is similar.

    The suggestion omits the section if the unknown key is in the same section.
    """
    found = suggest(unknown, typed_options(model))
    if found is None:
        return ""
    section, _, key = found.option.rpartition(".")
    name = key if section == unknown.rpartition(".")[0] else found.option
    return f"; did you mean {name!r}?" + (f" ({found.note})" if found.note else "")


def read_toml(path: Path) -> dict[str, Any]:
    """Return the contents of a TOML file. Raises UsageError if the file cannot be read or is not valid TOML."""
    try:
        return parse_toml(read_bytes(path).decode("utf-8"))
    except FileNotFoundError:
        raise UsageError(f"{path}: file not found") from None
    except OSError as error:
        raise UsageError(f"{path}: cannot read the file ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{path}: expected a TOML file in UTF-8, got an invalid byte at offset {error.start}"
        ) from None
    except ValueError as error:
        why = str(error).replace("Cannot overwrite a value", "a key or table is defined twice")
        raise UsageError(f"{path}: invalid TOML: {why}") from None


def overlay(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with `changes` applied on top; nested tables are merged."""
    merged = dict(base)
    for key, value in changes.items():
        inner = merged.get(key)
        merged[key] = overlay(inner, value) if isinstance(inner, Mapping) and isinstance(value, Mapping) else value
    return merged
