"""Draws docs/study/ladder.svg: for each rung, the noise of its gradient with intervals, and its learning curves."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from html import escape

from ladder import RUNGS, Row, curves_of, gradients_of, point_of, preset_of, study_numbers

WIDTH, LEFT, SCALE, CURVES = 960, 170, 360, 340  # pixels: the picture, the names, the axis of the noise, the curves
TOP, ROW = 74, 66  # pixels above the first rung, and for each rung
GAP = 50  # pixels between the two halves
DECADES = (-2, 4)  # powers of ten at the ends of the axis of the noise
HIGHEST = 500  # largest return in CartPole
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00")  # Okabe and Ito, for all kinds of color vision


def draw(rows: Sequence[Row]) -> str:
    """Return the picture as SVG."""
    height = TOP + ROW * len(RUNGS) + 40
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" '
        'font-size="13" fill="#222">',
        f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>',
        _text(LEFT, 22, "Noise of the gradient (variance / squared mean)", bold=True),
        _text(LEFT, 40, "3 policies, 95 % bootstrap intervals over 120 rollouts", small=True),
        _text(LEFT + SCALE + GAP, 22, "Return during training", bold=True),
        _text(LEFT + SCALE + GAP, 40, "5 seeds, 150,000 steps each", small=True),
        *_axis(TOP + ROW * len(RUNGS)),
    ]
    numbers = study_numbers()
    for number, rung in enumerate(RUNGS):
        top = TOP + ROW * number
        parts.append(_text(8, top + 24, preset_of(rung).removeprefix("ladder-"), bold=True))
        parts.append(_text(8, top + 42, f"solved: {numbers[f'ladder.{rung}.solved']}", small=True))
        parts += [*_noise(gradients_of(rows, point_of(rung), rung), top), *_curves(curves_of(rows, rung), top)]
        if point_of(rung) == "moved":
            parts.append(_text(LEFT + SCALE - 4, top + 12, "after ten epochs", small=True, anchor="end"))
    return "\n".join([*parts, "</svg>"]) + "\n"


def _text(x: float, y: float, text: str, bold: bool = False, small: bool = False, anchor: str = "start") -> str:
    style = ' font-weight="bold"' if bold else ' font-size="11" fill="#555"' if small else ""
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}"{style}>{escape(text)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, color: str, width: float = 1.0) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{color}" stroke-width="{width:g}"/>'


def _place(noise: float | None) -> float:
    """Return the x coordinate of a noise. None, which means infinity, and larger values are at the end of the axis."""
    low, high = DECADES
    exponent = high if noise is None else low if noise <= 0 else min(high, max(low, math.log10(noise)))
    return LEFT + SCALE * (exponent - low) / (high - low)


def _axis(bottom: float) -> Iterator[str]:
    for power in range(DECADES[0], DECADES[1] + 1):
        x = _place(10.0**power)
        yield _line(x, TOP, x, bottom, "#ddd")
        yield _text(x, bottom + 16, f"{10.0**power:,g}", small=True, anchor="middle")
    start = LEFT + SCALE + GAP
    yield _text(start, bottom + 16, "0 steps", small=True)
    yield _text(start + CURVES, bottom + 16, "150,000", small=True, anchor="end")
    yield _text(
        LEFT + SCALE / 2, bottom + 34, "more noise: more rollouts for the same accuracy", small=True, anchor="middle"
    )


def _noise(policies: Sequence[Row], top: float) -> Iterator[str]:
    """Yield a point with its interval for each policy. An open end of an interval has an arrow."""
    for number, row in enumerate(policies):
        value, low, high = row["noise"]
        y, color = top + 22 + 14 * number, COLORS[number]
        yield _line(_place(low), y, _place(high), y, color, 2)
        if high is None:
            x = _place(high)
            yield f'<path d="M{x:.1f} {y - 4}l7 4l-7 4z" fill="{color}"/>'
        if value is not None:
            yield f'<circle cx="{_place(value):.1f}" cy="{y}" r="4" fill="{color}"/>'


def _curves(curves: Sequence[Row], top: float) -> Iterator[str]:
    """Yield the mean episode return of each seed, over the steps."""
    start, bottom, height = LEFT + SCALE + GAP, top + ROW - 8, ROW - 16
    yield f'<rect x="{start}" y="{top + 8}" width="{CURVES}" height="{height}" fill="#f6f6f6"/>'
    yield _text(start - 4, top + 18, str(HIGHEST), small=True, anchor="end")
    yield _text(start - 4, bottom, "0", small=True, anchor="end")
    for curve, color in zip(curves, COLORS, strict=False):
        steps, returns = curve["episode/return steps"], curve["episode/return"]
        points = zip(steps, returns, strict=True)
        path = " ".join(
            f"{start + CURVES * step / steps[-1]:.1f},{bottom - height * value / HIGHEST:.1f}" for step, value in points
        )
        yield f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="1.3"/>'
