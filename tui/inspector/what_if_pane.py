"""The pane that changes options and shows the recomputed numbers beside the run's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from functools import lru_cache
from typing import Any

from ppo_unified.config.registry import config_model
from ppo_unified.config.schema import typed_options
from ppo_unified.errors import UsageError
from ppo_unified.inspection.what_if import Recomputed, Settings, choices, missing_data, unavailable
from ppo_unified.runs.stored_iteration import StoredIteration
from ppo_unified.terminal.chat import wrap_text
from ppo_unified.text import pad
from tui.inspector.lines import Line, LinesPane, Span, rule
from tui.inspector.numbers import cell
from tui.inspector.shown import Shown

FIRST = ("gamma", "lam", "clip", "clip_high", "kl_coef", "kl", "score_clip", "normalize_advantages", "advantage")
ORDER = (*FIRST, *(f.name for f in fields(Settings) if f.name not in FIRST))
LADDERS: dict[str, tuple[float, ...]] = {  # the values that the keys < and > offer
    "gamma": (0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999, 1),
    "lam": (0, 0.25, 0.5, 0.8, 0.9, 0.95, 0.97, 0.99, 1),
    "kl_coef": (0, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1),
    "score_clip": (0, 0.5, 1, 2, 5, 10),
    "missing_eos_penalty": (0, 0.1, 0.2, 0.5, 1, 2, 5, 10),
    "dual_clip": (0, 1.5, 2, 3, 5),
    "penalty_coef": (0, 0.1, 0.3, 1, 3, 10),
}
CLIPS = (0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 1)
LIMITS = {"gamma": (0.0, 1.0), "lam": (0.0, 1.0)}  # of the other numbers: >= 0
MEANS = {  # mean of the iteration -> its name
    "policy/clip_fraction": "ratio outside",
    "policy/clip_fraction_after": "ratio outside",
    "cut": "gradient cut",
    "loss/policy": "policy loss",
    "loss/value": "value loss",
    "reward/total": "reward",
    "value/explained_variance": "explained var",
}
LABELS = {  # of names that are too long
    "normalize_advantages": "normalize",
    "whiten_rewards": "whiten",
    "score_normalize": "score norm",
    "missing_eos_penalty": "eos penalty",
}
NAME, VALUE = 13, 9  # columns


class WhatIfPane(LinesPane):
    """Lists the options with their values in the run and now, and the results for the iteration."""

    def __init__(self, id: str) -> None:
        super().__init__(id)
        self.option = FIRST[0]

    def move(self, by: int) -> None:
        """Select the option `by` lines below."""
        assert self.shown is not None
        names = listed_options(self.shown.stored)
        at = names.index(self.option) if self.option in names else 0
        self.option = names[min(max(0, at + by), len(names) - 1)]
        self.repaint()

    def make_lines(self, shown: Shown, width: int, height: int) -> Sequence[Line]:
        run, now = shown.run.settings, shown.now.settings
        reasons = unavailable(shown.stored, now)
        lines: list[Line] = [[], [(f"{'':<{NAME}} {'run':>{VALUE}} {'now':>{VALUE + 2}}", "muted")]]
        results = _results(shown, width)
        names = listed_options(shown.stored)
        at = names.index(self.option) if self.option in names else 0
        about = wrap_text(describe_option(str(shown.stored.options.get("kind", "")), self.option), max(20, width - 1))
        about = about if height - len(lines) - len(results) - 1 - len(names) >= len(about) else []
        room = max(3, height - len(lines) - len(results) - 1)
        top = max(0, min(at - room // 2, len(names) - room))
        place = "" if room >= len(names) else f", {top + 1}-{top + room} of {len(names)}"
        lines[0] = rule(f"what if{place}", width - 1, shown.unicode)
        lines += [_option_line(name, run, now, name == self.option, reasons) for name in names[top : top + room]]
        reason = reasons.get(self.option, "")
        hint = f"{self.option}: {reason}" if reason else "< > change   Enter type   r reset"
        lines.append([(hint[: max(0, width)], "muted")])
        lines += [[(text, "")] for text in about]
        return [*lines, *results][:height]


@lru_cache
def describe_option(kind: str, name: str) -> str:
    """Return the description of an option of `ppo` or `llm`, or '' if the adapter's package is not installed."""
    try:
        declared = typed_options(config_model(kind))
    except UsageError:
        return ""
    found = declared.get(f"ppo.{name}") or declared.get(f"llm.{name}")
    return f"{name}: {found.description}" if found is not None else ""


