"""Converts observations and actions between Gymnasium's format and the arrays that the networks use.

This module does not import torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces

from ppo_unified.errors import UsageError

MASK_KEY = "action_mask"  # key of the action mask in a Dict observation or in a step's info
MAX_SIZE = 20_000  # maximum number of values in an observation for an MLP; raw images are larger


@dataclass(frozen=True)
class ObservationLayout:
    """Describes how to convert an observation to a vector of `size` floats."""

    size: int
    one_hot: bool = False  # True for Discrete spaces: encode as one-hot
    start: int = 0  # smallest value of a Discrete space
    flatten: bool = False  # True if Gymnasium's FlattenObservation is needed
    has_mask: bool = False  # True for a Dict space that contains an action mask


@dataclass(frozen=True)
class ActionLayout:
    """Describes an environment's actions, which are discrete (`sizes`, `start`) or continuous (`low`, `high`)."""

    continuous: bool
    sizes: tuple[int, ...] = ()  # number of possible actions per component; a Discrete space has one component
    start: tuple[int, ...] = ()  # the environment's number for the first action of each component
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    shape: tuple[int, ...] = ()
    dtype: str = "int64"


def describe_observations(space: spaces.Space[Any], env_id: str) -> ObservationLayout:
    """Return the layout of an observation space. Raises UsageError if the space is unsupported or too large."""
    if isinstance(space, spaces.Discrete):
        layout = ObservationLayout(int(space.n), one_hot=True, start=int(space.start))
    elif isinstance(space, spaces.Box):
        layout = ObservationLayout(int(np.prod(space.shape)))
    elif isinstance(space, (spaces.MultiDiscrete, spaces.MultiBinary)) or _is_flat_dict(space):
        has_mask = isinstance(space, spaces.Dict) and MASK_KEY in space.spaces
        rest = without_mask(space) if has_mask else space
        layout = ObservationLayout(int(spaces.flatdim(rest)), flatten=True, has_mask=has_mask)
    else:
        raise UsageError(
            f"{env_id}: expected a Box, Discrete, MultiDiscrete or MultiBinary observation space or a Dict of these, "
            f"got {space}; add a wrapper (gym.wrappers) that converts it"
        )
    if not 0 < layout.size <= MAX_SIZE:
        raise UsageError(
            f"{env_id}: expected an observation of 1 to {MAX_SIZE} numbers, got {layout.size} from {space}; add a "
            "wrapper (gym.wrappers) that reduces the size, such as ResizeObservation"
        )
    return layout


def _is_flat_dict(space: spaces.Space[Any]) -> bool:
    simple = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)
    return isinstance(space, spaces.Dict) and all(isinstance(inner, simple) for inner in space.spaces.values())


def without_mask(space: Any) -> spaces.Dict:
    return spaces.Dict({key: inner for key, inner in space.spaces.items() if key != MASK_KEY})


def describe_actions(space: spaces.Space[Any], env_id: str) -> ActionLayout:
    """Return the layout of an action space. Raises UsageError if the space is unsupported."""
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
        low, high = (tuple(float(x) for x in np.ravel(bound)) for bound in (space.low, space.high))
        return ActionLayout(True, low=low, high=high, shape=space.shape, dtype=space.dtype.name)
    raise UsageError(
        f"{env_id}: expected a Discrete, MultiDiscrete, MultiBinary or floating-point Box action space, got {space}; "
        "add a wrapper (gym.wrappers) that converts it"
    )


def to_env_actions(actions: np.ndarray, layout: ActionLayout) -> np.ndarray:
    """Convert policy actions [N, components] to environment actions [N, *shape].

    Continuous actions are clipped to the bounds of the action space.
    """
    actions = np.clip(actions, layout.low, layout.high) if layout.continuous else actions + np.asarray(layout.start)
    return actions.reshape(len(actions), *layout.shape).astype(layout.dtype)


def encode(raw: np.ndarray, layout: ObservationLayout) -> np.ndarray:
    """Convert observations [N, ...] to float32 vectors [N, size]."""
    if layout.one_hot:
        one_hot = np.zeros((len(raw), layout.size), dtype=np.float32)
        one_hot[np.arange(len(raw)), np.asarray(raw) - layout.start] = 1
        return one_hot
    return np.array(raw, dtype=np.float32).reshape(len(raw), -1)  # a copy, because an environment may reuse the array


def read_masks(
    info: dict[str, Any], count: int, layout: ActionLayout, ended: np.ndarray | None = None, env_id: str = ""
) -> np.ndarray | None:
    """Return the action masks [N, sum of sizes] (bool, True = allowed) from a vector environment's info.

    Return None if there are no masks or the actions are continuous. The mask of an environment is a single array, or a
    sequence with one array per action component. All actions are allowed in environments that return no mask at this
    step, and in environments whose episode has ended (`ended` [N]). Raises ValueError, with `env_id` in the message, if
    a mask has the wrong length or allows no action.
    """
    if MASK_KEY not in info or layout.continuous:
        return None
    masks = np.ones((count, sum(layout.sizes)), dtype=bool)
    reported = np.asarray(info.get(f"_{MASK_KEY}", np.ones(count, dtype=bool)))
    for i in np.flatnonzero(reported if ended is None else reported & ~ended):
        mask = info[MASK_KEY][i]
        flat = np.concatenate([np.ravel(part) for part in mask]) if isinstance(mask, (tuple, list)) else np.ravel(mask)
        if flat.shape != masks[i].shape:
            where = f"{env_id}: environment {i}" if env_id else f"environment {i}"
            raise ValueError(f"{where}: expected an action mask of length {len(masks[i])}, got {len(flat)}")
        masks[i] = flat.astype(bool)
    allowed = np.logical_or.reduceat(masks, np.cumsum((0, *layout.sizes[:-1])), axis=1)
    if not allowed.all():
        first = int(np.flatnonzero(~allowed.all(1))[0])
        where = f"{env_id}: environment {first}" if env_id else f"environment {first}"
        raise ValueError(f"{where}: the action mask allows no action; set at least one element to 1")
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
