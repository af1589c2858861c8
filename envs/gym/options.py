"""The Gymnasium adapter's options, and the creation of one environment. This module does not import torch."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, Self

from pydantic import Field, PrivateAttr, model_validator

from envs.gym.errors import close_after_error, describe_error, hidden_arguments
from ppo_unified.config.schema import RunConfig, Section
from ppo_unified.errors import UsageError

MAX_PARALLEL = 16  # maximum number of single environments that an evaluation plays in parallel
# modules of this program that `gym.env_id` and wrappers of presets name
OWN_CODE = ("envs.gym.pixel_tasks:", "envs.gym.memory_tasks:", "envs.gym.atari:")
RANK = re.compile(r"\{rank(?:\+(\d+))?\}")  # matches {rank} and {rank+5000} in the values of gym.env_kwargs


class Gym(Section):
    """Options for the environment, the number of its parallel copies, and the scaling of observations and rewards."""

    env_id: str = Field(
        "CartPole-v1", min_length=1, description="id of a Gymnasium environment, module:EnvId, or FILE.py:EnvId"
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
        max_length=50,
        description="wrappers to apply to each environment, innermost first, such as "
        "TimeLimit(max_episode_steps=200): names in gymnasium.wrappers, or module:Class",
    )
    training_wrappers: list[str] = Field(
        [],
        max_length=50,
        description="wrappers that are applied only to the training environments, around those in gym.wrappers; "
        "evaluations and play do not use them",
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

    _encoders: Mapping[str, str] = PrivateAttr(default_factory=lambda: {"": "nature"})

    @property
    def encoders(self) -> Mapping[str, str]:
        """A copy of policy.encoders, and policy.image_encoder under the key "": they decide which parts are images."""
        return self._encoders

    @property
    def for_training(self) -> Self:
        """The options with which the training environments are created."""
        return self.model_copy(update={"wrappers": [*self.wrappers, *self.training_wrappers]})

    @property
    def spare_rank(self) -> int:
        """The number of an environment that is neither used for training nor for evaluations during training."""
        return self.num_envs + MAX_PARALLEL

    @model_validator(mode="after")
    def _wrappers_can_be_parsed(self) -> Self:
        if self.wrappers or self.training_wrappers:
            from envs.gym.wrappers import parse_wrapper

            for text in (*self.wrappers, *self.training_wrappers):
                parse_wrapper(text)
        return self


class Policy(Section):
    """Options for the networks of the policy and the critic."""

    torso: Literal["mlp", "gru", "lstm"] = Field(
        "mlp",
        description="type of the network that computes features from observations: mlp = hidden layers, gru or lstm = "
        "hidden layers and a recurrent layer, which remembers earlier observations of the episode",
    )
    memory_size: int = Field(64, ge=1, description="number of units in the recurrent layer")
    row_len: int = Field(
        16,
        ge=1,
        description="number of consecutive steps through which updates compute the gradient of the recurrent layer; a "
        "divisor of gym.num_steps",
    )
    hidden: list[int] = Field([64, 64], description="width of each hidden layer")
    activation: Literal["tanh", "relu", "elu", "silu"] = Field(
        "tanh", description="activation function after each hidden layer"
    )
    shared: bool = Field(False, description="share all encoders and hidden layers between policy and critic")
    image_encoder: Literal["nature", "resnet", "flat"] = Field(
        "nature",
        description="network that encodes images: nature = the convolutional network of Mnih et al. 2015, resnet = a "
        "small residual network, flat = no encoder: pixels are ordinary numbers; for images with a side below 36 "
        "pixels, set policy.encoders",
    )
    encoders: dict[str, str] = Field(
        {},
        description="encoders of individual parts of an observation, as a JSON object: nature, resnet, flat, "
        "'mlp(64, 64)', embedding(16), or your own module:Class; a.b names the entry b of the Dict or Tuple a",
    )
    log_std_init: float = Field(
        0.0,
        ge=-10,
        le=5,
        description="logarithm of the initial standard deviation of continuous actions, before they are rescaled",
    )

    @property
    def is_recurrent(self) -> bool:
        return self.torso != "mlp"

    def count_features(self, inputs: int) -> int:
        """Return the number of features from which the actions and values are computed, given that of the inputs."""
        return self.memory_size if self.is_recurrent else [inputs, *self.hidden][-1]

    def find_encoder(self, part: str, is_image: bool) -> str:
        """Return the encoder of a part of the observation, in the format of `encoders`."""
        return self.encoders.get(part, self.image_encoder if is_image else "flat")

    @model_validator(mode="after")
    def _layers_have_a_width(self) -> Self:
        if any(width < 1 for width in self.hidden):
            raise ValueError(f"policy.hidden: expected widths >= 1, got {self.hidden}")
        return self

    @model_validator(mode="after")
    def _encoders_can_be_parsed(self) -> Self:
        if self.encoders:
            from envs.gym.observations import parse_encoder

            for part, text in self.encoders.items():
                parse_encoder(part, text)
        return self


class GymConfig(RunConfig):
    """The configuration of a run in a Gymnasium environment."""

    kind: Literal["gym"] = Field("gym", description="name of the adapter")
    gym: Gym = Gym()
    policy: Policy = Policy()

    @classmethod
    def model_of_stored(cls, table: Mapping[str, Any]) -> type[RunConfig]:
        gym, policy = table.get("gym"), table.get("policy")
        if isinstance(gym, Mapping) and "rescale_actions" not in gym:
            return OlderGymConfig
        return FlatGymConfig if isinstance(policy, Mapping) and "image_encoder" not in policy else cls

    def ignored_options(self) -> Iterable[tuple[str, bool, str]]:
        yield from super().ignored_options()
        yield "ppo.loss_mean", True, "kind = 'gym' does not group steps into sequences"
        for name in ("gym.wrappers", "gym.training_wrappers"):
            yield name, self.gym.vectorization == "vector_entry_point", "gym.vectorization = 'vector_entry_point'"
        narrow = not self.policy.hidden and not any(text.startswith("mlp") for text in self.policy.encoders.values())
        yield "policy.activation", narrow, "policy.hidden = []"
        for name in ("memory_size", "row_len"):
            yield f"policy.{name}", not self.policy.is_recurrent, "policy.torso = 'mlp'"

    @model_validator(mode="after")
    def _environment_knows_encoders(self) -> Self:
        gym = self.gym.model_copy()  # not the same object, which another configuration may contain
        gym._encoders = {"": self.policy.image_encoder, **self.policy.encoders}
        self.__dict__["gym"] = gym
        return self

    @model_validator(mode="after")
    def _sizes_go_together(self) -> Self:
        rows, what = self.gym.num_envs * self.gym.num_steps, "gym.num_envs x gym.num_steps"
        if self.policy.is_recurrent:
            if self.gym.num_steps % self.policy.row_len:
                raise ValueError(
                    f"policy.row_len: expected a divisor of gym.num_steps = {self.gym.num_steps}, got "
                    f"{self.policy.row_len}; the next lower divisor is {self._lower_row_len()}"
                )
            rows, what = rows // self.policy.row_len, f"{what} / policy.row_len"
        if self.ppo.minibatches > rows:
            raise ValueError(f"ppo.minibatches: expected at most {what} = {rows}, got {self.ppo.minibatches}")
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

    def _lower_row_len(self) -> int:
        steps = self.gym.num_steps
        return next(n for n in range(min(steps, self.policy.row_len), 0, -1) if steps % n == 0)

    def network_options(self) -> dict[str, Any]:
        from envs.gym.observations import resolve_encoder

        policy = ("torso", "memory_size", "hidden", "activation", "shared")
        names = [*(f"policy.{name}" for name in policy), "gym.normalize_obs"]
        options = self.flatten()
        encoders = {part: resolve_encoder(part, text) for part, text in self.policy.encoders.items()}
        return {name: options[name] for name in names} | {"policy.encoders": encoders}

    def beside_training(self) -> Self:
        """Return options whose environments have numbers ({rank}) that the training process does not use.

        The numbers start after the numbers of the training, the evaluations during training, and the spare environment.
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
    """Replace {rank} and {rank+NUMBER} in the values of `kwargs`. A value with no other text becomes an integer."""

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