def _option_line(name: str, run: Settings, now: Settings, is_selected: bool, reasons: dict[str, str]) -> Line:
    before, after = (format_value(getattr(settings, name)) for settings in (run, now))
    value = f"< {after} >" if is_selected else f"{after}  "
    label = LABELS.get(name, name)
    style = "cursor" if is_selected else "muted" if name in reasons else "accent" if before != after else ""
    first = max(0, VALUE + min(0, VALUE + 2 - len(value)))  # a long value takes columns of the run's value
    return [(f"{label:<{NAME}} {pad(before, min(first, len(before))):>{first}} {value:>{VALUE + 2}}", style)]


def _results(shown: Shown, width: int) -> list[Line]:
    """Return the means of the iteration, with the run's options and now."""
    lines: list[Line] = [rule("this iteration", width - 1, shown.unicode)]
    run, now = (iteration_means(shown.stored, x) for x in (shown.run, shown.now))
    lines += [_result_line(label, run[name], now[name]) for name, label in MEANS.items() if name in run]
    return lines


def iteration_means(stored: StoredIteration, recomputed: Recomputed) -> dict[str, float]:
    """Return the means of an iteration, and the fraction of steps whose gradient is cut."""
    mask = stored.columns["mask"]
    return recomputed.means | {"cut": float(recomputed.columns["cut"][mask].mean())}


def _result_line(label: str, before: float, after: float) -> Line:
    changed = cell(before) != cell(after)
    spans: list[Span] = [(f"{label:<{NAME}} {cell(before):>{VALUE}} ", "")]
    spans.append((f"{cell(after):>{VALUE}}  ", "accent" if changed else ""))
    return spans


def format_value(value: Any) -> str:
    """Format the value of an option."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.6g}" if isinstance(value, int | float) else str(value)


def listed_options(stored: StoredIteration) -> list[str]:
    """Return the options that can be changed for this iteration, and those without effect in the current settings."""
    missing = missing_data(stored)
    return [name for name in ORDER if name not in missing]


def neighbor_value(stored: StoredIteration, settings: Settings, name: str, by: int) -> Any:
    """Return the next larger (1) or smaller (-1) value of an option, or the next choice."""
    value = getattr(settings, name)
    options: Sequence[Any] = choices(stored, name)
    if options:
        return options[(options.index(value) + by) % len(options)]
    own = getattr(Settings.of(stored), name)
    ladder = sorted({*LADDERS.get(name, CLIPS), own, value})
    return ladder[min(max(0, ladder.index(value) + by), len(ladder) - 1)]


def change_option(stored: StoredIteration, settings: Settings, name: str, value: Any) -> Settings:
    """Return the settings with one option changed. Raises UsageError if it cannot be changed."""
    reasons = unavailable(stored, settings)
    if name in reasons:
        raise UsageError(f"{name}: {reasons[name]}")
    return replace(settings, **{name: value})


def parse_value(stored: StoredIteration, name: str, text: str, known: Sequence[Any] = ()) -> Any:
    """Parse the typed value of an option. The text of a known value, which `format_value` may have rounded, stands for
    this value. Raises UsageError.
    """
    for value in known:
        if text == format_value(value):
            return value
    options = choices(stored, name)
    if options:
        named = {format_value(option) if isinstance(option, bool) else str(option): option for option in options}
        if text not in named:
            raise UsageError(f"{name}: expected {' or '.join(named)}, got '{text}'")
        return named[text]
    low, high = LIMITS.get(name, (0.0, float("inf")))
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not low <= value <= high or value == float("inf"):
        limit = f"from {low:g} to {high:g}" if name in LIMITS else ">= 0"
        raise UsageError(f"{name}: expected a number {limit}, got '{text}'")
    return value
