"""Chooses the ticks of axes and formats their labels."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

GUTTER = 8  # width of the labels of a y axis, constant so that stacked charts line up
X_LABEL = 12  # maximum width of a label of an x axis
_DAY = 86400
_TIME_STEPS = (
    *(1, 2, 5, 10, 15, 30),
    *(60, 120, 300, 600, 900, 1800),
    *(3600, 7200, 10800, 21600, 43200),
    *(_DAY * days for days in (1, 2, 5, 10, 20, 50, 100)),
)
_SUFFIXES = ((12, "T"), (9, "G"), (6, "M"), (3, "k"))
_DECADES = 6  # a logarithmic axis over more decades is labeled with exponents


class Tick(NamedTuple):
    """A position on an axis and its label."""

    at: float
    label: str


def nice_ticks(low: float, high: float, count: int) -> list[float]:
    """Return about `count` round numbers inside [low, high], or [low] if the range is empty."""
    if not math.isfinite(high - low) or high <= low:
        return [low]
    raw = (high - low) / max(1, count)
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(m * magnitude for m in (1, 2, 2.5, 5, 10) if m * magnitude >= raw * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [k * step for k in range(first, last + 1)]


@lru_cache(maxsize=8)  # the charts of a page share their x axis
def plain_ticks(low: float, high: float, count: int) -> tuple[Tick, ...]:
    """Return ticks with labels at round numbers."""
    places = nice_ticks(low, high, count)
    return tuple(map(Tick, places, axis_labels(places, most=X_LABEL)))


@lru_cache(maxsize=8)
def log_ticks(low: float, high: float, count: int) -> tuple[Tick, ...]:
    """Return about `count` ticks for a logarithmic axis from 10**low to 10**high.

    They are at 1, 2 and 5 times powers of ten if these fit, otherwise at some or all powers of ten. An axis that is too
    short for both has ticks at round numbers.
    """
    places = log_places(low, high, count)
    return tuple(map(Tick, places, axis_labels([10.0**at for at in places], True, X_LABEL)))


def log_places(low: float, high: float, count: int) -> list[float]:
    """Return the logarithms of the values at which `log_ticks` places its ticks."""
    decades = range(math.ceil(low - 1e-9), math.floor(high + 1e-9) + 1)
    if len(decades) <= count:
        exponents = range(math.floor(low), math.ceil(high) + 1)
        places = [k + math.log10(m) for k in exponents for m in (1, 2, 5)]
        inside = [at for at in places if low - 1e-9 <= at <= high + 1e-9]
        if len(inside) < 2:
            return [math.log10(value) for value in nice_ticks(10.0**low, 10.0**high, count) if value > 0]
        if len(inside) <= count + 1:
            return inside
    stride = math.ceil(len(decades) / max(1, count))
    return [float(k) for k in decades if k % stride == 0]


def axis_labels(values: Sequence[float], log: bool = False, most: int = GUTTER) -> list[str]:
    """Format the finite values of an axis in one style. Each label has at most `most` columns; `most` must be at least
    8.

    The style is plain decimals, decimals with the suffixes k, M, G and T if a value is at least 10,000, or exponents
    for very small or large values and for logarithmic axes over many decades. Each label has four digits, as in
    `format_number`, or more if the nearest other value requires them, if there is space. '~0' stands for a value that
    is rounded to 0.
    """
    sizes = [abs(value) for value in values if value] or [1.0]
    largest, smallest = max(sizes), min(sizes)
    wide = log and (smallest < 1e-4 or largest > smallest * 10.0**_DECADES)
    exponents = largest < 1e-3 or largest >= 1e15 or wide
    suffixes = _SUFFIXES if largest >= 9999.5 and not exponents else ()
    ordered = sorted(set(values))
    steps = [above - below for below, above in pairwise(ordered)]
    gaps = dict(zip(ordered, map(min, [math.inf, *steps], [*steps, math.inf]), strict=True)) if steps else {}
    return [_axis_label(value, gaps.get(value, largest), exponents, suffixes, most) for value in values]


def _axis_label(value: float, gap: float, exponents: bool, suffixes: Sequence[tuple[int, str]], most: int) -> str:
    if not value:
        return "0"
    size = _decade(value)
    finest = min(size - 3, _decade(gap) - 1)  # decade of the last digit
    shift, suffix = size if exponents else 0, ""
    if suffixes:
        shift, suffix = next((unit for unit in suffixes if size >= unit[0]), (0, ""))
    for places in range(max(0, min(most, shift - finest)), -1, -1):
        if exponents:
            number, _, exponent = f"{value:.{places}e}".partition("e")
            suffix = f"e{int(exponent)}"
        else:
            number = f"{value / 10.0**shift:.{places}f}"
        number = number.rstrip("0").rstrip(".") if places else number
        text = number + suffix if number not in ("0", "-0") else "~0"
        if len(text) <= most:
            break
    return text


def _decade(value: float) -> int:
    return math.floor(math.log10(abs(value)))


def time_ticks(low: float, high: float, count: int, clock: bool) -> list[Tick]:
    """Return ticks for a time axis. It contains seconds since the epoch if `clock` is True, otherwise durations."""
    raw = (high - low) / max(1, count)
    if raw < 0.5 or not math.isfinite(raw):
        return [Tick(at, _format_tick_time(at, 1) if clock else f"{at:.4g}s") for at in nice_ticks(low, high, count)]
    step = next((step for step in _TIME_STEPS if step >= raw), 0) or _DAY * 10 ** math.ceil(math.log10(raw / _DAY))
    zone = local_time(low).tm_gmtoff if clock else 0
    first, last = math.ceil((low + zone) / step), math.floor((high + zone) / step)
    places = [k * step - zone for k in range(first, last + 1)]
    return [Tick(at, _format_tick_time(at, step) if clock else span_label(at)) for at in places]


def local_time(at: float) -> time.struct_time:
    """Convert seconds since the epoch to local time. Values out of range, such as nanoseconds, become 1970-01-01."""
    try:
        return time.localtime(at)
    except (ValueError, OverflowError, OSError):
        return time.gmtime(0)


def _format_tick_time(at: float, step: float) -> str:
    moment = local_time(at)
    midnight = moment.tm_hour == moment.tm_min == moment.tm_sec == 0
    return time.strftime(
        "%Y-%m" if step > 50 * _DAY else "%m-%d" if midnight else "%H:%M" if step >= 60 else "%H:%M:%S", moment
    )


def format_local_time(at: float) -> str:
    """Format seconds since the epoch as local date and time."""
    return time.strftime("%m-%d %H:%M:%S", local_time(at))


def span_label(seconds: float) -> str:
    """Format a duration in its two largest units, such as '45s', '1h30m' or '2d6h'."""
    left = round(seconds)
    parts = []
    for unit, sign in ((_DAY, "d"), (3600, "h"), (60, "m"), (1, "s")):
        amount, left = divmod(left, unit)
        if amount:
            parts.append(f"{amount}{sign}")
        elif parts:
            break
    return "".join(parts[:2]) or "0"
