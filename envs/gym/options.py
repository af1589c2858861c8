"""The Gymnasium adapter's options, and the checks made before a run is created. This module does not import torch."""

from __future__ import annotations

import importlib
import os
import re
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from ppo_unified.config.schema import RunConfig, Section
from ppo_unified.errors import ForeignCodeError, UsageError, closest_match, did_you_mean

MOST_LISTED = 8  # environments of a module that an error message lists
MAX_PARALLEL = 16  # maximum number of single environments that an evaluation plays in parallel
RANK = re.compile(r"\{rank(?:\+(\d+))?\}")  # matches {rank} and {rank+5000} in the values of gym.env_kwargs


class Gym(Section):
    """Options for the environment, the number of its parallel copies, and the scaling of observations and rewards."""

    env_id: str = Field(
        "CartPole-v1", min_length=1, description="id of a Gymnasium environment; module:EnvId imports the module first"
    )
    num_envs: int = Field(8, ge=1, description="number of parallel environments")
    num_steps: int = Field(128, ge=2, description="number of steps in each environment per iteration")
    vectorization: Literal["auto", "vector_entry_point", "sync", "async"] = Field(
        "auto",
        description="how to run the environments: vector_entry_point = with the environment's own vectorized "
        "version, async = each in its own process, sync = in a loop in one process, auto = the fastest of these",
    )
    normalize_obs: bool = Field(
        False,
        description="normalize observations with their running mean and variance, then clip them to [-10, 10]",
    )
    normalize_reward: bool = Field(
        False,
        description="divide rewards by the running standard deviation of the discounted return, then clip them to "
        "[-10, 10]",
    )
    rescale_actions: bool = Field(
        True,
        description="map continuous actions linearly from [-1, 1] to the bounds of the action space; components "
        "without finite bounds are not mapped",
    )
    wrappers: list[str] = Field(
        [],
        description="wrappers to apply to each environment, innermost first: names in gymnasium.wrappers, or "
        "module:Class",
    )
    env_kwargs: dict[str, Any] = Field(
        {},
        description="keyword arguments for the environment, as a JSON object; {rank} or {rank+NUMBER} in a value is "
        "replaced by the environment's number",
    )
    info_keys: list[str] = Field(
        [],
        description="keys of numbers in the info of an episode's last step, to log as episode/info/KEY and "
        "eval/info/KEY; write a.b for key b of the dict a",
    )

    @property
    def spare_rank(self) -> int:
        """The number of an environment that is neither used for training nor for evaluations during training."""
        return self.num_envs + MAX_PARALLEL


class Policy(Section):
    """Options for the networks of the policy and the critic."""

    torso: Literal["mlp"] = Field("mlp", description="type of the network that computes features from observations")
    hidden: list[int] = Field([64, 64], description="width of each hidden layer")
    activation: Literal["tanh", "relu", "elu", "silu"] = Field(
        "tanh", description="activation function after each hidden layer"
    )
    shared: bool = Field(False, description="share all hidden layers between policy and critic")
    log_std_init: float = Field(
        0.0,
        ge=-10,
        le=5,
        description="logarithm of the initial standard deviation of continuous actions, before they are rescaled",
    )

    @model_validator(mode="after")
    def _layers_have_a_width(self) -> Self:
        if any(width < 1 for width in self.hidden):
            raise ValueError(f"policy.hidden: expected widths >= 1, got {self.hidden}")
        return self


class GymConfig(RunConfig):
    """The configuration of a run in a Gymnasium environment."""

    kind: Literal["gym"] = Field("gym", description="name of the adapter")
    gym: Gym = Gym()
    policy: Policy = Policy()

    @classmethod
    def model_of_stored(cls, table: Mapping[str, Any]) -> type[RunConfig]:
        gym = table.get("gym")
        return OlderGymConfig if isinstance(gym, Mapping) and "rescale_actions" not in gym else cls

    def ignored_options(self) -> Iterable[tuple[str, bool, str]]:
        yield from super().ignored_options()
        yield "ppo.loss_mean", True, "kind = 'gym' does not group steps into sequences"
        yield "gym.wrappers", self.gym.vectorization == "vector_entry_point", "gym.vectorization = 'vector_entry_point'"
        yield "policy.activation", not self.policy.hidden, "policy.hidden = []"
        yield "policy.shared", not self.policy.hidden, "policy.hidden = []"

    @model_validator(mode="after")
    def _sizes_go_together(self) -> Self:
        steps = self.gym.num_envs * self.gym.num_steps
        if self.ppo.minibatches > steps:
            raise ValueError(
                f"ppo.minibatches: expected at most gym.num_envs x gym.num_steps = {steps}, got {self.ppo.minibatches}"
            )
        if self.policy.shared and not self.optim.joint:
            raise ValueError(
                "policy.shared = true requires optim.joint = true, because two optimizers cannot share layers"
            )
        if self.gym.vectorization == "vector_entry_point" and uses_rank(self.gym.env_kwargs):
            raise ValueError(
                "gym.env_kwargs: {rank} requires gym.vectorization = 'sync' or 'async', because the environments of a "
                "vector version share their arguments"
            )
        return self

    def network_options(self) -> dict[str, Any]:
        names = ("policy.torso", "policy.hidden", "policy.activation", "policy.shared", "gym.normalize_obs")
        options = self.flatten()
        return {name: options[name] for name in names}

    def beside_training(self) -> Self:
        """Return options whose environments have other numbers ({rank}) than all environments of the training process.

        The numbers start after those of the training, the evaluations during training, and the spare environment.
        """
        if not uses_rank(self.gym.env_kwargs):
            return self
        kwargs = _shift_rank(self.gym.env_kwargs, self.gym.spare_rank + 1)
        return self.model_copy(update={"gym": self.gym.model_copy(update={"env_kwargs": kwargs})})


