"""The inspector: every token or step of a stored iteration with its formulas, live while the run trains."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from textual import events, work
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Container, Horizontal, Vertical
from textual.message import Message
from textual.screen import Screen
from textual.widgets import Input, Static

from ppo_unified.errors import UsageError
from ppo_unified.inspection.what_if import Settings
from ppo_unified.runs import samples
from ppo_unified.runs.folder import ACTIVE, Run
from ppo_unified.text import clean
from tui.actions import Place, actions_of, bindings, is_write_action
from tui.dialogs import PromptDialog
from tui.folder_scanner import stamp_if_any
from tui.inspector.explanation import EXPLANATION, LEGEND
from tui.inspector.export import write_sample
from tui.inspector.formula_pane import FormulaPane, copied_text
from tui.inspector.head import format_head, format_sample
from tui.inspector.inspection import Inspection, View
from tui.inspector.lines import LinesPane, LineWidget
from tui.inspector.probability_pane import ProbabilityPane
from tui.inspector.sample_pane import SamplePane
from tui.inspector.shown import Look, Shown
from tui.inspector.steps_pane import StepsPane
from tui.inspector.strips_pane import StripsPane
from tui.inspector.summary_pane import HEIGHT as SUMMARY
from tui.inspector.summary_pane import SummaryPane
from tui.inspector.table_pane import TablePane
from tui.inspector.text_pane import TextPane
from tui.inspector.what_if_pane import (
    WhatIfPane,
    change_option,
    format_value,
    neighbor_value,
    parse_value,
)
from tui.services import Services
from tui.status_row import StatusRow
from tui.store import Changes, Store

LOOK_S = 0.5  # interval between checks for new iterations
WIDE, HUGE = 110, 170  # columns of a screen with one pane at its left, and with two
LIST, LARGE_LIST = 35, 50  # columns of a pane at the left
BESIDE, CHANCES = 140, 50  # columns: of a right side with the probabilities beside the formulas, and of the former
LOW = 30  # lines; a lower screen has a single line of facts
LAYOUTS = ("formulas", "table", "text")  # what gets most of the space
OPTIONS = frozenset(action.name for action in actions_of("what_if"))


class InspectorScreen(Screen[None]):
    """Shows the stored iterations of one run. New iterations are announced in the header and do not replace the shown
    one, except after "sample now".
    """

    CSS_PATH = "inspector.tcss"
    BINDINGS: ClassVar[list[BindingType]] = [*bindings("what_if"), *bindings("inspector")]
    places: tuple[Place, ...] = ("inspector", "what_if")

    class Loaded(Message):
        """A thread has loaded an iteration, or failed with a message."""

        def __init__(self, iteration: int, found: Inspection | str) -> None:
            super().__init__()
            self.iteration, self.found = iteration, found

    def __init__(self, services: Services, store: Store, key: str) -> None:
        super().__init__()
        self.services, self.store, self.key = services, store, key
        self.run_folder = Run(store.entries[key].path if key in store.entries else Path(key))
        self.numbers: list[int] = []  # stored iterations, ascending
        self.inspection: Inspection | None = None
        self.view = View()
        self._stamp: object = None  # of the samples folder
        self._loading: int | None = None
        self._awaits_sample = 0  # the newest iteration when "sample now" was pressed, plus 1
        self._list_hidden = self._list_full = False  # by the user: beside the sample, in a narrow screen
        self._what_if = False
        self._layout = LAYOUTS[0]

    def compose(self) -> ComposeResult:
        yield LineWidget("head")
        yield Static("Reading the samples ...", id="notice", markup=False)
        with Horizontal(id="body"):
            with Vertical(id="left"):
                yield SamplePane("samples")
                yield SummaryPane("summary")
            yield WhatIfPane("what-if")
            with Vertical(id="right"):
                yield LineWidget("sample")
                yield TextPane("text")
                yield StripsPane("strips")
                yield TablePane("table")
                with Container(id="bottom"):
                    yield FormulaPane("formulas")
                    yield ProbabilityPane("probabilities")
        yield StatusRow()

    def on_mount(self) -> None:
        self.query_one("#body").display = False
        self.set_interval(LOOK_S, self._poll)
        self.app.theme_changed_signal.subscribe(self, lambda _: self.update_panes())
        self._poll()

    # loading

    def _poll(self) -> None:
        """List the stored iterations again if the folder has changed, and load the first one, or a requested one."""
        stamp = stamp_if_any(self.run_folder.samples)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        self.numbers = samples.iterations(self.run_folder)
        newest = self.numbers[-1] if self.numbers else None
        if newest is None:
            self._show_notice(self._why_empty())
        elif self.inspection is None or (self._awaits_sample and newest >= self._awaits_sample):
            self._awaits_sample = 0
            self._load(newest)
        self._update_head()
        self.refresh_bindings()

    def _why_empty(self) -> str:
        return "No iteration is stored yet. " + (
            "Press S to store the next one." if self._is_active() else "Only an active run can store iterations."
        )

    def _load(self, iteration: int) -> None:
        self._loading = iteration
        self._read(iteration, self.view)

    @work(thread=True, exclusive=True, group="inspector", exit_on_error=False)
    def _read(self, iteration: int, view: View) -> None:
        """Read and recompute an iteration in a thread. Does not access any widget."""
        found: Inspection | str
        try:
            found = Inspection(samples.read(self.run_folder, iteration), view)
        except (UsageError, OSError) as error:
            found = clean(error)
        self.post_message(self.Loaded(iteration, found))
        if isinstance(found, Inspection):
            found.prepare()

    def on_inspector_screen_loaded(self, message: Loaded) -> None:
        if message.iteration != self._loading:
            return
        self._loading = None
        if isinstance(message.found, str):
            self._show_notice(message.found)
            return
        self.inspection = message.found
        self.view = self.inspection.view
        self.query_one("#notice").display = False
        self.query_one("#body").display = True
        self.query_one(SamplePane).inspection = self.inspection
        self.arrange_panes()
        self.refresh_bindings()

    def _show_notice(self, text: str) -> None:
        if self.inspection is not None:
            self.notify(text, severity="warning", markup=False)
            return
        self.query_one("#notice", Static).update(text)

    def _is_active(self) -> bool:
        entry = self.store.entries.get(self.key)
        return entry is not None and entry.state in (*ACTIVE, "stalled")

    def update_from_store(self, changes: Changes) -> None:
        """Update the header, which shows the progress of the run."""
        if changes.listed:
            self._update_head()

    # layout and painting

    @property
    def conditions(self) -> frozenset[str]:
        """The conditions of actions that hold."""
        found = {"sample"} if self.inspection is not None else set()
        found |= {"iterations"} if len(self.numbers) > 1 else set()
        found |= {"epochs"} if self.inspection is not None and len(self.inspection.moments) > 1 else set()
        return frozenset(found)

    @property
    def is_wide(self) -> bool:
        """True if the list has room beside the sample."""
        return self.size.width >= WIDE

    def steps_pane(self) -> StepsPane:
        """Return the pane that shows all steps of the sample."""
        inspection = self.inspection
        has_text = inspection is not None and "text" in inspection.stored.columns
        return self.query_one(TextPane) if has_text else self.query_one(StripsPane)

    def on_resize(self) -> None:
        self.arrange_panes()

    def arrange_panes(self) -> None:
        """Show the panes that fit, with their sizes, and update them."""
        inspection = self.inspection
        if inspection is None:
            self._update_head()
            return
        wide, huge, low = self.is_wide, self.size.width >= HUGE, self.size.height < LOW
        list_alone = self._list_full and not wide and not self._what_if
        has_list = list_alone or (wide and not self._list_hidden and (huge or not self._what_if))
        beside = LARGE_LIST if huge else LIST
        left, right, what_if = (self.query_one(f"#{name}") for name in ("left", "right", "what-if"))
        left.display, right.display, what_if.display = has_list, not list_alone, self._what_if
        left.styles.width, what_if.styles.width = "1fr" if list_alone else beside, LIST
        self.query_one("#summary").display = not low
        self.query_one("#sample").display = not low
        is_beside = has_list or self._what_if
        right.set_class(is_beside, "-beside")
        width = self.size.width - beside * has_list - LIST * self._what_if - (2 if is_beside else 0)
        self._arrange_right(inspection, max(20, width), self.size.height - (2 if low else 3))
        self.update_panes()

    def _arrange_right(self, inspection: Inspection, width: int, height: int) -> None:
        """Distribute the height of the right side over its panes."""
        shown, steps = inspection.show(self._look()), self.steps_pane()
        for pane in (self.query_one(TextPane), self.query_one(StripsPane)):
            pane.display = pane is steps
        formulas, chances = self.query_one(FormulaPane), self.query_one(ProbabilityPane)
        bottom, table = self.query_one("#bottom"), self.query_one(TablePane)
        bottom.display, table.display = self._layout == "formulas", self._layout != "text"
        beside = width >= BESIDE and bool(shown.stored.alternatives)
        bottom.set_class(beside, "-beside")
        formula_lines = formulas.lines_wanted(shown, width - CHANCES - 2 if beside else width)
        below = 7 if shown.stored.alternatives and not beside and height - formula_lines >= 18 else 0
        chances.display = beside or bool(below)
        chances.styles.height = formula_lines if beside else below
        formulas.styles.height, bottom.styles.height = formula_lines, formula_lines + below
        room = height - (formula_lines + below if bottom.display else 0)
        longest = 1 + max(len(sample.columns) for sample in inspection.samples)
        wanted = steps.lines_wanted(shown, width) + 1
        rows = min(longest, max(4, room // 2)) if table.display else 0
        lines = max(3, min(wanted, room - rows)) if table.display else room
        steps.styles.height = lines
        table.styles.height = max(2, min(longest, room - lines))

    def _look(self) -> Look:
        theme = self.app.current_theme
        colors = self.services.unicode and not self.app.no_color
        return Look(theme.dark, colors, self.services.unicode, theme.background or "#000000")

    def shown(self) -> Shown | None:
        """Return the state that the panes show."""
        return self.inspection.show(self._look()) if self.inspection is not None else None

    def update_panes(self) -> None:
        """Show the current state in all visible panes."""
        shown, inspection = self.shown(), self.inspection
        if shown is None or inspection is None:
            return
        self.view = inspection.view
        for pane in self.query(LinesPane):
            if pane.display:
                pane.update_shown(shown)
        self.query_one("#sample", LineWidget).set_line([("   ".join(format_sample(inspection, shown)), "bold")])
        self._update_head()

    def _update_head(self) -> None:
        entry = self.store.entries.get(self.key)
        inspection, shown = self.inspection, self.shown()
        low = self.size.height < LOW and inspection is not None and shown is not None
        sample = format_sample(inspection, shown) if low and inspection and shown else []
        head = format_head(self.run_folder.name, entry, inspection, self.numbers, sample, max(20, self.size.width))
        self.query_one("#head", LineWidget).set_line(head)

    # help

    def explain(self) -> str:
        """Return the explanation of the screen for the help dialog."""
        return EXPLANATION

    def legend(self) -> object:
        """Return the meanings of names and signs for the help dialog."""
        return LEGEND

    # actions

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Disable the actions of the what-if pane while it is closed, and those that it replaces while it is open."""
        if self.services.readonly and is_write_action(action):
            return False
        if action in OPTIONS:
            return self._what_if
        return not (self._what_if and action in ("sample_next", "sample_previous"))

    def action_back(self) -> None:
        if self._what_if:
            self.action_what_if()
        elif self._list_full and not self.is_wide:
            self.action_list()
        else:
            self.app.pop_screen()

    def _need(self) -> Inspection | None:
        if self.inspection is None:
            self.notify(self._why_empty(), severity="warning", markup=False)
        return self.inspection

    def _act(self, name: str, *arguments: object) -> None:
        """Call a method of the inspection and show the result."""
        if inspection := self._need():
            getattr(inspection, name)(*arguments)
            self.update_panes()

    def action_step_right(self) -> None:
        self._act("move_step", 1)

    def action_step_left(self) -> None:
        self._act("move_step", -1)

    def action_step_first(self) -> None:
        self._act("select_step", 0)

    def action_step_last(self) -> None:
        self._act("select_step", 1 << 30)

    def action_line_down(self) -> None:
        self._move_lines(1)

    def action_line_up(self) -> None:
        self._move_lines(-1)

    def _move_lines(self, sign: int) -> None:
        if inspection := self._need():
            pane = self.steps_pane()
            inspection.select_step(pane.step_by_lines(sign * max(1, pane.size.height // 2)))
            self.update_panes()

    def action_sample_next(self) -> None:
        self._act("move_sample", 1)

    def action_sample_previous(self) -> None:
        self._act("move_sample", -1)

    def action_best(self) -> None:
        self._act("select_extreme", True)

    def action_worst(self) -> None:
        self._act("select_extreme", False)

    def action_cut_next(self) -> None:
        self._move_to_cut(1)

    def action_cut_previous(self) -> None:
        self._move_to_cut(-1)

    def _move_to_cut(self, by: int) -> None:
        if inspection := self._need():
            if not inspection.move_to_cut(by):
                where = "after" if by > 0 else "before"
                self.notify(f"No step {where} this one was cut, in this sample and the rest of the list.", markup=False)
            self.update_panes()

    def action_heat(self) -> None:
        self._act("next_heat")

    def action_sort(self) -> None:
        self._act("next_sort")

    def action_moment_next(self) -> None:
        self._act("move_moment", 1)

    def action_moment_previous(self) -> None:
        self._act("move_moment", -1)

    def action_iteration_next(self) -> None:
        self._move_iteration(1)

    def action_iteration_previous(self) -> None:
        self._move_iteration(-1)

    def _move_iteration(self, by: int) -> None:
        if inspection := self._need():
            at = self._loading or inspection.stored.iteration
            others = [n for n in self.numbers if (n > at if by > 0 else n < at)]
            if others:
                self._load(others[0 if by > 0 else -1])
            else:
                self.notify(f"This is the {'newest' if by > 0 else 'oldest'} stored iteration.", markup=False)

    def action_filter(self) -> None:
        if inspection := self._need():
            ask = PromptDialog(
                "List only samples that match:",
                inspection.view.query,
                "wrong   cut   kl>1   score<0.5   a word of the text",
                check=self._check_query,
                preview=self._preview_query,
            )
            self.app.push_screen(ask)

    def _check_query(self, text: str) -> None:
        if self.inspection is not None:
            self.inspection.list.filter(text)

    def _preview_query(self, text: str) -> None:
        if self.inspection is not None:
            try:
                self.inspection.set_query(text)
            except UsageError:
                return
            if self.inspection.order and self.inspection.number not in self.inspection.order:
                self.inspection.select(self.inspection.order[0])
            self.update_panes()

    def action_list(self) -> None:
        if self.is_wide:
            self._list_hidden = not self._list_hidden
        else:
            self._list_full = not self._list_full
        self.arrange_panes()

    def action_table(self) -> None:
        self._layout = LAYOUTS[(LAYOUTS.index(self._layout) + 1) % len(LAYOUTS)]
        self.arrange_panes()

    def action_what_if(self) -> None:
        if self._need():
            self._what_if = not self._what_if
            self.arrange_panes()
            self.refresh_bindings()

    def action_copy(self) -> None:
        if shown := self.shown():
            self.app.copy_to_clipboard(copied_text(shown))
            self.notify("Copied the formulas of this step.", markup=False)

    def action_export(self) -> None:
        if shown := self.shown():
            self.services.attempt(lambda: self._export(shown))

    def _export(self, shown: Shown) -> None:
        path = write_sample(Path("exports"), self.run_folder.name, shown)
        self.notify(f"Wrote {clean(path)}", markup=False)

    def action_sample_now(self) -> None:
        if not self._is_active():
            self.notify(
                f"{clean(self.run_folder.name)} is not active; only an active run can store its next iteration.",
                severity="warning",
                markup=False,
            )
            return
        self.services.attempt(self._request_sample)

    def _request_sample(self) -> None:
        samples.request_next(self.run_folder)
        self._awaits_sample = (self.numbers[-1] if self.numbers else 0) + 1
        self.notify("The run stores its next iteration, which then appears here.", markup=False)

    # what if

    def _settings(self) -> tuple[Inspection, WhatIfPane] | None:
        return (self.inspection, self.query_one(WhatIfPane)) if self.inspection is not None else None

    def action_option_next(self) -> None:
        self.query_one(WhatIfPane).move(1)

    def action_option_previous(self) -> None:
        self.query_one(WhatIfPane).move(-1)

    def action_more(self) -> None:
        self._change(1)

    def action_less(self) -> None:
        self._change(-1)

    def _change(self, by: int) -> None:
        inspection, option = self.inspection, self.query_one(WhatIfPane).option
        if inspection is None:
            return
        value = neighbor_value(inspection.stored, inspection.settings, option, by)
        self._set_option(option, value)

    def _set_option(self, option: str, value: object) -> None:
        if inspection := self.inspection:
            try:
                self._set_settings(change_option(inspection.stored, inspection.settings, option, value))
            except UsageError as error:
                self.notify(str(error), severity="warning", markup=False)

    def _set_settings(self, settings: Settings) -> None:
        if self.inspection is not None:
            was_changed = bool(self.inspection.view.changes)
            self.inspection.change(settings)
            if was_changed != bool(self.inspection.view.changes):
                self.arrange_panes()
            else:
                self.update_panes()

    def action_reset(self) -> None:
        if self.inspection is not None:
            self._set_settings(self.inspection.own)

    def action_edit(self) -> None:
        if inspection := self.inspection:
            option = self.query_one(WhatIfPane).option
            self._ask_value(option, format_value(getattr(inspection.settings, option)))

    def _ask_value(self, option: str, text: str) -> None:
        inspection = self.inspection
        assert inspection is not None
        stored, before = inspection.stored, inspection.settings

        def preview(typed: str) -> None:
            try:
                self._set_settings(change_option(stored, before, option, parse_value(stored, option, typed)))
            except UsageError:
                self._set_settings(before)

        own = format_value(getattr(inspection.own, option))
        ask = PromptDialog(
            f"{option} (run: {own})", text, check=lambda typed: parse_value(stored, option, typed), preview=preview
        )
        self.app.push_screen(ask)

    async def on_key(self, event: events.Key) -> None:
        """Start typing the value of an option with a digit."""
        character = event.character or ""
        if self._what_if and (character.isdecimal() or character in (".", "-")) and character:
            event.stop()
            self._ask_value(self.query_one(WhatIfPane).option, character)
            self.app.call_later(self._end_selection)

    def _end_selection(self) -> None:
        for field in self.app.screen.query(Input):
            field.action_end()

    # mouse

    def on_steps_pane_clicked(self, message: StepsPane.Clicked) -> None:
        self._act("select_step", message.step)

    def on_sample_pane_clicked(self, message: SamplePane.Clicked) -> None:
        self._act("select", message.number)
