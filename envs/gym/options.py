"""The Gymnasium adapter's options and what can be refused before a run exists. No torch."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from ppo_unified.config.schema import RunConfig, Section
from ppo_unified.errors import UsageError, did_you_mean


class Gym(Section):
    """Which environment, how many of it, and what is done to its numbers."""

    env_id: str = Field(
        "CartPole-v1", min_length=1, description="Gymnasium id, or module:EnvId to import its module first"
    )
    num_envs: int = Field(8, ge=1, description="environments stepped together")
    num_steps: int = Field(128, ge=2, description="steps of each environment per iteration")
    vectorization: Literal["auto", "vector_entry_point", "sync", "async"] = Field(
        "auto",
        description="auto: the environment's own vector version, else processes if stepping is slow, else a loop",
    )
    normalize_obs: bool = Field(
        False, description="scale observations by their running mean and variance, then clip to +-10"
    )
    normalize_reward: bool = Field(
        False, description="scale rewards by the running deviation of the discounted return, then clip to +-10"
    )
    wrappers: list[str] = Field(
        [], description="wrappers of each environment, inmost first: names in gymnasium.wrappers, or module:Class"
    )
    env_kwargs: dict[str, Any] = Field({}, description="arguments of the environment, as JSON on the command line")


class Policy(Section):
    """The networks."""

    torso: Literal["mlp"] = Field("mlp", description="what turns an observation into features")
    hidden: list[int] = Field([64, 64], description="width of each hidden layer")
    activation: Literal["tanh", "relu", "elu", "silu"] = Field("tanh", description="between the layers")
    shared: bool = Field(False, description="one torso for policy and value instead of two")
    log_std_init: float = Field(
        0.0, ge=-10, le=5, description="log of the Gaussian's initial standard deviation (continuous actions)"
    )

    @model_validator(mode="after")
    def _layers_have_a_width(self) -> Self:
        if any(width < 1 for width in self.hidden):
            raise ValueError(f"policy.hidden = {self.hidden}: every width must be at least 1")
        return self


class GymConfig(RunConfig):
    """A run on a Gymnasium environment."""

    kind: Literal["gym"] = Field("gym", description="name of the adapter")
    gym: Gym = Gym()
    policy: Policy = Policy()

    def ignored_options(self) -> Iterable[tuple[str, bool, str]]:
        yield from super().ignored_options()
        yield "ppo.loss_mean", True, "kind = 'gym': its steps are not grouped into sequences"
        yield "gym.wrappers", self.gym.vectorization == "vector_entry_point", "gym.vectorization = 'vector_entry_point'"
        yield "policy.activation", not self.policy.hidden, "policy.hidden = []"
        yield "policy.shared", not self.policy.hidden, "policy.hidden = []"

    @model_validator(mode="after")
    def _sizes_go_together(self) -> Self:
        steps = self.gym.num_envs * self.gym.num_steps
        if self.ppo.minibatches > steps:
            raise ValueError(
                f"ppo.minibatches = {self.ppo.minibatches} is more than gym.num_envs x gym.num_steps = {steps} steps"
            )
        if self.policy.shared and not self.optim.joint:
            raise ValueError("policy.shared = true needs optim.joint = true: two optimizers can't share a torso")
        return self


def from_target(word: str) -> dict[str, Any] | None:
    """Options for a word that is a Gymnasium id ('Name-v0', 'namespace/Name-v0', 'module:Name-v0'); None otherwise."""
    if ":" in word or re.fullmatch(r"(?:[\w-]+/)?[\w.-]+-v\d+", word):
        return {"gym": {"env_id": word}}
    import gymnasium

    return {"gym": {"env_id": word}} if word in gymnasium.registry else None


def resolve(env_id: str) -> Any:
    """The registered spec of an id, its module imported first where one is named.

    Raises UsageError for an unknown id or a module that can't be imported, with the nearest name.
    """
    import gymnasium

    module, _, name = env_id.rpartition(":")
    if module:
        if str(Path.cwd()) not in sys.path:
            sys.path.insert(0, str(Path.cwd()))
        try:
            importlib.import_module(module)
        except (Exception, SystemExit) as error:
            why = f"{type(error).__name__}: {error}"
            raise UsageError(f"gym.env_id = {env_id!r}: module {module!r} cannot be imported ({why})") from None
    try:
        return gymnasium.spec(name)
    except gymnasium.error.Error:
        known, own = (
            did_you_mean(name, gymnasium.registry),
            "" if module else " (an environment of your own: module:EnvId)",
        )
        raise UsageError(f"gym.env_id = {env_id!r}: Gymnasium knows no such environment{known}{own}") from None


def make_single(config: Gym, **kwargs: Any) -> Any:
    """One wrapped environment. Raises UsageError where a package is missing or the arguments don't fit."""
    import gymnasium

    spec = resolve(config.env_id)
    try:
        env = gymnasium.make(spec, **config.env_kwargs, **kwargs)
        for wrapper in load_wrappers(config):
            env = wrapper(env)
    except gymnasium.error.DependencyNotInstalled as error:
        raise UsageError(
            f"gym.env_id = {config.env_id!r} needs a package that is not installed: {_remedy(str(error))}"
        ) from None
    except (TypeError, gymnasium.error.Error) as error:
        raise UsageError(
            f"gym.env_id = {config.env_id!r} cannot be made with gym.env_kwargs = {config.env_kwargs}: {error}"
        ) from None
    return env


def load_wrappers(config: Gym) -> list[Any]:
    """The wrapper classes of gym.wrappers. Raises UsageError naming the one that does not exist."""
    import gymnasium

    found = []
    for reference in config.wrappers:
        module, _, name = reference.rpartition(":")
        try:
            found.append(getattr(importlib.import_module(module or "gymnasium.wrappers"), name))
        except (ImportError, AttributeError):
            known = did_you_mean(name, dir(gymnasium.wrappers)) if not module else ""
            raise UsageError(f"gym.wrappers: there is no wrapper {reference!r}{known}") from None
    return found


def _remedy(message: str) -> str:
    """Our own extra's command where Gymnasium names one of its extras."""
    extra = re.search(r"gymnasium\[([\w-]+)\]", message)
    return f"pip install 'ppo-unified[{extra[1]}]'" if extra and extra[1] in ("box2d", "mujoco") else message


def check(config: GymConfig) -> None:
    """Make one environment and look at its spaces. Raises UsageError for whatever would not train."""
    from envs.gym.spaces import describe_actions, describe_observations

    spec = resolve(config.gym.env_id)
    if config.gym.vectorization == "vector_entry_point" and spec.vector_entry_point is None:
        raise UsageError(
            f"gym.vectorization = 'vector_entry_point': {config.gym.env_id} has no vector version; use sync or async"
        )
    if spec.entry_point is None:
        return  # only a vector version: looked at when it is built
    env = make_single(config.gym)
    try:
        describe_observations(env.observation_space, config.gym.env_id)
        actions = describe_actions(env.action_space, config.gym.env_id)
    finally:
        env.close()
    if not actions.continuous and not config.policy.is_default("log_std_init"):
        raise UsageError(
            f"policy.log_std_init = {config.policy.log_std_init} has no effect: {config.gym.env_id} has discrete "
            "actions; drop it"
        )