def _map_strings(value: Any, function: Callable[[str], Any]) -> Any:
    """Apply `function` to each string in a JSON value, except to the keys of objects."""
    if isinstance(value, Mapping):
        return {key: _map_strings(x, function) for key, x in value.items()}
    if isinstance(value, (list, tuple)):
        return [_map_strings(x, function) for x in value]
    return function(value) if isinstance(value, str) else value


def uses_rank(kwargs: Mapping[str, Any]) -> bool:
    """Return True if a value of `gym.env_kwargs` contains {rank} or {rank+NUMBER}."""
    found: list[str] = []
    _map_strings(kwargs, lambda text: found.extend(RANK.findall(text)))
    return bool(found)


def fill_rank(kwargs: Mapping[str, Any], rank: int) -> dict[str, Any]:
    """Replace {rank} and {rank+NUMBER} in the values of `kwargs`. A value that is nothing else becomes an integer."""

    def fill(text: str) -> str | int:
        whole = RANK.fullmatch(text)
        return rank + int(whole[1] or 0) if whole else RANK.sub(lambda found: str(rank + int(found[1] or 0)), text)

    filled: dict[str, Any] = _map_strings(kwargs, fill)
    return filled


def _shift_rank(kwargs: Mapping[str, Any], offset: int) -> dict[str, Any]:
    """Add `offset` to the numbers that will replace {rank} and {rank+NUMBER}."""
    shifted: dict[str, Any] = _map_strings(
        kwargs, lambda text: RANK.sub(lambda found: f"{{rank+{int(found[1] or 0) + offset}}}", text)
    )
    return shifted


class OlderGym(Gym):
    """The options for the environment with the defaults that reproduce a run of an older version."""

    rescale_actions: bool = Field(False, description=str(Gym.model_fields["rescale_actions"].description))


class OlderGymConfig(GymConfig):
    """The configuration of a run of an older version, which always passed actions on unscaled."""

    gym: OlderGym = OlderGym()


class DescribedError(Exception):
    """The description of an error in an environment: a broken rule, or the type, message and place of an exception.

    Unlike the original exception, it can always be sent from a worker process to the training process.
    """


@contextmanager
def guard(env_id: str, call: str) -> Iterator[None]:
    """Convert an exception in an environment's code into a ForeignCodeError that names the environment and `call`.

    SystemExit is converted too, because an environment that calls sys.exit() must not silently end the program.
    """
    try:
        yield
    except (UsageError, ForeignCodeError):
        raise
    except (Exception, SystemExit) as error:
        raise make_failure(env_id, call, error) from error


def make_failure(env_id: str, call: str, error: BaseException) -> ForeignCodeError:
    """Return the exception that reports `error` in the environment's function `call`, such as "reset()"."""
    return ForeignCodeError(f"{env_id}: {call}: {describe_error(error)}")


def close_env(env: Any) -> None:
    """Close an environment that is no longer needed. An error has no effect on results, so it is ignored."""
    with suppress(Exception, SystemExit):
        env.close()


def from_target(word: str) -> dict[str, Any] | None:
    """Return the options that select the Gymnasium id `word`, or None if `word` is not a Gymnasium id.

    An id usually has the form 'Name-v0', 'namespace/Name-v0' or 'module:Name-v0'.
    """
    if ":" in word or re.fullmatch(r"(?:[\w-]+/)?[\w.-]+-v\d+", word):
        return {"gym": {"env_id": word}}
    import gymnasium

    return {"gym": {"env_id": word}} if word in gymnasium.registry else None


def resolve(env_id: str) -> Any:
    """Return the registered specification of an environment id.

    If the id contains a module, the module is imported first. Raises UsageError if the id is unknown or the module
    cannot be imported. For an unknown id, the error message suggests a similar one.
    """
    import gymnasium

    module, _, name = env_id.rpartition(":")
    if module:
        if str(Path.cwd()) not in sys.path:
            sys.path.insert(0, str(Path.cwd()))
        try:
            importlib.import_module(module)
        except (Exception, SystemExit) as error:
            why = describe_error(error)
            raise UsageError(f"gym.env_id = {env_id!r}: cannot import module {module!r} ({why})") from error
    try:
        return gymnasium.spec(name)
    except gymnasium.error.Error:
        if module:
            raise UsageError(f"gym.env_id = {env_id!r}: {_explain_unregistered(module, name)}") from None
        known = did_you_mean(name, gymnasium.registry)
        own = " (for your own environment, use module:EnvId)"
        raise UsageError(f"gym.env_id = {env_id!r}: unknown Gymnasium environment{known}{own}") from None


