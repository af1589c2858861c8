"""The one schema of every option: TOML keys, command-line flags, form fields, bounds and help come from here.

Sections are frozen pydantic models; an adapter adds its own by subclassing `RunConfig`. Optional numbers use 0 for
"off", because TOML has no null. An option that the rest of the configuration would ignore is refused by name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, TypeVar

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo

from ppo_unified.config.suggestions import suggest
from ppo_unified.config.values import format_mismatch
from ppo_unified.errors import UsageError
from ppo_unified.parsing import parse_toml, read_bytes

RECORDS = ("kind", "preset", "recipe")  # what a configuration is, not what it does
LARGEST_WHOLE = 2**63 - 1  # that files and other programs take for a whole number


class Section(BaseModel):
    """Base of every section: unknown keys, NaN and infinity are refused; values never change after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True)

    def is_default(self, option: str) -> bool:
        return bool(getattr(self, option) == type(self).model_fields[option].get_default(call_default_factory=True))


class PPO(Section):
    """How a rollout becomes a gradient."""

    epochs: int = Field(10, ge=1, description="passes over each rollout")
    minibatches: int = Field(
        4, ge=1, description="optimizer steps per epoch; the rows are dealt to them anew each epoch"
    )
    microbatch_columns: int = Field(
        65536, ge=1, description="columns per forward pass, padding included: lower it when memory runs out"
    )
    gamma: float = Field(0.99, ge=0, le=1, description="discount of future rewards per step")
    lam: float = Field(0.95, ge=0, le=1, description="GAE's lambda: 0 trusts the critic, 1 trusts the rewards")
    advantage: Literal["gae", "td", "reward-to-go", "return"] = Field(
        "gae", description="what weighs an action: GAE, one-step TD error, rewards to go, or the whole episode's return"
    )
    value_target: Literal["lambda", "monte-carlo"] = Field(
        "lambda",
        description="what the value is regressed on: GAE + V_old, or the discounted rewards up to the end (or the cut)",
    )
    normalize_advantages: Literal["batch", "minibatch", "none"] = Field(
        "minibatch", description="zero mean, unit variance over what"
    )
    loss_mean: Literal["token", "sequence"] = Field(
        "token", description="every step counts the same, or every sequence does"
    )
    objective: Literal["clip", "penalty", "ratio", "policy-gradient"] = Field(
        "clip", description="PPO-clip, PPO-penalty (KL to the old policy), the plain ratio, or log-prob times advantage"
    )
    clip: float = Field(0.2, gt=0, lt=1, description="how far the ratio may leave 1 before the gradient stops")
    anneal_clip: bool = Field(False, description="lower the clip range linearly to 0 over the run")
    clip_high: float = Field(0.0, ge=0, description="a wider clip range upwards; 0 = the same as clip")
    dual_clip: float = Field(
        0.0, ge=0, description="bound the loss of bad actions at this many times the advantage (> 1); 0 = off"
    )
    value_clip: float = Field(0.0, ge=0, description="clip the value's move from V_old to this; 0 = off")
    value_coef: float = Field(0.5, ge=0, description="weight of the value loss in the joint loss")
    entropy_coef: float = Field(0.0, ge=0, description="weight of the entropy bonus")
    penalty_coef: float = Field(1.0, gt=0, description="weight of KL(old || new) in the penalty objective")
    penalty_target: float = Field(
        0.0, ge=0, description="KL that the penalty coefficient adapts to; 0 = fixed coefficient"
    )
    target_kl: float = Field(
        0.0,
        ge=0,
        description="stop an iteration's updates once a minibatch's KL to the old policy exceeds this; 0 = off",
    )
    critic_warmup: int = Field(0, ge=0, description="first iterations that train the critic alone")


class Optim(Section):
    """How the gradient becomes a step."""

    lr: float = Field(3e-4, gt=0, le=1, description="Adam's learning rate")
    anneal: bool = Field(True, description="lower the learning rates linearly to 0 over the run")
    joint: bool = Field(True, description="one Adam and one gradient norm for policy and critic, or two of each")
    critic_lr: float = Field(0.0, ge=0, le=1, description="the critic's own learning rate when not joint; 0 = lr")
    eps: float = Field(1e-5, gt=0, description="Adam's epsilon")
    betas: list[float] = Field(
        [0.9, 0.999], min_length=2, max_length=2, description="Adam's two decay rates, each in [0, 1)"
    )
    max_grad_norm: float = Field(0.5, ge=0, description="clip the gradient's norm to this; 0 = off")
    on_nonfinite: Literal["stop", "skip"] = Field(
        "stop", description="what a loss or gradient that is NaN or infinite does: end the run, or skip the minibatch"
    )

    @model_validator(mode="after")
    def _check_betas(self) -> Self:
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"optim.betas = {self.betas}: each must be at least 0 and below 1")
        return self


