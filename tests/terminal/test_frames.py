"""Tests of pictures as terminal text and as GIFs, and of the screen that shows them."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import termios
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageSequence

from ppo_unified.terminal.frames import (
    CUBE,
    GIF_FRAMES,
    GREYS,
    RAMP,
    UPPER_HALF,
    Style,
    draw,
    fit,
    resize,
    write_gif,
)
from ppo_unified.terminal.screen import Screen

SGR = re.compile(r"\x1b\[([\d;]*)m")
STYLES: tuple[Style, ...] = ("truecolor", "256", "ascii")


def random_picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


def cells(row: str) -> list[tuple[str, str, str]]:
    """Return (character, foreground, background) for every cell in a row with SGR sequences."""
    found, foreground, background, at = [], "", "", 0
    while at < len(row):
        if match := SGR.match(row, at):
            at = match.end()
            if match[1] == "0":
                foreground = background = ""
            for colour in re.findall(r"[34]8;(?:5;\d+|2;\d+;\d+;\d+)", match[1]):
                foreground = colour[3:] if colour[0] == "3" else foreground
                background = colour[3:] if colour[0] == "4" else background
        else:
            found.append((row[at], foreground, background))
            at += 1
    return found


def pixels(rows: list[str]) -> list[list[str]]:
    """Return the pixel colours that half blocks show, one row for each upper and lower half, without the margin."""
    shown: list[list[str]] = []
    for row in rows:
        coloured = [cell for cell in cells(row) if cell[2]]
        assert {character for character, _, _ in coloured} <= {" ", UPPER_HALF}
        shown.append([fore if character == UPPER_HALF else back for character, fore, back in coloured])
        shown.append([back for _, _, back in coloured])
    return shown


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize(("height", "width"), [(400, 600), (500, 500), (12, 16), (3, 200), (200, 3), (1, 1)])
@pytest.mark.parametrize(("columns", "lines"), [(80, 23), (120, 39), (7, 40), (1, 1), (0, 0)])
def test_frame_fits_and_keeps_aspect_ratio(style: Style, height: int, width: int, columns: int, lines: int) -> None:
    rows = draw(random_picture(height, width), columns, lines, style)
    widest = max(len(cells(row)) for row in rows)
    assert len(rows) <= max(1, lines)
    assert widest <= max(1, columns)
    if style != "ascii" and columns > 1:  # "ascii" strips trailing spaces, so it has no width to check
        margin = len(rows[0]) - len(rows[0].lstrip(" "))
        across, down = widest - margin, 2 * len(rows)
        scale = min(columns / width, 2 * lines / height)
        assert abs(across - width * scale) <= 1
        assert abs(down - height * scale) <= 2
        assert abs(margin - (columns - across) / 2) <= 0.5


def test_picture_for_a_widget_without_size_has_one_cell() -> None:
    assert fit(random_picture(400, 600), 0, 0, blocks=True).shape == (2, 1, 3)


def test_half_blocks_show_every_pixel_colour() -> None:
    picture = random_picture(46, 80)
    picture[10:20] = 7  # cells of one colour are spaces
    shown = pixels(draw(picture, 80, 23, "truecolor"))
    assert shown == [[f"2;{r};{g};{b}" for r, g, b in row] for row in picture.tolist()]


def test_256_colour_mapping_picks_the_nearest() -> None:
    """The mapping equals brute force over the fixed palette; ties between a grey and a cube colour are allowed."""
    palette = np.array(
        [(r, g, b) for r in CUBE for g in CUBE for b in CUBE] + [(x, x, x) for x in GREYS]
    )  # indices 16 to 255
    picture = random_picture(46, 80, seed=1)
    picture[:8] = picture[:8, :, :1]  # greys
    shown = pixels(draw(picture, 80, 23, "256"))
    for row, codes in zip(picture.astype(int), shown, strict=True):
        distances = np.square(row[:, None] - palette).sum(-1)
        chosen = [int(code.removeprefix("5;")) - 16 for code in codes]
        np.testing.assert_array_equal(distances[np.arange(80), chosen], distances.min(1))


def test_shrinking_averages_pixels() -> None:
    picture = random_picture(90, 60)
    shrunk = resize(picture, 6, 9)
    expected = picture.reshape(9, 10, 6, 10, 3).mean((1, 3))
    assert np.abs(shrunk - expected).max() <= 1  # rounded twice: rows, then columns


@pytest.mark.parametrize("background", [0, 255])
def test_ascii_frame_leaves_background_blank(background: int) -> None:
    picture = np.full((46, 40, 3), background, np.uint8)
    picture[10:20, 10:20] = 255 - background
    rows = draw(picture, 40, 23, "ascii")
    assert {row.strip() for row in rows} == {"", RAMP[-1] * 10}
    assert sum(bool(row) for row in rows) == 5


def test_text_frame_is_truncated_and_sanitized() -> None:
    text = "\n  \x1b[41mS\x1b[0mFF\x07\x1b]0;title\x07G and more\n|  |\nthird\n"
    assert draw(text, 8, 2, "truecolor") == ["  SFF G ", "|  |"]


def episode(length: int, seconds: float = 0.02) -> Iterator[tuple[np.ndarray, float]]:
    """Yield grey pictures whose brightness, from 0 to 250, shows the step."""
    for step in range(length + 1):
        yield np.full((8, 8, 3), step * 250 // max(1, length), np.uint8), seconds


@pytest.mark.parametrize("length", [0, 1, 2, 498, 499, 500, 501, 999, 1000, 1003, 5000])
def test_long_videos_are_thinned_evenly(length: int, tmp_path: Path) -> None:
    count = write_gif(tmp_path / "a.gif", episode(length))
    assert min(length + 1, GIF_FRAMES // 2) <= count <= GIF_FRAMES
    with Image.open(tmp_path / "a.gif") as gif:
        shown = [
            (image.convert("RGB").getpixel((0, 0)), image.info["duration"]) for image in ImageSequence.Iterator(gif)
        ]
    greys = [colour[0] for colour, _ in shown if isinstance(colour, tuple)]
    assert greys[0] == 0
    assert greys[-1] == (250 if length else 0)
    assert greys == sorted(greys)
    assert sum(ms for _, ms in shown) - 1000 == pytest.approx(
        20 * length, rel=0.02, abs=20
    )  # Pillow joins equal pictures


def test_videos_beyond_browser_frame_rate_skip_frames(tmp_path: Path) -> None:
    assert write_gif(tmp_path / "a.gif", episode(300, seconds=1 / 100)) == 151


class Terminal:
    """A pseudo-terminal and the text that it shows."""

    def __init__(self, columns: int = 20, lines: int = 6) -> None:
        self.master, self.slave = pty.openpty()
        self.resize(columns, lines)
        self.rows: list[list[tuple[str, str, str]]] = []

    def resize(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def read(self) -> str:
        """Return the text written since the last call, and update `rows`."""
        os.set_blocking(self.master, False)
        written = b""
        while True:
            try:
                written += os.read(self.master, 1 << 16)
            except BlockingIOError:
                break
        text = written.decode()  # only now, because a piece may end inside a character
        self._obey(text)
        return text

    def _obey(self, text: str) -> None:
        row = 0
        for part in re.split(r"(\x1b\[\d*;?\d*[HJK])", text):
            if part.endswith("H") and part.startswith("\x1b"):
                row = int(part[2:-1].partition(";")[0] or 1) - 1
            elif part == "\x1b[2J":
                self.rows = []
            elif part != "\x1b[K":  # it is always followed by the complete row
                self.rows += [[]] * (row + 1 - len(self.rows))
                self.rows[row] = cells(part) if part else self.rows[row]
            else:
                self.rows += [[]] * (row + 1 - len(self.rows))
                self.rows[row] = []

    def close(self) -> None:
        os.close(self.master)
        os.close(self.slave)


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    opened = Terminal()
    yield opened
    opened.close()


def test_partial_repaint_equals_full_picture(terminal: Terminal) -> None:
    screen, rng = Screen(terminal.slave), np.random.default_rng(0)
    picture = random_picture(10, 20)
    for number in range(30):
        picture[rng.integers(10), rng.integers(20)] = rng.integers(0, 256, 3)
        rows = [*draw(picture, 20, 5, "truecolor"), f"step {number}"][: rng.integers(1, 7)]
        screen.paint(rows)
        terminal.read()
        seen = terminal.rows + [[]] * (len(rows) - len(terminal.rows))
        assert seen[: len(rows)] == [cells(row) for row in rows]
        assert not any(seen[len(rows) :])


def test_unchanged_rows_are_not_rewritten(terminal: Terminal) -> None:
    screen, rows = Screen(terminal.slave), draw(random_picture(10, 20), 20, 5, "truecolor")
    screen.paint(rows)
    terminal.read()
    screen.paint(rows)
    assert terminal.read() == "\x1b[H"
    screen.paint([*rows[:-1], "new"])
    assert terminal.read() == "\x1b[H\x1b[5;1H\x1b[Knew"
    terminal.resize(21, 6)
    screen.paint(rows)
    written = terminal.read()
    assert all(row in written for row in rows)
