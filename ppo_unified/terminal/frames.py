"""Shows pictures of an environment as terminal text or saves them as a GIF. This module does not import torch.

In a terminal, a picture consists of coloured half blocks, or of ASCII characters if the terminal does not support
colour and Unicode.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
from PIL import Image

from ppo_unified.text import clean

Style: TypeAlias = Literal["truecolor", "256", "ascii"]  # colours of a picture as text

UPPER_HALF = "▀"  # a cell shows two square pixels: the upper one as foreground, the lower one as background
RAMP = " .:-=+*#%@"  # characters by density, from background to maximum contrast
CUBE = np.array([0, 95, 135, 175, 215, 255])  # levels of the 6 x 6 x 6 colour cube, colour indices 16 to 231
GREYS = 8 + 10 * np.arange(24)  # levels of the greys, colour indices 232 to 255
LUMINANCE = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601

GIF_FRAMES = 500
GIF_SHORTEST_S = 0.02  # browsers show frames with a shorter duration for 0.1 s
GIF_PAUSE_MS = 1000  # duration of the last frame, before the GIF repeats
GIF_SIDE = 480  # pixels
GIF_COLOURS = 64


def draw(picture: np.ndarray | str, columns: int, lines: int, style: Style) -> list[str]:
    """Draw a picture as text, centred and as large as its aspect ratio allows in `lines` rows of `columns` cells.

    If the picture is already text, it is cut to that size. Colours are SGR sequences, which are reset at the end of
    each row.
    """
    columns, lines = max(1, columns), max(1, lines)
    if isinstance(picture, str):
        # the dot protects the indentation from `clean`
        return [clean("." + row)[1 : columns + 1] for row in picture.strip("\r\n").splitlines()[:lines]]
    pixels = fit(picture, columns, lines, blocks=style != "ascii")
    margin = " " * ((columns - pixels.shape[1]) // 2)
    if style == "ascii":
        return [margin + row for row in to_characters(pixels)]
    codes = _truecolor_codes(pixels) if style == "truecolor" else _palette_codes(pixels)
    return [margin + _half_blocks(codes[2 * row], codes[2 * row + 1]) for row in range(len(codes) // 2)]


def fit(picture: np.ndarray, columns: int, lines: int, blocks: bool) -> np.ndarray:
    """Resize a picture so that it is as large as its aspect ratio allows in `lines` rows of `columns` cells.

    Both are at least 1. A cell shows two pixels, one above the other, if `blocks` is true, and one pixel otherwise.
    """
    columns, lines = max(1, columns), max(1, lines)  # a widget without a layout has no size
    height, width = picture.shape[:2]
    scale = min(columns / width, 2 * lines / height)  # a cell is about twice as high as wide
    cells = min(columns, max(1, round(width * scale))), min(lines, max(1, round(height * scale / 2)))
    return resize(picture, cells[0], 2 * cells[1] if blocks else cells[1])


def resize(picture: np.ndarray, width: int, height: int) -> np.ndarray:
    """Resize a picture to [height, width, 3] uint8. Each pixel is the mean of the area that it covers."""
    return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BOX))


def _truecolor_codes(pixels: np.ndarray) -> list[list[str]]:
    return [[f"2;{r};{g};{b}" for r, g, b in row] for row in pixels.tolist()]


def _palette_codes(pixels: np.ndarray) -> list[list[str]]:
    """Return the codes of the nearest fixed colours of a 256-colour terminal, from the colour cube or the greys."""
    x = pixels.astype(np.int64)
    level = np.abs(x[..., None] - CUBE).argmin(-1)
    grey = np.abs(x.mean(-1)[..., None] - GREYS).argmin(-1)
    cube_error = np.square(x - CUBE[level]).sum(-1)
    grey_error = np.square(x - GREYS[grey][..., None]).sum(-1)
    index = np.where(grey_error < cube_error, 232 + grey, 16 + level @ np.array([36, 6, 1]))
    return [[f"5;{i}" for i in row] for row in index.tolist()]


def _half_blocks(upper: list[str], lower: list[str]) -> str:
    """Format one row of cells.

    A colour is set only when it changes, to send fewer bytes. A cell of one colour is a space, because in some fonts
    the half block is not exactly half a cell and would leave a seam.
    """
    parts, foreground, background = [], "", ""
    for top, bottom in zip(upper, lower, strict=True):
        changes = []
        if top != bottom and top != foreground:
            foreground = top
            changes.append(f"38;{top}")
        if bottom != background:
            background = bottom
            changes.append(f"48;{bottom}")
        if changes:
            parts.append(f"\x1b[{';'.join(changes)}m")
        parts.append(" " if top == bottom else UPPER_HALF)
    return "".join(parts) + "\x1b[0m"


def to_characters(pixels: np.ndarray) -> list[str]:
    """Map luminance to characters by density. Bright pictures are inverted, so that the background stays blank."""
    luminance = pixels @ LUMINANCE / 255
    ink = 1 - luminance if np.median(luminance) > 0.5 else luminance
    indices = np.rint(ink * (len(RAMP) - 1)).astype(int)
    return ["".join(RAMP[i] for i in row).rstrip() for row in indices.tolist()]


def write_gif(path: Path, pictures: Iterable[tuple[np.ndarray | str, float]]) -> int:
    """Write pictures with their durations in seconds as an animated GIF, and return the number of its frames.

    Of a long episode, at most GIF_FRAMES evenly spaced pictures are kept, including the first and the last one.
    """
    kept: list[Image.Image] = []
    stride = 1
    for number, (picture, seconds) in enumerate(pictures):
        if number == 0:
            stride = max(1, math.ceil(GIF_SHORTEST_S / seconds))
        if number % stride == 0:
            kept.append(_gif_image(picture))
        if len(kept) == GIF_FRAMES:
            kept, stride = kept[::2], 2 * stride
    if number % stride:
        kept.append(_gif_image(picture))
    durations = [round(1000 * seconds * stride)] * (len(kept) - 1) + [GIF_PAUSE_MS]
    kept[0].save(path, format="GIF", save_all=True, append_images=kept[1:], duration=durations, loop=0)
    return len(kept)


def _gif_image(picture: np.ndarray | str) -> Image.Image:
    """Convert a picture to a GIF frame with its own palette, at most GIF_SIDE pixels wide and high."""
    image = Image.fromarray(np.asarray(picture))
    image.thumbnail((GIF_SIDE, GIF_SIDE), Image.Resampling.BOX)
    return image.quantize(GIF_COLOURS, dither=Image.Dither.NONE)
