"""The lines above the tabs of a run's page, with the run's name, state, progress and problems."""

from __future__ import annotations

from collections.abc import Sequence

from textual.content import Content

from ppo_unified.runs.folder import ACTIVE, Run, read_warnings
from ppo_unified.runs.progress import format_percent, format_phase, fraction_done, nearest_limit
from ppo_unified.runs.signals import UNRECORDED, why_ended
from ppo_unified.terminal.chat import wrap_text
from ppo_unified.text import clean, display_width, elide, format_duration, format_number, pad
from tui.runs.entries import Entry, describe_not_shown
from tui.runs.run_list import RunList

GAP = 2  # columns between two facts
SHARE = 8  # if the remarks need more than 1/8 of the screen's lines, each is cut to one line
MUTED = "$foreground-muted"  # unlike $text-muted, a color that text without a background can have
MOST_NAME = 32  # columns for the name of another program's metric
COLORS = {"good": "$text-success", "warn": "$text-warning", "bad": "$text-error", "dim": MUTED}
UNEXPLAINED = {  # shown if the reason is unknown
    "crashed": "The process ended without recording a reason.",
    "stalled": "The process is alive but has made no progress for a minute.",
}
KEYS = {  # state -> (the tab of the run's page that explains it, the text that names the tab's key)
    "crashed": ("events", " Press 6 to see the end of its log."),
    "stalled": ("log", " Press 3 to see its log."),
}


def format_head(entry: Entry, width: int, height: int, damage: str = "", tab: str = "curves") -> Content:
    """Format the lines for a screen of `width` columns and `height` lines.

    `damage` describes the damage of the run's event files. `tab` is the open tab, to which the text does not refer, or
    "" on a screen without tabs.
    """
    color = COLORS[RunList.STATES.get(entry.state, "dim")]
    state, name = _shorten(clean(entry.state), width // 2), clean(entry.key)
    name = elide(name, max(8, width - GAP - display_width(state)))
    facts = _drop_to_fit(_facts(entry), width - display_width(name) - GAP - display_width(state))
    beneath = _drop_to_fit(_facts(entry), width + GAP)
    below = [(_join(beneath), "")] if beneath and not facts else []
    parts = [Content.styled(name, "bold"), Content.styled(f"{' ' * GAP}{state}", f"bold {color}")]
    parts += [Content(" " * GAP + _join(facts))] if facts else []
    remarks = _remarks(entry, width, height // SHARE, damage, tab)
    parts += [Content.styled(f"\n{line}", style) for line, style in [*below, *remarks]]
    return Content.assemble(*parts)


def _shorten(text: str, most: int) -> str:
    return pad(text, min(display_width(text), most))


def _facts(entry: Entry) -> list[tuple[int, str]]:
    """Return the numbers in display order, each with a rank. If space is short, the highest rank is dropped first."""
    status, limit = entry.status, nearest_limit(entry.status)
    steps = f"{format_number(status.step)} steps"
    share = f" ({format_percent(status)})" if fraction_done(status) is not None else ""
    if limit is not None and limit.unit == "steps":
        steps = f"{format_number(status.step)} of {format_number(limit.total)} steps{share}"
    elif limit is not None:
        steps += f", {limit.done} of {limit.total} iterations{share}"
    facts = [(0, steps)]
    facts += [(3, phase)] if (phase := clean(format_phase(status, entry.state))) else []
    name = elide(clean(entry.score_tag), MOST_NAME) or "score"
    facts += [(1, f"{name} {format_number(status.score)}")] if status.score is not None else []
    facts += [(3, f"best {format_number(status.best_score)}")] if status.best_score is not None else []
    facts += [(5, "(greedy)")] if status.score is not None and not entry.foreign else []
    facts += [(4, f"{format_number(entry.speed)} steps/s")] if entry.speed and entry.state in ACTIVE else []
    facts += [(2, f"ETA {format_duration(entry.eta_s)}")] if entry.eta_s is not None else []
    return facts


def _drop_to_fit(facts: Sequence[tuple[int, str]], room: int) -> list[tuple[int, str]]:
    """Drop facts until the rest fits into `room` columns, gaps included."""
    fitting = list(facts)
    while fitting and sum(GAP + display_width(text) for _, text in fitting) > room:
        fitting.remove(max(fitting))
    return fitting


def _join(facts: Sequence[tuple[int, str]]) -> str:
    return (" " * GAP).join(text for _, text in facts)


def _remarks(entry: Entry, width: int, most: int, damage: str, tab: str) -> list[tuple[str, str]]:
    """Return the lines of the error, the health warnings and the note, with their styles.

    If they need more than `most` lines, each is cut to one line; the Events tab shows the full texts.
    """
    reason, ended = why_ended(Run(entry.path), entry.status, entry.state), entry.state in ("failed", "crashed")
    known = "" if reason == UNRECORDED else reason
    place, keys = KEYS.get(entry.state, ("", ""))
    unexplained = UNEXPLAINED[entry.state] + (keys if tab not in ("", place) else "") if place else ""
    wrong = entry.problem or (known if ended else "") or unexplained
    style = "$text-warning" if entry.state == "stalled" else "$text-error"
    warnings, note = read_warnings(entry.status), [(f"note: {entry.note}", MUTED)] if entry.note else []
    first = [(wrong, style)] if wrong else []
    first += [(reason, MUTED)] if entry.state == "stopped" and reason else []
    first += [(f"Some curves could not be read: {damage}", "$text-error")] if damage else []
    first += [(text, MUTED)] if (text := describe_not_shown(entry)) else []
    alarms = [f"! {warning.name} since step {warning.since:,}: {warning.text}" for warning in warnings]
    texts = [*first, *((alarm, "$text-warning") for alarm in alarms), *note]
    lines = [(line, color) for text, color in texts for line in wrap_text(clean(text), width)]
    if len(lines) <= most:
        return lines
    names = ", ".join(warning.name for warning in warnings)
    short = f"! {names}" + (" (press 6 for details)" if tab != "events" else "")
    texts = [*first, *([(short, "$text-warning")] if warnings else []), *note]
    return [(pad(clean(text), width).rstrip(), color) for text, color in texts]
