"""The tabs Options, Samples, System and Events of a run's page. Each tab is updated only if its data has changed."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from textual import work
from textual.app import ComposeResult
from textual.containers import VerticalScroll
from textual.content import Content
from textual.message import Message
from textual.widgets import Static

from ppo_unified.config import presets
from ppo_unified.config.schema import read_toml, typed_options
from ppo_unified.errors import UsageError
from ppo_unified.runs import control, samples
from ppo_unified.runs.folder import Run, read_warnings
from ppo_unified.runs.metrics import describe
from ppo_unified.runs.query import compared_options, flatten, read_options
from ppo_unified.terminal.chart import Line, draw
from ppo_unified.terminal.chat import wrap_text
from ppo_unified.terminal.option_diff import difference_lines, format_option
from ppo_unified.terminal.sample_table import format_samples
from ppo_unified.terminal.ticks import GUTTER, local_time
from ppo_unified.text import clean, display_width, format_duration, format_number, format_table, pad
from tui.folder_scanner import stamp_if_any
from tui.runs.entries import Entry
from tui.runs.run_head import MUTED
from tui.store import Curve, Store

INDENT = 6  # columns before the details of an event, and before a long text
TIME, STEP = 19, 11  # columns of the time and the step of an event
LABEL = 12  # columns of labels such as 'prompt'
MOST_STEPS = 400  # steps of stored samples in one table
FIRST = ("prompt", "response", "reference")  # texts of a response that come first
CHART, BETWEEN = (80, 10), 3  # width of a chart if there are several side by side, height, and columns between them
NAMES = {"kl": "KL"}  # number of a response -> its name
DESCRIBED, VALUE, SHORTEST = 100, 24, 12  # columns: minimum width with descriptions, of a value, of a description
MARK = "*"  # in front of an option that differs from the preset
FOREIGN = "This folder was written by another program. Only its curves are available."


class TextTab(VerticalScroll, can_focus=True):
    """A tab with scrollable text."""

    def __init__(self, id: str) -> None:
        super().__init__(id=id)
        self._seen: object = None  # signature of the displayed text

    def compose(self) -> ComposeResult:
        yield Static("", markup=False)

    def set_text(self, text: Content | str) -> None:
        """Show a text."""
        self.query_one(Static).update(Content(text) if isinstance(text, str) else text)

    def has_changed(self, signature: object) -> bool:
        """Return True if `signature` differs from the one of the last call."""
        news, self._seen = signature != self._seen, signature
        return news


class Options(TextTab):
    """Shows config.toml with the differences from the preset marked, or shows only the differences from the reference
    run.
    """

    def __init__(self, id: str) -> None:
        super().__init__(id)
        self.differences = False

    def refresh_text(self, entry: Entry, reference: Entry | None) -> None:
        """Update the text if a file or the width has changed."""
        paths = [Run(e.path).config for e in (entry, reference) if e is not None]
        width = self.scrollable_content_region.width
        if not self.has_changed((self.differences, width, *((path, stamp_if_any(path)) for path in paths))):
            return
        try:
            if entry.foreign:
                self.set_text(FOREIGN)
            elif not self.differences:
                self.set_text(_all_options(Run(entry.path), width))
            elif reference is None or reference.key == entry.key or reference.foreign:
                self.set_text(
                    "To compare options, first pin (p) or mark (space) another run in the list.   D: all options"
                )
            else:
                tables = {e.key: compared_options(e.status, read_options(Run(e.path))) for e in (entry, reference)}
                head = f"Options that differ from {clean(reference.key)}   D: all options"
                self.set_text("\n".join([head, "", *difference_lines(tables, width)]))
        except UsageError as error:
            self.set_text(clean(error))


def _all_options(run: Run, width: int) -> Content:
    """Format all options of a run, with a mark and the preset's value if that differs. Raises UsageError."""
    table = read_toml(run.config)
    try:
        config = presets.from_file(run.config)
    except UsageError as error:  # for example an option of a newer version
        legend = f"No option is marked, because not all options are valid: {clean(error)}"
        return Content.assemble((legend, MUTED), "\n\n", _sections(table))
    differences, preset = presets.preset_differences(config), clean(config.origin)
    if differences is None:
        legend = f"No option is marked, because {clean(presets.explain_no_differences(config))}"
    elif differences:
        options = "1 option differs" if len(differences) == 1 else f"{len(differences)} options differ"
        legend = f"{MARK} {options} from the preset {preset}"
    else:
        legend = f"No option differs from the preset {preset}"
    hint = (f"{legend}   D: compare with another run", MUTED)
    described = typed_options(type(config)) if width >= DESCRIBED else {}
    descriptions = {option: info.description or "" for option, info in described.items()}
    return Content.assemble(hint, "\n\n", _sections(table, differences or (), descriptions, width))


