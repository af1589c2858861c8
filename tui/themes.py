"""The color themes of the UI. The colors of the curves are defined in `charts.traces`."""

from __future__ import annotations

from textual.theme import BUILTIN_THEMES, Theme

DARK = Theme(
    name="ppo-dark",
    primary="#00659E",
    secondary="#56B4E9",
    accent="#E69F00",
    warning="#E69F00",
    error="#E8743B",
    success="#2FBF94",
    foreground="#E6E6E6",
    background="#101214",
    surface="#191C20",
    panel="#22262B",
    dark=True,
    variables={"scrollbar": "#6B747D", "scrollbar-hover": "#8A939C", "scrollbar-active": "#56B4E9"},
)
LIGHT = Theme(
    name="ppo-light",
    primary="#9CCBEA",
    secondary="#0072B2",
    accent="#B35F00",
    warning="#8F5A00",
    error="#B3400A",
    success="#00694C",
    foreground="#1A1A1A",
    background="#FBFBFA",
    surface="#F0F1F2",
    panel="#E3E6E8",
    dark=False,
    variables={"scrollbar": "#6E777F", "scrollbar-hover": "#59626A", "scrollbar-active": "#0072B2"},
)
OURS = (DARK, LIGHT)  # both use blue, orange and green from one color-blind safe palette (Okabe and Ito)
CYCLE = ("ppo-dark", "ppo-light", *(name for name in ("nord", "gruvbox") if name in BUILTIN_THEMES))
