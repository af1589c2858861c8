"""Numbers in the inspector's tables, in at most 7 columns."""

from __future__ import annotations

import math

from ppo_unified.text import format_number

WIDTH = 7


def cell(x: float) -> str:
    """Format a number with three or four digits, such as '-0.707', '0.0041' or '1.2e-05', in at most 7 columns."""
    size = abs(x)
    if not math.isfinite(x) or size >= 1000:
        return format_number(float(x))
    if 0 < size < 0.0005:
        return f"{x:.0e}"
    digits = 4 if size < 0.01 else 3 if size < 100 else 2
    return f"{x:z.{digits}f}"


def percent(logprob: float) -> str:
    """Format a probability, given its logarithm, such as '8.3 %' or '<0.01 %'."""
    share = 100 * math.exp(min(logprob, 0.0))
    if share < 0.01:
        return "<0.01 %"
    return f"{share:.2f} %" if share < 1 else f"{share:.1f} %"