def _sections(
    config: Mapping[str, Any],
    differences: Sequence[presets.PresetDifference] = (),
    descriptions: Mapping[str, str] = MappingProxyType({}),
    width: int = 0,
) -> Content:
    """Format all options in one table with section headings. An option without a value is shown only if it differs.

    If `descriptions` contains an option, its line ends with the description, cut to `width` columns.
    """
    groups: dict[str, dict[str, Any]] = {"run": {}}
    changed: dict[tuple[str, str], Any] = {}  # (section, option) -> the preset's value
    for name, value in config.items():
        if isinstance(value, dict):
            groups[name] = flatten(value)
        else:
            groups["run"][name] = value
    for option, before, value in differences:
        section, _, name = option.rpartition(".")
        changed[section or "run", name] = before
        groups.setdefault(section or "run", {}).setdefault(name, value)
    names = max((len(clean(option)) for options in groups.values() for option in options), default=0)
    parts: list[Content | tuple[str, str] | str] = []
    for section, options in groups.items():
        parts += [(f"{clean(section)}\n", "bold")] if options else []
        for option, value in options.items():
            differs = (section, option) in changed
            text = f"{MARK if differs else ' '} {clean(option):<{names}}  {format_option(value)}"
            after = f"   preset: {format_option(changed[section, option])}" if differs else ""
            about = clean(descriptions.get(option if section == "run" else f"{section}.{option}", ""))
            gap = max(names + VALUE - display_width(text + after), 3)
            room = width - display_width(text + after) - gap
            after += " " * gap + pad(about, min(room, display_width(about))) if about and room >= SHORTEST else ""
            parts += [(text, "bold $text-accent" if differs else ""), (f"{after}\n", MUTED)]
    return Content.assemble(*parts).rstrip()


class Events(TextTab):
    """Shows the events of the run and why it ended."""

    def refresh_text(self, entry: Entry, store: Store) -> None:
        """Update the text if there are new events."""
        if entry.foreign or entry.problem:
            self.set_text(FOREIGN if entry.foreign else clean(entry.problem))
            return
        status, width = entry.status, self.scrollable_content_region.width
        curve = store.curve(entry.key, "eval/score")
        ends = (
            width,
            status.state,
            entry.state,
            status.reason,
            len(status.resumes),
            read_warnings(status),
            status.best_step,
            status.solved_step,
            curve is not None and len(curve.steps) and curve.steps[-1] >= (status.best_step or 0),  # knows its time
        )
        if width and self.has_changed((entry.path, status.started, status.pid, *ends)):
            texts = [_event(event, curve, width) for event in control.list_events(Run(entry.path), status)]
            head = Content.styled(f"{'time':<{TIME}}  {'step':>{STEP}}  event\n", MUTED)
            self.set_text(Content.assemble(head, *texts).rstrip())


def _event(event: control.Event, scores: Any, width: int) -> Content:
    """Format an event with its details below. Its text is beside the time if it fits there in one line, else below."""
    when = event.time
    if when is None and event.step is not None and scores is not None:  # get the time of the step from the curve
        at = int(np.searchsorted(scores.steps, event.step))
        when = float(scores.walls[at]) if at < len(scores.steps) and scores.steps[at] == event.step else None
    stamp = time.strftime("%Y-%m-%d %H:%M:%S", local_time(when)) if when else ""
    step = "" if event.step is None else f"{event.step:,}"
    head, what = f"{stamp:<{TIME}}  {step:>{STEP}}  ", f"{clean(event.what):<10}  "
    summary, _, detail = event.text.partition("\n")
    beside = len(head) + len(what) + display_width(summary) <= width
    below = "\n".join(filter(None, ("" if beside else summary, detail)))
    lines = [" " * INDENT + line for line in wrap_text(below, max(20, width - INDENT)) if below]
    colors = {"failed": "bold $text-error", "crashed": "bold $text-error", "warning": "bold $text-warning"}
    style = colors.get(event.what, "bold")
    lines = [clean(summary) if beside else "", *lines]
    return Content.assemble(head, (what, style), *(line + "\n" for line in lines))


