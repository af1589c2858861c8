"""Tests the colors and letters of the curves: whether people can tell them apart, and whether they are stable."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from textual.theme import BUILTIN_THEMES, Theme

from ppo_unified.terminal.chart import MARKS
from tests.color_vision import VISIONS, ciede2000, contrast, seen_lab
from tui.charts.colors import DARK, LIGHT, PINNED_DARK, PINNED_LIGHT, SAFE, paper_color, series_colors, series_letters
from tui.themes import CYCLE, OURS

THEMES: dict[str, Theme] = {name: {**BUILTIN_THEMES, **{own.name: own for own in OURS}}[name] for name in CYCLE}
SHARMA = [  # Sharma, Wu and Dalal 2005, table 1: two Lab colors and their difference
    ((50, 2.6772, -79.7751), (50, 0, -82.7485), 2.0425),
    ((50, 3.1571, -77.2803), (50, 0, -82.7485), 2.8615),
    ((50, -1.3802, -84.2814), (50, 0, -82.7485), 1.0),
    ((50, 0, 0), (50, -1, 2), 2.3669),
    ((50, 2.49, -0.001), (50, -2.49, 0.0009), 7.1792),
    ((50, 2.49, -0.001), (50, -2.49, 0.0011), 7.2195),
    ((50, 2.5, 0), (73, 25, -18), 27.1492),
    ((50, 2.5, 0), (61, -5, 29), 22.8977),
    ((50, 2.5, 0), (56, -27, -3), 31.9030),
    ((60.2574, -34.0099, 36.2677), (60.4626, -34.1751, 39.4387), 1.2644),
    ((63.0109, -31.0961, -5.8663), (62.8187, -29.7946, -4.0864), 1.2630),
    ((2.0776, 0.0795, -1.1350), (0.9033, -0.0636, -0.5514), 0.9082),
]


def random_keys(seed: int) -> list[str]:
    return [f"run-{number}" for number in np.random.default_rng(seed).permutation(100)[:12]]


def test_ciede2000_matches_published_values() -> None:
    one, other, expected = (np.array(column, float) for column in zip(*SHARMA, strict=True))
    np.testing.assert_allclose(ciede2000(one, other), expected, atol=5e-5)
    np.testing.assert_allclose(ciede2000(other, one), expected, atol=5e-5)


@pytest.mark.parametrize("name", CYCLE)
def test_first_four_curves_differ_for_any_color_vision(name: str) -> None:
    theme = THEMES[name]
    first = {tuple(series_colors(random_keys(seed)[:SAFE], dark=theme.dark).values()) for seed in range(50)}
    for colors in (*first, *(tuple(map(paper_color, colors)) for colors in first)):
        assert len(colors) == SAFE == 4
        on_paper = not theme.dark or set(colors) <= set(LIGHT)
        for vision in VISIONS:
            seen = [seen_lab(color, vision) for color in (*colors, PINNED_LIGHT if on_paper else PINNED_DARK)]
            differences = [float(ciede2000(one, other)) for one, other in combinations(seen, 2)]
            assert min(differences) >= 15, (vision, colors)


@pytest.mark.parametrize("theme", OURS, ids=[theme.name for theme in OURS])
def test_scrollbars_stand_out_from_their_background(theme: Theme) -> None:
    colors = theme.to_color_system().generate() | theme.variables
    for name in ("scrollbar", "scrollbar-hover", "scrollbar-active"):
        for ground in ("scrollbar-background", "background"):
            assert contrast(colors[name], colors[ground]) >= 3, (name, ground)


@pytest.mark.parametrize("name", CYCLE)
def test_all_colors_stand_out_from_the_background(name: str) -> None:
    theme = THEMES[name]
    assert theme.background is not None
    colors = series_colors(random_keys(0)[:9], random_keys(0)[8], theme.dark).values()
    assert len(set(colors)) == 9
    for color in colors:
        assert contrast(color, theme.background) >= 3, color
        assert contrast(paper_color(color), "#ffffff") >= 3, color


def test_colors_are_stable_and_first_eight_are_distinct() -> None:
    for seed in range(50):
        keys = random_keys(seed)
        for dark in (True, False):
            colors = series_colors(keys, dark=dark)
            assert len({colors[key] for key in keys[:8]}) == 8
            assert series_colors(keys[:5], dark=dark) == {key: colors[key] for key in keys[:5]}
            alone = series_colors(keys[:1], dark=dark)
            assert alone[keys[0]] == colors[keys[0]]
            pinned = series_colors(keys, pinned=keys[3], dark=dark)
            assert pinned[keys[3]] == (PINNED_DARK if dark else PINNED_LIGHT)
            assert (PINNED_DARK if dark else PINNED_LIGHT) not in colors.values()


def test_letters_appear_if_colors_do_not_suffice() -> None:
    keys = random_keys(0)
    assert series_letters(keys[:4]) == {}
    assert list(series_letters(keys[:5]).values()) == [*"ABCDE"]
    assert series_letters(keys[:1], has_colors=False) == {}
    assert list(series_letters(keys[:2], has_colors=False).values()) == [*"AB"]
    assert len(series_letters([f"run-{k}" for k in range(len(MARKS) + 3)])) == len(MARKS) + 3


def test_runs_of_a_group_share_color_and_letter() -> None:
    keys = random_keys(1)
    groups = {key: f"group {number // 3}" for number, key in enumerate(keys)}
    colors, letters = series_colors(keys, groups=groups), series_letters(keys, False, groups)
    assert [colors[key] for key in keys] == [colors[key] for key in keys[::3] for _ in range(3)]
    assert len(set(colors.values())) == 4
    assert "".join(letters[key] for key in keys) == "AAADDDGGGJJJ"
    assert series_letters(keys, True, groups) == {}
    many = [f"run-{k}" for k in range(60)]
    assert not any(map(str.islower, series_letters(many, groups={many[0]: "a"}).values()))


def test_grouping_seeds_keeps_colors_and_letters_of_first_runs() -> None:
    for seed in range(50):
        keys = random_keys(seed)
        groups = {keys[0]: "a", keys[1]: "a", keys[3]: "b", keys[4]: "a", keys[5]: "b"}
        colors, letters = series_colors(keys, groups=groups), series_letters(keys, False, groups)
        before, letters_before = series_colors(keys), series_letters(keys, False)
        for number in (0, 2, 3):  # the first runs of both groups, and a run that is in no group
            assert colors[keys[number]] == before[keys[number]]
            assert letters[keys[number]] == letters_before[keys[number]]
        late = dict.fromkeys(keys[:6], "a") | dict.fromkeys(keys[6:], "b")
        assert set(series_colors(keys, groups=late).values()) <= set(DARK[:SAFE])  # two curves always have safe colors
        assert len(set(series_colors(keys, groups=late).values())) == 2
