"""The main screen, with a table of all runs in the runs folder and the curves of the marked runs."""

from __future__ import annotations

from functools import partial
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Container

from ppo_unified.errors import UsageError
from ppo_unified.runs.query import parse
from ppo_unified.text import clean
from tui.action import Place
from tui.actions import actions_of, bindings
from tui.charts.plots import Plots, forward_actions
from tui.charts.settings import LEAST_WIDTH, Settings
from tui.dialogs import PromptDialog
from tui.runs.detail_pane import DetailPane
from tui.runs.entries import Entry, select_entries, sort_entries
from tui.runs.legend import Legend, list_legend
from tui.runs.option_columns import MOST as MOST_OPTIONS
from tui.runs.option_columns import OptionColumns, rank_differences, read_names
from tui.runs.run_actions import RunActions, chart_conditions
from tui.runs.run_list import Marks, RunList
from tui.runs.run_page import CHART_ACTIONS, RunPage
from tui.runs.selection import Selection, make_traces
from tui.runs.status_lines import QueryLine, TopLine
from tui.services import Services
from tui.status_row import StatusRow
from tui.store import Changes, Store

LEAST, MOST, STEP = 15, 80, 5  # share of the screen for the list, in percent
FITTED = 65  # maximum share of the width if the list is as wide as its columns need
NARROW = 121  # a list beside the charts may always be this wide, so that it shows as much as on a narrow screen
CHARTS = 2 * LEAST_WIDTH  # if possible, the charts keep space for two columns
ABOVE = 60  # maximum share of the height for a list above the details
NO_RUNS = """No runs yet.

n, Enter, Enter     train CartPole until it is solved (a few seconds)
n                   list all targets
?                   list all keys

Runs started in other terminals appear here automatically."""


