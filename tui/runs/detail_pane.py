"""The pane with details of the run under the cursor: why it ended, its health, its options and the end of its log."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from textual import work
from textual.content import Content
from textual.geometry import Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip
from textual.timer import Timer
from textual.visual import Visual

from ppo_unified.errors import UsageError
from ppo_unified.runs.folder import ALIVE, Run
from ppo_unified.runs.source import describe_source
from ppo_unified.terminal.option_diff import format_option
from ppo_unified.text import clean, elide, format_table
from tui.log_record import TAIL
from tui.runs.entries import Entry
from tui.runs.log_view import Tail
from tui.runs.run_head import MUTED, format_head

REST_S = 0.1  # the cursor must rest on a run for this long before the run's files are read
READ_S = 1.0  # interval between reads of the log of an active run
LEAST_LOG = 5  # lines of the log that are shown even if the pane must be scrolled
UNLIMITED = 10**6  # lines
PARTIAL = (
    f"To list logs quickly, only about the last {TAIL >> 10} KiB of the newest event files of this log have been read. "
    "Earlier values are missing, so the best score may be unknown. Press Enter to read the entire log."
)


class Details(NamedTuple):
    """What the pane shows from the files of a run."""

    key: str
    options: Content
    log: list[str]


class DetailPane(ScrollView, can_focus=True):
    """Shows details of one run. It reads the run's files in a thread."""

    DEFAULT_CSS = """
    DetailPane { height: 1fr; padding: 0 1; border-top: solid $foreground-muted; scrollbar-size-horizontal: 0; }
    DetailPane:focus { border-top: solid $accent; }
    """

    class Loaded(Message):
        """A thread has read the files of a run."""

        def __init__(self, details: Details) -> None:
            super().__init__()
            self.details = details

    def __init__(self) -> None:
        super().__init__()
        self._entry: Entry | None = None
        self._damage = ""
        self._details: Details | None = None
        self._strips: list[Strip] = []  # the formatted lines
        self._blank = Strip([])
        self._rest: Timer | None = None

    def on_mount(self) -> None:
        self.set_interval(READ_S, self._follow)
        self.app.theme_changed_signal.subscribe(self, lambda _: self._format())

    def show(self, entry: Entry | None, damage: str) -> None:
        """Show a run. `damage` describes the damage of its event files. The files are read later."""
        if not self.display or (entry == self._entry and damage == self._damage):
            return
        moved = entry is None or self._entry is None or entry.key != self._entry.key
        self._entry, self._damage = entry, damage
        if moved:
            self._details = None
            self.scroll_home(animate=False, immediate=True)
        self._format()
        if self._rest is not None:
            self._rest.stop()
        self._rest = self.set_timer(REST_S, self._load)

    def _follow(self) -> None:
        active = self._entry is not None and self._entry.state in ALIVE
        if active and self.display and self.app.screen is self.screen:
            self._load()

    def _load(self) -> None:
        if self._entry is not None and not self._entry.foreign:
            self._read(self._entry)

    @work(thread=True, exclusive=True, group="details", exit_on_error=False)
    def _read(self, entry: Entry) -> None:
        tail = Tail(Run(entry.path).log)
        tail.poll()
        log = [*tail.lines, *([tail.rest] if tail.rest else [])]
        self.post_message(self.Loaded(Details(entry.key, _describe_options(entry), log)))

    def on_detail_pane_loaded(self, message: Loaded) -> None:
        message.stop()
        if self._entry is not None and message.details.key == self._entry.key and message.details != self._details:
            self._details = message.details
            self._format()

    def on_resize(self) -> None:
        self._format()

    def _format(self) -> None:
        """Format the text for the current size."""
        width, height = self.scrollable_content_region.size
        self._strips, self._blank = [], Strip.blank(width, self.rich_style)
        if self._entry is not None and width:
            content = Content("\n").join(self._parts(self._entry, width))
            self._strips = self._to_strips(content, width)
            if self._details is not None and self._details.log:
                room = max(LEAST_LOG, height - len(self._strips) - 2)
                log = [elide(clean(line), width) for line in self._details.log[-room:]]
                title = Content.styled("end of the log (press Enter, then 3 for more)", "bold")
                self._strips += self._to_strips(Content("\n").join([Content(""), title, *map(Content, log)]), width)
        self.virtual_size = Size(width, len(self._strips))
        self.refresh()

    def _to_strips(self, content: Content, width: int) -> list[Strip]:
        return Visual.to_strips(self, content, width, None, self.visual_style, pad=True)

    def _parts(self, entry: Entry, width: int) -> Iterator[Content]:
        yield format_head(entry, width, UNLIMITED, self._damage, tab="")
        if source := describe_source(entry.status):
            yield Content(f"Started with the policy of {clean(source)}.")
        if entry.foreign:
            yield Content(f"Another program wrote this log: {clean(entry.path)}")
            if entry.partial:
                yield Content(PARTIAL)
        elif self._details is not None:
            yield self._details.options

    def render_line(self, y: int) -> Strip:
        row = round(self.scroll_y) + y
        return self._strips[row] if row < len(self._strips) else self._blank


def _describe_options(entry: Entry) -> Content:
    """Return the options that differ from the preset, or why they cannot be compared."""
    from ppo_unified.config import presets  # imported late to show the list sooner

    try:
        config = presets.from_file(Run(entry.path).config)
        found = presets.preset_differences(config)
    except UsageError as error:
        return Content.styled(f"\n{clean(error)}", "$text-error")
    if found is None:
        why = clean(presets.explain_no_differences(config))
        return Content.styled(f"\nOptions cannot be compared, because {why}.", MUTED)
    preset = clean(config.origin)
    if not found:
        return Content(f"\nNo option differs from the preset {preset}.")
    rows = [
        {"option": clean(one.option), "preset": format_option(one.preset_value), "run": format_option(one.value)}
        for one in found
    ]
    head = Content.styled(f"\noptions that differ from the preset {preset}", "bold")
    return Content("\n").join([head, *(Content(line) for line in format_table(rows, align_numbers=False))])