class Checkpoint(Section):
    """What is kept to resume from."""

    every_s: float = Field(60.0, gt=0, description="seconds between checkpoints")
    keep: int = Field(2, ge=1, description="how many of the newest checkpoints to keep besides the best")


class Eval(Section):
    """Greedy evaluation during training; the best checkpoint is chosen by it."""

    every_steps: int = Field(
        20_000, ge=0, description="evaluate where the steps pass a multiple of this; 0 = only at the end"
    )
    episodes: int = Field(
        20, ge=1, description="episodes per evaluation, on seeds that training never sees, the same each time"
    )
    threshold: float | None = Field(
        None, description="score that counts as solved, confirmed on 2 x 100 fresh episodes"
    )
    at_start: bool = Field(False, description="evaluate before the first iteration too")


class Log(Section):
    """What is written how often."""

    every: int = Field(1, ge=1, description="iterations between two entries in the event file")
    samples_every: int = Field(
        20,
        ge=0,
        description="iterations between stored samples (for inspect) and histograms, besides the first and the last; "
        "0 = never",
    )


CHANGEABLE = frozenset(  # options and sections that a run may be resumed with other values of
    ["total_steps", "total_iterations", "device", "threads", "stop_when_solved"]
    + ["ppo", "optim", "checkpoint", "eval", "log"]
)


class RunConfig(Section):
    """Everything a run needs, but for what its adapter adds."""

    refused: ClassVar[dict[str, str]] = {}  # options that people look for and will not find: name -> why not

    kind: str = Field(description="the adapter's name")
    preset: str = Field("", description="what the configuration began as: a preset, a file's stem or an environment id")
    recipe: str = Field("", description="the recipe whose options were laid over it; '' = none")
    seed: int = Field(1, ge=0, le=2**31 - 1, description="seeds the weights, the sampling and the environments")
    total_steps: int = Field(
        500_000,
        ge=0,
        le=LARGEST_WHOLE,
        description="environment steps or tokens after which the run ends; 0 = no limit",
    )
    total_iterations: int = Field(
        0, ge=0, le=LARGEST_WHOLE, description="iterations after which the run ends; 0 = no limit"
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="auto is what the adapter thinks best for the size of the model"
    )
    threads: int = Field(1, ge=1, le=256, description="CPU threads for torch; one is best for small networks")
    stop_when_solved: bool = Field(False, description="end the run once eval.threshold is reached and confirmed")
    ppo: PPO = PPO()
    optim: Optim = Optim()
    checkpoint: Checkpoint = Checkpoint()
    eval: Eval = Eval()
    log: Log = Log()

    def ignored_options(self) -> Iterable[tuple[str, bool, str]]:
        """(option, whether it would be ignored, why); adapters extend it. An ignored non-default is refused."""
        ppo, objective = self.ppo, f"ppo.objective = {self.ppo.objective!r}"
        for name in ("clip", "anneal_clip", "clip_high", "dual_clip"):
            yield f"ppo.{name}", ppo.objective != "clip", objective
        for name in ("penalty_coef", "penalty_target"):
            yield f"ppo.{name}", ppo.objective != "penalty", objective
        yield (
            "ppo.lam",
            ppo.advantage != "gae" and ppo.value_target != "lambda",
            f"ppo.advantage = {ppo.advantage!r} together with ppo.value_target = {ppo.value_target!r}",
        )
        once = ppo.epochs * ppo.minibatches == 1  # KL is measured before each step, and before the only one it is 0
        for name in ("target_kl", "penalty_target"):
            yield f"ppo.{name}", once, "ppo.epochs = 1 together with ppo.minibatches = 1"
        yield "ppo.value_coef", not self.optim.joint, "optim.joint = false"
        yield "optim.critic_lr", self.optim.joint, "optim.joint = true"
        yield "stop_when_solved", self.eval.threshold is None, "no eval.threshold"
        yield "stop_when_solved", not self.eval.every_steps, "eval.every_steps = 0"

    @property
    def ratio_tolerance(self) -> float:
        """How far invariant/first_ratio_error may go before the run fails; float32 stays below 1e-5."""
        return 1e-2

    @model_validator(mode="after")
    def _check_options(self) -> Self:
        if not self.total_steps and not self.total_iterations:
            raise ValueError("total_steps = 0 and total_iterations = 0: the run would never end; set one of them")
        if 0 < self.ppo.dual_clip <= 1:
            raise ValueError(f"ppo.dual_clip = {self.ppo.dual_clip}: must be above 1 (3 is usual), or 0 for off")
        for option, ignored, why in self.ignored_options():
            owner, name = self.owner(option)
            if ignored and not owner.is_default(name):
                raise ValueError(f"{option} = {getattr(owner, name)!r} has no effect with {why}; drop one of the two")
        return self

    def why_fixed(self, option: str) -> str:
        """Why a run that has begun can't change an option; empty where it can."""
        section, _, name = option.rpartition(".")
        if option == "optim.joint":
            return "the state of one optimizer does not fit two"
        if option == "ppo.penalty_coef" and self.ppo.penalty_target:
            return "with ppo.penalty_target it has adapted since"
        if (section or name) in CHANGEABLE:
            return ""
        return "it made what was trained and what it is trained on"

    @property
    def origin(self) -> str:
        """What the configuration began as, with the recipe laid over it: 'sentiment', 'sentiment-trl-early'."""
        return "-".join(part for part in (self.preset or self.kind, self.recipe) if part)

    def owner(self, option: str) -> tuple[Section, str]:
        """'ppo.clip' -> (the section that holds it, 'clip')."""
        section, _, name = option.rpartition(".")
        return (getattr(self, section) if section else self), name

    def flatten(self) -> dict[str, Any]:
        """{'seed': 1, 'ppo.clip': 0.2, ...}: every option under the name that flags use."""
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

    def to_toml(self) -> str:
        return tomli_w.dumps(self.model_dump(exclude_none=True))