def _explain_unregistered(module: str, name: str) -> str:
    """Explain that importing `module` did not register `name`. Suggest ids of environments in the module's package."""
    import gymnasium

    package, registered = module.partition(".")[0], []
    for env_id, spec in gymnasium.registry.items():
        point = spec.entry_point or spec.vector_entry_point
        origin = point.partition(":")[0] if isinstance(point, str) else getattr(point, "__module__", "")
        registered += [env_id] if origin.partition(".")[0] == package else []
    text = f"module {module!r} does not register the environment {name!r}"
    if not registered:
        return f"{text}; call gymnasium.register() in the module"
    if len(registered) <= MOST_LISTED:
        return f"{text}; use {' or '.join(f'{module}:{env_id}' for env_id in sorted(registered))}"
    names = {env_id.rpartition("-v")[0] or env_id: env_id for env_id in registered}  # versions would seem similar
    match = closest_match(name.rpartition("-v")[0] or name, names)
    return f"{text}; did you mean '{module}:{names[match]}'?" if match else text


def make_single(config: Gym, rank: int | None = None, **kwargs: Any) -> Any:
    """Create one environment with its wrappers. Raises UsageError if this fails.

    `rank` is the environment's number, which replaces {rank} in `gym.env_kwargs`. The default is `spare_rank`.
    """
    import gymnasium

    spec, wrappers = resolve(config.env_id), load_wrappers(config)
    own_kwargs = fill_rank(config.env_kwargs, config.spare_rank if rank is None else rank)
    try:
        env = gymnasium.make(spec, **own_kwargs | kwargs)
    except gymnasium.error.DependencyNotInstalled as error:
        raise UsageError(
            f"gym.env_id = {config.env_id!r} requires a package that is not installed: {_remedy(str(error))}"
        ) from None
    except (Exception, SystemExit) as error:
        given = f" with gym.env_kwargs = {own_kwargs}" if own_kwargs else ""
        raise UsageError(
            f"gym.env_id = {config.env_id!r}: cannot create the environment{given} ({describe_error(error)})"
        ) from error
    for name, wrapper in zip(config.wrappers, wrappers, strict=True):
        try:
            env = wrapper(env)
        except (Exception, SystemExit) as error:
            raise UsageError(
                f"gym.wrappers: cannot apply {name!r} to {config.env_id} ({describe_error(error)}); to pass arguments "
                "to a wrapper, write a subclass and use module:Class"
            ) from error
    return env


def describe_error(error: BaseException) -> str:
    """Return the type, message and location of an error in one line, without the text that Gymnasium appends."""
    if isinstance(error, (DescribedError, ForeignCodeError, UsageError)):
        return str(error)
    text = " ".join(str(error).partition(" was raised from the environment creator")[0].split())
    libraries = (*map(sysconfig.get_path, ("stdlib", "purelib", "platlib")), f"{Path(__file__).parent}{os.sep}", "<")
    frames = [x for x in traceback.extract_tb(error.__traceback__) if not x.filename.startswith(libraries)]
    place = f", in {Path(frames[-1].filename).name}, line {frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{': ' if text else ''}{text}{place}"


def load_wrappers(config: Gym) -> list[Any]:
    """Load the wrapper classes listed in `gym.wrappers`. Raises UsageError if a wrapper is unknown."""

    found = []
    for reference in config.wrappers:
        module, _, name = reference.rpartition(":")
        try:
            source = importlib.import_module(module or "gymnasium.wrappers")
        except (Exception, SystemExit) as error:
            why = describe_error(error)
            raise UsageError(f"gym.wrappers = {reference!r}: cannot import module {module!r} ({why})") from error
        wrapper = getattr(source, name, None)
        if not callable(wrapper):
            names = [other for other in dir(source) if callable(getattr(source, other, None))]
            known = did_you_mean(name, names) or ("" if module else "; for your own wrapper, use module:Class")
            raise UsageError(f"gym.wrappers: no wrapper {name!r} in {source.__name__}{known}")
        found.append(wrapper)
    return found


def _remedy(message: str) -> str:
    """Return the pip command that installs the missing package, or `message` if no extra of ppo-unified includes it.

    `message` is Gymnasium's error message, which may name the Gymnasium extra that includes the package.
    """
    extra = re.search(r"gymnasium\[([\w-]+)\]", message)
    return f"pip install 'ppo-unified[{extra[1]}]'" if extra and extra[1] in ("box2d", "mujoco") else message
