"""The inspector: every token or step of a stored iteration with its formulas, live while the run trains."""

from __future__ import annotations

from typing import ClassVar

from textual import work
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.message import Message
from textual.widgets import Static

from ppo_unified.errors import UsageError
from ppo_unified.inspection.settings import has_reference
from ppo_unified.runs import samples
from ppo_unified.runs.folder import ACTIVE
from ppo_unified.text import clean
from tui.action import Place
from tui.actions import actions_of, bindings, is_write_action
from tui.folder_scanner import stamp_if_any
from tui.inspector.explanation import LEGEND
from tui.inspector.frame_pane import FramePane
from tui.inspector.inspection import Inspection, View
from tui.inspector.sample_pane import SamplePane
from tui.inspector.study_actions import STUDY_KEYS
from tui.inspector.tabs import TabActions
from tui.services import Services
from tui.store import Changes, Store

LOOK_S = 0.5  # interval between checks for new iterations
OPTIONS = frozenset(action.name for action in actions_of("what_if"))


class InspectorScreen(TabActions):
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
        super().__init__(services, store, key)
        self._stamp: object = ()  # of the samples folder
        self._chosen = 0  # the iteration that was chosen last; it is shown once it is loaded

    def compose(self) -> ComposeResult:
        self._list_iterations()  # first, so that a thread reads the newest one while the widgets are mounted
        yield from super().compose()

    def on_mount(self) -> None:
        self.query_one("#body").display = self.query_one("#laboratory").display = False
        self.set_interval(LOOK_S, self._poll)
        self.app.theme_changed_signal.subscribe(self, lambda _: self.update_panes())
        self._update_list()

    # loading

    def _poll(self) -> None:
        if self._list_iterations():
            self._update_list()

    def _list_iterations(self) -> bool:
        """List the stored iterations again if the folder has changed, and load the first one, or a requested one.

        Returns True if the folder has changed. Does not access any widget."""
        stamp = stamp_if_any(self.run_folder.samples)
        if stamp == self._stamp:
            return False
        self._stamp = stamp
        self.numbers = samples.iterations(self.run_folder)
        newest = self.numbers[-1] if self.numbers else None
        if newest is not None and (self.inspection is None or 0 < self.awaited <= newest):
            self.awaited = 0
            self._load(newest)
        return True

    def _update_list(self) -> None:
        """Show which iterations are stored."""
        self._explain_emptiness()
        self.update_head()
        self.refresh_bindings()

    def _explain_emptiness(self) -> None:
        """State why nothing is shown, if no iteration is stored."""
        if self.inspection is not None or self.numbers:
            return
        if not self._is_active():
            self._show_notice("No iteration is stored yet. Only an active run can store iterations.")
        elif self.awaited:
            self._show_notice("Waiting for the next iteration ...")
        elif self.services.readonly:
            self._show_notice("No iteration is stored yet.")
        else:
            self._show_notice("No iteration is stored yet. Press S to store the next one.")

    def _load(self, iteration: int) -> None:
        self._chosen = iteration
        self._read(iteration, self.inspection.view if self.inspection is not None else View())

    @work(thread=True, exclusive=True, group="inspector", exit_on_error=False)
    def _read(self, iteration: int, view: View) -> None:
        """Read and recompute an iteration in a thread. Does not access any widget."""
        found: Inspection | str
        try:
            found = Inspection(samples.read(self.run_folder, iteration), view)
        except (UsageError, OSError) as error:
            is_stored = samples.sample_path(self.run_folder, iteration).exists()
            found = clean(error) if is_stored else f"Iteration {iteration} is no longer stored."
        self.post_message(self.Loaded(iteration, found))

    def on_inspector_screen_loaded(self, message: Loaded) -> None:
        if message.iteration != self._chosen:
            return
        if isinstance(message.found, str):
            self._show_failure(message.iteration, message.found)
            return
        self.inspection = message.found
        self.query_one("#notice").display = False
        self.show_tab()
        self.query_one(SamplePane).inspection = self.inspection
        self.arrange_panes()
        self.refresh_bindings()

    def _show_failure(self, iteration: int, reason: str) -> None:
        """State why an iteration cannot be shown. The one that is shown stays."""
        if self.inspection is not None:
            self._chosen = self.inspection.stored.iteration
        elif any(number < iteration for number in self.numbers):
            reason += "\n\nPress { for the previous iteration."
        self._show_notice(reason)

    def _show_notice(self, text: str) -> None:
        if self.inspection is not None:
            self.notify(text, severity="warning", markup=False)
            return
        self.query_one("#notice", Static).update(text)

    def _is_active(self) -> bool:
        entry = self.store.entries.get(self.key)
        return entry is not None and entry.state in (*ACTIVE, "stalled")

    def update_from_store(self, changes: Changes) -> None:
        """Update what depends on the state of the run."""
        if changes.listed:
            self._explain_emptiness()
            self.update_head()
            self.refresh_bindings()

    @property
    def conditions(self) -> frozenset[str]:
        """The conditions of actions that hold."""
        holds = {
            "sample": self.inspection is not None,
            "reference": self.inspection is not None and has_reference(self.inspection.stored),
            "iterations": len(self.numbers) > 1,
            "epochs": self.inspection is not None and len(self.inspection.moments) > 1,
            "active": self._is_active(),
            "study": self.study,
            "permission": any(pane.needs_permission for pane in self.query(FramePane)),
        }
        return frozenset(name for name, is_true in holds.items() if is_true)

    # help

    def explain(self) -> str:
        """Return the explanation of the tab for the help dialog."""
        return self.tab.explanation

    def legend(self) -> tuple[tuple[str, dict[str, str]], ...]:
        """Return the meanings of names and signs for the help dialog."""
        return LEGEND if self.tab.laboratory is None else ()

    # actions

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Disable actions that have no effect: those of a closed pane, those that the what-if pane replaces
        while it is open, and those that the tab does not need."""
        if self.services.readonly and is_write_action(action):
            return False
        if action in OPTIONS:
            return self.what_if
        if self.leaves_out(action):
            return False
        if action in STUDY_KEYS:
            return self.study
        return not (self.what_if and (action in ("sample_next", "sample_previous") or action.startswith("tab_")))

    def action_back(self) -> None:
        if self.what_if:
            self.action_what_if()
        elif self.study and not self.leaves_out("study"):
            self.action_study()
        elif self.is_list_alone and not self.leaves_out("list"):
            self.action_list()
        else:
            self.app.pop_screen()

    def action_iteration_next(self) -> None:
        self._move_iteration(1)

    def action_iteration_previous(self) -> None:
        self._move_iteration(-1)

    def _move_iteration(self, by: int) -> None:
        others = [n for n in self.numbers if (n > self._chosen if by > 0 else n < self._chosen)]
        if others:
            self._load(others[0 if by > 0 else -1])
        else:
            self.notify(f"There is no {'newer' if by > 0 else 'older'} stored iteration.", markup=False)

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
        self.awaited = (self.numbers[-1] if self.numbers else 0) + 1
        self.notify("The run stores its next iteration, which then appears here.", markup=False)
        self._explain_emptiness()
