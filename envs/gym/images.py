"""Decides which parts of an observation are images, and where their channels are. This module does not import torch."""

from __future__ import annotations

from collections.abc import Mapping

SMALLEST_IMAGE = 36  # pixels per side; smaller images are numbers unless policy.encoders names an encoder


def is_image(name: str, shape: tuple[int, ...], encoders: Mapping[str, str]) -> bool:
    """Return True if a part with `Part.can_be_image` is encoded as an image. `encoders` is `Gym.encoders`."""
    if name in encoders:
        return encoders[name] in ("nature", "resnet") or ":" in encoders[name]
    return encoders[""] != "flat" and is_large(shape)


def is_large(shape: tuple[int, ...]) -> bool:
    """Return True if `policy.image_encoder` applies to images of this shape."""
    return min(image_shape(shape)[1:]) >= SMALLEST_IMAGE


def image_shape(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Return (channels, height, width) of an image with two, three or four dimensions.

    The channel axis of three dimensions is the first or the last one, whichever is shorter. Four dimensions are a stack
    of images, which becomes one image with more channels.
    """
    stack, inner = (shape[0], shape[1:]) if len(shape) == 4 else (1, shape)
    if len(inner) == 2:
        return stack, inner[0], inner[1]
    channels, height, width = inner if inner[0] < inner[2] else (inner[2], inner[0], inner[1])
    return stack * channels, height, width
