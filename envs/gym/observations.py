"""Observations that contain images: how they are packed and unpacked, and the values of `policy.encoders`.

Gymnasium's vector environments and the records of episodes handle one array per environment. Therefore a nested
observation with images is packed into one array of bytes: first the numbers of all parts that are not images, as
Gymnasium flattens them, then the images. An observation that is a single image is not changed, because its array
already has this form. This module imports torch only to unpack tensors.
"""

from __future__ import annotations

import re
from math import prod
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from envs.gym.spaces import ObservationLayout, PackedSpace

ENCODERS = "nature, resnet, flat, 'mlp(64, 64)', 'embedding(16)', module:Class or FILE.py:Class"
_CALL = re.compile(r"(mlp|embedding)\(\s*(\d{1,5}(?:\s*,\s*\d{1,5})*)\s*\)")
Array = TypeVar("Array")  # a NumPy array or a tensor


class EncoderChoice(NamedTuple):
    """A value of `policy.encoders`."""

    kind: str  # nature, resnet, flat, mlp or embedding, or the name of the user's own class
    sizes: tuple[int, ...] = ()


def parse_encoder(part: str, text: str) -> EncoderChoice:
    """Parse a value of `policy.encoders`. Raises ValueError with a complete error message."""
    found = _CALL.fullmatch(text)
    sizes = tuple(int(size) for size in found[2].split(",")) if found else ()
    if found and min(sizes) > 0 and (found[1] == "mlp" or len(sizes) == 1):
        return EncoderChoice(found[1], sizes)
    source, _, name = text.rpartition(":")
    if text in ("nature", "resnet", "flat") or (source and name.isidentifier()):
        return EncoderChoice(text)
    raise ValueError(f"policy.encoders: {part}: expected {ENCODERS}, got {text!r}")


def resolve_encoder(part: str, text: str) -> EncoderChoice:
    """Parse a value of `policy.encoders`, and make the path of a file absolute, so that it can be compared."""
    choice = parse_encoder(part, text)
    source, _, name = choice.kind.rpartition(":")
    return choice._replace(kind=f"{Path(source).resolve()}:{name}") if source.endswith(".py") else choice


class ImagePacker(gym.ObservationWrapper[Any, Any, Any]):
    """Packs observations with images into one array of bytes, see `unpack`."""

    def __init__(self, env: gym.Env[Any, Any], layout: ObservationLayout) -> None:
        super().__init__(env)
        self.layout = layout
        self.observation_space = PackedSpace(layout)

    def observation(self, observation: Any) -> np.ndarray:
        numbers, images = [], []
        for part in self.layout.parts:
            found = observation
            for key in part.keys:
                found = found[key]
            if part.is_image:
                images.append(np.asarray(found, np.uint8).ravel())
            else:
                flat: Any = spaces.flatten(part.space, found)
                numbers.append(np.ravel(flat).astype(self.layout.numbers_dtype))
        packed = np.zeros(self.layout.size, np.uint8)
        whole = np.concatenate([*(x.view(np.uint8) for x in numbers), *images])
        packed[: len(whole)] = whole
        return packed


def unpack(packed: Array, layout: ObservationLayout) -> dict[str, Array]:
    """Return views of the parts of packed observations [.., size], an array or a tensor.

    The key "obs" contains the numbers [.., numbers], and the keys `Part.entry` the images [.., *shape]. If there are no
    numbers, "obs" is missing.
    """
    x: Any = packed
    library: Any = np
    if not isinstance(packed, np.ndarray):
        import torch

        library = torch
    end = layout.numbers * np.dtype(layout.numbers_dtype).itemsize
    parts = {"obs": x[..., :end].view(getattr(library, layout.numbers_dtype))} if end else {}
    for part in layout.images:
        shape = part.space.shape or ()
        start, end = end, end + prod(shape)
        parts[part.entry] = x[..., start:end].reshape(*x.shape[:-1], *shape)
    return parts
