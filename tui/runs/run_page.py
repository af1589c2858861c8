"""The page of one run, with tabs for curves, options, log, samples, system and events."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import ClassVar

from textual import events
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container
from textual.content import Content
from textual.message import Message
from textual.theme import Theme
from textual.widget import Widget
from textual.widgets import ContentSwitcher, Static

from ppo_unified.runs.folder import Run
from ppo_unified.text import clean, display_width, pad
from tui.action import Place
from tui.actions import actions_of, bindings
from tui.charts.plots import Plots, forward_actions
from tui.runs.entries import Entry
from tui.runs.log_view import LogView
from tui.runs.run_actions import RunActions, chart_conditions
from tui.runs.run_head import MUTED, format_head
from tui.runs.run_list import Marks
from tui.runs.run_tabs import Events, Options, Samples, System
from tui.runs.seeds import group_seeds, siblings
from tui.runs.selection import make_marks, make_traces
from tui.services import Services
from tui.status_row import StatusRow
from tui.store import Changes, Store

TABS = ("curves", "options", "log", "samples", "system", "events")
NAME = 24  # maximum width of the pinned run's name in the line below the charts
LOOK_S = 0.5  # interval between checks of files that the store does not watch, such as log and samples
CHART_ACTIONS = frozenset(action.name for action in actions_of("charts"))


class TabBar(Widget):
    """The names of the tabs in one line."""

    class Chosen(Message):
        """A tab was clicked."""

        def __init__(self, tab: str) -> None:
            super().__init__()
            self.tab = tab

    def __init__(self) -> None:
        super().__init__()
        self.current = TABS[0]

    def _labels(self) -> list[tuple[str, str]]:
        return [(tab, f" {number} {tab.capitalize()} ") for number, tab in enumerate(TABS, 1)]

    def render(self) -> Content:
        styles = {tab: "bold $text on $primary" if tab == self.current else MUTED for tab in TABS}
        return Content.assemble(*((label, styles[tab]) for tab, label in self._labels()))

    def on_click(self, event: events.Click) -> None:
        x = event.get_content_offset_capture(self).x
        for tab, label in self._labels():
            if 0 <= x < len(label):
                self.post_message(self.Chosen(tab))
            x -= len(label)


class RunPage(RunActions):
    """The page of one run. It follows the run if the run is renamed, and closes if the run is deleted."""

    CSS_PATH = "run_page.tcss"
    BINDINGS: ClassVar[list[BindingType]] = [
        *bindings("run"),
        *bindings("control"),
        *bindings("charts"),
        *(Binding(str(number), f"tab({tab!r})", tab.capitalize(), show=False) for number, tab in enumerate(TABS, 1)),
    ]
    places: tuple[Place, ...] = ("run", "control", "charts")

    def __init__(self, services: Services, key: str, store: Store, reference: str | None, plots: Plots) -> None:
        super().__init__(services)
        self.key, self.store, self.reference, self.plots = key, store, reference, plots
        self.plots.why_ungrouped = self._why_ungrouped
        self._seeds_grouped = plots.settings.aggregate
        self.tab = TABS[0]
        self._inode = _file_identity(self.entry)

    def compose(self) -> ComposeResult:
        yield Static(id="head", markup=False)
        yield TabBar()
        with ContentSwitcher(initial="curves", id="panes"):
            with Container(id="curves"):
                yield self.plots
            yield Options(id="options")
            yield LogView(self._log(), id="log")
            yield Samples(id="samples")
            yield System(id="system")
            yield Events(id="events")
        yield StatusRow()

    def on_mount(self) -> None:
        self.set_interval(LOOK_S, self._poll_files)
        self.app.theme_changed_signal.subscribe(self, self._redraw)
        self._update_head()
        self._draw_curves()

    @property
    def entry(self) -> Entry | None:
        """The run of this page, or None if it is gone."""
        return self.store.entries.get(self.key)

    @property
    def conditions(self) -> frozenset[str]:
        found = super().conditions | chart_conditions(self.plots)
        if self.tab == "curves" or "own" not in found:
            return found
        return found | (self.query_one(Samples).directions if self.tab == "samples" else {self.tab})

    # updates from the store and the files

    def update_from_store(self, changes: Changes) -> None:
        """Update the header and the visible tab."""
        if changes.listed and self.entry is None:
            self._follow_rename()
        if changes.listed:
            self._update_head()
        if changes.listed or self.key in changes.advanced:
            self._refresh_tab()
        awaited = changes.listed and not self.store.tags(self.key)  # empty charts appear when the run's state changes
        if self.tab == "curves" and (awaited or changes.advanced & set(self._drawn_keys())):
            self._draw_curves()

    def on_screen_resume(self) -> None:
        """Check for a rename after a dialog has closed or another program has used the terminal."""
        if self.is_mounted and self.entry is None:
            self._follow_rename()

    def _follow_rename(self) -> None:
        """Find the renamed run by its folder's inode, or close the page if the run is gone."""
        for key, entry in self.store.entries.items():
            if self._inode is not None and _file_identity(entry) == self._inode:
                self.key = key
                self.query_one(LogView).set_path(self._log())
                self._draw_curves()
                return
        if self.app.screen is self:
            self.notify(f"{clean(self.key)} no longer exists.", markup=False)
            self.app.pop_screen()

    def _log(self) -> Path:
        entry = self.entry
        return Run(entry.path if entry is not None else Path(self.key)).log

    def _poll_files(self) -> None:
        if self.app.screen is self and self.tab in ("options", "log", "samples"):
            self._refresh_tab()

    def _refresh_tab(self) -> None:
        """Update the visible tab if its data has changed."""
        entry = self.entry
        if entry is None:
            return
        match self.tab:
            case "options":
                other = self.store.entries.get(self.reference) if self.reference else None
                self.query_one(Options).refresh_text(entry, other)
            case "log":
                self.query_one(LogView).append_new_lines()
            case "samples":
                self.query_one(Samples).refresh_text(entry)
            case "system":
                color = self._marks().colors[self.key]
                self.query_one(System).refresh_text(entry, self.store, self.services.unicode, color)
            case "events":
                self.query_one(Events).refresh_text(entry, self.store)

    def _update_head(self) -> None:
        if entry := self.entry:
            place = self.query_one("#head", Static)
            damage = self.store.damage.get(self.key, "")
            text = format_head(entry, max(20, self.size.width - 2), self.size.height, damage, self.tab)
            if text != place.content:
                place.update(text)
        self.refresh_footer()

    # curves

    def _drawn_keys(self) -> list[str]:
        """Return the keys of the runs to draw: the pinned run, this run and, if seeds are grouped, its other seeds."""
        pinned = self._pinned()
        return [*([pinned] if pinned else []), *(key for key in (self.key, *self._siblings()) if key != pinned)]

    def _pinned(self) -> str:
        """Return the pinned run if it has the same preset as this run; scores of different presets
        are not comparable.
        """
        pinned, entry = self.store.entries.get(self.services.state.pinned), self.entry
        if pinned is None or entry is None:
            return ""
        same = pinned.key == entry.key or "" != pinned.status.preset == entry.status.preset
        return pinned.key if same else ""

    def _siblings(self) -> list[str]:
        """Return the runs that differ from this one only in the seed, or none if seeds are not grouped."""
        return siblings(self.store, self.key) if self.plots.settings.aggregate else []

    def _why_ungrouped(self) -> str:
        """Return the reason why seeds cannot be grouped, or ""."""
        others, pinned = siblings(self.store, self.key), self._pinned()
        if any(key != pinned for key in others):
            return ""
        return f"No other {'unpinned ' if others else ''}run differs from {clean(self.key)} only in the seed."

    def on_plots_changed(self) -> None:
        grouped = self.plots.settings.aggregate
        if grouped == self._seeds_grouped:
            return
        self._seeds_grouped = grouped
        self.refresh_footer()
        self._draw_curves()

    def _redraw(self, theme: Theme) -> None:
        """Show the charts in the colors of a new theme."""
        self._draw_curves()
        self._refresh_tab()

    def _draw_curves(self) -> None:
        keys, pinned = self._drawn_keys(), self._pinned()
        if self.store.watch(keys):
            self.services.read_now()
        if self.tab != "curves":
            return
        name = clean(pinned) if pinned != self.key else ""
        self.plots.legend = f"pinned: {pad(name, min(NAME, display_width(name)))}" if name else ""
        self.plots.show(self.store.chart_tags([self.key]), partial(make_traces, self.store, self._marks()))

    def _marks(self) -> Marks:
        """Return the colors and letters of the drawn runs."""
        pinned = self._pinned()
        seeds = group_seeds(self.store, self._siblings(), pinned)
        return make_marks(self._drawn_keys(), pinned, seeds, self.app.current_theme.dark, self.has_colors)

    def explain(self) -> str | None:
        """Return the description of the current chart's metric for the help dialog."""
        return self.plots.explain() if self.tab == "curves" else None

    # actions

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Disable chart actions unless the charts are visible."""
        if action in CHART_ACTIONS and self.tab != "curves":
            return False
        return super().check_action(action, parameters)

    def action_back(self) -> None:
        self.app.pop_screen()

    def action_tab(self, tab: str) -> None:
        if tab == self.tab:
            return
        self.tab = self.query_one("#panes", ContentSwitcher).current = tab
        bar = self.query_one(TabBar)
        bar.current = tab
        bar.refresh()
        self._update_head()
        pane = self.query_one(f"#{tab}")
        self.set_focus(pane if pane.can_focus else None)
        self.refresh_footer()
        self.call_after_refresh(self._draw_curves if tab == "curves" else self._refresh_tab)  # after its width is known

    def action_tab_next(self) -> None:
        self.action_tab(TABS[(TABS.index(self.tab) + 1) % len(TABS)])

    def action_tab_previous(self) -> None:
        self.action_tab(TABS[TABS.index(self.tab) - 1])

    def on_tab_bar_chosen(self, message: TabBar.Chosen) -> None:
        self.action_tab(message.tab)

    def on_resize(self) -> None:
        self._update_head()
        self.call_after_refresh(self._refresh_tab)

    def action_follow(self) -> None:
        self.action_tab("log")
        self.query_one(LogView).follow()

    def action_older(self) -> None:
        self._turn_page(-1)

    def action_newer(self) -> None:
        self._turn_page(1)

    def on_samples_loaded(self) -> None:
        self.refresh_footer()

    def _turn_page(self, by: int) -> None:
        samples = self.query_one(Samples)
        if self.tab == "samples":
            samples.move(by)
            self._refresh_tab()
        else:
            self.action_tab("samples")

    def action_difference(self) -> None:
        options = self.query_one(Options)
        options.differences = self.tab != "options" or not options.differences
        self.action_tab("options")
        self._refresh_tab()


def _file_identity(entry: Entry | None) -> tuple[int, int] | None:
    """Return the device and inode of a run folder, which identify it after a rename."""
    try:
        found = entry.path.stat() if entry is not None else None
    except OSError:
        return None
    return (found.st_dev, found.st_ino) if found is not None else None


forward_actions(RunPage, (action.name for action in actions_of("charts")))