class FlatPolicy(Policy):
    """The options for the networks with the defaults that reproduce a run of an older version."""

    image_encoder: Literal["nature", "resnet", "flat"] = Field(
        "flat", description=str(Policy.model_fields["image_encoder"].description)
    )


class FlatGymConfig(GymConfig):
    """The configuration of a run from an older version, which encoded no images."""

    policy: FlatPolicy = FlatPolicy()


class OlderGymConfig(FlatGymConfig):
    """The configuration of a run from an even older version, which never rescaled actions."""

    gym: OlderGym = OlderGym()


def from_target(word: str) -> dict[str, Any] | None:
    """Return the options that select the environment `word`, or None if `word` does not look like one.

    An environment has the form 'Name-v0', 'namespace/Name-v0', 'module:Name', 'FILE.py' or 'FILE.py:Name'. The version
    of a registered environment may be omitted, which selects the newest one.
    """
    if _has_source(word) or re.fullmatch(r"(?:[\w-]+/)?[\w.-]+-v\d+", word):
        return {"gym": {"env_id": word}}
    import gymnasium

    from envs.gym.targets import newest_version

    env_id = word if word in gymnasium.registry else newest_version(word, gymnasium.registry)
    return {"gym": {"env_id": env_id}} if env_id else None


def _has_source(env_id: str) -> bool:
    return ":" in env_id or env_id.endswith(".py")


