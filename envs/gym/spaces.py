"""Converts observations and actions between Gymnasium's format and the arrays that the networks use.

It also checks the results of an environment's first calls.

This module does not import torch.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite, prod
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces

from envs.gym.errors import DescribedError
from envs.gym.images import is_image
from ppo_unified.errors import ForeignCodeError, UsageError

MASK_KEY = "action_mask"  # key of the action mask in a Dict observation or in a step's info
MAX_SIZE = 20_000  # maximum number of values in an observation for an MLP; raw images are larger
INFINITE = float(np.finfo(np.float32).max)  # some environments use this number as the bound of an unbounded component
LARGEST_EXACT = 2**24  # float32 represents all integers up to this magnitude
SUPPORTED = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)


class Part(NamedTuple):
    """A part of an observation that is not itself a Dict or Tuple."""

    keys: tuple[Any, ...]  # where it is in nested Dicts and Tuples; () = it is the whole observation
    space: spaces.Space[Any]
    is_image: bool = False

    @property
    def place(self) -> str:
        return "".join(f"[{key!r}]" for key in self.keys)

    @property
    def name(self) -> str:
        """The name in `policy.encoders`, such as 'pose.1'. It does not depend on the encoder."""
        return ".".join(map(str, self.keys)) or ("image" if self.can_be_image else "obs")

    @property
    def can_be_image(self) -> bool:
        """True for a Box of uint8 with two to four dimensions."""
        shape = self.space.shape or ()
        return isinstance(self.space, spaces.Box) and self.space.dtype == np.uint8 and 2 <= len(shape) <= 4

    @property
    def entry(self) -> str:
        """The key of an image in the observations that the networks receive."""
        return f"image.{self.name}" if self.keys else "image"


@dataclass(frozen=True)
class ObservationLayout:
    """Describes how to convert an observation to a vector of `size` floats."""

    size: int
    dtype: str = "float32"  # of the vector before normalization; the networks always receive float32
    one_hot: bool = False  # True for Discrete spaces: encode as one-hot
    start: int = 0  # smallest value of a Discrete space
    flatten: bool = False  # True if Gymnasium's FlattenObservation is needed
    has_mask: bool = False  # True for a Dict space that contains an action mask
    structure: str = ""  # equal if a policy for one space can act in the other, such as '4 numbers'
    parts: tuple[Part, ...] = ()
    images: tuple[Part, ...] = ()  # if there are any, the vector consists of bytes: see envs.gym.observations
    packed: tuple[int, str] = (0, "float32")  # the number and dtype of the values beside the images

    @property
    def numbers(self) -> int:
        """The number of values in the parts that are not images."""
        return self.packed[0] if self.images else self.size

    @property
    def numbers_dtype(self) -> str:
        return self.packed[1] if self.images else self.dtype


class PackedSpace(spaces.Box):
    """The space of observations that `envs.gym.observations.ImagePacker` has packed."""

    def __init__(self, layout: ObservationLayout) -> None:
        super().__init__(0, 255, (layout.size,), np.uint8)
        self.layout = layout


@dataclass(frozen=True)
class ActionLayout:
    """Describes an environment's actions, which are discrete (`sizes`, `start`) or continuous (`low`, `high`)."""

    continuous: bool
    sizes: tuple[int, ...] = ()  # number of possible actions per component; a Discrete space has one component
    start: tuple[int, ...] = ()  # the environment's number for the first action of each component
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    scale: tuple[float, ...] = ()  # environment's action = scale * policy's action + offset; empty: they are the same
    offset: tuple[float, ...] = ()
    shape: tuple[int, ...] = ()
    dtype: str = "int64"

    @property
    def structure(self) -> str:
        """A description that is equal if a policy for one space can act in the other, such as '3 choices'."""
        return f"{len(self.low)} numbers" if self.continuous else _describe_choices(self.sizes)

    @property
    def can_rescale(self) -> bool:
        """True if at least one component has two finite bounds."""
        return bool(_is_bounded(np.array(self.low), np.array(self.high)).any())