def known_options(model: type[RunConfig]) -> dict[str, type[Section]]:
    """Every option's name as flags spell it, and the section that declares it."""
    options: dict[str, type[Section]] = {}
    for name, f in model.model_fields.items():
        if isinstance(f.annotation, type) and issubclass(f.annotation, Section):
            options.update({f"{name}.{key}": f.annotation for key in f.annotation.model_fields})
        else:
            options[name] = model
    return options


def typed_options(model: type[RunConfig]) -> dict[str, FieldInfo]:
    """The declaration of every option that a person can set: all but those that the target and the recipe set."""
    return {
        option: section.model_fields[option.rpartition(".")[2]]
        for option, section in known_options(model).items()
        if option not in RECORDS
    }


C = TypeVar("C", bound=RunConfig)


def validate(model: type[C], data: Mapping[str, Any], where: str) -> C:
    """`data` as a `model`. Raises UsageError, one line per mistake, each naming the option, the value and the bound."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise UsageError("\n".join(_explain(model, problem, where) for problem in error.errors())) from None


def _explain(model: type[RunConfig], problem: Any, where: str) -> str:
    location = [str(part) for part in problem["loc"]]
    option = ".".join(location)
    if problem["type"] == "extra_forbidden" and option in model.refused:
        return f"{where}: {option} is not supported: {model.refused[option]}"
    if problem["type"] == "extra_forbidden":
        subject = f"[{location[0]}] has" if len(location) > 1 else "there is"
        return f"{where}: {subject} no option {location[-1]!r}{_suggest_key(model, option)}"
    if problem["type"] in ("model_type", "model_attributes_type"):
        return f"{where}: [{option}] is a table of options, not {problem['input']!r}"
    if problem["type"] == "value_error":
        return f"{where}: {problem['ctx']['error']}"
    declared = typed_options(model)
    for name in (option, ".".join(location[:2]), *location[:1]):  # of a list's element, the list
        if name in declared:
            return f"{where}: {name}: {format_mismatch(declared[name], problem['input'])}"
    return f"{where}: {option} = {problem['input']!r}: {problem['msg'].removeprefix('Input ')}"


def _suggest_key(model: type[RunConfig], unknown: str) -> str:
    """The existing option that an unknown key probably means; without its section if that is the same."""
    found = suggest(unknown, typed_options(model))
    if found is None:
        return ""
    section, _, key = found.option.rpartition(".")
    name = key if section == unknown.rpartition(".")[0] else found.option
    return f"; did you mean {name!r}?" + (f" ({found.note})" if found.note else "")


def read_toml(path: Path) -> dict[str, Any]:
    """The table in a TOML file. Raises UsageError when it can't be read, is not text, or is not TOML."""
    try:
        return parse_toml(read_bytes(path).decode("utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{path}: is not a text file (byte {error.start} is not UTF-8); a TOML configuration is expected"
        ) from None
    except ValueError as error:
        raise UsageError(f"{path}: is not valid TOML: {error}") from None


def overlay(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `changes` laid over it, table by table."""
    merged = dict(base)
    for key, value in changes.items():
        inner = merged.get(key)
        merged[key] = overlay(inner, value) if isinstance(inner, Mapping) and isinstance(value, Mapping) else value
    return merged