class RunsScreen(RunActions):
    """Shows the table above the charts, or beside them on wide terminals."""

    CSS_PATH = "runs_screen.tcss"
    BINDINGS: ClassVar[list[BindingType]] = [*bindings("runs"), *bindings("control"), *bindings("charts")]
    HORIZONTAL_BREAKPOINTS = [(0, "-stacked"), (170, "-beside")]  # noqa: RUF012 - as Textual declares it
    places: tuple[Place, ...] = ("runs", "control", "charts")

    def __init__(self, services: Services, store: Store) -> None:
        super().__init__(services)
        self.store, self.selection = store, Selection(store, services.state)
        self._query_error, self._seeds_grouped = "", False
        self._options = OptionColumns()
        self._top, self._query = TopLine(services.runs, services.readonly), QueryLine()

    def compose(self) -> ComposeResult:
        self.run_list = RunList(self.services.unicode, self.store.clock)
        self.plots = Plots(Settings.from_dict(self.services.state.charts), self.services.unicode)
        self.details = DetailPane()
        self._left = Container(self.run_list, self.details, id="left")
        self._panes = Container(self._left, self.plots, id="panes")
        yield self._top
        yield self._panes
        yield self._query
        yield StatusRow()

    def on_mount(self) -> None:
        self.run_list.focus()
        self.app.theme_changed_signal.subscribe(self, lambda _: self._redraw())
        self._resize_list()
        self._relist()

    @property
    def entry(self) -> Entry | None:
        """The current state of the run under the cursor, which may be newer than the list."""
        current = self.run_list.current
        return None if current is None else self.store.entries.get(current.key)

    @property
    def conditions(self) -> frozenset[str]:
        return super().conditions | chart_conditions(self.plots) | ({"runs"} if self.store.entries else frozenset())

    # updates from the store

    def update_from_store(self, changes: Changes) -> None:
        """Update the list or the charts."""
        if changes.listed:
            self._relist()
        elif changes.advanced & set(self._drawn_keys()):
            self._redraw()

    def on_screen_resume(self) -> None:
        """Redraw, because another screen may have changed which curves are read."""
        if self.is_mounted:
            self._redraw()

    def _relist(self) -> None:
        """Filter, sort and show the runs, then draw the curves."""
        state, everything = self.services.state, list(self.store.entries.values())
        try:
            chosen, self._query_error = select_entries(everything, parse(state.query)), ""
        except UsageError as error:
            chosen, self._query_error = everything, str(error)
        self.selection.listed = frozenset(entry.key for entry in chosen)
        runs = self.run_list
        runs.sorted_by, runs.reverse = state.sorted_by, state.reverse
        runs.empty = f"None of the {len(everything)} runs matches the filter." if everything else NO_RUNS
        chosen = sort_entries(chosen, state.sorted_by, state.reverse)
        runs.show(chosen, self._marks(), self._options.update(chosen, state.columns))
        self._resize_list()
        self._update_lines()
        self._redraw()

    def _update_lines(self) -> None:
        state, entries, runs = self.services.state, self.store.entries, self.run_list
        marked, visible = len(self.selection.marked_keys()), len(self.selection.listed_marks())
        self._top.show(entries.values(), marked, marked - visible, runs.hidden_order)
        problem = self._query_error or self.store.problem or self._damage()
        self._query.show(state.query, problem, len(runs.entries), len(entries))

    def _damage(self) -> str:
        """Describe the damage in the event files of the drawn runs."""
        found = [text for key, text in self.store.damage.items() if key in self._drawn_keys()]
        return found[0] + (f" (and {len(found) - 1} more)" if len(found) > 1 else "") if found else ""

    # drawn runs

    def _drawn_keys(self) -> list[str]:
        return self.selection.drawn_keys(self.entry)

    def _marks(self) -> Marks:
        dark, grouped = self.app.current_theme.dark, self.plots.settings.aggregate
        return self.selection.marks(self.entry, dark, self.has_colors, grouped)

    def _redraw(self) -> None:
        """Update the charts with the curves of the drawn runs."""
        if any(isinstance(screen, RunPage) for screen in self.app.screen_stack):
            return  # an open run page selects the curves to read; `on_screen_resume` redraws later
        keys = self._drawn_keys()
        if self.store.watch(keys):
            self.services.read_now()
        marks, self._seeds_grouped = self._marks(), self.plots.settings.aggregate
        self.run_list.set_marks(marks)
        self._show_details()
        if self.plots.display:
            self.plots.show(self.store.chart_tags(keys), partial(make_traces, self.store, marks))
        self.refresh_footer()

    def _show_details(self) -> None:
        entry = self.entry
        self.details.show(entry, self.store.damage.get(entry.key, "") if entry else "")

    # actions on the list

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Disable chart actions while the details hide the charts."""
        if action in CHART_ACTIONS and self.has_class("-details"):
            return False
        return super().check_action(action, parameters)

    def on_run_list_moved(self) -> None:
        self._show_details()
        if not self.selection.listed_marks():
            self._redraw()
            self._update_lines()
        self.refresh_footer()

    def on_run_list_opened(self) -> None:
        self.action_open()

    def on_run_list_head_clicked(self, message: RunList.HeadClicked) -> None:
        self._sort(message.column)

    def action_new(self) -> None:
        self.services.open_picker()

    def action_open(self) -> None:
        if entry := self.entry:
            plots = Plots(self.plots.settings.for_one_run(), self.services.unicode)
            others = [key for key in (self.services.state.pinned, *self.selection.marked_keys()) if key != entry.key]
            reference = next((key for key in others if key in self.store.entries), None)
            self.app.push_screen(RunPage(self.services, entry.key, self.store, reference, plots))

    def action_mark(self) -> None:
        if entry := self.entry:
            self.selection.toggle_mark(entry.key)
            self._show_marks()
            self.run_list.action_move(1)

    def action_mark_all(self) -> None:
        self.selection.toggle_all([entry.key for entry in self.run_list.entries])
        self._show_marks()

    def action_pin(self) -> None:
        if entry := self.entry:
            self.selection.toggle_pin(entry.key)
            self._show_marks()

    def _show_marks(self) -> None:
        self.services.save_state()
        self._relist()

    def focus_run(self, key: str) -> None:
        """Draw a run and move the cursor to it as soon as it is listed."""
        state = self.services.state
        if self.selection.marked_keys() and key not in state.marked:
            state.marked.append(key)
            self.services.save_state()
        self.run_list.move_to(key)
        self._relist()
        if key in self.store.entries and key not in self.selection.listed:
            self.notify(f"{clean(key)} is hidden by the filter; press / to change it.", markup=False)

    def on_run_renamed(self, key: str, new: str) -> None:
        """Keep the mark, the pin and the cursor on a renamed run."""
        self.selection.rename(key, new)
        self.run_list.move_to(new)

    def on_run_deleted(self, key: str) -> None:
        """Remove a deleted run's mark and pin."""
        self.selection.forget(key)

    def action_filter(self) -> None:
        before = self.entry

        def preview(text: str) -> None:
            self.services.state.query = text
            self._relist()

        hint = "taxi  score>400  !failed  stopped|crashed  optim.lr<0.001"
        ask = PromptDialog("List only matching runs", self.services.state.query, hint, check=parse, preview=preview)

        def on_answer(text: str | None) -> None:
            self.services.save_state()
            if text is None and before is not None and before.key in self.store.entries:
                self.run_list.move_to(before.key)

        self.app.push_screen(ask, on_answer)

    def action_sort(self) -> None:
        names, current = list(self.run_list.columns), self.services.state.sorted_by
        self._sort(names[(names.index(current) + 1 if current in names else 0) % len(names)])

    def action_sort_reverse(self) -> None:
        self._sort(self.services.state.sorted_by)

    def _sort(self, column: str) -> None:
        """Sort by a column, or reverse the order if the list is already sorted by it."""
        state = self.services.state
        state.reverse = not state.reverse if column == state.sorted_by else False
        state.sorted_by = column
        self.services.save_state()
        self._relist()

    def action_wider(self) -> None:
        self._resize_list(STEP)

    def action_narrower(self) -> None:
        self._resize_list(-STEP)

    def _resize_list(self, by: int = 0) -> None:
        """Set the size of the list, and show or hide the details and the charts."""
        state, runs, screen = self.services.state, self.run_list, self._panes.size
        beside = self.has_class("-beside")
        fitted = min(runs.wanted_width + 1, max(NARROW, min(screen.width * FITTED // 100, screen.width - CHARTS)))
        if by and beside:
            share = (state.list_width or 100 * self._left.size.width // screen.width) + by
            is_fitted = abs(share - 100 * fitted / screen.width) <= STEP / 2
            state.list_width = 0 if is_fitted else min(MOST, max(LEAST, share))
        elif by:
            state.list_share = min(MOST, max(LEAST, state.list_share + by))
        details = state.details_beside if beside else state.details
        lines = max(len(runs.entries), runs.empty.count("\n") + 1 if not runs.entries else 0) + (1 if details else 2)
        share = screen.height * (ABOVE if beside else state.list_share) // 100
        self.details.display, self.plots.display = details, beside or not details
        self.set_class(details and not beside, "-details")
        self._left.styles.width = (f"{state.list_width}%" if state.list_width else fitted) if beside else "100%"
        self._left.styles.height = "100%" if beside or details else "auto"
        runs.styles.height = "100%" if beside and not details else max(4, min(lines, share))
        if by:
            self.services.save_state()

    def action_details(self) -> None:
        self.services.state.toggle_details(self.has_class("-beside"))
        self.services.save_state()
        self._resize_list()
        self.refresh_bindings()
        self.call_after_refresh(self._redraw)

    def action_columns(self) -> None:
        state = self.services.state
        entries = self.run_list.entries
        known = {option for entry in self.store.entries.values() for option in entry.options}

        def on_answer(text: str | None) -> None:
            if text is not None:
                state.columns = read_names(text, known)
                self._show_marks()

        hint = " ".join(rank_differences(entries)[:MOST_OPTIONS]) or "seed optim.lr"
        title = "Options to show as columns (leave empty to show options that differ between listed runs)"
        check = partial(read_names, known=known)
        self.app.push_screen(PromptDialog(title, " ".join(state.columns), hint, check=check), on_answer)

    def on_resize(self) -> None:
        self._resize_list()
        self.call_after_refresh(self._relist)  # after the list has computed its columns

    def action_compare(self) -> None:
        drawn = [entry for key in self._drawn_keys() if (entry := self.store.entries.get(key))]
        from tui.runs.compare_screen import CompareScreen  # imported late to show the first screen sooner

        screen = CompareScreen(self.store, drawn)
        if screen.count >= 2:
            self.app.push_screen(screen)
            return
        text = ". ".join(["Mark at least two runs (space) to compare their options", *screen.not_compared])
        self.notify(text, severity="warning", markup=False)

    # actions on the charts, regardless of the focus

    def on_plots_changed(self) -> None:
        self.services.state.charts = self.plots.settings.to_dict()
        self.call_after_refresh(self.services.save_state)  # writing the file must not delay the redraw
        self.refresh_footer()
        if self.plots.settings.aggregate != self._seeds_grouped:
            self._redraw()

    def explain(self) -> str | None:
        """Return the description of the current chart's metric for the help dialog."""
        return None if self.has_class("-details") else self.plots.explain()

    def legend(self) -> Legend:
        """Return the meanings of the columns and signs for the help dialog."""
        return list_legend(self.run_list.columns, self.services.unicode)


forward_actions(RunsScreen, (action.name for action in actions_of("charts")))