def describe_observations(
    space: spaces.Space[Any], env_id: str, normalize: bool, encoders: Mapping[str, str] = MappingProxyType({})
) -> ObservationLayout:
    """Return the layout of an observation space. Raises UsageError if the space is unsupported or too large.

    If `normalize` is true, observations that float32 would round are float64 until they are normalized. Otherwise, a
    large mean would hide their variation. `encoders` is `Gym.encoders`.
    """
    if isinstance(space, PackedSpace):
        return space.layout
    has_mask = isinstance(space, spaces.Dict) and MASK_KEY in space.spaces
    parts = tuple(_find_parts(without_mask(space) if has_mask else space, encoders))
    for part in parts:
        if not isinstance(part.space, SUPPORTED):
            raise UsageError(
                f"{env_id}: expected a Box, Discrete, MultiDiscrete or MultiBinary observation space, or a Dict or "
                f"Tuple of these, got {part.space}{part.place and f' at {part.place}'}; add a wrapper (gym.wrappers) "
                "that converts it"
            )
    dtype = "float64" if normalize and any(_exceeds_float32(part.space) for part in parts) else "float32"
    structure = ", ".join(f"{_describe_part(part)}{part.place and f' at {part.place}'}" for part in parts)
    numbers = sum(int(spaces.flatdim(part.space)) for part in parts if not part.is_image)
    if isinstance(space, spaces.Discrete):
        layout = ObservationLayout(int(space.n), one_hot=True, start=int(space.start))
    else:
        layout = ObservationLayout(numbers, dtype, flatten=not isinstance(space, spaces.Box), has_mask=has_mask)
    images = tuple(part for part in parts if part.is_image)
    if not (images or numbers) or numbers > MAX_SIZE:
        raise UsageError(
            f"{env_id}: expected an observation of 1 to {MAX_SIZE} numbers, got {numbers} from {space}; add a "
            "wrapper (gym.wrappers) that reduces the size, such as ResizeObservation"
        )
    layout = replace(layout, structure=structure, parts=parts, images=images)
    if not images:
        return layout
    size = numbers * np.dtype(dtype).itemsize + sum(prod(part.space.shape or ()) for part in images)
    size += -size % 8 if layout.flatten else 0  # whole float64 numbers, so that each row is aligned
    return replace(layout, size=size, dtype="uint8", packed=(numbers, dtype))


def _find_parts(space: spaces.Space[Any], encoders: Mapping[str, str], keys: tuple[Any, ...] = ()) -> Iterator[Part]:
    """Yield the parts of nested Dict and Tuple spaces, in the order in which Gymnasium flattens them."""
    part = Part(keys, space)
    if isinstance(space, (spaces.Dict, spaces.Tuple)):
        inner = space.spaces.items() if isinstance(space, spaces.Dict) else enumerate(space.spaces)
        for key, inner_space in inner:
            yield from _find_parts(inner_space, encoders, (*keys, key))
    else:
        yield part._replace(is_image=part.can_be_image and is_image(part.name, space.shape or (), encoders))


def _describe_part(part: Part) -> str:
    """Describe what the network receives: an image, one number per component, or a one-hot vector per choice."""
    space = part.space
    if part.is_image:
        return f"{' x '.join(map(str, space.shape or ()))} pixels"
    if isinstance(space, spaces.Discrete):
        return _describe_choices([int(space.n)])
    if isinstance(space, spaces.MultiDiscrete):
        return _describe_choices(np.ravel(space.nvec).tolist())
    return f"{spaces.flatdim(space)} numbers"


def _describe_choices(sizes: Sequence[int]) -> str:
    """Describe components with a number of choices each: '5 choices', '3 x 2 choices' or '(2, 3) choices'."""
    if len(set(sizes)) == 1:
        return f"{len(sizes)} x {sizes[0]} choices" if len(sizes) > 1 else f"{sizes[0]} choices"
    return f"({', '.join(map(str, sizes))}) choices"


def _exceeds_float32(space: spaces.Space[Any]) -> bool:
    """Return True if float32 cannot represent all values of a space exactly."""
    if not isinstance(space, spaces.Box):
        return False
    if np.issubdtype(space.dtype, np.floating):
        return space.dtype.itemsize > 4
    return bool(np.abs([space.low, space.high], dtype=np.float64).max(initial=0) > LARGEST_EXACT)


def without_mask(space: Any) -> spaces.Dict:
    return spaces.Dict({key: inner for key, inner in space.spaces.items() if key != MASK_KEY})