class System(TextTab):
    """Shows the machine, the process and its resource usage."""

    def refresh_text(self, entry: Entry, store: Store, unicode: bool, color: str) -> None:
        """Update the text if there are new measurements. `color` is the color of the run's curves."""
        tags = [tag for tag in store.tags(entry.key) if tag.startswith(("system/", "time/"))]
        curves = {tag: curve for tag in tags if (curve := store.curve(entry.key, tag)) is not None and len(curve.steps)}
        width = self.scrollable_content_region.width
        ends = tuple((tag, len(curve.steps), float(curve.walls[-1])) for tag, curve in curves.items())
        if not width or not self.has_changed((entry.path, entry.status.pid, entry.state, width, color, ends)):
            return
        lines = [] if entry.foreign else _process(entry)
        if curves:
            lines += ["", *format_table([_metric_cells(tag, curve.values) for tag, curve in curves.items()])]
        else:
            lines += ["", "No system metrics yet. An active run logs them every second."]
        parts = [Content("\n".join(lines).lstrip("\n")), *_chart_rows(curves, width, unicode, color)]
        self.set_text(Content("\n").join(parts))


def _chart_rows(curves: Mapping[str, Curve], width: int, unicode: bool, color: str) -> Iterator[Content]:
    """Yield the lines of the charts of the system metrics, side by side if there is space."""
    drawn = {tag: c for tag, c in curves.items() if tag.startswith("system/") and np.isfinite(c.values).sum() > 1}
    columns = max(1, min(len(drawn), (width + BETWEEN) // (CHART[0] + BETWEEN)))
    room = (width + BETWEEN) // columns - BETWEEN
    charts = [_chart_lines(tag, curve, room, unicode, color) for tag, curve in drawn.items()]
    for first in range(0, len(charts), columns):
        yield Content()
        for row in zip(*charts[first : first + columns], strict=True):
            yield Content(" " * BETWEEN).join(row).rstrip()


def _chart_lines(tag: str, curve: Curve, width: int, unicode: bool, color: str) -> list[Content]:
    """Draw a chart of `width` columns with a curve in a color."""
    line = Line(tag, curve.steps, curve.values)
    head, *rows = draw([line], width, CHART[1], f"{clean(tag)}: {describe(tag)}", unicode=unicode)
    title, gap, value = head.rstrip().rpartition("  ")
    lines = [Content.assemble((title, "bold"), gap, (value, color), " " * (width - display_width(head.rstrip())))]
    lines += [Content.assemble((row[: GUTTER + 1], MUTED), (row[GUTTER + 1 :], color)) for row in rows[:-2]]
    return lines + [Content.styled(row, MUTED) for row in rows[-2:]]


def _process(entry: Entry) -> list[str]:
    status = entry.status
    rows = {
        "machine": status.host,
        "process": status.pid,
        "device": status.device or "-",
        "elapsed": format_duration(status.elapsed_s),
        "folder": entry.path,
        "versions": ", ".join(f"{name} {version}" for name, version in status.versions.items()),
    }
    return [f"{name:<10}{clean(value)}" for name, value in rows.items()]


def _metric_cells(tag: str, values: Any) -> dict[str, str]:
    finite = values[np.isfinite(values)]
    lowest, mean, highest = (finite.min(), finite.mean(), finite.max()) if len(finite) else (None, None, None)
    numbers = {"now": values[-1], "min": lowest, "mean": mean, "max": highest}
    return {"metric": clean(tag)} | {
        name: format_number(None if x is None else float(x)) for name, x in numbers.items()
    }


@dataclass(frozen=True)
class SamplePage:
    """One page of samples, which shows the responses of an evaluation or a stored iteration."""

    unit: str  # what the number counts, such as 'iteration'
    number: int
    place: int  # index of the page, from 0
    of: int  # number of pages
    lines: tuple[str, ...]


class Samples(TextTab):
    """Shows the responses of each evaluation or, for a run without responses, the stored samples of each iteration."""

    class Loaded(Message):
        """A thread has loaded a page, or failed with a message."""

        def __init__(self, request: object, page: SamplePage | str, numbers: Sequence[int]) -> None:
            super().__init__()
            self.request, self.page, self.numbers = request, page, numbers

    def __init__(self, id: str) -> None:
        super().__init__(id)
        self.numbers: Sequence[int] = ()  # steps or iterations of all pages, ascending
        self.at: int | None = None  # the selected number, or None to follow the newest page
        self.page: SamplePage | None = None
        self._request: object = None  # identifies the newest request, because results of older requests are ignored

    def refresh_text(self, entry: Entry) -> None:
        """Load the selected page in a thread if the files or the width have changed."""
        if entry.foreign:
            self.set_text(FOREIGN)
            return
        run, width = Run(entry.path), self.scrollable_content_region.width
        folder = run.samples
        stamps = stamp_if_any(folder), stamp_if_any(folder / samples.RESPONSES)
        if width and self.has_changed((run.path, stamps, self.at, width)):
            self._request = object()
            self._read(run, self.at, width, self._request)

    @work(thread=True, exclusive=True, group="samples", exit_on_error=False)
    def _read(self, run: Run, at: int | None, width: int, request: object) -> None:
        """Read and format a page in a thread, because this may be slow."""
        numbers: Sequence[int] = ()
        try:
            if responses := samples.read_responses(run):
                unit, numbers = "greedy responses at step", list(responses)
                chosen = at if at in responses else numbers[-1]
                lines = _response_lines(responses[chosen], width)
            elif numbers := samples.iterations(run):
                unit = "iteration"
                chosen = at if at in numbers else numbers[-1]
                lines = _stored_lines(run, chosen, width)
            else:
                self.post_message(self.Loaded(request, "No samples yet. The first iteration stores some.", ()))
                return
            found: SamplePage | str = SamplePage(unit, chosen, numbers.index(chosen), len(numbers), tuple(lines))
        except (UsageError, OSError) as error:
            found = clean(error)
        self.post_message(self.Loaded(request, found, numbers))

    def on_samples_loaded(self, message: Loaded) -> None:
        if message.request is not self._request:
            return
        self.numbers = message.numbers
        if isinstance(message.page, str):
            self.set_text(message.page)
            return
        turned = self.page is not None and self.page.number != message.page.number
        self.page = page = message.page
        head = f"{page.unit} {page.number:,} ({page.place + 1} of {page.of} stored)"
        newest = page.place == page.of - 1
        head += "   { older" if page.place else ""
        head += "   } newer" if not newest else "   (newest)" if page.of > 1 else ""
        self.set_text(Content.assemble((head, MUTED), "\n", *(line + "\n" for line in page.lines)).rstrip())
        if turned:
            self.scroll_home(animate=False)

    def move(self, by: int) -> None:
        """Select an older page (-1) or a newer one (1). At the newest page, new pages are followed."""
        if self.numbers:
            place, last = max(0, self._place + by), len(self.numbers) - 1
            self.at = self.numbers[place] if place < last else None

    @property
    def _place(self) -> int:
        """The index of the selected page."""
        return self.numbers.index(self.at) if self.at in self.numbers else len(self.numbers) - 1

    @property
    def directions(self) -> frozenset[str]:
        """'older' and 'newer', if there are such pages."""
        later = len(self.numbers) - 1 - self._place
        return frozenset(name for name, pages in (("older", self._place), ("newer", later)) if pages > 0)


def _response_lines(responses: Sequence[Any], width: int) -> list[str]:
    """Format each response as one line with its numbers, followed by its texts, prompt and response first."""
    lines: list[str] = []
    for number, response in enumerate(responses, 1):
        fields = response if isinstance(response, dict) else {"response": response}
        texts = {name: x for name, x in fields.items() if x is not None and not isinstance(x, int | float)}
        facts = [
            f"{NAMES.get(name, name.replace('_', ' '))} {format_number(x)}"
            for name, x in fields.items()
            if isinstance(x, int | float)
        ]
        lines += ["", clean("   ".join([f"response {number} of {len(responses)}", *facts]))]
        for name in [*(name for name in FIRST if name in texts), *(name for name in texts if name not in FIRST)]:
            value = texts[name] if isinstance(texts[name], str) else json.dumps(texts[name], ensure_ascii=False)
            rows = wrap_text(value, max(20, width - LABEL))
            lines += [f"{clean(name) if i == 0 else '':<{LABEL}}{row}" for i, row in enumerate(rows)]
    return lines


def _stored_lines(run: Run, iteration: int, width: int) -> list[str]:
    """Format the first samples as the table that `inspect` prints."""
    stored = samples.read(run, iteration)
    there = stored.samples()
    steps, chosen = 0, 0
    while chosen < len(there) and (not chosen or steps + len(there[chosen].columns) <= MOST_STEPS):
        steps += len(there[chosen].columns)
        chosen += 1
    each, width = [stored.document(number, there[number]) for number in range(chosen)], max(40, width)
    meanings, tables = format_samples(each, len(there), stored.quantities(), width)
    if chosen < len(there):
        tables += ["", f"To see all {len(there)} samples: ppo-unified inspect {clean(run.name)} --sample all"]
    return [*wrap_text(stored.summary(run.name), width), "", *tables, "", *meanings]
