"""Assigns a color to each curve, and a letter if colors alone cannot distinguish the curves."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from ppo_unified.terminal.chart import MARKS

# The first SAFE colors and the pinned run's color differ for people with any type of color vision. They were found by
# searching near the palette of Okabe and Ito. The other colors differ less, so their curves also have letters.
SAFE = 4
DARK = ("#88DDFF", "#FFDD33", "#00AA44", "#FF66AA", "#4488EE", "#BBEE99", "#EE6600", "#BB99EE")
LIGHT = ("#3377BB", "#553300", "#777700", "#BB0066", "#009966", "#226622", "#BB5544", "#8800DD")
PINNED_DARK, PINNED_LIGHT = "#FFFFFF", "#000000"
_NO_GROUPS: Mapping[str, str] = MappingProxyType({})


def series_colors(
    keys: Sequence[str], pinned: str = "", dark: bool = True, groups: Mapping[str, str] = _NO_GROUPS
) -> dict[str, str]:
    """Return a color for each run. The first SAFE curves get the safe colors, and the first 8 colors all differ.

    A run's color depends on its name, so it is usually the same in every session. If an earlier run already uses that
    color, the run gets the next free one. All runs of a group in `groups` have one color. It is the color that the
    group's first run has without groups, unless this color is taken or not safe enough for one of the first SAFE
    curves. The pinned run is in no group.
    """
    palette = DARK if dark else LIGHT
    colors = {pinned: PINNED_DARK if dark else PINNED_LIGHT} if pinned in keys else {}
    ungrouped = series_colors(keys, pinned, dark) if groups else {}
    taken: list[str] = []
    for key in keys:
        if (curve := groups.get(key, key)) in colors:
            continue
        among = palette[:SAFE] if len(taken) < SAFE else palette[SAFE:] if len(taken) < len(palette) else palette
        first = zlib.crc32(key.encode("utf-8", "surrogateescape")) % len(among)
        first = among.index(ungrouped[key]) if ungrouped.get(key) in among else first
        turns = [*among[first:], *among[:first]]
        colors[curve] = next((color for color in turns if color not in taken), turns[0])
        taken.append(colors[curve])
    return {key: colors[groups.get(key, key)] for key in keys}


def series_letters(
    keys: Sequence[str], has_colors: bool = True, groups: Mapping[str, str] = _NO_GROUPS
) -> dict[str, str]:
    """Return a letter for each run, or {} if colors suffice to distinguish the curves.

    A group has the letter of its first run. If seeds are grouped, no curve has a lowercase letter, which marks the part
    of a curve that lacks some seeds; a curve whose first run has one gets the next free letter.
    """
    firsts: dict[str, int] = {}  # curve -> index of its first run
    for number, key in enumerate(keys):
        firsts.setdefault(groups.get(key, key), number)
    if len(firsts) <= (SAFE if has_colors else 1):
        return {}
    marks = [mark for mark in MARKS if not (groups and mark.islower())]
    letters: dict[str, str] = {}
    for curve, number in firsts.items():
        wanted = [mark for mark in (MARKS[number % len(MARKS)], *marks) if mark in marks]
        letters[curve] = next((mark for mark in wanted if mark not in letters.values()), wanted[0])
    return {key: letters[groups.get(key, key)] for key in keys}


def with_letter(letter: str, text: str) -> str:
    """Return the text prefixed with the curve's letter, if it has one."""
    return f"{letter} {text}" if letter else text


def paper_color(color: str) -> str:
    """Return the light-background equivalent of a dark-background color."""
    pairs = dict(zip((*DARK, PINNED_DARK), (*LIGHT, PINNED_LIGHT), strict=True))
    return pairs.get(color, color)