def describe_actions(space: spaces.Space[Any], env_id: str, rescale: bool) -> ActionLayout:
    """Return the layout of an action space. Raises UsageError if the space is unsupported.

    If `rescale` is true, the layout maps [-1, 1] to the bounds of each component that has two finite bounds.
    """
    if isinstance(space, spaces.Discrete):
        return ActionLayout(False, (int(space.n),), (int(space.start),), dtype=space.dtype.name)
    if isinstance(space, spaces.MultiDiscrete):
        start = tuple(int(x) for x in np.ravel(space.start))
        return ActionLayout(
            False, tuple(int(n) for n in np.ravel(space.nvec)), start, shape=space.shape, dtype=space.dtype.name
        )
    if isinstance(space, spaces.MultiBinary):
        size = int(np.prod(space.shape))
        return ActionLayout(False, (2,) * size, (0,) * size, shape=space.shape, dtype=space.dtype.name)
    if isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating):
        low, high = (np.ravel(bound).astype(np.float64) for bound in (space.low, space.high))
        layout = ActionLayout(
            True, low=tuple(low.tolist()), high=tuple(high.tolist()), shape=space.shape, dtype=space.dtype.name
        )
        bounded = _is_bounded(low, high)
        if not rescale or not bounded.any():
            return layout
        low, high = np.where(bounded, low, -1.0), np.where(bounded, high, 1.0)
        return replace(layout, scale=tuple((high / 2 - low / 2).tolist()), offset=tuple((high / 2 + low / 2).tolist()))
    raise UsageError(
        f"{env_id}: expected a Discrete, MultiDiscrete, MultiBinary or floating-point Box action space, got {space}; "
        "add a wrapper (gym.wrappers) that converts it"
    )


