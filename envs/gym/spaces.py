"""Gymnasium spaces as the numbers that a network reads and writes. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces

from ppo_unified.errors import UsageError

MASK_KEY = "action_mask"  # in a Dict observation or in the step's info
LARGEST = 20_000  # numbers an MLP takes in; a raw image has more


@dataclass(frozen=True)
class ObservationLayout:
    """How an observation becomes a flat float vector of `size` numbers."""

    size: int
    one_hot: bool = False  # Discrete: one-hot of `size`, counted from `start`
    start: int = 0
    flatten: bool = False  # through Gymnasium's FlattenObservation
    has_mask: bool = False  # a Dict with an action mask among its keys


@dataclass(frozen=True)
class ActionLayout:
    """Discrete choices (`sizes`, `start`) or a continuous vector (`low`, `high`), of the environment's own shape."""

    continuous: bool
    sizes: tuple[int, ...] = ()  # options of each component; one component is a plain Discrete
    start: tuple[int, ...] = ()  # the environment's number of each component's first option
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    shape: tuple[int, ...] = ()
    dtype: str = "int64"


def describe_observations(space: spaces.Space[Any], env_id: str) -> ObservationLayout:
    """Raises UsageError for a space that has no flat form of a sensible size."""
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
            f"{env_id}: observation space {space} is not supported; it must be Box, Discrete, MultiDiscrete, "
            "MultiBinary or a Dict of these. Wrap the environment (gym.wrappers) into one of them"
        )
    if not 0 < layout.size <= LARGEST:
        raise UsageError(
            f"{env_id}: observation space {space} flattens to {layout.size} numbers (1 to {LARGEST} are supported); "
            "add a wrapper that turns it into features, such as ResizeObservation (gym.wrappers)"
        )
    return layout


def _is_flat_dict(space: spaces.Space[Any]) -> bool:
    simple = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)
    return isinstance(space, spaces.Dict) and all(isinstance(inner, simple) for inner in space.spaces.values())


def without_mask(space: Any) -> spaces.Dict:
    return spaces.Dict({key: inner for key, inner in space.spaces.items() if key != MASK_KEY})


def describe_actions(space: spaces.Space[Any], env_id: str) -> ActionLayout:
    """Raises UsageError for a space that no supported distribution covers."""
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
        f"{env_id}: action space {space} is not supported; it must be Discrete, MultiDiscrete, MultiBinary or a Box of "
        "floats. Wrap the environment (gym.wrappers) into one of them"
    )


def to_env_actions(actions: np.ndarray, layout: ActionLayout) -> np.ndarray:
    """Policy actions [N, components] as the environment wants them, [N, *shape]; continuous ones clipped to bounds."""
    actions = np.clip(actions, layout.low, layout.high) if layout.continuous else actions + np.asarray(layout.start)
    return actions.reshape(len(actions), *layout.shape).astype(layout.dtype)


def encode(raw: np.ndarray, layout: ObservationLayout) -> np.ndarray:
    """Observations [N, ...] as float32 vectors [N, size]."""
    if layout.one_hot:
        one_hot = np.zeros((len(raw), layout.size), dtype=np.float32)
        one_hot[np.arange(len(raw)), np.asarray(raw) - layout.start] = 1
        return one_hot
    return np.array(raw, dtype=np.float32).reshape(len(raw), -1)  # a copy: an environment may reuse the array


def read_masks(
    info: dict[str, Any], count: int, layout: ActionLayout, ended: np.ndarray | None = None
) -> np.ndarray | None:
    """Valid options [N, sum of sizes] (bool) from a vector environment's info, or None where it reports none.

    A mask is one array over all options, or one array per component. Environments that are silent this step, or whose
    episode has just `ended` [N], allow everything. Raises ValueError where a mask's length is wrong or allows nothing.
    """
    if MASK_KEY not in info or layout.continuous:
        return None
    masks = np.ones((count, sum(layout.sizes)), dtype=bool)
    reported = np.asarray(info.get(f"_{MASK_KEY}", np.ones(count, dtype=bool)))
    for i in np.flatnonzero(reported if ended is None else reported & ~ended):
        mask = info[MASK_KEY][i]
        flat = np.concatenate([np.ravel(part) for part in mask]) if isinstance(mask, (tuple, list)) else np.ravel(mask)
        if flat.shape != masks[i].shape:
            raise ValueError(f"environment {i}: action mask of length {len(flat)}, {len(masks[i])} options expected")
        masks[i] = flat.astype(bool)
    allowed = np.logical_or.reduceat(masks, np.cumsum((0, *layout.sizes[:-1])), axis=1)
    if not allowed.all():
        raise ValueError(f"environment {int(np.flatnonzero(~allowed.all(1))[0])}: its action mask allows no action")
    return masks


def join_infos(infos: list[dict[str, Any]]) -> dict[str, Any]:
    """Single infos as a vector environment would report them, as far as `read_masks` reads them."""
    if not any(MASK_KEY in info for info in infos):
        return {}
    return {MASK_KEY: [info.get(MASK_KEY) for info in infos], f"_{MASK_KEY}": [MASK_KEY in info for info in infos]}


def single_action(action: np.ndarray, layout: ActionLayout) -> Any:
    """One environment's row of actions as its `step` wants it: an integer where the space is Discrete."""
    return action if layout.shape or layout.continuous else action.item()


def random_action(masks: np.ndarray | None, layout: ActionLayout, generator: np.random.Generator) -> Any:
    """A valid action for one environment, whose masks are [1, sum of sizes] or None: uniform, or standard normal."""
    if layout.continuous:
        chosen = generator.normal(size=(1, len(layout.low)))
    else:
        options = np.ones(sum(layout.sizes), dtype=bool) if masks is None else masks[0]
        parts = np.split(options, np.cumsum(layout.sizes)[:-1])
        chosen = np.array([[generator.choice(np.flatnonzero(part)) for part in parts]])
    return single_action(to_env_actions(chosen, layout)[0], layout)