def named_code(config: GymConfig) -> str:
    """Return the modules and files that a replay imports, such as 'my_env.py:Env', or "" if there are none."""
    names = [config.gym.env_id, *(text.partition("(")[0] for text in config.gym.for_training.wrappers)]
    return ", ".join(name for name in names if _has_source(name) and not name.startswith(OWN_CODE))


def resolve(env_id: str) -> Any:
    """Return the specification of an environment.

    A module or Python file in `env_id` is imported first. Raises UsageError if the import fails or if the environment
    does not exist. The error message suggests a similar one.
    """
    import gymnasium

    if _has_source(env_id):
        from envs.gym.targets import resolve_source_target

        with hidden_arguments():
            return resolve_source_target(env_id)
    try:
        return gymnasium.spec(env_id)
    except gymnasium.error.Error:
        from envs.gym.targets import explain_unknown

        with hidden_arguments():
            raise UsageError(explain_unknown(env_id)) from None


def make_single(config: Gym, rank: int | None = None, **kwargs: Any) -> Any:
    """Create one environment with its wrappers. Raises UsageError if this fails.

    `rank` is the environment's number, which replaces {rank} in `gym.env_kwargs`. The default is `spare_rank`.
    """
    import gymnasium

    spec, wrappers = resolve(config.env_id), _load_wrappers(config)
    own_kwargs = fill_rank(config.env_kwargs, config.spare_rank if rank is None else rank)
    try:
        with hidden_arguments():
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
    if not wrappers:
        return env
    from envs.gym.wrappers import apply_wrappers

    with close_after_error(env), hidden_arguments():
        return apply_wrappers(env, wrappers, config.env_id)


def _load_wrappers(config: Gym) -> list[Any]:
    """Load the wrappers, and import the module that does this only if there are any."""
    if not config.wrappers:
        return []
    from envs.gym.wrappers import load_wrappers

    with hidden_arguments():
        return load_wrappers(config.wrappers)


def _remedy(message: str) -> str:
    """Return the pip command that installs the missing package, or `message` if no extra of ppo-unified includes it.

    `message` is Gymnasium's error message, which may name the Gymnasium extra that includes the package.
    """
    extra = re.search(r"gymnasium\[([\w-]+)\]", message)
    return f"pip install 'ppo-unified[{extra[1]}]'" if extra and extra[1] in ("box2d", "mujoco", "atari") else message