def _is_bounded(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    bounded: np.ndarray = (np.abs(low) < INFINITE) & (np.abs(high) < INFINITE)
    return bounded


def to_env_units(actions: np.ndarray, layout: ActionLayout) -> np.ndarray:
    """Convert policy actions [..., components] to the environment's numbers, without clipping."""
    if not layout.continuous:
        numbered: np.ndarray = actions + np.asarray(layout.start) if any(layout.start) else actions
        return numbered
    return actions * np.asarray(layout.scale) + np.asarray(layout.offset) if layout.scale else actions


def to_env_actions(actions: np.ndarray, layout: ActionLayout) -> np.ndarray:
    """Convert policy actions [N, components] to environment actions [N, *shape].

    Continuous actions are clipped to the bounds of the action space.
    """
    actions = to_env_units(actions, layout)
    if layout.continuous:
        actions = np.clip(actions, layout.low, layout.high)
    return actions.reshape(len(actions), *layout.shape).astype(layout.dtype)


def _name_environment(number: int, env_id: str) -> str:
    return f"{env_id}: environment {number}" if env_id else f"environment {number}"


def measure_actions(actions: np.ndarray, layout: ActionLayout) -> dict[str, float]:
    """Return the metrics of continuous policy actions [steps, components]."""
    low, high, chosen = np.array(layout.low), np.array(layout.high), to_env_units(actions, layout)
    metrics = {"policy/action_clip_fraction": float(((chosen < low) | (chosen > high)).mean())}
    variable = _is_bounded(low, high) & (low < high)
    if variable.any():
        deviation = np.clip(chosen, low, high).std(0, dtype=np.float64)
        metrics["policy/action_spread"] = float((deviation[variable] / (high - low)[variable]).min())
    return metrics


def encode(raw: np.ndarray, layout: ObservationLayout, env_id: str = "") -> np.ndarray:
    """Convert observations [N, ...] to vectors [N, size] of the layout's dtype.

    Raises ForeignCodeError, with `env_id` in the message, if a discrete observation is outside its range.
    """
    if layout.one_hot:
        one_hot, chosen = np.zeros((len(raw), layout.size), dtype=np.float32), np.asarray(raw) - layout.start
        if chosen.min() < 0 or chosen.max() >= layout.size:  # NumPy would accept a negative index
            first = int(np.flatnonzero((chosen < 0) | (chosen >= layout.size))[0])
            where = _name_environment(first, env_id)
            raise ForeignCodeError(
                f"{where}: expected observations from {layout.start} to {layout.start + layout.size - 1}, got "
                f"{raw[first]}; correct the environment's observation or observation_space"
            )
        one_hot[np.arange(len(raw)), chosen] = 1
        return one_hot
    return np.array(raw, dtype=layout.dtype).reshape(len(raw), -1)  # a copy, because an environment may reuse the array


def check_reset(found: Any, space: Any) -> tuple[Any, dict[str, Any]]:
    """Return the result of `reset`. Raises DescribedError if it is not a tuple (observation, info) with valid parts."""
    if not isinstance(found, tuple) or len(found) != 2 or not isinstance(found[1], dict):
        raise DescribedError(f"expected (observation, info), got {_describe_result(found)}; return the info as a dict")
    check_observation(found[0], space)
    return found


def check_step(found: Any, space: Any, shape: tuple[int, ...] = ()) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
    """Return the result of `step`. Raises DescribedError if it violates the Gymnasium API.

    `shape` is the shape of the rewards and episode ends: () for one environment, [N] for a vector environment.
    """
    if not isinstance(found, tuple) or len(found) != 5 or not isinstance(found[4], dict):
        raise DescribedError(
            f"expected (observation, reward, terminated, truncated, info), got {_describe_result(found)}; "
            "replace done by terminated and truncated, and return the info as a dict"
        )
    for name, value in zip(("reward", "terminated", "truncated"), found[1:4], strict=True):
        if not shape and (isinstance(value, bool) or (isinstance(value, float) and isfinite(value))):
            continue  # for speed
        array = np.asarray(value)
        if array.dtype.kind not in "biuf" or not (array.shape == shape or (not shape and array.size == 1)):
            wanted = f"an array of {shape[0]} numbers" if shape else "one number"
            fix = "; add a wrapper (gym.wrappers) that combines the rewards" if name == "reward" and array.ndim else ""
            raise DescribedError(f"{name}: expected {wanted}, got {_describe_value(value)}{fix}")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise DescribedError(f"{name}: expected finite numbers, got {array[~np.isfinite(array)].flat[0]}")
    check_observation(found[0], space)
    return found


def _describe_result(found: Any) -> str:
    return f"({', '.join(type(x).__name__ for x in found)})" if isinstance(found, tuple) else type(found).__name__


def _describe_value(value: Any) -> str:
    array = np.asarray(value)
    return f"{type(value).__name__} of shape {list(array.shape)} and type {array.dtype}"


def check_reset_arguments(reset: Any) -> None:
    """Raise DescribedError if the function `reset` has no parameter `seed` or `options`."""
    parameters = inspect.signature(reset).parameters
    accepts_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    missing = [] if accepts_all else [name for name in ("seed", "options") if name not in parameters]
    if missing:
        raise DescribedError(
            f"expected the parameters seed and options, got no {' and no '.join(missing)}; declare "
            "reset(self, *, seed=None, options=None)"
        )


def check_masks(masks: np.ndarray | None, first: np.ndarray | None) -> None:
    """Raise DescribedError if `step` returned masks but `reset` did not. `first` contains the masks of `reset`."""
    if masks is not None and first is None:
        raise DescribedError("returned an action mask, but reset() did not; return it from both")


def check_observation(obs: Any, space: Any, name: str = "observation", nested: bool = False) -> None:
    """Raise DescribedError if `obs` is not finite, or does not match the shape, type or discrete range of `space`.

    The bounds of a Box are not checked, because many environments exceed them slightly. The type must be one that
    NumPy converts without an explicit cast, as for vector environments. In the parts of a Dict or Tuple (`nested`),
    any integer type is accepted in place of another one, because the parts are flattened first.
    """
    if isinstance(space, spaces.Discrete) and isinstance(obs, (int, np.integer)) and 0 <= obs - space.start < space.n:
        return  # for speed
    if isinstance(space, spaces.Dict | spaces.Tuple):
        parts: dict[Any, Any] = dict(space.items() if isinstance(space, spaces.Dict) else enumerate(space))
        kinds = Mapping if isinstance(space, spaces.Dict) else (tuple, list)
        if not isinstance(obs, kinds):
            raise DescribedError(f"{name}: expected a {type(space).__name__.lower()}, got {_describe_value(obs)}")
        given = obs if isinstance(obs, Mapping) else range(len(obs))
        if missing := [key for key in parts if key not in given]:
            raise DescribedError(f"{name}: missing {missing[0]!r}, which the observation space contains; return it")
        for key, part in parts.items():
            if key != MASK_KEY:
                check_observation(obs[key], part, f"{name}[{key!r}]", nested=True)
        return
    if space.shape is None or space.dtype is None:
        return
    array, fix = np.asarray(obs), "correct the environment's observation or observation_space"
    integers = nested and array.dtype.kind in "iu" and space.dtype.kind in "iu"
    castable = integers or array.dtype == space.dtype or np.can_cast(array.dtype, space.dtype, "same_kind")
    if array.shape != space.shape or not castable:
        wanted = f"shape {list(space.shape)} and type {space.dtype} as in the observation space"
        raise DescribedError(f"{name}: expected {wanted}, got {_describe_value(obs)}; {fix}")
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
        low, high = space.start, space.start + (space.n if isinstance(space, spaces.Discrete) else space.nvec) - 1
        wrong = (array < low) | (array > high)
        if wrong.any():
            value, least, most = (np.broadcast_to(x, array.shape)[wrong][0] for x in (array, low, high))
            raise DescribedError(f"{name}: expected integers from {least} to {most}, got {value}; {fix}")
    elif array.dtype.kind == "f" and not np.isfinite(array).all():
        value = array[~np.isfinite(array)].flat[0]
        raise DescribedError(f"{name}: expected finite numbers, got {value}; correct the environment's observation")


def read_masks(
    info: dict[str, Any], count: int, layout: ActionLayout, ended: np.ndarray | None = None, env_id: str = ""
) -> np.ndarray | None:
    """Return the action masks [N, sum of sizes] (bool, True = allowed) from a vector environment's info.

    Return None if there are no masks or the actions are continuous. The mask of an environment is a single array, or a
    sequence with one array per action component. All actions are allowed in environments that return no mask at this
    step, and in environments whose episode has ended (`ended` [N]). Raises ForeignCodeError, with `env_id` in the
    message, if a mask has the wrong length or allows no action.
    """
    if MASK_KEY not in info or layout.continuous:
        return None
    masks = np.ones((count, sum(layout.sizes)), dtype=bool)
    reported = np.asarray(info.get(f"_{MASK_KEY}", np.ones(count, dtype=bool)))
    for i in np.flatnonzero(reported if ended is None else reported & ~ended):
        mask = info[MASK_KEY][i]
        flat = np.hstack([[], *map(np.ravel, mask)]) if isinstance(mask, (tuple, list)) else np.ravel(mask)
        if flat.shape != masks[i].shape or flat.dtype.kind not in "biuf":
            where = _name_environment(int(i), env_id)
            found = len(flat) if flat.dtype.kind in "biuf" else repr(mask)
            raise ForeignCodeError(f"{where}: expected an action mask of length {len(masks[i])}, got {found}")
        masks[i] = flat.astype(bool)
    allowed = np.logical_or.reduceat(masks, np.cumsum((0, *layout.sizes[:-1])), axis=1)
    if not allowed.all():
        first = int(np.flatnonzero(~allowed.all(1))[0])
        where = _name_environment(first, env_id)
        raise ForeignCodeError(f"{where}: the action mask allows no action; set at least one element to 1")
    return masks


def join_infos(infos: list[dict[str, Any]]) -> dict[str, Any]:
    """Combine the action masks of several environments into one info in a vector environment's format, for
    `read_masks`."""
    if not any(MASK_KEY in info for info in infos):
        return {}
    return {MASK_KEY: [info.get(MASK_KEY) for info in infos], f"_{MASK_KEY}": [MASK_KEY in info for info in infos]}


def to_step_argument(action: np.ndarray, layout: ActionLayout) -> Any:
    """Convert one environment action to the argument that `step` expects: an integer if the space is Discrete."""
    return action if layout.shape or layout.continuous else action.item()


def read_reward(reward: Any) -> float:
    """Return a reward as a float. The reward may be a number or an array of one number. Otherwise raises ValueError."""
    if isinstance(reward, (float, int)):
        return float(reward)
    return float(np.asarray(reward, dtype=np.float64).item())


def sample_action(masks: np.ndarray | None, layout: ActionLayout, generator: np.random.Generator) -> Any:
    """Return a random allowed action for one environment. The argument `masks` is [1, sum of sizes] or None.

    Discrete actions are drawn uniformly, and continuous actions from a standard normal distribution.
    """
    if layout.continuous:
        chosen = generator.normal(size=(1, len(layout.low)))
    else:
        options = np.ones(sum(layout.sizes), dtype=bool) if masks is None else masks[0]
        parts = np.split(options, np.cumsum(layout.sizes)[:-1])
        chosen = np.array([[generator.choice(np.flatnonzero(part)) for part in parts]])
    return to_step_argument(to_env_actions(chosen, layout)[0], layout)
